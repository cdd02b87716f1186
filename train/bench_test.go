package train

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/weights"
)

// realTrainer trains a rank-16 adapter of the default model, all matrices of all layers.
func realTrainer(tb testing.TB, o Options) *Trainer {
	tb.Helper()
	file, err := weights.Open(testenv.Model(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	a, err := NewAdapter(file, 16, 32, nil, 1)
	if err != nil {
		tb.Fatal(err)
	}
	t, err := New(file, a, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(t.Close)
	return t
}

// ragSample is n random tokens as a system block of 30, ten passages and a final block of 60, whose last 4 are the targets.
func ragSample(seed uint64, n int) Sample {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := Sample{Tokens: make([]int32, n), Blocks: []int{30}, Targets: []int{n - 4, n - 3, n - 2, n - 1}}
	for i := range s.Tokens {
		s.Tokens[i] = int32(rng.IntN(40000))
	}
	left := n - 90
	for i := range 10 {
		passage := left / (10 - i)
		s.Blocks = append(s.Blocks, passage)
		left -= passage
	}
	s.Blocks = append(s.Blocks, 60)
	return s
}

// BenchmarkStep is a LoRA step of the default model on one sample of 1,200 tokens. Operations are those of the frozen matrices and of LoRA,
// forward and back; the peak is that of float32 multiply-add, measured before and after.
func BenchmarkStep(b *testing.B) {
	for _, mode := range []Mode{Full, Block} {
		b.Run(string(mode), func(b *testing.B) {
			t := realTrainer(b, Options{Mode: mode, Steps: 1 << 30, Batch: 1, LearningRate: 1e-3, Threads: runtime.GOMAXPROCS(0)})
			s := ragSample(1, 1200)
			sample := func(int) (Sample, error) { return s, nil }
			quickest, peak := time.Hour, 0.0
			for b.Loop() {
				peak = max(peak, measurePeak(t.pool))
				start := time.Now()
				if _, err := t.step(sample); err != nil {
					b.Fatal(err)
				}
				quickest = min(quickest, time.Since(start))
			}
			rate := 1200 / quickest.Seconds()
			b.ReportMetric(rate, "tokens/s")
			b.ReportMetric(rate*454e6/1e9, "GFLOP/s")
			b.ReportMetric(100*rate*454e6/peak, "%peak")
		})
	}
}

// measurePeak is the operations a second that the pool reaches in multiply-add of float32.
func measurePeak(pool *kernel.Pool) float64 {
	task := &peakTask{peak: kernel.Peaks()[1], ops: make([]float64, pool.Threads())}
	best := 0.0
	for range 20 {
		clear(task.ops)
		start := time.Now()
		pool.Run(pool.Threads(), task)
		ops := 0.0
		for _, n := range task.ops {
			ops += n
		}
		best = max(best, ops/time.Since(start).Seconds())
	}
	return best
}

type peakTask struct {
	peak kernel.Peak
	ops  []float64
}

func (t *peakTask) Do(worker, _ int) {
	for range 20 {
		t.ops[worker] += t.peak.Run()
	}
}
