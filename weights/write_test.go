package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// What was read, written again, is the same bytes, in whatever pieces they come.
func TestWriter_AFileWrittenAgain_IsTheSameBytes(t *testing.T) {
	for _, alignment := range []int{8, 32, 4096} {
		for _, piece := range []int{1, 7, 80, 1000} {
			s := newSample()
			s.alignment = alignment
			s.tensors, s.tensorCount, s.data = nil, 0, nil
			s.add("a", kernel.Q8_0, 32, 3)
			s.add("b", kernel.F16, 5, 2, 1, 2)
			s.add("c", kernel.F32, 3)
			s.set("general.alignment", kindUint32, number(uint32(alignment)))
			for len(s.data)%alignment != 0 {
				s.data = append(s.data, 0)
			}
			from := openFile(t, writeFile(t, s.encode()))
			path := filepath.Join(t.TempDir(), "again.gguf")
			w, err := Create(path, from.Metadata(), from.Tensors())
			if err != nil {
				t.Fatal(err)
			}
			var data []byte
			for _, tensor := range from.Tensors() {
				data = append(data, tensor.Data...)
			}
			for len(data) > 0 {
				n, err := w.Write(data[:min(piece, len(data))])
				if err != nil || n != min(piece, len(data)) {
					t.Fatalf("wrote %d: %v", n, err)
				}
				data = data[n:]
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, s.encode()) {
				t.Errorf("alignment %d, pieces of %d: wrote %d other bytes (%v), want %d", alignment, piece, len(got), err, len(s.encode()))
			}
			onlyFile(t, path)
		}
	}
}

func TestMetadata_Set_KeepsTheOrderAndEveryType(t *testing.T) {
	from := openFile(t, writeFile(t, newSample().encode()))
	m := from.Metadata()
	m.Set("int8", "replaced")
	for key, v := range map[string]any{
		"u8": []uint8{1, 2}, "i8": int8(-1), "u16": uint16(1), "i16": []int16{-2}, "u32": []uint32{math.MaxUint32}, "i32": []int32{-3, 4},
		"u64": uint64(math.MaxUint64), "i64": int64(-5), "f32": []float32{1.5}, "f64": 0.1, "bools": []bool{true, false}, "none": []string{}, "texts": []string{"", "ä"},
	} {
		m.Set(key, v)
	}
	f := written(t, m, nil)
	if before, after := from.Metadata().entries, f.Metadata().entries; len(after) != len(before)+13 {
		t.Errorf("%d entries, want %d", len(after), len(before)+13)
	} else {
		for i, e := range before {
			if e.key != after[i].key || e.key != "int8" && !bytes.Equal(e.value, after[i].value) {
				t.Errorf("entry %d is %s %x, want %s %x", i, after[i].key, after[i].value, e.key, e.value)
			}
		}
	}
	for _, c := range []struct {
		get  func() (any, bool)
		want any
	}{
		{func() (any, bool) { v, ok := f.String("int8"); return v, ok }, "replaced"},
		{func() (any, bool) { v, ok := f.Ints("u8"); return v, ok }, []int32{1, 2}},
		{func() (any, bool) { v, ok := f.Uint("u16"); return v, ok }, uint64(1)},
		{func() (any, bool) { v, ok := f.Ints("i16"); return v, ok }, []int32{-2}},
		{func() (any, bool) { v, ok := f.Ints("i32"); return v, ok }, []int32{-3, 4}},
		{func() (any, bool) { v, ok := f.Uint("u64"); return v, ok }, uint64(math.MaxUint64)},
		{func() (any, bool) { v, ok := f.Floats("f32"); return v, ok }, []float32{1.5}},
		{func() (any, bool) { v, ok := f.Float("f64"); return v, ok }, 0.1},
		{func() (any, bool) { v, ok := f.Strings("none"); return v, ok }, []string{}},
		{func() (any, bool) { v, ok := f.Strings("texts"); return v, ok }, []string{"", "ä"}},
	} {
		if got, ok := c.get(); !ok || !reflect.DeepEqual(got, c.want) {
			t.Errorf("read %v, %v (%v), want %v", got, ok, f.Err(), c.want)
		}
	}
	if v := f.meta["bools"]; v.kind != kindBool || !v.array || v.n != 2 {
		t.Errorf("bools are %v", v)
	}
}

// Table: what cannot be a file → what is said, and nothing is written.
func TestCreate_WhatOpenWouldRefuse_IsRefusedAtOnce(t *testing.T) {
	sound := func() []Tensor { return []Tensor{{Name: "a", Type: kernel.Q4_0, Shape: []int{64, 2}}} }
	for _, c := range []struct {
		name    string
		key     string
		value   any
		tensors func() []Tensor
		want    string
	}{
		{"a key that is empty", "", "v", sound, "metadata entry 1 of 1, key: has 0 bytes"},
		{"no alignment", "general.alignment", uint32(0), sound, "metadata general.alignment: is 0, expected a power of two"},
		{"an alignment of another type", "general.alignment", uint64(32), sound, "metadata general.alignment: is a uint64, expected a uint32"},
		{"a name twice", "k", "v", func() []Tensor { return append(sound(), sound()...) }, "tensor a: is there twice"},
		{"no name", "k", "v", func() []Tensor { return []Tensor{{Shape: []int{1}}} }, "tensor 1 of 1, name: is empty"},
		{"no shape", "k", "v", func() []Tensor { return []Tensor{{Name: "a"}} }, "tensor a: has 0 dimensions"},
		{"five dimensions", "k", "v", func() []Tensor { return []Tensor{{Name: "a", Shape: []int{1, 1, 1, 1, 1}}} }, "tensor a: has 5 dimensions"},
		{"a dimension below 0", "k", "v", func() []Tensor { return []Tensor{{Name: "a", Shape: []int{-1}}} }, "tensor a: dimension 0 is "},
		{"a type that is not known", "k", "v", func() []Tensor { return []Tensor{{Name: "a", Type: 23, Shape: []int{256}}} }, "tensor a: has type IQ4_XS (23)"},
		{"part of a block", "k", "v", func() []Tensor { return []Tensor{{Name: "a", Type: kernel.Q4_0, Shape: []int{33}}} }, "tensor a: has rows of 33 values"},
		{"more than there is", "k", "v", func() []Tensor { return []Tensor{{Name: "a", Shape: []int{1 << 40, 1 << 40}}} }, "tensor a: has shape "},
	} {
		m := &Metadata{}
		m.Set(c.key, c.value)
		path := filepath.Join(t.TempDir(), "out.gguf")
		_, err := Create(path, m, c.tensors())
		var e *Error
		if !errors.As(err, &e) || e.Path != path || !strings.HasPrefix(e.Field+": "+e.Detail, c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		onlyFile(t, path)
	}
}

func TestWriter_WhatIsNotWhole_LeavesWhatWasThere(t *testing.T) {
	tensors := []Tensor{{Name: "a", Shape: []int{4}}, {Name: "b", Shape: []int{4}}}
	for _, c := range []struct {
		name string
		end  func(w *Writer) error
		want string
	}{
		{"too little", func(w *Writer) error { w.Write(make([]byte, 23)); return w.Commit() }, "tensor b: 7 of 16 bytes were written"},
		{"nothing", (*Writer).Commit, "tensor a: 0 of 16 bytes were written"},
		{"too much", func(w *Writer) error {
			if n, err := w.Write(make([]byte, 35)); n != 32 || err == nil {
				t.Errorf("too much: wrote %d, %v", n, err)
			}
			return w.Commit()
		}, "data: 3 bytes were written after the last tensor's"},
		{"discarded", func(w *Writer) error { w.Write(make([]byte, 32)); return w.Discard() }, ""},
	} {
		path := filepath.Join(t.TempDir(), "out.gguf")
		if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := Create(path, &Metadata{}, tensors)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.end(w); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasSuffix(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		if b, _ := os.ReadFile(path); string(b) != "before" {
			t.Errorf("%s: the file is %q now", c.name, b)
		}
		onlyFile(t, path)
	}
}

// One writes at a time; what a process that died left behind is no hindrance, and none of it gets into the file.
func TestCreate_KeepsOthersOut_AndTakesOverWhatIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.gguf")
	if err := os.WriteFile(path+partSuffix, bytes.Repeat([]byte("rubbish"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := Create(path, &Metadata{}, []Tensor{{Name: "a", Shape: []int{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, &Metadata{}, nil); err == nil || !strings.HasSuffix(err.Error(), "out.gguf"+partSuffix+": is being written already") {
		t.Errorf("a second Create: %v", err)
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, 7)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Discard(); err != nil { // as deferred
		t.Error(err)
	}
	onlyFile(t, path)
	b, err := os.ReadFile(path)
	if err != nil || bytes.Contains(b, []byte("rubbish")) || len(b)%32 != 0 || len(b) > 128 {
		t.Errorf("wrote %q, %v", b, err)
	}
}

// written returns a file of metadata and tensors, with their data.
func written(t *testing.T, m *Metadata, tensors []Tensor) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	w, err := Create(path, m, tensors)
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range tensors {
		if _, err := w.Write(tensor.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return openFile(t, path)
}

// onlyFile checks that nothing lies beside path.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}
