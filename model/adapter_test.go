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

	"github.com/tessera-llm/tessera/internal/kernel"
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

// Beside weights of any type, at any rank and number of rows, an adapter adds B·A·x times its scale, as closely as it is kept.
func TestMultiply_Adapter_AddsItsProduct(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	pool := kernel.NewPool(2)
	defer pool.Close()
	for _, typ := range []kernel.Type{kernel.F32, kernel.Q8_0, kernel.Q4_1} {
		for _, c := range []struct{ in, out, rank, rows int }{{64, 96, 16, 1}, {64, 96, 16, 7}, {96, 33, 16, 2}, {64, 48, 8, 5}, {32, 64, 5, 3}, {64, 96, 40, 2}, {64, 64, 1, 1}} {
			data := make([]byte, c.out*typ.RowBytes(c.in)) // zeros: of the products only the adapter's are left
			m, err := kernel.NewMatrix(typ, c.out, c.in, data)
			if err != nil {
				t.Fatal(err)
			}
			change := &weights.Change{In: c.in, Out: c.out, Rank: c.rank, A: values(c.rank * c.in), B: values(c.out * c.rank)}
			low, err := newLowRank(change, 0.5, typ)
			if err != nil {
				t.Fatal(err)
			}
			l := &linear{m, low}
			for _, m := range []*kernel.Matrix{&l.Matrix, &low.A, &low.B} {
				m.Pack(pool, kernel.Memory(m.PackedBytes()))
			}
			w := &Workspace{model: &Model{}, pool: pool, rows: c.rows}
			for row := range c.rows {
				w.parts = append(w.parts, part{seq: &Sequence{}, row: row, rows: 1})
			}
			x, got := values(c.rows*c.in), make([]float32, c.rows*c.out)
			w.multiply(x, false, projection{got, l})
			bound := 1e-5
			if typ != kernel.F32 {
				bound = 0.02
			}
			var squares, spread float64
			for row := range c.rows {
				for o := range c.out {
					want := 0.0
					for r := range c.rank {
						ax := 0.0
						for i := range c.in {
							ax += float64(change.A[r*c.in+i]) * float64(x[row*c.in+i])
						}
						want += 0.5 * float64(change.B[o*c.rank+r]) * ax
					}
					squares += math.Pow(float64(got[row*c.out+o])-want, 2)
					spread += want * want
				}
			}
			if off := math.Sqrt(squares / spread); !(off <= bound) {
				t.Errorf("%v, %+v: off by %.2g of the size, want at most %.2g", typ, c, off, bound)
			}
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
