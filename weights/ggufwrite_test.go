package weights

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A sample is a GGUF file to be written, whatever is wrong with it.
type sample struct {
	magic       string
	version     uint32
	tensorCount uint64
	entryCount  uint64
	entries     []entry
	tensors     []tensorEntry
	alignment   int
	data        []byte
}

type entry struct {
	key   string
	kind  uint32
	bytes []byte
}

type tensorEntry struct {
	name   string
	dims   []uint64
	typ    uint32
	offset uint64
}

// newSample returns a whole and sound file: a value of every kind and two tensors.
func newSample() *sample {
	s := &sample{magic: "GGUF", version: 3, alignment: 32}
	s.set("general.architecture", kindString, text("llama"))
	s.set("uint8", kindUint8, number(uint8(200)))
	s.set("int8", kindInt8, number(int8(-8)))
	s.set("uint16", kindUint16, number(uint16(60000)))
	s.set("int16", kindInt16, number(int16(-16)))
	s.set("uint32", kindUint32, number(uint32(4e9)))
	s.set("int32", kindInt32, number(int32(-32)))
	s.set("uint64", kindUint64, number(uint64(math.MaxUint64)))
	s.set("int64", kindInt64, number(int64(-64)))
	s.set("float32", kindFloat32, number(float32(1e-5)))
	s.set("float64", kindFloat64, number(1e-300))
	s.set("bool", kindBool, []byte{1})
	s.set("strings", kindArray, array(kindString, 3, text("a"), text(""), text("Ġc")))
	s.set("floats", kindArray, array(kindFloat32, 2, number(float32(0.5)), number(float32(-2))))
	s.set("ints", kindArray, array(kindInt32, 2, number(int32(-1)), number(int32(7))))
	s.set("wide", kindArray, array(kindUint32, 1, number(uint32(math.MaxUint32))))
	s.add("blk.0.attn_q.weight", kernel.Q4_1, 64, 2)
	s.add("output_norm.weight", kernel.F32, 3)
	return s
}

// set appends a metadata entry, or replaces the one under key.
func (s *sample) set(key string, k kind, payload []byte) {
	e := entry{key, uint32(k), payload}
	if i := slices.IndexFunc(s.entries, func(e entry) bool { return e.key == key }); i >= 0 {
		s.entries[i] = e
		return
	}
	s.entries = append(s.entries, e)
	s.entryCount++
}

// drop removes the metadata entry under key.
func (s *sample) drop(key string) {
	s.entries = slices.DeleteFunc(s.entries, func(e entry) bool { return e.key == key })
	s.entryCount = uint64(len(s.entries))
}

// add appends a tensor whose data count up from 1.
func (s *sample) add(name string, typ kernel.Type, dims ...uint64) {
	rows := 1
	for _, n := range dims[1:] {
		rows *= int(n)
	}
	data := make([]byte, rows*typ.RowBytes(int(dims[0])))
	for i := range data {
		data[i] = byte(i + 1)
	}
	s.addData(name, typ, dims, data)
}

func (s *sample) addData(name string, typ kernel.Type, dims []uint64, data []byte) {
	for len(s.data)%s.alignment != 0 {
		s.data = append(s.data, 0)
	}
	s.tensors = append(s.tensors, tensorEntry{name, dims, uint32(typ), uint64(len(s.data))})
	s.tensorCount++
	s.data = append(s.data, data...)
}

func (s *sample) encode() []byte {
	var b bytes.Buffer
	b.WriteString(s.magic)
	b.Write(number(s.version))
	b.Write(number(s.tensorCount))
	b.Write(number(s.entryCount))
	for _, e := range s.entries {
		b.Write(text(e.key))
		b.Write(number(e.kind))
		b.Write(e.bytes)
	}
	for _, t := range s.tensors {
		b.Write(text(t.name))
		b.Write(number(uint32(len(t.dims))))
		b.Write(number(t.dims))
		b.Write(number(t.typ))
		b.Write(number(t.offset))
	}
	for len(s.data) > 0 && b.Len()%s.alignment != 0 {
		b.WriteByte(0)
	}
	b.Write(s.data)
	return b.Bytes()
}

func number(v any) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return b
}

func text(s string) []byte { return append(number(uint64(len(s))), s...) }

func array(k kind, n uint64, elements ...[]byte) []byte {
	return slices.Concat(number(uint32(k)), number(n), slices.Concat(elements...))
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}
