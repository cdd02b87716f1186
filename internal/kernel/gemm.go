package kernel

// The product of float32 matrices, for training, where activations and gradients take the places that quantized weights have in MatMul.
// A sum runs in stretches of at most gemmDepth values of k, each in ascending order from zero (fused on the paths that can), and the
// stretches are added up in order: bits depend on k alone, and not on rows, columns or threads.

// gemmRows × gemmCols outputs stay in registers while a stretch is summed.
const (
	gemmRows  = 6
	gemmCols  = 16
	gemmDepth = 256 // gemmCols columns of it take 16 KiB: half of the first cache

	// A piece of work is up to pieceTiles × gemmRows rows and pieceStrips × gemmCols columns. Its rows of the left factor, 96 KiB a
	// stretch, stay in the second cache while all of its columns pass.
	pieceTiles  = 16
	pieceStrips = 12
)

// A View is a matrix in memory: element (i, j) is Data[i*Row+j*Col].
type View struct {
	Data     []float32
	Row, Col int
}

// T is v transposed.
func (v View) T() View { return View{v.Data, v.Col, v.Row} }

// A Packed is the right factor of products, k × n, laid out for the micro kernel: strips of gemmCols columns, in each one row after the
// other, the last strip filled up with zeros. The zero value is ready for Pack.
type Packed struct {
	data []float32
	k, n int
	from View // what a Pack under way reads
}

// Pack copies b, k × n, on pool, or by itself where that is nil. Memory is taken once and grows.
func (p *Packed) Pack(pool *Pool, b View, k, n int) {
	strips := (n + gemmCols - 1) / gemmCols
	if need := strips * gemmCols * k; cap(p.data) < need {
		p.data = Floats(Memory(4 * need))
	} else {
		p.data = p.data[:need]
	}
	p.k, p.n, p.from = k, n, b
	if pool != nil {
		pool.Run(strips, (*packStrips)(p))
	} else {
		for i := range strips {
			(*packStrips)(p).Do(0, i)
		}
	}
	p.from = View{}
}

// packStrips is the task of a Pack, a strip an item.
type packStrips Packed

func (p *packStrips) Do(_, i int) {
	dst := p.data[i*gemmCols*p.k:][:gemmCols*p.k]
	n := min(gemmCols, p.n-i*gemmCols)
	if n < gemmCols {
		clear(dst)
	}
	src := p.from.Data[i*gemmCols*p.from.Col:]
	switch {
	case p.from.Col == 1 && n == gemmCols && features.avx2:
		_ = src[(p.k-1)*p.from.Row+gemmCols-1]
		packRowsAVX2(&dst[0], &src[0], p.k, p.from.Row)
	case p.from.Row == 1 && n == gemmCols && features.avx2:
		whole := p.k &^ 7
		if whole > 0 {
			_ = src[(gemmCols-1)*p.from.Col+whole-1]
			packTransposedAVX2(&dst[0], &src[0], whole, p.from.Col)
		}
		for c := range n {
			for k := whole; k < p.k; k++ {
				dst[k*gemmCols+c] = src[c*p.from.Col+k]
			}
		}
	default:
		for c := range n {
			col := src[c*p.from.Col:]
			for k := range p.k {
				dst[k*gemmCols+c] = col[k*p.from.Row]
			}
		}
	}
}

// A Term is one product in a Gemm: the left factor, as it lies in memory, and the right one.
type Term struct {
	A View
	B *Packed
}

// A Gemm is Dst = Σ A·B over its terms, or Dst + that sum: Rows rows, of as many columns as every B has, row i at Dst[i*Stride].
// The terms, up to the first without B, are added in order. Dst must not alias a factor.
type Gemm struct {
	Dst    []float32
	Stride int
	Rows   int
	Add    bool
	Terms  [6]Term
}

// Gemms runs products on a pool, or one by itself. The zero value is ready. One computation at a time.
type Gemms struct {
	list    []Gemm
	first   []int // of each product in list, its first piece
	workers []gemmScratch
}

// gemmScratch is one worker's.
type gemmScratch struct {
	left []float32 // tiles of the left factor [tiles × depth × gemmRows]
	tile [gemmRows * gemmCols]float32
}

// Run computes the products on pool. They do not see each other's results.
func (t *Gemms) Run(pool *Pool, list ...Gemm) {
	t.reserve(pool.Threads())
	t.list, t.first = append(t.list[:0], list...), t.first[:0]
	pieces := 0
	for i := range t.list {
		t.first = append(t.first, pieces)
		rows, cols := t.list[i].pieces()
		pieces += rows * cols
	}
	pool.Run(pieces, t)
	clear(t.list)
}

// Compute computes one product on the caller's thread.
func (t *Gemms) Compute(g *Gemm) {
	t.reserve(1)
	rows, cols := g.pieces()
	for i := range rows * cols {
		t.workers[0].piece(g, i)
	}
}

func (t *Gemms) reserve(workers int) {
	if len(t.workers) < workers {
		t.workers = make([]gemmScratch, workers)
	}
}

// Do computes piece i of all products' pieces.
func (t *Gemms) Do(worker, i int) {
	at := len(t.first) - 1
	for t.first[at] > i {
		at--
	}
	t.workers[worker].piece(&t.list[at], i-t.first[at])
}

// pieces is how many pieces stand below and beside each other.
func (g *Gemm) pieces() (rows, cols int) {
	const height, width = pieceTiles * gemmRows, pieceStrips * gemmCols
	return (g.Rows + height - 1) / height, (g.Terms[0].B.n + width - 1) / width
}

// piece computes piece i of a product, pieces beside each other following one another.
func (s *gemmScratch) piece(g *Gemm, i int) {
	_, cols := g.pieces()
	row, strip := i/cols*pieceTiles*gemmRows, i%cols*pieceStrips
	add := g.Add
	for at := range g.Terms {
		t := &g.Terms[at]
		if t.B == nil {
			break
		}
		stretches := (t.B.k + gemmDepth - 1) / gemmDepth
		for n := range stretches {
			s.stretch(g, t, row, strip, t.B.k*n/stretches, t.B.k*(n+1)/stretches, add)
			add = true
		}
	}
}

// stretch adds the products of values from … to-1 of k to the piece at row and strip; the first stretch of a sum does not add.
func (s *gemmScratch) stretch(g *Gemm, t *Term, row, strip, from, to int, add bool) {
	rows, depth := min(pieceTiles*gemmRows, g.Rows-row), to-from
	whole, rest := rows/gemmRows, rows%gemmRows

	// The left factor is read where it lies if its rows are contiguous or few columns pass. Otherwise it is copied as tiles first, and
	// so are rows that fill no tile.
	a := gemmLeft{data: t.A.Data[row*t.A.Row+from*t.A.Col:], tile: gemmRows * t.A.Row, row: t.A.Row, col: t.A.Col}
	last := a // the tile of the last rows
	strips := min(pieceStrips, (t.B.n+gemmCols-1)/gemmCols-strip)
	copied := a.col != 1 && strips > 1
	if need := (pieceTiles + 1) * gemmRows * gemmDepth; len(s.left) < need && (rest > 0 || copied) {
		s.left = make([]float32, need)
	}
	tiled := gemmLeft{data: s.left, tile: gemmRows * depth, row: 1, col: gemmRows}
	if copied {
		s.copyTiles(a, whole, depth)
	}
	if rest > 0 {
		s.copyLast(whole, a, rest, depth)
		last = tiled
		last.data = s.left[whole*gemmRows*depth:]
	}
	if copied {
		a = tiled
	}
	for i := 0; i < strips; {
		width, done := 1, 0 // strips that pass together, and tiles of them that are computed
		if features.avx512 && whole >= 2 && i+2 <= strips && (strip+i+2)*gemmCols <= t.B.n {
			width, done = 2, whole&^1
			gemmPairs(g.Dst[row*g.Stride+(strip+i)*gemmCols:], g.Stride, a, t.B.data[((strip+i)*t.B.k+from)*gemmCols:], t.B.k, depth, done, add)
		}
		for range width {
			b := t.B.data[((strip+i)*t.B.k+from)*gemmCols:][:depth*gemmCols]
			n := min(gemmCols, t.B.n-(strip+i)*gemmCols)
			dst := g.Dst[row*g.Stride+(strip+i)*gemmCols:]
			tile := done
			if n == gemmCols && tile < whole {
				gemmTiles(dst[tile*gemmRows*g.Stride:], g.Stride, a.from(tile), b, depth, whole-tile, add)
				tile = whole
			}
			for ; tile < whole; tile++ {
				s.ragged(dst[tile*gemmRows*g.Stride:], g.Stride, a.from(tile), b, depth, gemmRows, n, add)
			}
			if rest > 0 {
				s.ragged(dst[whole*gemmRows*g.Stride:], g.Stride, last, b, depth, rest, n, add)
			}
			i++
		}
	}
}

// gemmLeft is tiles of the left factor: value k of row i of tile t is data[t*tile+i*row+k*col].
type gemmLeft struct {
	data           []float32
	tile, row, col int
}

// from is the tiles from number t on.
func (a gemmLeft) from(t int) gemmLeft {
	a.data = a.data[t*a.tile:]
	return a
}

// copyTiles copies whole tiles of a to the scratch memory. Where a column is contiguous, it is read from end to end.
func (s *gemmScratch) copyTiles(a gemmLeft, tiles, depth int) {
	for k := range depth {
		src := a.data[k*a.col:]
		for t := range tiles {
			dst := (*[gemmRows]float32)(s.left[(t*depth+k)*gemmRows:])
			if a.row == 1 { // a copy of the array would be a call
				six := (*[gemmRows]float32)(src[t*gemmRows:])
				dst[0], dst[1], dst[2], dst[3], dst[4], dst[5] = six[0], six[1], six[2], six[3], six[4], six[5]
				continue
			}
			for r := range dst {
				dst[r] = src[t*a.tile+r*a.row]
			}
		}
	}
}

// copyLast copies tile t of a, of which only some rows are there, and zeros for the others.
func (s *gemmScratch) copyLast(t int, a gemmLeft, rows, depth int) {
	src := a.data[t*a.tile:]
	for k := range depth {
		dst := (*[gemmRows]float32)(s.left[(t*depth+k)*gemmRows:])
		*dst = [gemmRows]float32{}
		for r := range rows {
			dst[r] = src[r*a.row+k*a.col]
		}
	}
}

// ragged computes the first rows and n columns of a tile.
func (s *gemmScratch) ragged(dst []float32, stride int, a gemmLeft, b []float32, depth, rows, n int, add bool) {
	gemmTiles(s.tile[:], gemmCols, a, b, depth, 1, false)
	for r := range rows {
		put(dst[r*stride:], s.tile[r*gemmCols:][:n], add)
	}
}

// put writes sums to dst, or adds them to what is there.
func put(dst, sums []float32, add bool) {
	dst = dst[:len(sums)]
	for j, v := range sums {
		if add {
			v += dst[j]
		}
		dst[j] = v
	}
}

// gemmTiles computes tiles below each other of one strip.
func gemmTiles(dst []float32, stride int, a gemmLeft, b []float32, depth, tiles int, add bool) {
	_ = dst[(tiles*gemmRows-1)*stride+gemmCols-1]
	_ = a.data[(tiles-1)*a.tile+(gemmRows-1)*a.row+(depth-1)*a.col]
	_ = b[depth*gemmCols-1]
	if features.avx2 {
		args := gemmArguments(dst, stride, a, b, depth, tiles, add)
		gemm6x16AVX2(&args)
		return
	}
	for t := range tiles {
		gemmTilePortable(dst[t*gemmRows*stride:], stride, a.data[t*a.tile:], a.row, a.col, b, depth, add)
	}
}

// gemmPairs computes an even number of tiles below each other of two strips beside each other, the second one strip rows of b further on.
// Bits are those of gemmTiles.
func gemmPairs(dst []float32, stride int, a gemmLeft, b []float32, strip, depth, tiles int, add bool) {
	_ = dst[(tiles*gemmRows-1)*stride+2*gemmCols-1]
	_ = a.data[(tiles-1)*a.tile+(gemmRows-1)*a.row+(depth-1)*a.col]
	_ = b[(strip+depth)*gemmCols-1]
	args := gemmArguments(dst, stride, a, b, depth, tiles/2, add)
	args.strip = 4 * gemmCols * uintptr(strip)
	gemm12x32AVX512(&args)
}

func gemmArguments(dst []float32, stride int, a gemmLeft, b []float32, depth, tiles int, add bool) gemmArgs {
	args := gemmArgs{
		dst: &dst[0], dstStride: 4 * uintptr(stride),
		a: &a.data[0], tile: 4 * uintptr(a.tile), row: 4 * uintptr(a.row), col: 4 * uintptr(a.col),
		b: &b[0], depth: depth, tiles: tiles,
	}
	if add {
		args.add = 1
	}
	return args
}

// gemmTilePortable is the specification of one tile.
func gemmTilePortable(dst []float32, stride int, a []float32, row, col int, b []float32, depth int, add bool) {
	for r := range gemmRows {
		var sums [gemmCols]float32
		for k := range depth {
			v := a[r*row+k*col]
			for j, w := range (*[gemmCols]float32)(b[k*gemmCols:]) {
				sums[j] += float32(v * w)
			}
		}
		out := (*[gemmCols]float32)(dst[r*stride:])
		for j, v := range sums {
			if add {
				v += out[j]
			}
			out[j] = v
		}
	}
}
