package train

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/attention"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/weights"
)

// A network is the weights of a model, in float32, laid out for products in both directions. What of it is trained lies in params, and
// repack brings the layouts up to date after those changed.
type network struct {
	model.Config
	turn, turnBack *attention.Table

	embedding kernel.Matrix // [V × C], in the file's type; used where the embedding is frozen
	layers    []layer
	norm      vector
	output    linear // [V × C]; the embedding itself where the file ties them
	params    params
	trainable []*linear // with values or a change of their own, in the order of the network

	// Gradients and values of the embedding where it is trained, [V × C]; those of output where the file ties them.
	embeddingValue, embeddingGrad []float32

	link                int       // tokens of the adapter behind each passage in block mode; their ids come after the vocabulary's
	linkValue, linkGrad []float32 // [link × C]

	adapter *weights.Adapter // as it was given; nil: the base is trained
	base    *model.Model     // the model without it, for inference; nil unless the adapter acts on final blocks alone
	scaled  []float32        // scratch memory of repack
}

type layer struct {
	attentionNorm, feedForwardNorm                  vector
	query, key, value, attentionOut, gate, up, down linear
}

// A vector is the gains of a norm, [C].
type vector struct {
	value []float32
	grad  []float32 // nil where it is frozen
}

// A linear is y = W·x, with a change y = W·x + scale·B·(A·x) where an adapter has one.
type linear struct {
	name        string
	out, in     int
	forward     kernel.Packed // Wᵀ [in × out]
	backward    kernel.Packed // W [out × in]
	value, grad []float32     // W [out × in]; nil where it is frozen
	change      *change
}

// A change is the two matrices of a LoRA, and what a pass keeps of them. The scale is in u and du.
type change struct {
	rank      int
	scale     float32
	a, da     []float32 // [rank × in]
	b, db     []float32 // [out × rank]
	forwardA  kernel.Packed
	forwardB  kernel.Packed
	backwardA kernel.Packed
	backwardB kernel.Packed
	u, du     []float32     // [T × rank]: scale·A·x, and the gradient of A·x, of the tokens that the adapter reaches
	packedU   kernel.Packed // [T × rank]
}

// params are the tensors that are trained, one after the other in one piece of memory each for values, gradients and AdamW's moments.
type params struct {
	list                         []param
	values, grads, first, second []float32
}

type param struct {
	name     string
	shape    []int // the last dimension is contiguous
	from, to int
}

// tensor returns the values and the gradient of a tensor that is trained, or nil.
func (p *params) tensor(name string) (value, grad []float32) {
	for _, t := range p.list {
		if t.name == name {
			return p.values[t.from:t.to:t.to], p.grads[t.from:t.to:t.to]
		}
	}
	return nil, nil
}

// newNetwork reads the model in file. With an adapter, the base is frozen and the adapter's matrices are trained; without one, the base is.
func newNetwork(file *weights.File, adapter *weights.Adapter, pool *kernel.Pool) (*network, error) {
	m, err := model.New(file) // which checks the shape, and that every tensor has its place
	if err != nil {
		return nil, err
	}
	for _, t := range file.Tensors() {
		if strings.HasSuffix(t.Name, ".bias") {
			return nil, file.Errorf("tensor "+t.Name, "is a bias; models with biases cannot be trained yet")
		}
	}
	rope := m.RoPE()
	back := attention.RoPE{Freqs: slices.Clone(rope.Freqs), Magnitude: rope.Magnitude}
	for i := range back.Freqs {
		back.Freqs[i] = -back.Freqs[i]
	}
	n := &network{Config: m.Config, turn: attention.NewTable(rope), turnBack: attention.NewTable(back), layers: make([]layer, m.Layers), adapter: adapter}
	if adapter != nil && adapter.FinalOnly {
		n.base = m
	}
	if adapter != nil {
		n.link = len(adapter.LinkTokens)
	}
	r := &loader{network: n, file: file, pool: pool}
	r.allocate()
	r.load()
	if adapter != nil && len(n.trainable) != len(adapter.Changes) {
		return nil, fmt.Errorf("%s: the adapter changes %d matrices, of which %d are a layer's; others cannot be trained", file.Path(), len(adapter.Changes), len(n.trainable))
	}
	return n, nil
}

// weightsBytes is the least memory that a network takes for weights in both layouts, and for values, gradients and moments of what is trained.
func weightsBytes(file *weights.File, adapter *weights.Adapter) (bytes int64) {
	_, untied := file.Tensor("output.weight")
	for _, t := range file.Tensors() {
		values := int64(1)
		for _, n := range t.Shape {
			values *= int64(n)
		}
		if len(t.Shape) == 2 && !(untied && t.Name == "token_embd.weight") {
			bytes += 2 * 4 * values
		}
		if adapter == nil {
			bytes += 4 * 4 * values
		}
	}
	if adapter != nil {
		for _, c := range adapter.Changes {
			bytes += (2*4 + 4*4) * int64(c.Rank) * int64(c.In+c.Out)
		}
	}
	return bytes
}

// loader fills a network.
type loader struct {
	*network
	file   *weights.File
	pool   *kernel.Pool
	floats []float32 // of the tensor that is read
}

// allocate lists what is trained and takes the memory for it.
func (r *loader) allocate() {
	p := &r.params
	size := 0
	add := func(name string, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		p.list = append(p.list, param{name, shape, size, size + n})
		size += n
	}
	if r.adapter == nil {
		for _, t := range r.file.Tensors() {
			if t.Name == ropeFactors {
				continue // no weights, but the frequencies of the position embedding
			}
			shape := slices.Clone(t.Shape)
			slices.Reverse(shape)
			add(t.Name, shape...)
		}
	} else {
		for _, c := range r.adapter.Changes {
			add(c.Tensor+".lora_a", c.Rank, c.In)
			add(c.Tensor+".lora_b", c.Out, c.Rank)
		}
		if r.link > 0 {
			add(linkTokens, r.link, r.Hidden)
		}
	}
	for _, s := range []*[]float32{&p.values, &p.grads, &p.first, &p.second} {
		*s = kernel.Floats(kernel.Memory(4 * size))
	}
}

const (
	ropeFactors = "rope_freqs.weight"
	linkTokens  = "link_tokens"
)

// load reads all tensors.
func (r *loader) load() {
	n := r.network
	for i := range n.layers {
		l := &n.layers[i]
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s.weight", i, s) }
		l.attentionNorm, l.feedForwardNorm = r.vector(name("attn_norm")), r.vector(name("ffn_norm"))
		for _, m := range []struct {
			l *linear
			s string
		}{{&l.query, "attn_q"}, {&l.key, "attn_k"}, {&l.value, "attn_v"}, {&l.attentionOut, "attn_output"}, {&l.gate, "ffn_gate"}, {&l.up, "ffn_up"}, {&l.down, "ffn_down"}} {
			r.linear(m.l, name(m.s))
		}
	}
	n.norm = r.vector("output_norm.weight")
	head := "output.weight"
	if _, ok := r.file.Tensor(head); !ok {
		head = "token_embd.weight"
	}
	r.linear(&n.output, head)
	if r.adapter == nil {
		n.embeddingValue, n.embeddingGrad = r.params.tensor("token_embd.weight")
		if head != "token_embd.weight" {
			copy(n.embeddingValue, r.read("token_embd.weight"))
		}
	} else {
		t, _ := r.file.Tensor("token_embd.weight")
		n.embedding, _ = kernel.NewMatrix(t.Type, n.Vocabulary, n.Hidden, slices.Clone(t.Data)) // model.New checked it
		n.linkValue, n.linkGrad = r.params.tensor(linkTokens)
		copy(n.linkValue, slices.Concat(r.adapter.LinkTokens...))
	}
	n.repack(r.pool)
}

// read returns the values of a tensor, until the next read.
func (r *loader) read(name string) []float32 {
	t, _ := r.file.Tensor(name) // model.New found it
	n := len(t.Data) / t.Type.BlockBytes() * t.Type.BlockLen()
	if cap(r.floats) < n {
		r.floats = make([]float32, n)
	}
	kernel.Dequantize(t.Type, r.floats[:n], t.Data)
	return r.floats[:n]
}

func (r *loader) vector(name string) vector {
	value, grad := r.params.tensor(name)
	if value == nil {
		value = make([]float32, r.Hidden)
	}
	copy(value, r.read(name))
	return vector{value, grad}
}

func (r *loader) linear(l *linear, name string) {
	t, _ := r.file.Tensor(name)
	l.name, l.in, l.out = name, t.Shape[0], t.Shape[1]
	values := r.read(name)
	if l.value, l.grad = r.params.tensor(name); l.value != nil {
		copy(l.value, values)
	} else {
		l.pack(r.pool, values)
	}
	if r.adapter != nil && l != &r.output {
		if i := slices.IndexFunc(r.adapter.Changes, func(c weights.Change) bool { return c.Tensor == name }); i >= 0 {
			from := &r.adapter.Changes[i]
			c := &change{rank: from.Rank, scale: r.adapter.Scale(from)}
			c.a, c.da = r.params.tensor(name + ".lora_a")
			c.b, c.db = r.params.tensor(name + ".lora_b")
			copy(c.a, from.A)
			copy(c.b, from.B)
			l.change = c
		}
	}
	if l.value != nil || l.change != nil {
		r.trainable = append(r.trainable, l)
	}
}

func (l *linear) pack(pool *kernel.Pool, w []float32) {
	view := kernel.View{Data: w, Row: l.in, Col: 1}
	l.forward.Pack(pool, view.T(), l.in, l.out)
	l.backward.Pack(pool, view, l.out, l.in)
}

// repack brings the layouts for products up to the values in params.
func (n *network) repack(pool *kernel.Pool) {
	for _, l := range n.trainable {
		if l.value != nil {
			l.pack(pool, l.value)
		}
		if c := l.change; c != nil {
			a, b := kernel.View{Data: c.a, Row: l.in, Col: 1}, kernel.View{Data: c.b, Row: c.rank, Col: 1}
			c.backwardA.Pack(pool, a, c.rank, l.in)
			c.forwardB.Pack(pool, b.T(), c.rank, l.out)
			c.forwardA.Pack(pool, kernel.View{Data: n.times(c.a, c.scale), Row: l.in, Col: 1}.T(), l.in, c.rank)
			c.backwardB.Pack(pool, kernel.View{Data: n.times(c.b, c.scale), Row: c.rank, Col: 1}, l.out, c.rank)
		}
	}
}

// times returns scale·x, until the next call.
func (n *network) times(x []float32, scale float32) []float32 {
	if cap(n.scaled) < len(x) {
		n.scaled = make([]float32, len(x))
	}
	for i, v := range x {
		n.scaled[:len(x)][i] = v * scale
	}
	return n.scaled[:len(x)]
}

// embed writes the embedding of a token to dst.
func (n *network) embed(dst []float32, token int32) {
	if link := int(token) - n.Vocabulary; link >= 0 {
		copy(dst, n.linkValue[link*n.Hidden:][:n.Hidden])
		return
	}
	if n.embeddingValue != nil {
		copy(dst, n.embeddingValue[int(token)*n.Hidden:][:n.Hidden])
		return
	}
	n.embedding.Row(dst, int(token))
}

// adapterNow is the adapter with its present values, or nil where the base is trained.
func (n *network) adapterNow() *weights.Adapter {
	if n.adapter == nil {
		return nil
	}
	now := &weights.Adapter{Architecture: n.adapter.Architecture, Alpha: n.adapter.Alpha, FinalOnly: n.adapter.FinalOnly, HiddenSinks: n.adapter.HiddenSinks, Changes: slices.Clone(n.adapter.Changes)}
	if n.link > 0 {
		now.LinkTokens = slices.Collect(slices.Chunk(slices.Clone(n.linkValue), n.Hidden))
	}
	for i := range now.Changes {
		c := &now.Changes[i]
		a, b := n.params.list[2*i], n.params.list[2*i+1]
		c.A, c.B = slices.Clone(n.params.values[a.from:a.to]), slices.Clone(n.params.values[b.from:b.to])
	}
	return now
}
