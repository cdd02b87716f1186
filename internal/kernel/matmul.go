package kernel

import (
	"fmt"
	"unsafe"
)

// A Matrix is M rows of K weights in one of the stored types, used in place.
type Matrix struct {
	Type Type
	Rows int // M, outputs
	Cols int // K, inputs; a multiple of Type.BlockLen
	Data []byte

	packed *packed // see Pack
	panels []byte  // of weights that are floating-point numbers
}

// NewMatrix checks that data holds rows × cols weights of type t.
func NewMatrix(t Type, rows, cols int, data []byte) (Matrix, error) {
	if !t.Known() {
		return Matrix{}, fmt.Errorf("weights of type %v cannot be multiplied", t)
	}
	if cols%t.BlockLen() != 0 {
		return Matrix{}, fmt.Errorf("rows of %d weights, but %v comes in blocks of %d", cols, t, t.BlockLen())
	}
	if want := rows * t.RowBytes(cols); len(data) != want {
		return Matrix{}, fmt.Errorf("%d × %d weights of %v take %d bytes, found %d", rows, cols, t, want, len(data))
	}
	return Matrix{Type: t, Rows: rows, Cols: cols, Data: data}, nil
}

// Row writes row i, dequantized, to dst [K].
func (m *Matrix) Row(dst []float32, i int) {
	n := m.Type.RowBytes(m.Cols)
	Dequantize(m.Type, dst[:m.Cols], m.Data[i*n:(i+1)*n])
}

// panelRows is how many rows of weights are dequantized together: enough independent sums to keep the adders busy, few
// enough for the registers.
const panelRows = 4

// A MatMul is the task dst [T × M] = x [T × K] · wᵀ, or dst += with Add, for one or a few matrices. The zero
// value is ready; it keeps its scratch from call to call, so one MatMul serves one caller at a time. dst must not alias x.
//
// Each output is Σ_k x[k]·w[k] in float32, w dequantized to float32, summed in the path's own fixed order of k. Where w is
// packed, x is taken as 16-bit codes (see Activations) and sums are exact within a group of columns; where w is of floating-point
// numbers and packed, a sum is that of Gemm.
type MatMul struct {
	products [maxProducts]Product
	n        int
	workers  []scratch // one a worker
	run      uint64    // how many there were
}

// A Product is one matrix of a MatMul, what it is multiplied with, and where the outputs go: Dst [T × M], or M of every Stride values.
type Product struct {
	Dst    []float32
	Stride int // 0: M
	X      *Activations
	W      *Matrix
	Add    bool // to what Dst holds

	Low *LowRank // is added to W, where Fuses says so; nil: nothing
}

// maxProducts is how many products may run together: queries, keys and values, and what an adapter adds beside each.
const maxProducts = 6

// scratch is a worker's memory: weights as a product takes them.
type scratch struct {
	panel  panel
	rows   []float32 // [panelRows × K]
	last   []float32 // [T × tileRows], the outputs of a last tile with fewer rows
	tile   tileArgs
	stream streamArgs
	gemm   gemmScratch
	values []float32 // [gemmDepth × tileRows], a stretch of a panel

	amx   amxArgs
	tiles []byte // AMX's sums on their way to the outputs, 4 KiB

	low [maxProducts]lowInput
}

// Run computes the products on the pool.
func (mm *MatMul) Run(p *Pool, products ...Product) {
	if len(products) > maxProducts {
		panic(fmt.Sprintf("kernel: %d products at a time; at most %d", len(products), maxProducts))
	}
	mm.run++
	mm.n = copy(mm.products[:], products)
	if len(mm.workers) < p.Threads() {
		mm.workers = make([]scratch, p.Threads())
	}
	items := 0
	for i := range mm.n {
		pr := &mm.products[i]
		if pr.X.cols != pr.W.Cols {
			panic(fmt.Sprintf("kernel: rows of %d activations for rows of %d weights", pr.X.cols, pr.W.Cols))
		}
		pr.Stride = max(pr.Stride, pr.W.Rows)
		pr.Dst = pr.Dst[:max((pr.X.rows-1)*pr.Stride+pr.W.Rows, 0)]
		if pr.integer() {
			pr.X.code(p)
		}
		mm.reserve(pr)
		items += mm.items(pr)
	}
	p.Run(items, mm)
}

func (mm *MatMul) reserve(pr *Product) {
	for i := range mm.workers {
		s := &mm.workers[i]
		switch {
		case pr.panels():
			if s.values == nil {
				s.values, s.gemm.left = make([]float32, gemmDepth*tileRows), make([]float32, gemmDepth*gemmRows)
			}
			continue
		case !pr.integer():
			if cap(s.rows) < panelRows*pr.W.Cols {
				s.rows = make([]float32, panelRows*pr.W.Cols)
			}
			continue
		case together(pr.X.rows) > 0:
			s.panel.reserve(panelGroups(pr.W.Cols / groupLen))
			if features.amx && s.tiles == nil {
				s.tiles = Memory(4096)
			}
		}
		if pr.W.Rows%tileRows != 0 && len(s.last) < pr.X.rows*tileRows {
			s.last = make([]float32, pr.X.rows*tileRows)
		}
	}
}

// items is how many items of work a product is.
func (mm *MatMul) items(pr *Product) int {
	n := mm.itemTiles(pr)
	return (pr.W.tiles() + n - 1) / n
}

// itemTiles is how many tiles of weights an item of work is. Weights that only stream by are read in long stretches, which hardware's
// own prefetching sees through, a few for every worker.
func (mm *MatMul) itemTiles(pr *Product) int {
	if together(pr.X.rows) > 0 {
		return 1
	}
	items := 3 * len(mm.workers)
	return (pr.W.tiles() + items - 1) / items
}

func (m *Matrix) tiles() int { return (m.Rows + tileRows - 1) / tileRows }

func (pr *Product) panels() bool { return pr.W.panels != nil && features.avx2 }

func (pr *Product) integer() bool { return pr.W.packed != nil && features.avx2 }

// Do computes one item: the outputs of a few tiles of weights, for every row of x.
func (mm *MatMul) Do(worker, i int) {
	pr, at := &mm.products[0], 0
	for i >= mm.items(pr) {
		i -= mm.items(pr)
		at++
		pr = &mm.products[at]
	}
	n := mm.itemTiles(pr)
	s := &mm.workers[worker]
	from, to := i*n, min((i+1)*n, pr.W.tiles())
	for tile := from; tile < to; tile++ {
		switch {
		case pr.integer():
			mm.tile(s, pr, tile)
		case pr.panels():
			mm.panel(s, pr, tile)
		default:
			mm.floats(s, pr, tile)
		}
	}
	if pr.Low != nil {
		mm.addLow(s, at, from, to)
	}
}

// panelGroups is how many of a tile's groups of columns are unpacked at a time: even parts, whose codes and scales fill two
// thirds of a first-level cache of 32 KiB.
func panelGroups(groups int) int {
	const most = 18
	parts := (groups + most - 1) / most
	return (groups + parts - 1) / parts
}

// tileTokens is how many tokens are computed together from weights that were unpacked for them. What is left over, or all
// where there are fewer, streams the packed weights instead.
func tileTokens() int {
	if features.avx512 {
		return 8
	}
	return 4
}

// amxTokens is how many tokens AMX's tiles hold. Fewer are computed in the time of so many; from amxLeast on that is quicker than
// to stream.
const (
	amxTokens = 16
	amxLeast  = 4
)

// together is how many of rows are computed from unpacked weights.
func together(rows int) int {
	if features.amx {
		if rest := rows % amxTokens; rest < amxLeast {
			return rows - rest
		}
		return rows
	}
	return rows / tileTokens() * tileTokens()
}

// tile computes the outputs of one tile of packed weights.
func (mm *MatMul) tile(s *scratch, pr *Product, tile int) {
	w, x := pr.W, pr.X
	dst, stride := pr.Dst[tile*tileRows:], pr.Stride
	rows := min(tileRows, w.Rows-tile*tileRows)
	if rows < tileRows {
		dst, stride = s.last, tileRows
		for t := range x.rows {
			copy(dst[t*stride:][:rows], pr.Dst[t*pr.Stride+tile*tileRows:])
		}
	}
	many := together(x.rows)
	switch {
	case many == 0:
	case features.amx:
		mm.onTiles(s, pr, tile, dst, stride, many)
	default:
		mm.unpacked(s, pr, tile, dst, stride, many)
	}
	for t := many; t < x.rows; t++ {
		streamed(s, w, x, pr.Add, tile, dst[t*stride:], t)
	}
	if rows < tileRows {
		for t := range x.rows {
			copy(pr.Dst[t*pr.Stride+tile*tileRows:][:rows], dst[t*stride:])
		}
	}
}

// unpacked computes a tile's outputs for the first tokens of x, a multiple of tileTokens: dst [tokens × stride].
func (mm *MatMul) unpacked(s *scratch, pr *Product, tile int, dst []float32, stride, tokens int) {
	w, x := pr.W, pr.X
	groups := w.Cols / groupLen
	step := panelGroups(groups)
	for from := 0; from < groups; from += step {
		n := min(step, groups-from)
		w.packed.unpack(&s.panel, tile*groups+from, n)
		s.tile = tileArgs{
			dstStride: uintptr(stride) * 4, xStride: uintptr(w.Cols) * 2, groupStride: uintptr(groups) * 4,
			codes: &s.panel.codes[0], scales: &s.panel.scales[0], groups: n, parts: w.packed.parts, add: flag(pr.Add || from > 0),
		}
		if w.packed.mins {
			s.tile.mins = &s.panel.mins[0]
		}
		for t := 0; t < tokens; t += tileTokens() {
			g := t*groups + from
			s.tile.dst = &dst[t*stride]
			s.tile.x, s.tile.xScales, s.tile.xSums = &x.codes[g*groupLen], &x.scales[g], &x.sums[g]
			if features.avx512 {
				tile8AVX512(&s.tile)
			} else {
				tile4AVX2(&s.tile)
			}
		}
	}
}

// onTiles is unpacked on AMX's tiles, for any number of tokens.
func (mm *MatMul) onTiles(s *scratch, pr *Product, tile int, dst []float32, stride, tokens int) {
	w, x := pr.W, pr.X
	p, groups := w.packed, w.Cols/groupLen
	step := panelGroups(groups)
	for from := 0; from < groups; from += step {
		n := min(step, groups-from)
		p.unpackBytes(&s.panel, tile*groups+from, n)
		s.amx = amxArgs{
			dst: &dst[0], dstStride: uintptr(stride) * 4,
			x: &x.bytes[from*2*groupLen], xStride: uintptr(w.Cols) * 2,
			xScales: &x.scales[from], xSums: &x.sums[from], groupStride: uintptr(groups) * 4,
			codes: &s.panel.bytes[0], scales: &s.panel.scales[0], groups: n, parts: p.parts,
			partCodes: groupLen / p.parts * tileRows, rest: 2*groupLen - 16*p.parts, add: flag(pr.Add || from > 0),
			tokens: tokens, buffer: &s.tiles[0], config: &tileConfigs[p.parts-1],
		}
		if p.mins {
			s.amx.mins = &s.panel.mins[0]
		}
		tilesAMX(&s.amx)
	}
}

// tileConfigs are what LDTILECFG takes, for one and for two scales a group: how many rows each tile has, and how many bytes a row.
var tileConfigs = [2][64]byte{tileConfig(groupLen), tileConfig(groupLen / 2)}

func tileConfig(columns byte) (c [64]byte) {
	c[0] = 1 // the palette
	tile := func(i int, rows, bytes byte) { c[16+2*i], c[48+i] = bytes, rows }
	tile(0, amxTokens, 4*tileRows)
	tile(1, amxTokens, 4*tileRows)
	tile(4, amxTokens, columns)
	tile(5, amxTokens, columns)
	tile(6, columns/4, 4*tileRows)
	return c
}

// streamed computes a tile's outputs for token t: dst [tileRows].
func streamed(s *scratch, w *Matrix, x *Activations, add bool, tile int, dst []float32, t int) {
	s.stream.of(w, add)
	s.stream.token(x, t)
	s.stream.records, s.stream.dst = &w.packed.data[tile*s.stream.groups*w.packed.record], &dst[0]
	s.stream.run(w)
}

// of is what all tiles of w have in common.
func (a *streamArgs) of(w *Matrix, add bool) {
	p := w.packed
	*a = streamArgs{record: uintptr(p.record), groups: w.Cols / groupLen, bias: p.bias, parts: p.parts, half: flag(p.half), mins: flag(p.mins), add: flag(add)}
}

// token is what all tiles have in common for token t of x.
func (a *streamArgs) token(x *Activations, t int) {
	g := t * a.groups
	a.x, a.xScales, a.xSums, a.xTotals = &x.codes[g*groupLen], &x.scales[g], &x.sums[g], &x.totals[g]
}

// run computes a tile's outputs.
func (a *streamArgs) run(w *Matrix) {
	switch {
	case w.packed.bits == 4 && features.avx512:
		stream4AVX512(a)
	case w.packed.bits == 4:
		stream4AVX2(a)
	case features.avx512:
		stream8AVX512(a)
	default:
		stream8AVX2(a)
	}
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// floats computes the outputs of one tile with weights as float32.
func (mm *MatMul) floats(s *scratch, pr *Product, tile int) {
	w, k, x := pr.W, pr.W.Cols, pr.X.x
	for m := tile * tileRows; m < min((tile+1)*tileRows, w.Rows); m += panelRows {
		n := min(panelRows, w.Rows-m)
		panel := w.floats(s, m, n)
		w0 := panel[:k]
		w1, w2, w3 := w0, w0, w0 // rows past the end repeat the first one, and are not stored
		if n > 1 {
			w1 = panel[k : 2*k]
		}
		if n > 2 {
			w2 = panel[2*k : 3*k]
		}
		if n > 3 {
			w3 = panel[3*k : 4*k]
		}
		t := 0
		for ; t+1 < pr.X.rows; t += 2 {
			sums := dot4x2(w0, w1, w2, w3, x[t*k:(t+1)*k], x[(t+1)*k:(t+2)*k])
			mm.store(pr, t, m, sums[:n])
			mm.store(pr, t+1, m, sums[panelRows:][:n])
		}
		if t < pr.X.rows {
			sums := dot4(w0, w1, w2, w3, x[t*k:(t+1)*k])
			mm.store(pr, t, m, sums[:n])
		}
	}
}

// floats returns rows m … m+n-1 of the weights as float32, in place where they are stored so.
func (w *Matrix) floats(s *scratch, m, n int) []float32 {
	row := w.Type.RowBytes(w.Cols)
	data := w.Data[m*row : (m+n)*row]
	if w.Type == F32 {
		return Floats(data)
	}
	panel := s.rows[:n*w.Cols]
	Dequantize(w.Type, panel, data)
	return panel
}

func (mm *MatMul) store(pr *Product, t, m int, sums []float32) {
	out := pr.Dst[t*pr.Stride+m:][:len(sums)]
	if !pr.Add {
		copy(out, sums)
		return
	}
	for j, s := range sums {
		out[j] += s
	}
}

// Floats views stored little-endian float32 values in place. len(b) must be a multiple of 4 and b aligned to 4 bytes.
func Floats(b []byte) []float32 { return view[float32](b) }

// Halves views stored little-endian 16-bit values in place. len(b) must be a multiple of 2 and b aligned to 2 bytes.
func Halves(b []byte) []uint16 { return view[uint16](b) }

// Codes views 8-bit codes in place.
func Codes(b []byte) []int8 { return view[int8](b) }

func view[E float32 | uint16 | int8](b []byte) []E {
	var e E
	size := unsafe.Sizeof(e)
	if len(b) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(len(b))%size != 0 || uintptr(p)%size != 0 {
		panic(fmt.Sprintf("kernel: %d bytes at %p are no whole aligned %d-byte values", len(b), p, size))
	}
	return unsafe.Slice((*E)(p), uintptr(len(b))/size)
}
