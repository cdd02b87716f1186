package weights

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// A Record is the evaluation that block mode stands on: how often a model, perhaps with an adapter, answers right with full and with
// block attention. The quality gate reads it. It is only of the weights and the prompt format that it names.
type Record struct {
	Schema  int       `json:"schema"` // 1
	Date    time.Time `json:"date"`
	Model   Hash      `json:"model_fingerprint"`
	Adapter *Hash     `json:"adapter_fingerprint"` // null: none
	Prompt  string    `json:"prompt_format"`
	Parts   int       `json:"parts,omitempty"`  // of the passages in block mode, see engine.Views; 0: one
	Margin  *float64  `json:"margin,omitempty"` // see Passes; null: Margin
	Sets    []Scores  `json:"sets"`
}

// Scores are the accuracies on one data set, 0 to 1, with 95 % intervals.
type Scores struct {
	Dataset       string     `json:"dataset"`
	N             int        `json:"n"`
	Passages      int        `json:"passages"`
	Full          float64    `json:"full"`
	FullInterval  [2]float64 `json:"full_interval"`
	Block         float64    `json:"block"`
	BlockInterval [2]float64 `json:"block_interval"`
}

// Margin is how many points of accuracy block mode may lie below full mode, where a record does not say.
const Margin = 2.0

// Gap is how many points full mode is above block mode.
func (r *Record) Gap() float64 {
	full, block := r.Accuracy()
	return full - block
}

// Accuracy is how many answers of a hundred are right in each mode, averaged over the sets.
func (r *Record) Accuracy() (full, block float64) {
	for _, s := range r.Sets {
		full, block = full+s.Full, block+s.Block
	}
	n := float64(len(r.Sets)) / 100
	return full / n, block / n
}

// Passes is the quality gate: block mode is at most so many points below full mode of the same weights as the record allows.
func (r *Record) Passes() bool {
	return r.Gap() <= r.Allowed()+1e-9 // two points of accuracy are not exactly two in binary
}

// Allowed is how many points of accuracy block mode may lie below full mode.
func (r *Record) Allowed() float64 {
	if r.Margin == nil {
		return Margin
	}
	return *r.Margin
}

// Of says whether the record is of these weights, used with this prompt format, and if not why; adapter nil: none.
func (r *Record) Of(model [32]byte, adapter *[32]byte, prompt string) error {
	switch {
	case r.Prompt != prompt:
		return fmt.Errorf("the evaluation record is of prompt format %q, but prompts have %q", r.Prompt, prompt)
	case r.Model != Hash(model):
		return fmt.Errorf("the evaluation record is of another model, %v, not %v", r.Model, Hash(model))
	case (r.Adapter == nil) != (adapter == nil) || adapter != nil && *r.Adapter != Hash(*adapter):
		return fmt.Errorf("the evaluation record is of another adapter")
	}
	return nil
}

// RecordPath is the place of a record in a folder of records, by what it is of.
func RecordPath(dir string, model [32]byte, adapter *[32]byte) string {
	name := hex.EncodeToString(model[:8])
	if adapter != nil {
		name += "-" + hex.EncodeToString(adapter[:8])
	}
	return filepath.Join(dir, name+".json")
}

// ReadRecord reads the record at path and checks it; what is wrong is an *Error.
func ReadRecord(path string) (*Record, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseRecord(path, raw)
}

// ParseRecord is ReadRecord of a file's bytes; path stands for it in errors.
func ParseRecord(path string, raw []byte) (*Record, error) {
	r := &Record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, &Error{path, "record", fmt.Sprintf("not an evaluation record: %v", err)}
	}
	if err := r.check(); err != nil {
		err.Path = path
		return nil, err
	}
	return r, nil
}

func (r *Record) check() *Error {
	switch {
	case r.Schema != 1:
		return &Error{Field: "schema", Detail: fmt.Sprintf("found %d, expected 1", r.Schema)}
	case r.Prompt == "":
		return &Error{Field: "prompt_format", Detail: "is missing"}
	case r.Model == Hash{}:
		return &Error{Field: "model_fingerprint", Detail: "is missing"}
	case r.Parts < 0:
		return &Error{Field: "parts", Detail: fmt.Sprintf("found %d, expected at least 1", r.Parts)}
	case len(r.Sets) == 0:
		return &Error{Field: "sets", Detail: "found none, expected at least one"}
	}
	for i, s := range r.Sets {
		if s.Dataset == "" || s.N < 1 || !(0 <= s.Full && s.Full <= 1) || !(0 <= s.Block && s.Block <= 1) {
			return &Error{Field: fmt.Sprintf("sets[%d]", i), Detail: fmt.Sprintf("found %q, n %d, full %v, block %v; expected a name, n of at least 1 and accuracies of 0 to 1", s.Dataset, s.N, s.Full, s.Block)}
		}
	}
	return nil
}

// Write puts the record at path, whole or not at all; the folder is made where it is missing.
func (r *Record) Write(path string) error {
	if err := r.check(); err != nil {
		err.Path = path
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return vfs.WriteFile(path, 0o600, func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// A Hash is a fingerprint, in JSON as 64 hexadecimal digits.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads them.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("found %d digits of a hash, expected %d", len(b), hex.EncodedLen(len(h)))
	}
	_, err := hex.Decode(h[:], b)
	return err
}
