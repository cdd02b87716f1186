package model

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/weights"
)

// A variant is the tiny model as a GGUF file that is yet to be written, to be changed before.
type variant struct {
	keys    []metadata
	tensors []weights.Tensor
}

type metadata struct {
	key   string
	value any // string, uint32, float32 or []int32
}

// tiny reads a variant from one of the tiny models; its metadata is written out here, without the tokenizer.
func tiny(t testing.TB, name string) *variant {
	t.Helper()
	file := open(t, testenv.Tiny(name))
	return &variant{
		keys: []metadata{
			{"general.architecture", "llama"},
			{"llama.block_count", uint32(2)},
			{"llama.context_length", uint32(512)},
			{"llama.embedding_length", uint32(64)},
			{"llama.feed_forward_length", uint32(128)},
			{"llama.attention.head_count", uint32(4)},
			{"llama.attention.head_count_kv", uint32(2)},
			{"llama.attention.layer_norm_rms_epsilon", float32(1e-5)},
		},
		tensors: slices.Clone(file.Tensors()),
	}
}

// set changes the value under key, or adds it.
func (v *variant) set(key string, value any) {
	v.drop(key)
	v.keys = append(v.keys, metadata{key, value})
}

func (v *variant) drop(key string) {
	v.keys = slices.DeleteFunc(v.keys, func(m metadata) bool { return m.key == key })
}

// put changes the tensor of that name to one of float32 values, or adds it.
func (v *variant) put(name string, values []float32, shape ...int) {
	v.remove(name)
	v.tensors = append(v.tensors, weights.Tensor{Name: name, Type: kernel.F32, Shape: shape, Data: number(values)})
}

func (v *variant) remove(name string) {
	v.tensors = slices.DeleteFunc(v.tensors, func(t weights.Tensor) bool { return t.Name == name })
}

// values are the float32 values of a tensor.
func (v *variant) values(t testing.TB, name string) []float32 {
	t.Helper()
	i := slices.IndexFunc(v.tensors, func(t weights.Tensor) bool { return t.Name == name })
	if i < 0 {
		t.Fatalf("no tensor %s", name)
	}
	out := make([]float32, len(v.tensors[i].Data)/4)
	kernel.Dequantize(kernel.F32, out, v.tensors[i].Data)
	return out
}

// write writes the file and opens it.
func (v *variant) write(t testing.TB) *weights.File {
	t.Helper()
	var b, data bytes.Buffer
	b.WriteString("GGUF")
	b.Write(number(uint32(3)))
	b.Write(number(uint64(len(v.tensors))))
	b.Write(number(uint64(len(v.keys))))
	for _, m := range v.keys {
		b.Write(text(m.key))
		switch value := m.value.(type) {
		case uint32:
			b.Write(number(uint32(4)))
			b.Write(number(value))
		case float32:
			b.Write(number(uint32(6)))
			b.Write(number(value))
		case string:
			b.Write(number(uint32(8)))
			b.Write(text(value))
		case []int32:
			b.Write(number([]uint32{9, 5}))
			b.Write(number(uint64(len(value))))
			b.Write(number(value))
		default:
			t.Fatalf("metadata %s: no way to write %T", m.key, value)
		}
	}
	const alignment = 32
	pad := func(b *bytes.Buffer) { b.Write(make([]byte, (alignment-b.Len()%alignment)%alignment)) }
	for _, tensor := range v.tensors {
		b.Write(text(tensor.Name))
		b.Write(number(uint32(len(tensor.Shape))))
		for _, n := range tensor.Shape {
			b.Write(number(uint64(n)))
		}
		b.Write(number(uint32(tensor.Type)))
		b.Write(number(uint64(data.Len())))
		data.Write(tensor.Data)
		pad(&data)
	}
	pad(&b)
	path := filepath.Join(t.TempDir(), "variant.gguf")
	if err := os.WriteFile(path, append(b.Bytes(), data.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func number(v any) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return b
}

func text(s string) []byte { return append(number(uint64(len(s))), s...) }

func open(t testing.TB, path string) *weights.File {
	t.Helper()
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return file
}
