package corpus

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// ingesterEnv makes the test binary a process that takes the folder DOCS into a collection under ROOT: ROOT:DOCS.
const ingesterEnv = "TESSERA_TEST_INGESTER"

func TestMain(m *testing.M) {
	if root, docs, is := strings.Cut(os.Getenv(ingesterEnv), ":"); is {
		ingestAndExit(root, docs)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // bleve's analysis workers start with the program
}

func ingestAndExit(root, docs string) {
	c, err := OpenCollection(root, "notes", true)
	if err == nil {
		_, err = c.Ingest(context.Background(), Ingestion{Paths: []string{docs}, Tokens: 20, Count: wordCount})
	}
	if err == nil {
		err = c.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ingester:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// A process that takes files in is killed again and again, the database and the index with it; the next one goes on, and in the end every
// passage is there once.
func TestCollection_KilledAtAnyMoment_NothingTwiceNothingLost(t *testing.T) {
	root, docs := t.TempDir(), t.TempDir()
	const files, each = 150, 20
	for i := range files {
		var text strings.Builder
		for j := range each {
			fmt.Fprintf(&text, "Raven number%d of flock%d hides food from the others in the long grass behind the old house.\n\n", i*each+j, i)
		}
		writeDoc(t, filepath.Join(docs, fmt.Sprintf("%03d.txt", i)), text.String())
	}
	kills, ended := 0, false
	for !ended {
		p := exec.Command(os.Args[0])
		p.Env = append(os.Environ(), ingesterEnv+"="+root+":"+docs)
		said := new(strings.Builder)
		p.Stderr = said
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		patience := 20*time.Millisecond + rand.N(time.Duration(kills+1)*50*time.Millisecond) // no machine is done before the first one
		if kills == 12 {
			patience = 2 * time.Minute
		}
		killer := time.AfterFunc(patience, func() { p.Process.Kill() })
		err := p.Wait()
		killer.Stop()
		switch {
		case err == nil:
			ended = true
		case p.ProcessState.Exited():
			t.Fatalf("after %d kills: %v: %s", kills, err, said)
		default:
			kills++
		}
	}
	c, err := OpenCollection(root, "notes", false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seen := map[string]int{}
	all, err := c.After("", 2*files*each)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		seen[p.Text]++
	}
	for text, n := range seen {
		if n != 1 {
			t.Errorf("%d times: %q", n, text)
		}
	}
	n, err := c.words.DocCount()
	if len(seen) != files*each || err != nil || n != files*each {
		t.Errorf("after %d kills %d passages, %d in the index, %v; want %d", kills, len(seen), n, err, files*each)
	}
	for range 50 {
		i := rand.IntN(files * each)
		if got := find(t, c, fmt.Sprintf("number%d", i), 10); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf("number%d of", i)) {
			t.Errorf("the passage of number%d: %q", i, got)
		}
	}
	t.Logf("%d kills", kills)
	if kills == 0 {
		t.Error("it ended before it could be killed")
	}
}

// A hundred thousand passages of about 80 words, by the laws of words in English (Zipf's, 50,000 of them): how long they take to be taken
// in, opened and asked. With TESSERA_LARGE=1; figures are logged, and what is found is checked.
func TestCollection_HundredThousandPassages(t *testing.T) {
	if os.Getenv("TESSERA_LARGE") == "" {
		t.Skip("takes a minute; TESSERA_LARGE=1 runs it")
	}
	const passages, words = 100_000, 80
	root, docs := t.TempDir(), t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	zipf := rand.NewZipf(rng, 1.07, 2.7, 49_999)
	f, err := os.Create(filepath.Join(docs, "all.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	var questions []string
	for i := range passages {
		var text strings.Builder
		for range words {
			if word := zipf.Uint64(); word < 100 {
				text.WriteString("the ") // the commonest ones are no words of the index
			} else {
				fmt.Fprintf(&text, "w%d ", word)
			}
		}
		if i%(passages/1000) == 0 { // four words of the passage, and one that is its own
			some := strings.Fields(strings.ReplaceAll(text.String(), "the ", ""))
			questions = append(questions, fmt.Sprintf("%s %s %s %s own%d", some[0], some[3], some[7], some[11], i))
		}
		fmt.Fprintf(w, "{\"id\":\"%d\",\"title\":\"own%d\",\"text\":%q}\n", i, i, strings.TrimSpace(text.String()))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := OpenCollection(root, "notes", true)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	report, err := c.Ingest(t.Context(), Ingestion{Paths: []string{docs}, Tokens: 200, Count: wordCount})
	if err != nil || report.Passages != passages {
		t.Fatalf("%+v, %v", report, err)
	}
	taken := time.Since(began)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if c, err = OpenCollection(root, "notes", false); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	opened := time.Since(began)
	var times []time.Duration
	for i, q := range questions {
		began := time.Now()
		found, err := c.Search(t.Context(), q, 10)
		times = append(times, time.Since(began))
		if want := fmt.Sprintf("own%d", i*(passages/1000)); err != nil || len(found) == 0 || found[0].Title != want {
			t.Errorf("%q: %v, want %s first", q, err, want)
		}
	}
	slices.Sort(times)
	t.Logf("%d passages of %d words: taken in in %v, %d MB; opened in %v; a question takes p50 %v, p95 %v",
		passages, words, taken.Round(100*time.Millisecond), c.Stat().Bytes>>20, opened.Round(time.Millisecond), times[len(times)/2], times[len(times)*95/100])
}
