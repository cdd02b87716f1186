package kv

import (
	"math"
	"testing"
	"unsafe"
)

func TestShape_SegmentsAreInOrderAlignedAndFillThePayload(t *testing.T) {
	for _, s := range []Shape{small, {F32, 2, 3, 64, 100}, {F16, 1, 1, 1, 1}, {F16, 30, 3, 64, 97}} {
		at := 0
		for layer := range s.Layers {
			if at != layer*s.LayerBytes() {
				t.Fatalf("%v: layer %d starts at %d, want %d", s, layer, at, layer*s.LayerBytes())
			}
			for head := range s.Heads {
				for _, segment := range []func(int, int) (int, int){s.K, s.V} {
					offset, n := segment(layer, head)
					if n != s.Tokens*s.Dim*s.Type.Size() || offset%64 != 0 || offset < at || offset >= at+64 {
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
