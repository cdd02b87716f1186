package weights

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// The two files that PEFT saves an adapter in.
const (
	peftWeights = "adapter_model.safetensors"
	peftConfig  = "adapter_config.json"
)

// peftModules are PEFT's names for the matrices of a layer of the Llama family, by GGUF's.
var peftModules = []struct{ tensor, module string }{
	{"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"}, {"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"},
	{"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"}, {"ffn_down", "mlp.down_proj"},
}

// peftSettings is what of an adapter_config.json changes how its matrices are meant.
type peftSettings struct {
	Type         string   `json:"peft_type"`
	Rank         int      `json:"r"`
	Alpha        float64  `json:"lora_alpha"`
	Bias         string   `json:"bias"`
	RootOfRank   bool     `json:"use_rslora"`
	DoRA         bool     `json:"use_dora"`
	FanInFanOut  bool     `json:"fan_in_fan_out"`
	RankPattern  any      `json:"rank_pattern"`
	AlphaPattern any      `json:"alpha_pattern"`
	Saved        []string `json:"modules_to_save"`
}

// openPEFT reads the adapter in a folder, or in a .safetensors file with its adapter_config.json beside it.
func openPEFT(path string, base *File) (*Adapter, error) {
	file := path
	if !strings.HasSuffix(path, ".safetensors") {
		file = filepath.Join(path, peftWeights)
	}
	configPath := filepath.Join(filepath.Dir(file), peftConfig)
	config, err := os.ReadFile(configPath)
	if err != nil {
		return nil, err
	}
	settings, err := parsePEFTSettings(configPath, config)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parsePEFT(file, data, settings, base)
}

// parsePEFTSettings refuses what would make the matrices mean something else.
func parsePEFTSettings(path string, config []byte) (*peftSettings, error) {
	var s peftSettings
	if err := json.Unmarshal(config, &s); err != nil {
		return nil, &Error{path, "file", "is not what PEFT writes: " + err.Error()}
	}
	for _, wrong := range []struct {
		field string
		is    any
		bad   bool
		want  string
	}{
		{"peft_type", s.Type, s.Type != "LORA", "LORA"},
		{"r", s.Rank, s.Rank < 1, "1 or more"},
		{"lora_alpha", s.Alpha, !(s.Alpha > 0), "a positive number"},
		{"bias", s.Bias, s.Bias != "" && s.Bias != "none", "none"},
		{"use_dora", s.DoRA, s.DoRA, "false"},
		{"fan_in_fan_out", s.FanInFanOut, s.FanInFanOut, "false"},
		{"rank_pattern", s.RankPattern, !empty(s.RankPattern), "none: one rank for all matrices"},
		{"alpha_pattern", s.AlphaPattern, !empty(s.AlphaPattern), "none: one alpha for all matrices"},
		{"modules_to_save", s.Saved, len(s.Saved) > 0, "none: this program changes matrices by LoRA alone"},
	} {
		if wrong.bad {
			return nil, &Error{path, wrong.field, fmt.Sprintf("is %v, expected %s", wrong.is, wrong.want)}
		}
	}
	return &s, nil
}

func empty(pattern any) bool {
	m, ok := pattern.(map[string]any)
	return pattern == nil || ok && len(m) == 0
}

// parsePEFT reads the adapter in the bytes of the file at path. Rows of B of queries and keys are brought from the order of the Hugging
// Face models into the GGUF's.
func parsePEFT(path string, data []byte, s *peftSettings, base *File) (*Adapter, error) {
	tensors, err := parseSafetensors(path, data)
	if err != nil {
		return nil, err
	}
	alpha := s.Alpha
	if s.RootOfRank { // then the scale is alpha/√r
		alpha *= math.Sqrt(float64(s.Rank))
	}
	b := adapterBuilder{path: path, base: base, Adapter: Adapter{Architecture: base.Architecture(), Alpha: float32(alpha)}}
	for _, t := range tensors {
		name, isA, ok := fromPEFT(t.name)
		if !ok || len(t.shape) != 2 {
			return nil, &Error{path, tensorField(t.name), fmt.Sprintf("of shape %v has no place in the LoRA of a model of the Llama family", t.shape)}
		}
		rows, cols := t.shape[0], t.shape[1]
		rank := rows
		if !isA {
			rank = cols
		}
		if rank != s.Rank {
			return nil, &Error{path, tensorField(t.name), fmt.Sprintf("has rank %d, %s says %d", rank, peftConfig, s.Rank)}
		}
		values := make([]float32, rows*cols)
		kernel.Dequantize(t.kind, values, t.data)
		if !isA {
			heads, err := base.heads(name)
			if err != nil {
				return nil, err
			}
			if heads > 0 && rows%(2*heads) != 0 {
				return nil, &Error{path, tensorField(t.name), fmt.Sprintf("has %d rows, expected an even number for each of %d heads", rows, heads)}
			}
			values = reorderHeads(values, cols, heads, true)
		}
		if err := b.add(t.name, name, isA, rows, cols, values); err != nil {
			return nil, err
		}
	}
	return b.finish()
}

// WritePEFT writes the adapter to the folder dir, made if it is missing, as PEFT loads it for the model that base was converted from.
func (a *Adapter) WritePEFT(dir string, base *File) error {
	if a.beyondLoRA() {
		return &Error{dir, "adapter", "acts on final blocks alone, hides sinks or has link tokens, which PEFT's LoRA cannot say; expected one that does not"}
	}
	var tensors []safetensor
	targets := map[string]bool{}
	rank := 0
	for _, c := range a.Changes {
		name, module, ok := toPEFT(c.Tensor)
		if !ok {
			return &Error{dir, tensorField(c.Tensor), "has no place in PEFT's LoRA of a model of the Llama family"}
		}
		if rank == 0 {
			rank = c.Rank
		}
		if c.Rank != rank {
			return &Error{dir, tensorField(c.Tensor), fmt.Sprintf("has rank %d, others %d; expected one rank", c.Rank, rank)}
		}
		heads, err := base.heads(c.Tensor)
		if err != nil {
			return err
		}
		targets[module] = true
		tensors = append(tensors, safetensor{name: name + peftA, shape: []int{c.Rank, c.In}, values: c.A},
			safetensor{name: name + peftB, shape: []int{c.Out, c.Rank}, values: reorderHeads(c.B, c.Rank, heads, false)})
	}
	data, err := encodeSafetensors(tensors)
	if err != nil {
		return err
	}
	config, err := json.MarshalIndent(map[string]any{
		"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": a.Alpha, "lora_dropout": 0.0, "bias": "none",
		"target_modules": slices.Sorted(maps.Keys(targets)),
	}, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, peftWeights), data); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, peftConfig), config)
}

const (
	peftLayers = "base_model.model.model.layers."
	peftA      = ".lora_A.weight"
	peftB      = ".lora_B.weight"
)

// fromPEFT returns the GGUF tensor that a tensor of PEFT's belongs to.
func fromPEFT(name string) (tensor string, isA, ok bool) {
	for _, m := range peftModules {
		for _, half := range []string{peftA, peftB} {
			if rest, found := strings.CutSuffix(name, "."+m.module+half); found {
				layer, found := strings.CutPrefix(rest, peftLayers)
				return "blk." + layer + "." + m.tensor + ".weight", half == peftA, found
			}
		}
	}
	return "", false, false
}

// toPEFT returns PEFT's name for a GGUF tensor, without what tells A from B, and the last part of its module's.
func toPEFT(tensor string) (name, module string, ok bool) {
	for _, m := range peftModules {
		if rest, found := strings.CutSuffix(tensor, "."+m.tensor+".weight"); found {
			layer, found := strings.CutPrefix(rest, "blk.")
			return peftLayers + layer + "." + m.module, m.module[strings.LastIndexByte(m.module, '.')+1:], found
		}
	}
	return "", "", false
}

// heads returns how many heads the rows of a tensor of queries or keys are, or 0 for other tensors.
func (f *File) heads(tensor string) (int, error) {
	key := f.Architecture() + ".attention.head_count"
	n, ok := f.Uint(key)
	switch {
	case strings.HasSuffix(tensor, ".attn_q.weight"):
	case strings.HasSuffix(tensor, ".attn_k.weight"):
		if kv, has := f.Uint(key + "_kv"); has {
			n = kv
		}
	default:
		return 0, nil
	}
	if err := f.Err(); err != nil {
		return 0, err
	}
	if !ok || n == 0 || n > 1<<16 {
		return 0, f.Errorf(metadataField(key), "is missing or %d, expected the number of heads", n)
	}
	return int(n), nil
}

// reorderHeads brings rows of a matrix from the order in which the halves of a head turn together (row j·D/2 + i of D) into the GGUF's,
// where neighbours do (row 2i + j), or back. Without heads rows stay.
func reorderHeads(m []float32, cols, heads int, toGGUF bool) []float32 {
	if heads == 0 {
		return m
	}
	out := make([]float32, len(m))
	d := len(m) / cols / heads
	for h := range heads {
		for r := range d {
			from, to := h*d+r%2*(d/2)+r/2, h*d+r
			if !toGGUF {
				from, to = to, from
			}
			copy(out[to*cols:][:cols], m[from*cols:][:cols])
		}
	}
	return out
}

// A safetensor is a named array of a .safetensors file, read (kind, data) or to be written (values).
type safetensor struct {
	name   string
	shape  []int // the last dimension is contiguous
	kind   kernel.Type
	data   []byte
	values []float32
}

// safetensorKinds are the number formats that are read.
var safetensorKinds = map[string]kernel.Type{"F32": kernel.F32, "F16": kernel.F16, "BF16": kernel.BF16}

// safetensorHeader is the length of the longest header that is read, the format's own limit.
const safetensorHeader = 100_000_000

// parseSafetensors reads the bytes of the file at path: a length, a header in JSON that names each array's type, shape and place, and
// the data. Arrays come sorted by name.
func parseSafetensors(path string, file []byte) ([]safetensor, error) {
	fail := func(field, format string, args ...any) error {
		return &Error{path, field, fmt.Sprintf(format, args...)}
	}
	if len(file) < 8 {
		return nil, fail("file", "has %d bytes, expected a safetensors file", len(file))
	}
	n, rest := binary.LittleEndian.Uint64(file), file[8:]
	if n > uint64(len(rest)) || n > safetensorHeader {
		return nil, fail("header", "has %s bytes, the file %s", grouped(n), grouped(uint64(len(file))))
	}
	header, data := rest[:n], rest[n:]
	var entries map[string]json.RawMessage
	if err := json.Unmarshal(header, &entries); err != nil {
		return nil, fail("header", "%v", err)
	}
	delete(entries, "__metadata__")
	var tensors []safetensor
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		var e struct {
			DType   string   `json:"dtype"`
			Shape   []uint32 `json:"shape"`
			Offsets []uint64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(entries[name], &e); err != nil {
			return nil, fail(tensorField(name), "%v", err)
		}
		kind, ok := safetensorKinds[e.DType]
		if !ok {
			return nil, fail(tensorField(name), "is of type %q, expected F32, F16 or BF16", e.DType)
		}
		if len(e.Offsets) != 2 || e.Offsets[0] > e.Offsets[1] || e.Offsets[1] > uint64(len(data)) {
			return nil, fail(tensorField(name), "lies at %d of %s bytes of data", e.Offsets, grouped(uint64(len(data))))
		}
		t := safetensor{name: name, kind: kind, data: data[e.Offsets[0]:e.Offsets[1]]}
		values := uint64(len(t.data)) / uint64(kind.BlockBytes())
		count := uint64(1)
		for _, n := range e.Shape {
			if n == 0 || count > values/uint64(n) {
				count = 0
				break
			}
			count *= uint64(n)
			t.shape = append(t.shape, int(n))
		}
		if count == 0 || count*uint64(kind.BlockBytes()) != uint64(len(t.data)) {
			return nil, fail(tensorField(name), "of shape %d and type %s has %s bytes", e.Shape, e.DType, grouped(uint64(len(t.data))))
		}
		tensors = append(tensors, t)
	}
	return tensors, nil
}

// encodeSafetensors returns a file of the tensors' values as F32.
func encodeSafetensors(tensors []safetensor) ([]byte, error) {
	type entry struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	entries := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	var data []byte
	for _, t := range tensors {
		from := len(data)
		for _, v := range t.values {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		entries[t.name] = entry{"F32", t.shape, [2]int{from, len(data)}}
	}
	header, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	for len(header)%8 != 0 { // so that the data is aligned
		header = append(header, ' ')
	}
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header, data), nil
}

// replaceFile makes data the content of the file at path. path is a whole file afterwards or what it was.
func replaceFile(path string, data []byte) (err error) {
	part, err := lockPart(path + partSuffix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, part.Close()) }()
	if err := part.Truncate(0); err != nil {
		return err
	}
	if _, err := part.Write(data); err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	if err := part.Sync(); err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return os.Rename(part.Name(), path)
}
