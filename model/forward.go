package model

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/tessera-llm/tessera/attention"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
)

// A KV is the keys and values of one block: the payload of a stored block, or one being filled.
type KV struct {
	Shape   kv.Shape // Shape.Tokens is the room
	Payload []byte   // laid out as Shape says
	Len     int      // tokens filled, from the first on
	Alone   bool     // computed by itself, so that its first token is an attention sink, which an adapter may hide from later blocks

	Layers Layers // nil: Payload is all there
}

// Layers are those of a KV that are still to be read. Layer is called before a layer's bytes are used, and returns when they are there; an
// error ends the computation. Ahead is called earlier for the layers below to, and does not wait. Of one KV neither is called twice at a time.
type Layers interface {
	Ahead(from, to int)
	Layer(layer int) error
}

// NewKV makes an empty KV with room for n tokens.
func (m *Model) NewKV(t kv.Type, n int) *KV {
	shape := m.KVShape(t, n)
	return &KV{Shape: shape, Payload: kv.Alloc(shape.Bytes())}
}

// A Sequence is new tokens of one block. They attend to Past, the blocks before theirs, and causally to their own block.
type Sequence struct {
	Tokens []int32
	Past   []*KV // in the order of the prompt; a block computed by an earlier Sequence of the same batch may be among them
	KV     *KV   // their own block: its Len tokens come before Tokens; theirs are added

	// Before says that the block stands before the final one, and is no block of link tokens: an adapter that acts on final blocks alone leaves its
	// tokens as they are.
	Before bool

	// Unmoved leaves the keys of Past at their local positions, each block as if it began the prompt: the paper's ablation
	// without position re-encoding, for measuring only.
	Unmoved bool

	// Logits is called for tokens LogitsFrom, LogitsFrom+1 … of Tokens, in order, with the logits [V] of what follows
	// each; the slice is reused after the call. Nil: no logits.
	LogitsFrom int
	Logits     func(i int, logits []float32)
}

// A FaultError says that reading a mapped file failed: it became shorter after it was opened.
type FaultError struct{ Addr uintptr }

func (e *FaultError) Error() string {
	return fmt.Sprintf("a mapped file was cut short while it was read (address %#x)", e.Addr)
}

// MaxRows bounds the tokens that pass the layers together, and so the workspace; outputRows those of the output head.
const (
	MaxRows    = 512
	outputRows = 16
)

// A Workspace is the memory and the threads of one computation at a time.
type Workspace struct {
	model *Model
	pool  *kernel.Pool

	parts []part
	rows  int

	hidden, normed  []float32          // [T × C]
	query, attended []float32          // [T × H × D]
	key, value      []float32          // [T × G × D]
	gate, up        []float32          // [T × F]
	logits          []float32          // [outputRows × V]
	input           kernel.Activations // what the next products multiply
	product         kernel.MatMul
	products        [2 * maxProjections]kernel.Product
	low             [maxProjections][]float32 // [T × R], an adapter's activations
	lowInput        [maxProjections]kernel.Activations
	attend          attention.Attend
	queries         []attention.Queries
	segments        []attention.Segment
	rowsTask        rowsTask
	reading         readTask
	layerIndex      int
}

// part is the rows of one sequence in the batch that is passing the layers.
type part struct {
	seq   *Sequence
	from  int // first of the sequence's tokens
	row   int // its row in the batch
	rows  int
	local int // its position in its block
	past  int // tokens in Past
}

// NewWorkspace makes a workspace with threads workers, which live until Close.
func (m *Model) NewWorkspace(threads int) *Workspace {
	w := &Workspace{model: m, pool: kernel.NewPool(threads)}
	w.rowsTask.w = w
	return w
}

// Close ends the workers.
func (w *Workspace) Close() { w.pool.Close() }

// Forward computes the sequences: fills their KV and calls their Logits. Results do not depend on what else is in the
// batch, nor on the number of threads. Sequences may depend on earlier ones of the batch. progress, if not nil, is told
// the number of tokens done so far. On an error KVs are as they were, as far as Len tells.
func (w *Workspace) Forward(ctx context.Context, batch []Sequence, progress func(tokens int)) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	lens := make([]int, len(batch))
	for i := range batch {
		lens[i] = batch[i].KV.Len
	}
	defer func() {
		if v := recover(); v != nil {
			fault, ok := v.(interface{ Addr() uintptr })
			if !ok {
				panic(v)
			}
			err = &FaultError{fault.Addr()}
		}
		if err != nil {
			for i := range batch {
				batch[i].KV.Len = lens[i]
			}
		}
		w.forget()
	}()
	if err := w.check(batch); err != nil {
		return err
	}
	done, seq, from := 0, 0, 0
	for seq < len(batch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		seq, from = w.gather(batch, seq, from)
		done += w.rows
		if err := w.pass(); err != nil {
			return err
		}
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

// forget lets go of the batch: keys and values that nobody else holds are many megabytes.
func (w *Workspace) forget() {
	clear(w.parts[:cap(w.parts)])
	clear(w.queries[:cap(w.queries)])
	clear(w.segments[:cap(w.segments)])
}

func (w *Workspace) check(batch []Sequence) error {
	for i := range batch {
		s := &batch[i]
		if err := s.KV.Shape.Type.Check(s.KV.Shape.Dim); err != nil {
			return err
		}
		if room := s.KV.Shape.Tokens - s.KV.Len; len(s.Tokens) > room {
			return fmt.Errorf("%d tokens for a block with room for %d", len(s.Tokens), room)
		}
		for _, id := range s.Tokens {
			if id < 0 || int(id) >= w.model.Vocabulary+len(w.model.links) {
				return fmt.Errorf("token id %d; the vocabulary has 0 to %d", id, w.model.Vocabulary-1)
			}
		}
	}
	return nil
}

// gather makes the next batch of at most MaxRows rows, starting at token from of sequence seq, and returns where it ended.
func (w *Workspace) gather(batch []Sequence, seq, from int) (int, int) {
	w.parts, w.rows = w.parts[:0], 0
	for seq < len(batch) && w.rows < MaxRows {
		s := &batch[seq]
		n := min(len(s.Tokens)-from, MaxRows-w.rows)
		p := part{seq: s, from: from, row: w.rows, rows: n, local: s.KV.Len}
		for _, b := range s.Past {
			p.past += b.Len
		}
		if n > 0 {
			w.parts = append(w.parts, p)
		}
		w.rows += n
		// Counted as filled at once: later rows of this batch see them, in each layer after these rows have stored theirs.
		s.KV.Len += n
		if from += n; from == len(s.Tokens) {
			seq, from = seq+1, 0
		}
	}
	return seq, from
}

// pass takes the gathered rows through the model.
func (w *Workspace) pass() error {
	m, c := w.model, &w.model.Config
	if w.rows == 0 {
		return nil
	}
	w.reserve()
	w.reading.from, w.reading.to = 0, 0
	for i := range w.parts {
		p := &w.parts[i]
		m.rope.Reach(p.past + p.local + p.rows)
		for t := range p.rows {
			to, id := w.hidden[(p.row+t)*c.Hidden:], int(p.seq.Tokens[p.from+t])
			if id < c.Vocabulary {
				m.embedding.Row(to, id)
			} else {
				copy(to, m.links[id-c.Vocabulary])
			}
		}
	}
	for i := range m.layers {
		w.layerIndex = i
		if err := w.read(); err != nil {
			return err
		}
		if w.attention(&m.layers[i]); w.rows == 0 {
			return nil // nobody wants logits: with the last layer's keys and values all is done
		}
		w.feedForward(&m.layers[i])
	}
	w.output()
	return nil
}

// firstAhead is how many layers the disk is asked for at first; then for twice as many whenever the computation gets to what it was
// asked for last. So computing begins soon, and most is read in long pieces.
const firstAhead = 2

// read waits for the layer's bytes of the blocks that are attended to, and asks for those of a later one.
func (w *Workspace) read() error {
	t := &w.reading
	t.layer, t.kvs = w.layerIndex, t.kvs[:0]
	for i := range w.parts {
		for _, b := range w.parts[i].seq.Past {
			if b.Layers != nil && !slices.Contains(t.kvs, b) {
				t.kvs = append(t.kvs, b)
			}
		}
	}
	if len(t.kvs) == 0 {
		return nil
	}
	t.errs = append(t.errs[:0], make([]error, len(t.kvs))...)
	t.wait = false
	for t.layer >= t.from && t.to < w.model.Layers {
		t.from, t.to = t.to, min(max(firstAhead, t.to+2*(t.to-t.from)), w.model.Layers)
		w.pool.Run(len(t.kvs), t)
	}
	t.wait = true
	w.pool.Run(len(t.kvs), t)
	return errors.Join(t.errs...)
}

// readTask asks for, or waits for, a layer of some blocks.
type readTask struct {
	kvs      []*KV
	errs     []error
	layer    int
	from, to int // the layers that were asked for last
	wait     bool
}

func (t *readTask) Do(_, i int) {
	if t.wait {
		t.errs[i] = t.kvs[i].Layers.Layer(t.layer)
	} else {
		t.kvs[i].Layers.Ahead(t.from, t.to)
	}
}

// attention adds the layer's attention to the hidden state, and stores the new keys and values.
func (w *Workspace) attention(l *layer) {
	m := w.model
	w.each(normAttention)
	query, key, value := projection{w.query, &l.query}, projection{w.key, &l.key}, projection{w.value, &l.value}
	if w.layerIndex < m.Layers-1 {
		w.multiply(w.normed, false, query, key, value)
		w.each(storeKV)
	} else {
		w.multiply(w.normed, false, key, value)
		w.each(storeKV)
		if w.keepWanted(); w.rows == 0 {
			return
		}
		w.multiply(w.normed, false, query)
	}
	if l.queryBias != nil {
		kernel.AddRows(w.query[:w.rows*m.Heads*m.HeadDim], l.queryBias)
	}
	w.queries, w.segments = w.queries[:0], w.segments[:0]
	for i := range w.parts {
		p := &w.parts[i]
		first := len(w.segments)
		offset := 0
		for i, b := range p.seq.Past {
			at := offset
			if p.seq.Unmoved {
				at = 0
			}
			s := b.segment(w.layerIndex, at)
			if i > 0 && b.Alone {
				s.First = m.hiddenSinks // the prompt's first block has the sink that full attention has
			}
			w.segments = append(w.segments, s)
			offset += b.Len
		}
		w.segments = append(w.segments, p.seq.KV.segment(w.layerIndex, offset))
		width := m.Heads * m.HeadDim
		w.queries = append(w.queries, attention.Queries{
			Q: w.query[p.row*width:][:p.rows*width], Out: w.attended[p.row*width:][:p.rows*width],
			Position: p.past + p.local, Tokens: p.rows,
			Segments: w.segments[first:len(w.segments):len(w.segments)],
		})
	}
	w.attend.Run(w.pool, attention.Shape{Heads: m.Heads, KVHeads: m.KVHeads, Dim: m.HeadDim}, m.rope, w.queries)
	w.multiply(w.attended, true, projection{w.hidden, &l.attentionOut})
	if l.attentionOutBias != nil {
		kernel.AddRows(w.hidden[:w.rows*m.Hidden], l.attentionOutBias)
	}
}

// keepWanted leaves of the batch the rows whose logits are wanted: behind the last layer's keys and values nothing else of
// the others is.
func (w *Workspace) keepWanted() {
	c := w.model.Hidden
	kept := 0
	for i := range w.parts {
		p := &w.parts[i]
		skip := p.rows
		if p.seq.Logits != nil {
			skip = min(max(p.seq.LogitsFrom-p.from, 0), p.rows)
		}
		first := p.row + skip
		p.rows, p.from, p.local = p.rows-skip, p.from+skip, p.local+skip
		copy(w.hidden[kept*c:], w.hidden[first*c:(first+p.rows)*c])
		copy(w.normed[kept*c:], w.normed[first*c:(first+p.rows)*c])
		p.row = kept
		kept += p.rows
	}
	w.rows = kept
}

// feedForward adds down(silu(gate(x))·up(x)) to the hidden state.
func (w *Workspace) feedForward(l *layer) {
	w.each(normFeedForward)
	w.multiply(w.normed, false, projection{w.gate, &l.gate}, projection{w.up, &l.up})
	w.each(swiGLU)
	w.multiply(w.gate, true, projection{w.hidden, &l.down})
}

// output calls the sequences' Logits, outputRows rows at a time, whatever sequences they are of: several answers that grow
// token by token read the output head once.
func (w *Workspace) output() {
	m := w.model
	part, t := 0, 0 // the row's, and its place there
	for row := 0; row < w.rows; row += outputRows {
		n := min(outputRows, w.rows-row)
		kernel.RMSNorm(w.normed[:n*m.Hidden], w.hidden[row*m.Hidden:][:n*m.Hidden], m.norm, m.NormEpsilon)
		w.input.Set(w.normed, n, m.Hidden)
		w.product.Run(w.pool, kernel.Product{Dst: w.logits, X: &w.input, W: &m.output})
		for j := range n {
			for t == w.parts[part].rows {
				part, t = part+1, 0
			}
			p := &w.parts[part]
			p.seq.Logits(p.from+t, w.logits[j*m.Vocabulary:][:m.Vocabulary])
			t++
		}
	}
}

// segment is one layer of a block, as attention reads it.
func (b *KV) segment(layer, offset int) attention.Segment {
	s := attention.Segment{Len: b.Len, Offset: offset}
	k, _ := b.Shape.K(layer, 0)
	v, _ := b.Shape.V(layer, 0)
	numbers, _ := b.Shape.RowBytes()
	size := numbers / b.Shape.Dim
	s.VOffset, s.HeadStride = (v-k)/size, b.Shape.LayerBytes()/b.Shape.Heads/size
	data := b.Payload[k:][:b.Shape.LayerBytes()]
	switch b.Shape.Type {
	case kv.F32:
		s.F32 = kernel.Floats(data)
	case kv.F16:
		s.F16 = kernel.Halves(data)
	case kv.BF16:
		s.BF16 = kernel.Halves(data)
	case kv.Q8:
		s.Q8, s.Scales = kernel.Codes(data), kernel.Halves(data[b.Shape.Tokens*numbers:])
	}
	return s
}

// reserve makes the buffers large enough for the gathered rows.
func (w *Workspace) reserve() {
	c := &w.model.Config
	grow(&w.hidden, w.rows*c.Hidden)
	grow(&w.normed, w.rows*c.Hidden)
	grow(&w.query, w.rows*c.Heads*c.HeadDim)
	grow(&w.attended, w.rows*c.Heads*c.HeadDim)
	grow(&w.key, w.rows*c.KVHeads*c.HeadDim)
	grow(&w.value, w.rows*c.KVHeads*c.HeadDim)
	grow(&w.gate, w.rows*c.FeedForward)
	grow(&w.up, w.rows*c.FeedForward)
	if w.logits == nil {
		w.logits = make([]float32, outputRows*c.Vocabulary)
	}
}

// grow returns buf with room for n values; what it held may be lost.
func grow(buf *[]float32, n int) []float32 {
	if cap(*buf) < n {
		*buf = make([]float32, n)
	}
	*buf = (*buf)[:n]
	return *buf
}

// A rowsTask is work on activations row by row; an item is itemRows rows.
type rowsTask struct {
	w    *Workspace
	step step
}

type step int

const (
	normAttention step = iota
	storeKV
	normFeedForward
	swiGLU
)

const itemRows = 16

// each runs a step over all rows on the pool.
func (w *Workspace) each(s step) {
	w.rowsTask.step = s
	w.pool.Run((w.rows+itemRows-1)/itemRows, &w.rowsTask)
}

// Do runs the step for one item's rows.
func (t *rowsTask) Do(_, i int) {
	w, c := t.w, &t.w.model.Config
	l := &w.model.layers[w.layerIndex]
	from, to := i*itemRows, min((i+1)*itemRows, w.rows)
	switch t.step {
	case normAttention:
		kernel.RMSNorm(w.normed[from*c.Hidden:to*c.Hidden], w.hidden[from*c.Hidden:to*c.Hidden], l.attentionNorm, c.NormEpsilon)
	case normFeedForward:
		kernel.RMSNorm(w.normed[from*c.Hidden:to*c.Hidden], w.hidden[from*c.Hidden:to*c.Hidden], l.feedForwardNorm, c.NormEpsilon)
	case swiGLU:
		kernel.SwiGLU(w.gate[from*c.FeedForward:to*c.FeedForward], w.up[from*c.FeedForward:to*c.FeedForward])
	case storeKV:
		for p := range w.parts {
			w.store(l, &w.parts[p], from, to)
		}
	}
}

// store adds biases to keys and values of rows from … to-1 of the batch, as far as they belong to part p, turns
// the keys to their local positions and writes keys and values to the part's block.
func (w *Workspace) store(l *layer, p *part, from, to int) {
	c := &w.model.Config
	width := c.KVHeads * c.HeadDim
	block := p.seq.KV
	for row := max(from, p.row); row < min(to, p.row+p.rows); row++ {
		local := p.local + row - p.row
		k, v := w.key[row*width:][:width], w.value[row*width:][:width]
		if l.keyBias != nil {
			kernel.AddRows(k, l.keyBias)
		}
		if l.valueBias != nil {
			kernel.AddRows(v, l.valueBias)
		}
		w.model.rope.Turn(k, k, c.HeadDim, local, 1)
		for head := range c.KVHeads {
			at, _ := block.Shape.K(w.layerIndex, head)
			write(block, at, local, k[head*c.HeadDim:][:c.HeadDim])
			at, _ = block.Shape.V(w.layerIndex, head)
			write(block, at, local, v[head*c.HeadDim:][:c.HeadDim])
		}
	}
}

// write stores one token's values of one head in the K or V at byte at of the block's payload.
func write(b *KV, at, token int, values []float32) {
	numbers, scales := b.Shape.RowBytes()
	row := b.Payload[at+token*numbers:][:numbers]
	switch b.Shape.Type {
	case kv.F32:
		copy(kernel.Floats(row), values)
	case kv.F16:
		kernel.F32ToF16s(kernel.Halves(row), values)
	case kv.BF16:
		kernel.F32ToBF16s(kernel.Halves(row), values)
	case kv.Q8:
		at += b.Shape.Tokens*numbers + token*scales
		kernel.F32ToQ8s(kernel.Codes(row), kernel.Halves(b.Payload[at:][:scales]), values)
	}
}
