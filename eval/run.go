package eval

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
)

// A Setting is how the questions of a run are put and answered: with the prompts of inference, greedily.
type Setting struct {
	Attention engine.Attention
	Unmoved   bool    // block attention's ablation: keys of passages stay at their local positions, not re-encoded
	Shuffle   *uint64 // seed of another order of each question's passages; nil: as they come
	Passages  int     // at most so many a question, see Choose
	MaxTokens int     // generated at most
}

// A Runner answers many questions with one model, several in each forward pass. An answer does not depend on what it was batched
// with: it is that of the engine, for one question alone.
type Runner struct {
	Model    *model.Model
	Work     *model.Workspace
	Tok      *tokenizer.Tokenizer
	Template *prompt.Template
	Weights  Weights
	Type     kv.Type   // number format of keys and values
	Blocks   *kv.Store // keeps passages for later questions, as far as its bounds allow
	RAMBytes int64     // the bound of Blocks in memory: questions are put in order by it
}

// An Answer is what a run keeps of a question.
type Answer struct {
	ID        string  `json:"id"`
	Output    string  `json:"output"`
	Prompt    int     `json:"prompt_tokens"`
	Computed  int     `json:"computed_tokens"` // of the prompt: the rest were passages that an earlier question had
	Generated int     `json:"generated_tokens"`
	Seconds   float64 `json:"seconds"` // its share of its batch's time
}

// A batch has at most so many questions, and unless it has one only, keys and values of at most so many bytes.
const (
	batchQuestions = 16
	batchBytes     = 1 << 29
)

// Evaluate answers the first limit questions of a dataset, 0 for all, and grades the answers. dir is the folder of the answers, where
// a run that was ended before goes on; "" keeps none. progress is told how many questions are done.
func (r *Runner) Evaluate(ctx context.Context, d *Dataset, s Setting, dir string, limit int, progress func(done, total int)) (result *Result, err error) {
	questions := d.Questions
	if limit > 0 {
		questions = questions[:min(limit, len(questions))]
	}
	j := &journal{answers: map[string]Answer{}}
	if dir != "" {
		if j, err = openJournal(dir, r.key(d, s)); err != nil {
			return nil, err
		}
	}
	defer func() { err = errors.Join(err, j.close()) }()
	var open []Question
	for _, q := range questions {
		if _, ok := j.answers[q.ID]; !ok {
			open = append(open, q)
		}
	}
	before := len(questions) - len(open)
	progress(before, len(questions))
	if err := r.run(ctx, s, open, func(done int) { progress(before+done, len(questions)) }, j.add); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	return newResult(d, s, r.Weights, kernel.Path(), questions, j.answers), nil
}

func (r *Runner) key(d *Dataset, s Setting) runKey {
	return runKey{Dataset: d.Name, Data: d.SHA256, Attention: string(s.Attention), Reencoded: !s.Unmoved, Shuffle: s.Shuffle, Passages: s.Passages,
		MaxTokens: s.MaxTokens, Prompt: prompt.Format, KV: r.Type.String(), Kernel: kernel.Path(), Model: r.Weights.Fingerprint, Adapter: r.Weights.AdapterHash}
}

// run answers questions, in an order of its own, and gives the answers batch by batch to done; an error from it ends the run.
func (r *Runner) run(ctx context.Context, s Setting, questions []Question, progress func(done int), done func([]Answer) error) error {
	all := make([]*asked, len(questions))
	for i := range questions {
		var err error
		if all[i], err = r.ask(s, &questions[i]); err != nil {
			return fmt.Errorf("question %s: %w", questions[i].ID, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	all = arrange(all, int(r.RAMBytes/int64(r.tokenBytes())))
	for finished := 0; finished < len(all); {
		batch := r.batch(all[finished:])
		answers, err := r.answer(ctx, s, batch, func(share float64) { progress(finished + int(share*float64(len(batch)))) })
		if err != nil {
			return err
		}
		finished += len(batch)
		progress(finished)
		if err := done(answers); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) tokenBytes() int { return r.Model.KVShape(r.Type, 1).Bytes() }

// asked is a question on its way.
type asked struct {
	id     string
	blocks []prompt.Block
	ids    []kv.ID // of the independent blocks; zero: a dependent one
	tokens int     // of the prompt
	most   int     // tokens to generate at most

	past     []*model.KV
	final    *model.KV
	computed int
	output   []int32
	next     int32
	steps    int // tokens generated, the end token included
	ended    bool
}

func (r *Runner) ask(s Setting, q *Question) (*asked, error) {
	passages := Choose(q.Passages, s.Passages)
	docs := make([]prompt.Document, len(passages))
	for i, p := range passages {
		docs[i] = prompt.Document{Title: p.Title, Text: p.Text}
	}
	if s.Shuffle != nil {
		own := sha256.Sum256([]byte(q.ID)) // whatever other questions there are
		rand.New(rand.NewPCG(*s.Shuffle, binary.LittleEndian.Uint64(own[:]))).Shuffle(len(docs), func(i, j int) { docs[i], docs[j] = docs[j], docs[i] })
	}
	blocks, err := r.Template.Build("", docs, q.Text)
	if err != nil {
		return nil, err
	}
	rope := r.Model.RoPEBytes()
	a := &asked{id: q.ID, blocks: blocks, ids: make([]kv.ID, len(blocks))}
	for i, b := range blocks {
		a.tokens += len(b.Tokens)
		// As in the engine: the first block attends to nothing before it in any mode, the final one always to all.
		if i == 0 || i < len(blocks)-1 && s.Attention == engine.Block && !b.Dependent {
			in := kv.Inputs{Model: r.Weights.Fingerprint, Type: r.Type, RoPE: rope, Tokens: b.Tokens}
			if h := r.Weights.AdapterHash; h != nil && !(r.Model.FinalOnly() && i < len(blocks)-1) {
				in.Adapter = *h
			}
			a.ids[i] = in.ID()
		}
	}
	if a.tokens >= r.Model.Context {
		return nil, &engine.ContextError{Tokens: a.tokens, Context: r.Model.Context}
	}
	a.most = min(s.MaxTokens, r.Model.Context-a.tokens)
	return a, nil
}

// arrange puts questions that share passages one after another, so that a store of so many tokens finds them: always the one next
// that has most tokens in it, of equals the earliest.
func arrange(all []*asked, room int) []*asked {
	type entry struct {
		tokens int
		used   int // when last
		in     bool
		by     []int // questions that have it
	}
	blocks := map[kv.ID]*entry{}
	for i, a := range all {
		for j, id := range a.ids {
			if id == (kv.ID{}) {
				continue
			}
			if blocks[id] == nil {
				blocks[id] = &entry{tokens: len(a.blocks[j].Tokens)}
			}
			blocks[id].by = append(blocks[id].by, i)
		}
	}
	found := make([]int, len(all)) // tokens of each question that are in the store
	type use struct {
		e    *entry
		when int
	}
	var uses []use // oldest first; those that are not an entry's last do not count
	now, held := 0, 0
	change := func(e *entry, in bool, sign int) {
		e.in = in
		held += sign * e.tokens
		for _, i := range e.by {
			found[i] += sign * e.tokens
		}
	}
	taken := make([]bool, len(all))
	order := make([]*asked, 0, len(all))
	for range all {
		best := -1
		for i := range all {
			if !taken[i] && (best < 0 || found[i] > found[best]) {
				best = i
			}
		}
		taken[best] = true
		order = append(order, all[best])
		for _, id := range all[best].ids {
			e := blocks[id]
			if e == nil {
				continue
			}
			now++
			e.used = now
			uses = append(uses, use{e, now})
			if !e.in {
				change(e, true, 1)
			}
		}
		for held > room {
			if oldest := uses[0]; oldest.e.in && oldest.e.used == oldest.when {
				change(oldest.e, false, -1)
			}
			uses = uses[1:]
		}
	}
	return order
}

// batch is the first of the questions that are answered together.
func (r *Runner) batch(all []*asked) []*asked {
	n, bytes := 0, 0
	for n < min(len(all), batchQuestions) {
		bytes += (all[n].tokens + all[n].most) * r.tokenBytes()
		if n > 0 && bytes > batchBytes {
			break
		}
		n++
	}
	return all[:n]
}

// answer answers a batch; progress is told the share that is done of computing the prompts.
func (r *Runner) answer(ctx context.Context, s Setting, batch []*asked, progress func(share float64)) ([]Answer, error) {
	start := time.Now()
	leases, err := r.prefill(ctx, s, batch, progress)
	defer func() {
		for _, l := range leases {
			l.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := r.decode(ctx, s, batch); err != nil {
		return nil, err
	}
	answers := make([]Answer, len(batch))
	for i, a := range batch {
		answers[i] = Answer{ID: a.id, Output: r.Tok.Decode(a.output), Prompt: a.tokens, Computed: a.computed, Generated: a.steps,
			Seconds: time.Since(start).Seconds() / float64(len(batch))}
		a.past, a.final, a.blocks = nil, nil, nil
	}
	return answers, nil
}

// prefill computes the prompts, each independent block that the store lacks once, and chooses each answer's first token.
func (r *Runner) prefill(ctx context.Context, s Setting, batch []*asked, progress func(share float64)) (leases []*kv.Lease, err error) {
	var first, then []model.Sequence // independent blocks, and those that attend to them
	here := map[kv.ID]*model.KV{}
	var missing []kv.ID // of first
	total := 0
	for _, a := range batch {
		for i, b := range a.blocks {
			room := len(b.Tokens)
			if i == len(a.blocks)-1 {
				room += a.most
			}
			block := here[a.ids[i]]
			if a.ids[i] != (kv.ID{}) && block == nil {
				lease, err := r.Blocks.Get(a.ids[i], r.Model.KVShape(r.Type, room))
				switch {
				case err == nil:
					leases = append(leases, lease)
					block = &model.KV{Shape: lease.Shape(), Payload: lease.Payload(), Len: room}
				case errors.Is(err, kv.ErrMissing):
					block = r.Model.NewKV(r.Type, room)
					first = append(first, model.Sequence{Tokens: b.Tokens, KV: block, Before: true})
					missing = append(missing, a.ids[i])
					a.computed += len(b.Tokens)
				default:
					return leases, err
				}
				here[a.ids[i]] = block
			}
			if block == nil {
				block = r.Model.NewKV(r.Type, room)
				seq := model.Sequence{Tokens: b.Tokens, KV: block, Past: a.past[:len(a.past):len(a.past)], Before: i < len(a.blocks)-1, Unmoved: s.Unmoved}
				if i == len(a.blocks)-1 {
					seq.LogitsFrom, seq.Logits = len(b.Tokens)-1, a.choose
				}
				then = append(then, seq)
				a.computed += len(b.Tokens)
			}
			block.Alone = a.ids[i] != (kv.ID{})
			a.past, a.final = append(a.past, block), block
		}
		a.past = a.past[:len(a.past)-1]
		total += a.computed
	}
	err = r.Work.Forward(ctx, append(first, then...), func(tokens int) { progress(float64(tokens) / float64(total)) })
	if err != nil {
		return leases, err
	}
	for i, id := range missing {
		lease, err := r.Blocks.Put(id, first[i].KV.Shape, first[i].KV.Payload)
		if err != nil {
			return leases, err
		}
		leases = append(leases, lease)
	}
	return leases, nil
}

// choose takes the likeliest token, of equals the first, as the engine does.
func (a *asked) choose(_ int, logits []float32) {
	a.next = -1
	most := float32(math.Inf(-1))
	for i, l := range logits {
		if l > most {
			a.next, most = int32(i), l
		}
	}
}

// decode lets all answers of a batch grow together until the last one ends.
func (r *Runner) decode(ctx context.Context, s Setting, batch []*asked) error {
	for {
		var step []model.Sequence
		for _, a := range batch {
			if a.ended {
				continue
			}
			if a.next < 0 {
				return fmt.Errorf("question %s: no logit of the next token is a number; is the model whole?", a.id)
			}
			a.steps++
			if a.ended = r.Tok.IsEnd(a.next); !a.ended {
				a.output = append(a.output, a.next)
				a.ended = a.steps == a.most
			}
			if !a.ended {
				step = append(step, model.Sequence{Tokens: a.output[len(a.output)-1:], KV: a.final, Past: a.past, Unmoved: s.Unmoved, Logits: a.choose})
			}
		}
		if len(step) == 0 {
			return nil
		}
		if err := r.Work.Forward(ctx, step, nil); err != nil {
			return err
		}
	}
}
