// Package train is block fine-tuning (arXiv 2409.15355, section 2.4): samples and a model go in, an adapter or a changed model comes out.
// The forward pass of the Llama family is written out with what it keeps, the backward pass beside it, and AdamW on top; everything is
// float32, but for blocks that an adapter for final blocks leaves as they are: those are computed as inference does.
//
// Each sample can be seen in two modes. In full mode every token attends to all before it. In block mode a token of an independent block,
// the system's or a passage's, attends to its own block alone, and one of the final block, question and answer, to all before it. Positions are
// the prompt's in both. One set of weights is to serve both modes, so a sample is trained in both, or in one drawn for it. A sample may ask
// several questions of its passages: they cost little more than one. Each is a final block that follows the passages as if it were alone.
//
// Letters: T tokens of a sample, N rows with logits, C values of the hidden state, H query heads, G KV heads, D values a head, F
// values of the feed-forward layer, V tokens of the vocabulary. Matrices are row-major, one row a token; W of a linear is [out × in].
//
// Bits: the same samples, options and kernel path give the same weights bit for bit, on any number of threads, and whether or not the run
// was interrupted and resumed.
package train

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/weights"
)

// A Trainer holds a model's weights, what is trained of them, and its state: all that decides how training goes on is Options, the
// network's params, steps, underway, learnt and, with what comes of it, validations and validating.
type Trainer struct {
	Options
	net         *network
	pool        *kernel.Pool
	pass        *pass
	optimizer   optimizer
	fingerprint [32]byte // of the model's file
	steps       []Step   // all that were made
	underway    Step     // the next one, of which learnt samples are in the gradients
	learnt      int
	validations []Validation
	validating  validating

	of         string // what samples are made of, see Course
	checkpoint string // path; "": none
	saved      time.Time
	saveEvery  time.Duration
	changed    bool // since then
	sound      bool // the weights gave a loss that is a number

	rows    []int // of the sample that is learnt: those with logits
	targets []int32
	whole   []int
	linked  []int32   // its tokens with link tokens
	teacher []float32 // [N × V]
}

// Options are how a model is trained. All but Threads and Memory have a say in the result.
type Options struct {
	Mode         Mode
	BlockShare   float64 // of block mode: of the samples with Alternate, of the loss with Dual; 0: a half
	Distill      float64 // weight of KL(full ‖ block) of the same weights over the final block; no gradient passes through full
	Keep         float64 // weight of KL(base ‖ full) over the final block of a sample that is to be kept, base being the weights without the adapter
	Steps        int
	Batch        int     // samples a step
	LearningRate float64 // at its height
	WarmUp       float64 // share of the steps on which the rate rises to that, from where it falls to zero by the end
	Decay        float64 // of weights, decoupled
	Clip         float64 // the gradient is scaled down to this norm; 0: never
	Seed         uint64
	Threads      int   `json:"-"`
	Memory       int64 `json:"-"` // bytes that training may take, see New; 0: any
}

// A Mode is what a sample's tokens attend to in training.
type Mode string

// Full and Block are one pass a sample. Dual is both, the loss being their mean, weighted by BlockShare; Alternate is one of the two, drawn for each sample.
const (
	Full      Mode = "full"
	Block     Mode = "block"
	Dual      Mode = "dual"
	Alternate Mode = "alternate"
)

// A Sample is a prompt with the answer that is wanted.
type Sample struct {
	Tokens  []int32
	Blocks  []int // lengths of the blocks, the last one the final block, which the answer belongs to
	Finals  int   // how many final blocks there are, each a question of its own over the blocks before all of them; 0: one
	Targets []int // which of Tokens are to be predicted, in ascending order
	Keep    bool  // the model is to say here what it says without the adapter; there are no Targets
}

// New makes a Trainer for the model in file, which stays open until Close where the adapter acts on final blocks alone. With an adapter the base is frozen and the adapter's matrices are
// trained, from their present values; without one the base is.
//
// With Options.Memory, weights that do not fit are an error. Where a sample's activations do not fit beside them, layers are computed twice, and a sample
// that does not fit even so is an error.
func New(file *weights.File, adapter *weights.Adapter, o Options) (*Trainer, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	need := weightsBytes(file, adapter)
	if o.Memory > 0 && need > o.Memory {
		return nil, fmt.Errorf("%s: training takes %d MiB for weights, gradients and moments, and there are %d; a smaller model or rank takes less, and an adapter less than all weights", file.Path(), need>>20, o.Memory>>20)
	}
	pool := kernel.NewPool(o.Threads)
	net, err := newNetwork(file, adapter, pool)
	var fingerprint [32]byte
	if err == nil {
		fingerprint, err = file.Fingerprint("")
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	t := &Trainer{Options: o, net: net, pool: pool, pass: newPass(net, pool), fingerprint: fingerprint, saveEvery: saveEvery}
	t.optimizer = optimizer{params: &net.params, pool: pool}
	if o.Memory > 0 {
		t.pass.limit = max(o.Memory-need, 1)
	}
	return t, nil
}

// Close ends the workers.
func (t *Trainer) Close() {
	if t.pass.frozen != nil {
		t.pass.frozen.workspace.Close()
	}
	t.pool.Close()
}

// Check says what is wrong with the options.
func (o *Options) Check() error {
	for _, wrong := range []struct {
		bad  bool
		what string
	}{
		{o.Mode != Full && o.Mode != Block && o.Mode != Dual && o.Mode != Alternate, fmt.Sprintf("mode %q; known are full, block, dual and alternate", o.Mode)},
		{!(o.Distill >= 0), fmt.Sprintf("distill weight %v; expected 0 or more", o.Distill)},
		{!(o.Keep >= 0), fmt.Sprintf("keep weight %v; expected 0 or more", o.Keep)},
		{!(o.BlockShare >= 0 && o.BlockShare <= 1), fmt.Sprintf("block share %v; expected 0 to 1", o.BlockShare)},
		{o.Distill > 0 && o.Mode == Full, "distill weight with mode full; it needs passes in block mode"},
		{o.Steps < 1 || o.Batch < 1, fmt.Sprintf("%d steps of %d samples; expected at least one of each", o.Steps, o.Batch)},
		{!(o.LearningRate > 0), fmt.Sprintf("learning rate %v; expected a positive number", o.LearningRate)},
		{!(o.WarmUp >= 0 && o.WarmUp <= 1), fmt.Sprintf("warm-up over %v of the steps; expected 0 to 1", o.WarmUp)},
		{!(o.Decay >= 0) || !(o.Clip >= 0), fmt.Sprintf("decay %v and clip %v; expected 0 or more", o.Decay, o.Clip)},
	} {
		if wrong.bad {
			return fmt.Errorf("%s", wrong.what)
		}
	}
	return nil
}

// A Course is what a Trainer is trained on.
type Course struct {
	// Sample gives the i-th sample, from 0 on, and the same one whenever it is asked. Of says what they are made of: a state of others is not resumed.
	Sample func(i int) (Sample, error)
	Of     string

	// Checkpoint is the path of the state, "" for none. It is written before a minute is lost, and when Run ends; one that lies there already is
	// resumed. Whatever ends Run, the file is whole, and its weights gave losses that are numbers.
	Checkpoint string

	// Progress is told of each step. May be nil.
	Progress func(Step)
	// Between is called before the first step and after each, and again where Run goes on there; an error ends Run. It may call Validate and
	// Adapter. May be nil.
	Between func() error
}

// Run trains from where the Trainer stands to the last step.
func (t *Trainer) Run(ctx context.Context, c Course) (err error) {
	t.of, t.checkpoint = c.Of, c.Checkpoint
	if c.Checkpoint != "" {
		if err := t.resume(vfs.OS{}, c.Checkpoint); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	t.saved = time.Now()
	defer func() {
		if saving := t.keepState(); saving != nil {
			if errors.Is(err, context.Canceled) {
				err = nil // what is lost says more
			}
			err = errors.Join(err, saving)
		}
	}()
	for {
		if t.learnt == 0 && c.Between != nil {
			if err := c.Between(); err != nil {
				return err
			}
		}
		if len(t.steps) == t.Steps {
			t.sound = true // as far as anybody can tell
			return nil
		}
		if t.learnt < t.Batch {
			if err := t.learnNext(c.Sample); err != nil {
				return err
			}
		}
		if err := t.pause(ctx); err != nil {
			return err
		}
		if t.learnt == t.Batch {
			if err := t.makeStep(); err != nil {
				return err
			}
			if c.Progress != nil {
				c.Progress(t.steps[len(t.steps)-1])
			}
		}
	}
}

// saveEvery leaves room for a sample before a minute is over.
const saveEvery = 45 * time.Second

// pause comes after something that took time and gave a number: it saves the state where that is due, and tells whether ctx has ended.
func (t *Trainer) pause(ctx context.Context) error {
	t.changed, t.sound = true, true
	if time.Since(t.saved) >= t.saveEvery {
		if err := t.keepState(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// keepState saves the state, unless it is saved already, or nobody knows yet whether its weights are any good.
func (t *Trainer) keepState() error {
	if t.checkpoint == "" || !t.changed || !t.sound {
		return nil
	}
	t.saved, t.changed = time.Now(), false
	return t.save(vfs.OS{}, t.checkpoint)
}

// Done are the steps made so far.
func (t *Trainer) Done() []Step { return t.steps }

// A Step is what one step came to, before it changed the weights.
type Step struct {
	Step       int     // from 1 on
	Full       Mean    // -ln p of a target, in full mode
	Block      Mean    // and in block mode
	Divergence Mean    // KL(full ‖ block) of a token in the final block
	Kept       Mean    // KL(base ‖ full) of a token in the final block of a sample that is to be kept
	Norm       float64 // of the gradient, before clipping
	Rate       float64
	Tokens     int // that passed forward and back
}

// A Mean is that of N samples' values.
type Mean struct {
	Sum float64
	N   int
}

func (m *Mean) add(v float64) { m.Sum, m.N = m.Sum+v, m.N+1 }

// Value is the mean, NaN of none.
func (m Mean) Value() float64 { return m.Sum / float64(m.N) }

// A DivergedError says that training went astray: a loss or gradient is no finite number. The state that is saved is of weights that gave numbers.
type DivergedError struct {
	Step  int
	Of    string // "the loss of sample 7"
	Value float64
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("step %d: %s is %v: training went astray. A lower learning rate or a clip may help, in a training of its own", e.Step, e.Of, e.Value)
}

// learnNext learns the next sample of the step under way.
func (t *Trainer) learnNext(sample func(i int) (Sample, error)) error {
	s := &t.underway
	if t.learnt == 0 {
		t.optimizer.clear()
		*s = Step{Step: len(t.steps) + 1, Rate: t.rate(len(t.steps))}
	}
	i := len(t.steps)*t.Batch + t.learnt
	one, err := sample(i)
	if err == nil {
		err = t.learn(&one, i, 1/float64(t.Batch), s)
	}
	if err == nil {
		t.learnt++
		if total := s.Full.Sum + s.Block.Sum + s.Divergence.Sum + s.Kept.Sum; total-total != 0 {
			err = &DivergedError{s.Step, fmt.Sprintf("the loss of sample %d", i), total}
		}
	} else {
		err = fmt.Errorf("sample %d: %w", i, err)
	}
	if err != nil {
		t.learnt, *s = 0, Step{} // the step's gradients are worth nothing
	}
	return err
}

// makeStep changes the weights by the gradients of a batch.
func (t *Trainer) makeStep() error {
	s := &t.underway
	t.learnt = 0
	if s.Norm = t.optimizer.norm(); s.Norm-s.Norm != 0 {
		return &DivergedError{s.Step, "the norm of the gradient", s.Norm}
	}
	scale := 1.0
	if t.Clip > 0 && s.Norm > t.Clip {
		scale = t.Clip / s.Norm
	}
	t.optimizer.update(s.Step, s.Rate, t.Decay, scale)
	t.net.repack(t.pool)
	t.steps = append(t.steps, *s)
	t.changed, t.sound = true, false
	return nil
}

// rate is the learning rate of a step, counted from 0: a rise to the height, then a fall that would reach zero after the last step.
func (t *Trainer) rate(step int) float64 {
	rise := math.Round(t.WarmUp * float64(t.Steps))
	if at := float64(step + 1); at <= rise {
		return t.LearningRate * at / rise
	}
	return t.LearningRate * float64(t.Steps-step) / math.Max(float64(t.Steps)-rise, 1)
}

// Adapter is the adapter as it is now, or nil where the base is trained.
func (t *Trainer) Adapter() *weights.Adapter { return t.net.adapterNow() }

// WriteModel writes the model as it is now to path, where the base is trained: the tensors in float32, and the metadata of file, which New
// was given. path is a whole file afterwards or what it was.
func (t *Trainer) WriteModel(path string, file *weights.File) (err error) {
	if t.net.adapter != nil {
		return errors.New("the base is frozen; what was trained is the adapter")
	}
	tensors := slices.Clone(file.Tensors())
	for i := range tensors {
		if value, _ := t.net.params.tensor(tensors[i].Name); value != nil {
			tensors[i].Type = kernel.F32
		}
	}
	m := file.Metadata()
	m.Set("general.file_type", uint32(0)) // all in float32
	w, err := weights.Create(path, m, tensors)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()
	for _, tensor := range file.Tensors() {
		data := tensor.Data
		if value, _ := t.net.params.tensor(tensor.Name); value != nil {
			data = bytesOf(value)
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return w.Commit()
}
