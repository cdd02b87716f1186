package kernel

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

var known = []Type{F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K}

// testdata/quant.json was made by testdata/make_quant.py with llama.cpp's own reader.
func TestDequantize_AgreesWithLlamaCpp(t *testing.T) {
	raw, err := os.ReadFile("testdata/quant.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Type        string
		Src, Values []byte
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range cases {
		seen[c.Type] = true
		typ := typeNamed(t, c.Type)
		want := make([]float32, len(c.Values)/4)
		Dequantize(F32, want, c.Values)
		got := make([]float32, len(want))
		Dequantize(typ, got, c.Src)
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%v: value %d = %v, want %v", typ, i, got[i], want[i])
			}
		}
	}
	for _, typ := range known {
		if typ != F32 && !seen[typ.String()] {
			t.Errorf("no case for %v", typ)
		}
	}
}

func typeNamed(t *testing.T, name string) Type {
	t.Helper()
	for _, typ := range known {
		if typ.String() == name {
			return typ
		}
	}
	t.Fatalf("no type named %q", name)
	return 0
}

func TestDequantize_EqualsSlowTwin(t *testing.T) {
	const seed, blocks = 2, 40
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, typ := range known {
		src := make([]byte, blocks*typ.BlockBytes())
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		got := make([]float32, blocks*typ.BlockLen())
		Dequantize(typ, got, src)
		for i, g := range got {
			block := src[i/typ.BlockLen()*typ.BlockBytes():][:typ.BlockBytes()]
			value, size := twin(typ, block, i%typ.BlockLen())
			if math.IsNaN(value) || math.IsInf(size, 0) {
				continue // a scale that is no number
			}
			if math.Abs(float64(g)-value) > size*0x1p-22 {
				t.Fatalf("seed %d: %v, value %d of block %x = %v, want %v", seed, typ, i%typ.BlockLen(), block, g, value)
			}
		}
	}
}

// twin is the slow and obvious reader: value i of block b, and the size of what it was added up from. It takes each
// number by the place of its bits in the block, after the structs of ggml-common.h.
func twin(typ Type, b []byte, i int) (value, size float64) {
	field := func(from, count, bits, index int) int { // number `index` of `count` numbers of `bits` bits, packed from byte `from`
		at := from*8 + index*bits
		n := 0
		for k := range bits {
			n |= int(b[(at+k)/8]>>((at+k)%8)&1) << k
		}
		if index >= count {
			panic("outside the field")
		}
		return n
	}
	f16 := func(from int) float64 { return float64(f16Value(uint16(field(from, 1, 16, 0)))) }
	scaled := func(d, q, m float64) (float64, float64) { return d*q + m, math.Abs(d*q) + math.Abs(m) }
	// nibble: the low ones of `group` bytes are the first values, their high ones the next.
	nibble := func(from, group int) int {
		return field(from+i/(2*group)*group, 2*group, 4, 2*(i%group)+i%(2*group)/group)
	}
	// crumb: two bits each; 128 values share 32 bytes, the lowest bits the first 32 of them.
	crumb := func(from int) int { return field(from+i/128*32, 128, 2, 4*(i%32)+i%128/32) }
	// plane: bit k of byte l belongs to value 32k+l.
	plane := func(from int) int { return field(from, 256, 1, 8*(i%32)+i/32) }
	// sixBits: scale and min of eight groups in twelve bytes, as Q4_K and Q5_K have them.
	sixBits := func(from int) (scale, min float64) {
		j := i / 32
		if j < 4 {
			return float64(b[from+j] % 64), float64(b[from+4+j] % 64)
		}
		return float64(b[from+4+j]%16 + 16*(b[from+j-4]/64)), float64(b[from+4+j]/16 + 16*(b[from+j]/64))
	}
	switch typ {
	case F32:
		v := float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
		return v, math.Abs(v)
	case F16:
		return scaled(f16(0), 1, 0)
	case BF16:
		v := float64(math.Float32frombits(uint32(field(0, 1, 16, 0)) << 16))
		return v, math.Abs(v)
	case Q4_0: // half d; nibbles qs[16]
		return scaled(f16(0), float64(nibble(2, 16)-8), 0)
	case Q4_1: // half d, m; nibbles qs[16]
		return scaled(f16(0), float64(nibble(4, 16)), f16(2))
	case Q5_0: // half d; bits qh[4]; nibbles qs[16]
		return scaled(f16(0), float64(nibble(6, 16)+16*field(2, 32, 1, i)-16), 0)
	case Q5_1: // half d, m; bits qh[4]; nibbles qs[16]
		return scaled(f16(0), float64(nibble(8, 16)+16*field(4, 32, 1, i)), f16(2))
	case Q8_0: // half d; int8 qs[32]
		return scaled(f16(0), float64(int8(b[2+i])), 0)
	case Q2_K: // scale and min nibbles [16]; crumbs qs[64]; half d, dmin
		s := b[i/16]
		return scaled(f16(80)*float64(s%16), float64(crumb(16)), -f16(82)*float64(s/16))
	case Q3_K: // planes hmask[32]; crumbs qs[64]; scales[12]; half d
		j := i / 16
		s := field(96, 16, 4, 2*(j%8)+j/8) + 16*field(104, 16, 2, 4*(j%4)+j/4)
		return scaled(f16(108)*float64(s-32), float64(crumb(32)+4*plane(0)-4), 0)
	case Q4_K: // half d, dmin; scales[12]; nibbles qs[128]
		s, m := sixBits(4)
		return scaled(f16(0)*s, float64(nibble(16, 32)), -f16(2)*m)
	case Q5_K: // half d, dmin; scales[12]; planes qh[32]; nibbles qs[128]
		s, m := sixBits(4)
		return scaled(f16(0)*s, float64(nibble(48, 32)+16*plane(16)), -f16(2)*m)
	case Q6_K: // nibbles ql[128]; crumbs qh[64]; int8 scales[16]; half d
		return scaled(f16(208)*float64(int8(b[192+i/16])), float64(nibble(0, 64)+16*crumb(128)-32), 0)
	}
	panic(fmt.Sprintf("no twin for %v", typ))
}

// One value of each layout worked out by hand, d = 0.5 (0x3800), m and dmin = 2 (0x4000).
func TestDequantize_ByHand(t *testing.T) {
	const half, two = "\x00\x38", "\x00\x40"
	zeros := func(n int) string { return string(make([]byte, n)) }
	for _, c := range []struct {
		typ  Type
		src  string
		at   int
		want float32
	}{
		{F32, "\x00\x00\xc0\x3f", 0, 1.5},
		{F16, "\x00\xc2", 0, -3},
		{BF16, "\x40\x40", 0, 3},
		{Q4_0, half + zeros(3) + "\x2f" + zeros(12), 3, 3.5},                      // (15-8) · 0.5
		{Q4_0, half + zeros(3) + "\x2f" + zeros(12), 19, -3},                      // (2-8) · 0.5
		{Q4_1, half + two + "\x2f" + zeros(15), 0, 9.5},                           // 15 · 0.5 + 2
		{Q4_1, half + two + "\x2f" + zeros(15), 16, 3},                            // 2 · 0.5 + 2
		{Q5_0, half + "\x00\x00\x01\x00" + "\x2f" + zeros(15), 0, -0.5},           // (15-16) · 0.5
		{Q5_0, half + "\x00\x00\x01\x00" + "\x2f" + zeros(15), 16, 1},             // (16+2-16) · 0.5
		{Q5_1, half + two + "\x02\x00\x00\x00" + "\x00\x03" + zeros(14), 1, 11.5}, // (16+3) · 0.5 + 2
		{Q8_0, half + zeros(31) + "\x80", 31, -64},
		// Value 17 is in group 1 (scale 3, min 1): crumb 0 of byte 17, (0.5 · 3) · 2 - 2 · 1.
		{Q2_K, "\x00\x13" + zeros(14) + zeros(17) + "\x02" + zeros(46) + half + two, 17, 1},
		// Value 0: scale 33-32 from nibble 1 and high bits 2, crumb 3, third bit set: 0.5 · 1 · (3+4-4).
		{Q3_K, "\x01" + zeros(31) + "\x03" + zeros(63) + "\x01" + zeros(7) + "\x02" + zeros(3) + half, 0, 1.5},
		// Value 32 is the high nibble of byte 0: (0.5 · 5) · 7 - 2 · 3.
		{Q4_K, half + two + "\x00\x05\x00\x00" + "\x00\x03\x00\x00" + zeros(4) + "\x70" + zeros(127), 32, 11.5},
		// Group 4 (value 128, byte 64): scale low bits 1, high bits 1 → 17; min low bits 2, high bits 1 → 18. (0.5 · 17) · 4 - 2 · 18.
		{Q4_K, half + two + "\x40\x00\x00\x00" + "\x40\x00\x00\x00" + "\x21\x00\x00\x00" + zeros(64) + "\x04" + zeros(63), 128, -2},
		// Value 224 has bit 7 of fifth-bit byte 0 and the high nibble of byte 96: group 7, scale 1: (0.5 · 1) · (16+9).
		{Q5_K, half + two + zeros(11) + "\x01" + "\x80" + zeros(31) + zeros(96) + "\x90" + zeros(31), 224, 12.5},
		// Value 96: high nibble of byte 32, crumb 3 of byte 0, scale 6 = -2: 0.5 · -2 · (16·2+1-32).
		{Q6_K, zeros(32) + "\x10" + zeros(95) + "\x80" + zeros(63) + zeros(6) + "\xfe" + zeros(9) + half, 96, -1},
	} {
		dst := make([]float32, c.typ.BlockLen())
		if len(c.src) != c.typ.BlockBytes() {
			t.Fatalf("%v: the case has %d bytes, a block %d", c.typ, len(c.src), c.typ.BlockBytes())
		}
		Dequantize(c.typ, dst, []byte(c.src))
		if dst[c.at] != c.want {
			t.Errorf("%v: value %d = %v, want %v", c.typ, c.at, dst[c.at], c.want)
		}
	}
}

func TestDequantize_WrongLengths_PanicBeforeWriting(t *testing.T) {
	for _, c := range []struct {
		name     string
		dst, src int
	}{{"part of a block", 33, 40}, {"src too short", 64, 39}} {
		dst := make([]float32, c.dst)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", c.name)
				}
			}()
			src := make([]byte, c.src)
			for i := range src {
				src[i] = 0x11
			}
			Dequantize(Q4_1, dst, src)
		}()
		for i, v := range dst {
			if v != 0 {
				t.Errorf("%s: value %d was written", c.name, i)
			}
		}
	}
}

func TestType_Unknown_IsNamedAndNotKnown(t *testing.T) {
	for typ, want := range map[Type]string{23: "IQ4_XS", 4: "type 4", 1 << 31: "type 2147483648"} {
		if typ.Known() || typ.String() != want {
			t.Errorf("Type(%d): known %v, name %q, want an unknown %q", uint32(typ), typ.Known(), typ, want)
		}
	}
}

func BenchmarkDequantize(b *testing.B) {
	const n = 1536
	dst := make([]float32, n)
	for _, typ := range known {
		src := make([]byte, typ.RowBytes(n))
		for i := range src {
			src[i] = byte(i*7 + i>>8)
		}
		b.Run(typ.String(), func(b *testing.B) {
			for b.Loop() {
				Dequantize(typ, dst, src)
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gvalues/s")
		})
	}
}
