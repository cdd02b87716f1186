package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"
)

const (
	system = "Answer from the documents. "
	alps   = "The Rhine rises in the Alps and ends in the North Sea. "
	baikal = "No lake on Earth is deeper than Baikal. "
	copper = "Copper was smelted long before iron was. "
	where  = "Where does the Rhine end?"
	which  = "Which metal came first?"
)

func TestGenerate_OneBlock_BlockModeEqualsFull(t *testing.T) {
	for _, texts := range [][]string{{where}, {system, where}} {
		full := start(t, setting{}).ask(t, in(Full, question(texts...)))
		block := start(t, setting{}).ask(t, question(texts...))
		mustEqual(t, strings.Join(texts, "|"), block, full)
		for i := range full.rec.Blocks {
			if full.rec.Blocks[i].ID != block.rec.Blocks[i].ID {
				t.Errorf("block %d of %d has another id in block mode", i, len(texts))
			}
		}
	}
}

// Full attention over blocks is full attention over their tokens, however they are cut; block attention over passages is not.
func TestGenerate_FullMode_EqualsOneUncutBlock(t *testing.T) {
	uncut := start(t, setting{kv: kv.F32}).ask(t, question(system+alps+baikal+where))
	cut := start(t, setting{kv: kv.F32}).ask(t, in(Full, question(system, alps, baikal, where)))
	block := start(t, setting{kv: kv.F32}).ask(t, question(system, alps, baikal, where))
	distance := func(a, b []float32) (worst float64) {
		for i := range a {
			worst = max(worst, math.Abs(float64(a[i]-b[i])))
		}
		return worst
	}
	if d := distance(cut.logits, uncut.logits); !(d < 1e-5) {
		t.Errorf("full attention over four blocks: logits differ by %g from those of one block, want below 1e-5", d)
	}
	if d := distance(block.logits, uncut.logits); !(d > 1e-3) {
		t.Errorf("block attention over two passages: logits differ by only %g from full attention: the test shows nothing", d)
	}
}

func TestGenerate_AllBlocksDependent_IsFullMode(t *testing.T) {
	q := question(system, alps, baikal, where)
	for i := range q.Blocks[1:] {
		q.Blocks[i+1].Dependent = true
	}
	e := start(t, setting{})
	full := e.ask(t, in(Full, question(system, alps, baikal, where)))
	all := e.ask(t, q)
	mustEqual(t, "every block dependent", all, full)
	mustCome(t, "every block dependent", all.rec, "ram ram ram computed")
}

func TestGenerate_SecondQuestion_ComputesOnlyTheFinalBlock(t *testing.T) {
	e := start(t, setting{})
	mustCome(t, "first", e.ask(t, question(system, alps, baikal, where)).rec, "computed computed computed computed")
	second := e.ask(t, question(system, alps, baikal, which))
	mustCome(t, "second", second.rec, "ram ram ram computed")
	mustEqual(t, "second", second, start(t, setting{}).ask(t, question(system, alps, baikal, which)))
	matrices, attention := e.model.FLOPs(len(which), len(system+alps+baikal))
	if matrices += e.model.OutputFLOPs(); second.rec.MatrixFLOPs != matrices || second.rec.AttentionFLOPs != attention {
		t.Errorf("%g and %g operations to the first token, want those of the final block, %g and %g",
			second.rec.MatrixFLOPs, second.rec.AttentionFLOPs, matrices, attention)
	}
}

func TestGenerate_EveryType_TheSameColdWarmAndFromDisk(t *testing.T) {
	file := wide(t)
	answers := map[string]kv.Type{}
	for _, typ := range []kv.Type{kv.F32, kv.F16, kv.BF16, kv.Q8} {
		set := setting{dir: storeDir(t), kv: typ, file: file}
		q := question(system, alps, "turn: so? It does. ", baikal, where)
		first := start(t, set)
		cold, warm := first.ask(t, q), first.ask(t, q)
		first.close()
		second := start(t, set)
		restarted := second.ask(t, q)
		mustCome(t, typ.String(), warm.rec, "ram ram ram ram computed")
		mustCome(t, typ.String(), restarted.rec, "disk disk disk disk computed")
		mustEqual(t, typ.String()+": from memory", warm, cold)
		mustEqual(t, typ.String()+": from disk", restarted, cold)
		key := fmt.Sprint(cold.logits)
		if other, ok := answers[key]; ok {
			t.Errorf("%v has the logits of %v, so this test shows nothing", typ, other)
		}
		answers[key] = typ
		second.close()
	}
	// In one folder they are different blocks.
	dir := storeDir(t)
	for _, typ := range []kv.Type{kv.F16, kv.BF16, kv.Q8} {
		e := start(t, setting{dir: dir, kv: typ, file: file})
		mustCome(t, typ.String(), e.ask(t, question(system, alps, where)).rec, "computed computed computed")
		e.close()
	}
}

func TestGenerate_TypeThatTheHeadsDoNotFit_IsSaid(t *testing.T) {
	e := start(t, setting{kv: kv.Q8}) // heads of 16
	for _, q := range []Request{question(where), question(system, alps, where)} {
		_, err := e.Generate(t.Context(), q)
		if want := "head dimension: found 16, expected a multiple of 32 for q8"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d blocks: %v, want %q", len(q.Blocks), err, want)
		}
	}
}

func TestGenerate_AfterRestart_BlocksComeFromDisk(t *testing.T) {
	for _, attention := range []Attention{Block, Full} {
		dir := storeDir(t)
		q := in(attention, question(system, alps, "turn: so? It does. ", baikal, where))
		first := start(t, setting{dir: dir})
		cold := first.ask(t, q)
		warm := first.ask(t, q)
		first.close()
		second := start(t, setting{dir: dir, threads: 3})
		restarted := second.ask(t, q)
		mustCome(t, "cold", cold.rec, "computed computed computed computed computed")
		mustCome(t, "warm", warm.rec, "ram ram ram ram computed")
		mustCome(t, "restarted", restarted.rec, "disk disk disk disk computed")
		mustEqual(t, string(attention)+": from memory", warm, cold)
		mustEqual(t, string(attention)+": from disk", restarted, cold)
		mustEqual(t, string(attention)+": from a mapped file in memory", second.ask(t, q), cold)
	}
}

// An adapter for final blocks uses the blocks that the model without it stored. Sinks that it hides are hidden from computed, remembered and
// stored blocks alike, and a later turn behind them is a block of the adapter's.
func TestGenerate_AdapterForFinalBlocks_UsesTheModelsBlocks(t *testing.T) {
	dir := storeDir(t)
	q := question(system, alps, baikal, "turn: so? It does. ", where)
	q.Blocks[3].Dependent = true
	base := start(t, setting{dir: dir})
	plain, plainFull := base.ask(t, q), base.ask(t, in(Full, q))
	base.close()
	var before outcome
	for hide := range 3 {
		a := &weights.Adapter{Architecture: "llama", Alpha: 1, FinalOnly: true, HiddenSinks: hide,
			Changes: []weights.Change{{Tensor: "blk.0.attn_v.weight", In: 64, Out: 32, Rank: 1, A: make([]float32, 64), B: make([]float32, 32)}}}
		set := setting{dir: dir, adapter: a}
		e := start(t, set)
		first, again, full := e.ask(t, q), e.ask(t, q), e.ask(t, in(Full, q))
		e.close()
		e = start(t, set)
		restarted := e.ask(t, q)
		e.close()
		name := fmt.Sprintf("%d hidden", hide)
		fourth := "computed"
		if hide == 0 {
			fourth = "disk" // nothing is hidden from the turn: it is the model's own, too
		}
		mustCome(t, name, first.rec, "disk disk disk "+fourth+" computed")
		mustCome(t, name+", full mode", full.rec, "ram disk disk disk computed")
		mustEqual(t, name+", full mode: an adapter that changes nothing", full, plainFull)
		mustCome(t, name, restarted.rec, "disk disk disk disk computed")
		mustEqual(t, name+": remembered", again, first)
		mustEqual(t, name+": from disk", restarted, first)
		set.dir = storeDir(t)
		mustEqual(t, name+": computed", start(t, set).ask(t, q), first)
		if hide == 0 {
			mustEqual(t, "an adapter that changes nothing", first, plain)
		} else if slices.Equal(first.logits, before.logits) {
			t.Errorf("%s: the logits of one less, so this test shows nothing", name)
		}
		before = first
	}
}

// Link tokens stand behind each passage in block mode, and see all before them. They are no blocks of the request's nor of the store's, and
// full mode has none.
func TestGenerate_LinkTokens_StandBehindPassages(t *testing.T) {
	dir := storeDir(t)
	q := question(system, alps, baikal, "turn: so? It does. ", copper, where)
	base := start(t, setting{dir: dir})
	plain, plainFull := base.ask(t, q), base.ask(t, in(Full, q))
	base.close()
	a := &weights.Adapter{Architecture: "llama", Alpha: 1, FinalOnly: true,
		Changes: []weights.Change{{Tensor: "blk.0.attn_v.weight", In: 64, Out: 32, Rank: 1, A: make([]float32, 64), B: make([]float32, 32)}}}
	for i := range 3 {
		link := make([]float32, 64)
		for j := range link {
			link[j] = float32((i*31+j*17)%13-6) / 20
		}
		a.LinkTokens = append(a.LinkTokens, link)
	}
	set := setting{dir: dir, adapter: a}
	e := start(t, set)
	first, again := e.ask(t, q), e.ask(t, q)
	mustCome(t, "first", first.rec, "disk disk disk computed disk computed") // the turn sees link tokens, and is the adapter's
	mustCome(t, "again", again.rec, "ram ram ram ram ram computed")
	mustEqual(t, "again", again, first)
	mustEqual(t, "full mode", e.ask(t, in(Full, q)), plainFull)
	if slices.Equal(first.logits, plain.logits) {
		t.Error("link tokens change nothing, so this test shows little")
	}
	penal := q
	penal.Sampling.RepetitionPenalty = 1.3 // looks at the last tokens, link tokens not among them
	rec, err := e.Generate(t.Context(), penal)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for i, b := range q.Blocks {
		if want += len(b.Tokens); rec.Blocks[i].Tokens != len(b.Tokens) {
			t.Errorf("block %d: %d tokens, want %d", i, rec.Blocks[i].Tokens, len(b.Tokens))
		}
	}
	if rec.Prompt != want || len(rec.Blocks) != len(q.Blocks) {
		t.Errorf("%d tokens in %d blocks, want %d in %d", rec.Prompt, len(rec.Blocks), want, len(q.Blocks))
	}
	if found, err := e.Stored(q); err != nil || !slices.Equal(found, []bool{true, true, true, true, true}) {
		t.Errorf("stored: %v, %v; want all five before the final block", found, err)
	}
	e.close() // and all is written
	e = start(t, set)
	mustEqual(t, "from disk", e.ask(t, q), first)
	st, err := e.store.Stat()
	if err != nil {
		t.Fatal(err)
	}
	e.close()
	set.dir = storeDir(t)
	other := start(t, set)
	mustEqual(t, "computed", other.ask(t, q), first)
	other.close()
	other = start(t, set)
	if own, err := other.store.Stat(); err != nil || own.Blocks != 5 || st.Blocks != 5+4+1 {
		t.Errorf("%d blocks of the prompt's five are stored, and %d of both modes and models; want 5 and 10 (%v)", own.Blocks, st.Blocks, err)
	}

	// As the model computes them, one after the other.
	m := other.model
	w := m.NewWorkspace(1)
	defer w.Close()
	var batch []model.Sequence
	var past []*model.KV
	var logits []float32
	add := func(tokens []int32, dependent, before bool) {
		s := model.Sequence{Tokens: tokens, KV: m.NewKV(kv.F16, len(tokens)), Before: before}
		if s.KV.Alone = !dependent; dependent {
			s.Past = slices.Clone(past)
		}
		past, batch = append(past, s.KV), append(batch, s)
	}
	for i, b := range q.Blocks {
		add(b.Tokens, b.Dependent, i < len(q.Blocks)-1)
		if b.Kind == prompt.Passage {
			add(m.LinkTokens(), true, false)
		}
	}
	final := &batch[len(batch)-1]
	final.LogitsFrom, final.Logits = len(final.Tokens)-1, func(_ int, l []float32) { logits = slices.Clone(l) }
	if err := w.Forward(t.Context(), batch, nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(logits, first.logits) {
		t.Error("other logits than the model computes, with the link tokens of each passage behind it")
	}
}

func TestGenerate_PermutedPassages_RecomputeNothing(t *testing.T) {
	dir := storeDir(t)
	e := start(t, setting{dir: dir})
	e.ask(t, question(system, alps, baikal, copper, where))
	orders := [][]string{{alps, copper, baikal}, {copper, baikal, alps}, {baikal, alps, copper}, {copper}}
	check := func(e *running, source string) {
		for _, order := range orders {
			q := question(slices.Concat([]string{system}, order, []string{where})...)
			got := e.ask(t, q)
			mustCome(t, "permuted", got.rec, strings.Repeat(source+" ", len(order)+1)+"computed")
			mustEqual(t, "permuted", got, start(t, setting{}).ask(t, q))
			source = "ram"
		}
	}
	check(e, "ram")
	e.close()
	check(start(t, setting{dir: dir}), "disk")
}

// What the blocks of one request are computed with, and by how many threads, leaves no trace in them.
func TestGenerate_ComputedOneByOne_EqualsComputedTogether(t *testing.T) {
	for _, attention := range []Attention{Block, Full} {
		q := in(attention, question(system, alps, baikal, copper, where))
		together := start(t, setting{threads: 1}).ask(t, q)
		e := start(t, setting{threads: 4})
		for n := 1; n < 5; n++ {
			part := q
			part.Blocks = append(slices.Clone(q.Blocks[:n]), q.Blocks[4])
			e.ask(t, part)
		}
		apart := e.ask(t, q)
		mustCome(t, "apart", apart.rec, "ram ram ram ram computed")
		mustEqual(t, string(attention), apart, together)
	}
}

func TestGenerate_PassageTwice_IsComputedOnce(t *testing.T) {
	e := start(t, setting{})
	calls, total := 0, 0
	q := question(system, alps, baikal, alps, where)
	q.Progress = func(_, n int) { calls, total = calls+1, n }
	got, err := e.Generate(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	mustCome(t, "twice", got, "computed computed computed ram computed")
	if want := len(system + alps + baikal + where); calls != 1 || total != want {
		t.Errorf("%d batches of %d tokens were computed, want one of %d", calls, total, want)
	}
	// In full mode the second one sees more than the first: it is another block.
	mustCome(t, "full", start(t, setting{}).ask(t, in(Full, q)).rec, "computed computed computed computed computed")
}

func TestGenerate_FullMode_ReusesTheCommonPrefix(t *testing.T) {
	e := start(t, setting{})
	for _, tt := range []struct {
		name   string
		blocks []string
		want   string
	}{
		{"first", []string{system, alps, baikal, where}, "computed computed computed computed"},
		{"other question", []string{system, alps, baikal, which}, "ram ram ram computed"},
		{"one more passage", []string{system, alps, baikal, copper, which}, "ram ram ram computed computed"},
		{"other order", []string{system, baikal, alps, which}, "ram computed computed computed"},
		{"other order from the second on", []string{system, alps, copper, baikal, which}, "ram ram computed computed computed"},
	} {
		q := in(Full, question(tt.blocks...))
		got := e.ask(t, q)
		mustCome(t, tt.name, got.rec, tt.want)
		mustEqual(t, tt.name, got, start(t, setting{}).ask(t, q))
	}
}

// In a chat the turn depends on all before it, the passages that a later turn brings on nothing.
func TestGenerate_DependentTurn_IsReusedBehindTheSameBlocksOnly(t *testing.T) {
	const turn = "turn: where? In the North Sea. "
	e := start(t, setting{})
	e.ask(t, question(system, alps, turn, where))
	for _, tt := range []struct {
		name   string
		blocks []string
		want   string
	}{
		{"next turn", []string{system, alps, turn, baikal, which}, "ram ram ram computed computed"},
		{"later passage alone", []string{system, baikal, which}, "ram ram computed"},
		{"other passage before the turn", []string{system, baikal, turn, which}, "ram ram computed computed"},
		{"two turns", []string{system, alps, turn, baikal, "turn: and? It is. ", which}, "ram ram ram ram computed computed"},
	} {
		q := question(tt.blocks...)
		got := e.ask(t, q)
		mustCome(t, tt.name, got.rec, tt.want)
		mustEqual(t, tt.name, got, start(t, setting{}).ask(t, q))
	}
}

func TestGenerate_OtherSalt_SharesNoBlock(t *testing.T) {
	e := start(t, setting{})
	q := question(system, alps, where)
	mine := e.ask(t, q)
	q.Salt = []byte("another tenant")
	theirs := e.ask(t, q)
	mustCome(t, "other salt", theirs.rec, "computed computed computed")
	mustEqual(t, "other salt", theirs, mine)
}

// Blocks outlive a store that has no room for them as long as the request that leases them.
func TestGenerate_StoreWithoutRoom_AnswersAndComputesAgain(t *testing.T) {
	e := start(t, setting{ramBytes: 1})
	q := question(system, alps, where)
	first := e.ask(t, q)
	again := e.ask(t, q)
	mustCome(t, "again", again.rec, "computed computed computed")
	mustEqual(t, "again", again, first)
	mustEqual(t, "no room", first, start(t, setting{}).ask(t, q))
}

func TestGenerate_FlippedByte_IsReportedAndRecomputed(t *testing.T) {
	dir := storeDir(t)
	q := question(system, alps, baikal, where)
	e := start(t, setting{dir: dir})
	cold := e.ask(t, q)
	e.close()
	path := e.blockFile(t, cold.rec, 1)
	for _, at := range []int{9, 1000, 4096 + 77} { // in the header's fields, its padding, the payload
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		e := start(t, setting{dir: dir})
		got := e.ask(t, q)
		mustCome(t, "flipped", got.rec, "disk computed disk computed")
		mustEqual(t, "flipped", got, cold)
		if told := e.warned.take(); len(told) != 1 || !strings.Contains(told[0], path) {
			t.Errorf("byte %d flipped: warnings are %q, want one that names %s", at, told, path)
		}
		e.close()
		if bad, _ := filepath.Glob(filepath.Join(dir, "bad", "*")); len(bad) == 0 {
			t.Errorf("byte %d flipped: the file was not set aside", at)
		}
		e = start(t, setting{dir: dir})
		mustCome(t, "after that", e.ask(t, q).rec, "disk disk disk computed")
		e.close()
	}
}

// A block file cut short under its mapping fails that request, says which file it was, and no other request.
func TestGenerate_BlockFileCutShort_FailsThatRequestOnly(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(t *testing.T, e *running, q Request, cut func()) error
	}{
		{"before the final block is computed", func(t *testing.T, e *running, q Request, cut func()) error {
			blocks, places, _ := e.plan(&q)
			p := &prefilled{}
			defer p.release()
			_, claimed, err := e.find(blocks, &q, p)
			if err != nil || len(claimed) > 0 {
				t.Fatalf("%d blocks are not there (%v)", len(claimed), err)
			}
			for _, l := range p.leases {
				for i := range l.Shape().Layers {
					if err := l.Layer(i); err != nil {
						t.Fatal(err)
					}
				}
			}
			cut()
			return e.fill(context.Background(), &q, &Receipt{}, p, blocks, places, nil, true)
		}},
		{"while decoding", func(t *testing.T, e *running, q Request, cut func()) error {
			q.Emit = func(string) error { cut(); return nil }
			_, err := e.Generate(context.Background(), q)
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := storeDir(t)
			q := question(system, alps, baikal, where)
			q.MaxTokens = 40
			first := start(t, setting{dir: dir})
			cold := first.ask(t, q)
			first.close()
			e := start(t, setting{dir: dir})
			path := e.blockFile(t, cold.rec, 2)
			err := tt.fail(t, e, q, func() {
				if err := os.Truncate(path, 0); err != nil {
					t.Fatal(err)
				}
			})
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "cut short") {
				t.Errorf("got error %v, want one that names %s", err, path)
			}
			if told := e.warned.take(); len(told) != 1 || !strings.Contains(told[0], path) {
				t.Errorf("warnings are %q, want one that names %s", told, path)
			}
			again := e.ask(t, q)
			mustCome(t, "next", again.rec, "ram ram computed computed")
			mustEqual(t, "next", again, cold)
		})
	}
}

func TestGenerate_PromptOfTheContextsSize(t *testing.T) {
	e := start(t, setting{})
	for _, tt := range []struct {
		tokens int
		fits   bool
	}{{510, true}, {511, true}, {512, false}, {513, false}, {5000, false}} {
		q := question(system, strings.Repeat("x", tt.tokens-len(system)-len(where)), where)
		q.MaxTokens = 100
		rec, err := e.Generate(context.Background(), q)
		var context *ContextError
		if !tt.fits {
			if !errors.As(err, &context) || context.Tokens != tt.tokens || context.Context != 512 {
				t.Errorf("%d tokens: got error %v, want a *ContextError that says %d of 512", tt.tokens, err, tt.tokens)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d tokens: %v", tt.tokens, err)
		}
		if rec.Finish != FinishLength || rec.Completion != 512-tt.tokens {
			t.Errorf("%d tokens: %d generated, finish %q; want %d, the context's rest, and %q", tt.tokens, rec.Completion, rec.Finish, 512-tt.tokens, FinishLength)
		}
	}
}

func TestGenerate_WrongRequest_IsAnError(t *testing.T) {
	e := start(t, setting{})
	good := question(system, where)
	for _, tt := range []struct {
		name string
		make func(*Request)
		want string
	}{
		{"no blocks", func(r *Request) { r.Blocks = nil }, "0 blocks"},
		{"nothing to generate", func(r *Request) { r.MaxTokens = 0 }, "0 tokens to generate"},
		{"negative temperature", func(r *Request) { r.Sampling.Temperature = -1 }, "temperature is -1"},
		{"token outside the vocabulary", func(r *Request) { r.Blocks = question(system, where).Blocks; r.Blocks[1].Tokens[3] = 256 }, "token id 256"},
		{"negative token", func(r *Request) { r.Blocks = question(system, where).Blocks; r.Blocks[0].Tokens[0] = -1 }, "token id -1"},
	} {
		q := good
		tt.make(&q)
		if rec, err := e.Generate(context.Background(), q); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", tt.name, rec, err, tt.want)
		}
	}
	e.ask(t, good) // nothing was left behind that harms
}

func TestGenerate_EmitError_EndsTheAnswer(t *testing.T) {
	e := start(t, setting{})
	full := errors.New("the pipe is closed")
	for at := 1; at < 4; at++ {
		calls := 0
		q := question(system, alps, where)
		q.MaxTokens = 30
		q.Emit = func(string) error {
			if calls++; calls == at {
				return full
			}
			return nil
		}
		if _, err := e.Generate(context.Background(), q); !errors.Is(err, full) || calls != at {
			t.Errorf("Emit failed at call %d: got error %v after %d calls", at, err, calls)
		}
	}
}

func TestGenerate_EmittedPieces_AreTheText(t *testing.T) {
	e := start(t, setting{})
	for seed := range uint64(20) {
		q := question(system, alps, where)
		q.MaxTokens, q.Sampling = 40, Sampling{Temperature: 4, Seed: seed}
		var pieces []string
		q.Emit = func(text string) error { pieces = append(pieces, text); return nil }
		rec, err := e.Generate(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(pieces, ""); got != rec.Text || rec.Finish == FinishLength && len(pieces) < 2 {
			t.Errorf("seed %d: %d pieces make %q, the text is %q", seed, len(pieces), got, rec.Text)
		}
		for _, piece := range pieces {
			if piece == "" || !utf8.ValidString(piece) {
				t.Errorf("seed %d: piece %q is empty or not whole runes", seed, piece)
			}
		}
		if again, err := e.Generate(context.Background(), q); err != nil || again.Text != rec.Text {
			t.Errorf("seed %d: again it is %q, %v", seed, again.Text, err)
		}
	}
}

func TestGenerate_StopString_EndsTheAnswerBeforeIt(t *testing.T) {
	e := start(t, setting{})
	q := question(system, alps, where)
	q.MaxTokens, q.Sampling = 60, Sampling{Temperature: 4, Seed: 1}
	whole, err := e.Generate(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	runes := []rune(whole.Text)
	for _, at := range []int{0, 1, len(runes) / 2, len(runes) - 3} {
		stop := string(runes[at : at+3])
		q.Sampling.Stop = []string{"no such text", stop}
		rec, err := e.Generate(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if want, _, _ := strings.Cut(whole.Text, stop); rec.Text != want || rec.Finish != FinishStop {
			t.Errorf("stop %q: got %q, finish %q; want %q, %q", stop, rec.Text, rec.Finish, want, FinishStop)
		}
	}
	q.Sampling.Stop = []string{string(runes[len(runes)-2:]) + "and more"} // begun, never complete
	if rec, err := e.Generate(context.Background(), q); err != nil || rec.Text != whole.Text {
		t.Errorf("a stop string that is only begun: got %q, %v; want %q", rec.Text, err, whole.Text)
	}
}

func TestGenerate_EndToken_EndsTheAnswer(t *testing.T) {
	e := start(t, setting{})
	for seed := range uint64(200) {
		q := question(system, where)
		q.MaxTokens, q.Sampling = 100, Sampling{Temperature: 50, Seed: seed} // almost any token is as likely: one of 256 ends
		rec, err := e.Generate(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Finish == FinishLength {
			if rec.Completion != 100 {
				t.Fatalf("seed %d: finish %q after %d tokens of 100", seed, rec.Finish, rec.Completion)
			}
			continue
		}
		if strings.Contains(rec.Text, "im_end") || rec.Completion >= 100 {
			t.Errorf("seed %d: %d tokens, text %q: the end token shows", seed, rec.Completion, rec.Text)
		}
		q.MaxTokens = rec.Completion - 1 // all but the end token: the same text, cut
		if cut, err := e.Generate(context.Background(), q); err != nil || cut.Finish != FinishLength || cut.Text != rec.Text {
			t.Errorf("seed %d: one token less: %q, finish %q, %v; want %q, %q", seed, cut.Text, cut.Finish, err, rec.Text, FinishLength)
		}
		return
	}
	t.Fatal("no seed of 200 ended an answer")
}

// However an answer ends, what was held back for a stop string or for the rest of a character is not lost.
func TestDecoding_End_GivesWhatWasHeldBack(t *testing.T) {
	e := start(t, setting{})
	const end = 254
	for _, tt := range []struct {
		name   string
		tokens []int32 // chosen one after the other
		want   string
		finish Finish
	}{
		{"end token, stop string begun", []int32{'x', 'a', 'b', end}, "xab", FinishStop},
		{"limit, stop string begun", []int32{'x', 'y', 'a', 'b'}, "xyab", FinishLength},
		{"end token, character begun", []int32{'x', 0xC3, end}, "x\uFFFD", FinishStop},
		{"limit, character begun", []int32{'x', 'y', 'z', 0xC3}, "xyz\uFFFD", FinishLength},
		{"limit, both begun", []int32{'x', 'a', 'b', 0xC3}, "xab\uFFFD", FinishLength},
		{"stop string with the last token", []int32{'x', 'a', 'b', 'c'}, "x", FinishStop},
		{"end token alone", []int32{end}, "", FinishStop},
	} {
		var emitted strings.Builder
		d := decoding{
			e: e.Engine, rec: &Receipt{}, decoder: e.tok.Decoder(),
			stop: stopper{stops: []string{"abc"}}, sampler: newSampler(Sampling{}),
			r: &Request{MaxTokens: 4, Emit: func(text string) error { emitted.WriteString(text); return nil }},
		}
		for i, id := range tt.tokens {
			if d.rec.Finish != "" {
				t.Fatalf("%s: ended %q before token %d", tt.name, d.rec.Finish, i)
			}
			logits := make([]float32, 256)
			logits[id] = 1
			if err := errors.Join(d.choose(logits), d.take()); err != nil {
				t.Fatal(err)
			}
		}
		if d.rec.Text != tt.want || emitted.String() != tt.want || d.rec.Finish != tt.finish || d.rec.Completion != len(tt.tokens) {
			t.Errorf("%s: text %q, emitted %q, finish %q after %d tokens; want %q and %q", tt.name, d.rec.Text, emitted.String(), d.rec.Finish, d.rec.Completion, tt.want, tt.finish)
		}
	}
}

func TestGenerate_UntiedModel_BlockOfOneToken(t *testing.T) {
	e := start(t, setting{file: "tiny-untied.gguf"})
	q := question("a", "b", "c", "d")
	cold, warm := e.ask(t, q), e.ask(t, q)
	mustCome(t, "warm", warm.rec, "ram ram ram computed")
	mustEqual(t, "warm", warm, cold)
}
