package engine

import (
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A Token is a token with its log-probability, before penalties, temperature and filters.
type Token struct {
	ID      int32
	Logprob float64
	Likely  []Alternative // the likeliest tokens in its place, as many as asked for, the likeliest first
}

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
