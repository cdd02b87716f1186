package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
)

// base opens the tiny model: two layers, hidden 64, four query heads of 16, two KV heads.
func base(t testing.TB) *File {
	t.Helper()
	f, err := Open(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// adapterFor is a random adapter of the given rank for some matrices of the tiny model, or for all of its layers' ones. Its values are
// whole eighths, which every format holds.
func adapterFor(base *File, rank int, tensors ...string) *Adapter {
	rng := rand.New(rand.NewPCG(1, uint64(rank)))
	a := &Adapter{Architecture: "llama", Alpha: 2.5}
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.IntN(200)-100) / 8
		}
		return v
	}
	for _, t := range base.Tensors() {
		if _, _, inLayer := toPEFT(t.Name); !inLayer || len(tensors) > 0 && !strings.Contains(strings.Join(tensors, " "), t.Name) {
			continue
		}
		in, out := t.Shape[0], t.Shape[1]
		a.Changes = append(a.Changes, Change{Tensor: t.Name, In: in, Out: out, Rank: rank, A: values(rank * in), B: values(out * rank)})
	}
	return a
}

// The vectors' two files hold the same adapter; llama.cpp computes with the one and PEFT wrote the other.
func TestOpenAdapter_BothFormats_SameAdapter(t *testing.T) {
	b := base(t)
	gguf, err := OpenAdapter(testenv.Shared(t, "vectors", "train", "lora.gguf"), b)
	if err != nil {
		t.Fatal(err)
	}
	peft, err := OpenAdapter(testenv.Shared(t, "vectors", "train", "lora.safetensors"), b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(gguf, peft) {
		t.Errorf("lora.gguf and lora.safetensors differ")
	}
	if len(gguf.Changes) != 14 || gguf.Alpha != 8 || gguf.Changes[0].Rank != 4 || gguf.Scale(&gguf.Changes[0]) != 2 {
		t.Errorf("%d changes, alpha %v; want 14 of rank 4 and alpha 8", len(gguf.Changes), gguf.Alpha)
	}
}

func TestAdapter_WrittenAndRead_IsTheSame(t *testing.T) {
	b := base(t)
	final := adapterFor(b, 2)
	final.FinalOnly, final.HiddenSinks = true, 2
	linked := adapterFor(b, 2)
	linked.LinkTokens = linkTokensFor(b, 3)
	for _, a := range []*Adapter{adapterFor(b, 4), adapterFor(b, 1), adapterFor(b, 3, "blk.1.attn_k.weight", "blk.0.ffn_down.weight"), final, linked} {
		dir := t.TempDir()
		for name, write := range map[string]func(path string) error{
			"f32.gguf": func(path string) error { return a.WriteGGUF(path, kernel.F32) },
			"f16.gguf": func(path string) error { return a.WriteGGUF(path, kernel.F16) },
			"peft":     func(path string) error { return a.WritePEFT(path, b) },
		} {
			path := filepath.Join(dir, name)
			if name == "peft" && a.beyondLoRA() {
				if err := write(path); err == nil || !strings.Contains(err.Error(), "acts on final blocks alone, hides sinks or has link tokens, which PEFT's LoRA cannot say") {
					t.Errorf("final blocks alone in PEFT's files: %v", err)
				}
				continue
			}
			for range 2 { // over what is there, too
				if err := write(path); err != nil {
					t.Fatal(err)
				}
			}
			got, err := OpenAdapter(path, b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, a) {
				t.Errorf("%s: not what was written", name)
			}
		}
	}
}

// linkTokensFor are n link tokens, of values that every type holds.
func linkTokensFor(base *File, n int) (tokens [][]float32) {
	embedding, _ := base.Tensor("token_embd.weight")
	for i := range n {
		token := make([]float32, embedding.Shape[0])
		for j := range token {
			token[j] = float32(j%9-4*i) / 8
		}
		tokens = append(tokens, token)
	}
	return tokens
}

// An adapter's id covers its link tokens, and a file whose link tokens are not the model's says so.
func TestAdapter_LinkTokens_AreCheckedAndCounted(t *testing.T) {
	b := base(t)
	a := adapterFor(b, 2)
	seen := map[[32]byte]bool{a.Fingerprint(): true}
	for _, change := range []func(){
		func() { a.LinkTokens = linkTokensFor(b, 2) },
		func() { a.LinkTokens = linkTokensFor(b, 3) },
		func() { a.LinkTokens[1][5]++ },
	} {
		change()
		if seen[a.Fingerprint()] {
			t.Error("an adapter with other link tokens has the same fingerprint")
		}
		seen[a.Fingerprint()] = true
	}
	for _, c := range []struct {
		tokens [][]float32
		want   string
	}{
		{[][]float32{make([]float32, 63)}, "tensor tessera.link_tokens: is [63 1], expected embeddings of 64 values, of at most 64 tokens"},
		{linkTokensFor(b, 65), "tensor tessera.link_tokens: is [64 65], expected embeddings of 64 values, of at most 64 tokens"},
	} {
		a.LinkTokens = c.tokens
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := a.WriteGGUF(path, kernel.F32); err != nil {
			t.Fatal(err)
		}
		checkAdapterError(t, "link tokens", path, c.want, b)
	}
	a.LinkTokens = linkTokensFor(b, 1)
	path := filepath.Join(t.TempDir(), "a.gguf")
	if err := a.WriteGGUF(path, kernel.F32); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(data[len(data)-4:], math.Float32bits(float32(math.Inf(1))))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	checkAdapterError(t, "link tokens", path, "tensor tessera.link_tokens: value 63 is +Inf, expected a finite number", b)
}

// Written by the formulas of the vectors' README: GGUF row h·16+2i+j is row h·16+8j+i of the Hugging Face order.
func TestWritePEFT_RowsOfQueriesAndKeys_AreReordered(t *testing.T) {
	b := base(t)
	a := adapterFor(b, 2, "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")
	dir := t.TempDir()
	if err := a.WritePEFT(dir, b); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "adapter_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	tensors, err := parseSafetensors("m", data)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"q", "k", "v"} {
		want := a.Changes[i].B
		if name == "v" {
			continue
		}
		for _, s := range tensors {
			if s.name != "base_model.model.model.layers.0.self_attn."+name+"_proj.lora_B.weight" {
				continue
			}
			got := make([]float32, len(want))
			kernel.Dequantize(s.kind, got, s.data)
			for row := range len(want) / 2 {
				h, r := row/16, row%16
				if hf := h*16 + r%2*8 + r/2; got[2*hf] != want[2*row] || got[2*hf+1] != want[2*row+1] {
					t.Fatalf("%s: row %d is not row %d of the file", name, row, hf)
				}
			}
		}
	}
}

// Table: how to break a sound adapter → what is said.
func TestOpenAdapter_Broken_IsNamedWithFieldAndFinding(t *testing.T) {
	b := base(t)
	nan := float32(0)
	nan /= nan
	for _, c := range []struct {
		name   string
		damage func(a *Adapter)
		want   string
	}{
		{"other architecture", func(a *Adapter) { a.Architecture = "qwen2" }, `metadata general.architecture: is "qwen2", but ` + b.Path() + ` is a "llama"`},
		{"no such tensor", func(a *Adapter) { a.Changes[0].Tensor = "blk.9.attn_q.weight" }, "tensor blk.9.attn_q.weight.lora_a: changes blk.9.attn_q.weight, which is no matrix of " + b.Path()},
		{"a vector", func(a *Adapter) { a.Changes[0].Tensor = "output_norm.weight" }, "tensor output_norm.weight.lora_a: changes output_norm.weight, which is no matrix of " + b.Path()},
		{"too wide", func(a *Adapter) { c := &a.Changes[0]; c.In, c.A = 65, make([]float32, 2*65) }, "tensor blk.0.attn_q.weight.lora_a: is 2 × 65; blk.0.attn_q.weight has 64, expected as many"},
		{"too high", func(a *Adapter) { c := &a.Changes[0]; c.Out, c.B = 63, make([]float32, 2*63) }, "tensor blk.0.attn_q.weight.lora_b: is 63 × 2; blk.0.attn_q.weight has 64, expected as many"},
		{"none", func(a *Adapter) { a.Changes = nil }, "file: has no tensors, expected pairs of matrices"},
		{"alpha", func(a *Adapter) { a.Alpha = nan }, "metadata adapter.lora.alpha: is NaN, expected a finite number"},
	} {
		a := adapterFor(b, 2)
		c.damage(a)
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := a.WriteGGUF(path, kernel.F32); err != nil {
			t.Fatal(err)
		}
		checkAdapterError(t, c.name, path, c.want, b)
	}
	t.Run("a model", func(t *testing.T) {
		checkAdapterError(t, "a model", b.Path(), `metadata general.type: is "", expected "adapter": this is no LoRA adapter`, b)
	})
	t.Run("half", func(t *testing.T) {
		var m Metadata
		m.Set("general.architecture", "llama")
		m.Set("general.type", "adapter")
		m.Set("adapter.type", "lora")
		m.Set("adapter.lora.alpha", float32(1))
		path := filepath.Join(t.TempDir(), "a.gguf")
		w, err := Create(path, &m, []Tensor{{Name: "blk.0.attn_q.weight.lora_a", Type: kernel.F32, Shape: []int{64, 1}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 256)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		checkAdapterError(t, "half", path, "tensor blk.0.attn_q.weight: has only one of the two matrices of its change", b)
	})
}

func checkAdapterError(t *testing.T, name, path, want string, base *File) {
	t.Helper()
	_, err := OpenAdapter(path, base)
	if err == nil || err.Error() != path+": "+want {
		t.Errorf("%s: %v\nwant %s: %s", name, err, path, want)
	}
}

func TestOpenAdapter_BrokenPEFT_IsNamedWithFieldAndFinding(t *testing.T) {
	b := base(t)
	const config, model = "adapter_config.json", "adapter_model.safetensors"
	for _, c := range []struct{ file, old, new, want string }{
		{config, `"LORA"`, `"IA3"`, "peft_type: is IA3, expected LORA"},
		{config, `"none"`, `"all"`, "bias: is all, expected none"},
		{config, `"r": 2`, `"r": 3`, model + ": tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight: has rank 2, adapter_config.json says 3"},
		{config, `"r": 2`, `"use_dora": true, "r": 2`, "use_dora: is true, expected false"},
		{config, `"r": 2`, `"rank_pattern": {"q_proj": 8}, "r": 2`, "rank_pattern: is map[q_proj:8], expected none: one rank for all matrices"},
		{config, `{`, `[`, "file: is not what PEFT writes: invalid character ':' after array element"},
		{model, `"F32"`, `"F64"`, `tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight: is of type "F64", expected F32, F16 or BF16`},
		{model, `[2,128]`, `[2,127]`, "tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight: of shape [2 127] and type F32 has 1,024 bytes"},
		{model, `layers.0.mlp.down`, `layers.7.mlp.down`, "tensor base_model.model.model.layers.7.mlp.down_proj.lora_A.weight: changes blk.7.ffn_down.weight, which is no matrix of " + b.Path()},
		{model, `mlp.down_proj`, `mlp.lora_proj`, "tensor base_model.model.model.layers.0.mlp.lora_proj.lora_A.weight: of shape [2 128] has no place in the LoRA of a model of the Llama family"},
	} {
		dir := t.TempDir()
		if err := adapterFor(b, 2).WritePEFT(dir, b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, c.file)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte(c.old)) {
			t.Fatalf("%s has no %s", c.file, c.old)
		}
		if err := os.WriteFile(path, bytes.Replace(data, []byte(c.old), []byte(c.new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = OpenAdapter(dir, b)
		var e *Error
		if !errors.As(err, &e) || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %s for %s: %v\nwant %s", c.file, c.new, c.old, err, c.want)
		}
	}
}

// checkAdapter checks the invariants of Adapter.
func checkAdapter(t *testing.T, a *Adapter, base *File) {
	t.Helper()
	embedding, _ := base.Tensor("token_embd.weight")
	for _, token := range a.LinkTokens {
		if len(token) != embedding.Shape[0] || slices.ContainsFunc(token, func(v float32) bool { return v-v != 0 }) {
			t.Fatalf("link token %v", token)
		}
	}
	last := -1
	for _, c := range a.Changes {
		at, ok := base.byName[c.Tensor]
		if !ok || at <= last {
			t.Fatalf("%q is no tensor of the base, or out of order", c.Tensor)
		}
		last = at
		if c.In < 1 || c.Out < 1 || c.Rank < 1 || len(c.A) != c.Rank*c.In || len(c.B) != c.Out*c.Rank {
			t.Fatalf("%s: in %d, out %d, rank %d with %d and %d values", c.Tensor, c.In, c.Out, c.Rank, len(c.A), len(c.B))
		}
		for _, v := range append(c.A, c.B...) {
			if v-v != 0 {
				t.Fatalf("%s holds %v", c.Tensor, v)
			}
		}
	}
}

// FuzzAdapter: whatever the bytes of a GGUF file, reading them as an adapter ends in an *Error or in an adapter that keeps its invariants.
func FuzzAdapter(f *testing.F) {
	b := base(f)
	linked := adapterFor(b, 1, "blk.0.attn_k.weight")
	linked.LinkTokens = linkTokensFor(b, 2)
	for i, a := range []*Adapter{adapterFor(b, 1, "blk.0.attn_q.weight"), adapterFor(b, 2, "blk.1.ffn_up.weight", "blk.0.attn_v.weight"), linked} {
		path := filepath.Join(f.TempDir(), "a.gguf")
		if err := a.WriteGGUF(path, []kernel.Type{kernel.F16, kernel.F32, kernel.F32}[i]); err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := &File{path: "a.gguf", data: data[:len(data):len(data)]}
		err := parse(file)
		var a *Adapter
		if err == nil {
			a, err = file.adapter(b)
		}
		checkFuzzed(t, a, err, b)
	})
}

// FuzzPEFT is FuzzAdapter for the other format: the bytes of both files.
func FuzzPEFT(f *testing.F) {
	b := base(f)
	for _, a := range []*Adapter{adapterFor(b, 1, "blk.0.attn_q.weight"), adapterFor(b, 2, "blk.1.ffn_up.weight", "blk.0.attn_k.weight")} {
		dir := f.TempDir()
		if err := a.WritePEFT(dir, b); err != nil {
			f.Fatal(err)
		}
		config, err := os.ReadFile(filepath.Join(dir, peftConfig))
		if err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, peftWeights))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(config, data)
		f.Add(config, data[:len(data)-1])
		f.Add([]byte(`{"r": 9`), data[:10])
	}
	f.Fuzz(func(t *testing.T, config, data []byte) {
		settings, err := parsePEFTSettings("adapter_config.json", config)
		var a *Adapter
		if err == nil {
			a, err = parsePEFT("adapter_model.safetensors", data[:len(data):len(data)], settings, b)
		}
		checkFuzzed(t, a, err, b)
	})
}

func checkFuzzed(t *testing.T, a *Adapter, err error, base *File) {
	t.Helper()
	if err == nil {
		checkAdapter(t, a, base)
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Path == "" || e.Field == "" || e.Detail == "" {
		t.Errorf("%#v, want a whole *Error", err)
	}
}
