package weights

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"unicode"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// The fewest bytes that a metadata entry and a tensor's description take: counts that the file cannot hold are refused before
// anything is allocated for them.
const (
	minEntryBytes  = 8 + 1 + 4 + 1         // key, type, value
	minTensorBytes = 8 + 1 + 4 + 8 + 4 + 8 // name, dimensions, one dimension, type, offset
)

const (
	alignmentKey     = "general.alignment"
	defaultAlignment = 32
	maxDimensions    = 4
	maxKeyBytes      = 65535
)

// A parser walks the header of a file. Each method reads the field named by its argument and advances, or fails with an *Error.
type parser struct {
	path string
	data []byte // the whole file
	off  int
}

// parse fills in f.header, f.meta, f.tensors and f.byName from f.data.
func parse(f *File) error {
	p := &parser{path: f.path, data: f.data}
	tensorCount, entryCount, err := p.preamble()
	if err != nil {
		return err
	}
	if f.meta, err = p.metadata(entryCount); err != nil {
		return err
	}
	alignment, err := alignment(f)
	if err != nil {
		return err
	}
	tensors, err := p.tensors(tensorCount)
	if err != nil {
		return err
	}
	f.header = string(f.data[:p.off])
	return place(f, tensors, alignment)
}

// preamble reads the magic, the version and the two counts.
func (p *parser) preamble() (tensors, entries int, err error) {
	if !bytes.HasPrefix(p.data, []byte("GGUF")) {
		return 0, 0, p.fail("magic", "found %q, expected \"GGUF\": this is not a GGUF file", p.data[:min(4, len(p.data))])
	}
	p.off = 4
	version, err := p.uint32("version")
	switch {
	case err != nil:
		return 0, 0, err
	case version&0xffff == 0 && version != 0:
		return 0, 0, p.fail("version", "found %d with its bytes reversed: big-endian files are not supported, expected little-endian", bits.ReverseBytes32(version))
	case version != 2 && version != 3:
		return 0, 0, p.fail("version", "found %d, expected 2 or 3", version)
	}
	if tensors, err = p.count("tensor count", minTensorBytes); err != nil {
		return 0, 0, err
	}
	// The two counts share what is left; each alone is bounded here, and the walk stops at the end of the file.
	if entries, err = p.count("metadata count", minEntryBytes); err != nil {
		return 0, 0, err
	}
	return tensors, entries, nil
}

// metadata reads n entries: key, type, value.
func (p *parser) metadata(n int) (map[string]value, error) {
	meta := make(map[string]value)
	for i := range n {
		field := fmt.Sprintf("metadata entry %d of %d", i+1, n)
		key, err := p.text(field + ", key")
		if err != nil {
			return nil, err
		}
		if len(key) == 0 || len(key) > maxKeyBytes {
			return nil, p.fail(field+", key", "has %s bytes, expected 1 to %s", grouped(uint64(len(key))), grouped(maxKeyBytes))
		}
		name := string(key)
		if _, twice := meta[name]; twice {
			return nil, p.fail(metadataField(name), "is there twice")
		}
		if meta[name], err = p.value(metadataField(name)); err != nil {
			return nil, err
		}
	}
	return meta, nil
}

// value reads a type and a value of that type, of which it keeps only the place.
func (p *parser) value(field string) (value, error) {
	number, err := p.uint32(field)
	if err != nil {
		return value{}, err
	}
	v := value{kind: kind(number), n: 1, off: p.off}
	if v.kind == kindArray {
		return p.array(field)
	}
	switch {
	case !v.kind.known():
		return value{}, p.fail(field, "has value type %d, expected 0 to %d", number, len(kinds)-1)
	case v.kind == kindString:
		_, err = p.text(field)
	default:
		var b []byte
		if b, err = p.take(field, uint64(v.kind.bytes())); err == nil && v.kind == kindBool && b[0] > 1 {
			err = p.fail(field, "is a bool of value %d, expected 0 or 1", b[0])
		}
	}
	return v, err
}

// array reads what follows the type of an array: the elements' type, their count and they themselves.
func (p *parser) array(field string) (value, error) {
	number, err := p.uint32(field)
	if err != nil {
		return value{}, err
	}
	v := value{kind: kind(number), array: true}
	if v.kind == kindArray {
		return value{}, p.fail(field, "is an array of arrays, expected an array of numbers, bools or strings")
	}
	if !v.kind.known() {
		return value{}, p.fail(field, "is an array of value type %d, expected 0 to %d", number, len(kinds)-1)
	}
	if v.n, err = p.count(field+", element count", v.kind.bytes()); err != nil {
		return value{}, err
	}
	v.off = p.off
	if v.kind != kindString {
		p.off += v.n * v.kind.bytes() // inside the file: count saw to it
		return v, nil
	}
	for i := range v.n {
		// The message is worked out only for the string that fails: there may be hundreds of thousands.
		if length, ok := p.peekLength(); !ok {
			_, err := p.text(fmt.Sprintf("%s, string %d of %s", field, i+1, grouped(uint64(v.n))))
			return value{}, err
		} else {
			p.off += 8 + length
		}
	}
	return v, nil
}

// A description is what the header tells of a tensor. It points to data by an offset from where the data begin.
type description struct {
	name   string
	typ    kernel.Type
	shape  []int
	bytes  uint64
	offset uint64
}

// tensors reads n descriptions: name, dimensions, type, offset.
func (p *parser) tensors(n int) ([]description, error) {
	var all []description
	for i := range n {
		field := fmt.Sprintf("tensor %d of %d, name", i+1, n)
		name, err := p.text(field)
		if err != nil {
			return nil, err
		}
		if len(name) == 0 {
			return nil, p.fail(field, "is empty, expected 1 byte or more")
		}
		d := description{name: string(name)}
		if d.shape, err = p.shape(tensorField(d.name)); err != nil {
			return nil, err
		}
		number, err := p.uint32(tensorField(d.name) + ", type")
		if err != nil {
			return nil, err
		}
		d.typ = kernel.Type(number)
		if d.bytes, err = p.tensorBytes(d); err != nil {
			return nil, err
		}
		if d.offset, err = p.uint64(tensorField(d.name) + ", offset"); err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// shape reads the number of dimensions and the dimensions. Their product may still be too large for anything.
func (p *parser) shape(field string) ([]int, error) {
	n, err := p.uint32(field + ", dimensions")
	if err != nil {
		return nil, err
	}
	if n < 1 || n > maxDimensions {
		return nil, p.fail(field, "has %s dimensions, expected 1 to %d", grouped(uint64(n)), maxDimensions)
	}
	shape := make([]int, n)
	for i := range shape {
		length, err := p.uint64(field + ", dimensions")
		if err != nil {
			return nil, err
		}
		if length == 0 || length > 1<<62 {
			return nil, p.fail(field, "dimension %d is %s, expected 1 or more and no more than the file can hold", i, grouped(length))
		}
		shape[i] = int(length)
	}
	return shape, nil
}

// tensorBytes returns the bytes that d needs, which are no more than the file has.
func (p *parser) tensorBytes(d description) (uint64, error) {
	field := tensorField(d.name)
	if !d.typ.Known() {
		return 0, p.fail(field, "has %v, which is not supported; expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K", typeName(d.typ))
	}
	if d.shape[0]%d.typ.BlockLen() != 0 {
		return 0, p.fail(field, "has rows of %s values, expected a multiple of %d, the block of %v", grouped(uint64(d.shape[0])), d.typ.BlockLen(), d.typ)
	}
	size := uint64(len(p.data))
	need := uint64(d.typ.BlockBytes())
	for i, n := range d.shape {
		if i == 0 {
			n /= d.typ.BlockLen()
		}
		high, low := bits.Mul64(need, uint64(n))
		if need = low; high != 0 || need > size {
			return 0, p.fail(field, "has shape %v in %v, which needs more than the %s bytes of the file", d.shape, d.typ, grouped(size))
		}
	}
	return need, nil
}

// place turns descriptions into the tensors of f: data begin at the first multiple of the alignment after the header.
func place(f *File, all []description, alignment uint64) error {
	size := uint64(len(f.data))
	start := (uint64(len(f.header)) + alignment - 1) &^ (alignment - 1)
	f.tensors = make([]Tensor, 0, len(all))
	f.byName = make(map[string]int, len(all))
	for _, d := range all {
		field := tensorField(d.name)
		if _, twice := f.byName[d.name]; twice {
			return f.Errorf(field, "is there twice")
		}
		if d.offset%alignment != 0 {
			return f.Errorf(field, "has offset %s, expected a multiple of the alignment, %s", grouped(d.offset), grouped(alignment))
		}
		if d.offset > size || start+d.offset > size || start+d.offset+d.bytes > size {
			return f.Errorf(field, "needs bytes %s to %s, the file has %s", sum(start, d.offset), sum(start, d.offset, d.bytes), grouped(size))
		}
		from, to := start+d.offset, start+d.offset+d.bytes
		f.byName[d.name] = len(f.tensors)
		f.tensors = append(f.tensors, Tensor{d.name, d.typ, d.shape, f.data[from:to:to]})
	}
	return apart(f, all)
}

// apart checks that no two tensors share bytes.
func apart(f *File, all []description) error {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b description) int {
		if a.offset < b.offset {
			return -1
		}
		return int(min(a.offset-b.offset, 1))
	})
	for i := 1; i < len(sorted); i++ {
		if before, d := sorted[i-1], sorted[i]; before.offset+before.bytes > d.offset {
			return f.Errorf(tensorField(d.name), "begins at offset %s, inside %s, which ends at %s",
				grouped(d.offset), tensorField(before.name), grouped(before.offset+before.bytes))
		}
	}
	return nil
}

// alignment returns what the offsets of tensors are multiples of.
func alignment(f *File) (uint64, error) {
	v, ok := f.meta[alignmentKey]
	if !ok {
		return defaultAlignment, nil
	}
	if v.kind != kindUint32 || v.array {
		return 0, f.Errorf(metadataField(alignmentKey), "is %v, expected a uint32", v)
	}
	n := binary.LittleEndian.Uint32(f.data[v.off:])
	if n < 8 || bits.OnesCount32(n) != 1 {
		return 0, f.Errorf(metadataField(alignmentKey), "is %s, expected a power of two of at least 8", grouped(uint64(n)))
	}
	return uint64(n), nil
}

// take returns the next n bytes.
func (p *parser) take(field string, n uint64) ([]byte, error) {
	if left := uint64(len(p.data) - p.off); n > left {
		return nil, p.fail(field, "needs %s bytes at byte %s, the file ends after %s", grouped(n), grouped(uint64(p.off)), grouped(left))
	}
	b := p.data[p.off : p.off+int(n)]
	p.off += int(n)
	return b, nil
}

func (p *parser) uint32(field string) (uint32, error) {
	b, err := p.take(field, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (p *parser) uint64(field string) (uint64, error) {
	b, err := p.take(field, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// text reads a string: its length and its bytes.
func (p *parser) text(field string) ([]byte, error) {
	n, err := p.uint64(field)
	if err != nil {
		return nil, err
	}
	return p.take(field, n)
}

// peekLength returns the length of the string that comes next, and whether all of it is in the file.
func (p *parser) peekLength() (int, bool) {
	left := len(p.data) - p.off - 8
	if left < 0 {
		return 0, false
	}
	n := binary.LittleEndian.Uint64(p.data[p.off:])
	return int(n), n <= uint64(left)
}

// count reads a number of things of at least size bytes each, and refuses more than the rest of the file could hold.
func (p *parser) count(field string, size int) (int, error) {
	n, err := p.uint64(field)
	if err != nil {
		return 0, err
	}
	if most := uint64((len(p.data) - p.off) / size); n > most {
		return 0, p.fail(field, "is %s, the rest of the file can hold %s at most", grouped(n), grouped(most))
	}
	return int(n), nil
}

func (p *parser) fail(field, format string, args ...any) error {
	return &Error{p.path, field, fmt.Sprintf(format, args...)}
}

func metadataField(key string) string { return "metadata " + printable(key) }
func tensorField(name string) string  { return "tensor " + printable(name) }

// printable returns s as it is, or quoted where it would garble a terminal, and shortened where it would fill it.
func printable(s string) string {
	const longest = 80
	short := s[:min(len(s), longest)]
	for _, r := range short {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			short = strconv.Quote(short)
			break
		}
	}
	switch {
	case s == "":
		return `""`
	case len(s) > longest:
		return short + "…"
	}
	return short
}

// typeName names a type by name and number where it has a name: "type IQ4_XS (23)".
func typeName(t kernel.Type) string {
	number := fmt.Sprintf("type %d", uint32(t))
	if t.String() == number {
		return number
	}
	return fmt.Sprintf("type %v (%d)", t, uint32(t))
}

// sum adds numbers that may overflow and groups the digits: "98,300,160", or "2⁶⁴ or more".
func sum(numbers ...uint64) string {
	var total, carry, any uint64
	for _, n := range numbers {
		total, carry = bits.Add64(total, n, 0)
		any |= carry
	}
	if any != 0 {
		return "2⁶⁴ or more"
	}
	return grouped(total)
}

// grouped writes n with commas between thousands.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
