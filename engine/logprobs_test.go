package engine

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"testing"

	"github.com/tessera-llm/tessera/grammar"
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

// A grammar holds even a model of random weights to its form, greedily and drawn.
func TestGenerate_Grammar_HoldsTheAnswerToIt(t *testing.T) {
	g, err := grammar.JSONSchema([]byte(`{"type":"object","properties":{"name":{"type":"string","maxLength":5},"n":{"type":"integer"},"of":{"enum":["a","b"]}},"required":["name","n","of"]}`))
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, setting{})
	ended := 0
	for seed := range uint64(8) {
		q := question(system, alps, where)
		q.MaxTokens, q.Grammar = 200, g
		if seed > 0 {
			q.Sampling = Sampling{Temperature: 1, Seed: seed}
		}
		emitted := ""
		q.Emit = func(text string) error { emitted += text; return nil }
		rec, err := e.Generate(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Finish != FinishStop {
			continue
		}
		ended++
		var v struct {
			Name, Of string
			N        *json.Number
		}
		if err := json.Unmarshal([]byte(rec.Text), &v); err != nil || v.N == nil || v.Of != "a" && v.Of != "b" || emitted != rec.Text {
			t.Errorf("seed %d: %q (emitted %q): %v", seed, rec.Text, emitted, err)
		}
	}
	if ended < 4 {
		t.Errorf("of 8 answers %d came to an end; the test shows too little", ended)
	}
}
