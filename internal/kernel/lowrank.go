package kernel

// A LowRank is what an adapter adds to a matrix W [M × K]: B·A.
//
// The rows of B are short, and its type wants a block of them at least. So Fold of them share one: row j of B is rows j, j+M/Fold … side by side, and what it
// is multiplied with is A·x once for each of them, at its place in a row that is zero elsewhere. The outputs, M/Fold for each such row, are those of
// W as they lie.
type LowRank struct {
	A, B Matrix // [R × K], [M/Fold × columns]
	Fold int
}

// Spread makes of A·x, which lies at the beginning of a row [Fold × columns], what B is multiplied with.
func (l *LowRank) Spread(row []float32) {
	for i := 1; i < l.Fold; i++ {
		copy(row[i*l.B.Cols+i*l.A.Rows:][:l.A.Rows], row)
	}
}

// Fuses tells whether a Product of so many tokens takes a LowRank with it. For a few tokens that is quicker than products of their own, of which B's would
// wait for A's: to compute A·x anew takes a worker less time than to wait for the others.
func (l *LowRank) Fuses(w *Matrix, tokens int) bool {
	return features.avx2 && w.packed != nil && l.A.packed != nil && l.B.packed != nil && together(tokens) == 0 && w.Rows%(l.Fold*tileRows) == 0
}

// lowInput is what a LowRank's B is multiplied with, as a worker has computed it for itself.
type lowInput struct {
	run    uint64    // that it is of
	floats []float32 // [T × Fold × columns]
	x      Activations
}

// addLow adds to the outputs of some tiles of W what a LowRank has for them.
func (mm *MatMul) addLow(s *scratch, at, from, to int) {
	pr := &mm.products[at]
	x := mm.lowInput(s, at)
	b := &pr.Low.B
	tiles, size := b.tiles(), b.packed.record*(b.Cols/groupLen)
	for t := range pr.X.rows {
		s.stream.of(b, true)
		for tile := from; tile < to; tile++ {
			s.stream.token(x, t*pr.Low.Fold+tile/tiles)
			s.stream.records, s.stream.dst = &b.packed.data[tile%tiles*size], &pr.Dst[t*pr.Stride+tile*tileRows]
			s.stream.run(b)
		}
	}
}

func (mm *MatMul) lowInput(s *scratch, at int) *Activations {
	in, pr := &s.low[at], &mm.products[at]
	if in.run == mm.run {
		return &in.x
	}
	in.run = mm.run
	l := pr.Low
	width := l.Fold * l.B.Cols
	if cap(in.floats) < pr.X.rows*width {
		in.floats = make([]float32, pr.X.rows*width)
	}
	in.floats = in.floats[:pr.X.rows*width]
	clear(in.floats)
	for t := range pr.X.rows {
		row := in.floats[t*width:][:width]
		for tile := range l.A.tiles() {
			streamed(s, &l.A, pr.X, false, tile, row[tile*tileRows:], t)
		}
		clear(row[l.A.Rows : l.A.tiles()*tileRows])
		l.Spread(row)
	}
	in.x.Set(in.floats, pr.X.rows*l.Fold, l.B.Cols)
	in.x.reserve()
	for i := range in.x.items() {
		in.x.Do(0, i)
	}
	return &in.x
}
