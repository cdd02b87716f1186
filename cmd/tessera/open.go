package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

const defaultModel = "smollm2"

// modelFlag adds -m.
func modelFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("model", "m", defaultModel, "model: a name that was pulled, or a GGUF file")
}

// adapterFlag adds --adapter, by default preset.
func adapterFlag(cmd *cobra.Command, preset string) *string {
	usage := "adapter of the model: a file, as 'tessera train' writes it, a folder as PEFT saves it, or none; without this flag the one that ships for the model"
	if preset != "" {
		usage = "adapter of the model: a file, as 'tessera train' writes it, or a folder as PEFT saves it"
	}
	return cmd.Flags().String("adapter", preset, usage)
}

// withTessera runs a command on a model over the user's block store.
func withTessera(cmd *cobra.Command, ref, adapter string, do func(*tessera.Tessera) error) error {
	return withLimits(cmd, ref, adapter, limits{}, do)
}

// limits are bounds in bytes; 0: those of tessera.Options.
type limits struct{ answers, ram, disk int64 }

// withLimits is withTessera within bounds.
func withLimits(cmd *cobra.Command, ref, adapter string, l limits, do func(*tessera.Tessera) error) error {
	path, err := pull.Resolve(ref)
	if err != nil {
		return err
	}
	store, err := home.KV()
	if err != nil {
		return err
	}
	t, err := openAt(cmd, path, adapter, store, l)
	if err != nil {
		return err
	}
	return errors.Join(do(t), t.Close())
}

// openAt loads the model at path, with an adapter, over the block store at folder; "" keeps blocks in memory. Warnings go to stderr.
func openAt(cmd *cobra.Command, path, adapter, folder string, l limits) (*tessera.Tessera, error) {
	cache, err := home.Cache()
	if err != nil {
		return nil, err
	}
	records, err := recordsFolder()
	if err != nil {
		return nil, err
	}
	defer loading(cmd.ErrOrStderr(), filepath.Base(path))()
	return tessera.Open(tessera.Options{
		Model: path, Adapter: adapter, Records: records, Store: folder, Cache: cache, Memory: l.answers, RAMBytes: l.ram, DiskBytes: l.disk,
		Warn: func(err error) { say(cmd.ErrOrStderr(), err) },
	})
}

// recordsFolder is where evaluation records are kept.
func recordsFolder() (string, error) {
	data, err := home.Data()
	return filepath.Join(data, "records"), err
}

// loading shows that a model is being loaded, once that takes longer than a person notices, until the function it returns is
// called. A large file is slow the first time: it is read whole for its fingerprint.
func loading(w io.Writer, name string) (done func()) {
	bar := newProgress(w, "loading "+name, false)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for n := int64(1); ; n++ {
			select {
			case <-tick.C:
				bar.set(n, -1)
			case <-stop:
				bar.clear()
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// bare is a model to measure, with an adapter or without, and without a store.
type bare struct {
	file    *weights.File
	m       *model.Model
	adapter *weights.Adapter // nil: none
	name    string           // the adapter's
	hash    [32]byte         // fingerprint of the model's file
	tok     *tokenizer.Tokenizer
	work    *model.Workspace // nil until workspace was called
	kv      kv.Type
}

// kvFlag adds --kv, the number format of keys and values.
func kvFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("kv", kv.F16.String(), "number format of keys and values: f16, as the store keeps them, f32, bf16 or q8")
}

func openBare(ref, adapter, kvType string) (b *bare, err error) {
	b = &bare{}
	var ok bool
	if b.kv, ok = kv.ParseType(kvType); !ok {
		return nil, &usageError{fmt.Errorf("--kv %q: want f16, f32, bf16 or q8", kvType)}
	}
	path, err := pull.Resolve(ref)
	if err != nil {
		return nil, err
	}
	if b.file, err = weights.Open(path); err != nil {
		return nil, err
	}
	defer func(file *weights.File) { // file itself: a return with an error makes b nil
		if err != nil {
			file.Close()
		}
	}(b.file)
	if b.m, err = model.New(b.file); err != nil {
		return nil, err
	}
	if err := b.kv.Check(b.m.HeadDim); err != nil {
		return nil, fmt.Errorf("--kv %v with %s: %w", b.kv, path, err)
	}
	if err := b.adapt(adapter); err != nil {
		return nil, err
	}
	vocab, err := b.file.Vocab()
	if err != nil {
		return nil, err
	}
	if b.tok, err = tokenizer.New(vocab); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// adapt puts the adapter that --adapter names beside the model's weights.
func (b *bare) adapt(ref string) error {
	cache, err := home.Cache()
	if err != nil {
		return err
	}
	if b.hash, err = b.file.Fingerprint(cache); err != nil {
		return err
	}
	if b.adapter, b.name, err = tessera.LoadAdapter(ref, b.file, b.hash); err != nil || b.adapter == nil {
		return err
	}
	if b.m, err = b.m.WithAdapter(b.adapter); err != nil {
		return fmt.Errorf("%s: %w", b.name, err)
	}
	return nil
}

// workspace is where the model is computed, made when it is first wanted.
func (b *bare) workspace() *model.Workspace {
	if b.work == nil {
		b.work = b.m.NewWorkspace(runtime.GOMAXPROCS(0))
	}
	return b.work
}

func (b *bare) close() error {
	if b.work != nil {
		b.work.Close()
	}
	return b.file.Close()
}
