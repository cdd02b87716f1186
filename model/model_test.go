package model

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/attention"
	"github.com/tessera-llm/tessera/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// load opens one of the tiny models.
func load(t testing.TB, name string) *Model {
	t.Helper()
	m, err := New(open(t, testenv.Tiny(name)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNew_ReadsTheShape(t *testing.T) {
	want := Config{Architecture: "llama", Layers: 2, Hidden: 64, Heads: 4, KVHeads: 2, HeadDim: 16, FeedForward: 128, Vocabulary: 256, NormEpsilon: 1e-5}
	for _, name := range []string{"tiny-tied.gguf", "tiny-untied.gguf"} {
		got := load(t, name).Config
		want.Context = got.Context
		if got != want || got.Context < 72 {
			t.Errorf("%s: %+v, want %+v and a context of at least 72", name, got, want)
		}
	}
}

// The base of the table below is sound, so what it says comes from the one thing changed.
func TestNew_Variant_IsTheTinyModel(t *testing.T) {
	ids := tokens(1, 20)
	for _, name := range []string{"tiny-tied.gguf", "tiny-untied.gguf"} {
		m, err := New(tiny(t, name).write(t))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := logits(t, m, ids), logits(t, load(t, name), ids); !slices.Equal(got, want) {
			t.Errorf("%s: a rewritten file gives other logits", name)
		}
	}
}

func TestNew_ModelsThatWouldBeComputedWrongly_AreRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(v *variant)
		want  string
	}{
		{"another architecture", func(v *variant) { v.set("general.architecture", "qwen2") }, `general.architecture is "qwen2"; this version runs "llama"`},
		{"no architecture", func(v *variant) { v.drop("general.architecture") }, `general.architecture is ""; this version runs "llama"`},
		{"experts", func(v *variant) { v.set("llama.expert_count", uint32(8)) }, "llama.expert_count is 8; mixtures of experts are not supported"},
		{"KV heads that do not divide", func(v *variant) { v.set("llama.attention.head_count_kv", uint32(3)) },
			"llama.attention.head_count is 4, not a multiple of head_count_kv, 3"},
		{"KV heads by layer", func(v *variant) { v.set("llama.attention.head_count_kv", []int32{2, 1}) }, "llama.attention.head_count_kv"},
		{"no layers told", func(v *variant) { v.drop("llama.block_count") }, "metadata llama.block_count is missing or no whole number"},
		{"no layers", func(v *variant) { v.set("llama.block_count", uint32(0)) }, "metadata llama.block_count is 0; want 1 to 1073741824"},
		{"layers as text", func(v *variant) { v.set("llama.block_count", "two") }, "llama.block_count"},
		{"endless context", func(v *variant) { v.set("llama.context_length", uint32(1<<31)) }, "metadata llama.context_length is 2147483648; want 1 to"},
		{"values of another size", func(v *variant) { v.set("llama.attention.value_length", uint32(8)) },
			"llama.attention.value_length is 8 and key_length 16; they must be equal"},
		{"no epsilon", func(v *variant) { v.drop("llama.attention.layer_norm_rms_epsilon") }, "llama.attention.layer_norm_rms_epsilon is missing"},
		{"negative epsilon", func(v *variant) { v.set("llama.attention.layer_norm_rms_epsilon", float32(-1)) }, "layer_norm_rms_epsilon is missing or not a number of at least 0"},
		{"too many turned values", func(v *variant) { v.set("llama.rope.dimension_count", uint32(18)) },
			"llama.rope.dimension_count is 18 and freq_base 10000; want an even number up to 16"},
		{"odd turned values", func(v *variant) { v.set("llama.rope.dimension_count", uint32(15)) }, "llama.rope.dimension_count is 15"},
		{"RoPE base", func(v *variant) { v.set("llama.rope.freq_base", float32(0)) }, "freq_base 0; want"},
		{"RoPE that changes with the length", func(v *variant) { v.set("llama.rope.scaling.type", "dynamic") },
			`llama.rope.scaling.type is "dynamic"; known are none, linear and yarn, whose frequencies are fixed when the model is loaded`},
		{"RoPE factor", func(v *variant) {
			v.set("llama.rope.scaling.type", "linear")
			v.set("llama.rope.scaling.factor", float32(-2))
		}, "llama.rope.scaling.factor is -2, not a positive number"},
		{"too few frequency factors", func(v *variant) { v.put("rope_freqs.weight", make([]float32, 7), 7) }, "tensor rope_freqs.weight has shape [7]; the metadata asks for [8]"},
		{"frequency factors of 0", func(v *variant) { v.put("rope_freqs.weight", make([]float32, 8), 8) },
			"tensor rope_freqs.weight: frequency factor 0 is 0, not a positive number"},
		{"factors for long and short inputs", func(v *variant) { v.put("rope_factors_long.weight", make([]float32, 8), 8) },
			"tensor rope_factors_long.weight has no place in a llama model of 2 layers: computing without it would be wrong"},
		{"no embedding", func(v *variant) { v.remove("token_embd.weight") }, "tensor token_embd.weight is missing or not a matrix"},
		{"flat embedding", func(v *variant) { v.put("token_embd.weight", make([]float32, 64), 64) }, "tensor token_embd.weight is missing or not a matrix"},
		{"missing tensor", func(v *variant) { v.remove("blk.1.ffn_up.weight") }, "tensor blk.1.ffn_up.weight is missing"},
		{"missing norm", func(v *variant) { v.remove("output_norm.weight") }, "tensor output_norm.weight is missing"},
		{"transposed tensor", func(v *variant) { v.put("blk.0.ffn_up.weight", make([]float32, 128*64), 128, 64) },
			"tensor blk.0.ffn_up.weight has shape [128 64]; the metadata asks for [64 128]"},
		{"output of another vocabulary", func(v *variant) { v.put("output.weight", make([]float32, 64*255), 64, 255) },
			"tensor output.weight has shape [64 255]; the metadata asks for [64 256]"},
		{"bias of another size", func(v *variant) { v.put("blk.0.attn_k.bias", make([]float32, 64), 64) },
			"tensor blk.0.attn_k.bias has shape [64]; the metadata asks for [32]"},
		{"left-over layer", func(v *variant) { v.set("llama.block_count", uint32(1)) }, "has no place in a llama model of 1 layers"},
		{"norm of queries", func(v *variant) { v.put("blk.0.attn_q_norm.weight", make([]float32, 16), 16) },
			"tensor blk.0.attn_q_norm.weight has no place in a llama model of 2 layers: computing without it would be wrong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := tiny(t, "tiny-tied.gguf")
			c.spoil(v)
			file := v.write(t)
			_, err := New(file)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), file.Path()+": ") {
				t.Errorf("%v; want it to name the file and say %q", err, c.want)
			}
		})
	}
}

func TestNew_RoPEKeys(t *testing.T) {
	plain := attention.Plain(16, 10000)
	factors := []float32{1, 1, 2, 4, 8, 8, 8, 8}
	factored, err := plain.Factors(factors)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		set  func(v *variant)
		want attention.RoPE
	}{
		{"nothing told", func(*variant) {}, plain},
		{"base", func(v *variant) { v.set("llama.rope.freq_base", float32(500000)) }, attention.Plain(16, 500000)},
		{"part of the head", func(v *variant) { v.set("llama.rope.dimension_count", uint32(8)) }, attention.Plain(8, 10000)},
		{"none, whatever the factor", func(v *variant) {
			v.set("llama.rope.scaling.type", "none")
			v.set("llama.rope.scaling.factor", float32(4))
		}, plain},
		{"linear", func(v *variant) {
			v.set("llama.rope.scaling.type", "linear")
			v.set("llama.rope.scaling.factor", float32(4))
		}, plain.Linear(4)},
		{"linear in older files", func(v *variant) { v.set("llama.rope.scale_linear", float32(2)) }, plain.Linear(2)},
		{"yarn", func(v *variant) {
			v.set("llama.rope.scaling.type", "yarn")
			v.set("llama.rope.scaling.factor", float32(4))
			v.set("llama.rope.scaling.original_context_length", uint32(128))
		}, plain.YaRN(10000, 4, 128, 32, 1)},
		{"yarn over the context, with betas", func(v *variant) {
			v.set("llama.rope.scaling.type", "yarn")
			v.set("llama.rope.scaling.factor", float32(2))
			v.set("llama.rope.scaling.yarn_beta_fast", float32(16))
			v.set("llama.rope.scaling.yarn_beta_slow", float32(2))
		}, plain.YaRN(10000, 2, 512, 16, 2)},
		{"a magnitude of its own", func(v *variant) { v.set("llama.rope.scaling.attn_factor", float32(0.5)) }, attention.RoPE{Freqs: plain.Freqs, Magnitude: 0.5}},
		{"factors", func(v *variant) { v.put("rope_freqs.weight", factors, 8) }, factored},
	} {
		v := tiny(t, "tiny-tied.gguf")
		c.set(v)
		m, err := New(v.write(t))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(m.angles.Freqs, c.want.Freqs) || m.angles.Magnitude != c.want.Magnitude {
			t.Errorf("%s: %v, want %v", c.name, m.angles, c.want)
		}
	}
}

// Ids of blocks cover these bytes, so they are part of the format: a change here orphans every stored block.
func TestRoPEBytes_AreMagnitudeAndFrequencies(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	var want bytes.Buffer
	for _, f := range append([]float64{1}, attention.Plain(16, 10000).Freqs...) {
		want.Write(binary.LittleEndian.AppendUint64(nil, math.Float64bits(f)))
	}
	if !bytes.Equal(m.RoPEBytes(), want.Bytes()) {
		t.Errorf("%x, want %x", m.RoPEBytes(), want.Bytes())
	}
}

func TestFLOPs_OfTheTinyModel_ByHand(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	// A layer's weights: q and output 64·64, k and v 32·64, gate, up and down 128·64: 36,864. Two layers, 2 operations each.
	const perToken = 2 * 2 * 36_864
	// 3 tokens after 10 attend to 11, 12 and 13 positions; each costs 4·16 operations in 4 heads of 2 layers.
	matrices, attending := m.FLOPs(3, 10)
	if matrices != 3*perToken || attending != (11+12+13)*4*16*4*2 {
		t.Errorf("3 tokens after 10: %v and %v, want %v and %v", matrices, attending, 3*perToken, (11+12+13)*4*16*4*2)
	}
	if got := m.OutputFLOPs(); got != 2*256*64 {
		t.Errorf("the output head: %v, want %v", got, 2*256*64)
	}
}
