package attention

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// RoPE is a rotary position embedding whose frequencies are fixed when the model is loaded. Pairs are neighbours: values
// 2i and 2i+1 of a head turn by p·Freqs[i] radians at position p; values past 2·len(Freqs) stay as they are.
type RoPE struct {
	Freqs []float64
	// Magnitude scales the turned values (YaRN's attention factor; 1 otherwise).
	Magnitude float64
}

// Plain is RoPE as published: frequencies base^(-2i/dims).
func Plain(dims int, base float64) RoPE {
	r := RoPE{Freqs: make([]float64, dims/2), Magnitude: 1}
	for i := range r.Freqs {
		r.Freqs[i] = math.Pow(base, -float64(2*i)/float64(dims))
	}
	return r
}

// Linear divides every position by factor (position interpolation).
func (r RoPE) Linear(factor float64) RoPE {
	out := RoPE{Freqs: make([]float64, len(r.Freqs)), Magnitude: r.Magnitude}
	for i, f := range r.Freqs {
		out.Freqs[i] = f / factor
	}
	return out
}

// Factors divides each frequency by a factor of its own, as models with Llama 3's scaling carry them.
func (r RoPE) Factors(factors []float32) (RoPE, error) {
	if len(factors) != len(r.Freqs) {
		return RoPE{}, fmt.Errorf("%d frequency factors, but heads turn %d pairs", len(factors), len(r.Freqs))
	}
	out := RoPE{Freqs: make([]float64, len(r.Freqs)), Magnitude: r.Magnitude}
	for i, f := range r.Freqs {
		if !(factors[i] > 0) || math.IsInf(float64(factors[i]), 0) {
			return RoPE{}, fmt.Errorf("frequency factor %d is %v, not a positive number", i, factors[i])
		}
		out.Freqs[i] = f / float64(factors[i])
	}
	return out, nil
}

// YaRN interpolates slow frequencies by factor and leaves fast ones, with a linear ramp between those that turn betaFast
// and betaSlow times over the original context, and scales magnitudes by 0.1·ln(factor) + 1 (arXiv 2309.00071, section 3).
func (r RoPE) YaRN(base, factor float64, context int, betaFast, betaSlow float64) RoPE {
	dims := float64(2 * len(r.Freqs))
	pair := func(turns float64) float64 { // the index of the pair that turns so often over the context
		return dims * math.Log(float64(context)/(turns*2*math.Pi)) / (2 * math.Log(base))
	}
	low, high := max(math.Floor(pair(betaFast)), 0), min(math.Ceil(pair(betaSlow)), dims-1)
	out := RoPE{Freqs: make([]float64, len(r.Freqs)), Magnitude: r.Magnitude * (0.1*math.Log(factor) + 1)}
	for i, f := range r.Freqs {
		keep := 1 - min(max((float64(i)-low)/max(high-low, 0.001), 0), 1)
		out.Freqs[i] = f*keep + f/factor*(1-keep)
	}
	return out
}

// A Table is the sines and cosines of a RoPE for every position asked for so far. It grows on demand and is safe for
// concurrent use; angles are computed in float64.
type Table struct {
	rope RoPE
	grow sync.Mutex
	rows atomic.Pointer[[]float32] // [positions × pairs × (cos, sin)]
}

// NewTable makes an empty table.
func NewTable(r RoPE) *Table {
	t := &Table{rope: r}
	t.rows.Store(new([]float32))
	return t
}

// Reach makes positions 0 … n-1 available to Turn.
func (t *Table) Reach(n int) {
	pairs := len(t.rope.Freqs)
	if len(*t.rows.Load()) >= n*2*pairs {
		return
	}
	t.grow.Lock()
	defer t.grow.Unlock()
	old := *t.rows.Load()
	if len(old) >= n*2*pairs {
		return
	}
	n = max(n, 2*len(old)/max(2*pairs, 1), 512)
	rows := make([]float32, n*2*pairs)
	for i := copy(rows, old); i < len(rows); i += 2 {
		p, pair := i/(2*pairs), i/2%pairs
		sin, cos := math.Sincos(float64(p) * t.rope.Freqs[pair])
		rows[i], rows[i+1] = float32(cos*t.rope.Magnitude), float32(sin*t.rope.Magnitude)
	}
	t.rows.Store(&rows)
}

// Turn writes consecutive heads of d values, times scale, to dst, all turned by position p, which Reach must have covered. dst may be
// heads.
func (t *Table) Turn(dst, heads []float32, d, p int, scale float32) {
	n := 2 * len(t.rope.Freqs)
	kernel.Rotate(dst, heads, (*t.rows.Load())[p*n:][:n], d, scale)
}

// Move writes consecutive heads of d values that are turned already to dst, turned on by p positions, or back where p is negative; their magnitude
// stays. Reach must have covered p and -p. dst may be heads.
func (t *Table) Move(dst, heads []float32, d, p int) {
	n := 2 * len(t.rope.Freqs)
	row := (*t.rows.Load())[max(p, -p)*n:][:n]
	var stack [256]float32
	turns := stack[:0]
	cos, sin := float32(1/t.rope.Magnitude), float32(1/t.rope.Magnitude)
	if p < 0 {
		sin = -sin
	}
	for ; len(row) > 1; row = row[2:] {
		turns = append(turns, row[0]*cos, row[1]*sin)
	}
	kernel.Rotate(dst, heads, turns, d, 1)
}
