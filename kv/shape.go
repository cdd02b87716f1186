package kv

import (
	"fmt"
	"slices"
	"unsafe"
)

// Type is the number format of keys and values, with its number in the file's header.
type Type uint8

// The number formats.
const (
	F16  Type = 1
	F32  Type = 2
	BF16 Type = 3
	Q8   Type = 4 // 8-bit codes; each q8Group of a row share a scale, a half
)

// q8Group divides a head's dimension where numbers are codes.
const q8Group = 32

var typeNames = []string{F16: "f16", F32: "f32", BF16: "bf16", Q8: "q8"}

// ParseType reads a type back from the name that String gives.
func ParseType(name string) (t Type, ok bool) {
	i := slices.Index(typeNames, name)
	return Type(max(i, 0)), i > 0
}

func (t Type) String() string {
	if t.known() {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

func (t Type) known() bool { return t > 0 && int(t) < len(typeNames) }

// Check says why heads of dim numbers cannot be stored in this type; nil if they can.
func (t Type) Check(dim int) error {
	if !t.known() {
		return misfit("KV type", t, "f16 (1), f32 (2), bf16 (3) or q8 (4)")
	}
	if t == Q8 && dim%q8Group != 0 {
		return misfit("head dimension", dim, fmt.Sprintf("a multiple of %d for q8", q8Group))
	}
	return nil
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
// row-major, each starting at a multiple of 64 bytes with zeros in between. Where a type has scales, those of all rows
// follow the numbers of all rows, so that a row can be added without moving others.
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

func (s Shape) rowsBytes() int {
	numbers, scales := s.RowBytes()
	return s.Tokens * (numbers + scales)
}

// RowBytes is what a row of K or V takes: its numbers, and its scales if the type has any. Row i's numbers are at i*numbers from the start
// of K or V, its scales at Tokens*numbers + i*scales.
func (s Shape) RowBytes() (numbers, scales int) {
	switch s.Type {
	case F16, BF16:
		return 2 * s.Dim, 0
	case F32:
		return 4 * s.Dim, 0
	case Q8:
		return s.Dim, s.Dim / q8Group * 2
	}
	return 0, 0
}

// validate reports the first number that is out of its bounds.
func (s Shape) validate() error {
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
	return s.Type.Check(s.Dim)
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
