// Package engine answers prompts made of blocks: blocks + sampling → tokens. It finds the keys and values of each block in
// the store, computes the missing ones together, once even where several requests want the same, prefills the final block
// and decodes.
package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/tessera-llm/tessera/grammar"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
)

// Attention is what the blocks of a prompt attend to.
type Attention string

const (
	Full  Attention = "full"  // every block to all before it: the reference
	Block Attention = "block" // passages to themselves alone, dependent blocks to all
)

// An Engine computes with one model over one store. It is safe for concurrent use: a scheduler computes what all requests want together.
type Engine struct {
	model  *model.Model
	tok    *tokenizer.Tokenizer
	store  *kv.Store
	inputs kv.Inputs // what all block ids have in common
	source string    // the model's file, for errors

	work      *model.Workspace
	scheduler *scheduler

	claims claims
}

// Options of an Engine.
type Options struct {
	Fingerprint [32]byte // of the model's file
	Adapter     [32]byte // fingerprint of the adapter beside it; zero: none
	Source      string   // the model's file, for errors
	KV          kv.Type
	Threads     int
}

// New makes an engine; Close ends its workers, and must come before the store's and the model file's.
func New(m *model.Model, tok *tokenizer.Tokenizer, store *kv.Store, o Options) *Engine {
	e := &Engine{
		model:  m,
		tok:    tok,
		store:  store,
		inputs: kv.Inputs{Model: o.Fingerprint, Adapter: o.Adapter, Type: o.KV, RoPE: m.RoPEBytes()},
		source: o.Source,
		work:   m.NewWorkspace(o.Threads),
		claims: claims{pending: map[kv.ID]chan struct{}{}},
	}
	e.scheduler = newScheduler(e.work)
	return e
}

// Close ends the engine's workers. No request may be under way.
func (e *Engine) Close() {
	e.scheduler.close()
	e.work.Close()
}

// Load is how many answers are being generated at the moment, and how many prompts are being computed or wait for that.
func (e *Engine) Load() (answers, prompts int) { return e.scheduler.load() }

// A Request is one prompt and how to go on from it. The last block is the final block.
type Request struct {
	Blocks    []prompt.Block
	Attention Attention
	Parts     int // in block attention, at most so many of the passages, each seen by itself beside all of them, see Views; 0: 1, nothing beside. With Echo none
	Sampling  Sampling
	Grammar   *grammar.Grammar // what the answer may be; nil: anything
	MaxTokens int              // tokens generated at most; bounded by the model's context too
	Salt      []byte           // keeps one tenant's blocks from another's

	Logprobs bool // report the answer's tokens with their log-probabilities
	Likely   int  // and with so many likeliest ones in the place of each
	Echo     bool // and the final block's tokens but the first, too; MaxTokens may be 0 then

	// Token is given each token that is reported, before the text that it completes. May be nil.
	Token func(Token)
	// Emit is given the answer's text as it comes, never half a character; an error from it ends the answer. May be nil.
	Emit func(text string) error
	// Progress is told how many of the tokens to be prefilled are done. May be nil.
	Progress func(done, total int)
}

// A Receipt is what a request took.
type Receipt struct {
	Text       string
	Finish     Finish
	Parts      int            // that the passages were seen in
	Blocks     []BlockReceipt // as in the request; the final block was always computed
	Prompt     int            // tokens of the prompt
	Cached     int            // of these, found in the store
	Completion int            // tokens generated, the end token included

	Lookup  time.Duration // finding stored blocks
	Prefill time.Duration // computing missing blocks and the final block, up to the first token, while files are read and verified
	TTFT    time.Duration // from the request to the first token
	Decode  time.Duration // from the first token to the last

	MatrixFLOPs, AttentionFLOPs float64 // to the first token
}

// BlockReceipt says where a block's keys and values came from.
type BlockReceipt struct {
	ID     kv.ID
	Tokens int
	Source kv.Source
}

// Finish is why an answer ended.
type Finish string

const (
	FinishStop   Finish = "stop"   // the model or a stop string ended it
	FinishLength Finish = "length" // MaxTokens or the model's context
)

// ContextError says that a prompt does not fit the model's context.
type ContextError struct{ Tokens, Context int }

func (e *ContextError) Error() string {
	return fmt.Sprintf("the prompt has %d tokens; the model's context is %d, answer included", e.Tokens, e.Context)
}

// recent is how many of the last tokens the repetition penalty sees.
const recent = 64

// Generate answers the request.
func (e *Engine) Generate(ctx context.Context, r Request) (*Receipt, error) {
	start := time.Now()
	if err := r.Sampling.Validate(); err != nil {
		return nil, err
	}
	if len(r.Blocks) == 0 || r.MaxTokens < 0 || r.MaxTokens == 0 && !r.Echo {
		return nil, fmt.Errorf("engine: %d blocks and %d tokens to generate; want at least one of each", len(r.Blocks), r.MaxTokens)
	}
	rec := &Receipt{}
	asked := r.Blocks
	for _, b := range asked {
		rec.Prompt += len(b.Tokens)
	}
	r.Blocks = Link(e.model, asked, r.Attention)
	tokens := 0
	for _, b := range r.Blocks {
		tokens += len(b.Tokens)
	}
	if tokens >= e.model.Context {
		return nil, &ContextError{tokens, e.model.Context}
	}
	r.MaxTokens = min(r.MaxTokens, e.model.Context-tokens)

	p, err := e.prefill(ctx, &r, rec)
	if err != nil {
		return nil, err
	}
	defer p.release()
	rec.Parts = p.views.Parts()
	if r.MaxTokens == 0 {
		rec.Finish, rec.TTFT = FinishLength, time.Since(start)
		return rec, nil
	}
	d := decoding{e: e, r: &r, rec: rec, p: p, decoder: e.tok.Decoder(), stop: stopper{stops: r.Sampling.Stop}, sampler: newSampler(r.Sampling)}
	for _, b := range asked {
		d.tokens = append(d.tokens, b.Tokens...)
	}
	if r.Grammar != nil {
		d.matcher = r.Grammar.Matcher()
	}
	if err := d.first(start); err != nil {
		return nil, err
	}
	first := time.Now()
	e.scheduler.begin()
	defer e.scheduler.end()
	if err := d.rest(ctx); err != nil {
		return nil, err
	}
	rec.Decode = time.Since(first)
	return rec, nil
}

// decoding is the state of an answer that is being generated.
type decoding struct {
	e       *Engine
	r       *Request
	rec     *Receipt
	p       *prefilled
	sampler *sampler
	decoder *tokenizer.Decoder
	stop    stopper
	tokens  []int32 // prompt and answer
	next    int32   // chosen, not yet computed

	matcher *grammar.Matcher // nil: anything may come
	masked  []float32        // logits without what may not come
}

// first chooses the first token.
func (d *decoding) first(start time.Time) error {
	err := d.choose(d.p.views.Logits())
	d.rec.TTFT = time.Since(start)
	if err != nil {
		return err
	}
	return d.take()
}

// rest computes and chooses tokens until the answer ends.
func (d *decoding) rest(ctx context.Context) error {
	for d.rec.Finish == "" {
		if err := d.e.forward(ctx, d.r, true, d.p.views.Next(d.tokens[len(d.tokens)-1]), nil); err != nil {
			return err
		}
		if err := d.choose(d.p.views.Logits()); err != nil {
			return err
		}
		if err := d.take(); err != nil {
			return err
		}
	}
	return nil
}

// choose chooses the next token by its logits [V].
func (d *decoding) choose(logits []float32) (err error) {
	before := d.tokens[max(len(d.tokens)-recent, 0):]
	if d.matcher == nil {
		d.next, err = d.sampler.next(logits, before)
	} else {
		d.next, err = d.chooseAllowed(logits, before)
	}
	if err == nil && d.r.Logprobs && d.r.Token != nil {
		d.r.Token(logprobs(logits, d.next, d.r.Likely))
	}
	return err
}

// chooseTries is how many tokens are chosen and found not to be allowed before all are looked at.
const chooseTries = 16

// chooseAllowed chooses among the tokens that the grammar allows. Mostly one of the first that are chosen from all of them is, and taking
// away those that are not leaves the same odds to the others as looking at every token would.
func (d *decoding) chooseAllowed(logits []float32, before []int32) (int32, error) {
	d.masked = append(d.masked[:0], logits...)
	never := float32(math.Inf(-1))
	for try := 0; ; try++ {
		if try == chooseTries {
			for id := range d.masked {
				if !d.allowed(int32(id)) {
					d.masked[id] = never
				}
			}
		}
		next, err := d.sampler.next(d.masked, before)
		if err != nil || d.allowed(next) {
			return next, err
		}
		d.masked[next] = never
	}
}

// allowed tells whether the grammar lets the answer go on with a token, or end.
func (d *decoding) allowed(id int32) bool {
	switch {
	case d.e.tok.IsEnd(id):
		return d.matcher.Complete()
	case d.e.tok.IsControl(id):
		return false
	}
	return d.matcher.Allows(d.e.tok.Piece(id))
}

// take adds the chosen token to the answer and ends it where it must end.
func (d *decoding) take() error {
	d.rec.Completion++
	text, stopped := "", true
	if d.e.tok.IsEnd(d.next) {
		text = d.ending()
	} else {
		d.tokens = append(d.tokens, d.next)
		text, stopped = d.stop.push(d.decoder.Push(d.next))
		if d.matcher != nil && !stopped {
			if d.matcher.Push(d.e.tok.Piece(d.next)); d.matcher.Over() {
				text, stopped = text+d.ending(), true
			}
		}
	}
	switch {
	case stopped:
		d.rec.Finish = FinishStop
	case d.rec.Completion == d.r.MaxTokens:
		d.rec.Finish = FinishLength
		text += d.ending()
	}
	d.rec.Text += text
	if text != "" && d.r.Emit != nil {
		return d.r.Emit(text)
	}
	return nil
}

// ending is the text that was held back, up to a stop string if it makes one.
func (d *decoding) ending() string {
	text, stopped := d.stop.push(d.decoder.Flush())
	if !stopped {
		text += d.stop.flush()
	}
	return text
}

// forward computes a batch of the request: the next token of its answer, or some of its prompt. A block file that was cut short under its
// mapping is an error of this request, and set aside so that the next one computes the block anew.
func (e *Engine) forward(ctx context.Context, r *Request, token bool, batch []model.Sequence, progress func(int)) error {
	err := e.scheduler.compute(ctx, string(r.Salt), token, batch, progress)
	var fault *model.FaultError
	if !errors.As(err, &fault) {
		return err
	}
	path, id, ok := e.store.Fault(fault.Addr)
	if !ok {
		return fmt.Errorf("%s: cut short while it was in use: %w", e.source, err)
	}
	err = fmt.Errorf("%s: block file cut short while it was in use; it is set aside, asking again computes the block anew", path)
	e.store.SetAside(id, err)
	return err
}
