package engine

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
)

func TestParts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		texts []string
		in    Attention
		n     int
		want  [][]int
	}{
		{"five passages", []string{"s", "1", "2", "3", "4", "5", "q"}, Block, 2, [][]int{{0, 1, 2}, {0, 3, 4, 5}}},
		{"each by itself", []string{"s", "1", "2", "3", "q"}, Block, 3, [][]int{{0, 1}, {0, 2}, {0, 3}}},
		{"more parts than passages", []string{"s", "1", "2", "q"}, Block, 3, [][]int{{0, 1}, {0, 2}}},
		{"a question longer than what is before it", []string{"s", "1", "2", "3", "fives"}, Block, 3, nil},
		{"a question as long as half of it", []string{"s", "1", "2", "3", "two"}, Block, 3, nil},
		{"a third", []string{"s", "12", "34", "5", "six"}, Block, 3, [][]int{{0, 1}, {0, 2, 3}}},
		{"one asked for", []string{"s", "1", "2", "q"}, Block, 1, nil},
		{"none asked for", []string{"s", "1", "2", "q"}, Block, 0, nil},
		{"one passage", []string{"s", "1", "q"}, Block, 2, nil},
		{"no passage", []string{"s", "q"}, Block, 2, nil},
		{"no system block", []string{"q"}, Block, 2, nil},
		{"full", []string{"s", "1", "2", "q"}, Full, 2, nil},
		{"a chat, passages of its last turn", []string{"s", "1", "2", "turn", "3", "4", "q"}, Block, 2, [][]int{{0, 1, 2, 3, 4}, {0, 1, 2, 3, 5}}},
		{"a chat whose last turn has none", []string{"s", "1", "2", "turn", "q"}, Block, 2, nil},
	} {
		places := make([]int, len(tt.texts)-1)
		for i := range places {
			places[i] = i
		}
		if got := parts(question(tt.texts...).Blocks, tt.in, tt.n, places); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// logprobability is that of token i after logits.
func logprobability(logits []float32, i int32) float64 {
	sum := 0.0
	for _, l := range logits {
		sum += math.Exp(float64(l))
	}
	return float64(logits[i]) - math.Log(sum)
}

// An answer over three parts is what four prompts come to by themselves, in float64: half of it what all passages say, half what each says, by how
// likely the question is behind it; and in each so much as the answer so far is likely there.
func TestGenerate_Parts_MixtureOfPrompts(t *testing.T) {
	e := start(t, setting{})
	q := question("sys", "apples are green", "pears", "plums are blue ones", "which?")
	q.Parts = 3
	got := e.ask(t, q)
	mustCome(t, "cold", got.rec, "computed computed computed computed computed")
	again := e.ask(t, q)
	mustCome(t, "warm", again.rec, "ram ram ram ram computed")
	mustEqual(t, "warm", again, got)

	after := func(passages []prompt.Block, final []int32) []float32 {
		r := q
		r.Parts, r.Blocks = 0, append([]prompt.Block{q.Blocks[0]}, passages...)
		r.Blocks = append(r.Blocks, prompt.Block{Kind: q.Blocks[4].Kind, Tokens: final})
		return e.ask(t, r).logits
	}
	final := slices.Clone(q.Blocks[4].Tokens)
	seen := [][]prompt.Block{q.Blocks[1:2], q.Blocks[2:3], q.Blocks[3:4], q.Blocks[1:4]}
	share := make([]float64, len(seen))
	all := 0.0
	for i := range 3 {
		said := 0.0
		for at := 1; at < len(final); at++ {
			said += logprobability(after(seen[i], final[:at]), final[at])
		}
		share[i] = math.Exp(said)
		all += share[i]
	}
	share[3] = all
	same := true
	for step := range q.MaxTokens {
		mixed := make([]float32, len(got.logits))
		logits := make([][]float32, len(seen))
		for i := range logits {
			logits[i] = after(seen[i], final)
		}
		for id := range mixed {
			some, all := 0.0, 0.0
			for i := range logits {
				some += share[i] * math.Exp(logprobability(logits[i], int32(id)))
				all += share[i]
			}
			mixed[id] = float32(math.Log(some / all))
			if step == 0 && math.Abs(float64(got.logits[id]-mixed[id])) > 1e-4 {
				t.Fatalf("token %d is as likely as e^%v after the prompt, want e^%v", id, got.logits[id], mixed[id])
			}
		}
		next := argmax(mixed)
		for i := range share {
			share[i] *= math.Exp(logprobability(logits[i], next))
			same = same && argmax(logits[i]) == next
		}
		final = append(final, next)
	}
	if same {
		t.Error("the mixture's likeliest tokens are every view's all along: this proves nothing")
	}
	if want := e.tok.Decode(final[len(q.Blocks[4].Tokens):]); got.text != want {
		t.Errorf("answer %q, want %q", got.text, want)
	}
}

// Logits that are too far apart for a float32's exponential are log-probabilities nevertheless, and a view that found the text impossible counts nothing.
func TestViews_Logits_FarApart(t *testing.T) {
	v := Views{list: []*view{{logits: []float32{0, -300, 5}}, {said: -1, logits: []float32{0, -200, 5}}, {said: -2000, logits: []float32{90, 0, 0}}}}
	want := []float64{-5.0067153, -205.0067153 - math.Ln2, -0.0067153}
	for i, l := range v.Logits() {
		if math.Abs(float64(l)-want[i]) > 1e-4 {
			t.Errorf("token %d: %v, want %v", i, l, want[i])
		}
	}
	v.list[1].logits[1] = float32(math.NaN())
	if l := v.Logits()[2]; l == l {
		t.Errorf("with a logit that is no number, another is %v", l)
	}
}

// A part that found the text far less likely than another view is computed no further; one that may have a say again is, and so is the view of all
// passages, which goes on alone behind the first tokens of an answer.
func TestViews_Next_LeavesOutWhatHasNoSay(t *testing.T) {
	v := Views{}
	for _, said := range []float64{-40, -32, -30, -15, -20} {
		v.list = append(v.list, &view{said: said, past: make([]*model.KV, int(-said)), logits: []float32{0, 0}})
	}
	var left []int
	for _, s := range v.Next(1) {
		left = append(left, len(s.Past))
	}
	if want := []int{40, 30, 15, 20}; !slices.Equal(left, want) || v.Len() != 4 {
		t.Errorf("views %v are left, %d of them; want %v", left, v.Len(), want)
	}
	for range partTokens - 2 { // the first is what comes before any Next
		if v.Next(1); v.Len() != 4 {
			t.Fatalf("%d views are left within the first %d tokens", v.Len(), partTokens)
		}
	}
	if last := v.Next(1); len(last) != 1 || len(last[0].Past) != 40 {
		t.Errorf("then %d views go on, want that of all passages", len(last))
	}
}

// With Echo the final block's tokens are told of, and so is the answer, as the prompt stands.
func TestGenerate_PartsAndEcho_AsThePromptStands(t *testing.T) {
	e := start(t, setting{})
	told := func(parts int) (list []string) {
		q := question("sys", "apples are green", "pears", "which?")
		q.Parts, q.Echo, q.Logprobs = parts, true, true
		q.Token = func(token Token) { list = append(list, fmt.Sprint(token)) }
		e.ask(t, q)
		return list
	}
	if one, two := told(1), told(2); len(one) == 0 || !slices.Equal(one, two) {
		t.Errorf("one part %v, two %v", one, two)
	}
}
