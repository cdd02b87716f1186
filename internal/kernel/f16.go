package kernel

import "math"

// f16Values holds the value of each of the 65,536 halves, so that a conversion is one load; init fills it.
var f16Values [1 << 16]float32

func init() {
	for h := range f16Values {
		f16Values[h] = f16Value(uint16(h))
	}
}

// F16ToF32 returns the value of an IEEE 754 half; every half, NaNs included, is exact in a float32.
func F16ToF32(h uint16) float32 { return f16Values[h] }

// F32ToF16 returns the half nearest to f, ties to even. What is too large becomes Inf, what is too small a subnormal or zero of
// f's sign; a NaN stays a (quiet) NaN with the upper ten bits of its payload.
func F32ToF16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000: // NaN
		return sign | 0x7e00 | uint16(b>>13&0x3ff)
	case b >= 0x477ff000: // 65,520 and more: halfway between the largest half and what would be the next
		return sign | 0x7c00
	case b >= 0x38800000: // 2⁻¹⁴ and more: a normal half
		b += 0xfff + b>>13&1 // half a unit less one, and one more where the kept part is odd; a carry into the exponent is right
		return sign | uint16(b>>13-112<<10)
	default:
		// A subnormal half counts units of 2⁻²⁴. One unit is the last place of a float32 in [½, 1),
		// so adding ½ lets the hardware round to it, ties to even, and the count is left in the low bits.
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-0x3f000000)
	}
}

// BF16ToF32 returns the value of a bfloat16: the upper half of a float32.
func BF16ToF32(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// F32ToBF16 returns the bfloat16 nearest to f, ties to even. What is too large becomes Inf; a NaN stays a (quiet) NaN with the upper bits of
// its payload.
func F32ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16) // half a unit less one, and one more where the kept part is odd
}

// f16Value works out what F16ToF32 looks up.
func f16Value(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exponent, fraction := uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exponent {
	case 0: // zero or subnormal: fraction · 2⁻²⁴
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*0x1p-24))
	case 31: // Inf or NaN
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	default:
		return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
	}
}
