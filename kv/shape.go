package kv

import (
	"fmt"
	"unsafe"
)

// Type is the number format of keys and values, with its number in the file's header.
type Type uint8

// The number formats.
const (
	F16 Type = 1
	F32 Type = 2
)

// Size is the bytes of one number, 0 for an unknown type.
func (t Type) Size() int {
	switch t {
	case F16:
		return 2
	case F32:
		return 4
	}
	return 0
}

func (t Type) String() string {
	switch t {
	case F16:
		return "f16"
	case F32:
		return "f32"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// alignment of every K and V in a payload, and of the payload itself: a cache line.
const alignment = 64

// Bounds of a shape. Their product is below 2^62 bytes, so no size computed from a shape within them overflows.
const (
	maxLayers = 1 << 12
	maxHeads  = 1 << 12
	maxDim    = 1 << 12
	maxTokens = 1 << 22
)

// A Shape tells how a payload is laid out: for each layer, for each KV head, K [Tokens × Dim] then V [Tokens × Dim],
// row-major, each starting at a multiple of 64 bytes with zeros in between.
type Shape struct {
	Type   Type
	Layers int
	Heads  int // KV heads
	Dim    int // of a head
	Tokens int
}

func (s Shape) String() string {
	return fmt.Sprintf("%v, %d layers × %d heads × %d tokens × %d", s.Type, s.Layers, s.Heads, s.Tokens, s.Dim)
}

// Bytes is the size of the payload.
func (s Shape) Bytes() int { return s.Layers * s.LayerBytes() }

// LayerBytes is the size of one layer, a multiple of 64. Layer i is payload[i*LayerBytes() : (i+1)*LayerBytes()].
func (s Shape) LayerBytes() int { return s.Heads * 2 * roundUp(s.rowsBytes(), alignment) }

// K tells where the keys of a layer and KV head lie in the payload: n bytes from offset.
func (s Shape) K(layer, head int) (offset, n int) {
	n = s.rowsBytes()
	return (layer*s.Heads + head) * 2 * roundUp(n, alignment), n
}

// V tells where the values of a layer and KV head lie in the payload: n bytes from offset.
func (s Shape) V(layer, head int) (offset, n int) {
	offset, n = s.K(layer, head)
	return offset + roundUp(n, alignment), n
}

func (s Shape) rowsBytes() int { return s.Tokens * s.Dim * s.Type.Size() }

// validate reports the first number that is out of its bounds.
func (s Shape) validate() error {
	if s.Type.Size() == 0 {
		return misfit("KV type", s.Type, "f16 (1) or f32 (2)")
	}
	for _, f := range []struct {
		name       string
		value, max int
	}{
		{"layers", s.Layers, maxLayers}, {"KV heads", s.Heads, maxHeads}, {"head dimension", s.Dim, maxDim}, {"tokens", s.Tokens, maxTokens},
	} {
		if f.value < 1 || f.value > f.max {
			return misfit(f.name, f.value, fmt.Sprintf("1 to %d", f.max))
		}
	}
	return nil
}

// Alloc returns n zero bytes that start at a multiple of 64, for a payload to be computed into.
func Alloc(n int) []byte {
	b := make([]byte, n+alignment-1)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % alignment)
	return b[skip : skip+n : skip+n]
}

func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%alignment == 0
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }
