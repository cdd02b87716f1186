package eval

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/weights"
)

// A journal is the answers of one kind of run over one dataset, a JSON line each as they come, so that a run that was killed goes on
// where it stopped. Its first line is the key: all that answers depend on. The file's name carries the key's hash, so that a folder
// holds any number of runs.
type journal struct {
	f       *os.File
	answers map[string]Answer // by question
}

// A runKey is all that the answer to a question of a dataset depends on.
type runKey struct {
	Schema    int           `json:"schema"`
	Dataset   string        `json:"dataset"`
	Data      weights.Hash  `json:"data_sha256"`
	Attention string        `json:"attention"`
	Parts     int           `json:"parts,omitempty"` // of the passages, where there are several
	Reencoded bool          `json:"reencoded"`
	Shuffle   *uint64       `json:"shuffle"`
	Passages  int           `json:"passages"`
	MaxTokens int           `json:"max_tokens"`
	Prompt    string        `json:"prompt_format"`
	KV        string        `json:"kv"`
	Kernel    string        `json:"kernel_path"`
	Numerics  int           `json:"numerics"`
	Model     weights.Hash  `json:"model_fingerprint"`
	Adapter   *weights.Hash `json:"adapter_fingerprint"`
}

// openJournal opens the journal of key in folder dir, both made where they are missing. What a killed run left of a line is cut off.
func openJournal(dir string, key runKey) (j *journal, err error) {
	key.Schema, key.Numerics = 1, kv.NumericsVersion
	head, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(head)
	path := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.jsonl", key.Dataset, key.Attention, hex.EncodeToString(sum[:6])))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644) // several processes may answer into one folder
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	j = &journal{f: f, answers: map[string]Answer{}}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	if err := f.Truncate(int64(len(text))); err != nil {
		return nil, err
	}
	if len(text) == 0 {
		return j, j.write(append(head, '\n'))
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if line = bytes.TrimSuffix(line, []byte("\n")); n == 1 {
			if !bytes.Equal(line, head) {
				return nil, fmt.Errorf("%s:1: is of another run: found %s, expected %s; name another folder", path, line, head)
			}
			continue
		}
		var a Answer
		if err := json.Unmarshal(line, &a); err != nil || a.ID == "" {
			return nil, fmt.Errorf("%s:%d: not an answer; without this line the run goes on, and answers the question again", path, n)
		}
		j.answers[a.ID] = a
	}
	return j, nil
}

func (j *journal) add(answers []Answer) error {
	var lines []byte
	for _, a := range answers {
		line, err := json.Marshal(a)
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
		j.answers[a.ID] = a
	}
	return j.write(lines)
}

func (j *journal) has(question string) bool {
	_, ok := j.answers[question]
	return ok
}

func (j *journal) write(lines []byte) error {
	if j.f == nil {
		return nil
	}
	_, err := j.f.Write(lines)
	return err
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	return j.f.Close()
}
