package train

import (
	"context"

	"github.com/tessera-llm/tessera/attention"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
)

// frozenBlocks are the blocks before the final ones where what is trained acts on final blocks alone. Nothing that is trained has a say in their
// keys and values, and no gradient is wanted of them: so they are computed as inference computes them, by the model's kernels, in the mode of the
// pass.
type frozenBlocks struct {
	model     *model.Model
	workspace *model.Workspace
	shift     *attention.Table // from a block's own positions to the prompt's; keys have the embedding's magnitude already
	batch     []model.Sequence
	starts    []int // their first tokens
	places    []int // of all tokens in the prompt
	memory    []byte
	to        *activations
	layer     int
}

func newFrozenBlocks(m *model.Model, threads int) *frozenBlocks {
	return &frozenBlocks{model: m, workspace: m.NewWorkspace(threads), shift: attention.NewTable(attention.RoPE{Freqs: m.RoPE().Freqs, Magnitude: 1})}
}

// compute computes the blocks of such lengths that tokens are, each by itself, for their places in the prompt.
func (b *frozenBlocks) compute(tokens []int32, places, lengths []int) error {
	b.batch, b.starts, b.places = b.batch[:0], b.starts[:0], places
	if len(tokens) > 0 {
		b.shift.Reach(places[len(tokens)-1] + 1)
	}
	size := 0
	for _, n := range lengths {
		size += b.model.KVShape(kv.F32, n).Bytes()
	}
	if size > len(b.memory) {
		b.memory = kv.Alloc(size)
	}
	start, free := 0, b.memory
	for _, n := range lengths {
		shape := b.model.KVShape(kv.F32, n)
		b.batch = append(b.batch, model.Sequence{Tokens: tokens[start : start+n], KV: &model.KV{Shape: shape, Payload: free[:shape.Bytes()]}})
		b.starts = append(b.starts, start)
		start, free = start+n, free[shape.Bytes():]
	}
	return b.workspace.Forward(context.Background(), b.batch, nil)
}

// place writes the keys and values of a layer to the first rows of its activations, keys turned to their places in the prompt.
func (b *frozenBlocks) place(pool *kernel.Pool, layer int, to *activations) {
	b.layer, b.to = layer, to
	pool.Run(len(b.batch)*b.model.KVHeads, b)
}

// Do places one block's keys and values of one head.
func (b *frozenBlocks) Do(_, i int) {
	block, head := i/b.model.KVHeads, i%b.model.KVHeads
	from, start, d, width := b.batch[block].KV, b.starts[block], b.model.HeadDim, b.model.KVHeads*b.model.HeadDim
	keysAt, _ := from.Shape.K(b.layer, head)
	valuesAt, _ := from.Shape.V(b.layer, head)
	keys, values := kernel.Floats(from.Payload[keysAt:][:4*d*from.Len]), kernel.Floats(from.Payload[valuesAt:][:4*d*from.Len])
	for row := range from.Len {
		at := (start+row)*width + head*d
		b.shift.Turn(b.to.key[at:][:d], keys[row*d:][:d], d, b.places[start], 1)
		copy(b.to.value[at:][:d], values[row*d:])
	}
}
