package eval

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"
)

var (
	full     = Setting{Attention: engine.Full, Passages: 10, MaxTokens: 12}
	block    = Setting{Attention: engine.Block, Passages: 10, MaxTokens: 12}
	twoParts = Setting{Attention: engine.Block, Parts: 2, Passages: 10, MaxTokens: 12}
)

// A runner is one over the tiny model.
type runner struct {
	*Runner
	*Tested
}

// newRunner is one with a store of so many bytes.
func newRunner(t *testing.T, ram int64) *runner {
	t.Helper()
	path := testenv.Tiny("tiny-tied.gguf")
	m, work := open(t, path)
	tok := tokenizerOf(t, path)
	template, err := prompt.New("", tok, -1)
	if err != nil {
		t.Fatal(err)
	}
	store, err := kv.Open("", kv.Options{RAMBytes: ram})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return &runner{
		&Runner{Tok: tok, Template: template, Type: kv.F16, Blocks: store, RAMBytes: ram},
		&Tested{Model: m, Work: work, Weights: Weights{Model: "tiny.gguf", Fingerprint: weights.Hash{1}}},
	}
}

// someQuestions draws questions that share passages, each with two to five of twenty.
func someQuestions(n int) *Dataset {
	rng := rand.New(rand.NewPCG(7, 7))
	word := func() string { return string(rune('a'+rng.IntN(26))) + string(rune('a'+rng.IntN(26))) + "o" }
	var pool []Passage
	for i := range 20 {
		p := Passage{Title: word(), Gold: i%3 == 0}
		for range 3 + rng.IntN(8) {
			p.Text += word() + " "
		}
		pool = append(pool, p)
	}
	d := &Dataset{Name: "some"}
	for i := range n {
		q := Question{ID: fmt.Sprint("q", i), Text: "Who is " + word() + "?", Answers: []string{"e", "o"}}
		for _, at := range rng.Perm(len(pool))[:2+rng.IntN(4)] {
			q.Passages = append(q.Passages, pool[at])
		}
		d.Questions = append(d.Questions, q)
	}
	return d
}

func answersOf(t *testing.T, r *runner, s Setting, questions []Question) map[string]Answer {
	t.Helper()
	return answersOfAll(t, r, questions, Run{r.Tested, s})[0]
}

// answersOfAll are those of several runs at once.
func answersOfAll(t *testing.T, r *runner, questions []Question, runs ...Run) (all []map[string]Answer) {
	t.Helper()
	journals := make([]*journal, len(runs))
	for i := range journals {
		journals[i] = &journal{answers: map[string]Answer{}}
	}
	if err := r.answerAll(t.Context(), runs, journals, questions, func(int) {}); err != nil {
		t.Fatal(err)
	}
	for _, j := range journals {
		for id, a := range j.answers {
			a.Seconds = 0
			j.answers[id] = a
		}
		all = append(all, j.answers)
	}
	return all
}

func outputs(answers map[string]Answer) map[string]string {
	all := map[string]string{}
	for id, a := range answers {
		all[id] = a.Output
	}
	return all
}

// A question gets the answer that the engine gives it, alone, with whatever it is batched and whatever the store holds.
func TestRun_Batched_GivesTheEnginesAnswers(t *testing.T) {
	d := someQuestions(37)
	linked := &weights.Adapter{Architecture: "llama", FinalOnly: true, LinkTokens: [][]float32{make([]float32, 64), make([]float32, 64)}}
	for i := range 64 {
		linked.LinkTokens[0][i], linked.LinkTokens[1][i] = float32(i%7-3)/10, float32(i%5-2)/10
	}
	for _, c := range []struct {
		Setting
		adapter *weights.Adapter
	}{{full, nil}, {block, nil}, {block, linked}, {twoParts, nil}} {
		s, r := c.Setting, newRunner(t, 1<<20)
		if c.adapter != nil {
			var err error
			if r.Model, err = r.Model.WithAdapter(c.adapter); err != nil {
				t.Fatal(err)
			}
			r.Work = r.Model.NewWorkspace(2)
			defer r.Work.Close()
		}
		store, err := kv.Open("", kv.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		e := engine.New(r.Model, r.Tok, store, engine.Options{KV: kv.F16, Threads: 1})
		defer e.Close()
		got := answersOf(t, r, s, d.Questions)
		distinct := map[string]bool{}
		for _, q := range d.Questions {
			var docs []prompt.Document
			for _, p := range q.Passages {
				docs = append(docs, prompt.Document{Title: p.Title, Text: p.Text})
			}
			blocks, err := r.Template.Build("", docs, q.Text)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := e.Generate(t.Context(), engine.Request{Blocks: blocks, Attention: s.Attention, Parts: s.Parts, MaxTokens: s.MaxTokens})
			if err != nil {
				t.Fatal(err)
			}
			a := got[q.ID]
			if a.Output != rec.Text || a.Prompt != rec.Prompt || a.Generated != rec.Completion {
				t.Errorf("%s, %s: got %+v, the engine says %q after %d tokens, %d generated", s.Attention, q.ID, a, rec.Text, rec.Prompt, rec.Completion)
			}
			distinct[rec.Text] = true
		}
		if len(distinct) < 10 {
			t.Errorf("%s: only %d distinct answers: the test shows little", s.Attention, len(distinct))
		}
	}
}

// Runs at once have the answers of each by itself; with an adapter for final blocks they have all other blocks in common, and compute them once.
func TestRun_Several_ShareBlocks(t *testing.T) {
	d := someQuestions(20)
	r := newRunner(t, 16<<20)
	a := &weights.Adapter{Architecture: "llama", Alpha: 8, FinalOnly: true, HiddenSinks: 1,
		Changes: []weights.Change{{Tensor: "blk.0.ffn_down.weight", In: 128, Out: 64, Rank: 1, A: make([]float32, 128), B: make([]float32, 64)}}}
	c := &a.Changes[0]
	for i := range c.A {
		c.A[i] = float32(i%7) - 3
	}
	for i := range c.B {
		c.B[i] = float32(i%5) - 2
	}
	m, err := r.Model.WithAdapter(a)
	if err != nil {
		t.Fatal(err)
	}
	hash := weights.Hash(a.Fingerprint())
	adapted := &Tested{Model: m, Work: m.NewWorkspace(2), Weights: r.Weights}
	defer adapted.Work.Close()
	adapted.Weights.AdapterHash = &hash
	unmoved := block
	unmoved.Unmoved = true
	runs := []Run{{r.Tested, full}, {r.Tested, block}, {adapted, full}, {adapted, block}, {adapted, unmoved}}
	all := answersOfAll(t, r, d.Questions, runs...)
	for i, run := range runs {
		fresh := newRunner(t, 16<<20)
		alone := answersOfAll(t, fresh, d.Questions, run)[0]
		if !maps.Equal(outputs(all[i]), outputs(alone)) {
			t.Errorf("run %d: answers depend on the runs beside it", i)
		}
		for _, j := range []int{0, 1, 2, 3} {
			if j < i && maps.Equal(outputs(all[i]), outputs(all[j])) {
				t.Errorf("runs %d and %d have the same answers, so this test shows little", j, i)
			}
		}
		computed, finals := 0, 0
		for _, q := range d.Questions {
			b, err := r.ask(&run, &q)
			if err != nil {
				t.Fatal(err)
			}
			computed, finals = computed+all[i][q.ID].Computed, finals+len(b.blocks[len(b.ids)].Tokens)
		}
		if i >= 2 && computed != finals {
			t.Errorf("run %d: %d tokens computed, want the final blocks' %d", i, computed, finals)
		}
	}
}

func TestRun_Block_ReusesPassages_WithinItsBound(t *testing.T) {
	d := someQuestions(60)
	var want map[string]string
	last := 1 << 60
	for _, ram := range []int64{1, 200 << 10, 16 << 20} {
		r := newRunner(t, ram)
		answers := answersOf(t, r, block, d.Questions)
		prompts, computed := 0, 0
		for _, a := range answers {
			prompts, computed = prompts+a.Prompt, computed+a.Computed
		}
		if got := outputs(answers); want == nil {
			want = got
		} else if !maps.Equal(got, want) {
			t.Errorf("a store of %d bytes changes answers", ram)
		}
		if computed > prompts || computed >= last {
			t.Errorf("a store of %d bytes: %d of %d tokens computed, with less room %d", ram, computed, prompts, last)
		}
		last = computed
		if st, err := r.Blocks.Stat(); err != nil || st.RAMBytes > ram {
			t.Errorf("a store of %d bytes holds %d (%v)", ram, st.RAMBytes, err)
		}
	}
	r := newRunner(t, 16<<20)
	once := map[string]bool{} // with room for all, each text is computed once
	want2 := 0
	for _, q := range d.Questions {
		a, err := r.ask(&Run{r.Tested, block}, &q)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range a.blocks {
			if key := fmt.Sprint(b.Tokens); i == len(a.blocks)-1 || !once[key] {
				once[key] = true
				want2 += len(b.Tokens)
			}
		}
	}
	if last != want2 {
		t.Errorf("with room for all, %d tokens were computed, want %d, those of each distinct block", last, want2)
	}
}

// Over the passages of a real set, in their order and in that of arrange, with room for some fifteen questions.
func TestArrange_FindsMoreInTheStore(t *testing.T) {
	d, err := ReadDataset(testenv.Shared(t, "data", "nq-test.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	var all []*asked
	for _, q := range d.Questions {
		a := &asked{id: q.ID}
		for _, p := range q.Passages {
			a.ids = append(a.ids, kv.Inputs{Salt: []byte(p.Text)}.ID())
			a.blocks = append(a.blocks, prompt.Block{Tokens: make([]int32, len(p.Text)/4)})
		}
		all = append(all, a)
	}
	const room = 20_000
	missing := func(all []*asked) float64 {
		var recent []kv.ID // the last one is the latest used
		size := map[kv.ID]int{}
		held, missed, total := 0, 0, 0
		for _, a := range all {
			for i, id := range a.ids {
				n := len(a.blocks[i].Tokens)
				total += n
				if at := slices.Index(recent, id); at >= 0 {
					recent = slices.Delete(recent, at, at+1)
				} else {
					missed, held = missed+n, held+n
				}
				recent, size[id] = append(recent, id), n
				for ; held > room; recent = recent[1:] {
					held -= size[recent[0]]
				}
			}
		}
		return float64(missed) / float64(total)
	}
	var order []*asked
	ids := map[string]bool{}
	for _, at := range arrange(all, room) {
		order = append(order, all[at])
		ids[all[at].id] = true
	}
	if len(order) != len(all) || len(ids) != len(all) {
		t.Fatalf("%d questions, %d distinct, want %d", len(order), len(ids), len(all))
	}
	before, after := missing(all), missing(order)
	t.Logf("missing before %.3f, after %.3f", before, after)
	if !(after < 0.75*before) {
		t.Errorf("%.3f of the tokens are missing from the store, %.3f in the file's order", after, before)
	}
}

func TestRun_Ablations_ChangeWhatTheySay(t *testing.T) {
	d := someQuestions(20)
	r := newRunner(t, 1<<20)
	plain := answersOf(t, r, block, d.Questions)
	unmoved := block
	unmoved.Unmoved = true
	differ := 0
	for id, a := range answersOf(t, r, unmoved, d.Questions) {
		if a.Output != plain[id].Output {
			differ++
		}
	}
	if differ == 0 {
		t.Error("keys that stay unmoved change no answer")
	}
	var seed, other uint64 = 3, 4
	shuffled := func(seed *uint64, questions []Question) (orders []string) {
		s := block
		s.Shuffle = seed
		for i := range questions {
			a, err := r.ask(&Run{r.Tested, s}, &questions[i])
			if err != nil {
				t.Fatal(err)
			}
			var texts []string
			for _, b := range a.blocks {
				texts = append(texts, r.Tok.Decode(b.Tokens))
			}
			orders = append(orders, strings.Join(texts, "|"))
		}
		return orders
	}
	as, one, two := shuffled(nil, d.Questions), shuffled(&seed, d.Questions), shuffled(&other, d.Questions)
	if slices.Equal(as, one) || slices.Equal(one, two) || !slices.Equal(one, shuffled(&seed, d.Questions)) {
		t.Error("an order by seed is the file's, another seed's, or not the same twice")
	}
	if !slices.Equal(one[5:7], shuffled(&seed, d.Questions[5:7])) {
		t.Error("a question's order depends on the other questions")
	}
	for i := range as {
		a, b := strings.Split(as[i], "|"), strings.Split(one[i], "|")
		if a[0] != b[0] || a[len(a)-1] != b[len(b)-1] {
			t.Errorf("%d: more than passages moved: %q, %q", i, a, b)
		}
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Errorf("%d: other passages: %q, %q", i, a, b)
		}
	}
}

func evaluate(ctx context.Context, r *runner, d *Dataset, s Setting, dir string, limit int) (*Result, []int, error) {
	var told []int
	results, err := r.Evaluate(ctx, d, []Run{{r.Tested, s}}, dir, limit, func(done, total int) { told = append(told, done, total) })
	if err != nil {
		return nil, told, err
	}
	results[0].Seconds = 0
	return results[0], told, nil
}

func TestEvaluate_Killed_GoesOnWhereItStopped(t *testing.T) {
	d := someQuestions(50)
	want, _, err := evaluate(t.Context(), newRunner(t, 1<<20), d, block, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if want.N != 50 || want.Correct == 0 || want.Correct == 50 || len(want.Outcomes) != 50 {
		t.Fatalf("%+v: the test shows nothing", want)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	r := newRunner(t, 1<<20)
	_, err = r.Evaluate(ctx, d, []Run{{r.Tested, block}}, dir, 0, func(done, total int) {
		if done >= 20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "some-block-*.jsonl"))
	if len(files) != 1 {
		t.Fatalf("the folder holds %q, want one journal", files)
	}
	f, _ := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"id":"q49","outp`) // what a kill in the middle of a write leaves
	f.Close()
	got, told, err := evaluate(t.Context(), newRunner(t, 1<<20), d, block, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if told[0] != 16 || told[1] != 50 || told[len(told)-2] != 50 {
		t.Errorf("progress is %v, want from 16, the batch that was finished, to 50", told)
	}
	got.ComputedTokens = want.ComputedTokens // the second run's store was empty
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("resumed: got %+v, want %+v", got, want)
	}
	_, told, err = evaluate(t.Context(), newRunner(t, 1<<20), d, block, dir, 0)
	if err != nil || told[0] != 50 {
		t.Errorf("a finished run: %v, progress %v, want all 50 found", err, told)
	}
	limited, told, err := evaluate(t.Context(), newRunner(t, 1<<20), d, block, dir, 10)
	if err != nil || told[0] != 10 || limited.N != 10 || limited.Outcomes != want.Outcomes[:10] {
		t.Errorf("the first ten of a finished run: %v, progress %v, %+v", err, told, limited)
	}
	if _, told, err = evaluate(t.Context(), newRunner(t, 1<<20), d, full, dir, 10); err != nil || told[0] != 0 {
		t.Errorf("another mode in the same folder: %v, progress %v, want nothing found", err, told)
	}
}

func TestOpenJournal_WhatIsWrong_IsNamed(t *testing.T) {
	r := newRunner(t, 1)
	key := r.key(&Dataset{Name: "some"}, &Run{r.Tested, block})
	for _, tt := range []struct {
		breaks func(text string) string
		want   string
	}{
		{func(text string) string { return "{}\n" + text }, ":1: is of another run"},
		{func(text string) string { return text + "{\"id\":\n" }, ":3: not an answer"},
		{func(text string) string { return text + "{\"output\":\"x\"}\n" }, ":3: not an answer"},
	} {
		dir := t.TempDir()
		j, err := openJournal(dir, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.add([]Answer{{ID: "a", Output: "line\nbreak"}}), j.close()); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		text, _ := os.ReadFile(files[0])
		os.WriteFile(files[0], []byte(tt.breaks(string(text))), 0o600)
		if _, err := openJournal(dir, key); err == nil || !strings.Contains(err.Error(), files[0]+tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestRun_PromptThatDoesNotFit_NamesTheQuestion(t *testing.T) {
	d := someQuestions(3)
	d.Questions[1].Passages[0].Text = strings.Repeat("long ", 120)
	_, _, err := evaluate(t.Context(), newRunner(t, 1<<20), d, full, "", 0)
	var context *engine.ContextError
	if !errors.As(err, &context) || !strings.Contains(err.Error(), "some: question q1: the prompt has") {
		t.Errorf("got %v, want a ContextError of question q1", err)
	}
}

// Answers on this path of the kernels are not those of another, so neither is the journal.
func TestKey_HoldsWhatAnswersDependOn(t *testing.T) {
	r := newRunner(t, 1)
	if k := r.key(&Dataset{Name: "some"}, &Run{r.Tested, block}); k.Kernel != kernel.Path() || k.KV != "f16" || k.Prompt != prompt.Format || k.Model != r.Weights.Fingerprint {
		t.Errorf("got %+v", k)
	}
}
