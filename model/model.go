// Package model is the transformer: token ids, weights and the keys and values of earlier blocks go in, logits and the
// keys and values of new tokens come out. Forward is the one way through it, for a whole batch of sequences.
//
// Letters: T tokens of a batch, C values of the hidden state, H query heads, G KV heads, D values a head, F values of the
// feed-forward layer, V tokens of the vocabulary. Activations are float32, row-major, one row a token.
package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"

	"github.com/tessera-llm/tessera/attention"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/weights"
)

// A Model is the weights of one file, used in place and never written: any number of Workspaces compute with it at once.
// The file must stay open as long as the Model is used.
type Model struct {
	Config

	rope   *attention.Table
	angles attention.RoPE

	finalOnly   bool        // the adapter acts on final blocks alone
	hiddenSinks int         // tokens at the start of blocks computed alone, but for the prompt's first, that later blocks do not see
	links       [][]float32 // [C] each: embeddings of tokens beyond the vocabulary, which the adapter wants behind passages

	embedding kernel.Matrix // [V × C]
	layers    []layer
	norm      []float32     // [C]
	output    kernel.Matrix // [V × C], the embedding itself where the file ties them

	perToken float64 // floating-point operations of the layers' matrices
}

// Config is the shape of a model.
type Config struct {
	Architecture string
	Layers       int
	Hidden       int // C
	Heads        int // H
	KVHeads      int // G
	HeadDim      int // D
	FeedForward  int // F
	Vocabulary   int // V
	Context      int // positions the model was trained for
	NormEpsilon  float32
}

// layer is one transformer block: attention and feed-forward, each after a norm and added to the hidden state.
type layer struct {
	attentionNorm, feedForwardNorm []float32 // [C]
	query, key, value              linear
	queryBias, keyBias, valueBias  []float32 // nil where the model has none
	attentionOut                   linear
	attentionOutBias               []float32
	gate, up, down                 linear
}

// linear is a matrix, and what an adapter adds beside it.
type linear struct {
	kernel.Matrix
	low *kernel.LowRank // nil: nothing
}

// linears are a layer's matrices by the names that the file has for them.
func (l *layer) linears() map[string]*linear {
	return map[string]*linear{
		"attn_q": &l.query, "attn_k": &l.key, "attn_v": &l.value, "attn_output": &l.attentionOut,
		"ffn_gate": &l.gate, "ffn_up": &l.up, "ffn_down": &l.down,
	}
}

// New reads the shape from the file's metadata and finds every tensor of it. A model that this code would compute
// wrongly is an error: an unknown architecture or RoPE scaling, a tensor of the wrong shape, missing or left over.
func New(file *weights.File) (*Model, error) {
	r := &reader{file: file, left: map[string]bool{}}
	for _, t := range file.Tensors() {
		r.left[t.Name] = true
	}
	m := &Model{}
	r.config(&m.Config)
	if r.err == nil {
		m.angles = r.rope(&m.Config)
	}
	if r.err == nil {
		r.tensors(m)
	}
	if err := file.Err(); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, fmt.Errorf("%s: %w", file.Path(), r.err)
	}
	m.rope = attention.NewTable(m.angles)
	m.pack(m.matrices())
	m.count()
	return m, nil
}

// matrices are those that tokens are multiplied with. The embedding is looked up row by row, from the file; where it is the output head
// too, that is a packed copy.
func (m *Model) matrices() []*kernel.Matrix {
	all := []*kernel.Matrix{&m.output}
	for i := range m.layers {
		l := &m.layers[i]
		all = append(all, &l.query.Matrix, &l.key.Matrix, &l.value.Matrix, &l.attentionOut.Matrix, &l.gate.Matrix, &l.up.Matrix, &l.down.Matrix)
	}
	return all
}

// pack lays matrices out for this CPU's kernels, all in one piece of memory.
func (m *Model) pack(all []*kernel.Matrix) {
	total := 0
	for _, w := range all {
		total += w.PackedBytes()
	}
	memory := kernel.Memory(total)
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	for _, w := range all {
		n := w.PackedBytes()
		w.Pack(pool, memory[:n])
		memory = memory[n:]
	}
}

// KVShape is the shape of a block of n tokens.
func (m *Model) KVShape(t kv.Type, n int) kv.Shape {
	return kv.Shape{Type: t, Layers: m.Layers, Heads: m.KVHeads, Dim: m.HeadDim, Tokens: n}
}

// RoPEBytes is the position embedding in the canonical form that block ids cover: magnitude and frequencies as
// little-endian float64.
func (m *Model) RoPEBytes() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, m.angles.Magnitude) // writing to memory cannot fail
	_ = binary.Write(&b, binary.LittleEndian, m.angles.Freqs)
	return b.Bytes()
}

// RoPE is the position embedding.
func (m *Model) RoPE() attention.RoPE { return m.angles }

// FLOPs counts floating-point operations of prefilling n tokens that come after before others in what they attend to:
// 2 for each matrix weight that a token passes, and 4·D for each query head, attended position and layer.
func (m *Model) FLOPs(n, before int) (matrices, attention float64) {
	positions := float64(n)*float64(before) + float64(n)*float64(n+1)/2
	return m.perToken * float64(n), 4 * float64(m.HeadDim*m.Heads*m.Layers) * positions
}

// count sets perToken.
func (m *Model) count() {
	m.perToken = 0
	for i := range m.layers {
		for _, w := range m.layers[i].linears() {
			m.perToken += 2 * float64(w.Rows) * float64(w.Cols)
			if w.low != nil {
				m.perToken += 2 * float64(w.low.A.Rows) * float64(w.Rows+w.Cols)
			}
		}
	}
}

// OutputFLOPs counts the operations of the output head for one token.
func (m *Model) OutputFLOPs() float64 { return 2 * float64(m.output.Rows) * float64(m.output.Cols) }

// reader collects a model from a file; the first problem stays in err.
type reader struct {
	file *weights.File
	left map[string]bool // tensors that nobody asked for yet
	err  error
}

func (r *reader) config(c *Config) {
	c.Architecture = r.file.Architecture()
	if c.Architecture != "llama" {
		r.fail("general.architecture is %q; this version runs %q", c.Architecture, "llama")
		return
	}
	if n, ok := r.file.Uint("llama.expert_count"); ok && n > 0 {
		r.fail("llama.expert_count is %d; mixtures of experts are not supported", n)
		return
	}
	c.Layers = r.size("llama.block_count", 0)
	c.Hidden = r.size("llama.embedding_length", 0)
	c.FeedForward = r.size("llama.feed_forward_length", 0)
	c.Heads = r.size("llama.attention.head_count", 0)
	c.KVHeads = r.size("llama.attention.head_count_kv", c.Heads)
	c.Context = r.size("llama.context_length", 0)
	if r.err != nil {
		return
	}
	if c.Heads%c.KVHeads != 0 {
		r.fail("llama.attention.head_count is %d, not a multiple of head_count_kv, %d", c.Heads, c.KVHeads)
		return
	}
	c.HeadDim = r.size("llama.attention.key_length", c.Hidden/c.Heads)
	if v := r.size("llama.attention.value_length", c.HeadDim); r.err == nil && v != c.HeadDim {
		r.fail("llama.attention.value_length is %d and key_length %d; they must be equal", v, c.HeadDim)
		return
	}
	eps := r.number("llama.attention.layer_norm_rms_epsilon", math.NaN())
	if !(eps >= 0) {
		r.fail("llama.attention.layer_norm_rms_epsilon is missing or not a number of at least 0")
		return
	}
	c.NormEpsilon = float32(eps)
	embedding, ok := r.file.Tensor("token_embd.weight")
	if !ok || len(embedding.Shape) != 2 {
		r.fail("tensor token_embd.weight is missing or not a matrix")
		return
	}
	c.Vocabulary = embedding.Shape[1]
}

// rope reads the position embedding. Scaling that changes with the length of the input (dynamic NTK) cannot be served
// from stored keys and is refused, as is any scaling this code does not know.
func (r *reader) rope(c *Config) attention.RoPE {
	dims := r.size("llama.rope.dimension_count", c.HeadDim)
	base := r.number("llama.rope.freq_base", 10000)
	if r.err != nil {
		return attention.RoPE{}
	}
	if dims > c.HeadDim || dims%2 != 0 || !(base > 0) {
		r.fail("llama.rope.dimension_count is %d and freq_base %g; want an even number up to %d and a positive base", dims, base, c.HeadDim)
		return attention.RoPE{}
	}
	rope := attention.Plain(dims, base)
	factor := r.number("llama.rope.scaling.factor", r.number("llama.rope.scale_linear", 1))
	kind, named := r.file.String("llama.rope.scaling.type")
	if !named && factor != 1 {
		kind = "linear" // as older files have it
	}
	if !(factor > 0) {
		r.fail("llama.rope.scaling.factor is %g, not a positive number", factor)
		return rope
	}
	switch kind {
	case "", "none":
	case "linear":
		rope = rope.Linear(factor)
	case "yarn":
		context := r.size("llama.rope.scaling.original_context_length", c.Context)
		rope = rope.YaRN(base, factor, context, r.number("llama.rope.scaling.yarn_beta_fast", 32), r.number("llama.rope.scaling.yarn_beta_slow", 1))
	default:
		r.fail("llama.rope.scaling.type is %q; known are none, linear and yarn, whose frequencies are fixed when the model is loaded", kind)
		return rope
	}
	rope.Magnitude *= r.number("llama.rope.scaling.attn_factor", 1)
	if _, ok := r.file.Tensor("rope_freqs.weight"); ok { // Llama 3's scaling
		var err error
		if rope, err = rope.Factors(r.vector("rope_freqs.weight", dims/2)); err != nil {
			r.fail("tensor rope_freqs.weight: %w", err)
		}
	}
	return rope
}

func (r *reader) tensors(m *Model) {
	c := &m.Config
	m.embedding = r.matrix("token_embd.weight", c.Vocabulary, c.Hidden)
	m.output = m.embedding
	if _, ok := r.file.Tensor("output.weight"); ok {
		m.output = r.matrix("output.weight", c.Vocabulary, c.Hidden)
	}
	m.norm = r.vector("output_norm.weight", c.Hidden)
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	for i := 0; i < c.Layers && r.err == nil; i++ {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s", i, s) }
		m.layers = append(m.layers, layer{
			attentionNorm:    r.vector(name("attn_norm.weight"), c.Hidden),
			query:            linear{Matrix: r.matrix(name("attn_q.weight"), q, c.Hidden)},
			key:              linear{Matrix: r.matrix(name("attn_k.weight"), kv, c.Hidden)},
			value:            linear{Matrix: r.matrix(name("attn_v.weight"), kv, c.Hidden)},
			queryBias:        r.optional(name("attn_q.bias"), q),
			keyBias:          r.optional(name("attn_k.bias"), kv),
			valueBias:        r.optional(name("attn_v.bias"), kv),
			attentionOut:     linear{Matrix: r.matrix(name("attn_output.weight"), c.Hidden, q)},
			attentionOutBias: r.optional(name("attn_output.bias"), c.Hidden),
			feedForwardNorm:  r.vector(name("ffn_norm.weight"), c.Hidden),
			gate:             linear{Matrix: r.matrix(name("ffn_gate.weight"), c.FeedForward, c.Hidden)},
			up:               linear{Matrix: r.matrix(name("ffn_up.weight"), c.FeedForward, c.Hidden)},
			down:             linear{Matrix: r.matrix(name("ffn_down.weight"), c.Hidden, c.FeedForward)},
		})
	}
	if r.err == nil {
		for _, t := range r.file.Tensors() {
			if r.left[t.Name] {
				r.fail("tensor %s has no place in a llama model of %d layers: computing without it would be wrong", t.Name, c.Layers)
				return
			}
		}
	}
}

// matrix returns a tensor of rows × cols in place.
func (r *reader) matrix(name string, rows, cols int) kernel.Matrix {
	t, ok := r.take(name, cols, rows)
	if !ok {
		return kernel.Matrix{}
	}
	m, err := kernel.NewMatrix(t.Type, rows, cols, t.Data)
	if err != nil {
		r.fail("tensor %s: %w", name, err)
	}
	return m
}

// vector returns a tensor of n values as float32.
func (r *reader) vector(name string, n int) []float32 {
	t, ok := r.take(name, n)
	if !ok {
		return make([]float32, n)
	}
	m, err := kernel.NewMatrix(t.Type, 1, n, t.Data)
	if err != nil {
		r.fail("tensor %s: %w", name, err)
		return make([]float32, n)
	}
	v := make([]float32, n)
	m.Row(v, 0)
	return v
}

func (r *reader) optional(name string, n int) []float32 {
	if _, ok := r.file.Tensor(name); !ok {
		return nil
	}
	return r.vector(name, n)
}

func (r *reader) take(name string, shape ...int) (weights.Tensor, bool) {
	t, ok := r.file.Tensor(name)
	if !ok {
		r.fail("tensor %s is missing", name)
		return t, false
	}
	delete(r.left, name)
	if fmt.Sprint(t.Shape) != fmt.Sprint(shape) {
		r.fail("tensor %s has shape %v; the metadata asks for %v", name, t.Shape, shape)
		return t, false
	}
	return t, true
}

// size reads a positive integer; fallback 0 means that the key must be there.
func (r *reader) size(key string, fallback int) int {
	n, ok := r.file.Uint(key)
	switch {
	case !ok && fallback > 0:
		return fallback
	case !ok:
		r.fail("metadata %s is missing or no whole number", key)
		return 1
	case n == 0 || n > 1<<30:
		r.fail("metadata %s is %d; want 1 to %d", key, n, 1<<30)
		return 1
	}
	return int(n)
}

func (r *reader) number(key string, fallback float64) float64 {
	if f, ok := r.file.Float(key); ok {
		return f
	}
	return fallback
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}
