package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
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

func TestMax_IsTheLargest(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 0))
		for n := range 70 {
			for at := range n {
				x := random(rng, n)
				x[at] = 100
				if got := Max(x); got != 100 {
					t.Fatalf("largest of %v = %v, want 100 at %d", x, got, at)
				}
			}
		}
		if got := Max(nil); !math.IsInf(float64(got), -1) {
			t.Errorf("largest of nothing = %v, want -Inf", got)
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

func TestExpSum_AgreesWithFloat64_WithinTwoUnits(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		for n := range 70 {
			for _, m := range []float32{0, 3.5, 80} {
				x := make([]float32, n+1)
				var want []float64
				var sum float64
				for i := range x[:n] {
					x[i] = m - float32(i*i)/50
					want = append(want, math.Exp(float64(x[i]-m)))
					sum += want[i]
				}
				x[n] = 7
				got := ExpSum(x[:n], m)
				for i, w := range want {
					if math.Abs(float64(x[i])-w) > w*0x1p-22 && w > 1e-37 {
						t.Fatalf("n %d, m %v: value %d = %v, want %v", n, m, i, x[i], w)
					}
				}
				if x[n] != 7 || math.Abs(float64(got)-sum) > sum*1e-6 {
					t.Fatalf("n %d, m %v: sum %v, want %v", n, m, got, sum)
				}
			}
		}
	})
}

func TestAddWeighted_AgreesWithFloat64_HoweverItIsCut(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 8
		rng := rand.New(rand.NewPCG(seed, 0))
		for d := 1; d <= 200; d++ {
			for rows := range 41 {
				if d > 72 && d%8 != 0 && rows%7 != 3 {
					continue // the portable twin again and again
				}
				start, p, v := random(rng, d), random(rng, rows+1)[1:], random(rng, rows*d+1)[1:]
				acc := append(append([]float32{}, start...), 7)
				AddWeighted(acc[:d], p, v)
				if acc[d] != 7 {
					t.Fatalf("d %d, %d rows: wrote past the end", d, rows)
				}
				for i := range d {
					want, size := float64(start[i]), math.Abs(float64(start[i]))
					for j := range p {
						term := float64(p[j]) * float64(v[j*d+i])
						want += term
						size += math.Abs(term)
					}
					if got := float64(acc[i]); !(math.Abs(got-want) <= tolerance(rows, size)) {
						t.Fatalf("seed %d, d %d, %d rows: value %d = %v, want %v", seed, d, rows, i, got, want)
					}
				}
				cut := 0
				if rows > 0 {
					cut = rng.IntN(rows)
				}
				twice := append([]float32{}, start...)
				AddWeighted(twice, p[:cut], v[:cut*d])
				AddWeighted(twice, p[cut:], v[cut*d:])
				if i, ok := sameBits(acc[:d], twice); !ok {
					t.Fatalf("seed %d, d %d: value %d of %d rows at once = %v, cut at %d %v", seed, d, i, rows, acc[i], cut, twice[i])
				}
			}
		}
	})
}

func TestAddWeighted_NothingToAdd_LeavesAcc(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		AddWeighted(nil, nil, nil)
		acc := []float32{1, 2, 3, 4, 5, 6, 7, 8}
		AddWeighted(acc, nil, nil)
		for i, v := range acc {
			if v != float32(i+1) {
				t.Errorf("value %d = %v, want %d", i, v, i+1)
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

func TestScale_MultipliesEach(t *testing.T) {
	x := []float32{1, -2, 0.5}
	Scale(x, -4)
	if x[0] != -4 || x[1] != 8 || x[2] != -2 {
		t.Errorf("1, -2, 0.5 times -4 = %v", x)
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

func BenchmarkAddWeighted(b *testing.B) {
	const d, keys = 64, 32
	rng := rand.New(rand.NewPCG(1, 2))
	acc, p, v := make([]float32, d), random(rng, keys), random(rng, keys*d)
	for b.Loop() {
		clear(acc)
		AddWeighted(acc, p, v)
	}
	b.ReportMetric(2*d*keys*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func TestRotate_EveryPath_TheSameBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 0))
	for n := 2; n < 80; n++ {
		for _, pairs := range []int{0, 1, 3, 4, 8, 20, 40} {
			src, turns := random(rng, n), random(rng, 2*pairs)
			var results [][]float32
			eachPath(t, func(*testing.T) {
				dst := append(make([]float32, n), 7)
				Rotate(dst[:n], src, turns, 0.125)
				results = append(results, dst)
			})
			for _, got := range results {
				for i := range n {
					want := float64(src[i]) * 0.125
					if i/2 < pairs && i|1 < n {
						c, s := float64(turns[i&^1]), float64(turns[i|1])
						x, y := float64(src[i&^1])*0.125, float64(src[i|1])*0.125
						if want = x*c - y*s; i%2 == 1 {
							want = x*s + y*c
						}
					}
					if math.Abs(float64(got[i])-want) > 1e-6 {
						t.Fatalf("n %d, %d pairs: value %d = %v, want %v", n, pairs, i, got[i], want)
					}
				}
				if i, ok := sameBits(got, results[0]); !ok || got[n] != 7 {
					t.Fatalf("n %d, %d pairs: value %d differs between paths, or one wrote past the end", n, pairs, i)
				}
			}
		}
	}
}
