package eval

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/pull"
)

// hub serves one file under any path, the first time only half of it; it makes hotpotqa that benchmark of n questions.
func hub(t *testing.T, content string, n int) (requests func() string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
		first := len(seen) == 1
		mu.Unlock()
		w.Header().Set("ETag", `"v1"`)
		if first {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write([]byte(content[:len(content)/2]))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	}))
	t.Cleanup(s.Close)
	t.Setenv("HF_ENDPOINT", s.URL)
	was := benchmarks["hotpotqa"]
	t.Cleanup(func() { benchmarks["hotpotqa"] = was })
	benchmarks["hotpotqa"] = benchmark{was.ref, n, 1}
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(seen, "|")
	}
}

const published = `{"id":"dev_0","question":"Where is Ulm?","golden_answers":["Germany"],"metadata":{"supporting_facts":{"title":["Ulm"],"sent_id":[1]},` +
	`"context":{"title":["Ulm","Linz"],"sentences":[["Ulm is a city."," It is in Germany <b>."],["Linz is in Austria."]]}}}` + "\n"

func TestFetch_AcrossACut_GivesTheBenchmarkInOurForm(t *testing.T) {
	requests := hub(t, published, 1)
	cache, dir := t.TempDir(), filepath.Join(t.TempDir(), "sets")
	path, n, err := Fetch(t.Context(), "hotpotqa", dir, pull.Options{Dir: cache})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ReadDataset(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []Question{{ID: "dev_0", Text: "Where is Ulm?", Answers: []string{"Germany"},
		Passages: []Passage{{Title: "Ulm", Text: "Ulm is a city. It is in Germany <b>.", Gold: true, HasAnswer: true}}, Split: "test"}}
	if path != filepath.Join(dir, "hotpotqa.jsonl.gz") || n != 1 || d.Name != "hotpotqa" || !reflect.DeepEqual(d.Questions, want) {
		t.Errorf("got %s, %d, %+v, want %+v", path, n, d, want)
	}
	file := "/datasets/RUC-NLPIR/FlashRAG_datasets/resolve/main/hotpotqa/dev.jsonl"
	if got, want := requests(), fmt.Sprintf("%s|%s bytes=%d-", file, file, len(published)/2); got != want {
		t.Errorf("the server saw %s, want %s", got, want)
	}
	if _, _, err := Fetch(t.Context(), "hotpotqa", dir, pull.Options{Dir: cache}); err != nil || strings.Count(requests(), "|") != 1 {
		t.Errorf("again: %v, requests %s; want none more", err, requests())
	}
}

func TestFetch_SomethingElse_IsRefusedAndFetchedAnew(t *testing.T) {
	for _, tt := range []struct {
		content string
		n       int
		want    string
	}{
		{published, 7405, "holds 1 questions, expected 7405"},
		{strings.Replace(published, `"golden_answers"`, `"golden"`, 1), 1, "dev.jsonl:1: answers: is missing"},
	} {
		hub(t, tt.content, tt.n)
		cache, dir := t.TempDir(), t.TempDir()
		_, _, err := Fetch(t.Context(), "hotpotqa", dir, pull.Options{Dir: cache})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "hf:datasets/RUC-NLPIR/FlashRAG_datasets:hotpotqa/dev.jsonl") {
			t.Errorf("got %v, want %q and where it is from", err, tt.want)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
		if left, _ := filepath.Glob(filepath.Join(cache, "hf", "*", "*", "*", "*", "*.jsonl")); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
}

func TestFetch_UnknownName_SaysWhatThereIs(t *testing.T) {
	for _, name := range []string{"squad", "", "file.jsonl", "pip:x"} {
		if _, _, err := Fetch(t.Context(), name, t.TempDir(), pull.Options{Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "2wiki, hotpotqa, nq, triviaqa") {
			t.Errorf("%q: got %v", name, err)
		}
	}
}
