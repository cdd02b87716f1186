package corpus

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/testenv"
)

func passagesOf(texts ...string) (passages []Passage) {
	for i, text := range texts {
		passages = append(passages, Passage{ID: fmt.Sprint(i), Text: text})
	}
	return passages
}

func rank(t *testing.T, passages []Passage, question string, k int) (ids []string) {
	t.Helper()
	best, err := Rank(context.Background(), passages, question, k)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range best {
		ids = append(ids, p.ID)
	}
	return ids
}

func TestRank_BestFirstAndOnlyWhatMatches(t *testing.T) {
	passages := passagesOf("The fox sleeps.", "Foxes hunt voles in the snow.", "A treatise on cheese and wine.", "Voles eat seeds; the fox eats voles.", "x")
	passages[4].Title = "Cheese"
	for _, test := range []struct {
		question string
		k        int
		want     []string
	}{
		{"which voles does a fox hunt?", 2, []string{"1", "3"}},
		{"who makes cheese", 3, []string{"4", "2"}}, // two hits, no filling up
		{"zebra", 2, []string{"0", "1"}},            // no hit
		{"the of and", 2, []string{"0", "1"}},
		{"", 2, []string{"0", "1"}},
		{"voles", 5, []string{"3", "1", "0", "2", "4"}}, // nothing to choose, but to order
	} {
		if got := rank(t, passages, test.question, test.k); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %v, want %v", test.question, got, test.want)
		}
	}
	if _, err := Rank(context.Background(), passages, "fox", 0); err == nil {
		t.Error("k = 0: no error")
	}
}

func TestRank_Punctuation_IsNoQueryLanguage(t *testing.T) {
	passages := passagesOf("cheese", "fox", "vole", "wine")
	for _, question := range []string{"+fox -fox", "fox AND NOT fox", `"fox"~2^9`, "passage: fox", "-fox", "(fox", "/fo[x/ fox", "fox\\", "fox:::", "fox~*?"} {
		got := rank(t, passages, question, 3)
		if !reflect.DeepEqual(got, []string{"1"}) {
			t.Errorf("%q: got %v", question, got)
		}
	}
}

func TestRank_EqualPassages_KeepTheirOrder(t *testing.T) {
	var texts []string
	for range 30 {
		texts = append(texts, "the red fox and the vole in the snow of a long dark winter night by river lake hill tree stone moss", "something else")
	}
	question := "red fox vole snow long dark winter night river lake hill tree stone moss"
	for range 5 {
		got := rank(t, passagesOf(texts...), question, 8)
		if want := []string{"0", "2", "4", "6", "8", "10", "12", "14"}; !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

// The lengths of texts count in BM25: this fails where the index has none and scores by TF-IDF.
func TestRank_ScoresByBM25(t *testing.T) {
	ix, err := newIndex(context.Background(), passagesOf("fox fox fox hill", "fox dale", "moor", "fen"))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.close()
	result, err := ix.words.Search(request("fox", 2))
	if err != nil {
		t.Fatal(err)
	}
	// By hand: k1 = 1.2, b = 0.75, average length 2, two of four texts have the word. bleve takes the root of the number of times
	// that a text has it, and leaves the formula's constant factor k1 + 1 at k1.
	bm25 := func(times, length float64) float64 {
		idf, tf := math.Log(1+(4-2+0.5)/(2+0.5)), math.Sqrt(times)
		return idf * tf * 1.2 / (tf + 1.2*(1-0.75+0.75*length/2))
	}
	want := map[string]float64{"000000000000": bm25(3, 4), "000000000001": bm25(1, 2)}
	for _, hit := range result.Hits {
		if math.Abs(hit.Score-want[hit.ID]) > 1e-3*want[hit.ID] {
			t.Errorf("passage %s: score %g, want %g", hit.ID, hit.Score, want[hit.ID])
		}
	}
	if len(result.Hits) != 2 {
		t.Errorf("%d hits, want 2", len(result.Hits))
	}
}

func gunzip(t *testing.T, name string, each func(line []byte)) {
	t.Helper()
	f, err := os.Open(testenv.Shared(t, "data", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		each(lines.Bytes())
	}
	if lines.Err() != nil {
		t.Fatal(lines.Err())
	}
}

// Real questions over 11,601 passages: most have the passage annotated for them among the first ten (all thousand: 90.7 %).
func TestRank_FindsGoldPassages(t *testing.T) {
	var passages []Passage
	gunzip(t, "corpus.jsonl.gz", func(line []byte) {
		var p Passage
		if err := json.Unmarshal(line, &p); err != nil {
			t.Fatal(err)
		}
		passages = append(passages, p)
	})
	type question struct {
		Question string
		Passages []struct {
			Text string
			Gold bool
		}
	}
	var questions []question
	gunzip(t, "nq-test.jsonl.gz", func(line []byte) {
		var q question
		if err := json.Unmarshal(line, &q); err != nil {
			t.Fatal(err)
		}
		questions = append(questions, q)
	})
	began := time.Now()
	ix, err := newIndex(context.Background(), passages)
	t.Logf("%d passages indexed in %v", len(passages), time.Since(began))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.close()
	found, asked := 0, 0
	for i, q := range questions {
		if i%5 > 0 { // a fifth of them, for time
			continue
		}
		asked++
		best, err := ix.find(context.Background(), q.Question, 10)
		if err != nil {
			t.Fatal(err)
		}
		gold := map[string]bool{}
		for _, p := range q.Passages {
			gold[p.Text] = p.Gold
		}
		for _, at := range best {
			if gold[passages[at].Text] {
				found++
				break
			}
		}
	}
	t.Logf("recall at 10: %d of %d", found, asked)
	if found*100 < asked*85 {
		t.Errorf("recall at 10: %d of %d, want at least 85 %%", found, asked)
	}
}
