package model

import (
	"context"
	"encoding/json"
	"math"
	"os"
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

func TestWithAdapter_WhatItCannotChange_IsAnError(t *testing.T) {
	file, err := weights.Open(testenv.Tiny("tiny-untied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	m, err := New(file)
	if err != nil {
		t.Fatal(err)
	}
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
