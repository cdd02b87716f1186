package kernel

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Quantizable says whether Quantize writes t.
func Quantizable(t Type) bool {
	switch t {
	case F32, F16, BF16, Q4_0, Q4_1, Q8_0:
		return true
	}
	return false
}

// Quantize writes src in layout t, which must be Quantizable, to dst: the inverse of Dequantize, up to rounding. len(src) is a
// multiple of t.BlockLen(), len(dst) is t.RowBytes(len(src)). A value that is no finite number, or too large for the layout's
// half floats, is an error that names its index.
//
// Q8_0 scales the block's largest magnitude to 127. Q4_0 scales the value of largest magnitude to -8, so that the codes'
// whole range is used; Q4_1 spans from the smallest to the largest value.
func Quantize(t Type, dst []byte, src []float32) error {
	limit := float64(math.MaxFloat32)
	switch t {
	case F16, Q4_1:
		limit = 65504
	case Q4_0:
		limit = 65504 * 8
	case Q8_0:
		limit = 65504 * 127
	}
	for i, v := range src {
		if !(math.Abs(float64(v)) <= limit) {
			return fmt.Errorf("value %d is %v; %v holds numbers up to ±%g", i, v, t, limit)
		}
	}
	put := binary.LittleEndian
	n, size := t.BlockLen(), t.BlockBytes()
	for i := 0; i*n < len(src); i++ {
		x, b := src[i*n:(i+1)*n], dst[i*size:(i+1)*size]
		switch t {
		case F32:
			put.PutUint32(b, math.Float32bits(x[0]))
		case F16:
			put.PutUint16(b, F32ToF16(x[0]))
		case BF16:
			u := math.Float32bits(x[0])
			put.PutUint16(b, uint16((u+0x7fff+u>>16&1)>>16)) // to nearest, ties to even
		case Q4_0:
			var top float32
			for _, v := range x {
				if math.Abs(float64(v)) > math.Abs(float64(top)) {
					top = v
				}
			}
			d := top / -8
			put.PutUint16(b, F32ToF16(d))
			pack4(b[2:], x, d, 8.5)
		case Q4_1:
			low, high := x[0], x[0]
			for _, v := range x {
				low, high = min(low, v), max(high, v)
			}
			d := (high - low) / 15
			put.PutUint16(b, F32ToF16(d))
			put.PutUint16(b[2:], F32ToF16(low))
			shifted := make([]float32, len(x))
			for j, v := range x {
				shifted[j] = v - low
			}
			pack4(b[4:], shifted, d, 0.5)
		case Q8_0:
			var top float32
			for _, v := range x {
				top = max(top, v, -v)
			}
			d := top / 127
			put.PutUint16(b, F32ToF16(d))
			for j, v := range x {
				b[2+j] = byte(int8(math.Round(float64(v * inverse(d)))))
			}
		}
	}
	return nil
}

// pack4 writes the codes ⌊x/d + shift⌋, 0 to 15, of 32 values: the first 16 in the low nibbles.
func pack4(b []byte, x []float32, d, shift float32) {
	code := func(v float32) byte { return byte(min(max(v*inverse(d)+shift, 0), 15)) }
	for j := range 16 {
		b[j] = code(x[j]) | code(x[16+j])<<4
	}
}

// inverse is 1/d, and 0 where d is 0, or so small that its inverse is no number.
func inverse(d float32) float32 {
	if inv := 1 / d; !math.IsInf(float64(inv), 0) {
		return inv
	}
	return 0
}
