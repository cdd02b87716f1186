package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestF16ToF32_EveryHalf_IsFractionTimesPowerOfTwo(t *testing.T) {
	for h := range 1 << 16 {
		exponent, fraction := h>>10&31, float64(h&0x3ff)
		var want float64
		switch {
		case exponent == 31 && fraction != 0:
			want = math.NaN()
		case exponent == 31:
			want = math.Inf(1)
		case exponent == 0:
			want = math.Ldexp(fraction, -24)
		default:
			want = math.Ldexp(1024+fraction, exponent-25)
		}
		if h>>15 == 1 {
			want = -want
		}
		got := float64(F16ToF32(uint16(h)))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (h>>15 == 1) {
			t.Errorf("F16ToF32(%#04x) = %v, want %v", h, got, want)
		}
	}
}

func TestF32ToF16_EveryHalf_ComesBack(t *testing.T) {
	for h := range 1 << 16 {
		want := uint16(h)
		if h&0x7fff > 0x7c00 {
			want |= 0x200 // a NaN comes back quiet
		}
		if got := F32ToF16(F16ToF32(uint16(h))); got != want {
			t.Errorf("%#04x came back as %#04x, want %#04x", h, got, want)
		}
	}
}

// Between two neighbouring halves lies one float32 that is as far from both; it and its neighbours are where rounding can go wrong.
func TestF32ToF16_BetweenHalves_RoundsToNearestEven(t *testing.T) {
	for h := range uint16(0x7c00) {
		low, high := float64(F16ToF32(h)), float64(F16ToF32(h+1))
		if h == 0x7bff {
			high = 65536 // what follows the largest half if there were no Inf
		}
		middle := float32((low + high) / 2)
		even := h + h&1
		check(t, middle, even)
		check(t, math.Nextafter32(middle, 0), h)
		check(t, math.Nextafter32(middle, math.MaxFloat32), h+1)
	}
	check(t, math.MaxFloat32, 0x7c00)
	check(t, float32(math.Inf(1)), 0x7c00)
	check(t, math.SmallestNonzeroFloat32, 0)
}

func check(t *testing.T, f float32, want uint16) {
	t.Helper()
	if got := F32ToF16(f); got != want {
		t.Errorf("F32ToF16(%v) = %#04x, want %#04x", f, got, want)
	}
	if got := F32ToF16(-f); got != want|0x8000 {
		t.Errorf("F32ToF16(%v) = %#04x, want %#04x", -f, got, want|0x8000)
	}
}

func TestF32ToF16_AnyFloat_NoHalfIsNearer(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200_000 {
		f := math.Float32frombits(rng.Uint32()&0x8fffffff | 0x30000000) // 2⁻³¹ to 2 and more
		h := F32ToF16(f)
		distance := math.Abs(float64(F16ToF32(h)) - float64(f))
		for _, other := range []uint16{h - 1, h + 1} {
			if math.Abs(float64(F16ToF32(other))-float64(f)) < distance {
				t.Fatalf("seed %d: F32ToF16(%v) = %#04x, but %#04x is nearer", seed, f, h, other)
			}
		}
	}
}

func TestBF16ToF32_IsTheUpperHalf(t *testing.T) {
	for b, want := range map[uint16]float32{0x3f80: 1, 0xc0a0: -5, 0x0001: 0x1p-133, 0x7f80: float32(math.Inf(1))} {
		if got := BF16ToF32(b); got != want {
			t.Errorf("BF16ToF32(%#04x) = %v, want %v", b, got, want)
		}
	}
}

// Between two neighbours lies one float32 that is as far from both; what follows the largest number would be 2¹²⁸.
func TestF32ToBF16_RoundsToNearestEven(t *testing.T) {
	for b := range uint16(0x7f80) {
		low, high := float64(BF16ToF32(b)), math.Ldexp(1, 128)
		if b != 0x7f7f {
			high = float64(BF16ToF32(b + 1))
		}
		middle := float32((low + high) / 2)
		for f, want := range map[float32]uint16{
			float32(low): b, middle: b + b&1, math.Nextafter32(middle, 0): b, math.Nextafter32(middle, math.MaxFloat32): b + 1,
		} {
			if got, negative := F32ToBF16(f), F32ToBF16(-f); got != want || negative != want|0x8000 {
				t.Fatalf("±%v = %#04x and %#04x, want %#04x and %#04x", f, got, negative, want, want|0x8000)
			}
		}
	}
	for f, want := range map[uint32]uint16{0x7f800000: 0x7f80, 0xff800000: 0xff80, 0x7f800001: 0x7fc0, 0xffffffff: 0xffff, 0x7fa1ffff: 0x7fe1} {
		if got := F32ToBF16(math.Float32frombits(f)); got != want {
			t.Errorf("%#08x = %#04x, want %#04x", f, got, want)
		}
	}
}
