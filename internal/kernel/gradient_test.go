package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(got float32, want, bound float64) bool { return math.Abs(float64(got)-want) <= bound }

func TestExponentials_AgreeWithFloat64(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1))
		for n := range 70 {
			x := random(rng, n)
			was := append([]float32{}, x...)
			sum := Exponentials(x, 0.5, 1.5)
			var want float64
			for i, v := range was {
				e := math.Exp(0.5*float64(v) - 1.5)
				want += e
				if !near(x[i], e, 4e-7*e) {
					t.Fatalf("n=%d: e^(%v/2 - 1.5) = %v, want %v", n, v, x[i], e)
				}
			}
			if !near(sum, want, 1e-6*want) {
				t.Errorf("n=%d: sum %v, want %v", n, sum, want)
			}
		}
	})
}

func TestMax_FindsItAnywhere(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		if m := Max(nil); !math.IsInf(float64(m), -1) {
			t.Errorf("of nothing: %v, want -Inf", m)
		}
		for n := 1; n < 70; n++ {
			for at := range n {
				x := make([]float32, n)
				for i := range x {
					x[i] = float32(-i - 2)
				}
				x[at] = -1
				if m := Max(x); m != -1 {
					t.Fatalf("n=%d, at %d: %v, want -1", n, at, m)
				}
			}
		}
	})
}

// slope is the central difference of f at x in float64.
func slope(f func(float64) float64, x float64) float64 {
	const h = 1e-6
	return (f(x+h) - f(x-h)) / (2 * h)
}

func TestSwiGLUGradient_IsTheSlope(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(2, 2))
		silu := func(g float64) float64 { return g / (1 + math.Exp(-g)) }
		for n := 1; n < 40; n++ {
			gate, up, dh := random(rng, n), random(rng, n), random(rng, n)
			gate[0] = 90 * gate[0] // far out too
			g, u, d := append([]float32{}, gate...), append([]float32{}, up...), append([]float32{}, dh...)
			SwiGLUGradient(gate, up, dh)
			for i := range n {
				x, y, z := float64(g[i]), float64(u[i]), float64(d[i])
				if !near(gate[i], z*y*slope(silu, x), 1e-6*(1+math.Abs(z*y))) || !near(up[i], z*silu(x), 1e-6*(1+math.Abs(z*silu(x)))) || !near(dh[i], silu(x)*y, 1e-6*(1+math.Abs(silu(x)*y))) {
					t.Fatalf("gate %v, up %v, dh %v: %v, %v, %v; want %v, %v, %v", x, y, z, gate[i], up[i], dh[i], z*y*slope(silu, x), z*silu(x), silu(x)*y)
				}
			}
		}
	})
}

func TestSoftmaxGradient_IsTheSlope(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 3))
		const scale = 0.3
		for n := 1; n < 40; n++ {
			s, dp := random(rng, n), random(rng, n)
			loss := func(at int, v float64) float64 { // Σ dp·softmax(scale·s), s[at] being v
				var sum, weighted float64
				for i := range s {
					x := float64(s[i])
					if i == at {
						x = v
					}
					e := math.Exp(scale * x)
					sum, weighted = sum+e, weighted+e*float64(dp[i])
				}
				return weighted / sum
			}
			p := append([]float32{}, s...)
			sum := Exponentials(p, scale, 0)
			for i := range p {
				p[i] /= sum
			}
			got := append([]float32{}, dp...)
			SoftmaxGradient(got, p, float32(loss(-1, 0)), scale)
			for i := range got {
				if want := slope(func(v float64) float64 { return loss(i, v) }, float64(s[i])); !near(got[i], want, 1e-6) {
					t.Fatalf("n=%d: %d is %v, want %v", n, i, got[i], want)
				}
			}
		}
	})
}

func TestRMSNormGradient_IsTheSlope(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	const rows, k, eps = 3, 20, 1e-2
	x, dy, g, before := random(rng, rows*k), random(rng, rows*k), random(rng, k), random(rng, rows*k)
	dx, scales := append([]float32{}, before...), make([]float32, rows)
	RMSNormGradient(dx, dy, x, g, scales, eps)
	for r := range rows {
		loss := func(at int, v float64) float64 {
			var squares, sum float64
			for i := range k {
				x := float64(x[r*k+i])
				if i == at {
					x = v
				}
				squares += x * x
				sum += x * float64(g[i]) * float64(dy[r*k+i])
			}
			return sum / math.Sqrt(squares/k+eps)
		}
		for i := range k {
			at := r*k + i
			if want := float64(before[at]) + slope(func(v float64) float64 { return loss(i, v) }, float64(x[at])); !near(dx[at], want, 1e-5) {
				t.Errorf("row %d: %d is %v, want %v", r, i, dx[at], want)
			}
		}
		squares, _ := dot64(x[r*k:][:k], x[r*k:][:k])
		if want := 1 / math.Sqrt(squares/k+eps); !near(scales[r], want, 1e-6) {
			t.Errorf("row %d: scale %v, want %v", r, scales[r], want)
		}
	}
}
