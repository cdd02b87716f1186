package kv

import (
	"math"
	"testing"
	"unsafe"
)

func TestShape_SegmentsAreInOrderAlignedAndFillThePayload(t *testing.T) {
	for _, s := range []Shape{small, {F32, 2, 3, 64, 100}, {F16, 1, 1, 1, 1}, {F16, 30, 3, 64, 97}, {BF16, 2, 3, 64, 7}, {Q8, 2, 3, 64, 100}, {Q8, 1, 1, 32, 1}} {
		at := 0
		for layer := range s.Layers {
			if at != layer*s.LayerBytes() {
				t.Fatalf("%v: layer %d starts at %d, want %d", s, layer, at, layer*s.LayerBytes())
			}
			for head := range s.Heads {
				for _, segment := range []func(int, int) (int, int){s.K, s.V} {
					offset, n := segment(layer, head)
					if n != s.Tokens*rowBytes(s) || offset%64 != 0 || offset < at || offset >= at+64 {
						t.Fatalf("%v: layer %d head %d: got %d bytes at %d, after %d", s, layer, head, n, offset, at)
					}
					at = offset + n
				}
			}
			at = (at + 63) / 64 * 64
		}
		if at != s.Bytes() {
			t.Errorf("%v: segments end at %d, Bytes is %d", s, at, s.Bytes())
		}
	}
}

// rowBytes is what docs/block-format.md says of a row.
func rowBytes(s Shape) int {
	switch s.Type {
	case F32:
		return s.Dim * 4
	case Q8:
		return s.Dim + s.Dim/32*2
	}
	return s.Dim * 2
}

func TestType_NamesComeBack(t *testing.T) {
	for typ, name := range map[Type]string{1: "f16", 2: "f32", 3: "bf16", 4: "q8"} {
		if got, ok := ParseType(name); typ.String() != name || got != typ || !ok {
			t.Errorf("type %d is called %v, and %s is %d, %v", uint8(typ), typ, name, uint8(got), ok)
		}
	}
	for _, bad := range []string{"", "F16", "q4", "type 5"} {
		if got, ok := ParseType(bad); ok {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestShape_TheLargestDoesNotOverflow(t *testing.T) {
	s := Shape{F32, maxLayers, maxHeads, maxDim, maxTokens}
	if err := s.validate(); err != nil {
		t.Fatal(err)
	}
	want := math.Ldexp(4*2, 12+12+12+22)
	if float64(s.Bytes()) != want || fileBytes(s) < int64(s.Bytes()) {
		t.Errorf("got %d bytes, want %g", s.Bytes(), want)
	}
}

func TestAlloc_IsAlignedZeroAndNoLonger(t *testing.T) {
	for n := range 300 {
		b := Alloc(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%64 != 0 {
			t.Fatalf("Alloc(%d): got %d bytes, room for %d, at %p", n, len(b), cap(b), b)
		}
		for i := range b {
			if b[i] != 0 {
				t.Fatalf("Alloc(%d): byte %d is %d", n, i, b[i])
			}
		}
	}
}
