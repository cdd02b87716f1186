package engine

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
)

func TestViews(t *testing.T) {
	for _, tt := range []struct {
		name  string
		texts []string
		in    Attention
		n     int
		want  [][]int
	}{
		{"five passages", []string{"s", "1", "2", "3", "4", "5", "q"}, Block, 2, [][]int{{0, 1, 2, 3, 4, 5}, {0, 3, 2, 1, 5, 4}}},
		{"three", []string{"s", "1", "2", "3", "q"}, Block, 2, [][]int{{0, 1, 2, 3}, {0, 1, 3, 2}}},
		{"two", []string{"s", "1", "2", "q"}, Block, 2, [][]int{{0, 1, 2}, {0, 2, 1}}},
		{"one asked for", []string{"s", "1", "2", "q"}, Block, 1, [][]int{{0, 1, 2}}},
		{"none asked for", []string{"s", "1", "2", "q"}, Block, 0, [][]int{{0, 1, 2}}},
		{"one passage", []string{"s", "1", "q"}, Block, 2, [][]int{{0, 1}}},
		{"no passage", []string{"s", "q"}, Block, 2, [][]int{{0}}},
		{"no system block", []string{"q"}, Block, 2, [][]int{{}}},
		{"full", []string{"s", "1", "2", "q"}, Full, 2, [][]int{{0, 1, 2}}},
		{"a chat, passages of its last turn", []string{"s", "1", "2", "turn", "3", "4", "q"}, Block, 2, [][]int{{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 5, 4}}},
		{"a chat whose last turn has none", []string{"s", "1", "2", "turn", "q"}, Block, 2, [][]int{{0, 1, 2, 3}}},
	} {
		places := make([]int, len(tt.texts)-1)
		for i := range places {
			places[i] = i
		}
		if got := Views(question(tt.texts...).Blocks, tt.in, tt.n, places); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// probability is that of token i after logits.
func probability(logits []float32, i int) float64 {
	sum := 0.0
	for _, l := range logits {
		sum += math.Exp(float64(l))
	}
	return math.Exp(float64(logits[i])) / sum
}

// An answer in two views is what the two prompts come to by themselves: each token the likeliest by the mean of their probabilities.
func TestGenerate_TwoViews_MeanOfThePromptsProbabilities(t *testing.T) {
	e := start(t, setting{})
	q := question("sys", "apples are green", "pears", "plums are blue ones", "which?")
	q.Views = 2
	got := e.ask(t, q)
	mustCome(t, "cold", got.rec, "computed computed computed computed computed")
	again := e.ask(t, q)
	mustCome(t, "warm", again.rec, "ram ram ram ram computed")
	mustEqual(t, "warm", again, got)

	one, other := q, q
	one.Views, other.Views = 0, 0
	b := q.Blocks
	other.Blocks = []prompt.Block{b[0], b[1], b[3], b[2], b[4]}
	same := true
	for step := range q.MaxTokens {
		first, second := e.ask(t, one).logits, e.ask(t, other).logits
		mean := make([]float32, len(first))
		for i := range mean {
			mean[i] = float32(math.Log((probability(first, i) + probability(second, i)) / 2))
		}
		if step == 0 {
			for i := range mean {
				if got := math.Log(probability(got.logits, i)); math.Abs(got-float64(mean[i])) > 1e-5 {
					t.Fatalf("token %d is as likely as e^%v after the prompt, want e^%v", i, got, mean[i])
				}
			}
		}
		same = same && argmax(first) == argmax(mean)
		for _, r := range []*Request{&one, &other} {
			r.Blocks = slices.Clone(r.Blocks)
			final := &r.Blocks[len(b)-1]
			final.Tokens = append(slices.Clone(final.Tokens), argmax(mean))
		}
	}
	if same {
		t.Error("the mean's likeliest tokens are the first view's all along: this proves nothing")
	}
	answer := one.Blocks[len(b)-1].Tokens[len(b[4].Tokens):]
	if want := e.tok.Decode(answer); got.text != want {
		t.Errorf("answer %q, want %q", got.text, want)
	}
}

// With Echo the final block's tokens are told of, and so is the answer, as the prompt stands.
func TestGenerate_TwoViewsAndEcho_AsThePromptStands(t *testing.T) {
	e := start(t, setting{})
	told := func(views int) (list []string) {
		q := question("sys", "apples are green", "pears", "which?")
		q.Views, q.Echo, q.Logprobs = views, true, true
		q.Token = func(token Token) { list = append(list, fmt.Sprint(token)) }
		e.ask(t, q)
		return list
	}
	if one, two := told(1), told(2); len(one) == 0 || !slices.Equal(one, two) {
		t.Errorf("one view %v, two %v", one, two)
	}
}
