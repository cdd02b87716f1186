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

// awkward are numbers at the edges of what the formats hold, and anything in between.
func awkward(rng *rand.Rand, n int) []float32 {
	edges := []uint32{
		0, 1, 0x007fffff, 0x00800000, 0x3f800000, 0x3f808000, 0x3f808001, 0x3f818000, 0x3f817fff, // zero, subnormals, ties of bfloat16
		0x7f7f7fff, 0x7f7f8000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7f80ffff, 0x7fc00000, 0x7fffffff, // the largest, Inf, NaNs
	}
	x := make([]float32, n)
	for i := range x {
		b := rng.Uint32()
		if rng.IntN(3) == 0 {
			b = edges[rng.IntN(len(edges))] | b&0x80000000
		}
		x[i] = math.Float32frombits(b)
	}
	return x
}

func TestBF16s_EveryLength_AreTheScalarConversions(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 13
		rng := rand.New(rand.NewPCG(seed, 0))
		for n := range 300 {
			src := awkward(rng, n+1)[1:]
			narrow, wide := make([]uint16, n+1), make([]float32, n+1)
			narrow[n], wide[n] = 7, 7
			F32ToBF16s(narrow[:n], src)
			BF16ToF32s(wide[:n], narrow[:n])
			for i, f := range src {
				if want := F32ToBF16(f); narrow[i] != want {
					t.Fatalf("seed %d: value %d of %d, %v (%#08x) = %#04x, want %#04x", seed, i, n, f, math.Float32bits(f), narrow[i], want)
				}
				if got, want := math.Float32bits(wide[i]), uint32(narrow[i])<<16; got != want {
					t.Fatalf("seed %d: value %d of %d, %#04x = %#08x, want %#08x", seed, i, n, narrow[i], got, want)
				}
			}
			if narrow[n] != 7 || wide[n] != 7 {
				t.Fatalf("%d values: wrote past the end", n)
			}
		}
	})
}

func TestF32ToQ8s_IsTheNearestOf255Steps(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 14
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, size := range []float64{1e-9, 1e-6, 1e-3, 1, 100, 1e6} {
			x := random(rng, 40*Q8Group)
			for i := range x {
				x[i] *= float32(size)
			}
			codes, scales, back := make([]int8, len(x)), make([]uint16, 40), make([]float32, len(x))
			F32ToQ8s(codes, scales, x)
			Q8ToF32s(back, codes, scales)
			for g, s := range scales {
				group, top := x[g*Q8Group:][:Q8Group], 0.0
				for _, v := range group {
					top = max(top, math.Abs(float64(v)))
				}
				scale := float64(F16ToF32(s))
				if off := math.Abs(scale - top/127); !(off <= max(top/127*0x1.001p-11, 0x1p-25)) {
					t.Fatalf("seed %d, size %g: the scale of group %d is %v, want %v", seed, size, g, scale, top/127)
				}
				for i, v := range group {
					got, want := codes[g*Q8Group+i], 0.0
					if scale > 0 {
						want = min(max(float64(v)/scale, -127), 127)
					}
					if !(math.Abs(float64(got)-want) <= 0.5+1e-4) {
						t.Fatalf("seed %d, size %g: code %d of group %d is %d, want %v", seed, size, i, g, got, want)
					}
					if value := back[g*Q8Group+i]; value != float32(float64(got)*scale) { // exact in float64
						t.Fatalf("seed %d, size %g: %d times %v came back as %v", seed, size, got, scale, value)
					}
				}
			}
		}
	})
}

func TestF32ToQ8s_Ties_GoToEven(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		x, codes, scales := make([]float32, Q8Group), make([]int8, Q8Group), make([]uint16, 1)
		want := make([]int8, Q8Group)
		for i := range x[1:] {
			tie := i - 15 // half above this number of steps
			x[1+i], want[1+i] = (float32(tie)+0.5)/4, int8(tie+tie&1)
		}
		x[0], want[0] = -127./4, -127 // so the scale is a quarter
		F32ToQ8s(codes, scales, x)
		if scales[0] != F32ToF16(0.25) || !slices.Equal(codes, want) {
			t.Errorf("scale %#04x, codes %v, want %#04x, %v", scales[0], codes, F32ToF16(0.25), want)
		}
	})
}

func TestF32ToQ8s_NotANumberOrTooLarge_MakesItsGroupNaN(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	eachPath(t, func(t *testing.T) {
		for _, bad := range []float32{inf, -inf, nan, math.Float32frombits(0xff800001), math.MaxFloat32, -127 * 65520} {
			for at := range Q8Group {
				x := random(rand.New(rand.NewPCG(15, 0)), 3*Q8Group)
				x[Q8Group+at] = bad
				codes, scales, back := make([]int8, len(x)), make([]uint16, 3), make([]float32, len(x))
				F32ToQ8s(codes, scales, x)
				Q8ToF32s(back, codes, scales)
				for i, v := range back {
					if wrong := v != v; wrong != (i/Q8Group == 1) {
						t.Fatalf("%v as value %d of group 1: value %d of group %d is %v", bad, at, i%Q8Group, i/Q8Group, v)
					}
				}
				if scales[1] != 0x7e00 || slices.ContainsFunc(codes[Q8Group:2*Q8Group], func(c int8) bool { return c != 0 }) {
					t.Fatalf("%v: scale %#04x, codes %v; want 0x7e00 and zeros", bad, scales[1], codes[Q8Group:2*Q8Group])
				}
			}
		}
	})
}

func TestQ8s_EveryPath_TheSameBitsHoweverManyGroups(t *testing.T) {
	const seed = 16
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 200 {
		groups := 1 + rng.IntN(8)
		x := awkward(rng, groups*Q8Group)
		if round%2 == 0 { // numbers alone, so that a group has a scale; of any size, subnormal scales too
			size := math.Exp2(rng.Float64()*50 - 30)
			for i := range x {
				x[i] = float32(rng.NormFloat64() * size)
			}
		}
		wantCodes, wantScales, wantBack := make([]int8, len(x)), make([]uint16, groups), make([]float32, len(x))
		for g := range groups { // the specification, group by group
			codes := (*[Q8Group]int8)(wantCodes[g*Q8Group:])
			wantScales[g] = q8Portable(codes, (*[Q8Group]float32)(x[g*Q8Group:]))
			for i, c := range codes {
				wantBack[g*Q8Group+i] = float32(c) * F16ToF32(wantScales[g])
			}
		}
		eachPath(t, func(t *testing.T) {
			codes, scales, back := make([]int8, len(x)+1), make([]uint16, groups+1), make([]float32, len(x)+1)
			codes[len(x)], scales[groups], back[len(x)] = 7, 7, 7
			F32ToQ8s(codes, scales, x)
			Q8ToF32s(back, codes[:len(x)], scales)
			if codes[len(x)] != 7 || scales[groups] != 7 || back[len(x)] != 7 {
				t.Fatalf("%d groups: wrote past the end", groups)
			}
			if !slices.Equal(codes[:len(x)], wantCodes) || !slices.Equal(scales[:groups], wantScales) {
				t.Fatalf("seed %d, round %d: scales %#04x, codes %v, want %#04x, %v", seed, round, scales[:groups], codes[:len(x)], wantScales, wantCodes)
			}
			for i, v := range wantBack {
				if math.Float32bits(back[i]) != math.Float32bits(v) && (back[i] == back[i] || v == v) {
					t.Fatalf("seed %d, round %d: value %d is %v, want %v", seed, round, i, back[i], v)
				}
			}
		})
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
				rows := 1 + rng.IntN(11)
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
