package kernel

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// A Type says how the numbers of a tensor are laid out, under the number GGUF gives it. A row is a sequence of blocks, each with its
// own scale, so a row's length is a multiple of the block's.
type Type uint32

// The types that Dequantize reads.
const (
	F32  Type = 0
	F16  Type = 1
	Q4_0 Type = 2
	Q4_1 Type = 3
	Q5_0 Type = 6
	Q5_1 Type = 7
	Q8_0 Type = 8
	Q2_K Type = 10
	Q3_K Type = 11
	Q4_K Type = 12
	Q5_K Type = 13
	Q6_K Type = 14
	BF16 Type = 30
)

// types tells, for each GGUF number, the name and the layout: values and bytes a block. Types without a layout
// are named only so that a message can say what a file holds.
var types = [...]struct {
	name       string
	len, bytes int
}{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2},
	Q4_0: {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24}, Q8_0: {"Q8_0", 32, 34},
	Q2_K: {"Q2_K", 256, 84}, Q3_K: {"Q3_K", 256, 110}, Q4_K: {"Q4_K", 256, 144}, Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210},
	9: {name: "Q8_1"}, 15: {name: "Q8_K"}, 16: {name: "IQ2_XXS"}, 17: {name: "IQ2_XS"}, 18: {name: "IQ3_XXS"}, 19: {name: "IQ1_S"},
	20: {name: "IQ4_NL"}, 21: {name: "IQ3_S"}, 22: {name: "IQ2_S"}, 23: {name: "IQ4_XS"}, 24: {name: "I8"}, 25: {name: "I16"},
	26: {name: "I32"}, 27: {name: "I64"}, 28: {name: "F64"}, 29: {name: "IQ1_M"}, 34: {name: "TQ1_0"}, 35: {name: "TQ2_0"}, 39: {name: "MXFP4"},
}

// String returns the type's name, or its number where it has no name.
func (t Type) String() string {
	if int(t) < len(types) && types[t].name != "" {
		return types[t].name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Known says whether Dequantize reads t.
func (t Type) Known() bool { return int(t) < len(types) && types[t].bytes > 0 }

// BlockLen returns the number of values in a block of t, which must be known.
func (t Type) BlockLen() int { return types[t].len }

// BlockBytes returns the number of bytes of a block of t, which must be known.
func (t Type) BlockBytes() int { return types[t].bytes }

// RowBytes returns the number of bytes of n values of t, which must be known; n is a multiple of BlockLen.
func (t Type) RowBytes(n int) int { return n / t.BlockLen() * t.BlockBytes() }

// Dequantize writes the len(dst) values that src holds in layout t, which must be known; len(dst) is a multiple of t.BlockLen(),
// len(src) at least t.RowBytes(len(dst)). The values are the same bits on every machine: products are rounded before they are added,
// where the compiler might fuse the two.
func Dequantize(t Type, dst []float32, src []byte) {
	if len(dst)%t.BlockLen() != 0 {
		panic(fmt.Sprintf("kernel: %d values are not whole blocks of %v", len(dst), t))
	}
	src = src[:t.RowBytes(len(dst))] // a short src panics here, before anything is written
	switch t {
	case F32:
		f32Row(dst, src)
	case F16:
		f16Row(dst, src)
	case BF16:
		bf16Row(dst, src)
	case Q4_0:
		q4_0Row(dst, src)
	case Q4_1:
		q4_1Row(dst, src)
	case Q5_0:
		q5_0Row(dst, src)
	case Q5_1:
		q5_1Row(dst, src)
	case Q8_0:
		q8_0Row(dst, src)
	case Q2_K:
		q2_kRow(dst, src)
	case Q3_K:
		q3_kRow(dst, src)
	case Q4_K:
		q4_kRow(dst, src)
	case Q5_K:
		q5_kRow(dst, src)
	case Q6_K:
		q6_kRow(dst, src)
	}
}

// f32Row copies, since hosts are little-endian as the file is.
func f32Row(dst []float32, src []byte) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), 4*len(dst)), src)
}

func f16Row(dst []float32, src []byte) {
	for ; len(dst) >= 8 && len(src) >= 16; dst, src = dst[8:], src[16:] {
		y, b := (*[8]float32)(dst), (*[16]byte)(src)
		y[0], y[1], y[2], y[3] = half(b[0], b[1]), half(b[2], b[3]), half(b[4], b[5]), half(b[6], b[7])
		y[4], y[5], y[6], y[7] = half(b[8], b[9]), half(b[10], b[11]), half(b[12], b[13]), half(b[14], b[15])
	}
	for i := range dst {
		dst[i] = half(src[2*i], src[2*i+1])
	}
}

func bf16Row(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = BF16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// The layouts of 32 values. A block opens with its scale d, a half, in some followed by an offset m, a half: the value of quant q is
// d·q, or d·q + m. Byte j of 16 then holds the low four bits of value j below those of value j+16. Where a quant has a fifth bit,
// bit i of a 32-bit word before those bytes is the fifth bit of value i.

// q4_0Row: d, 16 bytes; the quants are offset by 8.
func q4_0Row(dst []float32, src []byte) {
	for ; len(dst) >= 32 && len(src) >= 18; dst, src = dst[32:], src[18:] {
		low, high, b := (*[16]float32)(dst), (*[16]float32)(dst[16:]), (*[18]byte)(src)
		d := half(b[0], b[1])
		for j, q := range b[2:] {
			low[j] = d * smallInts[q&15-8]
			high[j] = d * smallInts[q>>4-8]
		}
	}
}

// q4_1Row: d, m, 16 bytes.
func q4_1Row(dst []float32, src []byte) {
	for ; len(dst) >= 32 && len(src) >= 20; dst, src = dst[32:], src[20:] {
		low, high, b := (*[16]float32)(dst), (*[16]float32)(dst[16:]), (*[20]byte)(src)
		d, m := half(b[0], b[1]), half(b[2], b[3])
		for j, q := range b[4:] {
			low[j] = float32(d*smallInts[q&15]) + m
			high[j] = float32(d*smallInts[q>>4]) + m
		}
	}
}

// q5_0Row: d, the fifth bits, 16 bytes; the quants are offset by 16.
func q5_0Row(dst []float32, src []byte) {
	for ; len(dst) >= 32 && len(src) >= 22; dst, src = dst[32:], src[22:] {
		low, high, b := (*[16]float32)(dst), (*[16]float32)(dst[16:]), (*[22]byte)(src)
		d := half(b[0], b[1])
		fifths := binary.LittleEndian.Uint32(b[2:])
		for j, q := range b[6:] {
			low[j] = d * smallInts[q&15|byte(fifths<<4)&16-16]
			high[j] = d * smallInts[q>>4|byte(fifths>>12)&16-16]
			fifths >>= 1
		}
	}
}

// q5_1Row: d, m, the fifth bits, 16 bytes.
func q5_1Row(dst []float32, src []byte) {
	for ; len(dst) >= 32 && len(src) >= 24; dst, src = dst[32:], src[24:] {
		low, high, b := (*[16]float32)(dst), (*[16]float32)(dst[16:]), (*[24]byte)(src)
		d, m := half(b[0], b[1]), half(b[2], b[3])
		fifths := binary.LittleEndian.Uint32(b[4:])
		for j, q := range b[8:] {
			low[j] = float32(d*smallInts[q&15|byte(fifths<<4)&16]) + m
			high[j] = float32(d*smallInts[q>>4|byte(fifths>>12)&16]) + m
			fifths >>= 1
		}
	}
}

// q8_0Row: d, 32 signed bytes.
func q8_0Row(dst []float32, src []byte) {
	for ; len(dst) >= 32 && len(src) >= 34; dst, src = dst[32:], src[34:] {
		y, b := (*[32]float32)(dst), (*[34]byte)(src)
		d := half(b[0], b[1])
		for j, q := range b[2:] {
			y[j] = d * smallInts[q]
		}
	}
}

// half returns the value of a half stored low byte first.
func half(lo, hi byte) float32 { return F16ToF32(uint16(lo) | uint16(hi)<<8) }

// smallInts holds the value of each byte as a signed integer: a quant becomes a float32 by one load, which is
// quicker than a conversion, and an offset quant (q-8) needs no wider integer.
var smallInts = func() (table [256]float32) {
	for b := range table {
		table[b] = float32(int8(b))
	}
	return table
}()
