package weights

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// A Writer writes a GGUF file, version 3. From Create to Commit or Discard:
//  1. path is what it was before Create. The bytes lie beside it, in a file with partSuffix that is locked; the next Create for the
//     same path takes over what a process that died left there.
//  2. The header is whole, and Open accepts it.
type Writer struct {
	path    string
	part    *os.File
	data    *bufio.Writer
	header  *File // the part as Open sees it: which tensors there are, and of how many bytes each
	align   uint64
	tensor  int   // the tensor that the next byte is of
	written int   // how much of it is
	err     error // the first failure of writing; it stays
	ended   bool  // by Commit or Discard
}

// partSuffix is not that of pull's downloads, which a Writer must not take over.
const partSuffix = ".writing"

// Create begins the file at path, which may exist. m and the tensors' names, types and shapes make its header; their Data is not
// looked at: it goes to Write. What Open would refuse, such as a name that is there twice, is an *Error at once.
func Create(path string, m *Metadata, tensors []Tensor) (_ *Writer, err error) {
	align := m.alignment()
	header, size := layOut(m, tensors, align)
	part, err := lockPart(path + partSuffix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part.Name()), part.Close())
		}
	}()
	// What a process that died left goes; the new length is a hole until it is written.
	if err := errors.Join(part.Truncate(0), part.Truncate(int64(size))); err != nil {
		return nil, err
	}
	if _, err := part.Write(header); err != nil {
		return nil, err
	}
	again, err := os.Open(part.Name()) // a File closes what it was read from
	if err != nil {
		return nil, err
	}
	as, err := read(path, again)
	if err != nil {
		return nil, errors.Join(err, again.Close())
	}
	return &Writer{path: path, part: part, data: bufio.NewWriterSize(part, 1<<20), header: as, align: align}, nil
}

// Write takes the next bytes of the tensors' data: one tensor after the other, as Create was given them, in pieces of any size. The
// padding between tensors is the Writer's.
func (w *Writer) Write(p []byte) (n int, err error) {
	for w.err == nil && n < len(p) {
		if w.tensor == len(w.header.tensors) {
			w.err = w.header.Errorf("data", "%s bytes were written after the last tensor's", grouped(uint64(len(p)-n)))
			break
		}
		left := len(w.header.tensors[w.tensor].Data) - w.written
		var m int
		m, w.err = w.data.Write(p[n:min(n+left, len(p))])
		n, w.written = n+m, w.written+m
		if w.err == nil && m == left {
			_, w.err = w.data.Write(make([]byte, padding(uint64(w.written), w.align)))
			w.tensor, w.written = w.tensor+1, 0
		}
	}
	return n, w.err
}

// Commit gives the file its name once all data was written, and it survives a power cut when Commit returns. A Commit that fails
// leaves path as it was.
func (w *Writer) Commit() (err error) {
	defer func() { err = errors.Join(err, w.Discard()) }()
	if w.err != nil {
		return w.err
	}
	if w.tensor < len(w.header.tensors) {
		t := w.header.tensors[w.tensor]
		return w.header.Errorf(tensorField(t.Name), "%s of %s bytes were written", grouped(uint64(w.written)), grouped(uint64(len(t.Data))))
	}
	if err := w.data.Flush(); err != nil {
		return err
	}
	if err := w.part.Sync(); err != nil {
		return err
	}
	if err := os.Rename(w.part.Name(), w.path); err != nil {
		return err
	}
	w.ended = true
	return errors.Join(w.close(), vfs.OS{}.SyncDir(filepath.Dir(w.path)))
}

// Discard removes what was written, unless Commit did its work.
func (w *Writer) Discard() error {
	if w.ended {
		return nil
	}
	w.ended = true
	return errors.Join(os.Remove(w.part.Name()), w.close())
}

// close gives the file back, and with it the lock.
func (w *Writer) close() error { return errors.Join(w.header.Close(), w.part.Close()) }

// layOut returns all that comes before the data, its padding included, and the length of the whole file. Tensors that make no sense
// are laid out as empty: reading the header tells what is wrong with them.
func layOut(m *Metadata, tensors []Tensor, align uint64) (header []byte, size uint64) {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(tensors))), uint64(len(m.entries)))
	for _, e := range m.entries {
		b = append(appendText(b, e.key), e.value...)
	}
	data := uint64(0)
	for _, t := range tensors {
		b = le.AppendUint32(appendText(b, t.Name), uint32(len(t.Shape)))
		for _, n := range t.Shape {
			b = le.AppendUint64(b, uint64(n))
		}
		b = le.AppendUint64(le.AppendUint32(b, uint32(t.Type)), data)
		n := t.bytes()
		data += n + padding(n, align)
	}
	b = append(b, make([]byte, padding(uint64(len(b)), align))...)
	return b, uint64(len(b)) + data
}

// bytes returns how many bytes the type and shape of t need, or 0 where they make no sense.
func (t Tensor) bytes() uint64 {
	if !t.Type.Known() || len(t.Shape) == 0 || slices.Min(t.Shape) < 1 {
		return 0
	}
	n := uint64(t.Type.RowBytes(t.Shape[0]))
	for _, rows := range t.Shape[1:] {
		n *= uint64(rows)
	}
	return n
}

// padding returns the bytes from n to the next multiple of align, a power of two.
func padding(n, align uint64) uint64 { return -n & (align - 1) }

// lockPart opens the file at path, new or left by a process that died, and locks it against other processes and this one.
func lockPart(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		// Another Writer may have renamed it in between: then it is that Writer's result, and not to be touched.
		var mine, named fs.FileInfo
		if mine, err = f.Stat(); err == nil {
			if named, err = os.Lstat(path); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, named) {
				err = unix.EWOULDBLOCK
			}
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: is being written already", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Metadata is the typed values under keys that a file to be written carries beside its tensors, in their order. The zero value has none.
type Metadata struct{ entries []keyValue }

// A keyValue is a key, and its value as it lies in a file: the type, and what follows it.
type keyValue struct {
	key   string
	value []byte
}

// Metadata returns a copy of f's metadata, each value the same bytes.
func (f *File) Metadata() *Metadata {
	m := &Metadata{entries: make([]keyValue, 0, len(f.meta))}
	for key, v := range f.meta {
		m.entries = append(m.entries, keyValue{key, []byte(f.header[v.begin():f.end(v)])})
	}
	slices.SortFunc(m.entries, func(a, b keyValue) int { return f.meta[a.key].off - f.meta[b.key].off })
	return m
}

// begin returns where a value's type lies.
func (v value) begin() int {
	if v.array {
		return v.off - 16 // the types of the array and of its elements, their count
	}
	return v.off - 4
}

// end returns where v ends.
func (f *File) end(v value) int {
	if v.kind != kindString {
		return v.off + v.n*v.kind.bytes()
	}
	for range v.n {
		_, v.off = f.text(v.off)
	}
	return v.off
}

// Set puts v under key: in the place of what was there, or at the end. v is a string, a bool, or a number of a sized type, or a slice of
// such; any other type panics.
func (m *Metadata) Set(key string, v any) {
	e := keyValue{key, encodeValue(v)}
	if i := m.index(key); i >= 0 {
		m.entries[i] = e
		return
	}
	m.entries = append(m.entries, e)
}

func (m *Metadata) index(key string) int {
	return slices.IndexFunc(m.entries, func(e keyValue) bool { return e.key == key })
}

// alignment returns what the file's tensors are aligned to. A value that cannot be one is left to the reading of the header.
func (m *Metadata) alignment() uint64 {
	if i := m.index(alignmentKey); i >= 0 {
		v := m.entries[i].value
		if le := binary.LittleEndian; len(v) == 8 && kind(le.Uint32(v)) == kindUint32 && bits.OnesCount32(le.Uint32(v[4:])) == 1 {
			return uint64(le.Uint32(v[4:]))
		}
	}
	return defaultAlignment
}

// goKinds are GGUF's kinds of values by the Go type.
var goKinds = map[reflect.Type]kind{
	reflect.TypeFor[uint8](): kindUint8, reflect.TypeFor[int8](): kindInt8, reflect.TypeFor[uint16](): kindUint16, reflect.TypeFor[int16](): kindInt16,
	reflect.TypeFor[uint32](): kindUint32, reflect.TypeFor[int32](): kindInt32, reflect.TypeFor[uint64](): kindUint64, reflect.TypeFor[int64](): kindInt64,
	reflect.TypeFor[float32](): kindFloat32, reflect.TypeFor[float64](): kindFloat64, reflect.TypeFor[bool](): kindBool, reflect.TypeFor[string](): kindString,
}

// encodeValue returns v's type and its bytes.
func encodeValue(v any) []byte {
	le := binary.LittleEndian
	t, b := reflect.TypeOf(v), []byte(nil)
	if t.Kind() == reflect.Slice {
		t = t.Elem()
		b = le.AppendUint32(b, uint32(kindArray))
	}
	k, ok := goKinds[t]
	if !ok {
		panic(fmt.Sprintf("weights: no metadata value is a %T", v))
	}
	b = le.AppendUint32(b, uint32(k))
	if len(b) == 8 {
		b = le.AppendUint64(b, uint64(reflect.ValueOf(v).Len()))
	}
	switch v := v.(type) {
	case string:
		return appendText(b, v)
	case []string:
		for _, s := range v {
			b = appendText(b, s)
		}
		return b
	}
	b, err := binary.Append(b, le, v)
	if err != nil {
		panic(err) // goKinds has a type that encoding/binary has not
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}
