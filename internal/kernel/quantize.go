package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// largest is the largest finite number of F16 and of BF16.
const (
	largestF16  = 65504
	largestBF16 = 0x1.fep127
)

// Quantize writes src in layout t to dst: the inverse of Dequantize, up to rounding. t is F32, F16, BF16, Q4_0, Q4_1 or Q8_0, len(src)
// a multiple of t.BlockLen(), and len(dst) t.RowBytes(len(src)). A value that is no finite number, or that the layout cannot hold, is an
// error that names its index. The bytes are the same on every machine, and those of llama.cpp.
func Quantize(t Type, dst []byte, src []float32) error {
	if len(src)%t.BlockLen() != 0 || len(dst) != t.RowBytes(len(src)) {
		panic(fmt.Sprintf("kernel: %d values in %d bytes are not whole blocks of %v", len(src), len(dst), t))
	}
	var write func(dst []byte, src []float32)
	limit := float32(math.MaxFloat32) // of a value; a block's scale, and its minimum, are halves
	switch t {
	case F32:
		write = writeF32
	case F16:
		write, limit = writeF16, largestF16
	case BF16:
		write, limit = writeBF16, largestBF16
	case Q4_0:
		write, limit = writeQ4_0, largestF16*8
	case Q4_1:
		write, limit = writeQ4_1, largestF16
	case Q8_0:
		write, limit = writeQ8_0, largestF16*127
	default:
		panic(fmt.Sprintf("kernel: Quantize does not write %v", t))
	}
	for i, v := range src {
		if !(v >= -limit && v <= limit) { // a NaN is neither
			return fmt.Errorf("value %d is %v; %v holds numbers up to ±%g", i, v, t, limit)
		}
	}
	write(dst, src)
	return nil
}

func writeF32(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

func writeF16(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], F32ToF16(v))
	}
}

func writeBF16(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], F32ToBF16(v))
	}
}

// The layouts of 32 values, which quant.go describes. A quant is worked out from the scale before that is rounded to a half.

// writeQ4_0: the value of largest magnitude, the first of several, becomes quant -8, of which there is no positive twin. What lies as
// far out on the other side becomes 7, one step short.
func writeQ4_0(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[18:], src[32:] {
		x, b := (*[32]float32)(src), (*[18]byte)(dst)
		var top float32
		for _, v := range x {
			if max(v, -v) > max(top, -top) {
				top = v
			}
		}
		d := top / -8
		binary.LittleEndian.PutUint16(b[:], F32ToF16(d))
		writeNibbles((*[16]byte)(b[2:]), x, 0, inverse(d), 8.5)
	}
}

// writeQ4_1: the quants span from the smallest value to the largest.
func writeQ4_1(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[20:], src[32:] {
		x, b := (*[32]float32)(src), (*[20]byte)(dst)
		low, high := x[0], x[0]
		for _, v := range x {
			if v < low { // not min: of 0 and -0, the first
				low = v
			}
			high = max(high, v)
		}
		d := (high - low) / 15
		binary.LittleEndian.PutUint16(b[:], F32ToF16(d))
		binary.LittleEndian.PutUint16(b[2:], F32ToF16(low))
		writeNibbles((*[16]byte)(b[4:]), x, low, inverse(d), 0.5)
	}
}

// writeNibbles writes ⌊(x - low)·scale + shift⌋, 0 to 15, of each value. The product is rounded before it is added to.
func writeNibbles(b *[16]byte, x *[32]float32, low, scale, shift float32) {
	quant := func(v float32) byte { return min(byte(float32((v-low)*scale)+shift), 15) }
	for j := range b {
		b[j] = quant(x[j]) | quant(x[16+j])<<4
	}
}

// writeQ8_0: the largest magnitude becomes 127; halves are rounded away from zero.
func writeQ8_0(dst []byte, src []float32) {
	for ; len(src) >= 32; dst, src = dst[34:], src[32:] {
		x, b := (*[32]float32)(src), (*[34]byte)(dst)
		var top float32
		for _, v := range x {
			top = max(top, v, -v)
		}
		d := top / 127
		scale := inverse(d)
		binary.LittleEndian.PutUint16(b[:], F32ToF16(d))
		for j, v := range x {
			b[2+j] = byte(int8(math.Round(float64(v * scale))))
		}
	}
}

// inverse returns 1/d, or 0 where that is no finite number: the half of such a d is 0, and so is each value of the block.
func inverse(d float32) float32 {
	if inv := 1 / d; inv >= -math.MaxFloat32 && inv <= math.MaxFloat32 {
		return inv
	}
	return 0
}
