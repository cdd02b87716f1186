package model

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/weights"
)

// real loads the default model.
func real(b *testing.B) (*Model, *Workspace) {
	file, err := weights.Open(testenv.Model(b))
	if err != nil {
		b.Fatal(err)
	}
	m, err := New(file)
	if err != nil {
		b.Fatal(err)
	}
	w := m.NewWorkspace(runtime.GOMAXPROCS(0))
	b.Cleanup(func() { w.Close(); file.Close() })
	return m, w
}

func BenchmarkPrefill(b *testing.B) {
	m, w := real(b)
	for _, n := range []int{50, 512, 2048} {
		b.Run(fmt.Sprintf("T=%d", n), func(b *testing.B) {
			ids := tokens(1, n)
			block := m.NewKV(kv.F16, n)
			for b.Loop() {
				block.Len = 0
				if err := w.Forward(context.Background(), []Sequence{{Tokens: ids, KV: block}}, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	m, w := real(b)
	for _, n := range []int{128, 4096} {
		b.Run(fmt.Sprintf("context=%d", n), func(b *testing.B) {
			block := m.NewKV(kv.F16, n+1)
			block.Len = n // zeros as keys and values: they cost what others cost
			seq := []Sequence{{Tokens: []int32{1}, KV: block, Logits: func(int, []float32) {}}}
			b.ReportAllocs()
			for b.Loop() {
				block.Len = n
				if err := w.Forward(context.Background(), seq, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func BenchmarkNew(b *testing.B) {
	file, err := weights.Open(testenv.Model(b))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for b.Loop() {
		if _, err := New(file); err != nil {
			b.Fatal(err)
		}
	}
}
