package eval

import (
	"context"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

func tokenizerOf(t *testing.T, path string) *tokenizer.Tokenizer {
	t.Helper()
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	vocab, err := file.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// llama.cpp's tool prints 20.845 for this text at window 512, with quantized activations.
func TestPerplexity_SharedText_IsWithinOnePercentOfLlamaCPP(t *testing.T) {
	if testing.Short() {
		t.Skip("some 5,000 tokens of the real model")
	}
	if kernel.Path() == "portable" && os.Getenv("TESSERA_LARGE") == "" {
		t.Skip("takes minutes there; the scores of the shared vectors hold that path to the same reference; TESSERA_LARGE=1 runs it")
	}
	text, err := os.ReadFile(testenv.Shared(t, "vectors", "logits", "text.txt"))
	if err != nil {
		t.Fatal(err)
	}
	path := testenv.Model(t)
	m, w := open(t, path)
	p, err := MeasurePerplexity(context.Background(), m, w, tokenizerOf(t, path), kv.F16, string(text), 512, func(_, _ int) {})
	if err != nil {
		t.Fatal(err)
	}
	const llamaCPP = 20.845
	t.Logf("%.4f over %d tokens, llama.cpp %.3f", p.PPL, p.Tokens, llamaCPP)
	if off := math.Abs(p.PPL/llamaCPP - 1); !(off < 0.01) {
		t.Errorf("perplexity %.4f is %.2f %% off llama.cpp's %.3f, want less than 1 %%", p.PPL, 100*off, llamaCPP)
	}
}

// The second halves of the windows, each window by itself; what does not fill a window is left out.
func TestPerplexity_IsTheMeanOverSecondHalves(t *testing.T) {
	path := testenv.Tiny("tiny-tied.gguf")
	m, w := open(t, path)
	tok := tokenizerOf(t, path)
	text := strings.Repeat("Ravens hide food and remember where. ", 5)
	const window = 50
	ids := tok.Encode(text)
	var nll float64
	tokens := 0
	for start := 0; start+window <= len(ids); start += window {
		s, err := ScoreCase(context.Background(), m, w, kv.F32, &Case{IDs: ids[start : start+window], First: window / 2}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.NextLogprob {
			nll, tokens = nll-l, tokens+1
		}
	}
	var told []int
	p, err := MeasurePerplexity(context.Background(), m, w, tok, kv.F32, text, window, func(done, total int) { told = append(told, done, total) })
	if err != nil {
		t.Fatal(err)
	}
	if want := nll / float64(tokens); p.Tokens != tokens || math.Abs(p.NLL-want) > 1e-6 || math.Abs(p.PPL-math.Exp(want)) > 1e-3 {
		t.Errorf("got %+v, want NLL %v over %d tokens", p, want, tokens)
	}
	if n := len(ids) / window * window; len(told) == 0 || told[len(told)-2] != n || told[len(told)-1] != n {
		t.Errorf("progress is %v, want it to end at %d of %d", told, n, n)
	}
}

// The answers' tokens and no others, each prompt by itself.
func TestMeasureAnswers_IsTheMeanOverAnswers(t *testing.T) {
	m, w := open(t, testenv.Tiny("tiny-tied.gguf"))
	list := []Answered{{Tokens: []int32{3, 1, 4, 1, 5, 9, 2, 6}, Final: 2, From: 5}, {Tokens: []int32{5, 3, 5}, From: 1}}
	var nll float64
	tokens := 0
	for _, a := range list {
		s, err := ScoreCase(context.Background(), m, w, kv.F32, &Case{IDs: a.Tokens, First: a.From - 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range s.NextLogprob {
			nll, tokens = nll-l, tokens+1
		}
	}
	p, err := MeasureAnswers(context.Background(), m, w, kv.F32, list, func(int, int) {})
	if want := nll / float64(tokens); err != nil || p.Tokens != 5 || math.Abs(p.NLL-want) > 1e-6 || math.Abs(p.PPL-math.Exp(want)) > 1e-3 {
		t.Errorf("got %+v, %v, want NLL %v over 5 tokens", p, err, want)
	}
	if _, err := MeasureAnswers(context.Background(), m, w, kv.F32, []Answered{{Tokens: make([]int32, 513), From: 5}}, nil); err == nil || !strings.Contains(err.Error(), "context is 512") {
		t.Errorf("an answer beyond the context: %v", err)
	}
}

func TestPerplexity_WindowThatDoesNotFit_IsAnError(t *testing.T) {
	path := testenv.Tiny("tiny-tied.gguf")
	m, w := open(t, path)
	for _, tt := range []struct {
		text   string
		window int
		want   string
	}{
		{"short", 8, "5 tokens of text do not fill a window of 8"},
		{"", 8, "0 tokens"},
		{strings.Repeat("x", 2000), 513, "context is 512"},
	} {
		_, err := MeasurePerplexity(context.Background(), m, w, tokenizerOf(t, path), kv.F16, tt.text, tt.window, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d bytes, window %d: got error %v, want %q", len(tt.text), tt.window, err, tt.want)
		}
	}
}
