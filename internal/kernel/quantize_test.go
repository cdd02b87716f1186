package kernel

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

var quantizable = []Type{F32, F16, BF16, Q4_0, Q4_1, Q8_0}

// testdata/quantize.json was made by testdata/make_quantize.py with llama.cpp's own quantizer.
func TestQuantize_BytesAreLlamaCpps(t *testing.T) {
	raw, err := os.ReadFile("testdata/quantize.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Type          string
		Values, Bytes []byte
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range cases {
		seen[c.Type] = true
		typ := typeNamed(t, c.Type)
		x := make([]float32, len(c.Values)/4)
		Dequantize(F32, x, c.Values)
		n, size := max(typ.BlockLen(), 32), typ.RowBytes(max(typ.BlockLen(), 32))
		for i := range len(x) / n {
			got, want := make([]byte, size), c.Bytes[i*size:][:size]
			if err := Quantize(typ, got, x[i*n:][:n]); err != nil || string(got) != string(want) {
				t.Errorf("%v of %v:\n got %x (%v)\nwant %x", typ, x[i*n:][:n], got, err, want)
			}
		}
	}
	for _, typ := range quantizable {
		if typ != F32 && !seen[typ.String()] {
			t.Errorf("no case for %v", typ)
		}
	}
}

// A value comes back within half a step of its block, and what the half floats of the block's scale and minimum lose.
func TestQuantize_ComesBackWithinHalfAStep(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, typ := range quantizable {
		for _, size := range []float32{1e-9, 1e-4, 1, 300} {
			x := random(rng, 640)
			for i := range x {
				x[i] *= size
			}
			clear(x[64:96]) // a block of zeros
			back := throughQuantize(t, typ, x)
			for i, v := range x {
				low, high := x[i/32*32], x[i/32*32]
				for _, w := range x[i/32*32:][:32] {
					low, high = min(low, w), max(high, w)
				}
				if bound := quantizeBound(typ, float64(v), float64(low), float64(high)); math.Abs(float64(back[i]-v)) > bound {
					t.Errorf("seed %d: %v, size %g: value %d: %v came back as %v, more than %g away", seed, typ, size, i, v, back[i], bound)
				}
			}
		}
	}
}

// quantizeBound is how far v, of a block from low to high, may come back from where it was.
func quantizeBound(typ Type, v, low, high float64) float64 {
	top := max(-low, high)
	half := func(v float64) float64 { return max(math.Abs(v)*0x1p-11, 0x1p-25) } // what rounding v to a half loses
	const float = 1 + 0x1p-20                                                    // the float32 arithmetic in between
	switch typ {
	case F16:
		return half(v)
	case BF16:
		return math.Abs(v) * 0x1p-8
	case Q4_0: // eight steps to the side of the largest magnitude, seven to the other: there the end may be a whole step off
		d := top / 8
		if end := 7.5 * d; top == high && -v > end || top == -low && v > end {
			return (d + 8*half(d)) * float
		}
		return (d/2 + 8*half(d)) * float
	case Q4_1:
		d := (high - low) / 15
		return (d/2 + 15*half(d) + half(low)) * float
	case Q8_0:
		d := top / 127
		return (d/2 + 127*half(d)) * float
	}
	return 0
}

func TestQuantize_ValuesOnTheGrid_StayThere(t *testing.T) {
	const seed = 2
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, typ := range []Type{F32, F16, BF16, Q4_0, Q8_0} { // what was quantized once is on the grid of its block
		for _, size := range []float32{1e-6, 1} {
			x := random(rng, 640)
			for i := range x {
				x[i] *= size
			}
			once := throughQuantize(t, typ, x)
			for i, v := range throughQuantize(t, typ, once) {
				if v != once[i] {
					t.Errorf("seed %d: %v: value %d, %v, became %v", seed, typ, i, once[i], v)
				}
			}
		}
	}
	// Of Q4_1 the smallest and the largest value are d·0 + m and d·15 + m, which must not need rounding to give d back.
	x := make([]float32, 640)
	for i := range x {
		x[i] = float32(i/32%7)*0.25 - 4 + 0.125*float32([]int{0, 15, rng.IntN(16)}[min(i%32, 2)])
	}
	for i, v := range throughQuantize(t, Q4_1, x) {
		if v != x[i] {
			t.Errorf("seed %d: Q4_1: value %d, %v, became %v", seed, i, x[i], v)
		}
	}
}

func throughQuantize(t *testing.T, typ Type, x []float32) []float32 {
	t.Helper()
	b, back := make([]byte, typ.RowBytes(len(x))), make([]float32, len(x))
	if err := Quantize(typ, b, x); err != nil {
		t.Fatalf("%v: %v", typ, err)
	}
	Dequantize(typ, back, b)
	return back
}

func TestQuantize_WhatNoLayoutHolds_IsAnError(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, typ := range quantizable {
		large := map[Type]float32{F32: inf, F16: 65536, BF16: 0x1.fffp127, Q4_0: 8 * 65536, Q4_1: 65536, Q8_0: 127 * 65536}[typ]
		for _, v := range []float32{float32(math.NaN()), inf, -inf, large, -large} {
			x := make([]float32, 32)
			x[5] = v
			err := Quantize(typ, make([]byte, typ.RowBytes(32)), x)
			if err == nil || !strings.HasPrefix(err.Error(), "value 5 is ") {
				t.Errorf("%v of %v: %v, want an error that names value 5", typ, v, err)
			}
		}
		x := make([]float32, 32)
		x[0] = float32(map[Type]float64{F32: math.MaxFloat32, F16: largestF16, BF16: largestBF16, Q4_0: 8 * largestF16, Q4_1: largestF16, Q8_0: 127 * largestF16}[typ])
		if back := throughQuantize(t, typ, x); math.Abs(float64(back[0]/x[0])-1) > 0x1p-10 {
			t.Errorf("%v: the largest value, %v, came back as %v", typ, x[0], back[0])
		}
	}
}

func BenchmarkQuantize(b *testing.B) {
	x := random(rand.New(rand.NewPCG(3, 0)), 1536)
	for _, typ := range quantizable {
		dst := make([]byte, typ.RowBytes(len(x)))
		b.Run(typ.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Quantize(typ, dst, x); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(x))*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gvalues/s")
		})
	}
}
