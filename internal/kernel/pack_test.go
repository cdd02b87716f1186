package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// multiply runs a product of rows that no other product shares.
func multiply(mm *MatMul, pool *Pool, dst, x []float32, rows int, w *Matrix) {
	var a Activations
	a.Set(x, rows, w.Cols)
	mm.Run(pool, Product{Dst: dst, X: &a, W: w})
}

func TestMatMul_Packed_AgreesWithFloat64OfTheCodes(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		if !features.avx2 {
			t.Skip("this path does not pack")
		}
		pool := NewPool(2)
		defer pool.Close()
		rng := rand.New(rand.NewPCG(5, 0))
		var mm MatMul
		for _, typ := range []Type{Q4_0, Q4_1, Q8_0, Q4_K, Q6_K} {
			block := max(typ.BlockLen(), groupLen)
			for _, k := range []int{block, 3 * block, 18 * 32 / block * block, 2048} {
				if k == 0 {
					continue
				}
				for _, m := range []int{1, 15, 16, 17, 48, 53} {
					for _, rows := range []int{1, 3, 4, 9, 16, 21} {
						w := randomMatrix(rng, typ, m, k)
						weights := dequantized(&w)
						w.Pack(pool, Memory(w.PackedBytes()))
						if w.packed == nil {
							t.Fatalf("%v was not packed", typ)
						}
						x := random(rng, rows*k)
						for i := range x[:k/2] {
							x[i] *= 1000 // groups of very different size
						}
						var a Activations
						a.Set(x, rows, k)
						dst := make([]float32, rows*m)
						mm.Run(pool, Product{Dst: dst, X: &a, W: &w})
						coded := make([]float32, len(x))
						for i, c := range a.codes[:len(x)] {
							scale := a.scales[i/groupLen]
							coded[i] = float32(c) * scale
							if math.Abs(float64(coded[i]-x[i])) > float64(scale)*0.505 {
								t.Fatalf("activation %v coded as %v, more than half a step of %v away", x[i], coded[i], scale)
							}
						}
						for i := range dst {
							want, size := dot64(coded[i/m*k:][:k], weights[i%m*k:][:k])
							if got := float64(dst[i]); !(math.Abs(got-want) <= 4*tolerance(k, size)) {
								t.Fatalf("%v [%d × %d], %d rows: output %d of token %d = %v, want %v ± %g", typ, m, k, rows, i%m, i/m, got, want, 4*tolerance(k, size))
							}
						}
						again := make([]float32, m)
						multiply(&mm, pool, again, x[(rows-1)*k:], 1, &w)
						if i, ok := sameBits(again, dst[(rows-1)*m:]); !ok {
							t.Fatalf("%v [%d × %d]: output %d of the last of %d rows differs from the row alone", typ, m, k, i, rows)
						}
					}
				}
			}
		}
	})
}

// All paths that take integer codes make the same sums in the same order, whatever their vectors' width.
func TestMatMul_Panels_AgreeWithFloat64(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		if !features.avx2 {
			t.Skip("this path does not pack")
		}
		pool := NewPool(2)
		defer pool.Close()
		rng := rand.New(rand.NewPCG(8, 0))
		var mm MatMul
		for _, typ := range []Type{F32, F16, BF16} {
			for _, k := range []int{1, 5, 64, 255, 256, 257, 576, 1536} {
				for _, m := range []int{1, 15, 16, 17, 53} {
					for _, rows := range []int{1, 2, 5, 6, 7, 12, 17} {
						w := randomMatrix(rng, typ, m, k)
						weights, x := dequantized(&w), random(rng, rows*k)
						w.Pack(pool, Memory(w.PackedBytes()))
						if w.panels == nil {
							t.Fatalf("%v was not packed", typ)
						}
						const gap = 3 // between the rows of outputs
						before := random(rng, rows*(m+gap))
						for _, add := range []bool{false, true} {
							dst := append([]float32(nil), before...)
							var a Activations
							a.Set(x, rows, k)
							mm.Run(pool, Product{Dst: dst, Stride: m + gap, X: &a, W: &w, Add: add})
							for i, got := range dst {
								token, out := i/(m+gap), i%(m+gap)
								if out >= m || token == rows {
									if got != before[i] {
										t.Fatalf("%v [%d × %d], %d rows: wrote between the rows of outputs", typ, m, k, rows)
									}
									continue
								}
								want, size := dot64(x[token*k:][:k], weights[out*k:][:k])
								if add {
									want, size = want+float64(before[i]), size+math.Abs(float64(before[i]))
								}
								if !(math.Abs(float64(got)-want) <= tolerance(k+1, size)) {
									t.Fatalf("%v [%d × %d], %d rows, add %v: output %d of token %d = %v, want %v ± %g", typ, m, k, rows, add, out, token, got, want, tolerance(k+1, size))
								}
							}
						}
					}
				}
			}
		}
	})
}

func TestMatMul_IntegerPaths_SameBits(t *testing.T) {
	const m, k, rows = 53, 1792, 37
	first := map[Type][]float32{}
	eachPath(t, func(t *testing.T) {
		if !features.avx2 {
			t.Skip("this path does not take codes")
		}
		pool := NewPool(2)
		defer pool.Close()
		rng := rand.New(rand.NewPCG(6, 0))
		for _, typ := range []Type{Q4_0, Q4_1, Q8_0, Q4_K, Q6_K} {
			w, x, got := randomMatrix(rng, typ, m, k), random(rng, rows*k), make([]float32, rows*m)
			w.Pack(pool, Memory(w.PackedBytes()))
			multiply(new(MatMul), pool, got, x, rows, &w)
			if first[typ] == nil {
				first[typ] = got
			}
			if i, ok := sameBits(got, first[typ]); !ok {
				t.Errorf("%v: token %d, output %d = %v, on the first such path %v", typ, i/m, i%m, got[i], first[typ][i])
			}
		}
	})
}

func BenchmarkMatMulPacked(b *testing.B) {
	for _, typ := range []Type{Q4_1, Q4_0, Q8_0, F16, BF16, F32} {
		for _, shape := range [][2]int{{1536, 576}, {576, 1536}} {
			for _, rows := range []int{1, 64, 512} {
				b.Run(fmt.Sprintf("%v/M=%d/K=%d/T=%d", typ, shape[0], shape[1], rows), func(b *testing.B) {
					m, k := shape[0], shape[1]
					rng := rand.New(rand.NewPCG(1, 2))
					pool := NewPool(1)
					defer pool.Close()
					w := randomMatrix(rng, typ, m, k)
					w.Pack(pool, Memory(w.PackedBytes()))
					x, dst := random(rng, rows*k), make([]float32, rows*m)
					var mm MatMul
					var a Activations
					for b.Loop() {
						a.Set(x, rows, k)
						mm.Run(pool, Product{Dst: dst, X: &a, W: &w})
					}
					b.ReportMetric(float64(m*k*rows)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GMAC/s")
				})
			}
		}
	}
}

func BenchmarkPack(b *testing.B) {
	for _, typ := range []Type{Q4_1, Q8_0, Q4_K, Q6_K, F16, F32} {
		b.Run(typ.String(), func(b *testing.B) {
			const m, k = 1536, 512
			pool := NewPool(1)
			defer pool.Close()
			w := randomMatrix(rand.New(rand.NewPCG(1, 2)), typ, m, k)
			for b.Loop() {
				w.Pack(pool, Memory(w.PackedBytes()))
			}
			b.ReportMetric(m*k*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gweights/s")
		})
	}
}
