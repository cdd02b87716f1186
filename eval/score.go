package eval

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
)

// A Case is one prompt to score, cut into blocks.
type Case struct {
	Name      string  `json:"name"`
	IDs       []int32 `json:"ids"`
	Blocks    []int   `json:"blocks"`    // lengths, the last one the final block's; null: full attention
	Dependent []int   `json:"dependent"` // indices of the other blocks that attend to all before them
	First     int     `json:"first"`
}

// A Score is what the model says of a Case: NextLogprob[t] is log p(ids[First+t+1] | before), up to the last id, and
// LastTop the ten likeliest ids after it.
type Score struct {
	Name        string    `json:"name"`
	First       int       `json:"first"`
	NextLogprob []float64 `json:"next_logprob"`
	LastTop     []Top     `json:"last_top"`
}

// A Top is an id with its log-probability, in JSON a pair.
type Top struct {
	ID      int32
	Logprob float64
}

// MarshalJSON writes [id, logprob].
func (t Top) MarshalJSON() ([]byte, error) { return json.Marshal([2]any{t.ID, t.Logprob}) }

// UnmarshalJSON reads [id, logprob].
func (t *Top) UnmarshalJSON(b []byte) error {
	var pair []float64
	if err := json.Unmarshal(b, &pair); err != nil || len(pair) != 2 {
		return fmt.Errorf("want a pair [id, logprob], found %s", b)
	}
	t.ID, t.Logprob = int32(pair[0]), pair[1]
	return nil
}

const lastTop = 10

// ReadCases reads a JSON list of cases and checks each; name is the file's, for errors.
func ReadCases(r io.Reader, name string) ([]Case, error) {
	var cases []Case
	if err := json.NewDecoder(r).Decode(&cases); err != nil {
		return nil, fmt.Errorf("%s: not a list of {\"name\",\"ids\",\"blocks\"}: %w", name, err)
	}
	if len(cases) == 0 {
		return nil, fmt.Errorf("%s: holds no case", name)
	}
	for i := range cases {
		if err := cases[i].check(); err != nil {
			return nil, fmt.Errorf("%s: case %d (%q): %w", name, i, cases[i].Name, err)
		}
	}
	return cases, nil
}

func (c *Case) check() error {
	if len(c.IDs) == 0 {
		return fmt.Errorf("ids: empty; want at least one token id")
	}
	if c.First < 0 || c.First >= len(c.IDs) {
		return fmt.Errorf("first: %d; want 0 to %d, the last id", c.First, len(c.IDs)-1)
	}
	if c.Blocks == nil {
		if len(c.Dependent) > 0 {
			return fmt.Errorf("dependent: names blocks, but blocks is null")
		}
		return nil
	}
	left := len(c.IDs)
	for i, n := range c.Blocks {
		if n < 1 || n > left {
			return fmt.Errorf("blocks[%d]: %d tokens; want 1 to %d, what is left of %d ids", i, n, left, len(c.IDs))
		}
		left -= n
	}
	if left > 0 {
		return fmt.Errorf("blocks: lengths add up to %d; want %d, the number of ids", len(c.IDs)-left, len(c.IDs))
	}
	for i, b := range c.Dependent {
		if b < 0 || b >= len(c.Blocks)-1 {
			return fmt.Errorf("dependent[%d]: block %d; want 0 to %d, a block before the final one", i, b, len(c.Blocks)-2)
		}
	}
	return nil
}

// ScoreCase computes a case afresh, without a store, keys and values of type t.
func ScoreCase(ctx context.Context, m *model.Model, w *model.Workspace, t kv.Type, c *Case, progress func(tokens int)) (Score, error) {
	s := Score{Name: c.Name, First: c.First, NextLogprob: make([]float64, len(c.IDs)-1-c.First)}
	blocks := c.Blocks
	if blocks == nil {
		blocks = []int{len(c.IDs)}
	}
	var all []*model.KV
	var batch []model.Sequence
	at := 0
	for i, n := range blocks {
		start := at
		seq := model.Sequence{Tokens: c.IDs[at : at+n], KV: m.NewKV(t, n), Before: i < len(blocks)-1, LogitsFrom: max(c.First-at, 0)}
		seq.Logits = func(i int, logits []float32) { s.take(c, start+i, logits) }
		seq.KV.Alone = seq.Before && !slices.Contains(c.Dependent, i)
		if !seq.KV.Alone {
			seq.Past = all[:i:i]
		}
		all, batch = append(all, seq.KV), append(batch, seq)
		at += n
	}
	if err := w.Forward(ctx, batch, progress); err != nil {
		return Score{}, fmt.Errorf("case %q: %w", c.Name, err)
	}
	return s, nil
}

// take reads off the logits that follow token t of the prompt.
func (s *Score) take(c *Case, t int, logits []float32) {
	total := kernel.LogSumExp(logits)
	if t+1 < len(c.IDs) {
		s.NextLogprob[t-c.First] = round(float64(logits[c.IDs[t+1]]) - total)
		return
	}
	ids := make([]int32, len(logits))
	for i := range ids {
		ids[i] = int32(i)
	}
	slices.SortStableFunc(ids, func(a, b int32) int {
		switch la, lb := logits[a], logits[b]; {
		case la > lb:
			return -1
		case la < lb:
			return 1
		}
		return 0
	})
	for _, id := range ids[:min(lastTop, len(ids))] {
		s.LastTop = append(s.LastTop, Top{id, round(float64(logits[id]) - total)})
	}
}

// round keeps the digits that mean something in float32.
func round(x float64) float64 { return math.Round(x*1e6) / 1e6 }
