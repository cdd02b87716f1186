package eval

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
)

// What an adapter is trained on has none of the questions that it is judged by, nor one that shares 60 % of its words with one.
func TestSharedData_TrainingQuestions_AreNoTestQuestions(t *testing.T) {
	dir := testenv.Shared(t, "data")
	words := func(text string) map[string]bool {
		set := map[string]bool{}
		for _, w := range strings.Fields(normalize(text)) {
			set[w] = true
		}
		return set
	}
	type question struct {
		name, text string
		words      map[string]bool
	}
	read := func(pattern, split string) (all []question) {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no %s in %s: %v", pattern, dir, err)
		}
		for _, path := range paths {
			d, err := ReadDataset(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range d.Questions {
				if q.Split != split {
					t.Errorf("%s: question %s is marked %q, want %q", path, q.ID, q.Split, split)
				}
				all = append(all, question{d.Name + " " + q.ID, q.Text, words(q.Text)})
			}
		}
		return all
	}
	tested := read("*-test.jsonl.gz", "test")
	with := map[string][]int{} // a word → the test questions that have it
	for i, q := range tested {
		for w := range q.words {
			with[w] = append(with[w], i)
		}
	}
	for _, q := range read("*-train*.jsonl.gz", "train") {
		shared := map[int]int{}
		for w := range q.words {
			for _, i := range with[w] {
				shared[i]++
			}
		}
		for i, n := range shared {
			if union := len(q.words) + len(tested[i].words) - n; float64(n) >= 0.6*float64(union) {
				t.Errorf("%s: %q is as good as %s: %q", q.name, q.text, tested[i].name, tested[i].text)
			}
		}
	}
}
