package weights

import (
	"encoding/binary"
	"math"
)

// A value is the place of a metadata value in the header, which holds all of it.
type value struct {
	kind  kind // of the elements, if it is an array
	array bool
	n     int // elements; 1 unless it is an array
	off   int
}

// A kind is the type of a metadata value, under the number GGUF gives it.
type kind uint32

const (
	kindUint8 kind = iota
	kindInt8
	kindUint16
	kindInt16
	kindUint32
	kindInt32
	kindFloat32
	kindBool
	kindString
	kindArray
	kindUint64
	kindInt64
	kindFloat64
)

// kinds tells each kind's name and the bytes a value takes, at least; an array's are its elements'.
var kinds = [...]struct {
	name  string
	bytes int
}{
	kindUint8: {"uint8", 1}, kindInt8: {"int8", 1}, kindUint16: {"uint16", 2}, kindInt16: {"int16", 2},
	kindUint32: {"uint32", 4}, kindInt32: {"int32", 4}, kindUint64: {"uint64", 8}, kindInt64: {"int64", 8},
	kindFloat32: {"float32", 4}, kindFloat64: {"float64", 8}, kindBool: {"bool", 1}, kindString: {"string", 8}, kindArray: {name: "array"},
}

func (k kind) known() bool { return int(k) < len(kinds) }
func (k kind) bytes() int  { return kinds[k].bytes }

// String says what v is, for messages: "an array of int32", "a string".
func (v value) String() string {
	switch name := kinds[v.kind].name; {
	case v.array:
		return "an array of " + name
	case v.kind == kindInt8 || v.kind == kindInt16 || v.kind == kindInt32 || v.kind == kindInt64:
		return "an " + name
	default:
		return "a " + name
	}
}

// The methods that follow return the value under a key, and whether it is there with the type asked for. A value of another type
// counts as absent, and Err tells of it: so a reader asks for all it needs, and then for Err once.

// Err returns an *Error about the first key that was asked for as a type it does not have, or nil.
func (f *File) Err() error {
	if err := f.err.Load(); err != nil {
		return err
	}
	return nil // not a nil *Error in an error
}

// Architecture returns general.architecture, such as "llama", or "".
func (f *File) Architecture() string {
	s, _ := f.String("general.architecture")
	return s
}

// String returns the string under key.
func (f *File) String(key string) (string, bool) {
	v, ok := f.lookup(key, "a string", func(v value) bool { return !v.array && v.kind == kindString })
	if !ok {
		return "", false
	}
	s, _ := f.text(v.off)
	return s, true
}

// Uint returns the integer under key, of whatever width, unless it is negative.
func (f *File) Uint(key string) (uint64, bool) {
	v, ok := f.lookup(key, "an integer", func(v value) bool { return !v.array && v.integer() })
	if !ok {
		return 0, false
	}
	n, negative := f.integer(v.kind, v.off)
	if negative {
		f.mistyped(key, "is %d, expected 0 or more", int64(n))
		return 0, false
	}
	return n, true
}

// Float returns the floating-point number under key.
func (f *File) Float(key string) (float64, bool) {
	v, ok := f.lookup(key, "a float", func(v value) bool { return !v.array && (v.kind == kindFloat32 || v.kind == kindFloat64) })
	if !ok {
		return 0, false
	}
	if v.kind == kindFloat32 {
		return float64(f.float32(v.off)), true
	}
	return math.Float64frombits(f.bits(v.off, 8)), true
}

// Bool returns the bool under key.
func (f *File) Bool(key string) (bool, bool) {
	v, ok := f.lookup(key, "a bool", func(v value) bool { return !v.array && v.kind == kindBool })
	if !ok {
		return false, false
	}
	return f.header[v.off] != 0, true
}

// Strings returns the array of strings under key.
func (f *File) Strings(key string) ([]string, bool) {
	v, ok := f.lookup(key, "an array of strings", func(v value) bool { return v.array && v.kind == kindString })
	if !ok {
		return nil, false
	}
	all := make([]string, v.n)
	for i := range all {
		all[i], v.off = f.text(v.off)
	}
	return all, true
}

// Floats returns the array of float32 under key.
func (f *File) Floats(key string) ([]float32, bool) {
	v, ok := f.lookup(key, "an array of float32", func(v value) bool { return v.array && v.kind == kindFloat32 })
	if !ok {
		return nil, false
	}
	all := make([]float32, v.n)
	for i := range all {
		all[i] = f.float32(v.off + 4*i)
	}
	return all, true
}

// Ints returns the array of integers under key, of whatever width, unless one does not fit.
func (f *File) Ints(key string) ([]int32, bool) {
	v, ok := f.lookup(key, "an array of integers", func(v value) bool { return v.array && v.integer() })
	if !ok {
		return nil, false
	}
	all := make([]int32, v.n)
	for i := range all {
		n, negative := f.integer(v.kind, v.off+i*v.kind.bytes())
		if all[i] = int32(n); int64(all[i]) != int64(n) || negative != (all[i] < 0) {
			f.mistyped(key, "has an element %d out of the range of an int32", i)
			return nil, false
		}
	}
	return all, true
}

// lookup returns the value under key if it is there and accepted. One of another type is remembered for Err.
func (f *File) lookup(key, want string, accepted func(value) bool) (value, bool) {
	v, ok := f.meta[key]
	if ok && !accepted(v) {
		f.mistyped(key, "is %v, expected %s", v, want)
		return value{}, false
	}
	return v, ok
}

// mistyped remembers the first such error.
func (f *File) mistyped(key, format string, args ...any) {
	f.err.CompareAndSwap(nil, f.Errorf(metadataField(key), format, args...).(*Error))
}

func (v value) integer() bool {
	switch v.kind {
	case kindUint8, kindInt8, kindUint16, kindInt16, kindUint32, kindInt32, kindUint64, kindInt64:
		return true
	}
	return false
}

// integer returns the integer at off in two's complement of 64 bits, and whether it is negative.
func (f *File) integer(k kind, off int) (n uint64, negative bool) {
	n = f.bits(off, k.bytes())
	switch k {
	case kindInt8:
		n = uint64(int8(n))
	case kindInt16:
		n = uint64(int16(n))
	case kindInt32:
		n = uint64(int32(n))
	case kindInt64:
	default:
		return n, false
	}
	return n, int64(n) < 0
}

// text returns the string at off and the offset after it.
func (f *File) text(off int) (string, int) {
	from := off + 8
	to := from + int(f.bits(off, 8))
	return f.header[from:to], to
}

func (f *File) float32(off int) float32 { return math.Float32frombits(uint32(f.bits(off, 4))) }

// bits returns the n bytes at off as a little-endian number.
func (f *File) bits(off, n int) uint64 {
	var b [8]byte
	copy(b[:], f.header[off:off+n])
	return binary.LittleEndian.Uint64(b[:])
}
