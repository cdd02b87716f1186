package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
)

// tokens are n random ids of the tiny models.
func tokens(seed uint64, n int) []int32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = rng.Int32N(256)
	}
	return ids
}

// forward runs a batch in a workspace of its own.
func forward(t testing.TB, m *Model, threads int, batch ...Sequence) {
	t.Helper()
	w := m.NewWorkspace(threads)
	defer w.Close()
	if err := w.Forward(t.Context(), batch, nil); err != nil {
		t.Fatal(err)
	}
}

// logits are those of every token of one block with nothing before.
func logits(t testing.TB, m *Model, ids []int32) []float32 {
	t.Helper()
	var all []float32
	forward(t, m, 2, Sequence{Tokens: ids, KV: m.NewKV(kv.F16, len(ids)), Logits: collect(&all)})
	return all
}

func collect(all *[]float32) func(int, []float32) {
	return func(_ int, l []float32) { *all = append(*all, l...) }
}

// testdata/reference.json was made by testdata/extract.py from a float64 reference.
func TestForward_AgreesWithFloat64Reference(t *testing.T) {
	raw, err := os.ReadFile("testdata/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Model, Name string
		IDs         []int32
		Blocks      []int     // lengths, the last one the final block's; null: full attention
		Mask        []int     `json:"loss_mask"`
		Loss        float64   // mean of -ln p over the marked tokens
		Last        []float64 `json:"last_logits"`
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, typ := range []struct {
		kv           kv.Type
		logits, loss float64
	}{{kv.F32, 2e-5, 1e-5}, {kv.F16, 2e-2, 5e-3}, {kv.BF16, 2e-1, 5e-2}} {
		worst := 0.0
		for _, c := range cases {
			m := load(t, c.Model)
			lens := c.Blocks
			if lens == nil {
				lens = []int{len(c.IDs)}
			}
			var batch []Sequence
			var past []*KV
			at := 0
			for i, n := range lens {
				s := Sequence{Tokens: c.IDs[at : at+n], KV: m.NewKV(typ.kv, n)}
				past = append(past, s.KV)
				if i == len(lens)-1 {
					s.Past = past[:i]
				}
				at += n
				batch = append(batch, s)
			}
			final := &batch[len(batch)-1]
			first := at - len(final.Tokens)
			var last []float32
			loss, targets := 0.0, 0
			final.Logits = func(i int, l []float32) {
				last = append(last[:0], l...)
				if next := first + i + 1; next < len(c.IDs) && c.Mask[next] == 1 {
					loss -= logProbability(l, int(c.IDs[next]))
					targets++
				}
			}
			forward(t, m, 2, batch...)
			name := fmt.Sprintf("%s, %s, %v", c.Model, c.Name, typ.kv)
			for i, want := range c.Last {
				off := math.Abs(float64(last[i]) - want)
				worst = max(worst, off)
				if !(off <= typ.logits) {
					t.Errorf("%s: last logit %d = %v, want %v", name, i, last[i], want)
				}
			}
			marked := 0
			for _, m := range c.Mask {
				marked += m
			}
			if loss /= float64(targets); targets != marked || !(math.Abs(loss-c.Loss) <= typ.loss) {
				t.Errorf("%s: loss %v over %d tokens, want %v over %d", name, loss, targets, c.Loss, marked)
			}
		}
		t.Logf("%v: the worst of %d cases is off by %.2g", typ.kv, len(cases), worst)
	}
}

func logProbability(l []float32, id int) float64 {
	sum := 0.0
	for _, v := range l {
		sum += math.Exp(float64(v))
	}
	return float64(l[id]) - math.Log(sum)
}

// A prompt under test: blocks of random tokens, each with the earlier blocks it attends to.
type plan struct {
	lens []int
	past [][]int
}

// outcome is what Forward made of a plan: each block's KV and all of its logits.
type outcome struct {
	kv     []*KV
	logits [][]float32
}

// sequences are the plan's blocks, with room for what they hold.
func (p plan) sequences(m *Model, typ kv.Type) ([]Sequence, *outcome) {
	o := &outcome{logits: make([][]float32, len(p.lens))}
	all := make([]Sequence, len(p.lens))
	for i, n := range p.lens {
		o.kv = append(o.kv, m.NewKV(typ, n))
		all[i] = Sequence{Tokens: tokens(uint64(i), n), KV: o.kv[i], Logits: collect(&o.logits[i])}
		for _, j := range p.past[i] {
			all[i].Past = append(all[i].Past, o.kv[j])
		}
	}
	return all, o
}

// alone computes the plan block by block on one thread, each block at once.
func (p plan) alone(t *testing.T, m *Model, typ kv.Type) *outcome {
	t.Helper()
	all, o := p.sequences(m, typ)
	for _, s := range all {
		forward(t, m, 1, s)
	}
	return o
}

func (o *outcome) sameBits(t *testing.T, name string, want *outcome) {
	t.Helper()
	for i := range o.kv {
		if o.kv[i].Len != want.kv[i].Len {
			t.Errorf("%s: block %d has %d tokens, want %d", name, i, o.kv[i].Len, want.kv[i].Len)
		}
		if !bytes.Equal(o.kv[i].Payload, want.kv[i].Payload) {
			t.Errorf("%s: the KV of block %d differs from the block's alone", name, i)
		}
		if !slices.Equal(o.logits[i], want.logits[i]) {
			t.Errorf("%s: the logits of block %d differ from the block's alone", name, i)
		}
	}
}

func TestForward_BatchAndThreads_SameBits(t *testing.T) {
	// More than MaxRows tokens, so that blocks are cut wherever a pass ends. The last one attends to all.
	p := plan{
		lens: []int{1, 5, 100, 300, 250, 17, 513, 21},
		past: [][]int{nil, nil, nil, nil, nil, nil, nil, {3, 0, 1, 2, 6, 4, 5}},
	}
	for _, c := range []struct {
		name string
		m    *Model
		typ  kv.Type
	}{
		{"tied", load(t, "tiny-tied.gguf"), kv.F16}, {"untied", load(t, "tiny-untied.gguf"), kv.F32},
		{"tied", load(t, "tiny-tied.gguf"), kv.BF16}, {"wide", wide(t), kv.Q8},
	} {
		m := c.m
		want := p.alone(t, m, c.typ)
		for threads := 1; threads <= 3; threads++ {
			for _, order := range [][]int{{0, 1, 2, 3, 4, 5, 6, 7}, {6, 5, 4, 3, 2, 1, 0, 7}, {3, 1, 6, 0, 5, 2, 4, 7}} {
				all, o := p.sequences(m, c.typ)
				var batch []Sequence
				for _, i := range order {
					batch = append(batch, all[i])
				}
				forward(t, m, threads, batch...)
				o.sameBits(t, fmt.Sprintf("%s, %v, order %v, %d threads", c.name, c.typ, order, threads), want)
			}
		}
	}
}

// A block that is continued, token by token as in decoding or in larger steps, is the block computed at once.
func TestForward_ContinuedBlock_SameBits(t *testing.T) {
	m := wide(t)
	p := plan{lens: []int{90, 60}, past: [][]int{nil, {0}}}
	for _, typ := range types {
		want := p.alone(t, m, typ)
		for _, step := range []int{1, 2, 17} {
			all, o := p.sequences(m, typ)
			w := m.NewWorkspace(2)
			for _, s := range all {
				for rest := s.Tokens; len(rest) > 0; rest = rest[len(s.Tokens):] {
					s.Tokens = rest[:min(step, len(rest))]
					if err := w.Forward(t.Context(), []Sequence{s}, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.Close()
			o.sameBits(t, fmt.Sprintf("%v, %d tokens at a time", typ, step), want)
		}
	}
}

var types = []kv.Type{kv.F32, kv.F16, kv.BF16, kv.Q8}

// wide is the tiny model with its values in half as many heads, of 32, so that it can store each type.
func wide(t testing.TB) *Model {
	t.Helper()
	v := tiny(t, "tiny-tied.gguf")
	v.set("llama.attention.head_count", uint32(2))
	v.set("llama.attention.head_count_kv", uint32(1))
	m, err := New(v.write(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A narrower type is an approximation of float32: the logits come near those, the nearer the more bits it has, and are others.
func TestForward_StoredTypes_AreNearFloat32(t *testing.T) {
	m := wide(t)
	p := plan{lens: []int{90, 60}, past: [][]int{nil, {0}}}
	exact := p.alone(t, m, kv.F32).logits[1]
	for _, c := range []struct {
		typ         kv.Type
		least, most float64 // of the mean distance
	}{{kv.F16, 1e-5, 4e-3}, {kv.BF16, 1e-4, 3e-2}, {kv.Q8, 1e-4, 1e-1}} {
		mean := 0.0
		for i, v := range p.alone(t, m, c.typ).logits[1] {
			mean += math.Abs(float64(v-exact[i])) / float64(len(exact))
		}
		t.Logf("%v: logits are off by %.2g in the mean", c.typ, mean)
		if !(mean >= c.least && mean <= c.most) {
			t.Errorf("%v: logits are off by %g in the mean, want %g to %g", c.typ, mean, c.least, c.most)
		}
	}
}

func TestForward_TypeThatTheHeadsDoNotFit_IsSaid(t *testing.T) {
	m := load(t, "tiny-tied.gguf") // heads of 16
	w := m.NewWorkspace(1)
	defer w.Close()
	for typ, want := range map[kv.Type]string{
		kv.Q8: "head dimension: found 16, expected a multiple of 32 for q8",
		9:     "KV type: found type 9, expected f16 (1), f32 (2), bf16 (3) or q8 (4)",
	} {
		err := w.Forward(t.Context(), []Sequence{{Tokens: tokens(1, 3), KV: m.NewKV(typ, 3)}}, nil)
		if err == nil || err.Error() != want {
			t.Errorf("%v: %v, want %q", typ, err, want)
		}
	}
}

func TestForward_DependentBlocksInOneBatch_EqualOneAfterAnother(t *testing.T) {
	m := load(t, "tiny-untied.gguf")
	p := plan{
		lens: []int{200, 180, 40, 250, 30, 1},
		past: [][]int{nil, {0}, nil, {0, 1, 2}, nil, {0, 1, 2, 3, 4}},
	}
	want := p.alone(t, m, kv.F16)
	for threads := 1; threads <= 3; threads++ {
		all, o := p.sequences(m, kv.F16)
		forward(t, m, threads, all...)
		o.sameBits(t, fmt.Sprintf("%d threads", threads), want)
	}
}

// Full attention over a prompt is the same however it is cut into dependent blocks: a system block and a final one, too.
func TestForward_OneBlock_EqualsSeveralDependentOnes(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	ids := tokens(7, 300)
	var whole []float32
	forward(t, m, 1, Sequence{Tokens: ids, KV: m.NewKV(kv.F32, len(ids)), Logits: collect(&whole)})
	for _, lens := range [][]int{{100, 60, 140}, {30, 270}, {1, 1, 297, 1}} {
		var cut []float32
		var batch []Sequence
		var past []*KV
		at := 0
		for _, n := range lens {
			block := m.NewKV(kv.F32, n)
			batch = append(batch, Sequence{Tokens: ids[at : at+n], Past: slices.Clone(past), KV: block, Logits: collect(&cut)})
			past = append(past, block)
			at += n
		}
		forward(t, m, 2, batch...)
		for i := range whole {
			if !(math.Abs(float64(cut[i]-whole[i])) <= 5e-5) { // float32, summed and turned in another order
				t.Fatalf("blocks %v: logit %d of token %d = %v, as one block %v", lens, i%256, i/256, cut[i], whole[i])
			}
		}
	}
}

// Where every earlier block's keys stay as if it began the prompt, the blocks are a set: their order does not matter. The first one
// begins the prompt anyhow, and what attends to it alone is the same.
func TestForward_Unmoved_BlocksHaveNoOrder(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	final := func(unmoved bool, order ...int) (out []float32) {
		var batch []Sequence
		for _, i := range order {
			ids := tokens(uint64(20+i), 30+7*i)
			batch = append(batch, Sequence{Tokens: ids, KV: m.NewKV(kv.F32, len(ids))})
		}
		last := Sequence{Tokens: tokens(9, 25), KV: m.NewKV(kv.F32, 25), Unmoved: unmoved, Logits: collect(&out)}
		for i := range batch {
			last.Past = append(last.Past, batch[i].KV)
		}
		forward(t, m, 2, append(batch, last)...)
		return out
	}
	apart := func(a, b []float32) (most float64) {
		for i := range a {
			most = max(most, math.Abs(float64(a[i]-b[i])))
		}
		return most
	}
	if !slices.Equal(final(true, 1), final(false, 1)) {
		t.Error("one earlier block: the logits differ from those with its keys moved to where it stands, which is where they were")
	}
	if d := apart(final(true, 0, 1, 2), final(true, 2, 0, 1)); !(d <= 5e-5) {
		t.Errorf("logits change by %g with the order of the earlier blocks", d)
	}
	if d := apart(final(true, 0, 1, 2), final(false, 0, 1, 2)); !(d > 1e-3) {
		t.Errorf("logits are only %g from those with moved keys: the test shows nothing", d)
	}
}

// The output head takes rows of several sequences together: many that want one token's logits each, as answers that grow do, and
// some that want none or all.
func TestForward_LogitsOfManySequences_AreEachOnesOwn(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	p := plan{}
	for i := range 40 {
		p.lens, p.past = append(p.lens, 1+i%7), append(p.past, nil)
	}
	want := p.alone(t, m, kv.F16)
	for _, from := range []int{0, 3, 6} {
		all, o := p.sequences(m, kv.F16)
		for i := range all {
			all[i].LogitsFrom = from
		}
		forward(t, m, 2, all...)
		for i, n := range p.lens {
			if tail := want.logits[i][min(from, n)*m.Vocabulary:]; !slices.Equal(o.logits[i], tail) {
				t.Fatalf("from token %d on, sequence %d: %d logits that are not the %d of the sequence alone", from, i, len(o.logits[i]), len(tail))
			}
		}
	}
}

func TestForward_Logits_FromTheTokenAskedFor(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	ids := tokens(8, 600) // two passes
	whole := logits(t, m, ids)
	for _, from := range []int{0, 1, 499, 511, 512, 513, 599, 600} {
		next := from
		forward(t, m, 2, Sequence{Tokens: ids, KV: m.NewKV(kv.F16, 600), LogitsFrom: from, Logits: func(i int, l []float32) {
			if i != next || !slices.Equal(l, whole[i*256:][:256]) {
				t.Fatalf("from %d: token %d where %d was due, or other logits", from, i, next)
			}
			next++
		}})
		if next != 600 {
			t.Errorf("from %d: logits up to token %d, want 599", from, next-1)
		}
	}
}

func TestForward_Biases_AreAdded(t *testing.T) {
	// Value and output biases have a known effect where attention has one key to look at: its value is v = W·x + b, and the
	// outcome o = U·v + c. So biases b, c do what an output bias of U·b + c does.
	v := tiny(t, "tiny-tied.gguf")
	b, c := make([]float32, 32), make([]float32, 64)
	for i := range b {
		b[i] = float32(i%5) - 2
	}
	for i := range c {
		c[i] = float32(i%3) - 1
	}
	u := v.values(t, "blk.0.attn_output.weight")
	folded := slices.Clone(c)
	for o := range folded {
		for i := range 64 { // query head h reads KV head h/2
			folded[o] += u[o*64+i] * b[i/32*16+i%16]
		}
	}
	apart, together := tiny(t, "tiny-tied.gguf"), tiny(t, "tiny-tied.gguf")
	apart.put("blk.0.attn_v.bias", b, 32)
	apart.put("blk.0.attn_output.bias", c, 64)
	together.put("blk.0.attn_output.bias", folded, 64)
	compare := func(name string, a, b *variant, ids []int32, equal bool) {
		t.Helper()
		ma, err := New(a.write(t))
		if err != nil {
			t.Fatal(err)
		}
		mb, err := New(b.write(t))
		if err != nil {
			t.Fatal(err)
		}
		la, lb := logits(t, ma, ids), logits(t, mb, ids)
		off := 0.0
		for i := range la {
			off = max(off, math.Abs(float64(la[i]-lb[i])))
		}
		if equal != (off < 0.01) {
			t.Errorf("%s: logits are %g apart", name, off)
		}
	}
	one, many := tokens(9, 1), tokens(9, 30)
	compare("value and output bias, folded", apart, together, one, true)
	compare("value and output bias, or none", apart, tiny(t, "tiny-tied.gguf"), one, false)

	// A bias of the keys that is the same for all, not turned, would move all scores alike; turned, it tells. The bias of the
	// queries shows against keys.
	for _, name := range []string{"blk.0.attn_q.bias", "blk.0.attn_k.bias"} {
		biased := tiny(t, "tiny-tied.gguf")
		n := map[string]int{"blk.0.attn_q.bias": 64, "blk.0.attn_k.bias": 32}[name]
		values := make([]float32, n)
		for i := range values {
			values[i] = 3
		}
		biased.put(name, values, n)
		compare(name, biased, tiny(t, "tiny-tied.gguf"), many, false)
		compare(name+", one token", biased, tiny(t, "tiny-tied.gguf"), one, true)
	}
}

func TestForward_Progress_CountsToTheEnd(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	w := m.NewWorkspace(1)
	defer w.Close()
	var told []int
	batch := []Sequence{{Tokens: tokens(1, 700), KV: m.NewKV(kv.F16, 700)}, {KV: m.NewKV(kv.F16, 1)}, {Tokens: tokens(2, 400), KV: m.NewKV(kv.F16, 400)}}
	if err := w.Forward(t.Context(), batch, func(n int) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []int{512, 1024, 1100}) {
		t.Errorf("told %v, want 512, 1024 and 1100", told)
	}
}

// A workspace outlives what it has computed.
func TestForward_LetsGoOfTheBatch(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	w := m.NewWorkspace(1)
	defer w.Close()
	freed := make(chan int, 2)
	func() {
		past, block := m.NewKV(kv.F16, 3), m.NewKV(kv.F16, 2)
		runtime.AddCleanup(past, func(i int) { freed <- i }, 0)
		runtime.AddCleanup(&block.Payload[0], func(i int) { freed <- i }, 1)
		if err := w.Forward(t.Context(), []Sequence{{Tokens: []int32{1, 2, 3}, KV: past}, {Tokens: []int32{4, 5}, KV: block, Past: []*KV{past}}}, nil); err != nil {
			t.Fatal(err)
		}
	}()
	for range 2 {
		runtime.GC()
		select {
		case <-freed:
		case <-time.After(5 * time.Second):
			t.Fatal("keys and values of the last batch are held")
		}
	}
}

func TestForward_Canceled_LeavesBlocksAsTheyWere(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	p := plan{lens: []int{20, 700, 30}, past: [][]int{nil, {0}, {0, 1}}}
	want := p.alone(t, m, kv.F16)
	all, o := p.sequences(m, kv.F16)
	w := m.NewWorkspace(2)
	defer w.Close()
	if err := w.Forward(t.Context(), all[:1], nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := w.Forward(ctx, all[1:], func(int) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled after the first pass: %v", err)
	}
	if got := []int{o.kv[0].Len, o.kv[1].Len, o.kv[2].Len}; !slices.Equal(got, []int{20, 0, 0}) {
		t.Fatalf("afterwards blocks have %v tokens, want 20, 0, 0", got)
	}
	o.logits[1], o.logits[2] = nil, nil
	if err := w.Forward(t.Context(), all[1:], nil); err != nil {
		t.Fatal(err)
	}
	o.sameBits(t, "again", want)
}

func TestForward_BadInput_IsSaid_AndChangesNothing(t *testing.T) {
	m := load(t, "tiny-tied.gguf")
	w := m.NewWorkspace(1)
	defer w.Close()
	for _, c := range []struct {
		name   string
		tokens []int32
		room   int
		want   string
	}{
		{"negative id", []int32{3, -1}, 5, "token id -1; the vocabulary has 0 to 255"},
		{"id past the vocabulary", []int32{256}, 5, "token id 256; the vocabulary has 0 to 255"},
		{"no room", []int32{1, 2, 3}, 2, "3 tokens for a block with room for 2"},
	} {
		good, bad := m.NewKV(kv.F16, 4), m.NewKV(kv.F16, c.room)
		err := w.Forward(t.Context(), []Sequence{{Tokens: []int32{1, 2}, KV: good}, {Tokens: c.tokens, KV: bad}}, nil)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if good.Len != 0 || bad.Len != 0 || !bytes.Equal(good.Payload, make([]byte, len(good.Payload))) {
			t.Errorf("%s: blocks have %d and %d tokens, or were written to", c.name, good.Len, bad.Len)
		}
	}
	full := m.NewKV(kv.F16, 2)
	forward(t, m, 1, Sequence{Tokens: []int32{1, 2}, KV: full})
	err := w.Forward(t.Context(), []Sequence{{Tokens: []int32{3}, KV: full}}, nil)
	if want := "1 tokens for a block with room for 0"; err == nil || err.Error() != want || full.Len != 2 {
		t.Errorf("a token more than fits: %v, %d tokens in the block; want %q and 2", err, full.Len, want)
	}
}

// Weights and stored blocks are mapped files. One that becomes shorter fails the call that reads it.
func TestForward_MappedFileCutShort_IsAFaultError(t *testing.T) {
	page := int64(os.Getpagesize())
	t.Run("weights", func(t *testing.T) {
		raw, err := os.ReadFile(testenv.Tiny("tiny-tied.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "cut.gguf")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		file := open(t, path)
		m, err := New(file)
		if err != nil {
			t.Fatal(err)
		}
		within := func(addr uintptr, name string) bool {
			tensor, _ := file.Tensor(name)
			start := uintptr(unsafe.Pointer(unsafe.SliceData(tensor.Data)))
			return addr >= start && addr < start+uintptr(len(tensor.Data))
		}
		// The embedding is read by the caller, the layers' weights by the workers.
		for _, c := range []struct {
			keep      int64
			embedding bool
		}{{int64(len(raw)) / 2 / page * page, false}, {page, true}} {
			if !c.embedding && m.layers[0].query.PackedBytes() > 0 {
				continue // the workers read a copy on this path
			}
			if err := os.Truncate(path, c.keep); err != nil {
				t.Fatal(err)
			}
			w := m.NewWorkspace(2)
			block := m.NewKV(kv.F16, 600)
			err = w.Forward(t.Context(), []Sequence{{Tokens: tokens(1, 600), KV: block}}, nil)
			w.Close()
			var fault *FaultError
			if !errors.As(err, &fault) || block.Len != 0 {
				t.Fatalf("cut to %d bytes: %v, %d tokens in the block; want a FaultError and 0", c.keep, err, block.Len)
			}
			if within(fault.Addr, "token_embd.weight") != c.embedding {
				t.Errorf("cut to %d bytes: fault at %#x; in the embedding: want %v", c.keep, fault.Addr, c.embedding)
			}
		}
	})
	t.Run("stored block", func(t *testing.T) {
		m := load(t, "tiny-tied.gguf")
		past := m.NewKV(kv.F16, 300)
		forward(t, m, 2, Sequence{Tokens: tokens(1, 300), KV: past})
		path := filepath.Join(t.TempDir(), "block")
		if err := os.WriteFile(path, past.Payload, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		mapped, err := unix.Mmap(int(file.Fd()), 0, len(past.Payload), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(mapped)
		stored := &KV{Shape: past.Shape, Payload: mapped, Len: past.Len}
		ask := func(past *KV) ([]float32, *KV, error) {
			w := m.NewWorkspace(2)
			defer w.Close()
			var l []float32
			block := m.NewKV(kv.F16, 20)
			err := w.Forward(t.Context(), []Sequence{{Tokens: tokens(2, 20), Past: []*KV{past}, KV: block, Logits: collect(&l)}}, nil)
			return l, block, err
		}
		want, _, err := ask(past)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := ask(stored); err != nil || len(got) != 20*256 || !slices.Equal(got, want) {
			t.Fatalf("from a mapped file: %v, or other logits", err)
		}
		if err := os.Truncate(path, page); err != nil {
			t.Fatal(err)
		}
		_, block, err := ask(stored)
		start := uintptr(unsafe.Pointer(unsafe.SliceData(mapped)))
		var fault *FaultError
		if !errors.As(err, &fault) || fault.Addr < start+uintptr(page) || fault.Addr >= start+uintptr(len(mapped)) || block.Len != 0 {
			t.Errorf("cut short: %v, %d tokens in the new block; want a FaultError from %#x on and 0", err, block.Len, start+uintptr(page))
		}
	})
}

func TestForward_OneTokenMore_AllocatesNothing(t *testing.T) {
	m := wide(t)
	w := m.NewWorkspace(2)
	defer w.Close()
	for _, typ := range types {
		past, block := m.NewKV(typ, 100), m.NewKV(typ, 50)
		forward(t, m, 1, Sequence{Tokens: tokens(1, 100), KV: past}, Sequence{Tokens: tokens(2, 40), Past: []*KV{past}, KV: block})
		batch := []Sequence{{Tokens: []int32{5}, Past: []*KV{past}, KV: block, Logits: func(int, []float32) {}}}
		ctx := t.Context()
		n := testing.AllocsPerRun(20, func() {
			block.Len = 40
			if err := w.Forward(ctx, batch, nil); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations a token, want 0", typ, n)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	m := load(b, "tiny-tied.gguf")
	for _, n := range []int{1, 512} {
		b.Run(fmt.Sprintf("T=%d", n), func(b *testing.B) {
			w := m.NewWorkspace(2)
			defer w.Close()
			batch := []Sequence{{Tokens: tokens(1, n), KV: m.NewKV(kv.F16, n)}}
			for b.Loop() {
				batch[0].KV.Len = 0
				if err := w.Forward(b.Context(), batch, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
