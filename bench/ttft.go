package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/prompt"
)

// passageTokens is about how long a passage is.
const passageTokens = 100

// A Paper is what the paper reports for its 8B model on its GPU, for orientation. Its abstract gives the figures of one length.
type Paper struct {
	TTFT           float64 `json:"ttft_ms"`
	TTFTReduction  float64 `json:"ttft_percent"`
	FLOPsReduction float64 `json:"flops_percent"` // without attention
}

var (
	paperLength = 32 << 10
	paper       = Paper{45, 98.7, 99.8}
)

// TTFT measures the time to the first token through the engine, as a question takes it: naming the blocks, finding, reading
// and verifying stored ones, computing what is missing, choosing the token. Each length is a whole prompt, its last query
// tokens the question, the rest passages. The rows of a length:
//
//	full    none   one pass over everything
//	block   none   nothing stored: passages are computed, and written in the background
//	block   ram    passages in memory
//	block   disk   passages in their files, which the page cache does not hold
//	prefix  ram    what comes before the question is one stored block: what position independence is compared with
func (b *Bench) TTFT(ctx context.Context, lengths []int, query int) (rows []Row, err error) {
	longest := 0
	for _, n := range lengths {
		longest = max(longest, n)
	}
	t, err := b.newTTFT(longest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.warmUp(ctx); err != nil {
		return nil, err
	}
	var prompts []*ttftPrompt
	var all []*subject
	for i, n := range lengths {
		p := t.prompt(n, min(query, n), uint64(i))
		prompts, all = append(prompts, p), append(all, p.subjects...)
	}
	b.plan(all)
	for _, p := range prompts {
		if err := b.measure(ctx, p.subjects); err != nil {
			return nil, err
		}
		if err := t.forget(); err != nil {
			return nil, err
		}
		rows = append(rows, p.rows()...)
	}
	return rows, nil
}

// ttft is three engines: one over a folder, one over the same folder that keeps nothing in memory, one without a folder.
type ttft struct {
	b                       *Bench
	model                   *model.Model
	folder                  string
	stored, disk, plain     *engine.Engine
	storedKV, diskKV, ramKV *kv.Store
}

func (b *Bench) newTTFT(longest int) (t *ttft, err error) {
	// The engine refuses what is longer than the model's context. This copy of the model says that it has room; answers would
	// be worth nothing, but nobody sees one.
	m := *cmp.Or(b.Adapted, b.Model)
	m.Context = max(m.Context, longest+1, warmUpTokens+1)
	t = &ttft{b: b, model: &m}
	defer func(t *ttft) {
		if err != nil {
			t.close()
		}
	}(t)
	if err := os.MkdirAll(b.Folder, 0o700); err != nil {
		return nil, err
	}
	if t.folder, err = os.MkdirTemp(b.Folder, "bench-"); err != nil {
		return nil, err
	}
	open := func(folder string, memory int) (*engine.Engine, *kv.Store, error) {
		store, err := kv.Open(folder, kv.Options{RAMBytes: int64(memory), DiskBytes: 1 << 50, KernelPath: kernel.Path()})
		if err != nil {
			return nil, nil, err
		}
		// The store sees no other model, so that the fingerprint may be anything.
		return engine.New(&m, b.Tok, store, engine.Options{Source: "the model", KV: kv.F16, Threads: runtime.GOMAXPROCS(0)}), store, nil
	}
	room := 2*m.KVShape(kv.F16, longest).Bytes() + 1<<30
	if t.stored, t.storedKV, err = open(t.folder, room); err != nil {
		return nil, err
	}
	if t.disk, t.diskKV, err = open(t.folder, 1); err != nil {
		return nil, err
	}
	t.plain, t.ramKV, err = open("", room)
	return t, err
}

func (t *ttft) close() error {
	var errs []error
	for _, e := range []*engine.Engine{t.stored, t.disk, t.plain} {
		if e != nil {
			e.Close()
		}
	}
	for _, s := range []*kv.Store{t.storedKV, t.diskKV, t.ramKV} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if t.folder != "" {
		errs = append(errs, os.RemoveAll(t.folder))
	}
	return errors.Join(errs...)
}

// warmUp lets every engine make its buffers.
func (t *ttft) warmUp(ctx context.Context) error {
	blocks := []prompt.Block{{Kind: prompt.Query, Dependent: true, Doc: -1, Tokens: t.b.tokens(warmUpTokens, 0)}}
	for _, e := range []*engine.Engine{t.stored, t.disk, t.plain} {
		if _, err := e.Generate(ctx, engine.Request{Blocks: blocks, Attention: engine.Full, MaxTokens: 1}); err != nil {
			return err
		}
	}
	return nil
}

// forget empties the stores.
func (t *ttft) forget() error {
	_, _, err := t.storedKV.DropAll()
	_, _, err2 := t.ramKV.DropAll()
	return errors.Join(err, err2)
}

// A ttftPrompt is one length: the same tokens as one block, as passages and a question, and as a prefix and a question.
type ttftPrompt struct {
	t                    *ttft
	tokens               []int32
	query                int
	whole, blocks, parts []prompt.Block
	subjects             []*subject
}

// prompt makes the subjects of a length. Where the query is all of it nothing can be stored: full attention and block attention are
// the same then, and both stand in the table.
func (t *ttft) prompt(n, query int, seed uint64) *ttftPrompt {
	p := &ttftPrompt{t: t, tokens: t.b.tokens(n, seed), query: query}
	final := func(from int) prompt.Block {
		return prompt.Block{Kind: prompt.Query, Dependent: true, Doc: -1, Tokens: p.tokens[from:]}
	}
	context := n - query
	count := (context + passageTokens - 1) / passageTokens
	for i := range count {
		p.blocks = append(p.blocks, prompt.Block{Kind: prompt.Passage, Doc: i, Tokens: p.tokens[i*context/count : (i+1)*context/count]})
	}
	p.whole, p.blocks = []prompt.Block{final(0)}, append(p.blocks, final(context))
	p.add("full", "none", p.whole, n, p.full)
	if context > 0 {
		p.parts = []prompt.Block{{Kind: prompt.Passage, Tokens: p.tokens[:context]}, final(context)}
		p.add("block", "none", p.blocks, n, p.cold)
		p.add("block", "disk", p.blocks, query, p.fromDisk)
	}
	p.add("block", "ram", p.blocks, query, p.fromRAM)
	if context > 0 {
		p.add("prefix", "ram", p.parts, query, p.prefix)
	}
	return p
}

func (p *ttftPrompt) add(attention, cache string, blocks []prompt.Block, computed int, run func(context.Context, *subject) (time.Duration, error)) {
	s := &subject{run: run, row: Row{
		Test: TestTTFT, PromptTokens: len(p.tokens), QueryTokens: p.query, Attention: attention, Cache: cache, Blocks: len(blocks),
		Adapter: p.t.b.Adapter, TimingOnly: len(p.tokens) > p.t.b.Model.Context,
	}}
	_, s.work = promptFLOPs(p.t.model, computed, len(p.tokens)-computed)
	p.subjects = append(p.subjects, s)
}

func (p *ttftPrompt) full(ctx context.Context, s *subject) (time.Duration, error) {
	return p.ask(ctx, s, p.t.plain, engine.Full, p.whole, kv.Computed)
}

func (p *ttftPrompt) cold(ctx context.Context, s *subject) (time.Duration, error) {
	if _, _, err := p.t.storedKV.DropAll(); err != nil {
		return 0, err
	}
	d, err := p.ask(ctx, s, p.t.stored, engine.Block, p.blocks, kv.Computed)
	// What follows must not wait for the disk, and reads these files.
	return d, errors.Join(err, p.t.storedKV.Flush())
}

func (p *ttftPrompt) fromDisk(ctx context.Context, s *subject) (time.Duration, error) {
	files, err := filepath.Glob(filepath.Join(p.t.folder, "*", "*.kv"))
	if err != nil {
		return 0, err
	}
	if err := dropPageCache(files); err != nil {
		s.row.Note = fmt.Sprintf("the page cache was not dropped: %v", err)
	}
	return p.ask(ctx, s, p.t.disk, engine.Block, p.blocks, kv.Disk)
}

func (p *ttftPrompt) fromRAM(ctx context.Context, s *subject) (time.Duration, error) {
	return p.ask(ctx, s, p.t.stored, engine.Block, p.blocks, kv.RAM)
}

func (p *ttftPrompt) prefix(ctx context.Context, s *subject) (time.Duration, error) {
	if len(s.times) == 0 {
		if err := p.storePrefix(); err != nil {
			return 0, err
		}
	}
	return p.ask(ctx, s, p.t.plain, engine.Block, p.parts, kv.RAM)
}

// storePrefix stores what comes before the query as one block. Its bytes are the passages' one after the other, not what one pass over
// it would give: it takes as long to attend to.
func (p *ttftPrompt) storePrefix() error {
	whole := p.t.model.NewKV(kv.F16, len(p.tokens)-p.query)
	for _, b := range p.blocks[:len(p.blocks)-1] {
		lease, err := p.t.storedKV.Get(p.id(b), p.t.model.KVShape(kv.F16, len(b.Tokens)))
		if err != nil {
			return err
		}
		appendKV(whole, &model.KV{Shape: lease.Shape(), Payload: lease.Payload(), Len: len(b.Tokens)}, len(b.Tokens))
		lease.Close()
	}
	lease, err := p.t.ramKV.Put(p.id(p.parts[0]), whole.Shape, whole.Payload)
	if err != nil {
		return err
	}
	lease.Close()
	return nil
}

// id is what the engines call an independent block.
func (p *ttftPrompt) id(b prompt.Block) kv.ID {
	return kv.Inputs{Type: kv.F16, RoPE: p.t.model.RoPEBytes(), Tokens: b.Tokens}.ID()
}

// ask takes the time to the first token, and sees to it that the blocks before the query came from where the row says.
func (p *ttftPrompt) ask(ctx context.Context, s *subject, e *engine.Engine, attention engine.Attention, blocks []prompt.Block, from kv.Source) (time.Duration, error) {
	rec, err := e.Generate(ctx, engine.Request{Blocks: blocks, Attention: attention, MaxTokens: 1, Progress: func(done, total int) {
		p.t.b.within(s.work * float64(done) / float64(total))
	}})
	if err != nil {
		return 0, err
	}
	s.row.KVBytes = 0
	for i, b := range rec.Blocks[:len(blocks)-1] {
		if b.Source != from {
			return 0, fmt.Errorf("block %d of %d tokens came from %v, not from %v: this is no measurement", i, len(p.tokens), b.Source, from)
		}
		if from != kv.Computed {
			s.row.KVBytes += p.t.model.KVShape(kv.F16, b.Tokens).Bytes()
		}
	}
	s.row.MatrixFLOPs, s.row.FLOPs = rec.MatrixFLOPs, rec.MatrixFLOPs+rec.AttentionFLOPs
	return rec.TTFT, nil
}

// rows are the finished ones, each against the first, full attention.
func (p *ttftPrompt) rows() []Row {
	var rows []Row
	for _, s := range p.subjects {
		rows = append(rows, s.ttft())
	}
	full := rows[0]
	for i := range rows[1:] {
		r := &rows[i+1]
		r.Against = &Reduction{less(*r.TTFT, *full.TTFT), less(r.FLOPs, full.FLOPs), less(r.MatrixFLOPs, full.MatrixFLOPs)}
		if r.PromptTokens == paperLength && r.Attention == "block" && r.Cache == "ram" {
			r.Paper = &paper
		}
	}
	return rows
}

// less is how much less than base x is, in percent.
func less(x, base float64) float64 { return 100 * (base - x) / base }
