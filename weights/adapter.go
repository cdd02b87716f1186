package weights

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// An Adapter is low-rank changes to matrices of a model (LoRA, arXiv 2106.09685). OpenAdapter checks that they fit the base:
//  1. Each changes another matrix, and they stand in the order of the base's tensors.
//  2. In, Out and Rank are above 0, A and B have as many values as they say, and all are finite.
type Adapter struct {
	Architecture string // of the model, as general.architecture has it
	Alpha        float32
	FinalOnly    bool // it acts on the tokens of a prompt's final block and of the answer; the blocks before are the model's own

	// HiddenSinks is how many tokens at the start of each independent block but the prompt's first no other block sees. A block computed
	// alone makes its first token an attention sink (arXiv 2309.17453); a prompt in full attention has one, one of ten passages eleven.
	HiddenSinks int

	// LinkTokens are the embeddings, [C] each, of a few tokens that stand behind each passage in block mode. They see all before them, so that later
	// blocks learn from them what passages computed alone cannot tell each other (KVLink, arXiv 2502.16002).
	LinkTokens [][]float32

	Changes []Change
}

// beyondLoRA says that the adapter is more than changes to matrices, for all tokens alike.
func (a *Adapter) beyondLoRA() bool { return a.FinalOnly || a.HiddenSinks > 0 || a.LinkTokens != nil }

// A Change makes W of a tensor W + Alpha/Rank · B·A.
type Change struct {
	Tensor        string // as the base names it: "blk.0.attn_q.weight"
	In, Out, Rank int
	A             []float32 // [Rank × In]
	B             []float32 // [Out × Rank], rows in the order of the base's
}

// Scale is Alpha/Rank.
func (a *Adapter) Scale(c *Change) float32 { return a.Alpha / float32(c.Rank) }

// OpenAdapter reads the adapter at path for the model in base: a GGUF file in llama.cpp's layout, or a folder as PEFT saves it, or the
// .safetensors file in one. What does not fit the base is an *Error.
func OpenAdapter(path string, base *File) (*Adapter, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir() || strings.HasSuffix(path, ".safetensors"):
		return openPEFT(path, base)
	}
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	a, err := f.adapter(base)
	return a, errors.Join(err, f.Close())
}

// ReadAdapter is OpenAdapter of a GGUF file's bytes; name stands for its path in errors.
func ReadAdapter(name string, data []byte, base *File) (*Adapter, error) {
	f := &File{path: name, data: data}
	if err := parse(f); err != nil {
		return nil, err
	}
	return f.adapter(base)
}

// Fingerprint is the BLAKE3 hash of all that the adapter changes, whatever file it was read from.
func (a *Adapter) Fingerprint() [32]byte {
	h := blake3.New()
	number := func(n uint64) { h.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	text := func(s string) { number(uint64(len(s))); h.WriteString(s) }
	values := func(v []float32) {
		b := make([]byte, 0, 4*len(v))
		for _, x := range v {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
		}
		h.Write(b)
	}
	text(a.Architecture)
	values([]float32{a.Alpha})
	if a.FinalOnly {
		text(finalOnlyKey)
	}
	if a.HiddenSinks > 0 {
		text(hiddenSinksKey)
		text(fmt.Sprint(a.HiddenSinks))
	}
	if a.LinkTokens != nil {
		text(linkTokensTensor)
		for _, token := range a.LinkTokens {
			number(uint64(len(token)))
			values(token)
		}
	}
	for i := range a.Changes {
		c := &a.Changes[i]
		text(c.Tensor)
		number(uint64(c.In))
		number(uint64(c.Out))
		number(uint64(c.Rank))
		values(c.A)
		values(c.B)
	}
	return [32]byte(h.Sum(nil))
}

// These are no limits of the computation: a file that has more is damaged.
const (
	MaxHiddenSinks = 64
	MaxLinkTokens  = 64 // behind each passage
)

// The keys of an adapter's metadata, beside general.architecture.
const (
	typeKey        = "general.type"
	adapterTypeKey = "adapter.type"
	alphaKey       = "adapter.lora.alpha"
	finalOnlyKey   = "tessera.adapter.final_only"   // ours; absent: false
	hiddenSinksKey = "tessera.adapter.hidden_sinks" // ours; absent: 0
)

// linkTokensTensor is the tensor of an adapter's link tokens, ours; absent: none.
const linkTokensTensor = "tessera.link_tokens"

// adapter reads f as an adapter of base.
func (f *File) adapter(base *File) (_ *Adapter, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			if _, fault := v.(interface{ Addr() uintptr }); !fault {
				panic(v)
			}
			err = f.Errorf("file", "cannot be read to its end any more: it was cut short since it was opened, or its disk failed")
		}
	}()
	for _, want := range []struct{ key, value string }{{typeKey, "adapter"}, {adapterTypeKey, "lora"}} {
		if got, _ := f.String(want.key); got != want.value {
			return nil, f.Errorf(metadataField(want.key), "is %q, expected %q: this is no LoRA adapter", got, want.value)
		}
	}
	alpha, ok := f.Float(alphaKey)
	if err := f.Err(); err != nil {
		return nil, err
	}
	if !ok {
		return nil, f.Errorf(metadataField(alphaKey), "is missing, expected a number")
	}
	final, _ := f.Bool(finalOnlyKey)
	sinks, _ := f.Uint(hiddenSinksKey)
	if sinks > MaxHiddenSinks {
		return nil, f.Errorf(metadataField(hiddenSinksKey), "is %d, expected at most %d", sinks, MaxHiddenSinks)
	}
	if err := f.Err(); err != nil {
		return nil, err
	}
	b := adapterBuilder{path: f.path, base: base, Adapter: Adapter{Architecture: f.Architecture(), Alpha: float32(alpha), FinalOnly: final, HiddenSinks: int(sinks)}}
	for _, t := range f.tensors {
		if t.Name == linkTokensTensor {
			if b.LinkTokens, err = f.linkTokens(&t, base); err != nil {
				return nil, err
			}
			continue
		}
		name, isA := strings.CutSuffix(t.Name, ".lora_a")
		if !isA {
			var isB bool
			if name, isB = strings.CutSuffix(t.Name, ".lora_b"); !isB {
				return nil, f.Errorf(tensorField(t.Name), "has a name that ends neither in .lora_a nor in .lora_b: this program knows no such change")
			}
		}
		if len(t.Shape) != 2 {
			return nil, f.Errorf(tensorField(t.Name), "has %d dimensions, expected 2", len(t.Shape))
		}
		values := make([]float32, t.Shape[0]*t.Shape[1])
		kernel.Dequantize(t.Type, values, t.Data)
		if err := b.add(t.Name, name, isA, t.Shape[1], t.Shape[0], values); err != nil {
			return nil, err
		}
	}
	return b.finish()
}

// linkTokens reads the embeddings of an adapter's link tokens.
func (f *File) linkTokens(t *Tensor, base *File) ([][]float32, error) {
	embedding, ok := base.Tensor("token_embd.weight")
	if !ok {
		return nil, base.Errorf(tensorField("token_embd.weight"), "is missing")
	}
	if len(t.Shape) != 2 || t.Shape[0] != embedding.Shape[0] || t.Shape[1] > MaxLinkTokens {
		return nil, f.Errorf(tensorField(t.Name), "is %v, expected embeddings of %d values, of at most %d tokens", t.Shape, embedding.Shape[0], MaxLinkTokens)
	}
	values := make([]float32, t.Shape[0]*t.Shape[1])
	kernel.Dequantize(t.Type, values, t.Data)
	if err := checkFinite(f.path, t.Name, values); err != nil {
		return nil, err
	}
	return slices.Collect(slices.Chunk(values, t.Shape[0])), nil
}

// WriteGGUF writes the adapter to path as llama.cpp reads it, its values in type t, F32 or F16. path is a whole file afterwards or what it
// was.
func (a *Adapter) WriteGGUF(path string, t kernel.Type) (err error) {
	var m Metadata
	m.Set("general.architecture", a.Architecture)
	m.Set(typeKey, "adapter")
	m.Set(adapterTypeKey, "lora")
	m.Set(alphaKey, a.Alpha)
	if a.FinalOnly {
		m.Set(finalOnlyKey, true)
	}
	if a.HiddenSinks > 0 {
		m.Set(hiddenSinksKey, uint32(a.HiddenSinks))
	}
	var tensors []Tensor
	var values [][]float32
	for _, c := range a.Changes {
		tensors = append(tensors,
			Tensor{Name: c.Tensor + ".lora_a", Type: t, Shape: []int{c.In, c.Rank}},
			Tensor{Name: c.Tensor + ".lora_b", Type: t, Shape: []int{c.Rank, c.Out}})
		values = append(values, c.A, c.B)
	}
	if a.LinkTokens != nil {
		tensors = append(tensors, Tensor{Name: linkTokensTensor, Type: t, Shape: []int{len(a.LinkTokens[0]), len(a.LinkTokens)}})
		values = append(values, slices.Concat(a.LinkTokens...))
	}
	w, err := Create(path, &m, tensors)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()
	for i, v := range values {
		data := make([]byte, t.RowBytes(len(v)))
		if err := kernel.Quantize(t, data, v); err != nil {
			return &Error{path, tensorField(tensors[i].Name), err.Error()}
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return w.Commit()
}

// adapterBuilder collects an adapter's matrices, in any order, as a file at path has them.
type adapterBuilder struct {
	Adapter
	path string
	base *File
}

// add takes A or B of the change to a tensor of the base; name is the file's for it.
func (b *adapterBuilder) add(name, tensor string, isA bool, rows, cols int, values []float32) error {
	fail := func(format string, args ...any) error {
		return &Error{b.path, tensorField(name), fmt.Sprintf(format, args...)}
	}
	of, ok := b.base.Tensor(tensor)
	if !ok || len(of.Shape) != 2 {
		return fail("changes %s, which is no matrix of %s", printable(tensor), b.base.path)
	}
	if err := checkFinite(b.path, name, values); err != nil {
		return err
	}
	i := slices.IndexFunc(b.Changes, func(c Change) bool { return c.Tensor == tensor })
	if i < 0 {
		i = len(b.Changes)
		b.Changes = append(b.Changes, Change{Tensor: tensor, In: of.Shape[0], Out: of.Shape[1]})
	}
	c := &b.Changes[i]
	side, rank, rest, want := &c.A, rows, cols, c.In
	if !isA {
		side, rank, rest, want = &c.B, cols, rows, c.Out
	}
	switch {
	case *side != nil:
		return fail("is there twice")
	case rest != want:
		return fail("is %d × %d; %s has %d, expected as many", rows, cols, printable(tensor), want)
	case c.Rank != 0 && c.Rank != rank:
		return fail("has rank %d, its other half %d", rank, c.Rank)
	}
	c.Rank, *side = rank, values
	return nil
}

// checkFinite says which value of a tensor of the file at path is no finite number.
func checkFinite(path, tensor string, values []float32) error {
	for i, v := range values {
		if v-v != 0 {
			return &Error{path, tensorField(tensor), fmt.Sprintf("value %d is %v, expected a finite number", i, v)}
		}
	}
	return nil
}

// finish returns the adapter if it is whole.
func (b *adapterBuilder) finish() (*Adapter, error) {
	if b.Architecture != b.base.Architecture() {
		return nil, &Error{b.path, metadataField("general.architecture"), fmt.Sprintf("is %q, but %s is a %q", b.Architecture, b.base.path, b.base.Architecture())}
	}
	if !(b.Alpha-b.Alpha == 0) {
		return nil, &Error{b.path, metadataField(alphaKey), fmt.Sprintf("is %v, expected a finite number", b.Alpha)}
	}
	if len(b.Changes) == 0 {
		return nil, &Error{b.path, "file", "has no tensors, expected pairs of matrices"}
	}
	for _, c := range b.Changes {
		if c.A == nil || c.B == nil {
			return nil, &Error{b.path, tensorField(c.Tensor), "has only one of the two matrices of its change"}
		}
	}
	slices.SortFunc(b.Changes, func(x, y Change) int { return b.base.byName[x.Tensor] - b.base.byName[y.Tensor] })
	return &b.Adapter, nil
}
