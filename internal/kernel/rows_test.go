package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestScores_AgreeWithFloat64_HoweverManyRows(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 7
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, d := range []int{1, 2, 7, 8, 9, 15, 16, 17, 64, 80, 128, 131} {
			for n := 1; n <= KeyTile; n++ {
				for rows := range 8 {
					x, w := random(rng, rows*d+1)[1:], random(rng, n*d+1)[1:]
					keys, dst := make([]float32, KeyTile*d+1), make([]float32, rows*KeyTile+1)
					keys[KeyTile*d], dst[rows*KeyTile] = 7, 7
					Keys(keys, w, n, d)
					Scores(dst, x, keys, n, d)
					if keys[KeyTile*d] != 7 || dst[rows*KeyTile] != 7 {
						t.Fatalf("d %d, %d × %d: wrote past the end", d, rows, n)
					}
					for row := range rows {
						for key, got := range dst[row*KeyTile:][:n] {
							want, size := dot64(x[row*d:][:d], w[key*d:][:d])
							if !(math.Abs(float64(got)-want) <= tolerance(d, size)) {
								t.Fatalf("seed %d, d %d: row %d of %d with key %d of %d = %v, want %v", seed, d, row, rows, key, n, got, want)
							}
						}
						alone := make([]float32, KeyTile)
						Scores(alone, x[row*d:][:d], keys, n, d)
						if i, ok := sameBits(alone[:n], dst[row*KeyTile:][:n]); !ok {
							t.Fatalf("seed %d, d %d: row %d of %d with key %d of %d = %v, alone %v", seed, d, row, rows, i, n, dst[row*KeyTile+i], alone[i])
						}
					}
				}
			}
		}
	})
}

func TestF32ToF16s_EveryLength_IsTheScalarConversion(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(10, 0))
		for n := range 70 {
			src, dst := make([]float32, n), make([]uint16, n+1)
			for i := range src {
				src[i] = math.Float32frombits(rng.Uint32())
				if src[i] != src[i] {
					src[i] = 1e-7 // a NaN's payload may differ
				}
			}
			dst[n] = 7
			F32ToF16s(dst[:n], src)
			for i, got := range dst[:n] {
				if want := F32ToF16(src[i]); got != want {
					t.Fatalf("value %d of %d: %v = %#x, want %#x", i, n, src[i], got, want)
				}
			}
			if dst[n] != 7 {
				t.Fatalf("%d values: wrote past the end", n)
			}
		}
	})
}

func TestF16ToF32s_EveryLengthAndHalf_EqualsF16ToF32(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		every := make([]uint16, 1<<16)
		for h := range every {
			every[h] = uint16(h)
		}
		compare := func(src []uint16) {
			t.Helper()
			dst := make([]float32, len(src)+1)
			dst[len(src)] = 7
			F16ToF32s(dst[:len(src)], src)
			if dst[len(src)] != 7 {
				t.Fatalf("%d values: wrote past the end", len(src))
			}
			for i, h := range src {
				want := F16ToF32(h)
				if math.Float32bits(dst[i]) != math.Float32bits(want) && (dst[i] == dst[i] || want == want) {
					t.Fatalf("value %d of %d, %#04x = %v, want %v", i, len(src), h, dst[i], want)
				}
			}
		}
		compare(every)
		for n := range 41 {
			compare(every[0x3bf1:][:n])
		}
	})
}

func TestF32ToF16s_EqualsF32ToF16(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 0))
	for n := range 41 {
		src, dst := random(rng, n), make([]uint16, n+1)
		F32ToF16s(dst[:n], src)
		for i, f := range src {
			if want := F32ToF16(f); dst[i] != want {
				t.Errorf("value %d of %d, %v = %#04x, want %#04x", i, n, f, dst[i], want)
			}
		}
		if dst[n] != 0 {
			t.Errorf("%d values: wrote past the end", n)
		}
	}
}

func BenchmarkScores(b *testing.B) {
	const d, keys = 64, KeyTile // a tile of attention
	for _, rows := range []int{1, 48} {
		b.Run(fmt.Sprintf("T=%d", rows), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			x, w, dst, tile := random(rng, rows*d), random(rng, keys*d), make([]float32, rows*keys), make([]float32, keys*d)
			for b.Loop() {
				Keys(tile, w, keys, d)
				Scores(dst, x, tile, keys, d)
			}
			b.ReportMetric(2*d*keys*float64(rows*b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

func TestRotate_EveryPath_TheSameBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 0))
	const heads = 3
	for d := 2; d < 80; d++ {
		for _, pairs := range []int{0, 1, 3, 4, 8, 20, 40} {
			src, turns := random(rng, heads*d), random(rng, 2*pairs)
			var results [][]float32
			eachPath(t, func(*testing.T) {
				dst := append(make([]float32, heads*d), 7)
				Rotate(dst[:heads*d], src, turns, d, 0.125)
				results = append(results, dst)
			})
			for _, got := range results {
				for i := range heads * d {
					want, in := float64(src[i])*0.125, i%d
					if in/2 < pairs && in|1 < d {
						c, s := float64(turns[in&^1]), float64(turns[in|1])
						x, y := float64(src[i-in%2])*0.125, float64(src[i-in%2+1])*0.125
						if want = x*c - y*s; in%2 == 1 {
							want = x*s + y*c
						}
					}
					if math.Abs(float64(got[i])-want) > 1e-6 {
						t.Fatalf("d %d, %d pairs: head %d, value %d = %v, want %v", d, pairs, i/d, in, got[i], want)
					}
				}
				if i, ok := sameBits(got, results[0]); !ok || got[heads*d] != 7 {
					t.Fatalf("d %d, %d pairs: value %d differs between paths, or one wrote past the end", d, pairs, i)
				}
			}
		}
	}
}

// Folded piece by piece, of any length, a running softmax is the softmax over all; what lies past a piece's scores does not count; and a
// row alone has the bits that it has among others.
func TestFold_PieceByPiece_IsOneSoftmax(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 12
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, d := range []int{1, 7, 8, 16, 63, 64, 72, 80, 104, 128} {
			for n := 1; n <= 3*KeyTile+5; n++ {
				rows := 1 + rng.IntN(5)
				stride := (rows + rng.IntN(2)) * KeyTile
				states := append(make([]float32, rows*(2+d)), 7)
				for r := range rows {
					states[r*(2+d)] = float32(math.Inf(-1))
				}
				all, values := make([][]float64, rows), []float64{} // so far
				for piece := range 3 {
					s, v := make([]float32, (n+KeyTile-1)/KeyTile*stride), random(rng, n*d+1)[1:]
					for i := range s {
						s[i] = 1e6
					}
					for r := range rows {
						for i := range n {
							x := float32(rng.NormFloat64()*10) + float32(piece%2)*5 // the maximum moves, and stays
							s[i/KeyTile*stride+r*KeyTile+i%KeyTile] = x
							all[r] = append(all[r], float64(x))
						}
					}
					for _, x := range v {
						values = append(values, float64(x))
					}
					r := rng.IntN(rows)
					alone, ownScores := slices.Clone(states[r*(2+d):][:2+d]), slices.Clone(s[r*KeyTile:])
					Fold(alone, ownScores, stride, v, n, d)
					Fold(states[:rows*(2+d)], s, stride, v, n, d)
					if i, ok := sameBits(alone, states[r*(2+d):][:2+d]); !ok {
						t.Fatalf("seed %d, d %d, n %d, piece %d: row %d of %d, value %d of its state = %v, alone %v", seed, d, n, piece, r, rows, i, states[r*(2+d)+i], alone[i])
					}
					for r := range rows {
						state := states[r*(2+d):][:2+d]
						m, sum, want, size := softmaxOf(all[r], values, d)
						if float64(state[0]) != m || math.Abs(float64(state[1])-sum) > 2e-6*sum {
							t.Fatalf("seed %d, d %d, n %d, piece %d, row %d: maximum %v, sum %v, want %v, %v", seed, d, n, piece, r, state[0], state[1], m, sum)
						}
						for j := range d {
							if math.Abs(float64(state[2+j])-want[j]) > 4e-6*size[j] {
								t.Fatalf("seed %d, d %d, n %d, piece %d, row %d: value %d = %v, want %v", seed, d, n, piece, r, j, state[2+j], want[j])
							}
						}
					}
					if states[rows*(2+d)] != 7 {
						t.Fatalf("d %d, n %d, %d rows: wrote past the states", d, n, rows)
					}
				}
			}
		}
	})
}

// softmaxOf gives the largest score m, Σ e^(s-m), Σ e^(s-m)·v and Σ e^(s-m)·|v|.
func softmaxOf(scores, values []float64, d int) (m, sum float64, weighted, size []float64) {
	m = slices.Max(scores)
	weighted, size = make([]float64, d), make([]float64, d)
	for i, x := range scores {
		e := math.Exp(x - m)
		sum += e
		for j, v := range values[i*d:][:d] {
			weighted[j] += e * v
			size[j] += e * math.Abs(v)
		}
	}
	return m, sum, weighted, size
}

func TestFold_Extremes(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachPath(t, func(t *testing.T) {
		fold := func(scores ...float32) []float32 {
			state, v := make([]float32, 2+8), make([]float32, len(scores)*8)
			state[0] = -inf
			for i := range v {
				v[i] = 1
			}
			Fold(state, append(scores, make([]float32, KeyTile)...)[:KeyTile], KeyTile, v, len(scores), 8)
			return state
		}
		if s := fold(-inf, 3, -inf); s[0] != 3 || s[1] != 1 || s[2] != 1 {
			t.Errorf("one score that counts: %v", s)
		}
		if s := fold(-1000, -1200); s[0] != -1000 || s[1] != 1 || s[9] != 1 {
			t.Errorf("a score too small to count: %v", s)
		}
		if s := fold(1, nan, 2); s[1] == s[1] {
			t.Errorf("the sum over NaN is %v, want NaN", s[1])
		}
	})
}

func BenchmarkFold(b *testing.B) {
	const d, rows = 64, 48
	for _, n := range []int{KeyTile, 100, 4 * KeyTile} {
		b.Run(fmt.Sprintf("L=%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			states, fresh, v := make([]float32, rows*(2+d)), random(rng, rows*4*KeyTile), random(rng, n*d)
			scores := make([]float32, len(fresh))
			for b.Loop() {
				copy(scores, fresh)
				Fold(states, scores, rows*KeyTile, v, n, d)
			}
			b.ReportMetric(2*d*rows*float64(n*b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
