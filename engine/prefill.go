package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
)

// prefilled is a prompt whose keys and values are all there, and the logits after its last token.
type prefilled struct {
	views  *Views
	links  map[int]*model.KV // an adapter's link tokens, by place: quickly computed, they are neither asked for nor given to the store
	leases []*kv.Lease
	echoed []Token // of the final block, where the request wants them
}

// echo lets the computation of the final block remember log-probabilities of its tokens, too.
func (p *prefilled) echo(final *model.Sequence, r *Request) {
	keep := final.Logits
	final.LogitsFrom, final.Logits = 0, func(i int, logits []float32) {
		if i+1 < len(final.Tokens) {
			p.echoed = append(p.echoed, logprobs(logits, final.Tokens[i+1], r.Likely))
		} else {
			keep(i, logits)
		}
	}
}

func (p *prefilled) release() {
	for _, l := range p.leases {
		l.Close()
	}
}

// A planned block is a distinct block of a prompt, with the places it takes. Block mode computes a repeated passage once.
type planned struct {
	id     kv.ID
	index  int       // its first place
	alone  bool      // it is independent
	kv     *model.KV // nil until found or computed
	source kv.Source
	broken error // what its file was found to be as its layers were read: it is to be computed
}

// prefill finds or computes every block of the request.
//
// A block that another request is computing is waited for, but only after this request's own claims that do not need it are
// computed and stored. A claim is therefore never held while waiting for anything but earlier blocks of the same prompt, and
// since a dependent block's id covers all that come before it, no circle of waiting requests can form.
func (e *Engine) prefill(ctx context.Context, r *Request, rec *Receipt) (p *prefilled, err error) {
	blocks, places, ids := e.plan(r)
	last := len(r.Blocks) - 1
	p = &prefilled{links: map[int]*model.KV{}}
	defer func(p *prefilled) { // p itself: a return with an error makes the result nil
		if err != nil {
			p.release()
		}
	}(p)
	for finished := false; !finished; {
		begin := time.Now()
		wait, claimed, err := e.find(blocks, r, p)
		rec.Lookup += time.Since(begin)
		if err != nil {
			e.claims.release(claimed)
			return nil, err
		}
		begin = time.Now()
		finished = wait == nil
		if err := e.fill(ctx, r, rec, p, blocks, places, claimed, finished); err != nil {
			if !forget(blocks) {
				return nil, err
			}
			finished = false
		}
		rec.Prefill += time.Since(begin)
		if wait != nil {
			select {
			case <-wait:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	for _, t := range p.echoed {
		r.Token(t)
	}
	for _, b := range blocks {
		b.kv.Layers = nil // the final block has asked for each
	}
	seen := map[kv.ID]bool{}
	for i := range r.Blocks {
		one := BlockReceipt{ID: ids[i], Tokens: len(r.Blocks[i].Tokens)}
		if i < last {
			if r.Blocks[i].Kind == prompt.Link {
				continue
			}
			b := blocks[places[i]]
			one.Source = b.source
			if seen[b.id] && b.source == kv.Computed {
				one.Source = kv.RAM // its first place was computed, this one found it there
			}
			seen[b.id] = true
			if one.Source != kv.Computed {
				rec.Cached += one.Tokens
			}
		}
		rec.Blocks = append(rec.Blocks, one)
	}
	return p, nil
}

// reading is a block whose layers are read and verified as the computation gets to them.
type reading struct {
	*kv.Lease
	block *planned
}

// Layer waits for a layer. Where it is not whole, forget has the block computed.
func (r *reading) Layer(layer int) error {
	err := r.Lease.Layer(layer)
	if err != nil {
		r.block.broken = err
	}
	return err
}

// forget takes from the blocks found those whose file turned out not to be whole: the store has set it aside. It tells whether there are any.
func forget(blocks []*planned) (any bool) {
	for _, b := range blocks {
		if b.broken != nil {
			b.kv, b.broken, any = nil, nil, true
		}
	}
	return any
}

// plan lists the distinct blocks before the final one, and for each place in the prompt which of them stands there; link tokens are none of them.
func (e *Engine) plan(r *Request) (blocks []*planned, places []int, ids []kv.ID) {
	known := map[kv.ID]int{}
	common := e.inputs
	common.Salt = r.Salt
	ids = Name(e.model, common, r.Blocks, r.Attention)
	for i, id := range ids[:len(ids)-1] {
		at, ok := known[id]
		if r.Blocks[i].Kind == prompt.Link {
			at = -1
		} else if !ok {
			at = len(blocks)
			known[id], blocks = at, append(blocks, &planned{id: id, index: i, alone: !Dependent(r.Blocks, r.Attention, i)})
		}
		places = append(places, at)
	}
	return blocks, places, ids
}

// Name gives the ids of a prompt's blocks. common is what all have in common; its adapter, in the ids of those blocks that it has a say in: an adapter for final blocks
// leaves the others to the model, but for link tokens, and those behind blocks whose sinks it hides from them, or behind link tokens.
func Name(m *model.Model, common kv.Inputs, blocks []prompt.Block, a Attention) (ids []kv.ID) {
	changed := false // what a dependent block sees: an earlier block's sinks are hidden, or there are link tokens
	for i, b := range blocks {
		in := common
		in.Tokens = b.Tokens
		alone := !Dependent(blocks, a, i)
		if !alone {
			in.Parent = kv.Parent(ids)
		}
		link := b.Kind == prompt.Link
		if m.FinalOnly() && i < len(blocks)-1 && !link && (alone || !changed) {
			in.Adapter = [32]byte{}
		}
		changed = changed || link || m.HidesSinks() && alone && i > 0
		ids = append(ids, in.ID())
	}
	return ids
}

// Link puts an adapter's link tokens behind each passage of a prompt, where the mode has them.
func Link(m *model.Model, blocks []prompt.Block, a Attention) []prompt.Block {
	tokens := m.LinkTokens()
	if len(tokens) == 0 || a == Full {
		return blocks
	}
	var linked []prompt.Block
	for i, b := range blocks {
		linked = append(linked, b)
		if i > 0 && !Dependent(blocks, a, i) {
			linked = append(linked, prompt.Block{Kind: prompt.Link, Dependent: true, Tokens: tokens, Doc: -1})
		}
	}
	return linked
}

// Stored tells of each block of a request but the final one whether the store has it. Nothing is computed, nor read further than a header.
func (e *Engine) Stored(r Request) ([]bool, error) {
	r.Blocks = Link(e.model, r.Blocks, r.Attention)
	blocks, places, _ := e.plan(&r)
	var found []bool
	for i, at := range places {
		if r.Blocks[i].Kind == prompt.Link {
			continue
		}
		lease, err := e.get(blocks[at], &r)
		if err != nil {
			return nil, err
		}
		found = append(found, lease != nil)
		if lease != nil {
			lease.Close()
		}
	}
	return found, nil
}

// Dependent says whether block i of a prompt attends to those before it. The first has none: it is independent in every mode, and so
// the same block.
func Dependent(blocks []prompt.Block, a Attention, i int) bool {
	return i > 0 && (i == len(blocks)-1 || a == Full || blocks[i].Dependent)
}

// parts is in how many parts a request wants its passages seen.
func (r *Request) parts() int {
	if r.Echo {
		return 1
	}
	return r.Parts
}

// find leases what the store has of the blocks still open and claims the rest. Where another request has a claim, wait is
// closed when that ends.
func (e *Engine) find(blocks []*planned, r *Request, p *prefilled) (wait chan struct{}, claimed []*planned, err error) {
	if err := e.leaseAll(blocks, r, p); err != nil {
		return nil, nil, err
	}
	for _, b := range blocks {
		if b.kv != nil {
			continue
		}
		if other := e.claims.claim(b.id); other != nil {
			wait = other
			continue
		}
		// Between the look and the claim another request may have finished it.
		if found, err := e.lease(b, r, p); found || err != nil {
			e.claims.release([]*planned{b})
			if err != nil {
				return nil, claimed, err
			}
			continue
		}
		claimed = append(claimed, b)
	}
	return wait, claimed, nil
}

// readers is how many blocks are looked for at a time.
const readers = 4

// leaseAll leases what the store has of the blocks still open.
func (e *Engine) leaseAll(blocks []*planned, r *Request, p *prefilled) error {
	var (
		next    atomic.Int64
		group   sync.WaitGroup
		failure atomic.Pointer[error]
		leases  = make([]*kv.Lease, len(blocks))
	)
	look := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(blocks) || failure.Load() != nil {
				return
			}
			if blocks[i].kv != nil {
				continue
			}
			lease, err := e.get(blocks[i], r)
			if err != nil {
				failure.CompareAndSwap(nil, &err)
				return
			}
			leases[i] = lease
		}
	}
	for range min(readers, len(blocks)) - 1 {
		group.Go(look)
	}
	look()
	group.Wait()
	for i, l := range leases {
		if l != nil {
			blocks[i].hold(l, p)
		}
	}
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

func (e *Engine) lease(b *planned, r *Request, p *prefilled) (bool, error) {
	lease, err := e.get(b, r)
	if lease != nil {
		b.hold(lease, p)
	}
	return lease != nil, err
}

// get leases the block from the store, nil where it has none.
func (e *Engine) get(b *planned, r *Request) (*kv.Lease, error) {
	lease, err := e.store.Lend(b.id, e.model.KVShape(e.inputs.Type, len(r.Blocks[b.index].Tokens)))
	if errors.Is(err, kv.ErrMissing) {
		return nil, nil
	}
	return lease, err
}

// hold makes the leased bytes the block's keys and values for as long as the request lasts.
func (b *planned) hold(lease *kv.Lease, p *prefilled) {
	p.leases = append(p.leases, lease)
	b.kv = &model.KV{Shape: lease.Shape(), Payload: lease.Payload(), Len: lease.Shape().Tokens, Alone: b.alone}
	if !lease.Whole() {
		b.kv.Layers = &reading{Lease: lease, block: b}
	}
	if lease.Source() != kv.Computed {
		b.source = lease.Source()
	}
}

// fill computes the claimed blocks in one batch, and the final block with them where nothing else is awaited, and stores
// them. Claims whose earlier blocks are awaited from other requests are given up for now. It ends all claims.
func (e *Engine) fill(ctx context.Context, r *Request, rec *Receipt, p *prefilled, blocks []*planned, places []int, claimed []*planned, final bool) error {
	defer e.claims.release(claimed)
	f := filling{e: e, r: r, p: p, blocks: blocks, places: places}
	var computed []*planned
	for _, b := range claimed {
		empty := e.model.NewKV(e.inputs.Type, len(r.Blocks[b.index].Tokens))
		empty.Alone = b.alone
		if f.add(b.index, empty) {
			b.kv, b.source = empty, kv.Computed
			computed = append(computed, b)
		}
	}
	if final {
		f.addFinal()
	}
	if len(f.batch) == 0 {
		return nil
	}
	var progress func(int)
	if r.Progress != nil {
		progress = func(done int) { r.Progress(done, f.tokens) }
	}
	if err := e.forward(ctx, r, false, f.batch, progress); err != nil {
		for _, b := range computed {
			b.kv = nil
		}
		clear(p.links)
		p.echoed = p.echoed[:0]
		return err
	}
	e.count(rec, f.batch)
	for _, b := range computed {
		lease, err := e.store.Put(b.id, b.kv.Shape, b.kv.Payload)
		if err != nil {
			return err
		}
		b.hold(lease, p)
	}
	return nil
}

// A filling is the batch that computes what is missing of a prompt.
type filling struct {
	e      *Engine
	r      *Request
	p      *prefilled
	blocks []*planned
	places []int
	batch  []model.Sequence
	tokens int // of the batch
}

// add adds the computation of the block at a place before the final one, and of link tokens that it sees. False: another request computes one
// that it sees.
func (f *filling) add(index int, to *model.KV) bool {
	past, ok := f.past(index)
	if !ok {
		return false
	}
	b := &f.r.Blocks[index]
	f.batch = append(f.batch, model.Sequence{Tokens: b.Tokens, KV: to, Past: past, Before: b.Kind != prompt.Link})
	f.tokens += len(b.Tokens)
	return true
}

// addFinal adds that of the final block in every view, for which all others are there or in the batch.
func (f *filling) addFinal() {
	r, p := f.r, f.p
	past, _ := f.past(len(r.Blocks) - 1)
	p.views = NewViews(f.e.model, f.e.inputs.Type, r.Blocks, r.Attention, r.parts(), past, r.MaxTokens)
	finals := p.views.Final()
	if r.Echo && r.Token != nil {
		p.echo(&finals[0], r)
	}
	for _, one := range finals {
		f.tokens += len(one.Tokens)
	}
	f.batch = append(f.batch, finals...)
}

// past is what the block at a place sees before it.
func (f *filling) past(index int) (past []*model.KV, ok bool) {
	if !Dependent(f.r.Blocks, f.r.Attention, index) {
		return nil, true
	}
	for i := range index {
		block := f.at(i)
		if block == nil {
			return nil, false
		}
		past = append(past, block)
	}
	return past, true
}

// at is the keys and values of a place before the final block, nil where another request computes them. Link tokens are added to the batch when they
// are first asked for.
func (f *filling) at(index int) *model.KV {
	if f.r.Blocks[index].Kind != prompt.Link {
		return f.blocks[f.places[index]].kv
	}
	link := f.p.links[index]
	if link == nil {
		if link = f.e.model.NewKV(f.e.inputs.Type, len(f.r.Blocks[index].Tokens)); !f.add(index, link) {
			return nil
		}
		f.p.links[index] = link
	}
	return link
}

// count adds to a receipt what a batch takes.
func (e *Engine) count(rec *Receipt, batch []model.Sequence) {
	for i := range batch {
		if batch[i].Logits != nil {
			rec.MatrixFLOPs += float64(len(batch[i].Tokens)-batch[i].LogitsFrom) * e.model.OutputFLOPs()
		}
		before := 0
		for _, b := range batch[i].Past {
			before += b.Shape.Tokens
		}
		matrices, attention := e.model.FLOPs(len(batch[i].Tokens), before)
		rec.MatrixFLOPs, rec.AttentionFLOPs = rec.MatrixFLOPs+matrices, rec.AttentionFLOPs+attention
	}
}

// claims are the blocks that requests are computing now, each with a channel that is closed when that ends, well or not.
type claims struct {
	mu      sync.Mutex
	pending map[kv.ID]chan struct{}
}

// claim returns nil and holds id, or the channel of who holds it.
func (c *claims) claim(id kv.ID) chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.pending[id]; ok {
		return other
	}
	c.pending[id] = make(chan struct{})
	return nil
}

func (c *claims) release(blocks []*planned) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blocks {
		close(c.pending[b.id])
		delete(c.pending, b.id)
	}
}
