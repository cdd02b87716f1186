package model

import (
	"fmt"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

// lowRank is what an adapter adds to y = W·x: y += B·(A·x), the adapter's scale in B.
type lowRank struct {
	a, b kernel.Matrix // [R × in], [out × rank]
	rank int           // R, rounded up to what b's type takes
}

// WithAdapter returns the model with the adapter beside its weights, which both models share. An adapter that changes what this code cannot
// change is an error.
func (m *Model) WithAdapter(a *weights.Adapter) (*Model, error) {
	adapted := *m
	adapted.finalOnly, adapted.hiddenSinks = a.FinalOnly, a.HiddenSinks
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
	low := &lowRank{rank: c.Rank}
	stored := kernel.F32
	if t != kernel.F32 && t != kernel.F16 && t != kernel.BF16 && c.In%kernel.Q8_0.BlockLen() == 0 {
		stored = kernel.Q8_0
		block := stored.BlockLen()
		low.rank = (c.Rank + block - 1) / block * block // zeros in between
	}
	b := make([]float32, c.Out*low.rank)
	for i := range c.Out {
		for r, v := range c.B[i*c.Rank:][:c.Rank] {
			b[i*low.rank+r] = v * scale
		}
	}
	for _, m := range []struct {
		to         *kernel.Matrix
		rows, cols int
		values     []float32
	}{{&low.a, c.Rank, c.In, c.A}, {&low.b, c.Out, low.rank, b}} {
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
			clear(grow(&w.low[i], w.rows*low.rank)) // b takes zeros where it has no columns
			w.products[n] = kernel.Product{Dst: w.low[i], Stride: low.rank, X: &w.input, W: &low.a}
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
				if part := &w.parts[j]; !w.model.actsOn(part.seq) {
					clear(w.low[i][part.row*low.rank:][:part.rows*low.rank]) // nothing is added
				}
			}
			w.lowInput[i].Set(w.low[i], w.rows, low.rank)
			w.products[n] = kernel.Product{Dst: p.to, X: &w.lowInput[i], W: &low.b, Add: true}
			n++
		}
	}
	w.product.Run(w.pool, w.products[:n]...)
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
