package tessera_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/prompt"

	tessera "github.com/tessera-llm/tessera"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) } // bleve's analysis workers start with the program

// open opens a model as a new process would, and closes it with the test or by the function returned.
func open(t *testing.T, o tessera.Options) (*tessera.Tessera, func()) {
	t.Helper()
	if o.Model == "" {
		o.Model = testenv.Tiny("tiny-tied.gguf") // tokens are bytes, the context is 512
	}
	if o.Warn == nil {
		o.Warn = func(err error) { t.Errorf("warning that nobody expected: %v", err) }
	}
	x, err := tessera.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return x, end
}

func storeDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kv")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ask(t *testing.T, x *tessera.Tessera, q tessera.Question) *tessera.Receipt {
	t.Helper()
	r, err := x.Ask(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// column joins one property of each block.
func column(r *tessera.Receipt, of func(tessera.ReceiptBlock) string) string {
	var words []string
	for _, b := range r.Blocks {
		words = append(words, of(b))
	}
	return strings.Join(words, " ")
}

func source(b tessera.ReceiptBlock) string { return b.Source }
func kind(b tessera.ReceiptBlock) string   { return b.Kind }
func doc(b tessera.ReceiptBlock) string    { return b.Doc }
func id(b tessera.ReceiptBlock) string     { return b.ID }

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

var rivers = []corpus.Document{
	{ID: "danube", Title: "Danube", Text: "It ends in the Black Sea."},
	{ID: "rhine", Title: "Rhine", Text: "It ends in the North Sea."},
	{ID: "plain", Text: "Rivers end in seas."},
}

func riverQuestion() tessera.Question {
	return tessera.Question{Text: "Where does the Rhine end?", Documents: rivers, System: "Answer.", Attention: tessera.Block, MaxTokens: 5}
}

func TestAsk_Receipt_HasTheFieldsOfTheDesign(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	r := ask(t, x, riverQuestion())
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	fields := func(what string, v any, names string) map[string]any {
		t.Helper()
		m := v.(map[string]any)
		for _, name := range strings.Fields(names) {
			if _, ok := m[name]; !ok {
				t.Errorf("%s: no %q in %s", what, name, b)
			}
		}
		return m
	}
	fields("receipt", got, "schema answer model adapter attention blocks usage timings")
	want(t, "schema", got["schema"], any(1.0))
	want(t, "model", got["model"], any("tiny-tied.gguf"))
	want(t, "adapter", got["adapter"], nil)
	want(t, "attention", got["attention"], any("block"))
	blocks := got["blocks"].([]any)
	want(t, "blocks", len(blocks), 5)
	fields("system block", blocks[0], "kind id tokens source")
	p := fields("passage", blocks[3], "kind id doc title tokens source")
	want(t, "the best passage, nearest to the question", fmt.Sprint(p["kind"], p["doc"], p["title"], p["source"], len(p["id"].(string))), "passagerhineRhinecomputed64")
	fields("query", blocks[4], "kind id tokens source")
	usage := fields("usage", got["usage"], "prompt_tokens cached_tokens completion_tokens")
	sum := 0.0
	for _, b := range blocks {
		sum += b.(map[string]any)["tokens"].(float64)
	}
	want(t, "prompt_tokens", usage["prompt_tokens"].(float64), sum)
	want(t, "cached_tokens", usage["cached_tokens"].(float64), 0)
	want(t, "completion_tokens", usage["completion_tokens"].(float64) > 0, true)
	timings := fields("timings", got["timings"], "load_ms kv_ms prefill_ms ttft_ms decode_ms")
	if ttft, prefill := timings["ttft_ms"].(float64), timings["prefill_ms"].(float64); !(prefill > 0 && ttft >= prefill) {
		t.Errorf("ttft_ms %v, prefill_ms %v: the first token comes after the prefill", ttft, prefill)
	}
	want(t, "kinds", column(r, kind), "system passage passage passage query")
}

func TestAsk_Auto_IsFullWithOneWarning(t *testing.T) {
	var warned []error
	x, _ := open(t, tessera.Options{Warn: func(err error) { warned = append(warned, err) }})
	for _, attention := range []tessera.Attention{tessera.Auto, "", tessera.Full} {
		q := riverQuestion()
		q.Attention = attention
		want(t, string(attention)+": attention", ask(t, x, q).Attention, "full")
	}
	var untuned *tessera.UntunedError
	if len(warned) != 1 || !errors.As(warned[0], &untuned) || untuned.Model != "tiny-tied.gguf" {
		t.Errorf("warnings are %v, want one *UntunedError", warned)
	}
}

func TestAsk_MarkedPrompt_IsTheSameBlocksAsDocuments(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	q := riverQuestion()
	structured := ask(t, x, q)
	q.Text = "Title: Danube\nIt ends in the Black Sea.\n[[block]]\nRivers end in seas.\n[[block]]\nTitle: Rhine\nIt ends in the North Sea.\n[[block]]\n" + q.Text
	q.Documents = nil
	marked := ask(t, x, q)
	want(t, "ids", column(marked, id), column(structured, id))
	want(t, "sources", column(marked, source), "ram ram ram ram computed")
	want(t, "answer", marked.Answer, structured.Answer)
	want(t, "title", marked.Blocks[1].Title, "Danube")
}

func TestAsk_LongDocuments_AreSplitAndTheBestTaken(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	paragraph := func(about string) string { return strings.Repeat("Words about "+about+" and more. ", 4) }
	q := riverQuestion()
	q.Documents = []corpus.Document{
		{ID: "long", Text: strings.Join([]string{paragraph("iron"), paragraph("salt"), paragraph("amber"), paragraph("tin")}, "\n\n")},
		{ID: "short", Text: "Nothing of that."},
	}
	q.Text, q.Passages = "What of amber and tin?", 2
	r := ask(t, x, q)
	docs := strings.Fields(column(r, doc))
	slices.Sort(docs)
	want(t, "passages", strings.Join(docs, " "), "long#3 long#4")
	for _, b := range r.Blocks[1:3] {
		if b.Tokens > 160 {
			t.Errorf("passage %s has %d tokens, want about 150 at most", b.Doc, b.Tokens)
		}
	}
}

func TestAsk_WrongQuestion_IsAnError(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	for _, tt := range []struct {
		name string
		make func(*tessera.Question)
		is   func(error) bool
	}{
		{"empty question", func(q *tessera.Question) { q.Text = " \n" }, func(err error) bool { return errors.Is(err, tessera.ErrNoQuestion) }},
		{"nothing behind the last marker", func(q *tessera.Question) { q.Documents, q.Text = nil, "text\n[[block]]\n" }, func(err error) bool { return errors.Is(err, tessera.ErrNoQuestion) }},
		{"unknown attention", func(q *tessera.Question) { q.Attention = "sparse" }, func(err error) bool {
			return strings.Contains(err.Error(), `"sparse"`) && strings.Contains(err.Error(), "auto, block or full")
		}},
		{"question longer than the context", func(q *tessera.Question) { q.Text = strings.Repeat("why ", 200) }, func(err error) bool {
			var e *engine.ContextError
			return errors.As(err, &e) && e.Context == 512
		}},
		{"temperature", func(q *tessera.Question) { q.Temperature = -1 }, func(err error) bool {
			var e *engine.SamplingError
			return errors.As(err, &e) && e.Field == "temperature"
		}},
		{"no passages", func(q *tessera.Question) { q.Passages = -1 }, func(err error) bool { return strings.Contains(err.Error(), "-1") }},
	} {
		q := riverQuestion()
		tt.make(&q)
		if r, err := x.Ask(t.Context(), q); err == nil || !tt.is(err) {
			t.Errorf("%s: got %v, %v", tt.name, r, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := x.Ask(cancelled, riverQuestion()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	ask(t, x, riverQuestion())
}

func TestOpen_WhatCannotBeUsed_IsAnErrorThatNamesIt(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tiny, err := os.ReadFile(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	file := write("file", []byte("x"))
	for _, tt := range []struct {
		name string
		o    tessera.Options
		want string
	}{
		{"missing", tessera.Options{Model: filepath.Join(dir, "missing.gguf")}, "missing.gguf"},
		{"a folder", tessera.Options{Model: dir}, dir},
		{"empty", tessera.Options{Model: write("empty.gguf", nil)}, "empty.gguf"},
		{"not GGUF", tessera.Options{Model: write("text.gguf", []byte(strings.Repeat("no model at all ", 1000)))}, "text.gguf"},
		{"cut short", tessera.Options{Model: write("cut.gguf", tiny[:len(tiny)-1000])}, "cut.gguf"},
		{"store under a file", tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Store: filepath.Join(file, "kv")}, file},
	} {
		x, err := tessera.Open(tt.o)
		if err == nil {
			x.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line that names %s", tt.name, err, tt.want)
		}
	}
}

func TestOpen_WithoutFolders_WritesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	x, end := open(t, tessera.Options{})
	ask(t, x, riverQuestion())
	end()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the working folder holds %v (%v), want nothing", entries, err)
	}
}

// The main job, on the real model: ten passages of about 100 tokens.
func TestAsk_RealModel_TenPassagesAreComputedOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("some 2,500 tokens of the real model")
	}
	if kernel.Path() == "portable" {
		t.Skip("takes minutes there; the tiny model goes the same way")
	}
	path := testenv.Model(t)
	docs, _, err := corpus.Read(t.Context(), []string{filepath.Join("cmd", "tessera", "demo", "passages.jsonl")}, "")
	if err != nil {
		t.Fatal(err)
	}
	docs = docs[:10]
	dir, cache := storeDir(t), t.TempDir()
	first := tessera.Question{Text: "What is the deepest lake in the world?", Documents: docs, Attention: tessera.Block, MaxTokens: 10}
	second := first
	second.Text = "When was penicillin discovered?"
	permuted := second
	permuted.Documents = slices.Clone(docs)
	slices.Reverse(permuted.Documents)

	const passages = 10
	all := func(s string) string { return strings.Repeat(s+" ", passages+1) + "computed" }
	x, end := open(t, tessera.Options{Model: path, Store: dir, Cache: cache})
	cold := ask(t, x, first)
	want(t, "first question", column(cold, source), all("computed"))
	for _, b := range cold.Blocks[1 : passages+1] {
		if b.Tokens < 70 || b.Tokens > 150 {
			t.Errorf("passage %s has %d tokens, want about 100", b.Doc, b.Tokens)
		}
	}
	warm := ask(t, x, first)
	want(t, "again", column(warm, source), all("ram"))
	want(t, "again: answer", warm.Answer, cold.Answer)
	other := ask(t, x, second)
	want(t, "second question", column(other, source), all("ram"))
	want(t, "second question: tokens computed", other.Usage.Prompt-other.Usage.Cached, other.Blocks[passages+1].Tokens)
	turned := ask(t, x, permuted)
	want(t, "permuted", column(turned, source), all("ram"))
	end()

	x, end = open(t, tessera.Options{Model: path, Store: dir, Cache: cache})
	restarted := ask(t, x, first)
	want(t, "restarted", column(restarted, source), all("disk"))
	want(t, "restarted: answer", restarted.Answer, cold.Answer)
	want(t, "restarted: ids", column(restarted, id), column(cold, id))
	again := ask(t, x, permuted)
	want(t, "restarted, permuted: answer", again.Answer, turned.Answer)
	end()

	fresh, _ := open(t, tessera.Options{Model: path, Cache: cache})
	afresh := ask(t, fresh, permuted)
	want(t, "permuted, afresh", column(afresh, source), all("computed"))
	want(t, "permuted, afresh: answer", afresh.Answer, turned.Answer)
	t.Logf("%d of %d prompt tokens computed; first token after %.0f ms cold, %.0f ms warm, %.0f ms after the restart",
		other.Usage.Prompt-other.Usage.Cached, other.Usage.Prompt, cold.Timings.TTFT, warm.Timings.TTFT, restarted.Timings.TTFT)
	if cold.Answer == "" || !(cold.Timings.TTFT > 2*warm.Timings.TTFT) {
		t.Errorf("answer %q; first token after %.0f ms cold and %.0f ms warm, want well below half", cold.Answer, cold.Timings.TTFT, warm.Timings.TTFT)
	}
}

// What full attention would take is what it does take where nothing is stored, and no less in block mode.
func TestAsk_FLOPsOfFull_AreThoseOfFullMode(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	q := tessera.Question{Text: "Passage one.\n[[block]]\nPassage two.\n[[block]]\nWhich?", Attention: tessera.Full, MaxTokens: 1}
	full := ask(t, x, q)
	if f := full.FLOPs; f.Full != f.Total || f.Total <= f.Matrices {
		t.Errorf("cold, in full mode: %+v", f)
	}
	q.Attention = tessera.Block
	ask(t, x, q)
	if warm := ask(t, x, q); warm.FLOPs.Full != full.FLOPs.Full || warm.FLOPs.Total >= warm.FLOPs.Full/2 {
		t.Errorf("warm, in block mode: %+v; full mode took %v", warm.FLOPs, full.FLOPs.Total)
	}
}

func TestChat_LaterTurns_ReuseWhatStands(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	birds := []prompt.Document{{ID: "a", Text: "Ravens hide food."}, {ID: "b", Text: "Owls hear well."}}
	messages := []tessera.Message{{Role: tessera.System, Content: "Be brief."}, {Role: tessera.User, Content: "Who hides food?", Documents: birds}}
	g := tessera.Generation{Attention: tessera.Block, MaxTokens: 4}
	first, err := x.Chat(t.Context(), messages, g)
	if err != nil {
		t.Fatal(err)
	}
	single := ask(t, x, tessera.Question{Text: "Title", Attention: tessera.Block, MaxTokens: 1}) // another system message
	if first.Blocks[0].ID == single.Blocks[0].ID {
		t.Error("system blocks of different text share an id")
	}
	messages = append(messages, tessera.Message{Role: tessera.Assistant, Content: "Ravens."},
		tessera.Message{Role: tessera.User, Content: "Who hears?", Documents: []prompt.Document{{ID: "c", Text: "Rooks live in colonies."}, birds[1]}})
	second, err := x.Chat(t.Context(), messages, g)
	if err != nil {
		t.Fatal(err)
	}
	var kinds, sources []string
	for _, b := range second.Blocks {
		kinds, sources = append(kinds, b.Kind), append(sources, b.Source)
	}
	if got, want := strings.Join(kinds, " "), "system passage passage turn passage passage query"; got != want {
		t.Errorf("blocks %s, want %s", got, want)
	}
	if got, want := strings.Join(sources, " "), "ram ram ram computed computed ram computed"; got != want {
		t.Errorf("they came from %s, want %s", got, want)
	}
	third, err := x.Chat(t.Context(), messages, g)
	if err != nil || third.Answer != second.Answer || third.Usage.Cached <= second.Usage.Cached {
		t.Errorf("the same again: %+v, %v", third, err)
	}
}

func TestChat_MessagesOutOfOrder_AreNamed(t *testing.T) {
	x, _ := open(t, tessera.Options{})
	for _, tt := range []struct {
		messages []tessera.Message
		want     string
	}{
		{nil, "message 0"},
		{[]tessera.Message{{Role: tessera.Assistant, Content: "x"}}, "message 1: is the assistant's"},
		{[]tessera.Message{{Role: tessera.User, Content: "x"}, {Role: tessera.System, Content: "y"}}, "message 2: is the system's"},
		{[]tessera.Message{{Role: tessera.User, Content: "x"}, {Role: tessera.Assistant, Content: "y"}}, "message 2: is the last one"},
		{[]tessera.Message{{Role: "bird", Content: "x"}}, `message 1: has role "bird"`},
		{[]tessera.Message{{Role: tessera.User, Content: " \n"}}, "message 1: the question is empty"},
	} {
		_, err := x.Chat(t.Context(), tt.messages, tessera.Generation{})
		var bad *tessera.MessageError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.messages, err, tt.want)
		}
	}
}
