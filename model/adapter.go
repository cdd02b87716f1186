package model

import (
	"fmt"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

// lowRank is what an adapter adds to y = W·x: y += B·(A·x), the adapter's scale in B.
//
// B's rows are short, and its type wants a block of them at least. So fold rows share one: row j of b is rows j, j+out/fold … of B side by side, and
// what it is multiplied with is A·x once for each of them, at its place in a row that is zero elsewhere. The outputs, out/fold for each such row, are
// y as it lies.
type lowRank struct {
	a, b kernel.Matrix // [R × in], [out/fold × columns]
	fold int
}

// WithAdapter returns the model with the adapter beside its weights, which both models share. An adapter that changes what this code cannot
// change is an error.
func (m *Model) WithAdapter(a *weights.Adapter) (*Model, error) {
	adapted := *m
	adapted.finalOnly, adapted.hiddenSinks, adapted.links = a.FinalOnly, a.HiddenSinks, a.LinkTokens
	for _, token := range a.LinkTokens {
		if len(token) != m.Hidden {
			return nil, fmt.Errorf("the adapter's link tokens have %d values, the model's tokens %d", len(token), m.Hidden)
		}
	}
	adapted.layers = append([]layer(nil), m.layers...)
	places := map[string]*linear{}
	for i := range adapted.layers {
		for name, l := range adapted.layers[i].linears() {
			places[fmt.Sprintf("blk.%d.%s.weight", i, name)] = l
		}
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		l := places[c.Tensor]
		if l == nil {
			return nil, fmt.Errorf("the adapter changes %s; this version applies changes to a layer's attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up and ffn_down", c.Tensor)
		}
		if c.In != l.Cols || c.Out != l.Rows {
			return nil, fmt.Errorf("the adapter's change to %s is %d × %d, the matrix %d × %d", c.Tensor, c.Out, c.In, l.Rows, l.Cols)
		}
		low, err := newLowRank(c, a.Scale(c), l.Type)
		if err != nil {
			return nil, fmt.Errorf("the adapter's change to %s: %w", c.Tensor, err)
		}
		l.low = low
	}
	adapted.pack(adapted.lowRanks())
	adapted.count()
	return &adapted, nil
}

// newLowRank lays out a change to a matrix of type t. Beside quantized weights it is kept in 8 bits, a tenth of what those have lost: adapters
// are read whole for every token, and should take little beside the weights. Elsewhere it is kept exactly.
func newLowRank(c *weights.Change, scale float32, t kernel.Type) (*lowRank, error) {
	low := &lowRank{fold: 1}
	stored, columns := kernel.F32, c.Rank
	if t != kernel.F32 && t != kernel.F16 && t != kernel.BF16 && c.In%kernel.Q8_0.BlockLen() == 0 {
		stored = kernel.Q8_0
		block := stored.BlockLen()
		columns = (c.Rank + block - 1) / block * block // zeros behind
		if fold := block / c.Rank; fold > 1 && c.Out%fold == 0 {
			low.fold = fold
		}
	}
	rows := c.Out / low.fold
	b := make([]float32, rows*columns)
	for i := range c.Out {
		for r, v := range c.B[i*c.Rank:][:c.Rank] {
			b[i%rows*columns+i/rows*c.Rank+r] = v * scale
		}
	}
	for _, m := range []struct {
		to         *kernel.Matrix
		rows, cols int
		values     []float32
	}{{&low.a, c.Rank, c.In, c.A}, {&low.b, rows, columns, b}} {
		data := make([]byte, m.rows*stored.RowBytes(m.cols))
		err := kernel.Quantize(stored, data, m.values)
		if err == nil {
			*m.to, err = kernel.NewMatrix(stored, m.rows, m.cols, data)
		}
		if err != nil {
			return nil, err
		}
	}
	return low, nil
}

// FinalOnly says that the model has an adapter which acts on final blocks alone: independent blocks are those of the model without it.
func (m *Model) FinalOnly() bool { return m.finalOnly }

// HidesSinks says that the model has an adapter which hides the first tokens of independent blocks but a prompt's first from later blocks.
func (m *Model) HidesSinks() bool { return m.hiddenSinks > 0 }

// LinkTokens are the ids of the tokens that the adapter wants behind each passage in block mode, beyond the vocabulary's; nil: none.
func (m *Model) LinkTokens() []int32 {
	ids := make([]int32, len(m.links))
	for i := range ids {
		ids[i] = int32(m.Vocabulary + i)
	}
	return ids
}

// lowRanks are the matrices of the adapter.
func (m *Model) lowRanks() (all []*kernel.Matrix) {
	for i := range m.layers {
		for _, l := range m.layers[i].linears() {
			if l.low != nil {
				all = append(all, &l.low.a, &l.low.b)
			}
		}
	}
	return all
}

// A projection is a linear's part in multiply: where its outputs go.
type projection struct {
	to []float32 // [T × out]
	of *linear
}

// maxProjections is how many linears have the same input: queries, keys and values.
const maxProjections = 3

// multiply writes the products of x [T × in] with a few linears of the same input, or adds them.
func (w *Workspace) multiply(x []float32, add bool, projections ...projection) {
	w.input.Set(x, w.rows, projections[0].of.Cols)
	n, beside := len(projections), 0
	acts := w.adapterActs()
	for i, p := range projections {
		w.products[i] = kernel.Product{Dst: p.to, X: &w.input, W: &p.of.Matrix, Add: add}
		if low := p.of.low; low != nil && acts {
			clear(grow(&w.low[i], w.rows*low.fold*low.b.Cols))
			w.products[n] = kernel.Product{Dst: w.low[i], Stride: low.fold * low.b.Cols, X: &w.input, W: &low.a}
			n++
			beside++
		}
	}
	w.product.Run(w.pool, w.products[:n]...)
	if beside == 0 {
		return
	}
	n = 0
	for i, p := range projections {
		if low := p.of.low; low != nil {
			for j := range w.parts {
				part := &w.parts[j]
				low.spread(w.low[i], part.row, part.rows, w.model.actsOn(part.seq))
			}
			w.lowInput[i].Set(w.low[i], w.rows*low.fold, low.b.Cols)
			w.products[n] = kernel.Product{Dst: p.to, X: &w.lowInput[i], W: &low.b, Add: true}
			n++
		}
	}
	w.product.Run(w.pool, w.products[:n]...)
}

// spread makes of A·x of some rows, which lies at the beginning of each, what b is multiplied with: all zeros where the adapter does not act.
func (l *lowRank) spread(x []float32, row, rows int, acts bool) {
	rank, width := l.a.Rows, l.fold*l.b.Cols
	for ; rows > 0; row, rows = row+1, rows-1 {
		x := x[row*width:][:width]
		if !acts {
			clear(x[:rank])
			continue
		}
		for i := 1; i < l.fold; i++ {
			copy(x[i*l.b.Cols+i*rank:][:rank], x)
		}
	}
}

// adapterActs says whether the adapter acts on any of the rows.
func (w *Workspace) adapterActs() bool {
	for i := range w.parts {
		if w.model.actsOn(w.parts[i].seq) {
			return true
		}
	}
	return false
}

// actsOn says whether an adapter acts on a sequence's tokens.
func (m *Model) actsOn(s *Sequence) bool { return !m.finalOnly || !s.Before }
