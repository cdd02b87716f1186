package engine

import (
	"math"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
)

// Views are a prompt as its final block sees it: once, with all passages before it, or, in block attention, several times, each with a part of
// them. The text behind the passages, question and answer, is as likely as on average over the views, so that a token is
//
//	p(token | text) = Σ p(text | view) · p(token | text, view) / Σ p(text | view),
//
// and a view has the more say the likelier the question is behind its passages. (Lewis et al., arXiv 2005.11401, weigh passages by a
// retriever's score in this place.) A passage's keys and values serve at any place, so that only the final block is computed more than once.
type Views struct {
	list  []*view   // those that still have a say
	only  bool      // there never was but one
	final []int32   // tokens of the final block
	mixed []float32 // [V], of the next token
	some  []float32 // [V], scratch
}

// A view is a prompt with some of the passages.
type view struct {
	past   []*model.KV // the blocks before the final one
	final  *model.KV   // the final block, with room for the answer
	said   float64     // log-probability of all behind the passages so far, but the final block's first token
	logits []float32   // [V], of the next token
}

// keep is a model.Sequence.Logits that remembers the last ones.
func (v *view) keep(_ int, logits []float32) {
	v.logits = append(v.logits[:0], logits...)
}

// NewViews are n views of a prompt whose blocks before the final one have the keys and values past, or fewer: not more than there are passages, nor
// so many that the final block takes more tokens than full attention would compute. room is how many tokens an answer may have.
func NewViews(m *model.Model, t kv.Type, blocks []prompt.Block, a Attention, n int, past []*model.KV, room int) *Views {
	v := &Views{final: blocks[len(blocks)-1].Tokens}
	for _, some := range parts(blocks, a, n, past) {
		v.list = append(v.list, &view{past: some, final: m.NewKV(t, len(v.final)+room)})
	}
	v.only = len(v.list) == 1
	return v
}

// parts are the blocks before the final one of a prompt as n views have them: past whole, or neighbouring passages of it together, where they stand
// right before the final block and see nothing of each other, and all that comes before them.
func parts[T any](blocks []prompt.Block, a Attention, n int, past []T) [][]T {
	first := len(past)
	for first > 1 && !Dependent(blocks, a, first-1) {
		first--
	}
	passages, tokens := past[first:], 0
	for _, b := range blocks {
		tokens += len(b.Tokens)
	}
	n = max(min(n, len(passages), tokens/max(len(blocks[len(blocks)-1].Tokens), 1)), 1)
	all := make([][]T, n)
	for i := range all {
		all[i] = append(past[:first:first], passages[i*len(passages)/n:(i+1)*len(passages)/n]...)
	}
	return all
}

// Len is how many views have a say.
func (v *Views) Len() int { return len(v.list) }

// Final is the computation of the final block in every view.
func (v *Views) Final() []model.Sequence {
	from := 0
	if v.only {
		from = len(v.final) - 1
	}
	batch := make([]model.Sequence, len(v.list))
	for i, one := range v.list {
		batch[i] = model.Sequence{Tokens: v.final, Past: one.past, KV: one.final, LogitsFrom: from, Logits: func(at int, logits []float32) {
			if at+1 < len(v.final) {
				one.said += v.logprob(logits, v.final[at+1])
			} else {
				one.keep(at, logits)
			}
		}}
	}
	return batch
}

// negligible is how much less likely than the likeliest view, as a logarithm, one is that is left out: of a hundred such ones no answer would take notice.
const negligible = 16

// Next is the computation of one more token of the answer in every view that still has a say. The logits must be there of what comes before it.
func (v *Views) Next(token int32) []model.Sequence {
	if !v.only {
		for _, one := range v.list {
			one.said += v.logprob(one.logits, token)
		}
		least := v.most() - negligible
		v.list = slices.DeleteFunc(v.list, func(one *view) bool { return one.said < least })
	}
	batch := make([]model.Sequence, len(v.list))
	for i, one := range v.list {
		batch[i] = model.Sequence{Tokens: []int32{token}, Past: one.past, KV: one.final, Logits: one.keep}
	}
	return batch
}

// Logits are those of the next token [V]; of several views they are log-probabilities. They are valid until the next call.
func (v *Views) Logits() []float32 {
	if v.only {
		return v.list[0].logits
	}
	most, total := v.most(), 0.0
	for _, one := range v.list {
		total += math.Exp(one.said - most)
	}
	if v.mixed == nil {
		v.mixed = make([]float32, len(v.list[0].logits))
	}
	clear(v.mixed)
	shifts := make([]float64, len(v.list)) // from a view's logits to log-probabilities with its weight
	for i, one := range v.list {
		high, sum := v.exponentials(one.logits)
		share := math.Exp(one.said-most) / total / sum
		shifts[i] = math.Log(share) - high
		for at, e := range v.some {
			v.mixed[at] += float32(share) * e
		}
	}
	for at, p := range v.mixed {
		if p > 0 || p != p {
			v.mixed[at] = float32(math.Log(float64(p)))
			continue
		}
		least := math.Inf(-1) // too little for a float32
		for i, one := range v.list {
			least = max(least, float64(one.logits[at])+shifts[i])
		}
		v.mixed[at] = float32(least)
	}
	return v.mixed
}

// most is the log-probability of the text in the view where it is likeliest.
func (v *Views) most() float64 {
	most := math.Inf(-1)
	for _, one := range v.list {
		most = max(most, one.said)
	}
	return most
}

// logprob is the log-probability of a token after logits [V]. Every token of the question asks for it in every view, and kernel.LogSumExp, in float64, would take
// twelve times as long.
func (v *Views) logprob(logits []float32, token int32) float64 {
	high, sum := v.exponentials(logits)
	return float64(logits[token]) - high - math.Log(sum)
}

// exponentials fills v.some with e^(logits - high) and tells their sum.
func (v *Views) exponentials(logits []float32) (high, sum float64) {
	v.some = append(v.some[:0], logits...)
	top := kernel.Max(v.some)
	return float64(top), float64(kernel.Exponentials(v.some, 1, top))
}
