package kernel

import "unsafe"

// A TileSoftmax takes tiles of keys and values into the running softmaxes of many queries, on AMX. It is Scores and Fold for a CPU whose
// matrix products are its quickest instructions by far; OnTiles says where it is to be used. The zero value is ready. One computation at a time.
//
// AMX multiplies bf16 numbers and adds in float32. Every factor is split into two, a high and a low one, 16 bits of mantissa
// together, and of their four products the three larger ones are added. Half floats, as keys and values are stored, are split without loss.
// The order of every sum depends on nothing but the tile: not on how many queries there are.
type TileSoftmax struct {
	d, rows int

	queries split // [R × d], R a multiple of blockRows
	keys    split // [d/2 × KeyTile × 2]
	values  split // [KeyTile/2 × d × 2]
	weights split // [R × KeyTile]

	rowsOf [2][]uint16 // the keys' halves before they are transposed [KeyTile × d]
	padded []float32   // a tile that is not full, filled up with zeros [KeyTile × d]
	scores []float32   // [R × KeyTile]
	shrink []float32   // [R]
	buffer []float32   // [amxTokens × 64]

	scoresArgs  tileScoresArgs
	softmaxArgs tileSoftmaxArgs
	valuesArgs  tileValuesArgs
}

// split is numbers as the sum of two bf16 ones, each rounded to the nearest: they are off by at most 2^-18 of themselves, and of a product
// what is left out is as little.
type split struct{ high, low []uint16 }

func (s *split) reserve(n int) {
	if len(s.high) < n {
		s.high, s.low = Halves(Memory(2*n)), Halves(Memory(2*n))
	}
}

// blockRows is how many queries are multiplied with keys at a time.
const blockRows = 32

// OnTiles says whether a TileSoftmax can be used, for heads of d values.
func OnTiles(d int) bool { return features.amx && d%64 == 0 }

// Queries sets the queries [rows × d], turned and scaled.
func (t *TileSoftmax) Queries(q []float32, d int) {
	t.d, t.rows = d, len(q)/d
	padded := (t.rows + blockRows - 1) / blockRows * blockRows
	t.queries.reserve(padded * d)
	t.weights.reserve(padded * KeyTile)
	if len(t.shrink) < padded {
		t.scores, t.shrink = Floats(Memory(4*padded*KeyTile)), Floats(Memory(4*padded))
	}
	if len(t.padded) < KeyTile*d {
		t.keys.reserve(KeyTile * d)
		t.values.reserve(KeyTile * d)
		t.rowsOf = [2][]uint16{Halves(Memory(2 * KeyTile * d)), Halves(Memory(2 * KeyTile * d))}
		t.padded, t.buffer = Floats(Memory(4*KeyTile*d)), Floats(Memory(4*amxTokens*64))
	}
	splitBF16(&t.queries.high[0], &t.queries.low[0], &q[0], t.rows*d)
}

// Fold takes n keys and values [n × d], at most KeyTile, into the states [rows × (2 + d)], see Fold. Query i sees the first visible[i].
func (t *TileSoftmax) Fold(state, k, v []float32, n int, visible []int32) {
	d := t.d
	state, visible = state[:t.rows*(2+d)], visible[:t.rows]
	k = t.pad(k, n)
	splitBF16(&t.rowsOf[0][0], &t.rowsOf[1][0], &k[0], KeyTile*d)
	for i, to := range [2][]uint16{t.keys.high, t.keys.low} { // pairs of values, moved as if they were float32
		transposeAVX2((*float32)(unsafe.Pointer(&to[0])), (*float32)(unsafe.Pointer(&t.rowsOf[i][0])), KeyTile, d/2)
	}
	v = t.pad(v, n)
	splitPairs(&t.values.high[0], &t.values.low[0], &v[0], KeyTile/2, d)

	t.scoresArgs = tileScoresArgs{
		high: &t.queries.high[0], low: &t.queries.low[0], stride: 2 * d, keysHigh: &t.keys.high[0], keysLow: &t.keys.low[0],
		scores: &t.scores[0], blocks: (t.rows + blockRows - 1) / blockRows, steps: d / 32, config: &wholeTiles,
	}
	tileScores(&t.scoresArgs)
	t.softmaxArgs = tileSoftmaxArgs{
		scores: &t.scores[0], state: &state[0], stateStride: 4 * (2 + d), high: &t.weights.high[0], low: &t.weights.low[0],
		shrink: &t.shrink[0], visible: &visible[0], rows: t.rows,
	}
	tileSoftmax(&t.softmaxArgs)
	t.valuesArgs = tileValuesArgs{
		high: &t.weights.high[0], low: &t.weights.low[0], valuesHigh: &t.values.high[0], valuesLow: &t.values.low[0], stride: 4 * d,
		state: &state[2], stateStride: 4 * (2 + d), shrink: &t.shrink[0], rows: t.rows, quads: d / 64, buffer: &t.buffer[0], config: &wholeTiles,
	}
	tileValues(&t.valuesArgs)
}

// pad returns the n rows, filled up to KeyTile.
func (t *TileSoftmax) pad(rows []float32, n int) []float32 {
	if n == KeyTile {
		return rows[:KeyTile*t.d]
	}
	clear(t.padded[copy(t.padded, rows[:n*t.d]):])
	return t.padded[:KeyTile*t.d]
}

// wholeTiles makes every tile as large as it can be: 16 rows of 64 bytes.
var wholeTiles = func() (c [64]byte) {
	c[0] = 1 // the palette
	for i := range 8 {
		c[16+2*i], c[48+i] = 64, 16
	}
	return c
}()
