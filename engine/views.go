package engine

import (
	"math"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
)

// Views are a prompt as its final block sees it: once, with all passages before it, or, in block attention, besides that several times, each with a
// part of them. With p(part) ∝ p(question | part), the answer is as likely as
//
//	p(answer) = ½ p(answer | all) + ½ Σ p(part) p(answer | part),
//
// so that a token counts, in each view, by how likely the answer so far is there. The sum over parts is RAG-Sequence's (Lewis et al., arXiv
// 2005.11401), whose retriever is the model here: a part is the likelier to be meant the likelier the question is behind it. The other half is of
// answers that take passages of several parts. A passage's keys and values serve at any place, so that only the final block is computed more than once.
// What comes behind an answer's first partTokens tokens is what all passages together say.
type Views struct {
	list     []*view   // those that still have a say; the first has all passages
	only     bool      // there never was but one
	final    []int32   // tokens of the final block
	answered int       // tokens
	mixed    []float32 // [V], of the next token
	some     []float32 // [V], scratch
}

// partTokens is how many tokens of an answer parts of the passages have a say in: as many as the answers that were evaluated had at most. Without a bound each
// part would need room for an answer as long as the context.
const partTokens = 64

// A view is a prompt with some of the passages.
type view struct {
	past   []*model.KV // the blocks before the final one
	final  *model.KV   // the final block, with room for the answer
	said   float64     // log-probability of question (all of the final block but its first token) and answer so far
	logits []float32   // [V], of the next token
	norm   float64     // logarithm of the sum of their exponentials, once Logits was asked
}

// keep is a model.Sequence.Logits that remembers the last ones.
func (v *view) keep(_ int, logits []float32) {
	v.logits = append(v.logits[:0], logits...)
}

// NewViews are views of a prompt whose blocks before the final one have the keys and values past: of all passages and of n parts of them at most, see
// partition. room is how many tokens an answer may have.
func NewViews(m *model.Model, t kv.Type, blocks []prompt.Block, a Attention, n int, past []*model.KV, room int) *Views {
	v := &Views{final: blocks[len(blocks)-1].Tokens}
	v.list = []*view{{past: past, final: m.NewKV(t, len(v.final)+room)}}
	for _, some := range parts(blocks, a, n, past) {
		v.list = append(v.list, &view{past: some, final: m.NewKV(t, partRoom(blocks, room))})
	}
	v.only = len(v.list) == 1
	return v
}

// parts are the blocks before the final one of a prompt as the views of n parts have them: neighbouring passages together, and all that comes before
// the passages.
func parts[T any](blocks []prompt.Block, a Attention, n int, past []T) (all [][]T) {
	first, n := partition(blocks, a, n)
	passages := past[first:]
	for i := range n {
		all = append(all, append(past[:first:first], passages[i*len(passages)/n:(i+1)*len(passages)/n]...))
	}
	return all
}

// PartsTokens is how many tokens' keys and values the views of n parts take beside those of the prompt and an answer of so many tokens.
func PartsTokens(blocks []prompt.Block, a Attention, n, answer int) int {
	_, count := partition(blocks, a, n)
	return count * partRoom(blocks, answer)
}

// partRoom is how many tokens of final block and answer a part has room for.
func partRoom(blocks []prompt.Block, answer int) int {
	return len(blocks[len(blocks)-1].Tokens) + max(min(answer, partTokens), 0)
}

// partition is in how many parts the passages of a prompt are seen by themselves where n are asked for: not in more than there are passages, nor in so many
// that the final block takes more tokens than full attention would compute; in none where that leaves one, which is all of them. Its passages are the blocks
// from first on, which stand right before the final block and see nothing of each other.
func partition(blocks []prompt.Block, a Attention, n int) (first, count int) {
	final := len(blocks) - 1
	for first = final; first > 1 && !Dependent(blocks, a, first-1); {
		first--
	}
	tokens := 0
	for _, b := range blocks {
		tokens += len(b.Tokens)
	}
	if n = min(n, final-first, tokens/max(len(blocks[final].Tokens), 1)-1); n < 2 {
		return first, 0
	}
	return first, n
}

// Len is how many views have a say.
func (v *Views) Len() int { return len(v.list) }

// Parts is how many parts of the passages are seen by themselves before any has lost its say; 1: there are none but all of them.
func (v *Views) Parts() int { return max(len(v.list)-1, 1) }

// Final is the computation of the final block in every view.
func (v *Views) Final() []model.Sequence {
	batch := make([]model.Sequence, len(v.list))
	for i, one := range v.list {
		batch[i] = model.Sequence{Tokens: v.final, Past: one.past, KV: one.final, Logits: func(at int, logits []float32) {
			if at+1 < len(v.final) { // kernel.LogSumExp, in float64, would take twelve times as long
				high, sum := v.exponentials(logits)
				one.said += float64(logits[v.final[at+1]]) - high - math.Log(sum)
			} else {
				one.keep(at, logits)
			}
		}}
	}
	batch[0].LogitsFrom = len(v.final) - 1 // how likely the question is behind all passages does not matter
	return batch
}

// negligible is how much less likely than the likeliest view, as a logarithm, one is that is left out: of a hundred such ones no answer would take notice.
const negligible = 16

// Next is the computation of one more token of the answer in every view that still has a say, and in that of all passages, after Logits was asked for it.
func (v *Views) Next(token int32) []model.Sequence {
	if !v.only {
		for _, one := range v.list {
			one.said += float64(one.logits[token]) - one.norm
		}
		most, _ := total(v.list)
		v.answered++
		parts := slices.DeleteFunc(v.list[1:], func(one *view) bool { return v.answered >= partTokens || one.said < most-negligible })
		v.list = v.list[:1+len(parts)]
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
	if v.mixed == nil { // before the answer
		v.mixed = make([]float32, len(v.list[0].logits))
		most, sum := total(v.list[1:])
		v.list[0].said = most + math.Log(sum) // the half that all passages have
	}
	clear(v.mixed)
	most, sum := total(v.list)
	shifts := make([]float64, len(v.list)) // from a view's logits to log-probabilities with its weight
	for i, one := range v.list {
		high, all := v.exponentials(one.logits)
		one.norm = high + math.Log(all)
		share := math.Exp(one.said-most) / sum
		shifts[i] = math.Log(share) - one.norm
		share /= all
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

// total is how likely some views are together: most is the log-probability of the likeliest, sum is Σ e^(said - most).
func total(list []*view) (most, sum float64) {
	most = math.Inf(-1)
	for _, one := range list {
		most = max(most, one.said)
	}
	for _, one := range list {
		sum += math.Exp(one.said - most)
	}
	return most, sum
}

// exponentials fills v.some with e^(logits - high) and tells their sum.
func (v *Views) exponentials(logits []float32) (high, sum float64) {
	v.some = append(v.some[:0], logits...)
	top := kernel.Max(v.some)
	return float64(top), float64(kernel.Exponentials(v.some, 1, top))
}
