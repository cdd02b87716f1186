package eval

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/pull"
)

// A benchmark is where a published set is, with the passages of each question.
type benchmark struct {
	ref       string // as package pull takes it
	questions int
	passages  int // kept of each question, the first so many; 0: all
}

// benchmarks are those of the paper. HotpotQA and 2WikiMultiHopQA carry their passages. NQ-open and TriviaQA do not: these are the
// passages that DPR retrieves, a hundred a question, best first, as its authors and those of In-Context RALM publish them.
var benchmarks = map[string]benchmark{
	"nq":       {"https://dl.fbaipublicfiles.com/dpr/data/retriever_results/single/nq-test.json.gz", 3_610, 10},
	"triviaqa": {"https://storage.googleapis.com/ai21-publishing-public-models/in-context-ralm/trivia-test-dpr-results.json", 11_313, 10},
	"hotpotqa": {"hf:datasets/RUC-NLPIR/FlashRAG_datasets:hotpotqa/dev.jsonl", 7_405, 0},
	"2wiki":    {"hf:datasets/RUC-NLPIR/FlashRAG_datasets:2wikimultihopqa/dev.jsonl", 12_576, 0},
}

// Benchmarks are the names that Fetch knows.
func Benchmarks() []string { return slices.Sorted(maps.Keys(benchmarks)) }

// Fetch gets a benchmark by its name, or any file of questions by a reference that package pull takes, checks it and writes it to
// folder dir as NAME.jsonl.gz, in Tessera's own form. A download that was cut goes on from there; o.Dir keeps what came. It returns the
// file's path and the number of its questions.
func Fetch(ctx context.Context, name, dir string, o pull.Options) (path string, questions int, err error) {
	b, known := benchmarks[name]
	if !known {
		if kind, _, ok := strings.Cut(name, ":"); !ok || kind != "hf" && kind != "http" && kind != "https" {
			return "", 0, fmt.Errorf("%s: no such benchmark; want one of %s, hf:datasets/OWNER/REPO:FILE or a URL", name, strings.Join(Benchmarks(), ", "))
		}
		b.ref = name
	}
	got, err := pull.Pull(ctx, b.ref, o)
	if err != nil {
		return "", 0, err
	}
	d, err := ReadDataset(got.Path)
	if err == nil && known && len(d.Questions) != b.questions {
		err = fmt.Errorf("%s: holds %d questions, expected %d", got.Path, len(d.Questions), b.questions)
	}
	if err != nil {
		os.Remove(got.Path) // so that the next time fetches it anew
		return "", 0, fmt.Errorf("%s serves something else than it should: %w; the file is removed", got.Source, err)
	}
	if known {
		d.Name = name
		for i := range d.Questions {
			d.Questions[i].Split = "test" // of ours at least: they are what accuracy is measured on
		}
	}
	if b.passages > 0 {
		for i := range d.Questions {
			q := &d.Questions[i]
			q.Passages = q.Passages[:min(b.passages, len(q.Passages))]
		}
	}
	path = filepath.Join(dir, d.Name+".jsonl.gz")
	return path, len(d.Questions), d.write(path)
}

// write puts the questions at path, whole or not at all.
func (d *Dataset) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return vfs.WriteFile(path, 0o600, func(w io.Writer) error {
		z := gzip.NewWriter(w)
		if err := d.writeLines(z); err != nil {
			return err
		}
		return z.Close()
	})
}

func (d *Dataset) writeLines(w io.Writer) error {
	lines := json.NewEncoder(w)
	lines.SetEscapeHTML(false)
	for _, q := range d.Questions {
		err := lines.Encode(struct {
			ID       string    `json:"id"`
			Dataset  string    `json:"dataset"`
			Split    string    `json:"split,omitempty"`
			Question string    `json:"question"`
			Answers  []string  `json:"answers"`
			Passages []Passage `json:"passages"`
		}{q.ID, d.Name, q.Split, q.Text, q.Answers, q.Passages})
		if err != nil {
			return err
		}
	}
	return nil
}
