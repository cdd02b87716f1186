package eval

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"
)

// Weights are what answers.
type Weights struct {
	Model       string        `json:"model"` // the file's name
	Fingerprint weights.Hash  `json:"model_fingerprint"`
	Adapter     *string       `json:"adapter"` // the file's name; null: none
	AdapterHash *weights.Hash `json:"adapter_fingerprint"`
}

// A Result is the accuracy of one run over one dataset, in the JSON form that `tessera eval --json` prints.
type Result struct {
	Schema  int          `json:"schema"` // 1
	Dataset string       `json:"dataset"`
	Data    weights.Hash `json:"data_sha256"`

	Attention engine.Attention `json:"attention"`
	Parts     int              `json:"parts,omitempty"` // of the passages, where there are several
	Reencoded bool             `json:"reencoded"`       // false: the ablation
	Shuffle   *uint64          `json:"shuffle"`
	Passages  int              `json:"passages"`
	MaxTokens int              `json:"max_tokens"`
	Prompt    string           `json:"prompt_format"`
	Kernel    string           `json:"kernel_path"`
	Weights

	N        int      `json:"n"`
	Correct  int      `json:"correct"`
	Accuracy float64  `json:"accuracy"` // Correct of N, 0 to 1
	Interval Interval `json:"interval"` // of the accuracy
	EM       float64  `json:"em"`
	F1       float64  `json:"f1"`
	Outcomes string   `json:"outcomes"` // a digit a question in the order of the file, 1 for a correct one: what pairs are compared by

	PromptTokens    int     `json:"prompt_tokens"`
	ComputedTokens  int     `json:"computed_tokens"` // of the prompts; the rest were blocks of earlier questions and runs
	GeneratedTokens int     `json:"generated_tokens"`
	Seconds         float64 `json:"seconds"`
}

// newResult grades the answers to questions, one each.
func newResult(d *Dataset, s Setting, w Weights, kernel string, questions []Question, answers map[string]Answer) *Result {
	r := &Result{Schema: 1, Dataset: d.Name, Data: d.SHA256, Attention: s.Attention, Parts: several(s.Parts), Reencoded: !s.Unmoved, Shuffle: s.Shuffle,
		Passages: s.Passages, MaxTokens: s.MaxTokens, Prompt: prompt.Format, Kernel: kernel, Weights: w, N: len(questions)}
	var outcomes strings.Builder
	for i := range questions {
		a := answers[questions[i].ID]
		g := Judge(a.Output, questions[i].Answers)
		if g.Correct {
			r.Correct++
			outcomes.WriteByte('1')
		} else {
			outcomes.WriteByte('0')
		}
		if g.Exact {
			r.EM++
		}
		r.F1 += g.F1
		r.PromptTokens, r.ComputedTokens, r.GeneratedTokens = r.PromptTokens+a.Prompt, r.ComputedTokens+a.Computed, r.GeneratedTokens+a.Generated
		r.Seconds += a.Seconds
	}
	n := float64(r.N)
	r.Accuracy, r.EM, r.F1 = float64(r.Correct)/n, r.EM/n, r.F1/n
	r.Outcomes, r.Interval = outcomes.String(), Wilson(r.Correct, r.N)
	return r
}

// Label says what was run, but for the dataset: "SmolLM2.gguf, block, 10 passages".
func (r *Result) Label() string {
	return r.weights() + ", " + r.manner()
}

// manner is how the questions were put: "block, 10 passages".
func (r *Result) manner() string {
	return fmt.Sprintf("%s, %d passages", r.mode(), r.Passages)
}

func (r *Result) weights() string {
	name := strings.TrimSuffix(r.Model, ".gguf")
	if r.Adapter != nil {
		name += " + " + strings.TrimSuffix(*r.Adapter, ".gguf")
	}
	return name
}

func (r *Result) mode() string {
	mode := string(r.Attention)
	if r.Parts > 0 {
		mode += fmt.Sprintf(", %d parts", r.Parts)
	}
	if !r.Reencoded {
		mode += ", keys not re-encoded"
	}
	if r.Shuffle != nil {
		mode += fmt.Sprintf(", shuffled (%d)", *r.Shuffle)
	}
	return mode
}

// several is how many parts a result tells of: one needs no words.
func several(parts int) int {
	if parts < 2 {
		return 0
	}
	return parts
}

// outcomes are 1 for each question that was answered right, and 0.
func (r *Result) outcomes() []float64 {
	right := make([]float64, r.N)
	for i := range right {
		right[i] = float64(r.Outcomes[i] - '0')
	}
	return right
}

// sameQuestions says whether two results can be compared question by question.
func (r *Result) sameQuestions(o *Result) bool {
	return r.Dataset == o.Dataset && r.Data == o.Data && r.N == o.N
}

// A Report is several results and how they compare, the JSON form of several runs at once.
type Report struct {
	Schema      int          `json:"schema"` // 1
	Results     []*Result    `json:"results"`
	Comparisons []Comparison `json:"comparisons"`
}

// NewReport compares what can be compared: each kind of run with the first of as many passages and, block attention, with full attention
// of otherwise the same. Pairs are compared over every dataset that both have, and over all of these together.
func NewReport(results []*Result) *Report {
	r := &Report{Schema: 1, Results: results}
	kinds := r.kinds()
	for i, kind := range kinds {
		first := slices.IndexFunc(kinds, func(other []*Result) bool { return other[0].Passages == kind[0].Passages })
		for j, other := range kinds {
			if j != i && (j == first || other[0].isFullOf(kind[0])) {
				r.compare(kind, other)
			}
		}
	}
	return r
}

// kinds are the results by kind of run, each in the order of their first.
func (r *Report) kinds() (kinds [][]*Result) {
	index := map[string]int{}
	for _, result := range r.Results {
		kind := result.kind()
		i, ok := index[kind]
		if !ok {
			i = len(kinds)
			index[kind] = i
			kinds = append(kinds, nil)
		}
		kinds[i] = append(kinds[i], result)
	}
	return kinds
}

// kind is what the results of a run over several datasets have in common.
func (r *Result) kind() string {
	kind := r.Label() + " " + r.Fingerprint.String()
	if r.AdapterHash != nil {
		kind += " " + r.AdapterHash.String()
	}
	return kind
}

func (r *Result) isFullOf(block *Result) bool {
	sameAdapter := (r.AdapterHash == nil) == (block.AdapterHash == nil) && (r.AdapterHash == nil || *r.AdapterHash == *block.AdapterHash)
	sameOrder := (r.Shuffle == nil) == (block.Shuffle == nil) && (r.Shuffle == nil || *r.Shuffle == *block.Shuffle)
	return r.Attention == engine.Full && block.Attention == engine.Block && r.Fingerprint == block.Fingerprint && sameAdapter && sameOrder && r.Passages == block.Passages
}

func (r *Report) compare(of, against []*Result) {
	var a, b []*Result
	for _, x := range of {
		for _, y := range against {
			if x.sameQuestions(y) {
				a, b = append(a, x), append(b, y)
				r.Comparisons = append(r.Comparisons, compare(a[len(a)-1:], b[len(b)-1:]))
				break
			}
		}
	}
	if len(a) > 1 {
		r.Comparisons = append(r.Comparisons, compare(a, b))
	}
}

// ReadResults reads what `tessera eval --json` printed to files: one result each, or a report of several. There is one at least, and they can stand in
// one report: all with prompts and answers alike, and each kind of run over a dataset once.
func ReadResults(paths ...string) (results []*Result, err error) {
	for _, path := range paths {
		some, err := readResults(path)
		if err != nil {
			return nil, err
		}
		for i, r := range some {
			if err := r.fits(results); err != nil {
				return nil, fmt.Errorf("%s: result %d: %w", path, i+1, err)
			}
			results = append(results, r)
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("%s: no results; want those of 'tessera eval --json'", strings.Join(paths, ", "))
	}
	return results, nil
}

// fits says why a result cannot stand beside others.
func (r *Result) fits(others []*Result) error {
	for _, o := range others {
		if r.MaxTokens != o.MaxTokens || r.Prompt != o.Prompt {
			return fmt.Errorf("answers of at most %d tokens to prompts of format %q, others of %d to %q; want all alike", r.MaxTokens, r.Prompt, o.MaxTokens, o.Prompt)
		}
		if r.Dataset == o.Dataset && r.kind() == o.kind() {
			return fmt.Errorf("%s over %s is there already; want it once", r.Label(), r.Dataset)
		}
	}
	return nil
}

func readResults(path string) ([]*Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 256<<20))
	if err != nil {
		return nil, err
	}
	var doc struct {
		Schema  int       `json:"schema"`
		Results []*Result `json:"results"`
		N       int       `json:"n"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("%s: not a result of 'tessera eval --json': %w", path, err)
	}
	if doc.Schema != 1 {
		return nil, fmt.Errorf("%s: schema: found %d, expected 1", path, doc.Schema)
	}
	if doc.Results == nil {
		var one Result
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		doc.Results = []*Result{&one}
	}
	for i, r := range doc.Results {
		if r == nil || r.Dataset == "" || r.N < 1 || len(r.Outcomes) != r.N || strings.Trim(r.Outcomes, "01") != "" || strings.Count(r.Outcomes, "1") != r.Correct {
			return nil, fmt.Errorf("%s: result %d: want a dataset and n outcomes, 0 or 1 each, of which as many as correct are 1", path, i+1)
		}
	}
	return doc.Results, nil
}
