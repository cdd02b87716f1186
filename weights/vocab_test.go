package weights

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/tokenizer"
)

// newVocabSample returns a file with a vocabulary of four tokens that says nothing a reader could do without.
func newVocabSample(model string) *sample {
	s := &sample{magic: "GGUF", version: 3, alignment: 32}
	s.set("tokenizer.ggml.model", kindString, text(model))
	s.set("tokenizer.ggml.tokens", kindArray, array(kindString, 4, text("<unk>"), text("<s>"), text("</s>"), text("▁a")))
	if model == "llama" {
		s.set("tokenizer.ggml.scores", kindArray, array(kindFloat32, 4, number([]float32{0, 0, 0, -1})))
	} else {
		s.set("tokenizer.ggml.merges", kindArray, array(kindString, 1, text("▁ a")))
	}
	return s
}

func TestVocab_WhatAFileLeavesOut(t *testing.T) {
	u32 := func(key string, n uint32) func(*sample) {
		return func(s *sample) { s.set("tokenizer.ggml."+key, kindUint32, number(n)) }
	}
	flag := func(key string, b byte) func(*sample) {
		return func(s *sample) { s.set("tokenizer.ggml."+key, kindBool, []byte{b}) }
	}
	pre := func(name string) func(*sample) {
		return func(s *sample) { s.set("tokenizer.ggml.pre", kindString, text(name)) }
	}
	type settings struct {
		unknown, bos, eos, eot         int32
		addBOS, addEOS, addSpacePrefix bool
	}
	for _, c := range []struct {
		name   string
		model  string
		change []func(*sample)
		want   settings
	}{
		{"SentencePiece, silent", "llama", nil, settings{0, 1, 2, -1, true, false, true}},
		{"SentencePiece, all said", "llama", []func(*sample){u32("unknown_token_id", 3), u32("bos_token_id", 2), u32("eos_token_id", 1), u32("eot_token_id", 0),
			flag("add_bos_token", 0), flag("add_eos_token", 1), flag("add_space_prefix", 0)}, settings{3, 2, 1, 0, false, true, false}},
		{"byte-level, silent", "gpt2", []func(*sample){pre("qwen2")}, settings{-1, -1, -1, -1, false, false, false}},
		{"byte-level, Llama 3", "gpt2", []func(*sample){pre("llama-bpe"), u32("bos_token_id", 1)}, settings{-1, 1, -1, -1, true, false, false}},
		{"byte-level, Llama 3 without BOS", "gpt2", []func(*sample){pre("llama-bpe"), flag("add_bos_token", 0)}, settings{-1, -1, -1, -1, false, false, false}},
		{"-1 as a uint32", "llama", []func(*sample){u32("bos_token_id", math.MaxUint32)}, settings{0, -1, 2, -1, true, false, true}},
	} {
		s := newVocabSample(c.model)
		for _, change := range c.change {
			change(s)
		}
		f := openFile(t, writeFile(t, s.encode()))
		v, err := f.Vocab()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := settings{v.Unknown, v.BOS, v.EOS, v.EOT, v.AddBOS, v.AddEOS, v.AddSpacePrefix}
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if want := []int32{1, 1, 1, 1}; !slices.Equal(v.Types, want) {
			t.Errorf("%s: types %v, want %v", c.name, v.Types, want)
		}
	}
}

func TestVocab_PartsThatDoNotFit_AreNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		model  string
		damage func(*sample)
		want   string
	}{
		{"no model", "llama", func(s *sample) { s.drop("tokenizer.ggml.model") }, "metadata tokenizer.ggml.model: is missing, expected the kind of vocabulary"},
		{"no tokens", "llama", func(s *sample) { s.drop("tokenizer.ggml.tokens") }, "metadata tokenizer.ggml.tokens: is missing, expected the texts of the tokens"},
		{"no scores", "llama", func(s *sample) { s.drop("tokenizer.ggml.scores") }, "metadata tokenizer.ggml.scores: is missing, expected by a SentencePiece (llama) vocabulary"},
		{"no merges", "gpt2", func(s *sample) { s.drop("tokenizer.ggml.merges") }, "metadata tokenizer.ggml.merges: is missing, expected by a byte-level (gpt2) vocabulary"},
		{"tokens that are numbers", "llama", func(s *sample) { s.set("tokenizer.ggml.tokens", kindArray, array(kindInt32, 0)) }, "metadata tokenizer.ggml.tokens: is an array of int32, expected an array of strings"},
		{"too few types", "llama", func(s *sample) { s.set("tokenizer.ggml.token_type", kindArray, array(kindInt32, 1, number(int32(1)))) }, "metadata tokenizer.ggml.token_type: has 1 elements, expected one for each of the 4 tokens"},
		{"too few scores", "llama", func(s *sample) { s.set("tokenizer.ggml.scores", kindArray, array(kindFloat32, 1, number(float32(1)))) }, "metadata tokenizer.ggml.scores: has 1 elements, expected one for each of the 4 tokens"},
		{"BOS outside", "gpt2", func(s *sample) { s.set("tokenizer.ggml.bos_token_id", kindUint32, number(uint32(4))) }, "metadata tokenizer.ggml.bos_token_id: is 4, the vocabulary has 4 tokens"},
		{"EOT far outside", "gpt2", func(s *sample) { s.set("tokenizer.ggml.eot_token_id", kindUint64, number(uint64(1<<40))) }, "metadata tokenizer.ggml.eot_token_id: is 2147483647, the vocabulary has 4 tokens"},
	} {
		s := newVocabSample(c.model)
		c.damage(s)
		f := openFile(t, writeFile(t, s.encode()))
		_, err := f.Vocab()
		if want := f.Path() + ": " + c.want; err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", c.name, err, want)
		}
	}
}

func TestVocab_PublishedFiles(t *testing.T) {
	for _, c := range []struct {
		file           string
		tokens, merges int
		pre            string
		bos, eos       int32
		addBOS         bool
		sample         int
		text           string
	}{
		{"ggml-vocab-gpt-2.gguf", 50257, 50000, "gpt-2", 50256, 50256, false, 262, "Ġthe"},
		{"ggml-vocab-llama-bpe.gguf", 128256, 280147, "llama-bpe", 128000, 128001, true, 128000, "<|begin_of_text|>"},
		{"ggml-vocab-llama-spm.gguf", 32000, 0, "default", 1, 2, true, 30004, "\r"},
		{"ggml-vocab-qwen2.gguf", 151936, 151387, "qwen2", 151643, 151643, false, 151643, "<|endoftext|>"},
	} {
		f := openFile(t, testenv.Shared(t, "vectors", "tokenizer", c.file))
		v, err := f.Vocab()
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if len(v.Tokens) != c.tokens || len(v.Merges) != c.merges || v.Pre != c.pre || v.BOS != c.bos || v.EOS != c.eos || v.AddBOS != c.addBOS || v.Tokens[c.sample] != c.text {
			t.Errorf("%s: %d tokens, %d merges, pre %q, BOS %d, EOS %d, AddBOS %v, token %d %q; want %+v",
				c.file, len(v.Tokens), len(v.Merges), v.Pre, v.BOS, v.EOS, v.AddBOS, c.sample, v.Tokens[c.sample], c)
		}
	}
}

func TestDefaultModel_TensorsVocabAndTemplate(t *testing.T) {
	f := openFile(t, testenv.Model(t))
	if f.Architecture() != "llama" || len(f.Tensors()) != 272 {
		t.Errorf("architecture %q with %d tensors, want llama with 272", f.Architecture(), len(f.Tensors()))
	}
	q, ok := f.Tensor("blk.0.attn_q.weight")
	if !ok || q.Type != kernel.Q4_1 || !slices.Equal(q.Shape, []int{576, 576}) || len(q.Data) != 576*576/32*20 {
		t.Errorf("blk.0.attn_q.weight: %v %v of %d bytes, want Q4_1 [576 576]", q.Type, q.Shape, len(q.Data))
	}
	v, err := f.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	if v.Tokens[2] != "<|im_end|>" || v.EOS != 2 || v.AddBOS || len(v.Tokens) != 49152 {
		t.Errorf("token 2 is %q, EOS %d, AddBOS %v, %d tokens", v.Tokens[2], v.EOS, v.AddBOS, len(v.Tokens))
	}
	if _, err := tokenizer.New(v); err != nil {
		t.Error(err)
	}
	if template, ok := f.ChatTemplate(); !ok || !strings.Contains(template, "<|im_start|>") {
		t.Errorf("chat template %q", template)
	}
}
