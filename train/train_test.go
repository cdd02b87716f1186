package train

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/weights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tiny opens a tiny model.
func tiny(t testing.TB, name string) *weights.File {
	t.Helper()
	file, err := weights.Open(testenv.Tiny(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// tinyAdapter is a random adapter of rank 3: B is not zero, as it is at the start of training.
func tinyAdapter(t testing.TB, file *weights.File) *weights.Adapter {
	t.Helper()
	a, err := NewAdapter(file, 3, 6, nil, 7)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range a.Changes {
		for j := range a.Changes[i].B {
			a.Changes[i].B[j] = float32(rng.NormFloat64() / 10)
		}
	}
	return a
}

// tinyLinks are n random link tokens.
func tinyLinks(file *weights.File, n int) (links [][]float32) {
	embedding, _ := file.Tensor("token_embd.weight")
	rng := rand.New(rand.NewPCG(8, 8))
	for range n {
		link := make([]float32, embedding.Shape[0])
		for i := range link {
			link[i] = float32(rng.NormFloat64() / 10)
		}
		links = append(links, link)
	}
	return links
}

// options are sound ones, with few tokens to learn from.
func options(mode Mode, threads int) Options {
	return Options{Mode: mode, Steps: 6, Batch: 2, LearningRate: 1e-3, WarmUp: 0.2, Decay: 0.01, Clip: 1, Seed: 5, Threads: threads}
}

func newTrainer(t testing.TB, file *weights.File, a *weights.Adapter, o Options) *Trainer {
	t.Helper()
	tr, err := New(file, a, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

// step goes on to the next step.
func (t *Trainer) step(sample func(i int) (Sample, error)) (Step, error) {
	for t.learnt < t.Batch {
		if err := t.learnNext(sample); err != nil {
			return t.underway, err
		}
	}
	return t.underway, t.makeStep()
}

// tinySample is sample i of a run: blocks of random lengths, one of which is longer than a chunk of queries.
func tinySample(i int) (Sample, error) {
	rng := rand.New(rand.NewPCG(11, uint64(i)))
	var s Sample
	n := 0
	for _, length := range []int{1 + rng.IntN(9), queryChunk + rng.IntN(20), 1, 1 + rng.IntN(40), 8 + rng.IntN(30)} {
		s.Blocks = append(s.Blocks, length)
		n += length
	}
	for range n {
		s.Tokens = append(s.Tokens, int32(rng.IntN(256)))
	}
	s.Targets = []int{n - 6, n - 3, n - 2, n - 1}
	return s, nil
}

// The slope of the loss at random parameters of every tensor, from float32 losses: five points, so that the step may be long. Of a few
// hundred random parameters the ones with the largest gradients are taken, whose slope stands out of the losses' rounding.
func TestGradients_EqualDifferences(t *testing.T) {
	for _, c := range []struct {
		model string
		lora  bool
		mode  Mode
		keep  bool
		final bool
		hide  int
		link  int
	}{
		{"tiny-tied.gguf", false, Block, false, false, 0, 0}, {"tiny-untied.gguf", false, Full, false, false, 0, 0}, {"tiny-tied.gguf", true, Block, false, false, 0, 0},
		{"tiny-untied.gguf", true, Full, false, false, 0, 0}, {"tiny-tied.gguf", true, Block, true, false, 0, 0},
		{"tiny-tied.gguf", true, Block, false, true, 0, 0}, {"tiny-untied.gguf", true, Full, false, true, 0, 0}, {"tiny-tied.gguf", true, Full, true, true, 0, 0},
		{"tiny-tied.gguf", true, Block, false, false, 2, 0}, {"tiny-untied.gguf", true, Block, false, true, 2, 0},
		{"tiny-tied.gguf", true, Block, false, false, 0, 3}, {"tiny-untied.gguf", true, Block, false, true, 2, 1},
	} {
		file := tiny(t, c.model)
		var a *weights.Adapter
		if c.lora {
			a = tinyAdapter(t, file)
			a.FinalOnly, a.HiddenSinks, a.LinkTokens = c.final, c.hide, tinyLinks(file, c.link)
		}
		tr := newTrainer(t, file, a, options(c.mode, 2))
		s := Sample{Tokens: make([]int32, 24), Blocks: []int{3, 1, 9, 11}, Targets: []int{15, 22, 23}}
		for i := range s.Tokens {
			s.Tokens[i] = int32(37 * i % 256)
		}
		if s.Keep = c.keep; s.Keep {
			s.Targets, tr.Keep = nil, 1
		}
		p := &tr.net.params
		tr.optimizer.clear()
		var sum Step
		if err := tr.learn(&s, 0, 1, &sum); err != nil {
			t.Fatal(err)
		}
		if c.keep != (sum.Kept.N == 1 && sum.Kept.Sum > 1e-3 && sum.Block.N == 0) {
			t.Errorf("a sample to keep: %v, came to %+v", c.keep, sum)
		}
		loss := func(at *float32, v float32) float64 {
			was := *at
			*at = v
			defer func() { *at = was }()
			tr.net.repack(tr.pool)
			l, err := 0.0, error(nil)
			if c.keep {
				l, err = tr.kept(&s)
			} else {
				l, err = tr.Loss(&s, c.mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		rng := rand.New(rand.NewPCG(3, 3))
		for _, param := range p.list {
			indices := make([]int, 200)
			for i := range indices {
				indices[i] = param.from + rng.IntN(param.to-param.from)
			}
			slices.SortFunc(indices, func(i, j int) int {
				return cmp.Compare(math.Abs(float64(p.grads[j])), math.Abs(float64(p.grads[i])))
			})
			for _, i := range indices[:2] {
				change := 0.01 // of the loss, at most
				if c.keep {
					change = 0.0025 // it bends more
				}
				h := float32(min(change/math.Abs(float64(p.grads[i])), 0.03))
				at, v := &p.values[i], p.values[i]
				slope := (8*(loss(at, v+h)-loss(at, v-h)) - (loss(at, v+2*h) - loss(at, v-2*h))) / (12 * float64(h))
				if got := float64(p.grads[i]); math.Abs(got-slope) > 1e-3*math.Abs(slope)+2e-5 {
					t.Errorf("%s, LoRA %v, final only %v, hidden %d, links %d, %s: %s[%d]: gradient %v, slope %v", c.model, c.lora, c.final, c.hide, c.link, c.mode, param.name, i-param.from, got, slope)
				}
			}
		}
	}
}

// Dual is the mean of the modes, weighted by block mode's share, and distillation adds to it; with one block there is nothing to distil.
func TestModes_AddUp(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a := tinyAdapter(t, file)
	s, _ := tinySample(2)
	var share float64 // of block mode
	gradient := func(mode Mode, distill float64, s Sample) ([]float32, Step) {
		o := options(mode, 1)
		o.Distill, o.BlockShare = distill, share
		tr := newTrainer(t, file, a, o)
		var sum Step
		if err := tr.learn(&s, 0, 1, &sum); err != nil {
			t.Fatal(err)
		}
		return tr.net.params.grads, sum
	}
	full, sumFull := gradient(Full, 0, s)
	block, sumBlock := gradient(Block, 0, s)
	dual, sumDual := gradient(Dual, 0, s)
	if sumDual.Full != sumFull.Full || sumDual.Block != sumBlock.Block || sumFull.Block.N != 0 || sumBlock.Full.N != 0 || sumDual.Tokens != 2*len(s.Tokens) {
		t.Errorf("full %+v, block %+v, dual %+v", sumFull, sumBlock, sumDual)
	}
	for i := range dual {
		if want := (full[i] + block[i]) / 2; math.Abs(float64(dual[i]-want)) > 1e-5*(1+math.Abs(float64(want))) {
			t.Fatalf("gradient %d: dual %v, full %v, block %v", i, dual[i], full[i], block[i])
		}
	}
	share = 0.75
	weighted, _ := gradient(Dual, 0, s)
	share = 0
	for i, g := range weighted {
		if want := (full[i] + 3*block[i]) / 4; math.Abs(float64(g-want)) > 1e-5*(1+math.Abs(float64(want))) {
			t.Fatalf("gradient %d with block mode's share at 3 of 4: %v, full %v, block %v", i, g, full[i], block[i])
		}
	}
	distilled, sum := gradient(Dual, 0.5, s)
	if sum.Full != sumDual.Full || sum.Block != sumDual.Block || !(sum.Divergence.Value() > 1e-3) || sum.Divergence.N != 1 {
		t.Errorf("distilled %+v, without %+v", sum, sumDual)
	}
	if slices.Equal(distilled, dual) {
		t.Error("distillation changes no gradient")
	}
	unlabelled := s
	unlabelled.Targets = nil
	alone, sumAlone := gradient(Block, 0.5, unlabelled)
	if sumAlone.Block.N != 0 || math.Abs(sumAlone.Divergence.Value()-sum.Divergence.Value()) > 1e-6 {
		t.Errorf("without targets: %+v, with them %+v", sumAlone, sum)
	}
	for i := range alone {
		if want := distilled[i] - dual[i]; math.Abs(float64(alone[i]-want)) > 1e-5*(1+math.Abs(float64(want))) {
			t.Fatalf("gradient %d of distillation alone: %v, within dual %v", i, alone[i], want)
		}
	}
	unlabelled.Blocks = []int{len(s.Tokens)}
	if g, sum := gradient(Block, 0.5, unlabelled); sum.Divergence.Sum != 0 || norm(g) > 1e-6 {
		t.Errorf("one block: divergence %v, gradient of norm %v; want 0", sum.Divergence, norm(g))
	}
}

// Questions over the same passages are to the gradient what as many samples are, each with one of them.
func TestFinals_EqualSamplesOfOneEach(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a := tinyAdapter(t, file)
	all, _ := tinySample(2)
	context := len(all.Tokens)
	all.Targets, all.Finals = nil, 3
	var alone []Sample
	for i, n := range []int{9, queryChunk + 3, 5} {
		one := Sample{Tokens: slices.Clone(all.Tokens[:context]), Blocks: append(slices.Clone(all.Blocks[:5]), n)}
		for j := range n {
			one.Tokens, all.Tokens = append(one.Tokens, int32(31*i+7*j)%256), append(all.Tokens, int32(31*i+7*j)%256)
		}
		for j := n - 2; j < n; j++ { // as many for each: the mean of all is the mean of these means
			one.Targets, all.Targets = append(one.Targets, context+j), append(all.Targets, len(all.Tokens)-n+j)
		}
		all.Blocks = append(all.Blocks, n)
		alone = append(alone, one)
	}
	for _, mode := range []Mode{Full, Block, Dual} {
		o := options(mode, 2)
		if mode == Dual {
			a.LinkTokens = tinyLinks(file, 2)
		}
		learn := func(samples ...Sample) ([]float32, Step) {
			tr := newTrainer(t, file, a, o)
			var sum Step
			for i := range samples {
				if err := tr.learn(&samples[i], 0, 1/float64(len(samples)), &sum); err != nil {
					t.Fatal(err)
				}
			}
			return tr.net.params.grads, sum
		}
		together, sumTogether := learn(all)
		each, sumEach := learn(alone...)
		for _, m := range [][2]Mean{{sumTogether.Full, sumEach.Full}, {sumTogether.Block, sumEach.Block}} {
			if got, want := m[0].Value(), m[1].Value(); m[0].N > 0 && !(math.Abs(got-want) <= 1e-5*want) {
				t.Errorf("%s: loss %v together, %v alone", mode, got, want)
			}
		}
		scale := norm(each) / math.Sqrt(float64(len(each)))
		for i := range together {
			if math.Abs(float64(together[i]-each[i])) > 1e-3*scale+1e-3*math.Abs(float64(each[i])) {
				t.Fatalf("%s: gradient %d: %v together, %v alone", mode, i, together[i], each[i])
			}
		}
	}
	// Divergence is a mean over all tokens of final blocks, however many each has.
	o := options(Block, 1)
	o.Distill = 1
	tr := newTrainer(t, file, a, o)
	all.Targets = nil
	var sum, sumEach Step
	if err := tr.learn(&all, 0, 1, &sum); err != nil {
		t.Fatal(err)
	}
	want, rows := 0.0, 0
	for i := range alone {
		alone[i].Targets = nil
		if err := tr.learn(&alone[i], 0, 1, &sumEach); err != nil {
			t.Fatal(err)
		}
		want, rows = want+tr.pass.divergence, rows+len(tr.rows)
	}
	if got := sum.Divergence.Value(); math.Abs(got-want/float64(rows)) > 1e-5 || !(got > 1e-3) {
		t.Errorf("divergence %v together, %v alone", got, want/float64(rows))
	}
}

func TestKept_NewAdapter_IsNothing(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a, err := NewAdapter(file, 2, 4, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	tr := newTrainer(t, file, a, options(Block, 1))
	s, _ := tinySample(2)
	s.Targets, s.Keep = nil, true
	if kl, err := tr.kept(&s); err != nil || math.Abs(kl) > 1e-7 {
		t.Errorf("an adapter that changes nothing is %v from the base, %v", kl, err)
	}
}

func TestAlternate_DrawsBothModes(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	tr := newTrainer(t, file, tinyAdapter(t, file), options(Alternate, 1))
	var sum Step
	for i := range 20 {
		s, _ := tinySample(i)
		if err := tr.learn(&s, i, 1, &sum); err != nil {
			t.Fatal(err)
		}
	}
	if sum.Full.N+sum.Block.N != 20 || sum.Full.N < 5 || sum.Block.N < 5 {
		t.Errorf("of 20 samples %d in full mode and %d in block mode", sum.Full.N, sum.Block.N)
	}
}

func TestRun_AnyThreads_SameBits(t *testing.T) {
	for _, lora := range []bool{false, true} {
		var want []float32
		for _, threads := range []int{1, 2, 5} {
			file := tiny(t, "tiny-tied.gguf")
			var a *weights.Adapter
			if lora {
				a = tinyAdapter(t, file)
			}
			o := options(Dual, threads)
			o.Distill, o.Steps = 1, 3
			tr := newTrainer(t, file, a, o)
			if err := tr.Run(t.Context(), Course{Sample: tinySample}); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = tr.net.params.values
			}
			if !slices.Equal(tr.net.params.values, want) {
				t.Errorf("LoRA %v: other weights on %d threads", lora, threads)
			}
		}
	}
}

// Where the activations of all layers do not fit, layers are computed twice, to the same bits; what does not fit even then is an error.
func TestRun_LittleMemory_SameBits(t *testing.T) {
	for _, lora := range []bool{false, true} {
		file := tiny(t, "tiny-tied.gguf")
		var a *weights.Adapter
		if lora {
			a = tinyAdapter(t, file)
		}
		o := options(Dual, 2)
		o.Distill, o.Steps = 1, 3
		longest := 0
		for i := range o.Steps * o.Batch {
			s, _ := tinySample(i)
			longest = max(longest, len(s.Tokens))
		}
		roomy := newTrainer(t, file, a, o)
		limit := roomy.net.activationBytes(longest, true)
		o.Memory = weightsBytes(file, a) + limit
		scarce := newTrainer(t, file, a, o)
		for _, tr := range []*Trainer{roomy, scarce} {
			if err := tr.Run(t.Context(), Course{Sample: tinySample}); err != nil {
				t.Fatal(err)
			}
		}
		if !scarce.pass.shared || roomy.pass.shared {
			t.Fatalf("layers share memory: %v with little of it, %v with enough", scarce.pass.shared, roomy.pass.shared)
		}
		if !slices.Equal(scarce.net.params.values, roomy.net.params.values) {
			t.Errorf("LoRA %v: other weights with little memory", lora)
		}
		o.Memory--
		short := newTrainer(t, file, a, o)
		if err := short.Run(t.Context(), Course{Sample: tinySample}); err == nil || !strings.Contains(err.Error(), "shorter samples take less") {
			t.Errorf("a byte less: %v, want an error that says what helps", err)
		}
		o.Memory -= limit
		if _, err := New(file, a, o); err == nil || !strings.Contains(err.Error(), "a smaller model or rank takes less") {
			t.Errorf("too little for the weights: %v, want an error that says what helps", err)
		}
	}
}

// A training interrupted after any step and resumed, by another Trainer, ends with the bits of one that was not.
func TestRun_Resumed_SameBits(t *testing.T) {
	file := tiny(t, "tiny-untied.gguf")
	a := tinyAdapter(t, file)
	a.LinkTokens = tinyLinks(file, 2)
	o := options(Alternate, 2)
	o.Distill = 0.3
	whole := newTrainer(t, file, a, o)
	if err := whole.Run(t.Context(), Course{Sample: tinySample}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	for _, until := range []int{1, 2, 7, 2*o.Steps + 1} { // samples: in the middle of a step and before one is made
		ctx, cancel := context.WithCancel(t.Context())
		tr := newTrainer(t, file, a, o)
		var told []int
		err := tr.Run(ctx, Course{Checkpoint: path, Of: "tiny", Progress: func(s Step) { told = append(told, s.Step) }, Sample: func(i int) (Sample, error) {
			if i == until-1 {
				cancel()
			}
			return tinySample(i)
		}})
		cancel()
		if until <= 2*o.Steps {
			if !errors.Is(err, context.Canceled) || len(tr.Done()) != (until-1)/2 {
				t.Fatalf("until sample %d: %v, %d steps", until, err, len(tr.Done()))
			}
			continue
		}
		if err != nil || !slices.Equal(told, []int{4, 5, 6}) {
			t.Errorf("to the end: %v, told of steps %d; want 4 to 6", err, told)
		}
		if !slices.Equal(tr.net.params.values, whole.net.params.values) || !slices.Equal(tr.net.params.second, whole.net.params.second) || !slices.Equal(tr.Done(), whole.Done()) {
			t.Error("other weights, moments or losses than without interruption")
		}
	}
	other := newTrainer(t, tiny(t, "tiny-tied.gguf"), a, o).Run(t.Context(), Course{Sample: tinySample, Checkpoint: path})
	if other == nil || !strings.HasPrefix(other.Error(), path+": it was trained with the model ") {
		t.Errorf("another model of the same shape: %v", other)
	}
	err := newTrainer(t, file, a, o).Run(t.Context(), Course{Sample: tinySample, Of: "other ones", Checkpoint: path})
	if err == nil || err.Error() != path+": it was trained with samples tiny, not other ones; remove the file to begin anew" {
		t.Errorf("other samples: %v", err)
	}
	o.LearningRate = 2e-3
	err = newTrainer(t, file, a, o).Run(t.Context(), Course{Sample: tinySample, Checkpoint: path})
	if err == nil || !strings.HasPrefix(err.Error(), path+": it was trained with options {") || !strings.HasSuffix(err.Error(), "; remove the file to begin anew") {
		t.Errorf("other options: %v", err)
	}
}

// The step that spoils the weights is not saved: the state is that of before.
func TestRun_Diverged_SavesWeightsThatGaveNumbers(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	path := filepath.Join(t.TempDir(), "state")
	o := options(Full, 1)
	o.LearningRate, o.WarmUp, o.Decay = 1e30, 0, 0
	tr := newTrainer(t, file, nil, o)
	before := slices.Clone(tr.net.params.values)
	tr.saveEvery = 0
	err := tr.Run(t.Context(), Course{Sample: tinySample, Checkpoint: path})
	var diverged *DivergedError
	if !errors.As(err, &diverged) || diverged.Step != 2 || diverged.Of != "the loss of sample 2" {
		t.Fatalf("%v; want a DivergedError at step 2", err)
	}
	again := newTrainer(t, file, nil, o)
	if err := again.resume(vfs.OS{}, path); err != nil || len(again.Done()) != 0 || again.learnt != o.Batch || !slices.Equal(again.net.params.values, before) {
		t.Errorf("resumed with %d steps and %d samples (%v), want the samples of the first step and the weights before it", len(again.Done()), again.learnt, err)
	}
}

// Where the state cannot be saved, an interrupted run says so.
func TestRun_Interrupted_TellsWhatIsLost(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "missing", "state")
	err := newTrainer(t, file, nil, options(Full, 1)).Run(ctx, Course{Checkpoint: path, Sample: func(i int) (Sample, error) {
		cancel()
		return tinySample(i)
	}})
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that the folder is missing", err)
	}
}

// A validation that was interrupted anywhere goes on where it was, to the same figures.
func TestValidate_Resumed_SameFigures(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	held := curriculum(t)
	o := options(Dual, 1)
	o.Steps = 1
	run := func(tr *Trainer, path string, until int) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		return tr.Run(ctx, Course{Sample: tinySample, Checkpoint: path, Between: func() error {
			if len(tr.Validations()) > len(tr.Done()) {
				return nil
			}
			v, err := tr.Validate(ctx, held, true, func(done, _ int) {
				if until--; until == 0 {
					cancel()
				}
			})
			if err == nil {
				tr.Validated(v)
			}
			return err
		}})
	}
	whole := newTrainer(t, file, tinyAdapter(t, file), o)
	if err := run(whole, "", 1000); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state")
	var tr *Trainer
	runs := 0
	for err := context.Canceled; err != nil; runs++ {
		tr = newTrainer(t, file, tinyAdapter(t, file), o)
		if err = run(tr, path, 3); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if len(whole.Validations()) != 2 || !slices.Equal(tr.Validations(), whole.Validations()) || runs < 10 {
		t.Errorf("in %d runs %+v, want %+v in at least ten", runs, tr.Validations(), whole.Validations())
	}
}

func TestValidate_NotANumber_IsAnErrorAndNotSaved(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	path := filepath.Join(t.TempDir(), "state")
	tr := newTrainer(t, file, nil, options(Full, 1))
	err := tr.Run(t.Context(), Course{Sample: tinySample, Checkpoint: path, Between: func() error {
		tr.net.params.values[0] = float32(math.NaN())
		tr.net.repack(tr.pool)
		_, err := tr.Validate(t.Context(), curriculum(t), false, func(int, int) {})
		return err
	}})
	var diverged *DivergedError
	if !errors.As(err, &diverged) || diverged.Step != 0 {
		t.Errorf("%v, want a DivergedError", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a state was saved (%v)", err)
	}
}

// Whatever operation on files fails, what was saved before can be resumed.
func TestSave_Fails_LeavesTheFileAsItWas(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a, err := NewAdapter(file, 1, 1, []string{"attn_q"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	o := options(Full, 1)
	tr := newTrainer(t, file, a, o)
	files := vfs.NewMem()
	if err := files.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	const path = "/d/state"
	step := func() {
		if _, err := tr.step(tinySample); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if err := tr.save(files, path); err != nil {
		t.Fatal(err)
	}
	first := slices.Clone(tr.net.params.values)
	step()
	full := errors.New("no space left")
	for n := range 20 {
		calls := 0
		files.Fail = func(op vfs.Op, path string) error {
			if calls++; calls == n+1 {
				return full
			}
			return nil
		}
		err := tr.save(files, path)
		files.Fail = nil
		if err == nil {
			if n < 5 {
				t.Errorf("a save has only %d operations", n)
			}
			break
		}
		if !errors.Is(err, full) {
			t.Errorf("operation %d failed: %v", n, err)
		}
		again := newTrainer(t, file, a, o)
		if err := again.resume(files, path); err != nil {
			t.Fatalf("after operation %d failed: %v", n, err)
		}
		if steps := len(again.Done()); steps != 2 && !(steps == 1 && slices.Equal(again.net.params.values, first)) {
			t.Errorf("after operation %d failed: %d steps", n, steps)
		}
	}
}

func TestResume_DamagedFile_IsSaid(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a := tinyAdapter(t, file)
	tr := newTrainer(t, file, a, options(Full, 1))
	path := filepath.Join(t.TempDir(), "state")
	if err := tr.save(vfs.OS{}, path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		damage func([]byte) []byte
		want   string
	}{
		{"a flipped bit", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, "its checksum is wrong: the file is damaged"},
		{"cut short", func(b []byte) []byte { return b[:len(b)-100] }, "its checksum is wrong: the file is damaged"},
		{"nearly empty", func(b []byte) []byte { return b[:20] }, "is no checkpoint of this version"},
		{"empty", func(b []byte) []byte { return nil }, "is no checkpoint of this version"},
		{"another version", func(b []byte) []byte { b[14]++; return b }, "is no checkpoint of this version"},
	} {
		if err := os.WriteFile(path, c.damage(slices.Clone(data)), 0o600); err != nil {
			t.Fatal(err)
		}
		err := tr.resume(vfs.OS{}, path)
		if want := path + ": " + c.want + "; remove the file to begin anew"; err == nil || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", c.name, err, want)
		}
	}
}

func TestAdapter_AfterTraining_IsWhatWasTrained(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	a := tinyAdapter(t, file)
	tr := newTrainer(t, file, a, options(Dual, 2))
	if err := tr.Run(t.Context(), Course{Sample: tinySample}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := tr.Adapter().WritePEFT(dir, file); err != nil {
		t.Fatal(err)
	}
	read, err := weights.OpenAdapter(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := tinySample(0)
	want, err := tr.Loss(&s, Block)
	if err != nil {
		t.Fatal(err)
	}
	got, err := newTrainer(t, file, read, options(Dual, 1)).Loss(&s, Block)
	if err != nil || got != want {
		t.Errorf("loss with the adapter that was written %v (%v), want %v", got, err, want)
	}
	if before, _ := newTrainer(t, file, a, options(Dual, 1)).Loss(&s, Block); !(want < before-1e-3) {
		t.Errorf("loss %v after training, %v before", want, before)
	}
}

func TestWriteModel_AfterTraining_IsWhatWasTrained(t *testing.T) {
	for _, name := range []string{"tiny-tied.gguf", "tiny-untied.gguf"} {
		file := tiny(t, name)
		tr := newTrainer(t, file, nil, options(Dual, 2))
		if err := tr.Run(t.Context(), Course{Sample: tinySample}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "trained.gguf")
		if err := tr.WriteModel(path, file); err != nil {
			t.Fatal(err)
		}
		written, err := weights.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer written.Close()
		s, _ := tinySample(0)
		want, err := tr.Loss(&s, Block)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := newTrainer(t, written, nil, options(Dual, 1)).Loss(&s, Block); err != nil || got != want {
			t.Errorf("%s: loss of the model that was written %v (%v), want %v", name, got, err, want)
		}
		if before, _ := newTrainer(t, file, nil, options(Dual, 1)).Loss(&s, Block); !(want < before-1e-3) {
			t.Errorf("%s: loss %v after training, %v before", name, want, before)
		}
	}
}

func TestStep_AllocatesNothing(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	for _, a := range []*weights.Adapter{nil, tinyAdapter(t, file)} {
		o := options(Dual, 2)
		o.Distill = 1
		tr := newTrainer(t, file, a, o)
		s, _ := tinySample(0)
		var sum Step
		least := math.Inf(1) // the runtime's own are counted too, now and then
		for range 5 {
			least = min(least, testing.AllocsPerRun(1, func() {
				tr.optimizer.clear()
				if err := tr.learn(&s, 0, 1, &sum); err != nil {
					t.Fatal(err)
				}
				tr.optimizer.update(1, 1e-3, 0, 1/(1+tr.optimizer.norm()))
				tr.net.repack(tr.pool)
			}))
		}
		if n := least; n != 0 {
			t.Errorf("adapter %v: %v allocations a step, want 0", a != nil, n)
		}
	}
}

func TestRate_RisesAndFalls(t *testing.T) {
	for _, c := range []struct {
		steps  int
		warmUp float64
		want   []float64
	}{
		{10, 0.2, []float64{0.5, 1, 1, 7. / 8, 6. / 8, 5. / 8, 4. / 8, 3. / 8, 2. / 8, 1. / 8}},
		{4, 0, []float64{1, 0.75, 0.5, 0.25}},
		{2, 1, []float64{0.5, 1}},
	} {
		tr := &Trainer{Options: Options{Steps: c.steps, WarmUp: c.warmUp, LearningRate: 1}}
		for i, want := range c.want {
			if got := tr.rate(i); math.Abs(got-want) > 1e-12 {
				t.Errorf("%d steps, warm-up %v: rate of step %d is %v, want %v", c.steps, c.warmUp, i, got, want)
			}
		}
	}
}

func TestRun_BadSample_IsNamed(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	for _, c := range []struct {
		change func(*Sample)
		want   string
	}{
		{func(s *Sample) { s.Tokens[3] = 256 }, "sample 0: token 3 is 256; the vocabulary has 0 to 255"},
		{func(s *Sample) { s.Blocks[1] = 0 }, "sample 0: block 1 has 0 tokens; expected at least one"},
		{func(s *Sample) { s.Blocks = s.Blocks[:2] }, "sample 0: blocks of 4 tokens altogether for 6 tokens; expected as many, and some"},
		{func(s *Sample) { s.Targets = []int{5, 4} }, "sample 0: targets [5 4]; expected ascending ones from 1 to 5"},
		{func(s *Sample) { s.Targets = []int{0} }, "sample 0: targets [0]; expected ascending ones from 1 to 5"},
		{func(s *Sample) { s.Finals = 3 }, "sample 0: 3 final blocks of 3 blocks; expected an independent one before them"},
		{func(s *Sample) { s.Finals, s.Targets = 2, []int{3, 4} }, "sample 0: target 4; expected those of the final block of tokens 4 to 5 behind its first"},
		{func(s *Sample) { s.Finals, s.Targets = 2, []int{1} }, "sample 0: target 1; expected those of the final block of tokens 2 to 3 behind its first"},
		{func(s *Sample) { s.Targets = nil }, "sample 0: no targets; expected some, or a distill weight, which needs none"},
	} {
		tr := newTrainer(t, file, tinyAdapter(t, file), options(Full, 1))
		s := Sample{Tokens: []int32{1, 2, 3, 4, 5, 6}, Blocks: []int{2, 2, 2}, Targets: []int{5}}
		c.change(&s)
		err := tr.Run(t.Context(), Course{Sample: func(int) (Sample, error) { return s, nil }})
		if err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// The trainer and the engine's model compute the same logits, full and in blocks. The engine quantizes activations on some paths and keeps
// keys and values as half floats, hence the bound.
func TestForward_EqualsTheModel(t *testing.T) {
	type adapter struct {
		final bool
		hide  int
		link  int
	}
	for _, c := range []struct {
		name     string
		path     func() string
		sizes    []int
		bound    float64   // of the root of the mean squared difference, relative to the spread of the logits
		adapters []adapter // few of the default model, which takes long to load
	}{
		{"tiny", func() string { return testenv.Tiny("tiny-untied.gguf") }, []int{7, 1, 20, 12}, 1e-4, []adapter{{false, 0, 0}, {true, 0, 0}, {false, 1, 0}, {true, 2, 0}, {false, 0, 2}, {true, 1, 3}}},
		{"default", func() string { return testenv.Model(t) }, []int{5, 9, 1, 8}, 1e-3, []adapter{{false, 0, 0}, {true, 2, 2}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path()
			if c.name != "tiny" && (testing.Short() || kernel.Path() == "portable") {
				t.Skip("loads the default model twice, which takes long in portable code")
			}
			file, err := weights.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			base, err := model.New(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, kind := range c.adapters {
				a, err := NewAdapter(file, 2, 1, Targets, 1)
				if err != nil {
					t.Fatal(err)
				}
				a.FinalOnly, a.HiddenSinks, a.LinkTokens = kind.final, kind.hide, tinyLinks(file, kind.link)
				rng := rand.New(rand.NewPCG(9, 9))
				for _, c := range a.Changes {
					for i := range c.B {
						c.B[i] = (rng.Float32() - 0.5) / 4
					}
				}
				tr := newTrainer(t, file, a, options(Full, 2))
				m, err := base.WithAdapter(a)
				if err != nil {
					t.Fatal(err)
				}
				w := m.NewWorkspace(2)
				defer w.Close()
				n := 0
				for _, size := range c.sizes {
					n += size
				}
				tokens := make([]int32, n)
				for i := range tokens {
					tokens[i] = int32(rng.IntN(m.Vocabulary))
				}
				last := c.sizes[len(c.sizes)-1]
				rows := make([]int, last)
				for i := range rows {
					rows[i] = n - last + i
				}
				for _, blocks := range [][]int{{n}, c.sizes} {
					tr.rows = slices.Clone(rows)
					if err := tr.forwardBlock(&Sample{Tokens: tokens, Blocks: blocks}); err != nil {
						t.Fatal(err)
					}
					want := make([]float32, 0, last*m.Vocabulary)
					collect := func(_ int, l []float32) { want = append(want, l...) }
					var batch []model.Sequence
					var past []*model.KV
					from := 0
					for i, size := range blocks {
						s := model.Sequence{Tokens: tokens[from : from+size], KV: m.NewKV(kv.F32, size), Before: i < len(blocks)-1}
						s.KV.Alone = true
						if from += size; i == len(blocks)-1 {
							s.Past, s.LogitsFrom, s.Logits = past, size-last, collect
						}
						past = append(past, s.KV)
						batch = append(batch, s)
						if links := m.LinkTokens(); len(links) > 0 && i > 0 && i < len(blocks)-1 {
							to := m.NewKV(kv.F32, len(links))
							batch = append(batch, model.Sequence{Tokens: links, Past: past[:len(past):len(past)], KV: to})
							past = append(past, to)
						}
					}
					if err := w.Forward(t.Context(), batch, nil); err != nil {
						t.Fatal(err)
					}
					got := tr.pass.logits[:len(want)]
					var squares, spread float64
					for i := range want {
						squares += math.Pow(float64(got[i]-want[i]), 2)
						spread += math.Pow(float64(want[i]), 2)
					}
					off := math.Sqrt(squares / spread)
					t.Logf("%d blocks, %+v: logits are %.2g of their size apart", len(blocks), kind, off)
					if len(want) != last*m.Vocabulary || !(off <= c.bound) {
						t.Errorf("%d blocks, %+v: %d logits, %.2g of their size apart, want %d and at most %.2g", len(blocks), kind, len(want), off, last*m.Vocabulary, c.bound)
					}
				}
			}
		})
	}
}

func TestNew_BadOptions_AreSaid(t *testing.T) {
	file := tiny(t, "tiny-tied.gguf")
	for _, c := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Mode = "both" }, `mode "both"; known are full, block, dual and alternate`},
		{func(o *Options) { o.Distill = -1 }, "distill weight -1; expected 0 or more"},
		{func(o *Options) { o.Mode, o.Distill = Full, 1 }, "distill weight with mode full; it needs passes in block mode"},
		{func(o *Options) { o.Steps = 0 }, "0 steps of 2 samples; expected at least one of each"},
		{func(o *Options) { o.LearningRate = math.NaN() }, "learning rate NaN; expected a positive number"},
		{func(o *Options) { o.WarmUp = 1.5 }, "warm-up over 1.5 of the steps; expected 0 to 1"},
		{func(o *Options) { o.Clip = -1 }, "decay 0.01 and clip -1; expected 0 or more"},
	} {
		o := options(Dual, 1)
		c.change(&o)
		if _, err := New(file, nil, o); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	a := tinyAdapter(t, file)
	a.Changes = append(a.Changes, weights.Change{Tensor: "token_embd.weight", In: 64, Out: 256, Rank: 1, A: make([]float32, 64), B: make([]float32, 256)})
	want := fmt.Sprintf("%s: the adapter changes 15 matrices, of which 14 are a layer's; others cannot be trained", file.Path())
	if _, err := New(file, a, options(Dual, 1)); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
