package train

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/weights"
)

// vectors is what shared/vectors/train/train.json holds: computed by PyTorch in float64, and checked there against a second
// implementation, central differences and llama.cpp.
type vectors struct {
	dir       string
	Optimizer struct {
		LR          float64 `json:"lr"`
		WeightDecay float64 `json:"weight_decay"`
		Order       []int
	}
	Samples []struct {
		Name     string
		IDs      []int32
		Blocks   []int
		LossMask []int `json:"loss_mask"`
	}
	Models map[string]struct {
		File      string
		Cases     []vectorCase
		TrainFull vectorTraining `json:"train_full"`
		TrainLoRA vectorTraining `json:"train_lora"`
	}
}

type vectorCase struct {
	Sample     string
	Loss       float64
	LastLogits []float64 `json:"last_logits"`
	Grads      map[string]vectorGrad
	GradNorm   float64 `json:"grad_norm_total"`
	LoRA       struct {
		Loss       float64
		LastLogits []float64 `json:"last_logits"`
		Grads      map[string]vectorGrad
		GradNorm   float64 `json:"grad_norm_total"`
		Distill    struct {
			Loss      float64
			GradNorms map[string]float64 `json:"grad_norms"`
		}
	}
}

type vectorGrad struct {
	Norm    float64
	Entries [][2]json.RawMessage // indices, value
}

type vectorTraining struct {
	Losses []float64
	After  struct {
		Losses []float64
		Norms  map[string]float64
	}
}

// vectorTolerance is what a float32 trainer is held to, relative to a number's size and to 1.
const vectorTolerance = 1e-4

func readVectors(t *testing.T) *vectors {
	t.Helper()
	path := testenv.Shared(t, "vectors", "train", "train.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vectors{dir: filepath.Dir(path)}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// sample is sample i, and the mode that it is in.
func (v *vectors) sample(i int) (*Sample, Mode) {
	from := v.Samples[i]
	s, mode := &Sample{Tokens: from.IDs, Blocks: from.Blocks}, Block
	if s.Blocks == nil {
		s.Blocks, mode = []int{len(s.Tokens)}, Full
	}
	for i, is := range from.LossMask {
		if is == 1 {
			s.Targets = append(s.Targets, i)
		}
	}
	return s, mode
}

func (v *vectors) index(name string) int {
	for i, s := range v.Samples {
		if s.Name == name {
			return i
		}
	}
	panic("no sample " + name)
}

// trainer opens one of the models, with the vectors' adapter or to be trained as a whole.
func (v *vectors) trainer(t *testing.T, model string, lora bool) *Trainer {
	t.Helper()
	file, err := weights.Open(filepath.Join(v.dir, v.Models[model].File))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	var a *weights.Adapter
	if lora {
		if a, err = weights.OpenAdapter(filepath.Join(v.dir, "lora.gguf"), file); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := New(file, a, Options{Mode: Full, Steps: 1, Batch: 1, LearningRate: 1, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

// see takes a sample forward, with logits of the last row too.
func (tr *Trainer) see(t *testing.T, s *Sample, mode Mode) {
	t.Helper()
	tr.wanted(s, false)
	tr.rows, tr.targets = append(tr.rows, len(s.Tokens)-1), append(tr.targets, noTarget)
	blocks := s.Blocks
	if mode == Full {
		blocks = []int{len(s.Tokens)}
	}
	tr.pass.objective.teacher = nil
	if err := tr.pass.forward(s.Tokens, layout{blocks: blocks, finals: 1}, tr.rows); err != nil {
		t.Fatal(err)
	}
}

// lastLogits are those of the last row of see.
func (tr *Trainer) lastLogits() []float32 {
	n := tr.net.Vocabulary
	return tr.pass.logits[(len(tr.rows)-1)*n:][:n]
}

func TestVectors_LossLogitsGradients_OfTheBase(t *testing.T) {
	v := readVectors(t)
	for name, m := range v.Models {
		tr := v.trainer(t, name, false)
		for _, c := range m.Cases {
			what := name + "/" + c.Sample
			s, mode := v.sample(v.index(c.Sample))
			tr.optimizer.clear()
			tr.see(t, s, mode)
			compareAll(t, what+" logits", tr.lastLogits(), c.LastLogits)
			compare(t, what+" loss", tr.loss(s, 1), c.Loss)
			tr.pass.backward(len(s.Targets))
			compareGradients(t, what, tr, c.Grads)
			compare(t, what+" norm of all gradients", tr.optimizer.norm(), c.GradNorm)
		}
	}
}

func TestVectors_LossLogitsGradients_OfAnAdapter(t *testing.T) {
	v := readVectors(t)
	for name, m := range v.Models {
		tr := v.trainer(t, name, true)
		for _, c := range m.Cases {
			what := name + "/" + c.Sample + " with LoRA"
			s, mode := v.sample(v.index(c.Sample))
			tr.optimizer.clear()
			tr.see(t, s, mode)
			compareAll(t, what+" logits", tr.lastLogits(), c.LoRA.LastLogits)
			compare(t, what+" loss", tr.loss(s, 1), c.LoRA.Loss)
			tr.pass.backward(len(s.Targets))
			compareGradients(t, what, tr, c.LoRA.Grads)
			compare(t, what+" norm of all gradients", tr.optimizer.norm(), c.LoRA.GradNorm)
		}
	}
}

// The vectors' teacher is the base without the adapter, in full mode.
func TestVectors_Distillation(t *testing.T) {
	v := readVectors(t)
	for name, m := range v.Models {
		teacher, student := v.trainer(t, name, false), v.trainer(t, name, true)
		for _, c := range m.Cases {
			what := name + "/" + c.Sample + " distilled"
			s, mode := v.sample(v.index(c.Sample))
			teacher.see(t, s, Full)
			student.optimizer.clear()
			student.see(t, s, mode)
			n := len(s.Targets)
			student.pass.rows = student.pass.rows[:n]
			o := &student.pass.objective
			o.teacher, o.distill = teacher.pass.logits, 1/float32(n)
			student.loss(s, 0)
			compare(t, what+" loss", student.pass.divergence/float64(n), c.LoRA.Distill.Loss)
			student.pass.backward(n)
			for peft, want := range c.LoRA.Distill.GradNorms {
				grad, _, _ := student.gradient(t, peft)
				compare(t, what+" gradient of "+peft, norm(grad), want)
			}
		}
	}
}

func TestVectors_TenSteps(t *testing.T) {
	v := readVectors(t)
	for name, m := range v.Models {
		for _, c := range []struct {
			what string
			lora bool
			want vectorTraining
		}{{"full", false, m.TrainFull}, {"lora", true, m.TrainLoRA}} {
			tr := v.trainer(t, name, c.lora)
			what := name + " " + c.what
			for step, i := range v.Optimizer.Order {
				s, mode := v.sample(i)
				tr.optimizer.clear()
				tr.see(t, s, mode)
				compare(t, fmt.Sprintf("%s step %d", what, step), tr.loss(s, 1), c.want.Losses[step])
				tr.pass.backward(len(s.Targets))
				tr.optimizer.update(step+1, v.Optimizer.LR, v.Optimizer.WeightDecay, 1)
				tr.net.repack(tr.pool)
			}
			for i, want := range c.want.After.Losses {
				s, mode := v.sample(i)
				got, err := tr.Loss(s, mode)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, fmt.Sprintf("%s, sample %d after", what, i), got, want)
			}
			for tensor, want := range c.want.After.Norms {
				_, value, _ := tr.gradient(t, tensor)
				compare(t, what+" norm of "+tensor, norm(value), want)
			}
		}
	}
}

func compareGradients(t *testing.T, what string, tr *Trainer, want map[string]vectorGrad) {
	t.Helper()
	if len(want) != len(tr.net.params.list) {
		t.Errorf("%s: gradients of %d tensors, want %d", what, len(tr.net.params.list), len(want))
	}
	for name, w := range want {
		grad, _, cols := tr.gradient(t, name)
		compare(t, what+" gradient of "+name, norm(grad), w.Norm)
		for _, e := range w.Entries {
			var index []int
			var value float64
			if json.Unmarshal(e[0], &index) != nil || json.Unmarshal(e[1], &value) != nil {
				t.Fatalf("%s: entry %s", name, e)
			}
			at := index[len(index)-1]
			if len(index) == 2 {
				at += index[0] * cols
			}
			compare(t, fmt.Sprintf("%s gradient of %s at %d", what, name, index), float64(grad[at]), value)
		}
	}
}

// gradient returns the gradient and the value of a tensor by the vectors' name: the GGUF's, or PEFT's, with rows of B of queries and keys
// in the order of the Hugging Face models.
func (tr *Trainer) gradient(t *testing.T, name string) (grad, value []float32, cols int) {
	t.Helper()
	heads := 0
	if rest, ok := strings.CutPrefix(name, "base_model.model.model.layers."); ok {
		layer, rest, _ := strings.Cut(rest, ".")
		part := strings.Split(rest, ".") // self_attn.q_proj.lora_A.weight
		tensor := map[string]string{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}[part[1]]
		name = "blk." + layer + "." + tensor + ".weight." + strings.ToLower(part[2])
		if part[2] == "lora_B" {
			heads = map[string]int{"q_proj": tr.net.Heads, "k_proj": tr.net.KVHeads}[part[1]]
		}
	}
	i := slices.IndexFunc(tr.net.params.list, func(p param) bool { return p.name == name })
	if i < 0 {
		t.Fatalf("%s is not trained", name)
	}
	p := tr.net.params.list[i]
	grad, value, cols = tr.net.params.grads[p.from:p.to], tr.net.params.values[p.from:p.to], p.shape[len(p.shape)-1]
	if heads == 0 {
		return grad, value, cols
	}
	d := len(grad) / cols / heads
	reordered := make([]float32, len(grad))
	for h := range heads {
		for i := range d / 2 {
			for j := range 2 {
				copy(reordered[(h*d+d/2*j+i)*cols:][:cols], grad[(h*d+2*i+j)*cols:])
			}
		}
	}
	return reordered, value, cols
}

func norm(x []float32) float64 {
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

func compare(t *testing.T, what string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= vectorTolerance*max(1, math.Abs(want))) {
		t.Errorf("%s: %.8g, want %.8g", what, got, want)
	}
}

func compareAll(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d values, want %d", what, len(got), len(want))
		return
	}
	for i := range want {
		compare(t, fmt.Sprintf("%s[%d]", what, i), float64(got[i]), want[i])
	}
}
