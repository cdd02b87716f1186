package model

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/weights"
)

// The logits after the last token, base and adapted, in full and in block mode, are those that PyTorch computed in float64.
func TestWithAdapter_SharedVectors_GiveTheReferencesLogits(t *testing.T) {
	type logits struct {
		Last []float64 `json:"last_logits"`
	}
	var vectors struct {
		Samples []struct {
			Name   string  `json:"name"`
			IDs    []int32 `json:"ids"`
			Blocks []int   `json:"blocks"`
		} `json:"samples"`
		Models map[string]struct {
			File  string `json:"file"`
			Cases []struct {
				Sample string `json:"sample"`
				logits
				LoRA logits `json:"lora"`
			} `json:"cases"`
		} `json:"models"`
	}
	raw, err := os.ReadFile(testenv.Shared(t, "vectors", "train", "train.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Models) == 0 {
		t.Fatal("train.json names no models")
	}
	for name, v := range vectors.Models {
		file, err := weights.Open(testenv.Shared(t, "vectors", "train", v.File))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		base, err := New(file)
		if err != nil {
			t.Fatal(err)
		}
		adapter, err := weights.OpenAdapter(testenv.Shared(t, "vectors", "train", "lora.gguf"), file)
		if err != nil {
			t.Fatal(err)
		}
		adapted, err := base.WithAdapter(adapter)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range v.Cases {
			for _, s := range vectors.Samples {
				if s.Name != c.Sample {
					continue
				}
				mustBeNear(t, name+" "+s.Name, lastLogits(t, base, s.IDs, s.Blocks), c.Last)
				mustBeNear(t, name+" "+s.Name+" with the adapter", lastLogits(t, adapted, s.IDs, s.Blocks), c.LoRA.Last)
			}
		}
	}
}

func lastLogits(t *testing.T, m *Model, ids []int32, blocks []int) (last []float32) {
	t.Helper()
	w := m.NewWorkspace(2)
	defer w.Close()
	if blocks == nil {
		blocks = []int{len(ids)}
	}
	var batch []Sequence
	for i, n := range blocks {
		s := Sequence{Tokens: ids[:n], KV: m.NewKV(kv.F32, n)}
		if i == len(blocks)-1 {
			for _, b := range batch {
				s.Past = append(s.Past, b.KV)
			}
			s.LogitsFrom, s.Logits = n-1, func(_ int, logits []float32) { last = append(last, logits...) }
		}
		batch, ids = append(batch, s), ids[n:]
	}
	if err := w.Forward(context.Background(), batch, nil); err != nil {
		t.Fatal(err)
	}
	return last
}

func mustBeNear(t *testing.T, name string, got []float32, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d logits, want %d", name, len(got), len(want))
	}
	for i := range got {
		if !(math.Abs(float64(got[i])-want[i]) <= 1e-4) {
			t.Fatalf("%s: logit %d = %v, want %v", name, i, got[i], want[i])
		}
	}
}

// An adapter for final blocks changes nothing of the blocks before, and the final one as it would over the base model's blocks;
// computed together or one by one, and beside other prompts.
func TestWithAdapter_FinalOnly_LeavesEarlierBlocks(t *testing.T) {
	file, base := open(t, testenv.Tiny("tiny-untied.gguf")), load(t, "tiny-untied.gguf")
	rng := rand.New(rand.NewPCG(3, 4))
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = rng.Float32() - 0.5
		}
		return v
	}
	a := &weights.Adapter{Architecture: "llama", Alpha: 4, FinalOnly: true}
	for _, name := range []string{"blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.attn_k.weight", "blk.1.ffn_gate.weight"} {
		s, _ := file.Tensor(name)
		a.Changes = append(a.Changes, weights.Change{Tensor: name, In: s.Shape[0], Out: s.Shape[1], Rank: 3, A: values(3 * s.Shape[0]), B: values(s.Shape[1] * 3)})
	}
	final, err := base.WithAdapter(a)
	if err != nil {
		t.Fatal(err)
	}
	everywhere := *a
	everywhere.FinalOnly = false
	whole, err := base.WithAdapter(&everywhere)
	if err != nil {
		t.Fatal(err)
	}
	prompts := [][][]int32{{{1, 2, 3, 4, 5}, {6, 7, 8}, {9, 10}}, {{11, 12, 13}, {14, 15, 16, 17, 18, 19, 20}}}
	type result struct {
		before [][]byte  // payloads of the blocks before the final ones
		logits []float32 // after each prompt
	}
	compute := func(before, last *Model, together bool) (r result) {
		r.logits = make([]float32, len(prompts)*base.Vocabulary)
		one, two := before.NewWorkspace(2), last.NewWorkspace(2)
		defer one.Close()
		defer two.Close()
		var blocks, finals []Sequence
		for i, p := range prompts {
			f := Sequence{Tokens: p[len(p)-1], KV: base.NewKV(kv.F32, len(p[len(p)-1])), LogitsFrom: len(p[len(p)-1]) - 1}
			f.Logits = func(_ int, logits []float32) { copy(r.logits[i*base.Vocabulary:], logits) }
			for _, ids := range p[:len(p)-1] {
				s := Sequence{Tokens: ids, KV: base.NewKV(kv.F32, len(ids)), Before: true}
				blocks, f.Past = append(blocks, s), append(f.Past, s.KV)
			}
			finals = append(finals, f)
		}
		if together {
			blocks, finals = nil, append(blocks, finals...)
		} else if err := one.Forward(t.Context(), blocks, nil); err != nil {
			t.Fatal(err)
		}
		if err := two.Forward(t.Context(), finals, nil); err != nil {
			t.Fatal(err)
		}
		for _, s := range append(blocks, finals...) {
			if s.Before {
				r.before = append(r.before, s.KV.Payload)
			}
		}
		return r
	}
	want := compute(base, whole, false) // by definition
	for _, together := range []bool{false, true} {
		if got := compute(final, final, together); !reflect.DeepEqual(got, want) {
			t.Errorf("together %v: not the adapted final blocks over the base model's blocks", together)
		}
	}
	for name, m := range map[string]*Model{"the base": base, "the adapter everywhere": whole} {
		if reflect.DeepEqual(compute(m, m, true).logits, want.logits) {
			t.Errorf("%s gives the same logits, so this test shows nothing", name)
		}
	}
}

func TestWithAdapter_WhatItCannotChange_IsAnError(t *testing.T) {
	m := load(t, "tiny-untied.gguf")
	for tensor, want := range map[string]string{
		"output.weight":       "the adapter changes output.weight; this version applies changes to a layer's attn_q",
		"blk.0.attn_q.weight": "the adapter's change to blk.0.attn_q.weight is 64 × 63, the matrix 64 × 64",
	} {
		a := &weights.Adapter{Alpha: 1, Changes: []weights.Change{{Tensor: tensor, In: 63, Out: 64, Rank: 1, A: make([]float32, 63), B: make([]float32, 64)}}}
		if _, err := m.WithAdapter(a); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", tensor, err, want)
		}
	}
}
