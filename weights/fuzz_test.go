package weights

import (
	"bytes"
	"errors"
	"math/big"
	"os"
	"testing"
	"unsafe"

	"github.com/tessera-llm/tessera/internal/testenv"
)

// FuzzGGUF: whatever the bytes, reading them ends in an *Error or in a file that keeps its invariants. The bytes are
// sliced to their exact length, so that a read outside is a panic.
func FuzzGGUF(f *testing.F) {
	for _, name := range []string{"tiny-tied.gguf", "tiny-untied.gguf"} {
		data, err := os.ReadFile(testenv.Tiny(name))
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range []int{len(data), len(data) - 1, 4000, 500} {
			f.Add(data[:n])
		}
	}
	sound := newSample().encode()
	f.Add(sound)
	f.Add(sound[:len(sound)/2])
	f.Add(newVocabSample("llama").encode())
	f.Add(newVocabSample("gpt2").encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		file := &File{path: "m.gguf", data: data[:len(data):len(data)]}
		if err := parse(file); err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Path != "m.gguf" || e.Field == "" || e.Detail == "" {
				t.Errorf("%#v, want a whole *Error", err)
			}
			return
		}
		checkTensors(t, file)
		checkMetadata(t, file)
		checkRoundTrip(t, file)
	})
}

// checkTensors checks invariant 1 of File, with numbers that cannot overflow.
func checkTensors(t *testing.T, f *File) {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(f.data)))
	type span struct{ from, to uintptr }
	var taken []span
	for _, tensor := range f.Tensors() {
		need := big.NewInt(int64(tensor.Type.BlockBytes()))
		for _, n := range tensor.Shape {
			need.Mul(need, big.NewInt(int64(n)))
		}
		need.Div(need, big.NewInt(int64(tensor.Type.BlockLen())))
		if need.Cmp(big.NewInt(int64(len(tensor.Data)))) != 0 || cap(tensor.Data) != len(tensor.Data) {
			t.Errorf("tensor %q %v %v has %d bytes, needs %v", tensor.Name, tensor.Type, tensor.Shape, len(tensor.Data), need)
		}
		from := uintptr(unsafe.Pointer(&tensor.Data[0])) - start
		own := span{from, from + uintptr(len(tensor.Data))}
		if own.to > uintptr(len(f.data)) {
			t.Errorf("tensor %q has bytes %d to %d of %d", tensor.Name, own.from, own.to, len(f.data))
		}
		for _, other := range taken {
			if own.from < other.to && other.from < own.to {
				t.Errorf("tensor %q, bytes %d to %d, shares some with bytes %d to %d", tensor.Name, own.from, own.to, other.from, other.to)
			}
		}
		taken = append(taken, own)
		if found, ok := f.Tensor(tensor.Name); !ok || &found.Data[0] != &tensor.Data[0] {
			t.Errorf("tensor %q is not found by its name", tensor.Name)
		}
	}
}

// checkMetadata asks for every key as every type; exactly one fits, or none where the value is out of range or of an unread kind.
func checkMetadata(t *testing.T, f *File) {
	for key, v := range f.meta {
		fits := 0
		count := func(ok bool) {
			if ok {
				fits++
			}
		}
		_, ok := f.String(key)
		count(ok)
		_, ok = f.Uint(key)
		count(ok)
		_, ok = f.Float(key)
		count(ok)
		_, ok = f.Bool(key)
		count(ok)
		_, ok = f.Strings(key)
		count(ok)
		_, ok = f.Floats(key)
		count(ok)
		_, ok = f.Ints(key)
		count(ok)
		if fits > 1 {
			t.Errorf("metadata %q, %v, is of %d types", key, v, fits)
		}
	}
	f.err.Store(nil)
	if _, err := f.Vocab(); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("Vocab: %#v, want an *Error", err)
		}
	}
}

// checkRoundTrip writes what was read and reads that: nothing may be lost.
func checkRoundTrip(t *testing.T, f *File) {
	s := &sample{magic: "GGUF", version: 3, alignment: 32}
	if n, ok := f.Uint("general.alignment"); ok {
		s.alignment = int(n)
	}
	for key, v := range f.meta {
		if v.array {
			s.set(key, kindArray, array(v.kind, uint64(v.n), raw(f, v)))
		} else {
			s.set(key, v.kind, raw(f, v))
		}
	}
	if s.alignment > 1<<16 {
		return // the padding alone would be gigabytes
	}
	for _, tensor := range f.Tensors() {
		var dims []uint64
		for _, n := range tensor.Shape {
			dims = append(dims, uint64(n))
		}
		s.addData(tensor.Name, tensor.Type, dims, tensor.Data)
	}
	again := &File{path: "again.gguf", data: s.encode()}
	if err := parse(again); err != nil {
		t.Fatalf("what was read, written: %v", err)
	}
	if len(again.meta) != len(f.meta) || len(again.tensors) != len(f.tensors) {
		t.Fatalf("%d metadata entries and %d tensors became %d and %d", len(f.meta), len(f.tensors), len(again.meta), len(again.tensors))
	}
	for key, v := range f.meta {
		w := again.meta[key]
		if w.kind != v.kind || w.array != v.array || w.n != v.n || !bytes.Equal(raw(again, w), raw(f, v)) {
			t.Errorf("metadata %q changed", key)
		}
	}
	for i, tensor := range f.tensors {
		if other := again.tensors[i]; other.Name != tensor.Name || other.Type != tensor.Type || !bytes.Equal(other.Data, tensor.Data) {
			t.Errorf("tensor %q changed", tensor.Name)
		}
	}
}

// raw returns the bytes of a value, without the head of an array.
func raw(f *File, v value) []byte {
	end := v.off
	for range v.n {
		if v.kind == kindString {
			_, end = f.text(end)
		} else {
			end += v.kind.bytes()
		}
	}
	return []byte(f.header[v.off:end])
}
