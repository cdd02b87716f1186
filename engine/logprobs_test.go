package engine

import (
	"context"
	"math"
	"slices"
	"testing"
)

// What an answer's tokens were given is what the same tokens are given as part of a prompt.
func TestGenerate_Logprobs_EqualThoseOfAnEcho(t *testing.T) {
	e := start(t, setting{})
	for _, attention := range []Attention{Block, Full} {
		var answer, echo []Token
		q := in(attention, question(system, alps, baikal, where))
		q.MaxTokens, q.Logprobs, q.Likely = 12, true, 3
		q.Token = func(tok Token) { answer = append(answer, tok) }
		if _, err := e.Generate(context.Background(), q); err != nil {
			t.Fatal(err)
		}
		again := in(attention, question(system, alps, baikal, where))
		last := &again.Blocks[len(again.Blocks)-1]
		prompt := len(last.Tokens)
		last.Tokens = slices.Clone(last.Tokens)
		for _, tok := range answer {
			last.Tokens = append(last.Tokens, tok.ID)
		}
		again.MaxTokens, again.Echo, again.Likely = 0, true, 3
		again.Token = func(tok Token) { echo = append(echo, tok) }
		rec, err := e.Generate(context.Background(), again)
		if err != nil || rec.Completion != 0 || rec.Text != "" || len(echo) != len(last.Tokens)-1 {
			t.Fatalf("%s: echo of %d tokens: %d reported, %+v, %v", attention, len(last.Tokens), len(echo), rec, err)
		}
		for i, got := range echo[prompt-1:] {
			if want := answer[i]; got.ID != want.ID || got.Logprob != want.Logprob || !slices.Equal(got.Likely, want.Likely) {
				t.Errorf("%s: token %d of the answer: echoed %+v, generated %+v", attention, i, got, want)
			}
			if got.Likely[0].ID != got.ID || got.Likely[0].Logprob != got.Logprob || got.Likely[1].Logprob > got.Logprob || got.Likely[2].Logprob > got.Likely[1].Logprob {
				t.Errorf("%s: token %d: %+v; greedy takes the first of the likeliest", attention, i, got)
			}
		}
	}
}

func TestLogprobs_SumToOne(t *testing.T) {
	tok := logprobs([]float32{1, 3, 2, 3, float32(math.Inf(-1))}, 0, 10)
	sum := 0.0
	for _, a := range tok.Likely {
		sum += math.Exp(a.Logprob)
	}
	if math.Abs(sum-1) > 1e-6 || len(tok.Likely) != 5 || tok.Likely[0].ID != 1 || tok.Likely[1].ID != 3 || tok.Likely[3].Logprob != tok.Logprob {
		t.Errorf("%+v, altogether %v", tok, sum)
	}
	if tok := logprobs([]float32{7}, 0, 0); tok.Logprob != 0 || tok.Likely != nil {
		t.Errorf("one token alone: %+v", tok)
	}
}
