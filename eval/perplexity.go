package eval

import (
	"context"
	"fmt"
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/tokenizer"
)

// A Perplexity is e to the mean negative log-likelihood of the scored tokens.
type Perplexity struct {
	Schema int     `json:"schema"` // 1
	PPL    float64 `json:"ppl"`
	NLL    float64 `json:"nll"`
	Tokens int     `json:"tokens"` // scored
}

// MeasurePerplexity cuts text into consecutive windows of so many tokens, each computed by itself with full attention, and
// scores the second half of each, as llama.cpp's perplexity tool does: token window/2+1 is the first one scored, a last
// window that is not full is left out, and where the model wants a BOS token each window's first token is replaced by it.
func MeasurePerplexity(ctx context.Context, m *model.Model, w *model.Workspace, tok *tokenizer.Tokenizer, t kv.Type, text string, window int, progress func(done, total int)) (Perplexity, error) {
	bos, hasBOS := tok.BOS()
	hasBOS = hasBOS && tok.AddBOS()
	ids := tok.Encode(text)
	if hasBOS {
		ids = append([]int32{bos}, ids...)
	}
	if window > m.Context {
		return Perplexity{}, fmt.Errorf("window: %d tokens, but the model's context is %d", window, m.Context)
	}
	windows := len(ids) / window
	if windows == 0 {
		return Perplexity{}, fmt.Errorf("%d tokens of text do not fill a window of %d", len(ids), window)
	}
	p := Perplexity{Schema: 1}
	for i := range windows {
		part := ids[i*window : (i+1)*window]
		if hasBOS {
			part = append([]int32{bos}, part[1:]...)
		}
		seq := model.Sequence{Tokens: part, KV: m.NewKV(t, window), LogitsFrom: window / 2}
		seq.Logits = func(j int, logits []float32) {
			if j+1 < window {
				p.add(logits, part[j+1])
			}
		}
		if err := w.Forward(ctx, []model.Sequence{seq}, nil); err != nil {
			return Perplexity{}, err
		}
		progress((i+1)*window, windows*window)
	}
	return p.mean(), nil
}

// An Answered is a prompt with an answer: those of Tokens from the From-th on.
type Answered struct {
	Tokens []int32
	Final  int // where the final block begins
	From   int
}

// MeasureAnswers scores answers alone, each after its prompt with full attention.
func MeasureAnswers(ctx context.Context, m *model.Model, w *model.Workspace, t kv.Type, list []Answered, progress func(done, total int)) (Perplexity, error) {
	p := Perplexity{Schema: 1}
	for i, a := range list {
		if len(a.Tokens) > m.Context {
			return Perplexity{}, fmt.Errorf("prompt %d with its answer has %d tokens, but the model's context is %d", i+1, len(a.Tokens), m.Context)
		}
		before, final := a.Tokens[:a.Final], a.Tokens[a.Final:]
		var batch []model.Sequence
		var past []*model.KV
		if len(before) > 0 {
			past = []*model.KV{m.NewKV(t, len(before))}
			batch = append(batch, model.Sequence{Tokens: before, KV: past[0], Before: true})
		}
		seq := model.Sequence{Tokens: final[:len(final)-1], KV: m.NewKV(t, len(final)-1), Past: past, LogitsFrom: a.From - a.Final - 1}
		seq.Logits = func(j int, logits []float32) {
			p.add(logits, final[j+1])
		}
		if err := w.Forward(ctx, append(batch, seq), nil); err != nil {
			return Perplexity{}, err
		}
		progress(i+1, len(list))
	}
	return p.mean(), nil
}

// add scores a token by the logits [V] before it.
func (p *Perplexity) add(logits []float32, token int32) {
	p.NLL += kernel.LogSumExp(logits) - float64(logits[token])
	p.Tokens++
}

// mean makes of a sum what p is to be.
func (p Perplexity) mean() Perplexity {
	p.NLL /= float64(p.Tokens)
	p.PPL = math.Exp(p.NLL)
	return p
}
