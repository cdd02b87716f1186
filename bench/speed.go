package bench

import (
	"context"
	"runtime"
	"time"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
)

// warmUpTokens pass the model before a measurement, so that its buffers are there and the weights in memory.
const warmUpTokens = 512

// decodeTokens are generated in one run.
const decodeTokens = 64

// Prefill measures how many tokens a second full attention takes in, for prompts of these lengths, up to the logits of the
// last token.
func (b *Bench) Prefill(ctx context.Context, lengths []int) ([]Row, error) {
	variants, err := b.variants(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		defer v.work.Close()
	}
	var subjects []*subject
	for i, n := range lengths {
		ids := b.tokens(n, uint64(i))
		for _, v := range variants {
			s := v.subject(TestPrefill, n)
			s.row.MatrixFLOPs, s.row.FLOPs = promptFLOPs(v.model, n, 0)
			s.work = s.row.FLOPs
			s.run = func(ctx context.Context, s *subject) (time.Duration, error) {
				to := v.model.NewKV(kv.F16, n)
				begin := time.Now()
				err := v.work.Forward(ctx, []model.Sequence{{Tokens: ids, KV: to, LogitsFrom: n - 1, Logits: func(int, []float32) {}}},
					func(done int) { b.within(s.work * float64(done) / float64(n)) })
				return time.Since(begin), err
			}
			subjects = append(subjects, s)
		}
	}
	return b.speeds(ctx, subjects, func(r *Row) int { return r.PromptTokens })
}

// Decode measures how many tokens a second come one after the other, each the likeliest, after contexts of these lengths.
// A context beyond the first warmUpTokens repeats the keys and values of those: timing depends on how many there are.
func (b *Bench) Decode(ctx context.Context, lengths []int) ([]Row, error) {
	variants, err := b.variants(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		defer v.work.Close()
	}
	var subjects []*subject
	for _, n := range lengths {
		for _, v := range variants {
			s := v.subject(TestDecode, n)
			s.row.MatrixFLOPs, s.row.FLOPs = promptFLOPs(v.model, 1, n)
			s.work = s.row.FLOPs * decodeTokens
			s.row.TimingOnly = n+decodeTokens > b.Model.Context
			var past *model.KV
			s.run = func(ctx context.Context, s *subject) (time.Duration, error) {
				if past == nil {
					past = v.model.NewKV(kv.F16, n+decodeTokens)
					for past.Len < n {
						appendKV(past, v.warm, min(v.warm.Len, n-past.Len))
					}
				}
				past.Len = n
				return b.generate(ctx, v.work, past)
			}
			subjects = append(subjects, s)
		}
	}
	return b.speeds(ctx, subjects, func(*Row) int { return decodeTokens })
}

// generate decodes after the context, greedily.
func (b *Bench) generate(ctx context.Context, w *model.Workspace, to *model.KV) (time.Duration, error) {
	next := b.tokens(1, 0)
	take := func(_ int, logits []float32) { next[0] = likeliest(logits) }
	batch := []model.Sequence{{Tokens: next, KV: to, Logits: take}}
	begin := time.Now()
	for range decodeTokens {
		if err := w.Forward(ctx, batch, nil); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

func likeliest(logits []float32) int32 {
	best := 0
	for i, x := range logits {
		if x > logits[best] {
			best = i
		}
	}
	return int32(best)
}

// A variant is the model without its adapter, or with it, that has computed the keys and values of some tokens.
type variant struct {
	model   *model.Model
	adapter string
	work    *model.Workspace
	warm    *model.KV
}

func (b *Bench) variants(ctx context.Context) (all []*variant, err error) {
	all = []*variant{{model: b.Model}}
	if b.Adapted != nil {
		all = append(all, &variant{model: b.Adapted, adapter: b.Adapter})
	}
	defer func() {
		if err != nil {
			for _, v := range all {
				v.work.Close()
			}
		}
	}()
	for _, v := range all {
		v.work = v.model.NewWorkspace(runtime.GOMAXPROCS(0))
	}
	for _, v := range all {
		v.warm = v.model.NewKV(kv.F16, warmUpTokens)
		if err := v.work.Forward(ctx, []model.Sequence{{
			Tokens: b.tokens(warmUpTokens, 0), KV: v.warm, LogitsFrom: warmUpTokens - 1, Logits: func(int, []float32) {},
		}}, nil); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (v *variant) subject(test string, n int) *subject {
	return &subject{row: Row{Test: test, PromptTokens: n, Attention: "full", Cache: "none", Blocks: 1, Adapter: v.adapter, TimingOnly: n > v.model.Context}}
}

func (b *Bench) speeds(ctx context.Context, subjects []*subject, tokens func(*Row) int) ([]Row, error) {
	b.plan(subjects)
	if err := b.measure(ctx, subjects); err != nil {
		return nil, err
	}
	var rows []Row
	for i, s := range subjects {
		row := s.rate(tokens(&s.row))
		if row.Adapter != "" {
			row.Slower = new(100 * (*rows[i-1].TokensPerSecond / *row.TokensPerSecond - 1))
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// promptFLOPs are the operations up to the logits after n tokens that come after before others.
func promptFLOPs(m *model.Model, n, before int) (matrices, total float64) {
	matrices, attention := m.FLOPs(n, before)
	matrices += m.OutputFLOPs()
	return matrices, matrices + attention
}

// appendKV appends the first n tokens of src to dst, which has room for them and the same type.
func appendKV(dst, src *model.KV, n int) {
	numbers, scales := dst.Shape.RowBytes()
	for layer := range dst.Shape.Layers {
		for head := range dst.Shape.Heads {
			for _, matrix := range []func(kv.Shape, int, int) (int, int){kv.Shape.K, kv.Shape.V} {
				to, _ := matrix(dst.Shape, layer, head)
				from, _ := matrix(src.Shape, layer, head)
				copy(dst.Payload[to+dst.Len*numbers:][:n*numbers], src.Payload[from:])
				to, from = to+dst.Shape.Tokens*numbers, from+src.Shape.Tokens*numbers
				copy(dst.Payload[to+dst.Len*scales:][:n*scales], src.Payload[from:])
			}
		}
	}
	dst.Len += n
}
