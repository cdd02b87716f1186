// Package attention computes softmax attention of a few queries over the keys and values of many blocks, each stored once,
// at its own local positions (Block-Attention, arXiv 2409.15355): queries + KV segments with offsets → outputs.
//
// Letters: T tokens that ask, H query heads, G KV heads (H a multiple of G), D values a head, L tokens of a segment.
// Queries and outputs are [T × H × D], a segment's keys and values [G × L × D], all row-major.
//
// RoPE turns query and key by angles linear in their positions, so ⟨R(p)q, R(Δ+j)k⟩ = ⟨R(p-Δ)q, R(j)k⟩. The paper turns
// the keys of a block to its new offset Δ; here keys stay as stored, turned to their local position j, and the query is
// turned by p-Δ for each segment: by its place in its own block, then by that block's distance from the segment. No copy of the cache is ever made.
package attention

import (
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A Segment is the keys and values that one layer keeps of one block: for each KV head K [L × D], then V [L × D].
// Keys are turned to local positions 0 … L-1. Exactly one of F32, F16, BF16 and Q8 holds the values; none is written.
type Segment struct {
	F32  []float32
	F16  []uint16 // IEEE half floats
	BF16 []uint16

	// 8-bit codes, a scale for each kernel.Q8Group of a row. The scales of a K or V are in the same memory, behind its codes: of the
	// codes from Q8[i] on, those from Scales[i/2] on. HeadStride and VOffset are even, D is a multiple of kernel.Q8Group.
	Q8     []int8
	Scales []uint16

	Len int // L

	HeadStride int // values from one KV head's K to the next one's
	VOffset    int // values from a head's K to its V

	Offset int // Δ: global position of the segment's first token
	First  int // the first token that is seen, of those
}

// Shape is what all segments and queries of a call have in common.
type Shape struct{ Heads, KVHeads, Dim int }

// Queries are the not yet turned queries of consecutive tokens of one block.
type Queries struct {
	Q        []float32 // [T × H × D]
	Out      []float32 // [T × H × D]; must not alias Q
	Position int       // global position of the first token
	Tokens   int       // T
	Segments []Segment // in the order of the prompt, the queries' own block last
}

// keyTile is how many keys are scored before they are taken into the running softmax: a passage of about 100 tokens is one tile.
// Of a segment they are whole kernel.KeyTiles; what is left of it goes before the next segment's keys.
// spanKeys cuts long prompts into stretches of global positions whose partial softmaxes are computed independently and
// merged in order: work for many threads even when one token asks.
//
// Both are counted from the start of a block or prompt, so the order of every sum depends on the prompt alone.
const (
	keyTile  = 4 * kernel.KeyTile
	spanKeys = 1024
)

// The queries of an item, tokens times H/G, share each load of keys and values: as many as possible, unless there are too few items then
// for the threads to end together. No result depends on it.
const (
	mostQueries    = 192
	fewestQueries  = 48
	itemsPerThread = 8
)

// stepQueries are worked on together: their scores, and what they are turned into, fit the first cache beside a tile of keys.
const stepQueries = 48

// An Attend is the task of computing the outputs of several Queries. It keeps its scratch from call to call; one Attend
// serves one caller at a time.
//
// A token at global position p sees key j of a segment where Offset+j ≤ p: all of the earlier blocks, and its own block
// causally. Scores are divided by √D. Products and sums are float32.
type Attend struct {
	shape Shape
	rope  *Table
	batch []Queries
	items []item

	parts   []float32 // the partial softmaxes of queries that are cut into several spans
	scratch []scratch // one a worker
	merging bool
}

// An item is the attention of some tokens, for the query heads of one KV head, over one span of keys.
type item struct {
	queries    int // index in the batch
	head       int // KV head
	row, rows  int // tokens of the queries
	span       int
	spans      int // of these queries
	part       int // where in parts the first span's partial stands; unused when spans == 1
	partStride int // from one span's partial to the next
}

// scratch holds, for rows·H/G queries: the turned queries and the running softmax, and one tile of keys and values.
type scratch struct {
	local        []float32 // [queries × D], turned by their places in their own block
	turned       []float32 // [queries × D], for a segment
	keys, values []float32 // [keyTile × D]
	rest         rest
	state        []float32 // [queries × (2 + D)], see partial
	scores       []float32 // [keyTile / kernel.KeyTile × queries of a step × kernel.KeyTile]
	v            []float32 // the tile's values: in values, or in place

	tiles   kernel.TileSoftmax // does it all, where the CPU has what it needs
	visible []int32            // [queries], how many keys of a tile each sees
}

// A rest is the keys and values at the end of a segment that fill no kernel.KeyTile, [rows × D] each. Passages are short: the last 4 keys of
// 100 by themselves cost as much as 16. So they stand before the next segment's keys, turned as those are.
type rest struct{ keys, values []float32 }

func (r *rest) clear() { r.keys, r.values = r.keys[:0], r.values[:0] }

// Run computes batch[i].Out for every i on the pool. rope must reach the largest position asked for.
func (a *Attend) Run(pool *kernel.Pool, shape Shape, rope *Table, batch []Queries) {
	a.shape, a.rope, a.batch = shape, rope, batch
	a.items = a.items[:0]
	group := shape.Heads / shape.KVHeads
	most, parts := a.itemRows(pool.Threads()), 0
	for i := range batch {
		q := &batch[i]
		tiles := (q.Tokens + most - 1) / most
		for tile := range tiles {
			row := tile * q.Tokens / tiles
			rows := (tile+1)*q.Tokens/tiles - row
			spans := (q.Position+row+rows-1)/spanKeys + 1
			stride := rows * group * (2 + shape.Dim)
			for head := range shape.KVHeads {
				it := item{queries: i, head: head, row: row, rows: rows, spans: spans, part: parts, partStride: stride}
				if spans > 1 {
					parts += spans * stride
				}
				for it.span = range spans {
					a.items = append(a.items, it)
				}
			}
		}
	}
	if cap(a.parts) < parts {
		a.parts = make([]float32, parts)
	}
	a.parts = a.parts[:parts]
	a.reserve(pool.Threads(), most*group)
	a.merging = false
	pool.Run(len(a.items), a)
	if parts > 0 {
		a.merging = true
		pool.Run(len(a.items), a)
	}
	a.batch = nil
}

// itemRows is how many tokens an item has at most.
func (a *Attend) itemRows(threads int) int {
	group := a.shape.Heads / a.shape.KVHeads
	rows := max(mostQueries/group, 1)
	for ; rows*group > fewestQueries && rows > 1; rows = (rows + 1) / 2 {
		items := 0
		for i := range a.batch {
			q := &a.batch[i]
			items += (q.Tokens + rows - 1) / rows * ((q.Position+q.Tokens-1)/spanKeys + 1) * a.shape.KVHeads
		}
		if items >= itemsPerThread*threads {
			break
		}
	}
	return rows
}

func (a *Attend) reserve(threads, queries int) {
	d := a.shape.Dim
	for len(a.scratch) < threads {
		a.scratch = append(a.scratch, scratch{})
	}
	for i := range a.scratch {
		s := &a.scratch[i]
		if len(s.turned) < queries*d || len(s.values) < keyTile*d || len(s.scores) < keyTile*queries {
			s.local, s.turned, s.state = make([]float32, queries*d), make([]float32, queries*d), make([]float32, queries*(2+d))
			s.keys, s.values = make([]float32, keyTile*d), make([]float32, keyTile*d)
			s.scores, s.visible = make([]float32, keyTile*queries), make([]int32, queries)
			s.rest = rest{make([]float32, 0, kernel.KeyTile*d), make([]float32, 0, kernel.KeyTile*d)}
		}
	}
}

// Do computes one item: the softmax over one span; or, in the second round, merges the spans of one.
func (a *Attend) Do(worker, i int) {
	it := &a.items[i]
	switch {
	case a.merging:
		if it.spans > 1 && it.span == 0 {
			a.finish(it, a.merge(it))
		}
	case it.spans > 1:
		state := a.parts[it.part+it.span*it.partStride:][:it.partStride]
		a.attend(it, &a.scratch[worker], state)
	default:
		s := &a.scratch[worker]
		state := s.state[:it.rows*a.shape.Heads/a.shape.KVHeads*(2+a.shape.Dim)]
		a.attend(it, s, state)
		a.finish(it, state)
	}
}

// attend carries one running softmax over the segments of the item's span, in order.
func (a *Attend) attend(it *item, s *scratch, state []float32) {
	q := &a.batch[it.queries]
	reset(state, a.shape.Dim)
	a.turn(it, q, s.local)
	last := -1 // segment that has a say
	for i := range q.Segments {
		if lo, hi := a.span(it, &q.Segments[i]); lo < hi {
			last = i
		}
	}
	s.rest.clear() // of an item that was given up
	offset := 0    // of the segment that the rest's keys are turned for
	for i := range q.Segments[:last+1] {
		seg := &q.Segments[i]
		lo, hi := a.span(it, seg)
		if lo >= hi {
			continue
		}
		if before := len(s.rest.keys) / a.shape.Dim; before > 0 {
			a.rope.Move(s.rest.keys, s.rest.keys, a.shape.Dim, offset-seg.Offset)
			lo -= before
		}
		offset = seg.Offset
		to := hi
		if i < last {
			to -= (hi - lo) % kernel.KeyTile
		}
		if lo < to {
			a.fold(it, q, seg, lo, to, s, state)
			lo = to
		}
		if lo < hi {
			a.keep(it, seg, lo, hi, s)
		}
	}
}

// span returns which of the segment's tokens, lo … hi-1, are in the item's span and seen by one of its rows.
func (a *Attend) span(it *item, seg *Segment) (lo, hi int) {
	q := &a.batch[it.queries]
	lo, hi = seg.First, min(seg.Len, q.Position+it.row+it.rows-seg.Offset)
	if it.spans > 1 {
		lo, hi = max(lo, it.span*spanKeys-seg.Offset), min(hi, (it.span+1)*spanKeys-seg.Offset)
	}
	return lo, hi
}

// keep makes tokens lo … hi-1 of a segment the rest, the first of them what is the rest now.
func (a *Attend) keep(it *item, seg *Segment, lo, hi int, s *scratch) {
	d, had := a.shape.Dim, len(s.rest.keys)
	s.rest.keys, s.rest.values = s.rest.keys[:(hi-lo)*d], s.rest.values[:(hi-lo)*d]
	seg.read(seg.HeadStride*it.head, lo*d+had, s.rest.keys[had:])
	seg.read(seg.HeadStride*it.head+seg.VOffset, lo*d+had, s.rest.values[had:])
}

// fold takes keys lo … hi-1 of a segment into the running softmaxes, the first of them from the rest, of which nothing is left.
func (a *Attend) fold(it *item, q *Queries, seg *Segment, lo, hi int, s *scratch, state []float32) {
	if kernel.OnTiles(a.shape.Dim) {
		a.onTiles(it, q, seg, lo, hi, s, state)
		return
	}
	width := a.shape.Heads / a.shape.KVHeads * a.shape.Dim // of a row's queries
	step := max(stepQueries*a.shape.Dim/width, 1)
	distance := q.offset() - seg.Offset
	for tile := lo; tile < hi; tile += keyTile {
		n := min(keyTile, hi-tile)
		a.load(it, seg, tile, n, s)
		for r := 0; r < it.rows; r += step {
			rows := min(step, it.rows-r)
			turned := s.local[r*width:][:rows*width]
			if distance != 0 {
				local := turned
				turned = s.turned[r*width:][:rows*width]
				if hi-lo <= keyTile {
					turned = s.turned[:rows*width] // nobody needs them again: let them stay in the first cache
				}
				if tile == lo {
					a.rope.Move(turned, local, a.shape.Dim, distance)
				}
			}
			a.partial(it, q, seg, tile, n, r, rows, turned, s, state)
		}
	}
}

// load prepares keys and values of n tokens from the segment's token lo on, the rest's among them.
func (a *Attend) load(it *item, seg *Segment, lo, n int, s *scratch) {
	d := a.shape.Dim
	k := seg.rows(seg.HeadStride*it.head, lo, n, d, s.rest.keys, s.values)
	for at := 0; at < n; at += kernel.KeyTile {
		kernel.Keys(s.keys[at*d:], k[at*d:], min(kernel.KeyTile, n-at), d)
	}
	s.v = seg.rows(seg.HeadStride*it.head+seg.VOffset, lo, n, d, s.rest.values, s.values)
	s.rest.clear()
}

// turn writes the item's queries, turned by their places in their own block and divided by √D, to dst [rows × H/G × D]. Moved by their block's
// distance from another segment's start they are turned for that one: the same distance for all of them.
func (a *Attend) turn(it *item, q *Queries, dst []float32) {
	d, group := a.shape.Dim, a.shape.Heads/a.shape.KVHeads
	scale := float32(1 / math.Sqrt(float64(d)))
	for r := range it.rows {
		t := it.row + r
		src := q.Q[(t*a.shape.Heads+it.head*group)*d:][:group*d]
		a.rope.Turn(dst[r*group*d:][:group*d], src, d, q.Position+t-q.offset(), scale)
	}
}

// offset is where the queries' own block starts.
func (q *Queries) offset() int { return q.Segments[len(q.Segments)-1].Offset }

// partial adds the n loaded keys of the segment, from its token lo on, to the running softmax of every query of the item's rows from r
// on. A query's state is its maximum score m, the sum Σ e^(s-m) and the weighted values Σ e^(s-m)·v [D].
func (a *Attend) partial(it *item, q *Queries, seg *Segment, lo, n, r, rows int, turned []float32, s *scratch, state []float32) {
	d, group := a.shape.Dim, a.shape.Heads/a.shape.KVHeads
	sees := q.Position + it.row + r - seg.Offset + 1 - lo // of the keys, the first row; the next one sees one more
	n = min(n, sees+rows-1)
	stride := rows * group * kernel.KeyTile // of scores
	for at := 0; at < n; at += kernel.KeyTile {
		kernel.Scores(s.scores[at/kernel.KeyTile*stride:], turned, s.keys[at*d:], min(kernel.KeyTile, n-at), d)
	}
	state = state[r*group*(2+d):]
	for r, alike := 0, 1; r < rows; r += alike {
		visible := sees + r
		if visible >= n {
			visible, alike = n, rows-r // this row sees them all, and so do those after it
		}
		kernel.Fold(state[r*group*(2+d):(r+alike)*group*(2+d)], s.scores[r*group*kernel.KeyTile:], stride, s.v, visible, d)
	}
}

// onTiles takes keys lo … hi-1 of a segment into the running softmaxes where the kernel does all of it.
func (a *Attend) onTiles(it *item, q *Queries, seg *Segment, lo, hi int, s *scratch, state []float32) {
	d, group := a.shape.Dim, a.shape.Heads/a.shape.KVHeads
	turned := s.turned[:it.rows*group*d]
	a.rope.Move(turned, s.local[:len(turned)], d, q.offset()-seg.Offset)
	s.tiles.Queries(turned, d)
	for ; lo < hi; lo += kernel.KeyTile {
		n := min(kernel.KeyTile, hi-lo)
		for h := range it.rows * group {
			s.visible[h] = int32(min(max(q.Position+it.row+h/group-seg.Offset+1-lo, 0), n))
		}
		k := seg.rows(seg.HeadStride*it.head, lo, n, d, s.rest.keys, s.keys)
		v := seg.rows(seg.HeadStride*it.head+seg.VOffset, lo, n, d, s.rest.values, s.values)
		s.rest.clear()
		s.tiles.Fold(state, k, v, n, s.visible)
	}
}

// rows returns rows lo … lo+n-1, d values each, of the K or V that starts at value matrix as float32, in place or by way of buf. The first of
// them are before, whatever the segment has there.
func (seg *Segment) rows(matrix, lo, n, d int, before, buf []float32) []float32 {
	if seg.F32 != nil && len(before) == 0 {
		return seg.F32[matrix+lo*d:][:n*d]
	}
	have := copy(buf, before)
	seg.read(matrix, lo*d+have, buf[have:n*d])
	return buf[:n*d]
}

// read writes values of the K or V that starts at value matrix, from its value i on, to dst as float32.
func (seg *Segment) read(matrix, i int, dst []float32) {
	at, n := matrix+i, len(dst)
	switch {
	case seg.F32 != nil:
		copy(dst, seg.F32[at:][:n])
	case seg.F16 != nil:
		kernel.F16ToF32s(dst, seg.F16[at:][:n])
	case seg.BF16 != nil:
		kernel.BF16ToF32s(dst, seg.BF16[at:][:n])
	default:
		kernel.Q8ToF32s(dst, seg.Q8[at:][:n], seg.Scales[matrix/2+i/kernel.Q8Group:])
	}
}

// reset makes every query's state that of an empty softmax.
func reset(state []float32, d int) {
	clear(state)
	for h := 0; h < len(state); h += 2 + d {
		state[h] = float32(math.Inf(-1))
	}
}

// merge folds the partial softmaxes of an item's spans into the first one by log-sum-exp, in order of the spans.
func (a *Attend) merge(it *item) []float32 {
	d := a.shape.Dim
	first := a.parts[it.part:][:it.partStride]
	for span := 1; span < it.spans; span++ {
		next := a.parts[it.part+span*it.partStride:][:it.partStride]
		for h := 0; h < len(first); h += 2 + d {
			mergeState(first[h:][:2+d], next[h:][:2+d])
		}
	}
	return first
}

func mergeState(a, b []float32) {
	top := max(a[0], b[0])
	if math.IsInf(float64(top), -1) {
		return // neither has seen a key
	}
	wa, wb := kernel.Exp(a[0]-top), kernel.Exp(b[0]-top)
	a[0] = top
	for i := 1; i < len(a); i++ {
		a[i] = float32(a[i]*wa) + float32(b[i]*wb)
	}
}

// finish divides the weighted values by their sum and writes them to the output.
func (a *Attend) finish(it *item, state []float32) {
	q := &a.batch[it.queries]
	d, group := a.shape.Dim, a.shape.Heads/a.shape.KVHeads
	for r := range it.rows {
		for h := range group {
			st := state[(r*group+h)*(2+d):][:2+d]
			out := q.Out[((it.row+r)*a.shape.Heads+it.head*group+h)*d:][:d]
			inv := 1 / st[1]
			for i, v := range st[2:] {
				out[i] = v * inv
			}
		}
	}
}
