package kernel

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// tileRows is how many rows of weights are packed and multiplied together.
const tileRows = 16

// groupLen is how many activations share a scale. Weights have a scale for each group, or two.
const groupLen = 32

// packed is a matrix of integer weights laid out for the integer kernels, so that they read it from front to back: tile by
// tile of tileRows rows (the last one filled up with zeros), and within a tile a record for each group of columns.
//
// A weight is scale·code + min, scale and min given per row and group. A record holds the codes [tileRows × groupLen], pair by
// pair of columns: row 0's two codes, row 1's …, the order in which a vector of products takes them; then the scales
// [parts × tileRows]; then the mins [tileRows], where the type has them.
type packed struct {
	bits  int  // 4: codes 0 … 15, less bias; 8: codes -128 … 127
	bias  int  // taken from each 4-bit code
	parts int  // scales a group: 1, or 2 where the type has blocks of 16
	half  bool // scales and mins are half floats, as in the file; else float32
	mins  bool // with parts 1

	record int // bytes a record
	data   []byte
}

// codeBytes and coefficientBytes are where in a record the scales begin, and how long tileRows scales or mins are.
func (p *packed) codeBytes() int { return tileRows * groupLen * p.bits / 8 }

func (p *packed) coefficientBytes() int {
	if p.half {
		return 2 * tileRows
	}
	return 4 * tileRows
}

// Memory returns n zeroed bytes for packed weights, aligned to 64, on larger pages where the system has them.
func Memory(n int) []byte {
	b := make([]byte, n+63)
	b = b[-uintptr(unsafe.Pointer(unsafe.SliceData(b)))%64:][:n:n]
	adviseHuge(b)
	return b
}

// PackedBytes is how much memory Pack takes: about the weights' own size, or nothing where the CPU or the type has no kernel
// for packed weights.
func (m *Matrix) PackedBytes() int {
	if size := m.Type.floatBytes(); size > 0 && features.avx2 {
		return m.tiles() * tileRows * m.Cols * size
	}
	p := m.layout()
	return m.tiles() * (m.Cols / groupLen) * p.record
}

// Pack lays the weights out for the kernels of this CPU, once, when the model is loaded, in PackedBytes of zeroed memory, aligned
// to 4 bytes: MatMul is some times quicker afterwards.
func (m *Matrix) Pack(pool *Pool, memory []byte) {
	if m.Type.floatBytes() > 0 && features.avx2 {
		panels := memory[:m.PackedBytes()]
		pool.Run(m.tiles(), &panelPacking{m, panels})
		m.panels = panels
		return
	}
	p := m.layout()
	if p.record == 0 {
		return
	}
	p.data = memory[:m.PackedBytes()]
	pool.Run(m.tiles(), &packing{m, &p})
	m.packed = &p
}

// layout is how m is packed; record is 0 where it is not.
func (m *Matrix) layout() (p packed) {
	if !features.avx2 {
		return p
	}
	switch m.Type {
	case Q4_0:
		p = packed{bits: 4, bias: 8, parts: 1, half: true}
	case Q4_1:
		p = packed{bits: 4, parts: 1, half: true, mins: true}
	case Q8_0:
		p = packed{bits: 8, parts: 1, half: true}
	case Q4_K:
		p = packed{bits: 4, parts: 1, mins: true}
	case Q6_K:
		p = packed{bits: 8, parts: 2}
	default:
		return p
	}
	p.record = p.codeBytes() + p.parts*p.coefficientBytes()
	if p.mins {
		p.record += p.coefficientBytes()
	}
	return p
}

// packing is the task of packing one tile an item.
type packing struct {
	m *Matrix
	p *packed
}

func (t *packing) Do(_, tile int) {
	m, p := t.m, t.p
	groups, row := m.Cols/groupLen, m.Type.RowBytes(m.Cols)
	rows := m.Data[tile*tileRows*row : min((tile+1)*tileRows, m.Rows)*row]
	for g := range groups {
		record := p.data[(tile*groups+g)*p.record:][:p.record]
		for r := 0; r*row < len(rows); r++ {
			p.pack(m.Type, record, rows[r*row:(r+1)*row], g, r)
		}
	}
}

// pack puts group g of one row of weights into its record, as row r of the tile.
func (p *packed) pack(t Type, record, data []byte, g, r int) {
	codes, coefficients := record[:p.codeBytes()], record[p.codeBytes():]
	switch t {
	case Q4_0:
		block := data[g*18:][:18]
		copy(coefficients[2*r:], block[:2])
		nibbles(codes, block[2:], r)
	case Q4_1:
		block := data[g*20:][:20]
		copy(coefficients[2*r:], block[:2])
		copy(coefficients[2*(tileRows+r):], block[2:4])
		nibbles(codes, block[4:], r)
	case Q8_0:
		block := data[g*34:][:34]
		copy(coefficients[2*r:], block[:2])
		put8(codes, r, (*[groupLen]byte)(block[2:]))
	case Q4_K:
		block := data[g/8*144:][:144]
		s, m := scaleAndMin((*[12]byte)(block[4:16]), g%8)
		floats := Floats(coefficients)
		floats[r], floats[tileRows+r] = half(block[0], block[1])*s, -half(block[2], block[3])*m
		bytes, shift := block[16+g%8/2*32:], 4*(g%2) // 64 columns, the first 32 in the low nibbles
		for chunk := range groupLen / 8 {
			put4(codes, r, chunk, binary.LittleEndian.Uint64(bytes[chunk*8:])>>shift)
		}
	case Q6_K:
		var spread [groupLen]byte
		floats := Floats(coefficients)
		floats[r], floats[tileRows+r] = q6_KGroup(&spread, data[g/8*210:][:210], g%8)
		put8(codes, r, &spread)
	}
}

// nibbles stores 16 bytes of codes: low nibbles are the group's first 16 columns.
func nibbles(codes, b []byte, row int) {
	first, second := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	put4(codes, row, 0, first)
	put4(codes, row, 1, second)
	put4(codes, row, 2, first>>4)
	put4(codes, row, 3, second>>4)
}

// put4 stores eight columns of a row, the low nibbles of eight bytes, as 32 bits: pair j's two codes in nibbles j and j+4, so that
// a shift and a mask leave them in the halves of a 32-bit lane.
func put4(codes []byte, row, chunk int, b uint64) {
	gather := func(x uint64) uint32 { // the low nibbles of every other byte
		x &= 0x000f000f000f000f
		x |= x >> 12
		return uint32(x&0xff | x>>24&0xff00)
	}
	binary.LittleEndian.PutUint32(codes[chunk*tileRows*4+row*4:], gather(b)|gather(b>>8)<<16)
}

// put8 stores a row's 32 columns of a group, a signed byte each, pair by pair.
func put8(codes []byte, row int, b *[groupLen]byte) {
	to := codes[row*2:][:(groupLen/2-1)*2*tileRows+2]
	for j := range groupLen / 2 {
		to[j*2*tileRows], to[j*2*tileRows+1] = b[2*j], b[2*j+1]
	}
}

// q6_KGroup spreads group g of a block of Q6_K and returns the scales of its two halves.
func q6_KGroup(codes *[groupLen]byte, block []byte, g int) (first, second float32) {
	low, high, scales := block[g/4*64+g%2*32:][:32], block[128+g/4*32:][:32], block[192:208]
	for i := range codes {
		codes[i] = low[i]>>(4*(g%4/2))&15 | high[i]>>(2*(g%4))&3<<4 - 32
	}
	d := half(block[208], block[209])
	return d * float32(int8(scales[2*g])), d * float32(int8(scales[2*g+1]))
}

// A panel is a tile's weights as the tile kernels take them: for groups of columns, 16-bit codes pair by pair, scales and
// mins as float32.
type panel struct {
	codes  []int16   // [groups × groupLen/2 × tileRows × 2]
	bytes  []int8    // instead, for AMX: [groups × groupLen/4 × tileRows × 4], columns in the order of unpackBytes4
	scales []float32 // [groups × parts × tileRows]
	mins   []float32 // [groups × tileRows], nil without mins
}

func (p *panel) reserve(groups int) {
	if len(p.mins) >= groups*tileRows {
		return
	}
	p.scales = make([]float32, groups*2*tileRows)
	p.mins = make([]float32, groups*tileRows)
	if features.amx {
		p.bytes = make([]int8, groups*groupLen*tileRows)
	} else {
		p.codes = make([]int16, groups*groupLen*tileRows)
	}
}

// unpack writes n of all tiles' records, from the from-th on, to the panel.
func (p *packed) unpack(to *panel, from, n int) {
	data := p.data[from*p.record:][:n*p.record]
	if p.bits == 4 {
		unpack4AVX2(&to.codes[0], &data[0], n, p.record, int16(p.bias))
	} else {
		unpack8AVX2(&to.codes[0], &data[0], n, p.record)
	}
	p.unpackCoefficients(to, data)
}

// unpackBytes is unpack for AMX's tiles.
func (p *packed) unpackBytes(to *panel, from, n int) {
	data := p.data[from*p.record:][:n*p.record]
	if p.bits == 4 {
		unpackBytes4(&to.bytes[0], &data[0], n, p.record, int8(p.bias))
	} else {
		unpackBytes8(&to.bytes[0], &data[0], n, p.record)
	}
	p.unpackCoefficients(to, data)
}

func (p *packed) unpackCoefficients(to *panel, data []byte) {
	p.coefficients(to.scales, data, p.codeBytes(), p.parts)
	if p.mins {
		p.coefficients(to.mins, data, p.codeBytes()+p.coefficientBytes(), 1)
	}
}

// coefficients writes parts·tileRows of each record in data, from byte at on, as float32.
func (p *packed) coefficients(dst []float32, data []byte, at, parts int) {
	groups := len(data) / p.record
	if p.half && parts == 1 {
		dst = dst[:groups*tileRows]
		halvesAVX2(&dst[0], &data[at], groups, p.record)
		return
	}
	for g := range groups {
		copy(dst[g*parts*tileRows:], Floats(data[g*p.record+at:][:parts*tileRows*4]))
	}
}

// Activations are rows [T × K] that several matrices are multiplied with. Set once; the integer codes are made when they
// are first needed, by the pool.
//
// The integer kernels take them as 16-bit codes, one scale for each groupLen of them: the largest magnitude becomes 32,767,
// so that a code is off by at most 1/65,534 of it. That is what float32 products of such rows lose to rounding, too.
type Activations struct {
	x      []float32
	rows   int
	cols   int
	coded  bool
	codes  []int16   // [T × K]; T rounded up to what the kernels take
	bytes  []int8    // for AMX: [T × K/groupLen × 2 × groupLen], see splitCodes
	scales []float32 // [T × K/groupLen]
	totals []int32   // [T × K/groupLen]: Σ of the group's codes
	sums   []float32 // [T × K/groupLen]: that, scaled
}

// Set makes x [rows × cols] the activations; x must not change until they are set again.
func (a *Activations) Set(x []float32, rows, cols int) {
	if len(x) < rows*cols {
		panic(fmt.Sprintf("kernel: %d activations for %d rows of %d", len(x), rows, cols))
	}
	a.x, a.rows, a.cols, a.coded = x[:rows*cols], rows, cols, false
}

// code makes the integer codes.
func (a *Activations) code(pool *Pool) {
	if a.coded {
		return
	}
	a.coded = true
	a.reserve()
	pool.Run(a.items(), a)
}

func (a *Activations) reserve() {
	rows, groups := a.rows, a.cols/groupLen
	if features.amx { // whose tiles read whole rows of tokens
		rows = (rows + amxTokens - 1) / amxTokens * amxTokens
	}
	if cap(a.codes) < rows*a.cols || cap(a.totals) < rows*groups {
		a.codes, a.totals = make([]int16, rows*a.cols), make([]int32, rows*groups)
		a.scales, a.sums = make([]float32, rows*groups), make([]float32, rows*groups)
		if features.amx {
			a.bytes = make([]int8, 2*rows*a.cols)
		}
	}
	a.codes, a.totals = a.codes[:rows*a.cols], a.totals[:rows*groups]
	a.scales, a.sums = a.scales[:rows*groups], a.sums[:rows*groups]
}

func (a *Activations) items() int { return (a.rows + codeRows - 1) / codeRows }

// codeRows is how many rows are coded in one item of work.
const codeRows = 8

// Do codes one item's rows.
func (a *Activations) Do(_, i int) {
	from, to := i*codeRows*a.cols, min((i+1)*codeRows, a.rows)*a.cols
	g := from / groupLen
	codeAVX2(&a.codes[from], &a.totals[g], &a.scales[g], &a.sums[g], &a.x[from], (to-from)/groupLen)
	if features.amx {
		splitCodes(&a.bytes[2*from], &a.codes[from], (to-from)/groupLen)
	}
}
