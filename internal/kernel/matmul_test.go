package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"unsafe"
)

// floatMatrix is a matrix of m × k float32 weights that starts 4 bytes past a multiple of 64 and so is aligned to no
// vector.
func floatMatrix(w []float32, m, k int) Matrix {
	b := make([]byte, 4*len(w)+128)
	for uintptr(unsafe.Pointer(unsafe.SliceData(b)))%64 != 4 {
		b = b[1:]
	}
	for i, v := range w {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return matrix(F32, m, k, b[:4*len(w)])
}

// randomMatrix is m × k random weights of type t, all finite and, where they are floats, of one size.
func randomMatrix(rng *rand.Rand, t Type, m, k int) Matrix {
	b := make([]byte, m*t.RowBytes(k))
	switch t {
	case F32:
		return floatMatrix(random(rng, m*k), m, k)
	case F16:
		for i := 0; i < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], F32ToF16(float32(rng.NormFloat64())))
		}
	case BF16:
		for i := 0; i < len(b); i += 2 {
			binary.LittleEndian.PutUint16(b[i:], uint16(math.Float32bits(float32(rng.NormFloat64()))>>16))
		}
	default:
		for i := range b {
			b[i] = byte(rng.Uint32()) &^ 0x40 // wherever the halves of the scales lie, they are below 2
		}
	}
	return matrix(t, m, k, b)
}

func matrix(t Type, m, k int, data []byte) Matrix {
	w, err := NewMatrix(t, m, k, data)
	if err != nil {
		panic(err)
	}
	return w
}

// dequantized is the rows of a matrix as float32.
func dequantized(w *Matrix) []float32 {
	all := make([]float32, w.Rows*w.Cols)
	for i := range w.Rows {
		w.Row(all[i*w.Cols:], i)
	}
	return all
}

func TestMatMul_AgreesWithFloat64(t *testing.T) {
	type shape struct {
		typ     Type
		t, m, k int
	}
	var shapes []shape
	for k := 1; k <= 70; k++ {
		shapes = append(shapes, shape{F32, 1 + k%4, 1 + k%19, k})
	}
	for _, typ := range known {
		block := max(typ.BlockLen(), 32)
		for _, k := range []int{block, 3 * block, 2048} {
			for _, m := range []int{1, 2, 3, 5, 16, 21} {
				shapes = append(shapes, shape{typ, 3, m, k})
			}
		}
	}
	eachPath(t, func(t *testing.T) {
		const seed = 3
		rng := rand.New(rand.NewPCG(seed, 0))
		pool := NewPool(2)
		defer pool.Close()
		var mm MatMul // one for all, so that scratch of one shape meets another
		for _, s := range shapes {
			w := randomMatrix(rng, s.typ, s.m, s.k)
			x := random(rng, s.t*s.k+1)[1:] // not aligned to a vector
			dst := make([]float32, s.t*s.m+2)
			dst[0], dst[len(dst)-1] = 7, 7
			multiply(&mm, pool, dst[1:], x, s.t, &w)
			if dst[0] != 7 || dst[len(dst)-1] != 7 {
				t.Fatalf("%+v: wrote beside dst", s)
			}
			rows := dequantized(&w)
			for i := range s.t * s.m {
				want, size := dot64(x[i/s.m*s.k:][:s.k], rows[i%s.m*s.k:][:s.k])
				if got := float64(dst[1+i]); !(math.Abs(got-want) <= tolerance(s.k, size)) {
					t.Fatalf("seed %d, %+v: token %d, output %d = %v, want %v ± %g", seed, s, i/s.m, i%s.m, got, want, tolerance(s.k, size))
				}
			}
		}
	})
}

// A special value reaches exactly the outputs it belongs to, wherever in a row it stands: vectors, tail, all four rows of a
// panel, both tokens of a pair.
func TestMatMul_NaNInfDenormal_ReachTheirOutputsOnly(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	const tiny = 3e-42 // a denormal
	eachPath(t, func(t *testing.T) {
		pool := NewPool(1)
		defer pool.Close()
		var mm MatMul
		for k := 1; k <= 27; k++ {
			for at := range k {
				for _, c := range []struct{ x, w, want float32 }{
					{nan, 1, nan}, {nan, 0, nan}, {inf, 2, inf}, {inf, -2, -inf}, {-inf, 2, -inf}, {inf, 0, nan}, {0, nan, nan}, {1, -inf, -inf},
					{tiny, 1, tiny}, {1, tiny, tiny}, {0.5, -2 * tiny, -tiny},
				} {
					const m, rows = 5, 3
					for special := range m * rows {
						token, output := special/m, special%m
						weights, x := make([]float32, m*k), make([]float32, rows*k)
						x[token*k+at], weights[output*k+at] = c.x, c.w
						if c.w == 0 || c.x == 0 { // 0·NaN would reach the other outputs rightly; look at this one alone
							for i := range x {
								x[i] = c.x
							}
							for i := range weights {
								weights[i] = c.w
							}
						}
						w := floatMatrix(weights, m, k)
						dst := make([]float32, m*rows)
						multiply(&mm, pool, dst, x, rows, &w)
						if got := dst[special]; got != c.want && !(got != got && c.want != c.want) {
							t.Fatalf("K %d: %v at %d times %v = %v, want %v", k, c.x, at, c.w, got, c.want)
						}
						for i, got := range dst {
							beside := i/m != token && i%m != output
							if beside && c.x != 0 && c.w != 0 && got != 0 {
								t.Fatalf("K %d: %v at %d of token %d times %v in output %d reached token %d, output %d: %v", k, c.x, at, token, c.w, output, i/m, i%m, got)
							}
						}
					}
				}
			}
		}
	})
}

func TestMatMul_RowsAndThreads_SameBits(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed, tokens = 4, 64
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, s := range []struct {
			typ  Type
			m, k int
		}{{F32, 37, 5}, {F32, 37, 8}, {F32, 70, 61}, {F32, 67, 576}, {F16, 21, 96}, {F16, 64, 1536}, {BF16, 33, 700}, {Q4_1, 67, 576}, {Q8_0, 35, 320}, {Q6_K, 19, 512}} {
			w := randomMatrix(rng, s.typ, s.m, s.k)
			x := random(rng, tokens*s.k)
			want := make([]float32, tokens*s.m)
			one := NewPool(1)
			w.Pack(one, Memory(w.PackedBytes()))
			multiply(new(MatMul), one, want, x, tokens, &w)
			one.Close()
			for threads := 1; threads <= 3; threads++ {
				pool := NewPool(threads)
				var mm MatMul
				for _, step := range []int{1, 3, tokens} {
					got := make([]float32, tokens*s.m)
					for from := 0; from < tokens; from += step {
						n := min(step, tokens-from)
						multiply(&mm, pool, got[from*s.m:], x[from*s.k:], n, &w)
					}
					if i, ok := sameBits(got, want); !ok {
						t.Errorf("seed %d, %+v: %d rows at a time on %d threads: token %d, output %d = %v, all %d rows on one thread %v",
							seed, s, step, threads, i/s.m, i%s.m, got[i], tokens, want[i])
					}
				}
				pool.Close()
			}
		}
	})
}

func TestMatMul_Add_AddsTheSameProduct(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const m, k, rows = 21, 96, 5
		rng := rand.New(rand.NewPCG(5, 0))
		pool := NewPool(2)
		defer pool.Close()
		w, x, before := randomMatrix(rng, Q4_0, m, k), random(rng, rows*k), random(rng, rows*m)
		w.Pack(pool, Memory(w.PackedBytes()))
		product, sum := make([]float32, rows*m), append([]float32(nil), before...)
		multiply(new(MatMul), pool, product, x, rows, &w)
		var a Activations
		a.Set(x, rows, k)
		new(MatMul).Run(pool, Product{Dst: sum, X: &a, W: &w, Add: true})
		for i := range sum {
			if want := before[i] + product[i]; !(math.Abs(float64(sum[i]-want)) <= 1e-5) {
				t.Errorf("output %d = %v, want %v + %v = %v", i, sum[i], before[i], product[i], want)
			}
		}
	})
}

func TestMatMul_AfterTheFirstCall_AllocatesNothing(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const m, k, rows = 64, 128, 5
		rng := rand.New(rand.NewPCG(6, 0))
		pool := NewPool(2)
		defer pool.Close()
		for _, typ := range []Type{Q4_1, F16} {
			w, x, dst := randomMatrix(rng, typ, m, k), random(rng, rows*k), make([]float32, rows*m)
			w.Pack(pool, Memory(w.PackedBytes()))
			var mm MatMul
			var a Activations
			if n := testing.AllocsPerRun(20, func() { a.Set(x, rows, k); mm.Run(pool, Product{Dst: dst, X: &a, W: &w}) }); n != 0 {
				t.Errorf("%v: %v allocations a call, want 0", typ, n)
			}
		}
	})
}

func TestNewMatrix_WhatDoesNotFit_IsSaid(t *testing.T) {
	for _, c := range []struct {
		typ        Type
		rows, cols int
		bytes      int
		want       string
	}{
		{23, 1, 256, 136, "weights of type IQ4_XS cannot be multiplied"},
		{99, 1, 1, 1, "weights of type type 99 cannot be multiplied"},
		{Q4_1, 2, 48, 60, "rows of 48 weights, but Q4_1 comes in blocks of 32"},
		{Q6_K, 1, 32, 26, "rows of 32 weights, but Q6_K comes in blocks of 256"},
		{Q4_1, 3, 64, 119, "3 × 64 weights of Q4_1 take 120 bytes, found 119"},
		{F32, 2, 3, 28, "2 × 3 weights of F32 take 24 bytes, found 28"},
	} {
		if _, err := NewMatrix(c.typ, c.rows, c.cols, make([]byte, c.bytes)); err == nil || err.Error() != c.want {
			t.Errorf("NewMatrix(%v, %d, %d, %d bytes): %v, want %q", c.typ, c.rows, c.cols, c.bytes, err, c.want)
		}
	}
}

func TestFloatsAndHalves_ViewInPlace_PanicWhereTheyCannot(t *testing.T) {
	buf := make([]byte, 64+8)
	for uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%64 != 0 {
		buf = buf[1:]
	}
	binary.LittleEndian.PutUint32(buf[4:], math.Float32bits(-1.5))
	floats, halves := Floats(buf[:8]), Halves(buf[2:8])
	if len(floats) != 2 || floats[1] != -1.5 {
		t.Errorf("Floats of 8 bytes = %v, want 0 and -1.5", floats)
	}
	if len(halves) != 3 || halves[2] != uint16(math.Float32bits(-1.5)>>16) {
		t.Errorf("Halves of 6 bytes = %x, want three with -1.5's upper bits last", halves)
	}
	floats[0] = 2
	if got := math.Float32frombits(binary.LittleEndian.Uint32(buf)); got != 2 {
		t.Errorf("written through the view: 2, read in place: %v", got)
	}
	if Floats(nil) != nil || Halves(buf[:0]) != nil {
		t.Error("the view of nothing is not nil")
	}
	for name, view := range map[string]func(){
		"floats at an even address": func() { Floats(buf[2:10]) },
		"floats in 7 bytes":         func() { Floats(buf[:7]) },
		"halves at an odd address":  func() { Halves(buf[1:3]) },
		"halves in 3 bytes":         func() { Halves(buf[:3]) },
	} {
		func() {
			defer func() {
				if said, _ := recover().(string); !strings.Contains(said, "no whole aligned") {
					t.Errorf("%s: panic %q, want one about alignment", name, said)
				}
			}()
			view()
		}()
	}
}

func BenchmarkMatMul(b *testing.B) {
	for _, typ := range []Type{F32, Q4_1, Q8_0} {
		for _, rows := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%v/T=%d", typ, rows), func(b *testing.B) {
				const m, k = 1536, 576
				rng := rand.New(rand.NewPCG(1, 2))
				w := randomMatrix(rng, typ, m, k)
				x, dst := random(rng, rows*k), make([]float32, rows*m)
				pool := NewPool(runtime.GOMAXPROCS(0))
				defer pool.Close()
				var mm MatMul
				for b.Loop() {
					multiply(&mm, pool, dst, x, rows, &w)
				}
				b.ReportMetric(2*float64(m*k*rows)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
