// Package tessera answers questions over documents with Block-Attention (arXiv 2409.15355): every passage is a block whose
// keys and values are computed once, kept, and reused in any later prompt, in any order, at any position.
//
//	t, err := tessera.Open(tessera.Options{Model: path})
//	receipt, err := t.Ask(ctx, tessera.Question{Text: "Who wrote it?", Documents: documents})
//
// Ask is the whole way of a question; ask.go shows it on one page.
package tessera

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/tessera-llm/tessera/adapters"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

// Options of Open. Only Model is needed.
type Options struct {
	Model     string // path of a GGUF file
	Adapter   string // path of an adapter for it; "": the one that ships with Tessera, where there is one for this model; NoAdapter: none
	Records   string // folder of evaluation records, which decide what Auto is; "": only the shipped adapter's
	Store     string // folder of the block store; "": blocks are kept in memory only
	Cache     string // folder that remembers the model's fingerprint; "": it is computed each time
	RAMBytes  int64  // bound of blocks in memory; 0: kv.DefaultRAMBytes
	DiskBytes int64  // bound of the store's folder; 0: kv.DefaultDiskBytes
	Threads   int    // 0: one a CPU
	Memory    int64  // bound of the keys and values of all answers under way, those in the store included; further ones wait. 0: none

	// Warn is told what went wrong or differs from what was asked for without failing a question; nil: nobody is told.
	Warn func(error)
}

// NoAdapter as Options.Adapter loads the model as it is.
const NoAdapter = "none"

// A Tessera is one model over one store of blocks. It is safe for concurrent use.
type Tessera struct {
	name     string          // the model's, for receipts
	adapter  string          // the adapter's; "": none
	record   *weights.Record // how block attention does with these weights; nil: nobody has measured it
	file     *weights.File
	model    *model.Model
	tok      *tokenizer.Tokenizer
	template *prompt.Template
	store    *kv.Store
	engine   *engine.Engine
	warn     func(error)
	load     time.Duration
	memory   *semaphore.Weighted // bytes; nil: no bound
	most     int64               // of them

	warnFull sync.Once
}

// Open loads a model and opens the store.
func Open(o Options) (t *Tessera, err error) {
	start := time.Now()
	if err := kernel.Check(); err != nil {
		return nil, err
	}
	t = &Tessera{name: filepath.Base(o.Model), warn: o.Warn}
	if t.warn == nil {
		t.warn = func(error) {}
	}
	defer func(t *Tessera) { // t itself: a return with an error makes the result nil
		if err != nil {
			t.close()
		}
	}(t)
	if t.file, err = weights.Open(o.Model); err != nil {
		return nil, err
	}
	if t.model, err = model.New(t.file); err != nil {
		return nil, err
	}
	if t.tok, t.template, err = language(t.file); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Model, err)
	}
	if t.tok.Size() > t.model.Vocabulary {
		return nil, fmt.Errorf("%s: tokenizer.ggml.tokens: %d tokens, but token_embd.weight has rows for %d", o.Model, t.tok.Size(), t.model.Vocabulary)
	}
	fingerprint, err := t.file.Fingerprint(o.Cache)
	if err != nil {
		return nil, err
	}
	t.store, err = kv.Open(o.Store, kv.Options{RAMBytes: o.RAMBytes, DiskBytes: o.DiskBytes, KernelPath: kernel.Path(), Warn: t.warn})
	if err != nil {
		return nil, err
	}
	adapter, err := t.adapt(o, fingerprint)
	if err != nil {
		return nil, err
	}
	threads := o.Threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	t.engine = engine.New(t.model, t.tok, t.store, engine.Options{
		Fingerprint: fingerprint, Adapter: adapter, Source: o.Model, KV: kv.F16, Threads: threads,
	})
	if o.Memory > 0 {
		t.memory, t.most = semaphore.NewWeighted(o.Memory), o.Memory
	}
	t.load = time.Since(start)
	return t, nil
}

// adapt puts the adapter beside the model's weights, finds their evaluation record, and returns the adapter's fingerprint, zero for none.
func (t *Tessera) adapt(o Options, model [32]byte) (fingerprint [32]byte, err error) {
	adapter, name, err := LoadAdapter(o.Adapter, t.file, model)
	if err != nil {
		return fingerprint, err
	}
	t.adapter = name
	var of *[32]byte
	if adapter != nil {
		if t.model, err = t.model.WithAdapter(adapter); err != nil {
			return fingerprint, fmt.Errorf("%s: %w", t.adapter, err)
		}
		fingerprint = adapter.Fingerprint()
		of = &fingerprint
	}
	var candidates []*weights.Record
	if o.Records != "" {
		r, err := weights.ReadRecord(weights.RecordPath(o.Records, model, of))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fingerprint, err
		}
		candidates = append(candidates, r)
	}
	if shipped, ok := adapters.For(model); ok {
		r, err := weights.ParseRecord(shipped.Name, shipped.Record)
		if err != nil {
			return fingerprint, err
		}
		candidates = append(candidates, r)
	}
	for _, r := range candidates {
		if r != nil && r.Of(model, of, prompt.Format) == nil {
			t.record = r
			break
		}
	}
	return fingerprint, nil
}

// LoadAdapter reads the adapter that Options.Adapter names, for the model in file with this fingerprint, and says what it is called: nil and ""
// for none.
func LoadAdapter(ref string, file *weights.File, fingerprint [32]byte) (a *weights.Adapter, name string, err error) {
	shipped, ok := adapters.For(fingerprint)
	switch {
	case ref == NoAdapter || ref == "" && !ok:
		return nil, "", nil
	case ref == "":
		a, err = weights.ReadAdapter(shipped.Name, shipped.GGUF, file)
		return a, shipped.Name, err
	}
	a, err = weights.OpenAdapter(ref, file)
	return a, filepath.Base(ref), err
}

// language makes the tokenizer and the chat template of a model's file.
func language(file *weights.File) (*tokenizer.Tokenizer, *prompt.Template, error) {
	vocab, err := file.Vocab()
	if err != nil {
		return nil, nil, err
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		return nil, nil, err
	}
	source, _ := file.ChatTemplate()
	template, err := prompt.New(source, tok, vocab.EOS)
	return tok, template, err
}

// Close waits until computed blocks are written, and frees the model. No question may be under way.
func (t *Tessera) Close() error { return t.close() }

func (t *Tessera) close() error {
	var errs []error
	if t.engine != nil {
		t.engine.Close()
	}
	if t.store != nil {
		errs = append(errs, t.store.Close())
	}
	if t.file != nil {
		errs = append(errs, t.file.Close())
	}
	return errors.Join(errs...)
}
