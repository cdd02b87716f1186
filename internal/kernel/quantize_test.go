package kernel

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// A value comes back within half a step of its block, and what the half floats of the block's scale and minimum lose.
func TestQuantize_ComesBackWithinHalfAStep(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	for _, typ := range []Type{F32, F16, BF16, Q4_0, Q4_1, Q8_0} {
		for _, size := range []float32{1e-4, 1, 300} {
			x := random(rng, 320)
			for i := range x {
				x[i] *= size
			}
			clear(x[64:96]) // a block of zeros
			b, back := make([]byte, typ.RowBytes(len(x))), make([]float32, len(x))
			if err := Quantize(typ, b, x); err != nil {
				t.Fatalf("%v: %v", typ, err)
			}
			Dequantize(typ, back, b)
			n := max(typ.BlockLen(), 32)
			for i, v := range x {
				low, high, top := math.Inf(1), math.Inf(-1), 0.0
				for _, w := range x[i/n*n:][:n] {
					low, high, top = min(low, float64(w)), max(high, float64(w)), max(top, math.Abs(float64(w)))
				}
				half := 6e-8 // the smallest half float
				bound := map[Type]float64{
					F32: 0, F16: math.Abs(float64(v))*0x1p-11 + half, BF16: math.Abs(float64(v)) * 0x1p-8,
					// Q4_0 has 8 steps to one side and 7 to the other: the far end may be a whole step off.
					Q4_0: top/8 + top*0x1p-11 + 8*half, Q4_1: (high-low)/30 + (high-low+top)*0x1p-11 + 16*half, Q8_0: top/254 + top*0x1p-11 + 127*half,
				}[typ]
				if math.Abs(float64(back[i]-v)) > bound {
					t.Errorf("%v, size %g: value %d: %v came back as %v, more than %g away", typ, size, i, v, back[i], bound)
				}
			}
		}
	}
}

// What was quantized once is on the grid, and stays what it is.
func TestQuantize_ValuesOnTheGrid_StayThere(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0))
	for _, typ := range []Type{F32, F16, BF16, Q4_0, Q8_0} {
		x := random(rng, 320)
		b, back := make([]byte, typ.RowBytes(len(x))), make([]float32, len(x))
		if err := Quantize(typ, b, x); err != nil {
			t.Fatal(err)
		}
		Dequantize(typ, x, b)
		if err := Quantize(typ, b, x); err != nil {
			t.Fatal(err)
		}
		Dequantize(typ, back, b)
		if i, ok := sameBits(back, x); !ok {
			t.Errorf("%v: value %d: %v became %v", typ, i, x[i], back[i])
		}
	}
}

func TestQuantize_WhatNoLayoutHolds_IsAnError(t *testing.T) {
	for _, c := range []struct {
		typ Type
		v   float32
	}{{F32, float32(math.NaN())}, {Q8_0, float32(math.Inf(1))}, {F16, 70000}, {Q4_1, -70000}, {Q4_0, 1e6}, {Q8_0, 1e7}} {
		x := make([]float32, 32)
		x[5] = c.v
		err := Quantize(c.typ, make([]byte, c.typ.RowBytes(32)), x)
		if err == nil || !strings.Contains(err.Error(), "value 5 is ") {
			t.Errorf("%v of %v: %v, want an error that names value 5", c.typ, c.v, err)
		}
	}
}
