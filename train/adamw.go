package train

import (
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// The constants of AdamW (arXiv 1711.05101).
const (
	beta1   = 0.9
	beta2   = 0.95
	epsilon = 1e-8
)

// itemParams is how many values an item of the optimizer's tasks is.
const itemParams = 1 << 14

// optimizer is AdamW on params, and the norm of their gradients.
type optimizer struct {
	*params
	pool    *kernel.Pool
	squares []float64 // of each item's gradients

	// What an update multiplies by: gradients by scale, values by keep; rate and the corrections of the moments' start from zero.
	scale, keep, rate, correct1, correct2 float32
}

// clear forgets the gradients.
func (o *optimizer) clear() { clear(o.grads) }

func (o *optimizer) items() int { return (len(o.values) + itemParams - 1) / itemParams }

// norm is the Euclidean norm of all gradients.
func (o *optimizer) norm() float64 {
	if o.squares == nil {
		o.squares = make([]float64, o.items())
	}
	o.pool.Run(o.items(), (*sumSquares)(o))
	var sum float64
	for _, s := range o.squares {
		sum += s
	}
	return math.Sqrt(sum)
}

type sumSquares optimizer

func (o *sumSquares) Do(_, i int) {
	var sum float64
	for _, g := range o.grads[i*itemParams : min((i+1)*itemParams, len(o.grads))] {
		sum += float64(g) * float64(g)
	}
	o.squares[i] = sum
}

// update makes step t, from 1 on, with the gradients times scale: p ← p(1 - rate·decay); m ← β₁m + (1-β₁)g; v ← β₂v + (1-β₂)g²;
// p ← p - rate · (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε).
func (o *optimizer) update(t int, rate, decay, scale float64) {
	o.scale, o.keep, o.rate = float32(scale), float32(1-rate*decay), float32(rate)
	o.correct1, o.correct2 = float32(1/(1-math.Pow(beta1, float64(t)))), float32(1/(1-math.Pow(beta2, float64(t))))
	o.pool.Run(o.items(), o)
}

// Do updates the values of item i.
func (o *optimizer) Do(_, i int) {
	from, to := i*itemParams, min((i+1)*itemParams, len(o.values))
	values, grads, first, second := o.values[from:to], o.grads[from:to], o.first[from:to], o.second[from:to]
	for j, g := range grads {
		g *= o.scale
		m := beta1*first[j] + (1-beta1)*g
		v := beta2*second[j] + (1-beta2)*g*g
		first[j], second[j] = m, v
		values[j] = values[j]*o.keep - o.rate*(m*o.correct1)/(float32(math.Sqrt(float64(v*o.correct2)))+epsilon)
	}
}
