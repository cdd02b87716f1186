// Package bench measures: machine + model → timings and operations, as a report that prints as JSON, a table and a figure.
//
// A prompt's token ids are pseudo-random, the same in every run of the program: what they are does not change how long they take.
package bench

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/tokenizer"
)

// A Report is what one command measured, in the JSON form that it prints.
type Report struct {
	Head
	Rows []Row `json:"rows"`
}

// A Head says what was measured, and where.
type Head struct {
	Schema  int     `json:"schema"` // 1
	Machine Machine `json:"machine"`
	Model   string  `json:"model,omitempty"`
}

// NewHead is the head of a report about a model, or with "" about the machine alone.
func NewHead(model string) Head { return Head{Schema: 1, Machine: ThisMachine(), Model: model} }

// Names of tests.
const (
	TestPrefill = "prefill"
	TestDecode  = "decode"
	TestTTFT    = "ttft"
	TestMachine = "machine"
)

// A Row is one figure: the median of its runs.
type Row struct {
	Test         string `json:"test"`
	PromptTokens int    `json:"prompt_tokens"` // decode: of the context before the first token
	QueryTokens  int    `json:"query_tokens"`  // of the prompt, the final block
	Attention    string `json:"attention"`     // full, block, or prefix: all but the query found as one piece
	Cache        string `json:"cache"`         // what was stored before: none, ram or disk
	Blocks       int    `json:"blocks"`        // that the prompt is cut into, the final one included
	KVBytes      int    `json:"kv_bytes"`      // found stored, not computed
	Adapter      string `json:"adapter,omitempty"`

	TokensPerSecond *float64 `json:"tokens_per_s"` // null: not what this test measures
	TTFT            *float64 `json:"ttft_ms"`

	// The runs, in the unit of what is measured: tokens a second, or milliseconds.
	Min  float64   `json:"min"`
	Max  float64   `json:"max"`
	All  []float64 `json:"all"`
	Runs int       `json:"runs"`

	FLOPs       float64 `json:"flops"`        // to the first token, attention included; decode: of one token
	MatrixFLOPs float64 `json:"matrix_flops"` // of these, what the matrices take: the paper counts so

	Against    *Reduction `json:"reduction,omitempty"`      // ttft: against full attention over the same prompt
	Slower     *float64   `json:"slower_percent,omitempty"` // prefill and decode with an adapter: how much longer they take than the row before, without it
	Paper      *Paper     `json:"paper,omitempty"`
	TimingOnly bool       `json:"timing_only"` // longer than the model's context: it would answer nonsense, in the same time
	Note       string     `json:"note,omitempty"`
}

// A Reduction is how much less than full attention, in percent.
type Reduction struct {
	TTFT        float64 `json:"ttft_percent"`
	FLOPs       float64 `json:"flops_percent"`
	MatrixFLOPs float64 `json:"matrix_flops_percent"`
}

// A Bench measures one model with all threads. It is not safe for concurrent use.
type Bench struct {
	Model  *model.Model
	Tok    *tokenizer.Tokenizer
	Folder string // where TTFT may make a folder for blocks, on the disk that is to be measured
	Runs   int    // of each figure; what takes longer than a minute is run once

	// Adapted is Model with an adapter beside its weights, whose name is Adapter: Prefill and Decode measure both, run by run in turns, and TTFT it
	// alone. Nil: there is none.
	Adapted *model.Model
	Adapter string

	// Progress is told what share of all the work is done. May be nil.
	Progress func(share float64)

	planned, done float64 // operations
}

// A subject is a figure to be measured.
type subject struct {
	row Row
	run func(context.Context, *subject) (time.Duration, error) // once; may set FLOPs, KVBytes and Note of the row
	// work is about how many operations one run takes, and perhaps its preparation.
	work  float64
	times []time.Duration
}

// longRun is not repeated.
const longRun = time.Minute

// measure runs the subjects by turns, so that what slows the machine for a while slows all of them.
func (b *Bench) measure(ctx context.Context, subjects []*subject) error {
	for range b.Runs {
		for _, s := range subjects {
			if n := len(s.times); n == 0 || s.times[n-1] < longRun {
				if err := ctx.Err(); err != nil {
					return err
				}
				d, err := s.run(ctx, s)
				if err != nil {
					return err
				}
				s.times = append(s.times, d)
			}
			b.done += s.work
			b.within(0)
		}
	}
	return nil
}

// plan makes the subjects' runs the whole of what Progress is told about.
func (b *Bench) plan(subjects []*subject) {
	b.done, b.planned = 0, 0
	for _, s := range subjects {
		b.planned += s.work * float64(b.Runs)
	}
}

// within tells how far the work is, with some of the current run's operations done.
func (b *Bench) within(operations float64) {
	if b.Progress != nil {
		b.Progress((b.done + operations) / b.planned)
	}
}

// ttft finishes a row that measures time, rate one that measures tokens a second.
func (s *subject) ttft() Row {
	var ms []float64
	for _, d := range s.times {
		ms = append(ms, float64(d.Nanoseconds())/1e6)
	}
	s.row.TTFT = s.row.summarize(ms)
	return s.row
}

func (s *subject) rate(tokens int) Row {
	var rates []float64
	for _, d := range s.times {
		rates = append(rates, float64(tokens)/d.Seconds())
	}
	s.row.TokensPerSecond = s.row.summarize(rates)
	return s.row
}

func (r *Row) summarize(all []float64) *float64 {
	r.All, r.Runs, r.Min, r.Max = all, len(all), slices.Min(all), slices.Max(all)
	return new(median(all))
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// tokens makes n pseudo-random ids, none of which has a meaning to the chat or ends it; other seeds give others.
func (b *Bench) tokens(n int, seed uint64) []int32 {
	rng := rand.New(rand.NewPCG(seed, 0))
	ids := make([]int32, 0, n)
	for len(ids) < n {
		if id := int32(rng.IntN(min(b.Tok.Size(), b.Model.Vocabulary))); !b.Tok.IsControl(id) && !b.Tok.IsEnd(id) {
			ids = append(ids, id)
		}
	}
	return ids
}
