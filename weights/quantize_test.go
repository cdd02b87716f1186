package weights

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
)

func TestQuantize_TheFileIsTheModelInAnotherType(t *testing.T) {
	for typ, fileType := range fileTypes {
		t.Run(typ.String(), func(t *testing.T) {
			from := openFile(t, testenv.Tiny("tiny-untied.gguf"))
			path := filepath.Join(t.TempDir(), "model.gguf")
			var last, all int64
			inF16, err := from.Quantize(context.Background(), path, typ, func(done, total int64) {
				if done <= last || done > total {
					t.Errorf("%d bytes done of %d, after %d", done, total, last)
				}
				last, all = done, total
			})
			if err != nil || len(inF16) > 0 || last != all || all == 0 {
				t.Fatalf("in F16 are %v, %d bytes done of %d, %v", inF16, last, all, err)
			}
			onlyFile(t, path)
			to := openFile(t, path)
			agreesWithAnotherReader(t, to)
			want := from.Metadata()
			want.Set("general.file_type", fileType)
			want.Set("general.quantization_version", uint32(2))
			if got := to.Metadata().entries; !slices.EqualFunc(got, want.entries, func(a, b keyValue) bool { return a.key == b.key && bytes.Equal(a.value, b.value) }) {
				t.Errorf("metadata changed: %q\nwant %q", got, want.entries)
			}
			if got, want := len(to.Tensors()), len(from.Tensors()); got != want {
				t.Fatalf("%d tensors, want %d", got, want)
			}
			for i, a := range from.Tensors() {
				b, wantType := to.Tensors()[i], typ
				if len(a.Shape) == 1 {
					wantType = a.Type
				}
				if b.Name != a.Name || b.Type != wantType || !slices.Equal(b.Shape, a.Shape) {
					t.Fatalf("tensor %d is %s %v %v, want %s %v %v", i, b.Name, b.Type, b.Shape, a.Name, wantType, a.Shape)
				}
				values := make([]float32, len(a.Data)/a.Type.BlockBytes()*a.Type.BlockLen())
				kernel.Dequantize(a.Type, values, a.Data)
				data := make([]byte, wantType.RowBytes(len(values)))
				if err := kernel.Quantize(wantType, data, values); err != nil || !bytes.Equal(data, b.Data) {
					t.Errorf("tensor %s does not hold its quantized values (%v)", a.Name, err)
				}
			}
		})
	}
}

// A tensor of several pieces, the last one short, rows that fill no block, and vectors that fill none.
func TestQuantize_ManyPiecesAndOddRows(t *testing.T) {
	const cols = 4096
	rows := 2*pieceValues/cols + 3
	long := make([]byte, 4*cols*rows)
	for i := range cols * rows {
		copy(long[4*i:], number(float32(i%509-254)))
	}
	odd := slices.Concat(number(float32(1.5)), number(float32(-2)), number(float32(3)), number(float32(0)), number(float32(1e-3)), number(float32(65504)))
	from := written(t, &Metadata{}, []Tensor{
		{Name: "long", Shape: []int{cols, rows}, Data: long}, {Name: "odd", Shape: []int{3, 2}, Data: odd}, {Name: "norm", Shape: []int{3}, Data: odd[:12]},
	})
	path := filepath.Join(t.TempDir(), "q.gguf")
	inF16, err := from.Quantize(context.Background(), path, kernel.Q8_0, func(int64, int64) {})
	if err != nil || !slices.Equal(inF16, []string{"odd"}) {
		t.Fatalf("in F16 are %v (%v), want odd", inF16, err)
	}
	to := openFile(t, path)
	for _, c := range []struct {
		name string
		typ  kernel.Type
		data []byte
	}{{"long", kernel.Q8_0, long}, {"odd", kernel.F16, odd}, {"norm", kernel.F32, odd[:12]}} {
		values := make([]float32, len(c.data)/4)
		kernel.Dequantize(kernel.F32, values, c.data)
		want := make([]byte, c.typ.RowBytes(len(values)))
		if err := kernel.Quantize(c.typ, want, values); err != nil {
			t.Fatal(err)
		}
		if got, _ := to.Tensor(c.name); got.Type != c.typ || !bytes.Equal(got.Data, want) {
			t.Errorf("tensor %s, %v, does not hold its quantized values", c.name, got.Type)
		}
	}
}

func TestQuantize_WhatFails_SaysWhereAndLeavesNoFile(t *testing.T) {
	matrix := func(at int, v float64) *File {
		data := make([]byte, 4*64*3)
		copy(data[4*at:], number(float32(v)))
		return written(t, &Metadata{}, []Tensor{{Name: "sound", Shape: []int{32, 1}, Data: make([]byte, 128)}, {Name: "w", Shape: []int{64, 3}, Data: data}})
	}
	for _, c := range []struct {
		v    float64
		want string
	}{
		{math.NaN(), "tensor w: row 2: value 7 is NaN; Q8_0 holds numbers up to ±"},
		{math.Inf(-1), "tensor w: row 2: value 7 is -Inf; "},
		{1e30, "tensor w: row 2: value 7 is 1e+30; "},
	} {
		from, path := matrix(2*64+7, c.v), filepath.Join(t.TempDir(), "out.gguf")
		_, err := from.Quantize(context.Background(), path, kernel.Q8_0, func(int64, int64) {})
		var e *Error
		if !errors.As(err, &e) || e.Path != from.Path() || !strings.HasPrefix(e.Field+": "+e.Detail, c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%v: the file is there", c.v)
		}
		onlyFile(t, path)
	}
	from, path := matrix(0, 1), filepath.Join(t.TempDir(), "out.gguf")
	if _, err := from.Quantize(context.Background(), path, kernel.Q4_K, func(int64, int64) {}); err == nil || !strings.Contains(err.Error(), "Q4_K") {
		t.Errorf("to Q4_K: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := from.Quantize(ctx, path, kernel.Q8_0, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Truncate(from.Path(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Quantize(context.Background(), path, kernel.Q8_0, func(int64, int64) {}); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("cut short while it is open: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Errorf("%s is there", path)
	}
	onlyFile(t, path)
}
