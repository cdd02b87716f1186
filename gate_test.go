package tessera_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/adapters"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

// fingerprint is the tiny model's.
func fingerprint(t *testing.T) (model *weights.File, hash [32]byte) {
	t.Helper()
	file, err := weights.Open(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if hash, err = file.Fingerprint(""); err != nil {
		t.Fatal(err)
	}
	return file, hash
}

// adapterFile is an adapter for the tiny model that changes one matrix.
func adapterFile(t *testing.T, file *weights.File) (path string, hash [32]byte) {
	t.Helper()
	a := &weights.Adapter{Architecture: "llama", Alpha: 2, Changes: []weights.Change{{Tensor: "blk.0.ffn_down.weight", In: 128, Out: 64, Rank: 1}}}
	c := &a.Changes[0]
	c.A, c.B = make([]float32, c.In), make([]float32, c.Out)
	for i := range c.A {
		c.A[i] = float32(i%7) - 3
	}
	for i := range c.B {
		c.B[i] = float32(i%5) - 2
	}
	path = filepath.Join(t.TempDir(), "tuned.gguf")
	if err := a.WriteGGUF(path, 0); err != nil {
		t.Fatal(err)
	}
	return path, a.Fingerprint()
}

func TestAsk_Auto_FollowsTheRecordOfTheseWeights(t *testing.T) {
	file, model := fingerprint(t)
	path, adapter := adapterFile(t, file)
	records, parts := t.TempDir(), 0
	write := func(of *[32]byte, full, block float64) {
		r := &weights.Record{Schema: 1, Date: time.Now(), Model: model, Prompt: prompt.Format, Parts: parts,
			Sets: []weights.Scores{{Dataset: "nq-test", N: 500, Passages: 10, Full: full, Block: block}}}
		if of != nil {
			r.Adapter = (*weights.Hash)(of)
		}
		if err := r.Write(weights.RecordPath(records, model, of)); err != nil {
			t.Fatal(err)
		}
	}
	var warned []error
	o := tessera.Options{Adapter: path, Records: records, Warn: func(err error) { warned = append(warned, err) }}
	answer := func() *tessera.Receipt {
		warned = nil
		x, end := open(t, o)
		defer end()
		q := riverQuestion()
		q.Attention = tessera.Auto
		return ask(t, x, q)
	}

	write(nil, 0.30, 0.30) // of the model alone
	r := answer()
	want(t, "attention with a record of other weights", r.Attention, "full")
	if r.Adapter == nil || *r.Adapter != "tuned.gguf" {
		t.Errorf("the receipt's adapter is %v, want tuned.gguf", r.Adapter)
	}

	write(&adapter, 0.30, 0.285)
	r = answer()
	want(t, "attention 1.5 points below", r.Attention, "block")
	want(t, "parts of a record that has no number", r.Parts, 1)
	want(t, "warnings", len(warned), 0)
	parts = 2
	write(&adapter, 0.30, 0.285)
	want(t, "parts of a record of two", answer().Parts, 2)
	x, end := open(t, o)
	defer end()
	want(t, "parts of who asks for block attention by name", ask(t, x, riverQuestion()).Parts, 1)

	write(&adapter, 0.30, 0.275)
	want(t, "attention 2.5 points below", answer().Attention, "full")
	var untuned *tessera.UntunedError
	if len(warned) != 1 || !errors.As(warned[0], &untuned) || !untuned.Measured {
		t.Fatalf("warnings: %v, want one about what was measured", warned)
	}
	want(t, "the warning", untuned.Error(), "tiny-tied.gguf with tuned.gguf: block attention was 2.5 points less accurate than full attention, more than 2.0: answering with full attention")

	o.Adapter = tessera.NoAdapter
	r = answer()
	want(t, "attention of the model alone", r.Attention, "block")
	if r.Adapter != nil {
		t.Errorf("the receipt's adapter is %q, want none", *r.Adapter)
	}
}

// The default model is used with the adapter that ships for it, and Auto follows that one's record where the user has none.
func TestAsk_DefaultModel_HasTheAdapterThatShips(t *testing.T) {
	path := testenv.Model(t)
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	model, err := file.Fingerprint("")
	if err != nil {
		t.Fatal(err)
	}
	shipped, ok := adapters.For(model)
	if !ok {
		t.Fatal("no adapter ships for the default model")
	}
	record, err := weights.ParseRecord(shipped.Name, shipped.Record)
	if err != nil {
		t.Fatal(err)
	}
	auto := map[bool]string{true: "block", false: "full"}
	o := tessera.Options{Model: path, Records: t.TempDir(), Warn: func(error) {}}
	check := func(pass bool) {
		t.Helper()
		x, end := open(t, o)
		defer end()
		q := riverQuestion()
		q.Attention, q.MaxTokens = tessera.Auto, 1
		r := ask(t, x, q)
		want(t, "attention", r.Attention, auto[pass])
		if r.Adapter == nil || *r.Adapter != shipped.Name {
			t.Errorf("the receipt's adapter is %v, want %s", r.Adapter, shipped.Name)
		}
	}
	check(record.Passes())

	own := *record // of a user who found the opposite
	own.Sets = []weights.Scores{{Dataset: "mine", N: 100, Passages: 10, Full: .5, Block: .5}}
	if record.Passes() {
		own.Sets[0].Block = 0
	}
	if err := own.Write(weights.RecordPath(o.Records, model, (*[32]byte)(record.Adapter))); err != nil {
		t.Fatal(err)
	}
	check(!record.Passes())
}

// A block's keys and values depend on an adapter that acts on every token: nothing stored with one is used with another.
func TestAsk_Adapter_HasBlocksOfItsOwn(t *testing.T) {
	file, _ := fingerprint(t)
	path, _ := adapterFile(t, file)
	q := riverQuestion()
	q.Attention = tessera.Block
	store := storeDir(t)
	var ids [2]string
	for i, adapter := range []string{tessera.NoAdapter, path} {
		x, end := open(t, tessera.Options{Store: store, Adapter: adapter})
		r := ask(t, x, q)
		want(t, "cached tokens of the first question", r.Usage.Cached, 0)
		ids[i] = column(r, id)
		end()
	}
	if ids[0] == ids[1] {
		t.Error("blocks have the same ids with and without the adapter")
	}

	// An adapter for final blocks leaves the others as they are: they are found, and their ids are the same.
	a, err := weights.OpenAdapter(path, file)
	if err != nil {
		t.Fatal(err)
	}
	a.FinalOnly = true
	if err := a.WriteGGUF(path, 0); err != nil {
		t.Fatal(err)
	}
	x, end := open(t, tessera.Options{Store: store, Adapter: path})
	defer end()
	r := ask(t, x, q)
	now, bare := strings.Fields(column(r, id)), strings.Fields(ids[0])
	last := len(bare) - 1
	if !slices.Equal(now[:last], bare[:last]) || now[last] == bare[last] || r.Usage.Cached != r.Usage.Prompt-r.Blocks[last].Tokens {
		t.Errorf("%d of %d tokens are cached, blocks are %s; want all but the final block's, and %s with another last one", r.Usage.Cached, r.Usage.Prompt, now, bare)
	}
}
