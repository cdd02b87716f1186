package engine

import (
	"math"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A Token is a token with its log-probability, before penalties, temperature and filters.
type Token struct {
	ID      int32
	Logprob float64
	Likely  []Alternative // the likeliest tokens in its place, as many as asked for, the likeliest first
}

// Agree adds to logits, which n views of a prompt agree on, those of one more: as likely as a token is on average over the views, but for a factor that
// all tokens share.
func Agree(logits, more []float32, n int) {
	had, adds := float32(0), float32(kernel.LogSumExp(more))
	if n == 1 {
		had = float32(kernel.LogSumExp(logits))
	}
	for i, l := range more {
		a, b := logits[i]-had, l-adds
		high, low := max(a, b), min(a, b)
		if high-low < negligible {
			high += float32(math.Log1p(math.Exp(float64(low - high))))
		}
		logits[i] = high
	}
}

// negligible is by how much one logit is above another where adding the latter's probability changes no float32.
const negligible = 20

// An Alternative is a token that could have been in another one's place.
type Alternative struct {
	ID      int32
	Logprob float64
}

// logprobs says how likely a token is after logits [V], and which n tokens are the likeliest.
func logprobs(logits []float32, id int32, n int) Token {
	total := kernel.LogSumExp(logits)
	t := Token{ID: id, Logprob: float64(logits[id]) - total}
	if n == 0 {
		return t
	}
	all := make([]candidate, 0, len(logits))
	for i, l := range logits {
		if l == l {
			all = append(all, candidate{id: int32(i), logit: float64(l)})
		}
	}
	for _, c := range slices.Backward(likeliest(all, func(found int, _ candidate) bool { return found == n })) {
		t.Likely = append(t.Likely, Alternative{c.id, c.logit - total})
	}
	return t
}
