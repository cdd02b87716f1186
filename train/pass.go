package train

import (
	"github.com/tessera-llm/tessera/internal/kernel"
)

// A pass takes one sample through the network and back: forward, then what the loss makes of logits, then backward, each once. Its memory
// is that of the longest sample so far and serves all further ones; backward overwrites what forward kept. Where the activations of all
// layers would take more than limit, the layers share those of one, and backward computes each layer's anew from its input.
type pass struct {
	net             *network
	pool            *kernel.Pool
	gemms           kernel.Gemms
	list            []kernel.Gemm
	attend          attend
	task            rowsTask
	columns         columns
	objective       objective
	sum, divergence float64 // of the rows' losses, and of their divergences from the teacher

	tokens []int32
	places []int         // of the tokens in the prompt, see place
	base   bool          // forward goes without changes
	rows   []int         // whose logits are computed, each once; those with a gradient first
	frozen *frozenBlocks // nil: what is trained acts on all tokens
	reach  int           // the first token that it acts on; those before are frozen blocks'

	limit          int64 // bytes of activations; 0: none
	room, rowsRoom int   // tokens and rows that there is memory for
	shared         bool  // one layer's activations serve all
	layers         []activations
	output         []float32 // [T × C], the hidden state behind the last layer

	normed, dnormed         []float32     // [T × C]
	dx                      []float32     // [T × C], the gradient of the hidden state
	hidden                  []float32     // [T × F], silu(gate)·up; before that, on the way back, its gradient
	dquery, dattended       []float32     // [T × H·D]
	dkey, dvalue            []float32     // [T × G·D]
	scales                  []float32     // [T], what the norm last taken back multiplied rows by
	last, normedRows, dlast []float32     // [N × C]: the rows of output that are wanted, their norm, and its gradient
	logits                  []float32     // [N × V]; from the loss on, their gradient
	input                   kernel.Packed // the inputs of matrices whose gradients are computed
}

// activations are what the forward pass of a layer keeps for the way back.
type activations struct {
	input      []float32 // [T × C]
	query      []float32 // [T × H·D], turned
	key, value []float32 // [T × G·D], keys turned
	attended   []float32 // [T × H·D]
	logSum     []float32 // [T × H], log Σ e^score
	middle     []float32 // [T × C], between attention and feed-forward
	gate, up   []float32 // [T × F]; on the way back their gradients
}

func newPass(n *network, pool *kernel.Pool) *pass {
	p := &pass{net: n, pool: pool, layers: make([]activations, n.Layers)}
	p.attend.heads, p.attend.group, p.attend.dim = n.KVHeads, n.Heads/n.KVHeads, n.HeadDim
	p.task.pass = p
	if a := n.adapter; a != nil {
		p.attend.hide = a.HiddenSinks
	}
	if n.base != nil {
		p.frozen = newFrozenBlocks(n.base, pool.Threads())
	}
	return p
}

// A layout is the lengths of a pass's blocks: the independent ones, the link tokens of all passages in one, and the final ones.
type layout struct {
	blocks []int
	finals int // how many final blocks there are
	link   int // link tokens of each passage; 0: none, and no block of theirs
}

// alone is how many of the blocks are independent.
func (l *layout) alone() int {
	if l.link > 0 {
		return len(l.blocks) - l.finals - 1
	}
	return len(l.blocks) - l.finals
}

// forward computes the logits of rows of a prompt; rows with a gradient come first.
func (p *pass) forward(tokens []int32, l layout, rows []int) error {
	n := p.net
	p.tokens, p.rows, p.reach = tokens, rows, 0
	p.place(&l)
	if p.frozen != nil {
		before := l.blocks[:l.alone()]
		for _, length := range before {
			p.reach += length
		}
		if err := p.frozen.compute(tokens[:p.reach], p.places, before); err != nil {
			return err
		}
	}
	p.reserve()
	p.attend.plan(&l, p.reach, p.pool.Threads())
	n.turn.Reach(len(tokens))
	n.turnBack.Reach(len(tokens))
	p.each(embed, nil, &p.layers[0], nil)
	for i := range n.layers {
		p.forwardLayer(i)
	}
	c := n.Hidden
	for i, row := range rows {
		copy(p.last[i*c:][:c], p.output[row*c:][:c])
	}
	kernel.RMSNorm(p.normedRows[:len(rows)*c], p.last[:len(rows)*c], n.norm.value, n.NormEpsilon)
	p.multiplyRows(len(rows), p.normedRows, false, product{&n.output, p.logits})
	return nil
}

// place finds the tokens' places in the prompt: passages stand one behind the other, each with its link tokens, and every final block behind them
// as if it were the only one.
func (p *pass) place(l *layout) {
	p.places = p.places[:0]
	run := func(start, length int) {
		for at := range length {
			p.places = append(p.places, start+at)
		}
	}
	start, alone := 0, l.alone()
	for i, length := range l.blocks[:alone] {
		run(start, length)
		if start += length; i > 0 {
			start += l.link
		}
	}
	finals := l.blocks[alone:]
	if l.link > 0 {
		behind := l.blocks[0]
		for _, length := range l.blocks[1:alone] {
			run(behind+length, l.link)
			behind += length + l.link
		}
		finals = finals[1:]
	}
	for _, length := range finals {
		run(start, length)
	}
}

// forwardLayer fills a layer's activations from its input, and writes what it makes of that to the next layer's.
func (p *pass) forwardLayer(i int) {
	l, a := &p.net.layers[i], &p.layers[i]
	next := p.output
	if i+1 < len(p.layers) {
		next = p.layers[i+1].input
	}
	if p.reach > 0 {
		p.frozen.place(p.pool, i, a)
	}
	p.each(normAttention, l, a, nil)
	p.multiply(p.normed, false, product{&l.query, a.query}, product{&l.key, a.key}, product{&l.value, a.value})
	p.each(turn, l, a, nil)
	p.attend.forward(p.pool, a)
	p.multiply(a.attended, true, product{&l.attentionOut, a.middle})
	p.each(normFeedForward, l, a, nil)
	p.multiply(p.normed, false, product{&l.gate, a.gate}, product{&l.up, a.up})
	p.each(swiGLU, l, a, next)
	p.multiply(p.hidden, true, product{&l.down, next})
}

// backward adds to the gradients of what is trained, from that of the logits of the first rows, as many as wanted.
func (p *pass) backward(wanted int) {
	n, c := p.net, p.net.Hidden
	head := product{&n.output, p.logits}
	p.takeBack(wanted, p.dlast, head)
	p.addGradients(wanted, p.normedRows, head)
	rows := len(p.tokens) - p.reach
	reached := func(x []float32, width int) []float32 { return x[p.reach*width:] }
	clear(reached(p.dx, c)[:rows*c])
	for i, row := range p.rows[:wanted] {
		kernel.RMSNormGradient(p.dx[row*c:][:c], p.dlast[i*c:][:c], p.last[i*c:][:c], n.norm.value, p.scales[i:i+1], n.NormEpsilon)
	}
	p.addGains(&n.norm, wanted, p.last, p.dlast)
	dx, normed, dnormed, hidden := reached(p.dx, c), reached(p.normed, c), reached(p.dnormed, c), reached(p.hidden, n.FeedForward)
	query, key := n.Heads*n.HeadDim, n.KVHeads*n.HeadDim
	for i := len(n.layers) - 1; i >= 0; i-- {
		l, a := &n.layers[i], &p.layers[i]
		if p.shared && i < len(n.layers)-1 {
			p.forwardLayer(i)
		}
		down := product{&l.down, dx}
		p.takeBack(rows, hidden, down)
		p.each(swiGLUGradient, l, a, nil)
		p.addGradients(rows, hidden, down)
		gate, up := product{&l.gate, reached(a.gate, n.FeedForward)}, product{&l.up, reached(a.up, n.FeedForward)}
		p.takeBack(rows, dnormed, gate, up)
		p.addGradients(rows, normed, gate, up)
		p.each(normFeedForwardGradient, l, a, nil)
		p.addGains(&l.feedForwardNorm, rows, a.middle, p.dnormed)

		out := product{&l.attentionOut, dx}
		p.takeBack(rows, reached(p.dattended, query), out)
		p.addGradients(rows, reached(a.attended, query), out)
		p.attend.backward(p.pool, a, p.dattended, p.dquery, p.dkey, p.dvalue)
		p.each(turnBack, l, a, nil)
		inputs := []product{{&l.query, reached(p.dquery, query)}, {&l.key, reached(p.dkey, key)}, {&l.value, reached(p.dvalue, key)}}
		p.takeBack(rows, dnormed, inputs...)
		p.addGradients(rows, normed, inputs...)
		p.each(normAttentionGradient, l, a, nil)
		p.addGains(&l.attentionNorm, rows, a.input, p.dnormed)
	}
	if n.embeddingGrad != nil {
		p.eachColumns(columns{embedding: true})
	}
	for row, token := range p.tokens {
		if link := int(token) - n.Vocabulary; link >= 0 {
			addTo(n.linkGrad[link*c:][:c], p.dx[row*c:])
		}
	}
}

// A product is a matrix and its outputs [rows × out], or their gradient.
type product struct {
	l *linear
	y []float32
}

// multiply computes outputs of the tokens from reach on from x [T × in], or adds them to what is there.
func (p *pass) multiply(x []float32, add bool, list ...product) {
	for i, o := range list {
		list[i].y = o.y[p.reach*o.l.out:]
	}
	p.multiplyRows(len(p.tokens)-p.reach, x[p.reach*list[0].l.in:], add, list...)
}

// multiplyRows computes outputs of the first rows of x [rows × in], or adds them to what is there.
func (p *pass) multiplyRows(rows int, x []float32, add bool, list ...product) {
	for _, o := range list {
		if c := o.l.change; c != nil && !p.base {
			p.later(kernel.Gemm{Dst: c.u, Stride: c.rank, Rows: rows}, kernel.Term{A: rowMajor(x, o.l.in), B: &c.forwardA})
		}
	}
	p.run()
	for _, o := range list {
		g := kernel.Gemm{Dst: o.y, Stride: o.l.out, Rows: rows, Add: add}
		if c := o.l.change; c != nil && !p.base {
			p.later(g, kernel.Term{A: rowMajor(x, o.l.in), B: &o.l.forward}, kernel.Term{A: rowMajor(c.u, c.rank), B: &c.forwardB})
		} else {
			p.later(g, kernel.Term{A: rowMajor(x, o.l.in), B: &o.l.forward})
		}
	}
	p.run()
}

// takeBack writes the gradient dx [rows × in] of the common input of some matrices, from those of their outputs.
func (p *pass) takeBack(rows int, dx []float32, list ...product) {
	for _, o := range list {
		if c := o.l.change; c != nil {
			p.later(kernel.Gemm{Dst: c.du, Stride: c.rank, Rows: rows}, kernel.Term{A: rowMajor(o.y, o.l.out), B: &c.backwardB})
		}
	}
	p.run()
	g, n := kernel.Gemm{Dst: dx, Stride: list[0].l.in, Rows: rows}, 0
	for _, o := range list {
		g.Terms[n] = kernel.Term{A: rowMajor(o.y, o.l.out), B: &o.l.backward}
		n++
		if c := o.l.change; c != nil {
			g.Terms[n] = kernel.Term{A: rowMajor(c.du, c.rank), B: &c.backwardA}
			n++
		}
	}
	p.list = append(p.list, g)
	p.run()
}

// addGradients adds to the gradients of matrices, from those of their outputs and their common input x [rows × in]. It follows the
// takeBack of the same.
func (p *pass) addGradients(rows int, x []float32, list ...product) {
	packed := false
	for _, o := range list {
		l, c := o.l, o.l.change
		if l.grad == nil && c == nil {
			continue
		}
		if !packed {
			p.input.Pack(p.pool, rowMajor(x, l.in), rows, l.in)
			packed = true
		}
		if l.grad != nil {
			p.later(kernel.Gemm{Dst: l.grad, Stride: l.in, Rows: l.out, Add: true}, kernel.Term{A: rowMajor(o.y, l.out).T(), B: &p.input})
		}
		if c != nil {
			c.packedU.Pack(p.pool, rowMajor(c.u, c.rank), rows, c.rank)
			p.later(kernel.Gemm{Dst: c.da, Stride: l.in, Rows: c.rank, Add: true}, kernel.Term{A: rowMajor(c.du, c.rank).T(), B: &p.input})
			p.later(kernel.Gemm{Dst: c.db, Stride: c.rank, Rows: l.out, Add: true}, kernel.Term{A: rowMajor(o.y, l.out).T(), B: &c.packedU})
		}
	}
	p.run()
}

func rowMajor(x []float32, cols int) kernel.View { return kernel.View{Data: x, Row: cols, Col: 1} }

// later puts a product on the list of the next run.
func (p *pass) later(g kernel.Gemm, terms ...kernel.Term) {
	copy(g.Terms[:], terms)
	p.list = append(p.list, g)
}

func (p *pass) run() {
	if len(p.list) > 0 {
		p.gemms.Run(p.pool, p.list...)
	}
	p.list = p.list[:0]
}

// reserve makes room for the sample.
func (p *pass) reserve() {
	n := p.net
	if t := len(p.tokens); t > p.room {
		p.room, p.shared = t, p.limit > 0 && n.activationBytes(t, false) > p.limit
		query, key := n.Heads*n.HeadDim, n.KVHeads*n.HeadDim
		var wanted arena
		for i := range p.layers {
			a := &p.layers[i]
			wanted.add(&a.input, t*n.Hidden)
			if p.shared && i > 0 {
				continue
			}
			for _, part := range a.beside(n) {
				wanted.add(part.values, t*part.width)
			}
		}
		wanted.add(&p.output, t*n.Hidden).add(&p.normed, t*n.Hidden).add(&p.dnormed, t*n.Hidden).add(&p.dx, t*n.Hidden).
			add(&p.hidden, t*n.FeedForward).add(&p.dquery, t*query).add(&p.dattended, t*query).add(&p.dkey, t*key).add(&p.dvalue, t*key).
			add(&p.scales, t)
		for _, l := range n.trainable {
			if c := l.change; c != nil {
				wanted.add(&c.u, t*c.rank).add(&c.du, t*c.rank)
			}
		}
		wanted.take()
		if p.shared {
			for i := range p.layers[1:] {
				input := p.layers[i+1].input
				p.layers[i+1] = p.layers[0]
				p.layers[i+1].input = input
			}
		}
	}
	if rows := len(p.rows); rows > p.rowsRoom {
		p.rowsRoom = rows
		var wanted arena
		wanted.add(&p.last, rows*n.Hidden).add(&p.normedRows, rows*n.Hidden).add(&p.dlast, rows*n.Hidden).add(&p.logits, rows*n.Vocabulary)
		wanted.take()
	}
}

// An activation is one of a layer's, and how many values a token has in it.
type activation struct {
	values *[]float32
	width  int
}

// beside are what a layer keeps beside its input.
func (a *activations) beside(n *network) []activation {
	query, key := n.Heads*n.HeadDim, n.KVHeads*n.HeadDim
	return []activation{{&a.query, query}, {&a.key, key}, {&a.value, key}, {&a.attended, query}, {&a.logSum, n.Heads}, {&a.middle, n.Hidden}, {&a.gate, n.FeedForward}, {&a.up, n.FeedForward}}
}

// activationBytes is what the layers' activations of so many tokens take.
func (n *network) activationBytes(tokens int, shared bool) int64 {
	one := 0
	for _, part := range new(activations).beside(n) {
		one += part.width
	}
	if !shared {
		one *= n.Layers
	}
	return 4 * int64(tokens) * int64(n.Layers*n.Hidden+one)
}

// An arena is slices that are given memory in one piece.
type arena struct {
	slices []*[]float32
	sizes  []int
	total  int
}

func (a *arena) add(s *[]float32, n int) *arena {
	const line = 16 // floats of a cache line
	n = (n + line - 1) / line * line
	a.slices, a.sizes, a.total = append(a.slices, s), append(a.sizes, n), a.total+n
	return a
}

func (a *arena) take() {
	memory := kernel.Floats(kernel.Memory(4 * a.total))
	for i, s := range a.slices {
		*s, memory = memory[:a.sizes[i]:a.sizes[i]], memory[a.sizes[i]:]
	}
}

// A rowsTask is a stage of the pass that works on tokens one by one; an item is itemRows of them.
type rowsTask struct {
	*pass
	stage stage
	l     *layer
	a     *activations
	next  []float32 // what the layer's output goes to
}

type stage int

const (
	embed stage = iota
	normAttention
	turn
	normFeedForward
	swiGLU
	swiGLUGradient
	normFeedForwardGradient
	turnBack
	normAttentionGradient
)

const itemRows = 16

// each runs a stage for the tokens from reach on.
func (p *pass) each(s stage, l *layer, a *activations, next []float32) {
	t := &p.task
	t.stage, t.l, t.a, t.next = s, l, a, next
	p.pool.Run((len(p.tokens)-p.reach+itemRows-1)/itemRows, t)
}

// Do runs the stage for one item's rows.
func (t *rowsTask) Do(_, i int) {
	n, a := t.net, t.a
	c, f, query, key := n.Hidden, n.FeedForward, n.Heads*n.HeadDim, n.KVHeads*n.HeadDim
	from := t.reach + i*itemRows
	to := min(from+itemRows, len(t.tokens))
	rows := func(x []float32, width int) []float32 { return x[from*width : to*width] }
	switch t.stage {
	case embed:
		for row := from; row < to; row++ {
			n.embed(a.input[row*c:][:c], t.tokens[row])
		}
	case normAttention:
		kernel.RMSNorm(rows(t.normed, c), rows(a.input, c), t.l.attentionNorm.value, n.NormEpsilon)
		copy(rows(a.middle, c), rows(a.input, c))
	case turn:
		for row := from; row < to; row++ {
			q, k := a.query[row*query:][:query], a.key[row*key:][:key]
			n.turn.Turn(q, q, n.HeadDim, t.places[row], 1)
			n.turn.Turn(k, k, n.HeadDim, t.places[row], 1)
		}
	case normFeedForward:
		kernel.RMSNorm(rows(t.normed, c), rows(a.middle, c), t.l.feedForwardNorm.value, n.NormEpsilon)
	case swiGLU:
		copy(rows(t.hidden, f), rows(a.gate, f))
		kernel.SwiGLU(rows(t.hidden, f), rows(a.up, f))
		copy(rows(t.next, c), rows(a.middle, c))
	case swiGLUGradient:
		kernel.SwiGLUGradient(rows(a.gate, f), rows(a.up, f), rows(t.hidden, f))
		kernel.RMSNorm(rows(t.normed, c), rows(a.middle, c), t.l.feedForwardNorm.value, n.NormEpsilon)
	case normFeedForwardGradient:
		kernel.RMSNormGradient(rows(t.dx, c), rows(t.dnormed, c), rows(a.middle, c), t.l.feedForwardNorm.value, rows(t.scales, 1), n.NormEpsilon)
	case turnBack:
		for row := from; row < to; row++ {
			q, k := t.dquery[row*query:][:query], t.dkey[row*key:][:key]
			n.turnBack.Turn(q, q, n.HeadDim, t.places[row], 1)
			n.turnBack.Turn(k, k, n.HeadDim, t.places[row], 1)
		}
		kernel.RMSNorm(rows(t.normed, c), rows(a.input, c), t.l.attentionNorm.value, n.NormEpsilon)
	case normAttentionGradient:
		kernel.RMSNormGradient(rows(t.dx, c), rows(t.dnormed, c), rows(a.input, c), t.l.attentionNorm.value, rows(t.scales, 1), n.NormEpsilon)
	}
}

// columns is a sum over rows, in their order, an item being itemColumns columns of C: the gradient of a norm's gains, or of the embedding.
type columns struct {
	*pass
	embedding bool
	gains     *vector
	rows      int
	x, dy     []float32 // the norm's input and its output's gradient
}

const itemColumns = 64

// addGains adds to the gradient of a norm's gains, from its input and its output's gradient. It follows RMSNormGradient of the same.
func (p *pass) addGains(v *vector, rows int, x, dy []float32) {
	if v.grad != nil {
		p.eachColumns(columns{gains: v, rows: rows, x: x, dy: dy})
	}
}

func (p *pass) eachColumns(t columns) {
	p.columns, p.columns.pass = t, p
	p.pool.Run((p.net.Hidden+itemColumns-1)/itemColumns, &p.columns)
}

func (t *columns) Do(_, i int) {
	c := t.net.Hidden
	from, to := i*itemColumns, min((i+1)*itemColumns, c)
	if t.embedding {
		for row, token := range t.tokens {
			addTo(t.net.embeddingGrad[int(token)*c:][from:to], t.dx[row*c+from:])
		}
		return
	}
	grad := t.gains.grad[from:to]
	for row := range t.rows {
		x, dy, scale := t.x[row*c:][from:to], t.dy[row*c:][from:to], t.scales[row]
		for j := range grad {
			grad[j] += dy[j] * x[j] * scale
		}
	}
}
