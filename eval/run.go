// Package eval measures a model: how many questions over passages it answers right, in which mode (run.go, with questions.go before it and result.go,
// table.go, compare.go and gate.go behind), perplexity, and log-probabilities of given tokens, for parity with other implementations.
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
	Parts     int     // of the passages that block attention sees each by itself, see engine.Views; 0: 1
	Unmoved   bool    // block attention's ablation: keys of passages stay at their local positions, not re-encoded
	Shuffle   *uint64 // seed of another order of each question's passages; nil: as they come
	Passages  int     // at most so many a question, see Choose
	MaxTokens int     // generated at most
}

// A Runner answers many questions, several in each forward pass. An answer does not depend on what it was batched with: it is that of the
// engine, for one question alone.
type Runner struct {
	Tok      *tokenizer.Tokenizer
	Template *prompt.Template
	Type     kv.Type   // number format of keys and values
	Blocks   *kv.Store // keeps blocks for later questions and runs, as far as its bounds allow
	RAMBytes int64     // the bound of Blocks in memory: questions are put in order by it
}

// Tested are a model's weights, with an adapter or without.
type Tested struct {
	Model   *model.Model
	Work    *model.Workspace
	Weights Weights
}

// A Run is all questions put to some weights in one way.
type Run struct {
	*Tested
	Setting
}

// An Answer is what a run keeps of a question.
type Answer struct {
	ID        string  `json:"id"`
	Output    string  `json:"output"`
	Prompt    int     `json:"prompt_tokens"`
	Computed  int     `json:"computed_tokens"` // of the prompt: the rest were blocks that an earlier question or run had
	Generated int     `json:"generated_tokens"`
	Seconds   float64 `json:"seconds"` // its share of its batch's time
}

// A batch has at most so many questions, and unless it has one only, keys and values of at most so many bytes.
const (
	batchQuestions = 16
	batchBytes     = 1 << 29
)

// Evaluate answers the first limit questions of a dataset, 0 for all, in every run, and grades the answers: a result for each run. dir is the
// folder of the answers, where runs that were ended before go on; "" keeps none. progress is told how many answers there are of those that
// all runs will have.
//
// A batch of questions goes through all runs before the next one: a block that several runs have in common is computed once.
func (r *Runner) Evaluate(ctx context.Context, d *Dataset, runs []Run, dir string, limit int, progress func(done, total int)) (results []*Result, err error) {
	questions := d.Questions
	if limit > 0 {
		questions = questions[:min(limit, len(questions))]
	}
	for _, q := range questions {
		if len(q.Answers) == 0 {
			return nil, fmt.Errorf("%s: question %s has no answers that its own could be compared with; it is one to train on", d.Name, q.ID)
		}
	}
	journals := make([]*journal, len(runs))
	defer func() {
		for _, j := range journals {
			if j != nil {
				err = errors.Join(err, j.close())
			}
		}
	}()
	before := 0
	var open []Question // in any run
	for i := range runs {
		if runs[i].Parts > 1 && len(runs[i].Model.LinkTokens()) > 0 {
			return nil, fmt.Errorf("%d parts of the passages with an adapter that has link tokens: they tell of all passages before them, so none is seen by itself", runs[i].Parts)
		}
		journals[i] = &journal{answers: map[string]Answer{}}
		if dir != "" {
			if journals[i], err = openJournal(dir, r.key(d, &runs[i])); err != nil {
				return nil, err
			}
		}
	}
	for _, q := range questions {
		has := 0
		for _, j := range journals {
			if j.has(q.ID) {
				has++
			}
		}
		if before += has; has < len(runs) {
			open = append(open, q)
		}
	}
	total := len(questions) * len(runs)
	progress(before, total)
	if err := r.answerAll(ctx, runs, journals, open, func(done int) { progress(before+done, total) }); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	for i, run := range runs {
		results = append(results, newResult(d, run.Setting, run.Weights, kernel.Path(), questions, journals[i].answers))
	}
	return results, nil
}

func (r *Runner) key(d *Dataset, run *Run) runKey {
	return runKey{Dataset: d.Name, Data: d.SHA256, Attention: string(run.Attention), Parts: several(run.Parts), Reencoded: !run.Unmoved, Shuffle: run.Shuffle, Passages: run.Passages,
		MaxTokens: run.MaxTokens, Prompt: prompt.Format, KV: r.Type.String(), Kernel: kernel.Path(), Model: run.Weights.Fingerprint, Adapter: run.Weights.AdapterHash}
}

// answerAll answers questions in the runs that have no answer yet, in an order of its own, and adds the answers to the runs' journals batch
// by batch.
func (r *Runner) answerAll(ctx context.Context, runs []Run, journals []*journal, questions []Question, progress func(done int)) error {
	if len(questions) == 0 {
		return nil
	}
	all := make([][]*asked, len(runs))
	for i := range runs {
		all[i] = make([]*asked, len(questions))
		for at := range questions {
			var err error
			if all[i][at], err = r.ask(&runs[i], &questions[at]); err != nil {
				return fmt.Errorf("question %s: %w", questions[at].ID, err)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	tokenBytes := runs[0].Model.KVShape(r.Type, 1).Bytes()
	order := arrange(all[0], int(r.RAMBytes/int64(tokenBytes)))
	parts := 0
	for i := range runs {
		parts = max(parts, runs[i].Parts)
	}
	for done := 0; len(order) > 0; {
		n := batchOf(all[0], order, parts, tokenBytes)
		for i := range runs {
			var batch []*asked
			for _, at := range order[:n] {
				if a := all[i][at]; !journals[i].has(a.id) {
					batch = append(batch, a)
				}
				all[i][at] = nil // it holds keys and values
			}
			if len(batch) == 0 {
				continue
			}
			answers, err := r.answer(ctx, &runs[i], batch, func(share float64) { progress(done + int(share*float64(len(batch)))) })
			if err != nil {
				return err
			}
			done += len(batch)
			progress(done)
			if err := journals[i].add(answers); err != nil {
				return err
			}
		}
		order = order[n:]
	}
	return nil
}

// asked is a question on its way.
type asked struct {
	id     string
	blocks []prompt.Block
	ids    []kv.ID // of all blocks but the final one
	alone  []bool  // which blocks are independent
	tokens int     // of the prompt, without link tokens
	most   int     // tokens to generate at most

	past     []*model.KV // by place
	views    *engine.Views
	computed int
	output   []int32
	steps    int // tokens generated, the end token included
	ended    bool
}

func (r *Runner) ask(s *Run, q *Question) (*asked, error) {
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
	common := kv.Inputs{Model: s.Weights.Fingerprint, Type: r.Type, RoPE: s.Model.RoPEBytes()}
	if h := s.Weights.AdapterHash; h != nil {
		common.Adapter = *h
	}
	blocks = engine.Link(s.Model, blocks, s.Attention)
	ids := engine.Name(s.Model, common, blocks, s.Attention)
	a := &asked{id: q.ID, blocks: blocks, ids: ids[:len(ids)-1]}
	links := 0
	for i, b := range blocks {
		if b.Kind == prompt.Link {
			links += len(b.Tokens)
		} else {
			a.tokens += len(b.Tokens)
		}
		a.alone = append(a.alone, !engine.Dependent(blocks, s.Attention, i))
	}
	if a.tokens+links >= s.Model.Context {
		return nil, &engine.ContextError{Tokens: a.tokens + links, Context: s.Model.Context}
	}
	a.most = min(s.MaxTokens, s.Model.Context-a.tokens-links)
	return a, nil
}

// arrange is an order of questions in which those that share passages come one after another, so that a store of so many tokens finds them:
// always the one next that has most tokens in it, of equals the earliest.
func arrange(all []*asked, room int) (order []int) {
	type entry struct {
		tokens int
		used   int // when last
		in     bool
		by     []int // questions that have it
	}
	blocks := map[kv.ID]*entry{}
	for i, a := range all {
		for j, id := range a.ids {
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
	for range all {
		best := -1
		for i := range all {
			if !taken[i] && (best < 0 || found[i] > found[best]) {
				best = i
			}
		}
		taken[best] = true
		order = append(order, best)
		for _, id := range all[best].ids {
			e := blocks[id]
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

// batchOf is how many of the questions in order are answered together, their passages seen in so many parts at most.
func batchOf(all []*asked, order []int, parts, tokenBytes int) int {
	n, bytes := 0, 0
	for n < min(len(order), batchQuestions) {
		a := all[order[n]]
		bytes += (a.tokens + a.most + engine.PartsTokens(a.blocks, engine.Block, parts, a.most)) * tokenBytes
		if n > 0 && bytes > batchBytes {
			break
		}
		n++
	}
	return n
}

// answer answers a batch; progress is told the share that is done of computing the prompts.
func (r *Runner) answer(ctx context.Context, s *Run, batch []*asked, progress func(share float64)) ([]Answer, error) {
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
		a.past, a.views, a.blocks = nil, nil, nil
	}
	return answers, nil
}

// prefill computes the prompts, each block before the final ones that the store lacks once, and the logits of each answer's first token.
func (r *Runner) prefill(ctx context.Context, s *Run, batch []*asked, progress func(share float64)) (leases []*kv.Lease, err error) {
	var missing []kv.ID
	var before, finals []model.Sequence // the missing blocks; the final ones, each behind its link tokens
	here := map[kv.ID]*model.KV{}
	total := 0
	for _, a := range batch {
		for i, id := range a.ids {
			tokens := a.blocks[i].Tokens
			block := here[id]
			if a.blocks[i].Kind == prompt.Link { // quickly computed, and no other question's
				block = s.Model.NewKV(r.Type, len(tokens))
				finals = append(finals, model.Sequence{Tokens: tokens, KV: block, Past: a.past[:i:i], Unmoved: s.Unmoved})
				total += len(tokens)
			} else if block == nil {
				lease, err := r.Blocks.Get(id, s.Model.KVShape(r.Type, len(tokens)))
				switch {
				case err == nil:
					leases = append(leases, lease)
					block = &model.KV{Shape: lease.Shape(), Payload: lease.Payload(), Len: len(tokens), Alone: a.alone[i]}
				case errors.Is(err, kv.ErrMissing):
					block = s.Model.NewKV(r.Type, len(tokens))
					block.Alone = a.alone[i]
					seq := model.Sequence{Tokens: tokens, KV: block, Before: true}
					if !a.alone[i] {
						seq.Past = a.past[:i:i]
					}
					missing, before = append(missing, id), append(before, seq)
					a.computed += len(tokens)
				default:
					return leases, err
				}
				here[id] = block
			}
			a.past = append(a.past, block)
		}
		tokens := a.blocks[len(a.ids)].Tokens
		a.views = engine.NewViews(s.Model, r.Type, a.blocks, s.Attention, s.Parts, a.past, a.most)
		for _, seq := range a.views.Final() {
			seq.Unmoved = s.Unmoved
			finals = append(finals, seq)
		}
		a.computed += len(tokens)
		total += a.computed + (a.views.Len()-1)*len(tokens)
	}
	err = s.Work.Forward(ctx, append(before, finals...), func(tokens int) { progress(float64(tokens) / float64(total)) })
	if err != nil {
		return leases, err
	}
	for i, id := range missing {
		lease, err := r.Blocks.Put(id, before[i].KV.Shape, before[i].KV.Payload)
		if err != nil {
			return leases, err
		}
		leases = append(leases, lease)
	}
	return leases, nil
}

// choose takes the likeliest token, of equals the first, as the engine does; -1: no logit is a number.
func (a *asked) choose() (next int32) {
	next = -1
	most := float32(math.Inf(-1))
	for i, l := range a.views.Logits() {
		if l > most {
			next, most = int32(i), l
		}
	}
	return next
}

// decode lets all answers of a batch grow together until the last one ends.
func (r *Runner) decode(ctx context.Context, s *Run, batch []*asked) error {
	for {
		var step []model.Sequence
		for _, a := range batch {
			if a.ended {
				continue
			}
			next := a.choose()
			if next < 0 {
				return fmt.Errorf("question %s: no logit of the next token is a number; is the model whole?", a.id)
			}
			a.steps++
			if a.ended = r.Tok.IsEnd(next); !a.ended {
				a.output = append(a.output, next)
				a.ended = a.steps == a.most
			}
			if a.ended {
				continue
			}
			for _, seq := range a.views.Next(next) {
				seq.Unmoved = s.Unmoved
				step = append(step, seq)
			}
		}
		if len(step) == 0 {
			return nil
		}
		if err := s.Work.Forward(ctx, step, nil); err != nil {
			return err
		}
	}
}
