package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

func TestDotRows_AgreesWithFloat64_AndHasMatMulsBits(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 7
		rng := rand.New(rand.NewPCG(seed, 0))
		pool := NewPool(1)
		defer pool.Close()
		for _, k := range []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 80, 128, 131} {
			for m := range 10 {
				for rows := range 6 {
					x, w := random(rng, rows*k+1)[1:], random(rng, m*k+1)[1:]
					dst := make([]float32, rows*m+1)
					dst[rows*m] = 7
					DotRows(dst, x, w, k)
					if dst[rows*m] != 7 {
						t.Fatalf("k %d, %d × %d: wrote past the end", k, rows, m)
					}
					for i, got := range dst[:rows*m] {
						want, size := dot64(x[i/m*k:][:k], w[i%m*k:][:k])
						if !(math.Abs(float64(got)-want) <= tolerance(k, size)) {
							t.Fatalf("seed %d, k %d: row %d of %d with row %d of %d = %v, want %v", seed, k, i/m, rows, i%m, m, got, want)
						}
					}
					if m == 0 {
						continue
					}
					product, matrix := make([]float32, rows*m), floatMatrix(w, m, k)
					multiply(new(MatMul), pool, product, x, rows, &matrix)
					if i, ok := sameBits(dst[:rows*m], product); !ok {
						t.Fatalf("seed %d, k %d, %d × %d: product %d = %v, by MatMul %v", seed, k, rows, m, i, dst[i], product[i])
					}
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

func BenchmarkDotRows(b *testing.B) {
	const d, keys = 64, 32 // a tile of attention
	for _, rows := range []int{1, 48} {
		b.Run(fmt.Sprintf("T=%d", rows), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			x, w, dst := random(rng, rows*d), random(rng, keys*d), make([]float32, rows*keys)
			for b.Loop() {
				DotRows(dst, x, w, d)
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
