package model

import (
	"fmt"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

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

// newLowRank lays out a change to a matrix of type t, the adapter's scale in B. Beside quantized weights it is kept in 8 bits, a tenth of what those have lost: adapters
// are read whole for every token, and should take little beside the weights. Elsewhere it is kept exactly.
func newLowRank(c *weights.Change, scale float32, t kernel.Type) (*kernel.LowRank, error) {
	low := &kernel.LowRank{Fold: 1}
	stored, columns := kernel.F32, c.Rank
	if t != kernel.F32 && t != kernel.F16 && t != kernel.BF16 && c.In%kernel.Q8_0.BlockLen() == 0 {
		stored = kernel.Q8_0
		block := stored.BlockLen()
		columns = (c.Rank + block - 1) / block * block // zeros behind
		if fold := block / c.Rank; fold > 1 && c.Out%fold == 0 {
			low.Fold = fold
		}
	}
	rows := c.Out / low.Fold
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
	}{{&low.A, c.Rank, c.In, c.A}, {&low.B, rows, columns, b}} {
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

// lowRanks are the matrices of the adapter in the order in which a token passes them: read so, what is next in memory is fetched in time.
func (m *Model) lowRanks() (all []*kernel.Matrix) {
	for i := range m.layers {
		l := &m.layers[i]
		for _, together := range [][]*linear{{&l.query, &l.key, &l.value}, {&l.attentionOut}, {&l.gate, &l.up}, {&l.down}} {
			var b []*kernel.Matrix
			for _, l := range together {
				if l.low != nil {
					all, b = append(all, &l.low.A), append(b, &l.low.B)
				}
			}
			all = append(all, b...)
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
	acts, everywhere := w.adapterActs()
	for i, p := range projections {
		w.products[i] = kernel.Product{Dst: p.to, X: &w.input, W: &p.of.Matrix, Add: add}
		low := p.of.low
		switch {
		case low == nil || !acts:
		case everywhere && low.Fuses(&p.of.Matrix, w.rows):
			w.products[i].Low = low
		default:
			clear(grow(&w.low[i], w.rows*low.Fold*low.B.Cols))
			w.products[n] = kernel.Product{Dst: w.low[i], Stride: low.Fold * low.B.Cols, X: &w.input, W: &low.A}
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
		if low := p.of.low; low != nil && w.products[i].Low == nil {
			w.spread(low, w.low[i])
			w.lowInput[i].Set(w.low[i], w.rows*low.Fold, low.B.Cols)
			w.products[n] = kernel.Product{Dst: p.to, X: &w.lowInput[i], W: &low.B, Add: true}
			n++
		}
	}
	w.product.Run(w.pool, w.products[:n]...)
}

// spread makes of A·x of all rows, which lies at the beginning of each, what B is multiplied with: all zeros where the adapter does not act.
func (w *Workspace) spread(l *kernel.LowRank, x []float32) {
	width := l.Fold * l.B.Cols
	for i := range w.parts {
		part := &w.parts[i]
		for row := part.row; row < part.row+part.rows; row++ {
			if w.model.actsOn(part.seq) {
				l.Spread(x[row*width:][:width])
			} else {
				clear(x[row*width:][:l.A.Rows])
			}
		}
	}
}

// adapterActs says whether the adapter acts on any of the rows, and whether on all.
func (w *Workspace) adapterActs() (acts, everywhere bool) {
	everywhere = true
	for i := range w.parts {
		if w.model.actsOn(w.parts[i].seq) {
			acts = true
		} else {
			everywhere = false
		}
	}
	return acts, everywhere
}

// actsOn says whether an adapter acts on a sequence's tokens.
func (m *Model) actsOn(s *Sequence) bool { return !m.finalOnly || !s.Before }
