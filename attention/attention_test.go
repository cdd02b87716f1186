package attention

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/kernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A prompt is the keys and values of one layer, block by block, and the queries of its last tokens, which are the end of the
// last block. Keys are as a model makes them, not yet turned; segment turns and stores them.
type prompt struct {
	shape  Shape
	rope   RoPE
	blocks []block
	first  int       // global position of the first query
	q      []float32 // [T × H × D]
}

// block holds keys and values [G × L × D].
type block struct {
	k, v []float32
	len  int
}

func newPrompt(rng *rand.Rand, shape Shape, rope RoPE, lens []int, tokens int) *prompt {
	p := &prompt{shape: shape, rope: rope, first: -tokens}
	for _, n := range lens {
		p.blocks = append(p.blocks, block{normal(rng, shape.KVHeads*n*shape.Dim), normal(rng, shape.KVHeads*n*shape.Dim), n})
		p.first += n
	}
	p.q = normal(rng, tokens*shape.Heads*shape.Dim)
	return p
}

func normal(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func (p *prompt) tokens() int { return len(p.q) / (p.shape.Heads * p.shape.Dim) }

// offsets are where the blocks start.
func (p *prompt) offsets() []int {
	at, all := 0, []int{}
	for _, b := range p.blocks {
		all = append(all, at)
		at += b.len
	}
	return all
}

// The formats that keys and values are stored in.
const (
	f32  = "f32"
	f16  = "f16"
	bf16 = "bf16"
	q8   = "q8"
)

// segments stores the blocks as a model does: keys turned to local positions, then rounded to the stored format.
func (p *prompt) segments(format string) []Segment {
	all := make([]Segment, len(p.blocks))
	for i, at := range p.offsets() {
		all[i] = p.segment(i, format)
		all[i].Offset = at
	}
	return all
}

func (p *prompt) segment(i int, format string) Segment {
	b, d := &p.blocks[i], p.shape.Dim
	const gap = 8 // between K, V and heads, which nobody may read
	s := Segment{Len: b.len, VOffset: b.len*d + gap}
	if format == q8 {
		s.VOffset += room*d + (b.len+room)*d/kernel.Q8Group*2
	}
	s.HeadStride = 2 * s.VOffset
	values := make([]float32, p.shape.KVHeads*s.HeadStride)
	for i := range values {
		values[i] = float32(math.NaN())
	}
	for g := range p.shape.KVHeads {
		for j := range b.len {
			k, v := b.k[(g*b.len+j)*d:][:d], b.v[(g*b.len+j)*d:][:d]
			at := g*s.HeadStride + j*d
			for x, value := range turned64(p.rope, k, j) {
				values[at+x] = float32(value)
			}
			copy(values[at+s.VOffset:], v)
		}
	}
	switch format {
	case f32:
		s.F32 = values
	case f16:
		s.F16 = make([]uint16, len(values))
		kernel.F32ToF16s(s.F16, values)
	case bf16:
		s.BF16 = make([]uint16, len(values))
		kernel.F32ToBF16s(s.BF16, values)
	case q8:
		memory := bytes.Repeat([]byte{0x7e}, len(values)) // as halves, NaNs
		s.Q8, s.Scales = kernel.Codes(memory), kernel.Halves(memory[(b.len+room)*d:])
		for at := 0; at < len(values); at += s.VOffset {
			kernel.F32ToQ8s(s.Q8[at:], s.Scales[at/2:], values[at:][:b.len*d])
		}
	}
	return s
}

// room is for so many tokens more where scales follow codes: a block that may still grow.
const room = 3

// inFloat32 is the segment with the values that its stored numbers stand for.
func (s Segment) inFloat32(p *prompt) Segment {
	values := make([]float32, p.shape.KVHeads*s.HeadStride)
	for matrix := 0; matrix < len(values); matrix += s.VOffset {
		for i := range s.Len * p.shape.Dim {
			values[matrix+i] = float32(s.at(matrix, i))
		}
	}
	s.F32, s.F16, s.BF16, s.Q8, s.Scales = values, nil, nil, nil, nil
	return s
}

// turned64 is head turned to position p in float64.
func turned64(r RoPE, head []float32, p int) []float64 {
	out := make([]float64, len(head))
	for i, v := range head {
		out[i] = float64(v)
	}
	return turnedAgain64(r, out, p)
}

func turnedAgain64(r RoPE, head []float64, p int) []float64 {
	out := append([]float64{}, head...)
	for i, f := range r.Freqs {
		sin, cos := math.Sincos(float64(p) * f)
		x, y := head[2*i], head[2*i+1]
		out[2*i], out[2*i+1] = r.Magnitude*(x*cos-y*sin), r.Magnitude*(x*sin+y*cos)
	}
	return out
}

// reference is the paper's form in float64, in one softmax: every stored key is turned on to its global position, and each
// query once to its own. Stored numbers are taken as they were rounded. size is Σ weight·|v|, what an error is relative to.
func (p *prompt) reference(segments []Segment) (out, size []float64) {
	d, group := p.shape.Dim, p.shape.Heads/p.shape.KVHeads
	move := RoPE{Freqs: p.rope.Freqs, Magnitude: 1} // stored keys have their magnitude already
	var positions []int
	keys, values := make([][][]float64, p.shape.KVHeads), make([][][]float64, p.shape.KVHeads)
	for _, s := range segments {
		for j := s.First; j < s.Len; j++ {
			positions = append(positions, s.Offset+j)
			for g := range p.shape.KVHeads {
				k, v := make([]float64, d), make([]float64, d)
				for x := range d {
					k[x] = s.at(g*s.HeadStride, j*d+x)
					v[x] = s.at(g*s.HeadStride+s.VOffset, j*d+x)
				}
				keys[g], values[g] = append(keys[g], turnedAgain64(move, k, s.Offset)), append(values[g], v)
			}
		}
	}
	out, size = make([]float64, len(p.q)), make([]float64, len(p.q))
	for t := range p.tokens() {
		for h := range p.shape.Heads {
			at := (t*p.shape.Heads + h) * d
			q := turned64(p.rope, p.q[at:at+d], p.first+t)
			var scores []float64
			top := math.Inf(-1)
			for j, position := range positions {
				if position > p.first+t {
					break
				}
				s := 0.0
				for x, v := range keys[h/group][j] {
					s += q[x] * v
				}
				scores = append(scores, s/math.Sqrt(float64(d)))
				top = max(top, scores[j])
			}
			sum := 0.0
			for _, s := range scores {
				sum += math.Exp(s - top)
			}
			for j, s := range scores {
				w := math.Exp(s-top) / sum
				for x, v := range values[h/group][j] {
					out[at+x] += w * v
					size[at+x] += w * math.Abs(v)
				}
			}
		}
	}
	return out, size
}

// at is value i of the K or V that starts at value matrix.
func (s *Segment) at(matrix, i int) float64 {
	switch at := matrix + i; {
	case s.F32 != nil:
		return float64(s.F32[at])
	case s.F16 != nil:
		return float64(kernel.F16ToF32(s.F16[at]))
	case s.BF16 != nil:
		return float64(kernel.BF16ToF32(s.BF16[at]))
	default:
		return float64(s.Q8[at]) * float64(kernel.F16ToF32(s.Scales[matrix/2+i/32])) // exact in float32, too
	}
}

// attended computes the prompt's queries, step tokens at a time.
func (p *prompt) attended(pool *kernel.Pool, segments []Segment, step int) []float32 {
	out := make([]float32, len(p.q))
	table := NewTable(p.rope)
	table.Reach(p.first + p.tokens())
	var a Attend
	for t := 0; t < p.tokens(); t += step {
		a.Run(pool, p.shape, table, []Queries{p.queries(out, segments, t, min(t+step, p.tokens()))})
	}
	return out
}

// queries asks for tokens from … to-1.
func (p *prompt) queries(out []float32, segments []Segment, from, to int) Queries {
	width := p.shape.Heads * p.shape.Dim
	return Queries{
		Q: p.q[from*width : to*width], Out: out[from*width : to*width],
		Position: p.first + from, Tokens: to - from, Segments: segments,
	}
}

func compare(t *testing.T, name string, got []float32, want, size []float64, relative float64) {
	t.Helper()
	for i := range got {
		if !(math.Abs(float64(got[i])-want[i]) <= relative*size[i]) {
			t.Fatalf("%s: output %d = %v, want %v (Σ weight·|v| = %v, allowed %g of it)", name, i, got[i], want[i], size[i], relative)
		}
	}
}

// sameBits tells whether a and b are equal bit for bit, and where they first differ.
func sameBits(a, b []float32) (int, bool) {
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return i, false
		}
	}
	return 0, len(a) == len(b)
}

// lengths are n block lengths from 1 to 300.
func lengths(rng *rand.Rand, n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = 1 + rng.IntN(300)
	}
	return all
}

// Tokens that are hidden have no say: as if the keys of their blocks began behind them.
func TestAttend_HiddenTokens_HaveNoSay(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	for _, c := range []struct {
		shape Shape
		lens  []int
		first []int
	}{
		{Shape{4, 2, 16}, []int{5, 1, 40, 9}, []int{0, 1, 1, 0}}, // nothing of a block is left
		{Shape{9, 3, 64}, []int{30, 129, 128, 300, 21}, []int{0, 1, 4, 64, 0}},
		{Shape{2, 1, 16}, []int{1023, 3, 1100, 7}, []int{0, 2, 3, 0}}, // hidden at a span's end
	} {
		for _, format := range formats(c.shape) {
			p := newPrompt(rng, c.shape, Plain(c.shape.Dim, 10000), c.lens, c.lens[len(c.lens)-1])
			segments := p.segments(format)
			all := p.attended(pool, segments, p.tokens())
			for i := range segments {
				segments[i].First = c.first[i]
			}
			got := p.attended(pool, segments, p.tokens())
			want, size := p.reference(segments)
			compare(t, fmt.Sprintf("%+v, blocks %v, hidden %v, %s", c.shape, c.lens, c.first, format), got, want, size, closeness(c.shape))
			if _, same := sameBits(got, all); same {
				t.Errorf("blocks %v: hiding %v changes nothing, so this test shows nothing", c.lens, c.first)
			}
		}
	}
}

func TestAttend_ManyBlocks_EqualsOneSoftmax(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	for _, c := range []struct {
		shape  Shape
		lens   []int
		tokens int // of the last block, that ask
	}{
		{Shape{1, 1, 16}, []int{1}, 1},
		{Shape{4, 2, 16}, []int{40}, 40},
		{Shape{9, 3, 64}, append(lengths(rng, 3), 21), 21},
		{Shape{9, 3, 64}, append(lengths(rng, 4), 100), 3}, // in the middle of their own block
		{Shape{4, 4, 80}, append(lengths(rng, 5), 1), 1},
		{Shape{8, 1, 128}, append(lengths(rng, 2), 33), 33},
		{Shape{2, 1, 16}, append(lengths(rng, 40), 7), 7},                                     // several spans
		{Shape{3, 1, 64}, append(lengths(rng, 30), 1), 1},                                     // several spans, one token
		{Shape{2, 1, 16}, []int{2030, 50}, 50},                                                // tokens on both sides of a span's end
		{Shape{2, 2, 16}, []int{1000, 1047, 1, 1, 2048, 3}, 3},                                // blocks that end at, before and after a span's end
		{Shape{2, 1, 16}, []int{2090}, 70},                                                    // one block across it
		{Shape{3, 1, 64}, []int{3, 1, 7, 2, 9, 4, 1, 5, 30, 31, 1, 32, 33, 2, 96, 100, 6}, 6}, // rests that more than one block makes
	} {
		for _, format := range formats(c.shape) {
			name := fmt.Sprintf("seed %d, %+v, blocks %v, %s", seed, c.shape, c.lens, format)
			p := newPrompt(rng, c.shape, Plain(c.shape.Dim, 10000), c.lens, c.tokens)
			segments := p.segments(format)
			want, size := p.reference(segments)
			compare(t, name, p.attended(pool, segments, c.tokens), want, size, closeness(c.shape))
		}
	}
}

// formats are those that can store heads of this shape.
func formats(s Shape) []string {
	if s.Dim%kernel.Q8Group != 0 {
		return []string{f32, f16, bf16}
	}
	return []string{f32, f16, bf16, q8}
}

func TestAttend_StoredFormats_AreTheirValuesInFloat32(t *testing.T) {
	const seed = 9
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	for _, c := range []struct {
		shape  Shape
		lens   []int
		tokens int
	}{
		{Shape{9, 3, 64}, []int{33, 1, 100, 129, 300, 21}, 21},
		{Shape{4, 2, 32}, []int{1000, 47, 2048, 200}, 1}, // several spans
		{Shape{8, 1, 128}, []int{65, 40}, 40},
		{Shape{2, 2, 16}, []int{70, 40, 9}, 9},
		{Shape{3, 1, 80}, []int{50, 90}, 90},
	} {
		p := newPrompt(rng, c.shape, Plain(c.shape.Dim, 10000), c.lens, c.tokens)
		exact := p.attended(pool, p.segments(f32), c.tokens)
		for _, format := range formats(c.shape)[1:] {
			stored := p.segments(format)
			values := make([]Segment, len(stored))
			for i, s := range stored {
				values[i] = s.inFloat32(p)
			}
			got, want := p.attended(pool, stored, c.tokens), p.attended(pool, values, c.tokens)
			if i, ok := sameBits(got, want); !ok {
				t.Errorf("seed %d, %+v, blocks %v, %s: output %d = %v, over the same values in float32 %v", seed, c.shape, c.lens, format, i, got[i], want[i])
			}
			if slices.Equal(got, exact) {
				t.Errorf("seed %d, %+v, %s: rounding changed nothing, so this test shows nothing", seed, c.shape, format)
			}
		}
	}
}

// closeness is how far outputs may be off, relative to Σ weight·|v|: a few roundings of float32, or of the 18 bits that factors have on AMX's tiles.
func closeness(s Shape) float64 {
	if kernel.OnTiles(s.Dim) {
		return 1e-5
	}
	return 3e-6
}

// Scores far apart make the running maximum move and the weights of whole tiles vanish.
func TestAttend_LargeScores_EqualOneSoftmax(t *testing.T) {
	const seed = 2
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	for _, scale := range []float32{30, 1000} {
		p := newPrompt(rng, Shape{2, 1, 16}, Plain(16, 10000), append(lengths(rng, 20), 20), 20)
		for i := range p.q {
			p.q[i] *= scale
		}
		segments := p.segments(f32)
		want, size := p.reference(segments)
		// A score of s is exact to about s·2⁻²², and so is its weight.
		compare(t, fmt.Sprintf("seed %d, queries times %v", seed, scale), p.attended(pool, segments, 20), want, size, 2e-6*float64(scale))
	}
}

func TestAttend_TurnedQueriesEqualTurnedKeys(t *testing.T) {
	const seed = 3
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	shape := Shape{2, 1, 64}
	factors := make([]float32, 32)
	for i := range factors {
		factors[i] = 1 + float32(i)/4
	}
	scaled, err := Plain(64, 500000).Factors(factors)
	if err != nil {
		t.Fatal(err)
	}
	for name, rope := range map[string]RoPE{
		"plain": Plain(64, 10000), "factors": scaled, "linear": Plain(64, 10000).Linear(4),
		"yarn": Plain(64, 10000).YaRN(10000, 8, 4096, 32, 1), "partial": Plain(32, 10000),
	} {
		for _, offset := range []int{1, 777, 32_000, 100_000} {
			if testing.Short() && offset > 1000 {
				continue
			}
			// Nothing fills the positions before: the arithmetic allows a gap, and the work stays small.
			p := newPrompt(rng, shape, rope, []int{90, 10}, 10)
			segments := p.segments(f32)
			for i := range segments {
				segments[i].Offset += offset
			}
			p.first += offset
			want, size := p.reference(segments)
			compare(t, fmt.Sprintf("seed %d, %s, offset %d", seed, name, offset), p.attended(pool, segments, 10), want, size, 1e-4)
		}
	}
}

func TestAttend_RowsAndThreads_SameBits(t *testing.T) {
	const seed = 4
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, c := range []struct {
		shape  Shape
		lens   []int
		tokens int
		format string
	}{
		{Shape{9, 3, 64}, append(lengths(rng, 3), 50), 50, f16},
		{Shape{4, 2, 80}, []int{120}, 120, f32},
		{Shape{4, 2, 16}, append(lengths(rng, 25), 40), 40, f16},
		{Shape{4, 2, 16}, []int{900, 1100, 90}, 90, f32}, // a span ends among the tokens
		{Shape{4, 2, 16}, []int{2100}, 110, f16},
		{Shape{4, 2, 32}, append(lengths(rng, 25), 40), 40, q8},
		{Shape{4, 2, 16}, []int{130, 45}, 45, bf16},
	} {
		p := newPrompt(rng, c.shape, Plain(c.shape.Dim, 10000), c.lens, c.tokens)
		segments := p.segments(c.format)
		one := kernel.NewPool(1)
		want := p.attended(one, segments, c.tokens)
		one.Close()
		for threads := 1; threads <= 3; threads++ {
			pool := kernel.NewPool(threads)
			for _, step := range []int{1, 7, 16, 23, c.tokens} {
				got := p.attended(pool, segments, step)
				if i, ok := sameBits(got, want); !ok {
					t.Errorf("seed %d, %+v, blocks %v: %d tokens at a time on %d threads: output %d = %v, all %d at once %v",
						seed, c.shape, c.lens, step, threads, i, got[i], c.tokens, want[i])
				}
			}
			pool.Close()
		}
	}
}

// Queries of different prompts in one call, some cut into spans and some not, each as if it were alone.
func TestAttend_Batch_SameBitsAsAlone(t *testing.T) {
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	shape, rope := Shape{4, 2, 16}, Plain(16, 10000)
	table := NewTable(rope)
	table.Reach(10_000)
	var prompts []*prompt
	var batch []Queries
	for _, lens := range [][]int{{5}, append(lengths(rng, 20), 30), {40, 20}, append(lengths(rng, 30), 1)} {
		p := newPrompt(rng, shape, rope, lens, lens[len(lens)-1])
		prompts = append(prompts, p)
		batch = append(batch, p.queries(make([]float32, len(p.q)), p.segments(f16), 0, p.tokens()))
	}
	new(Attend).Run(pool, shape, table, batch)
	for i, p := range prompts {
		want := p.attended(pool, batch[i].Segments, p.tokens())
		if at, ok := sameBits(batch[i].Out, want); !ok {
			t.Errorf("seed %d: prompt %d, output %d = %v in the batch, alone %v", seed, i, at, batch[i].Out[at], want[at])
		}
	}
}

// What comes after a token in its own block is not seen, whatever it holds.
func TestAttend_LaterTokensOfTheBlock_AreNotSeen(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 0))
	pool := kernel.NewPool(1)
	defer pool.Close()
	shape := Shape{2, 1, 16}
	p := newPrompt(rng, shape, Plain(16, 10000), []int{30, 50}, 50)
	segments := p.segments(f32)
	want := p.attended(pool, segments, 50)
	for _, last := range []int{0, 1, 15, 16, 31, 48} {
		q := *p
		q.blocks = append([]block{}, p.blocks...)
		own := &q.blocks[1]
		own.k, own.v = append([]float32{}, own.k...), append([]float32{}, own.v...)
		for i := (last + 1) * 16; i < 50*16; i++ {
			own.k[i], own.v[i] = 1e3, float32(math.NaN())
		}
		got := q.attended(pool, q.segments(f32), 50)
		n := (last + 1) * 2 * 16
		if i, ok := sameBits(got[:n], want[:n]); !ok {
			t.Errorf("tokens after %d changed output %d of token %d: %v, was %v", last, i, i/32, got[i], want[i])
		}
	}
}

func TestAttend_PermutedBlocks_EqualComputingAfresh(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	p := newPrompt(rng, Shape{4, 2, 64}, Plain(64, 10000), []int{70, 100, 1, 33, 12}, 12)
	stored := p.segments(f16)
	first, _ := p.reference(stored)
	for _, order := range [][]int{{3, 2, 1, 0}, {2, 0, 3, 1}} {
		reused, fresh, at := []Segment{}, *p, 0
		fresh.blocks = nil
		for _, i := range append(order, 4) {
			s := stored[i] // the same bytes at a new offset
			s.Offset = at
			at += s.Len
			reused = append(reused, s)
			fresh.blocks = append(fresh.blocks, p.blocks[i])
		}
		got, again := p.attended(pool, reused, 12), fresh.attended(pool, fresh.segments(f16), 12)
		if i, ok := sameBits(got, again); !ok {
			t.Errorf("seed %d, order %v: output %d = %v with stored blocks, %v afresh", seed, order, i, got[i], again[i])
		}
		want, size := fresh.reference(reused)
		compare(t, fmt.Sprintf("seed %d, order %v", seed, order), got, want, size, closeness(p.shape))
		moved := 0.0
		for i := range want {
			moved = max(moved, math.Abs(want[i]-first[i]))
		}
		if moved < 1e-3 {
			t.Errorf("seed %d, order %v: the order makes a difference of %g, so this test shows nothing", seed, order, moved)
		}
	}
}

// One Attend serves shapes of any size after each other; from the second call of a shape on it allocates nothing.
func TestAttend_SecondCall_AllocatesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 0))
	pool := kernel.NewPool(2)
	defer pool.Close()
	var a Attend
	for _, shape := range []Shape{{8, 1, 16}, {2, 2, 128}, {8, 1, 16}, {9, 3, 64}} {
		p := newPrompt(rng, shape, Plain(shape.Dim, 10000), []int{2100, 3}, 3)
		segments := p.segments(f16)
		out := make([]float32, len(p.q))
		table := NewTable(p.rope)
		table.Reach(3000)
		batch := []Queries{p.queries(out, segments, 0, 3)}
		want, size := p.reference(segments)
		if n := testing.AllocsPerRun(2, func() { a.Run(pool, shape, table, batch) }); n != 0 {
			t.Errorf("%+v: %v allocations a call, want 0", shape, n)
		}
		compare(t, fmt.Sprintf("%+v", shape), out, want, size, closeness(shape))
	}
}

// BenchmarkAttend is a question, or one generated token, over stored blocks, and over the same keys as one block: what position
// independence costs.
func BenchmarkAttend(b *testing.B) {
	for _, tokens := range []int{1, 50} {
		for _, c := range []struct{ blocks, len int }{{80, 100}, {1, 8000}, {320, 100}, {1, 32000}} {
			b.Run(fmt.Sprintf("T=%d/blocks=%d/L=%d/f16", tokens, c.blocks, c.len), func(b *testing.B) {
				rng := rand.New(rand.NewPCG(1, 2))
				shape := Shape{9, 3, 64}
				p := newPrompt(rng, shape, Plain(64, 10000), append(slices.Repeat([]int{c.len}, c.blocks), tokens), tokens)
				pool := kernel.NewPool(runtime.GOMAXPROCS(0))
				defer pool.Close()
				table := NewTable(p.rope)
				table.Reach(p.first + tokens)
				var a Attend
				batch := []Queries{p.queries(make([]float32, len(p.q)), p.segments(f16), 0, tokens)}
				for b.Loop() {
					a.Run(pool, shape, table, batch)
				}
				b.ReportMetric(4*float64(shape.Heads*shape.Dim*tokens*(p.first+tokens))*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
