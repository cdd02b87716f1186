package weights

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	ggufparser "github.com/gpustack/gguf-parser-go"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
)

// Table: how to break a sound file → what is said.
func TestOpen_BrokenFile_IsNamedWithFieldAndFinding(t *testing.T) {
	entry := func(key string, k kind, payload []byte) func(*sample) {
		return func(s *sample) { s.set(key, k, payload) }
	}
	tensor := func(change func(*tensorEntry)) func(*sample) { return func(s *sample) { change(&s.tensors[0]) } }
	for _, c := range []struct {
		name   string
		damage func(*sample)
		want   string
	}{
		{"another format", func(s *sample) { s.magic = "PK\x03\x04" }, `magic: found "PK\x03\x04", expected "GGUF": this is not a GGUF file`},
		{"version 1", func(s *sample) { s.version = 1 }, "version: found 1, expected 2 or 3"},
		{"version 4", func(s *sample) { s.version = 4 }, "version: found 4, expected 2 or 3"},
		{"big-endian", func(s *sample) { s.version = 3 << 24 }, "version: found 3 with its bytes reversed: big-endian files are not supported, expected little-endian"},
		{"2⁶⁰ tensors", func(s *sample) { s.tensorCount = 1 << 60 }, "tensor count: is 1,152,921,504,606,846,976, the rest of the file can hold 21 at most"},
		{"2⁶⁰ entries", func(s *sample) { s.entryCount = 1 << 60 }, "metadata count: is 1,152,921,504,606,846,976, the rest of the file can hold 49 at most"},
		{"one tensor more than there is", func(s *sample) { s.tensorCount++ }, "tensor 3 of 3, name: is empty, expected 1 byte or more"},
		{"one entry more than there is", func(s *sample) { s.entryCount++ }, "tensor 1 of 2, name: needs 562,949,953,421,312 bytes at byte 510, the file ends after 206"},
		{"empty key", entry("", kindBool, []byte{1}), "metadata entry 17 of 17, key: has 0 bytes, expected 1 to 65,535"},
		{"2⁶³ bytes of key", func(s *sample) {
			s.entries[1].key = ""
			s.entries[0].bytes = slices.Concat(text("llama"), number(uint64(1<<63)))
		}, "metadata entry 2 of 16, key: needs 9,223,372,036,854,775,808 bytes at byte 77, the file ends after"},
		{"a key twice", func(s *sample) { s.entries[2].key = "uint8" }, "metadata uint8: is there twice"},
		{"unknown kind", entry("x", 13, nil), "metadata x: has value type 13, expected 0 to 12"},
		{"a bool of 2", entry("x", kindBool, []byte{2}), "metadata x: is a bool of value 2, expected 0 or 1"},
		{"2⁶⁴-1 bytes of string", entry("x", kindString, number(uint64(math.MaxUint64))), "metadata x: needs 18,446,744,073,709,551,615 bytes at byte"},
		{"array of arrays", entry("x", kindArray, array(kindArray, 1, array(kindBool, 1, []byte{1}))), "metadata x: is an array of arrays, expected an array of numbers, bools or strings"},
		{"array of unknown kind", entry("x", kindArray, array(99, 1)), "metadata x: is an array of value type 99, expected 0 to 12"},
		{"2⁶⁰ strings", entry("x", kindArray, array(kindString, 1<<60, text("a"))), "metadata x, element count: is 1,152,921,504,606,846,976, the rest of the file can hold 31 at most"},
		{"2⁶² floats, whose bytes overflow", entry("x", kindArray, array(kindFloat32, 1<<62)), "metadata x, element count: is 4,611,686,018,427,387,904, the rest of the file can hold"},
		{"a string of an array outside the file", entry("x", kindArray, array(kindString, 2, text("a"), number(uint64(1<<40)))), "metadata x, string 2 of 2: needs 1,099,511,627,776 bytes at byte"},
		{"alignment 0", entry("general.alignment", kindUint32, number(uint32(0))), "metadata general.alignment: is 0, expected a power of two of at least 8"},
		{"alignment 48", entry("general.alignment", kindUint32, number(uint32(48))), "metadata general.alignment: is 48, expected a power of two of at least 8"},
		{"alignment a string", entry("general.alignment", kindString, text("32")), "metadata general.alignment: is a string, expected a uint32"},
		{"alignment beyond the file", entry("general.alignment", kindUint32, number(uint32(1<<31))), "tensor blk.0.attn_q.weight: needs bytes 2,147,483,648 to 2,147,483,728, the file has"},
		{"no dimensions", tensor(func(e *tensorEntry) { e.dims = nil }), "tensor blk.0.attn_q.weight: has 0 dimensions, expected 1 to 4"},
		{"many dimensions", tensor(func(e *tensorEntry) { e.dims = slices.Repeat([]uint64{1}, 50) }), "tensor blk.0.attn_q.weight: has 50 dimensions, expected 1 to 4"},
		{"dimension 0", tensor(func(e *tensorEntry) { e.dims[1] = 0 }), "tensor blk.0.attn_q.weight: dimension 1 is 0, expected 1 or more and no more than the file can hold"},
		{"dimension 2⁶³", tensor(func(e *tensorEntry) { e.dims[1] = 1 << 63 }), "tensor blk.0.attn_q.weight: dimension 1 is 9,223,372,036,854,775,808, expected 1 or more and no more than the file can hold"},
		{"dimensions whose product overflows", tensor(func(e *tensorEntry) { e.dims = []uint64{1 << 32, 1 << 32, 1 << 32} }), "tensor blk.0.attn_q.weight: has shape [4294967296 4294967296 4294967296] in Q4_1, which needs more than the"},
		{"rows of part of a block", tensor(func(e *tensorEntry) { e.dims[0] = 65 }), "tensor blk.0.attn_q.weight: has rows of 65 values, expected a multiple of 32, the block of Q4_1"},
		{"unsupported type", tensor(func(e *tensorEntry) { e.typ = 23 }), "tensor blk.0.attn_q.weight: has type IQ4_XS (23), which is not supported; expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K"},
		{"unknown type", tensor(func(e *tensorEntry) { e.typ = math.MaxUint32 }), "tensor blk.0.attn_q.weight: has type 4294967295, which is not supported"},
		{"offset between alignments", tensor(func(e *tensorEntry) { e.offset = 8 }), "tensor blk.0.attn_q.weight: has offset 8, expected a multiple of the alignment, 32"},
		{"offset beyond the file", tensor(func(e *tensorEntry) { e.offset = 1 << 20 }), "tensor blk.0.attn_q.weight: needs bytes 1,049,184 to 1,049,264, the file has 716"},
		{"offset that overflows", tensor(func(e *tensorEntry) { e.offset = math.MaxUint64 - 31 }), "tensor blk.0.attn_q.weight: needs bytes 2⁶⁴ or more to 2⁶⁴ or more, the file has"},
		{"data cut short", func(s *sample) { s.data = s.data[:len(s.data)-1] }, "tensor output_norm.weight: needs bytes 704 to 716, the file has 715"},
		{"a tensor twice", func(s *sample) { s.tensors[1].name = s.tensors[0].name }, "tensor blk.0.attn_q.weight: is there twice"},
		{"tensors that overlap", func(s *sample) { s.tensors[1].offset = 64 }, "tensor output_norm.weight: begins at offset 64, inside tensor blk.0.attn_q.weight, which ends at 80"},
		{"a name that garbles terminals", func(s *sample) { s.tensors[0] = tensorEntry{name: "\x1b[2J"} }, `tensor "\x1b[2J": has 0 dimensions`},
		{"a name that fills terminals", func(s *sample) { s.tensors[0] = tensorEntry{name: strings.Repeat("x", 500)} }, "tensor " + strings.Repeat("x", 80) + "…: has 0 dimensions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSample()
			c.damage(s)
			path := writeFile(t, s.encode())
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f, err := Open(path)
			runtime.ReadMemStats(&after)
			if err == nil {
				f.Close()
				t.Fatal("opened")
			}
			var e *Error
			if !errors.As(err, &e) || e.Path != path {
				t.Fatalf("%#v, want an *Error about %s", err, path)
			}
			if got := e.Field + ": " + e.Detail; !strings.HasPrefix(got, c.want) {
				t.Errorf("said %q\n     want %q", got, c.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<17 {
				t.Errorf("allocated %d bytes for a file of %d", n, len(s.encode()))
			}
		})
	}
}

func TestOpen_CutAnywhere_IsAnError(t *testing.T) {
	whole := newSample().encode()
	for n := range len(whole) {
		f := &File{path: "m.gguf", data: whole[:n:n]}
		var e *Error
		if err := parse(f); !errors.As(err, &e) {
			t.Errorf("cut to %d of %d bytes: %v, want an *Error", n, len(whole), err)
		}
	}
}

func TestOpen_WhatIsNoModelFile_IsSaid(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                                 "file: is a folder, expected a GGUF file",
		pipe:                                "file: is a pipe, expected a GGUF file",
		writeFile(t, nil):                   "file: is empty, expected a GGUF file",
		writeFile(t, []byte("hello world")): `magic: found "hell", expected "GGUF": this is not a GGUF file`,
		writeFile(t, []byte("GG")):          `magic: found "GG", expected "GGUF": this is not a GGUF file`,
	} {
		_, err := Open(path)
		var e *Error
		if !errors.As(err, &e) || e.Field+": "+e.Detail != want {
			t.Errorf("Open(%s): %v, want %s", path, err, want)
		}
	}
	if _, err := Open(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v, want fs.ErrNotExist", err)
	}
}

func TestOpen_Versions2And3_AndOtherAlignments(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		for _, alignment := range []int{8, 32, 256, 4096} {
			s := newSample()
			s.version, s.alignment = version, alignment
			s.tensors, s.tensorCount, s.data = nil, 0, nil
			s.add("a", kernel.Q8_0, 32, 3)
			s.add("b", kernel.F16, 5)
			s.set("general.alignment", kindUint32, number(uint32(alignment)))
			f := openFile(t, writeFile(t, s.encode()))
			for i, tensor := range f.Tensors() {
				want := s.data[s.tensors[i].offset:]
				if i == 0 {
					want = want[:3*34]
				}
				if !bytes.Equal(tensor.Data, want) {
					t.Errorf("version %d, alignment %d: tensor %s has data %x, want %x", version, alignment, tensor.Name, tensor.Data, want)
				}
			}
		}
	}
}

func TestFile_TypedMetadata(t *testing.T) {
	f := openFile(t, writeFile(t, newSample().encode()))
	get := func(v any, ok bool) any {
		if !ok {
			return nil
		}
		return v
	}
	str := func(k string) any { return get(f.String(k)) }
	uintOf := func(k string) any { return get(f.Uint(k)) }
	float := func(k string) any { return get(f.Float(k)) }
	boolOf := func(k string) any { return get(f.Bool(k)) }
	strs := func(k string) any { return get(f.Strings(k)) }
	floats := func(k string) any { return get(f.Floats(k)) }
	ints := func(k string) any { return get(f.Ints(k)) }
	for _, c := range []struct {
		key  string
		get  func(string) any
		want any
		err  string
	}{
		{"general.architecture", str, "llama", ""},
		{"uint8", uintOf, uint64(200), ""},
		{"uint16", uintOf, uint64(60000), ""},
		{"uint32", uintOf, uint64(4e9), ""},
		{"uint64", uintOf, uint64(math.MaxUint64), ""},
		{"float32", float, float64(float32(1e-5)), ""},
		{"float64", float, 1e-300, ""},
		{"bool", boolOf, true, ""},
		{"strings", strs, []string{"a", "", "Ġc"}, ""},
		{"floats", floats, []float32{0.5, -2}, ""},
		{"ints", ints, []int32{-1, 7}, ""},
		{"missing", str, nil, ""},
		{"missing", ints, nil, ""},
		{"uint8", str, nil, "metadata uint8: is a uint8, expected a string"},
		{"float32", uintOf, nil, "metadata float32: is a float32, expected an integer"},
		{"ints", uintOf, nil, "metadata ints: is an array of int32, expected an integer"},
		{"int8", uintOf, nil, "metadata int8: is -8, expected 0 or more"},
		{"int16", uintOf, nil, "metadata int16: is -16, expected 0 or more"},
		{"int32", uintOf, nil, "metadata int32: is -32, expected 0 or more"},
		{"int64", uintOf, nil, "metadata int64: is -64, expected 0 or more"},
		{"int8", float, nil, "metadata int8: is an int8, expected a float"},
		{"uint8", boolOf, nil, "metadata uint8: is a uint8, expected a bool"},
		{"ints", strs, nil, "metadata ints: is an array of int32, expected an array of strings"},
		{"float32", floats, nil, "metadata float32: is a float32, expected an array of float32"},
		{"strings", ints, nil, "metadata strings: is an array of string, expected an array of integers"},
		{"wide", ints, nil, "metadata wide: has an element 0 out of the range of an int32"},
	} {
		f.err.Store(nil)
		if got := c.get(c.key); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %#v, want %#v", c.key, got, c.want)
		}
		want := ""
		if c.err != "" {
			want = f.Path() + ": " + c.err
		}
		got := ""
		if err := f.Err(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: Err is %q, want %q", c.key, got, want)
		}
	}
}

func TestFile_Err_IsTheFirst(t *testing.T) {
	f := openFile(t, writeFile(t, newSample().encode()))
	f.Uint("bool")
	f.String("uint8")
	f.String("missing")
	if err := f.Err(); err == nil || !strings.Contains(err.Error(), "metadata bool") {
		t.Errorf("Err is %v, want it to tell of bool", err)
	}
}

func TestFile_Metadata_OutlivesClose(t *testing.T) {
	f, err := Open(writeFile(t, newSample().encode()))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := f.Strings("strings")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	after, _ := f.Strings("strings")
	if want := []string{"a", "", "Ġc"}; !slices.Equal(before, want) || !slices.Equal(after, want) {
		t.Errorf("strings taken before Close: %q, after: %q, want %q", before, after, want)
	}
}

// gguf-parser-go is an independent reader of the format.
func TestOpen_RealFiles_AgreeWithAnotherReader(t *testing.T) {
	for _, path := range realFiles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) { agreesWithAnotherReader(t, openFile(t, path)) })
	}
}

func agreesWithAnotherReader(t *testing.T, f *File) {
	t.Helper()
	other, err := ggufparser.ParseGGUFFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(f.meta), len(other.Header.MetadataKV); got != want {
		t.Errorf("%d metadata entries, want %d", got, want)
	}
	for _, want := range other.Header.MetadataKV {
		compareValue(t, f, want)
	}
	if got, want := len(f.Tensors()), len(other.TensorInfos); got != want {
		t.Fatalf("%d tensors, want %d", got, want)
	}
	raw, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range f.Tensors() {
		want := other.TensorInfos[i]
		var shape []int
		for _, n := range want.Dimensions {
			shape = append(shape, int(n))
		}
		if got.Name != want.Name || uint32(got.Type) != uint32(want.Type) || !slices.Equal(got.Shape, shape) {
			t.Errorf("tensor %d is %s %v %v, want %s %v %v", i, got.Name, got.Type, got.Shape, want.Name, want.Type, shape)
		}
		data := raw[uint64(other.TensorDataStartOffset)+want.Offset:][:want.Bytes()]
		if !bytes.Equal(got.Data, data) {
			t.Errorf("tensor %s: data differ", got.Name)
		}
		if byName, ok := f.Tensor(got.Name); !ok || &byName.Data[0] != &got.Data[0] {
			t.Errorf("tensor %s is not found by its name", got.Name)
		}
	}
}

// compareValue checks the value that f has under want.Key.
func compareValue(t *testing.T, f *File, want ggufparser.GGUFMetadataKV) {
	t.Helper()
	var got, wanted any
	var ok bool
	switch v := want.Value.(type) {
	case ggufparser.GGUFMetadataKVArrayValue:
		switch uint32(v.Type) {
		case uint32(kindString):
			got, ok = trimmed(f.Strings(want.Key))
			wanted = unboxed[string](v.Array)
		case uint32(kindFloat32):
			got, ok = f.Floats(want.Key)
			wanted = unboxed[float32](v.Array)
		case uint32(kindInt32):
			got, ok = f.Ints(want.Key)
			wanted = unboxed[int32](v.Array)
		}
	case string:
		got, ok = f.String(want.Key)
		wanted = v
	case bool:
		got, ok = f.Bool(want.Key)
		wanted = v
	case uint32:
		got, ok = f.Uint(want.Key)
		wanted = uint64(v)
	case float32:
		got, ok = f.Float(want.Key)
		wanted = float64(v)
	}
	if !ok {
		t.Errorf("metadata %s is not found", want.Key)
	} else if !reflect.DeepEqual(got, wanted) {
		t.Errorf("metadata %s: got %s, want %s", want.Key, excerpt(got), excerpt(wanted))
	}
}

// trimmed cuts spaces off strings, since the other reader does (so it loses tokens such as "\r").
func trimmed(all []string, ok bool) ([]string, bool) {
	for i, s := range all {
		all[i] = strings.TrimSpace(s)
	}
	return all, ok
}

func excerpt(v any) string {
	s := fmt.Sprintf("%q", v)
	return s[:min(len(s), 200)]
}

func unboxed[T any](boxed []any) []T {
	all := make([]T, len(boxed))
	for i, v := range boxed {
		all[i] = v.(T)
	}
	return all
}

// realFiles returns the files of others that are here: the tiny models always, vectors and the default model where they are. Of the
// vocabularies the two smaller, since the other reader takes seconds for the others.
func realFiles(t *testing.T) []string {
	files := []string{testenv.Tiny("tiny-tied.gguf"), testenv.Tiny("tiny-untied.gguf")}
	t.Run("vectors", func(t *testing.T) {
		dir := testenv.Shared(t, "vectors")
		for _, name := range []string{"train/lora.gguf", "tokenizer/ggml-vocab-gpt-2.gguf", "tokenizer/ggml-vocab-llama-spm.gguf"} {
			files = append(files, filepath.Join(dir, name))
		}
	})
	t.Run("model", func(t *testing.T) { files = append(files, testenv.Model(t)) })
	return files
}

func BenchmarkOpen(b *testing.B) {
	path := testenv.Model(b)
	for b.Loop() {
		f, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Vocab(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
