package eval

import (
	"fmt"
	"time"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/weights"
)

// NewRecord is the evaluation record of results: each dataset's in full and in block mode, all with the same weights.
func NewRecord(results []*Result, date time.Time) (*weights.Record, error) {
	record := &weights.Record{Schema: 1, Date: date.UTC().Truncate(time.Second)}
	for _, block := range results {
		if block.Attention != engine.Block {
			continue
		}
		var full *Result
		for _, r := range results {
			if r.isFullOf(block) && r.sameQuestions(block) {
				full = r
			}
		}
		if full == nil {
			return nil, fmt.Errorf("%s: no result in full mode over the same questions to hold block mode against", block.Dataset)
		}
		record.Model, record.Adapter, record.Prompt, record.Parts = block.Fingerprint, block.AdapterHash, block.Prompt, block.Parts
		record.Sets = append(record.Sets, weights.Scores{Dataset: block.Dataset, N: block.N, Passages: block.Passages,
			Full: full.Accuracy, FullInterval: full.Interval, Block: block.Accuracy, BlockInterval: block.Interval})
	}
	return record, nil
}
