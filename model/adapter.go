package model

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

// lowRank is what an adapter adds to y = W·x: y += B·(A·x), the adapter's scale in B.
type lowRank struct{ a, b kernel.Matrix } // [R × in], [out × R]

// WithAdapter returns the model with the adapter beside its weights, which both models share. An adapter that changes what this code cannot
// change is an error.
func (m *Model) WithAdapter(a *weights.Adapter) (*Model, error) {
	adapted := *m
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
		scaled := make([]float32, len(c.B))
		for j, v := range c.B {
			scaled[j] = v * a.Scale(c)
		}
		low := &lowRank{}
		var err error
		if low.a, err = stored(c.Rank, c.In, c.A); err == nil {
			low.b, err = stored(c.Out, c.Rank, scaled)
		}
		if err != nil {
			return nil, fmt.Errorf("the adapter's change to %s: %w", c.Tensor, err)
		}
		l.low = low
	}
	adapted.count()
	return &adapted, nil
}

// stored makes a matrix of values: as half floats, which take half the memory to read, where these hold them all exactly.
func stored(rows, cols int, values []float32) (kernel.Matrix, error) {
	halves := make([]byte, 0, 2*len(values))
	for _, v := range values {
		h := kernel.F32ToF16(v)
		if kernel.F16ToF32(h) != v {
			return kernel.NewMatrix(kernel.F32, rows, cols, floatBytes(values))
		}
		halves = binary.LittleEndian.AppendUint16(halves, h)
	}
	return kernel.NewMatrix(kernel.F16, rows, cols, halves)
}

func floatBytes(values []float32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
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
	for i, p := range projections {
		w.products[i] = kernel.Product{Dst: p.to, X: &w.input, W: &p.of.Matrix, Add: add}
		if low := p.of.low; low != nil {
			w.products[n] = kernel.Product{Dst: grow(&w.low[i], w.rows*low.a.Rows), X: &w.input, W: &low.a}
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
			w.lowInput[i].Set(w.low[i], w.rows, low.a.Rows)
			w.products[n] = kernel.Product{Dst: p.to, X: &w.lowInput[i], W: &low.b, Add: true}
			n++
		}
	}
	w.product.Run(w.pool, w.products[:n]...)
}
