package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A running engine has a model and a store of its own. The tiny model's tokens are bytes, its context is 512.
type running struct {
	*Engine
	dir    string // the store's; "": memory only
	ended  bool
	end    func()
	warned warnings
}

type warnings struct {
	mu   sync.Mutex
	told []string
}

func (w *warnings) warn(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, err.Error())
}

// take returns what was told, and forgets it.
func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	told := w.told
	w.told = nil
	return told
}

type setting struct {
	dir      string
	kv       kv.Type // 0: F16
	ramBytes int64
	threads  int    // 0: 2
	file     string // a tiny model's name, or a path; "": tiny-tied.gguf
	adapter  *weights.Adapter
}

// start makes an engine as a new process would; the test ends it where close did not.
func start(t testing.TB, s setting) *running {
	t.Helper()
	if s.file == "" {
		s.file = "tiny-tied.gguf"
	}
	if s.kv == 0 {
		s.kv = kv.F16
	}
	if s.threads == 0 {
		s.threads = 2
	}
	if !filepath.IsAbs(s.file) {
		s.file = testenv.Tiny(s.file)
	}
	file, err := weights.Open(s.file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(file)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Fingerprint: [32]byte{1}, Source: s.file, KV: s.kv, Threads: s.threads}
	if s.adapter != nil {
		if m, err = m.WithAdapter(s.adapter); err != nil {
			t.Fatal(err)
		}
		o.Adapter = s.adapter.Fingerprint()
	}
	vocab, err := file.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{dir: s.dir}
	store, err := kv.Open(s.dir, kv.Options{RAMBytes: s.ramBytes, KernelPath: "test", Warn: r.warned.warn})
	if err != nil {
		t.Fatal(err)
	}
	r.Engine = New(m, tok, store, o)
	r.end = func() {
		r.Engine.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		if told := r.warned.take(); len(told) > 0 {
			t.Errorf("warnings that nobody expected: %q", told)
		}
	}
	t.Cleanup(r.close)
	return r
}

// wide writes the tiny model with its values in half as many heads, of 32, so that it can store each type.
func wide(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for key, n := range map[string]uint32{"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.rope.dimension_count": 32} {
		const uint32Kind = 4
		entry := binary.LittleEndian.AppendUint32([]byte(key), uint32Kind)
		at := bytes.Index(b, entry)
		if at < 0 {
			t.Fatalf("no %s", key)
		}
		binary.LittleEndian.PutUint32(b[at+len(entry):], n)
	}
	path := filepath.Join(t.TempDir(), "wide.gguf")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// close ends the engine; blocks are on disk then.
func (r *running) close() {
	if !r.ended {
		r.ended = true
		r.end()
	}
}

// storeDir is a folder for one user.
func storeDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kv")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// question makes a request in block mode over texts: the first is the system block, the last the final block, and of the
// others those that begin with "turn" are dependent.
func question(texts ...string) Request {
	r := Request{Attention: Block, MaxTokens: 8}
	for i, text := range texts {
		b := prompt.Block{Kind: prompt.Passage, Doc: -1}
		switch {
		case i == len(texts)-1:
			b.Kind, b.Dependent = prompt.Query, true
		case i == 0:
			b.Kind = prompt.System
		case strings.HasPrefix(text, "turn"):
			b.Kind, b.Dependent = prompt.Earlier, true
		}
		for _, c := range []byte(text) {
			b.Tokens = append(b.Tokens, tokenOf(c))
		}
		r.Blocks = append(r.Blocks, b)
	}
	return r
}

func tokenOf(c byte) int32 { return int32(c) }

func in(a Attention, r Request) Request {
	r.Attention = a
	return r
}

// outcome is an answer: its text and the logits after the prompt, bit for bit.
type outcome struct {
	text   string
	logits []float32
	rec    *Receipt
}

// ask answers with a time limit, so that a deadlock fails the test that has it, and then prefills once more for the logits of what
// is then stored.
func (r *running) ask(t testing.TB, q Request) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var logits []float32
	rec := &Receipt{}
	linked := q
	linked.Blocks = Link(r.model, q.Blocks, q.Attention)
	p, err := r.prefill(ctx, &linked, rec)
	if err != nil {
		t.Fatal(err)
	}
	logits = slices.Clone(p.views.Logits())
	p.release()
	full, err := r.Generate(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	rec.Text = full.Text
	return outcome{full.Text, logits, rec}
}

// sources are where the blocks came from, one word each.
func sources(rec *Receipt) string {
	var words []string
	for _, b := range rec.Blocks {
		words = append(words, b.Source.String())
	}
	return strings.Join(words, " ")
}

func mustCome(t *testing.T, what string, rec *Receipt, want string) {
	t.Helper()
	if got := sources(rec); got != want {
		t.Errorf("%s: blocks are %s, want %s", what, got, want)
	}
	cached := 0
	for _, b := range rec.Blocks {
		if b.Source != kv.Computed {
			cached += b.Tokens
		}
	}
	if rec.Cached != cached {
		t.Errorf("%s: %d cached tokens, but blocks with %d", what, rec.Cached, cached)
	}
}

func mustEqual(t *testing.T, what string, got, want outcome) {
	t.Helper()
	if got.text != want.text {
		t.Errorf("%s: answer %q, want %q", what, got.text, want.text)
	}
	for i := range want.logits {
		if got.logits[i] != want.logits[i] { // NaN included
			t.Errorf("%s: logit %d is %v, want %v bit for bit", what, i, got.logits[i], want.logits[i])
			return
		}
	}
}

// blockFile is the file of a block.
func (r *running) blockFile(t testing.TB, rec *Receipt, i int) string {
	t.Helper()
	id := rec.Blocks[i].ID.String()
	path := filepath.Join(r.dir, id[:2], id+".kv")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}
