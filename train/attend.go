package train

import (
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// queryChunk is how many tokens' queries are attended together. Scores of a chunk stay in the second cache for passages, and in the
// third for all of a long prompt.
const queryChunk = 128

// attend is attention of one layer, and its way back. The work is cut into chunks of queries within a block, for one KV head with the query
// heads that share it: a chunk of an independent block sees that block's keys, one of a final block those of all independent blocks and of its own.
//
// Each chunk adds to the gradients of the keys and values it saw, and so do others. So each writes its part by itself, and
// a second round adds the parts up, in the order of the chunks: bits do not depend on who was first.
type attend struct {
	heads, group, dim int   // KV heads, query heads for each of them, D
	hide              int   // tokens at the start of independent blocks, but for the first block, that other blocks do not see
	sinks             []int // those tokens
	link              int   // link tokens of each passage
	ends              []int // of the passages
	chunks            []chunk
	workers           []attendScratch
	parts             []float32 // [chunks × G × (keys × D, values × D)]
	layer             *activations

	dattended, dquery, dkey, dvalue []float32
	tokens                          int
	reach                           int // the first token with queries, and whose gradients are wanted
}

// A chunk is queries from … to-1, which see keys first … to-1, each up to its own, but none of hidden … own-1: final blocks before its own, or for
// link tokens, where hidden is each query's own, the passages behind it.
type chunk struct {
	first, from, to int
	hidden, own     int
	later, link     bool // they are a final block's or link tokens; the latter
	part            int  // where its parts for the first KV head begin
}

// unseen is a score so low that nothing comes of it.
const unseen = -1e30

// seen are the stretches of a row of scores whose keys query i of the chunk sees, the second one empty unless keys are hidden. Scores of sinks
// that are hidden from it are unseen.
func (a *attend) seen(c *chunk, row []float32, i int) (before, own []float32) {
	last := c.from + i - c.first + 1
	if c.later {
		for _, t := range a.sinks {
			row[t] = unseen
		}
	}
	hidden := c.hidden
	if c.link {
		hidden = a.ends[(c.from+i-c.own)/a.link]
	}
	if hidden == c.own {
		return row[:last], nil
	}
	clear(row[hidden-c.first : c.own-c.first])
	return row[:hidden-c.first], row[c.own-c.first : last]
}

// attendScratch is one worker's.
type attendScratch struct {
	gemms                        kernel.Gemms
	gemm                         kernel.Gemm
	scores, dscores              []float32 // [queryChunk × keys]
	shares                       [queryChunk]float32
	keysT, valuesT, keys, values kernel.Packed
	queries, outputs             kernel.Packed
}

// plan cuts the blocks into chunks. Tokens before reach, where a block begins, have keys and values only.
func (a *attend) plan(l *layout, reach, workers int) {
	a.chunks, a.sinks, a.ends, a.link, a.reach = a.chunks[:0], a.sinks[:0], a.ends[:0], l.link, reach
	start, part, hidden := 0, 0, 0
	for i, n := range l.blocks {
		later := i >= l.alone()
		if i > 0 && !later {
			for t := range min(a.hide, n) {
				a.sinks = append(a.sinks, start+t)
			}
			a.ends = append(a.ends, start+n)
		}
		first, own := start, 0
		if i <= len(l.blocks)-l.finals && later {
			hidden = start
		}
		if later {
			first, own = 0, start
		}
		link := later && i < len(l.blocks)-l.finals
		for from := max(start, reach); from < start+n; from += queryChunk {
			to := min(from+queryChunk, start+n)
			a.chunks = append(a.chunks, chunk{first, from, to, hidden, own, later, link, part})
			part += (to - first) * 2 * a.dim * a.heads
		}
		start += n
	}
	a.tokens = start
	if cap(a.parts) < part {
		a.parts = kernel.Floats(kernel.Memory(4 * part))
	}
	a.parts = a.parts[:part]
	if len(a.workers) < workers {
		a.workers = make([]attendScratch, workers)
	}
	for i := range a.workers {
		w := &a.workers[i]
		if len(w.scores) < queryChunk*start {
			w.scores, w.dscores = kernel.Floats(kernel.Memory(4*queryChunk*start)), kernel.Floats(kernel.Memory(4*queryChunk*start))
		}
	}
}

// forward writes attended and logSum of a layer.
func (a *attend) forward(pool *kernel.Pool, l *activations) {
	a.layer = l
	pool.Run(len(a.chunks)*a.heads, (*attendForward)(a))
}

// backward writes the gradients of queries, keys and values, those of turned ones, from that of attended, for the tokens from reach on.
func (a *attend) backward(pool *kernel.Pool, l *activations, dattended, dquery, dkey, dvalue []float32) {
	a.layer, a.dattended, a.dquery, a.dkey, a.dvalue = l, dattended, dquery, dkey, dvalue
	pool.Run(len(a.chunks)*a.heads, (*attendBackward)(a))
	pool.Run((a.tokens-a.reach+sumRows-1)/sumRows, (*attendSum)(a))
}

// item is the chunk and the KV head of an item: chunks with most keys come first, so that no worker begins one last.
func (a *attend) item(i int) (c *chunk, head int) {
	return &a.chunks[len(a.chunks)-1-i/a.heads], i % a.heads
}

// head is the view of one head's rows from token on in x [T × heads·D].
func (a *attend) head(x []float32, heads, head, token int) kernel.View {
	return kernel.View{Data: x[token*heads*a.dim+head*a.dim:], Row: heads * a.dim, Col: 1}
}

// scoreScale is what products of queries and keys are multiplied by.
func (a *attend) scoreScale() float32 { return float32(1 / math.Sqrt(float64(a.dim))) }

type attendForward attend

func (t *attendForward) Do(worker, i int) {
	a, w := (*attend)(t), &t.workers[worker]
	c, g := a.item(i)
	d, heads := a.dim, a.heads*a.group
	rows, keys := c.to-c.from, c.to-c.first
	w.keysT.Pack(nil, a.head(a.layer.key, a.heads, g, c.first).T(), d, keys)
	w.values.Pack(nil, a.head(a.layer.value, a.heads, g, c.first), keys, d)
	for h := g * a.group; h < (g+1)*a.group; h++ {
		w.product(w.scores, keys, rows, false, a.head(a.layer.query, heads, h, c.from), &w.keysT)
		scale := a.scoreScale()
		for i := range rows {
			row := w.scores[i*keys:][:keys]
			before, own := a.seen(c, row, i)
			top := scale * max(kernel.Max(before), kernel.Max(own))
			sum := kernel.Exponentials(before, scale, top) + kernel.Exponentials(own, scale, top)
			clear(row[c.from+i-c.first+1:])
			a.layer.logSum[(c.from+i)*heads+h] = top + float32(math.Log(float64(sum)))
			w.shares[i] = 1 / sum
		}
		out := a.head(a.layer.attended, heads, h, c.from)
		w.product(out.Data, out.Row, rows, false, kernel.View{Data: w.scores, Row: keys, Col: 1}, &w.values)
		for i, s := range w.shares[:rows] {
			for j := range out.Data[i*out.Row:][:d] {
				out.Data[i*out.Row+j] *= s
			}
		}
	}
}

type attendBackward attend

func (t *attendBackward) Do(worker, i int) {
	a, w := (*attend)(t), &t.workers[worker]
	c, g := a.item(i)
	d, heads := a.dim, a.heads*a.group
	rows, keys := c.to-c.from, c.to-c.first
	w.keysT.Pack(nil, a.head(a.layer.key, a.heads, g, c.first).T(), d, keys)
	w.valuesT.Pack(nil, a.head(a.layer.value, a.heads, g, c.first).T(), d, keys)
	w.keys.Pack(nil, a.head(a.layer.key, a.heads, g, c.first), keys, d)
	part := a.parts[c.part+g*2*keys*d:][:2*keys*d]
	frozen := max(a.reach-c.first, 0) // keys without a gradient
	dscores := kernel.View{Data: w.dscores, Row: keys, Col: 1}
	scoresT, dscoresT := kernel.View{Data: w.scores[frozen:], Row: keys, Col: 1}.T(), kernel.View{Data: w.dscores[frozen:], Row: keys, Col: 1}.T()
	scale := a.scoreScale()
	for h := g * a.group; h < (g+1)*a.group; h++ {
		add := h > g*a.group
		query, out, dout := a.head(a.layer.query, heads, h, c.from), a.head(a.layer.attended, heads, h, c.from), a.head(a.dattended, heads, h, c.from)
		w.product(w.scores, keys, rows, false, query, &w.keysT)
		w.product(w.dscores, keys, rows, false, dout, &w.valuesT)
		for i := range rows {
			seen := c.from + i - c.first + 1
			row, drow := w.scores[i*keys:][:keys], w.dscores[i*keys:][:keys]
			before, own := a.seen(c, row, i)
			kernel.Exponentials(before, scale, a.layer.logSum[(c.from+i)*heads+h])
			kernel.Exponentials(own, scale, a.layer.logSum[(c.from+i)*heads+h])
			clear(row[seen:])
			var mean float32
			for j, o := range out.Data[i*out.Row:][:d] {
				mean += o * dout.Data[i*dout.Row+j]
			}
			kernel.SoftmaxGradient(drow[:seen], row[:seen], mean, scale)
			clear(drow[seen:])
		}
		dquery := a.head(a.dquery, heads, h, c.from)
		w.product(dquery.Data, dquery.Row, rows, false, dscores, &w.keys)
		w.queries.Pack(nil, query, rows, d)
		w.outputs.Pack(nil, dout, rows, d)
		w.product(part[frozen*d:keys*d], d, keys-frozen, add, dscoresT, &w.queries)
		w.product(part[(keys+frozen)*d:], d, keys-frozen, add, scoresT, &w.outputs)
	}
}

// product computes dst = a·b, or adds it.
func (w *attendScratch) product(dst []float32, stride, rows int, add bool, a kernel.View, b *kernel.Packed) {
	w.gemm = kernel.Gemm{Dst: dst, Stride: stride, Rows: rows, Add: add, Terms: [6]kernel.Term{{A: a, B: b}}}
	w.gemms.Compute(&w.gemm)
}

// sumRows is how many tokens' keys and values an item of the second round adds up.
const sumRows = 32

type attendSum attend

func (t *attendSum) Do(_, i int) {
	a := (*attend)(t)
	width := a.heads * a.dim
	from := a.reach + i*sumRows
	to := min(from+sumRows, a.tokens)
	clear(a.dkey[from*width : to*width])
	clear(a.dvalue[from*width : to*width])
	for _, c := range a.chunks {
		low, high := max(from, c.first), min(to, c.to)
		keys := c.to - c.first
		for g := range a.heads {
			part := a.parts[c.part+g*2*keys*a.dim:]
			for token := low; token < high; token++ {
				at := (token - c.first) * a.dim
				addTo(a.dkey[token*width+g*a.dim:][:a.dim], part[at:])
				addTo(a.dvalue[token*width+g*a.dim:][:a.dim], part[keys*a.dim+at:])
			}
		}
	}
}

func addTo(dst, x []float32) {
	x = x[:len(dst)]
	for i, v := range x {
		dst[i] += v
	}
}
