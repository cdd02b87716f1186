package corpus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func wordCount(s string) int { return len(strings.Fields(s)) }

// collection opens one of a test, and the folder of its documents.
func collection(t *testing.T) (c *Collection, root, docs string) {
	t.Helper()
	root, docs = t.TempDir(), t.TempDir()
	c, err := OpenCollection(root, "notes", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, root, docs
}

func writeDoc(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func ingest(t *testing.T, c *Collection, sync bool, paths ...string) *IngestReport {
	t.Helper()
	r, err := c.Ingest(t.Context(), Ingestion{Paths: paths, Sync: sync, Tokens: 20, Count: wordCount})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// find are the texts found, best first.
func find(t *testing.T, c *Collection, question string, k int) (texts []string) {
	t.Helper()
	found, err := c.Search(t.Context(), question, k)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		texts = append(texts, f.Text)
	}
	return texts
}

func TestCollection_IngestsWhatChanged_AndNoMore(t *testing.T) {
	c, _, docs := collection(t)
	writeDoc(t, filepath.Join(docs, "a.txt"), "Ravens hide food in autumn.")
	writeDoc(t, filepath.Join(docs, "b.txt"), "Owls hear mice under snow.")
	writeDoc(t, filepath.Join(docs, "c.bin"), "x")
	check := func(what string, r *IngestReport, added, changed, unchanged, dropped, passages int) {
		t.Helper()
		if r.Added != added || r.Changed != changed || r.Unchanged != unchanged || r.Dropped != dropped || r.Passages != passages {
			t.Errorf("%s: %+v; want %d added, %d changed, %d unchanged, %d dropped, %d passages", what, r, added, changed, unchanged, dropped, passages)
		}
	}
	r := ingest(t, c, false, docs)
	check("first", r, 2, 0, 0, 0, 2)
	if len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Path, "c.bin") || r.Skipped[0].Reason == "" {
		t.Errorf("skipped %+v, want c.bin with a reason", r.Skipped)
	}
	check("again", ingest(t, c, false, docs), 0, 0, 2, 0, 2)
	writeDoc(t, filepath.Join(docs, "d.txt"), "Owls hear mice under snow.") // under another title
	check("a copy", ingest(t, c, false, docs), 1, 0, 2, 0, 3)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(docs, "a.txt"), later, later); err != nil {
		t.Fatal(err)
	}
	check("touched", ingest(t, c, false, docs), 0, 0, 3, 0, 3)
	writeDoc(t, filepath.Join(docs, "a.txt"), "Rooks live in colonies all year round.")
	check("changed", ingest(t, c, false, docs), 0, 1, 2, 0, 3)
	if got := find(t, c, "ravens", 5); len(got) != 0 {
		t.Errorf("what a file does not hold any more is found: %q", got)
	}
	if got := find(t, c, "rook colony", 5); len(got) != 1 || !strings.HasPrefix(got[0], "Rooks") {
		t.Errorf("what it holds now: %q", got)
	}
	if err := os.Remove(filepath.Join(docs, "b.txt")); err != nil {
		t.Fatal(err)
	}
	check("gone, without sync", ingest(t, c, false, docs), 0, 0, 2, 0, 3)
	check("gone, with sync", ingest(t, c, true, docs), 0, 0, 2, 1, 2)
}

func TestCollection_SamePassageOfTwoFiles_IsThereOnce(t *testing.T) {
	c, _, docs := collection(t)
	line := `{"title":"Owls","text":"Owls hear mice under snow."}` + "\n"
	writeDoc(t, filepath.Join(docs, "a.jsonl"), line+line+`{"title":"Rooks","text":"Rooks live in colonies."}`+"\n")
	writeDoc(t, filepath.Join(docs, "b.jsonl"), line)
	if r := ingest(t, c, false, docs); r.Passages != 2 {
		t.Errorf("%d passages, want 2", r.Passages)
	}
	os.Remove(filepath.Join(docs, "a.jsonl"))
	if r := ingest(t, c, true, docs); r.Passages != 1 {
		t.Errorf("%d passages without one of the files, want 1", r.Passages)
	}
	if got := find(t, c, "owls", 5); len(got) != 1 {
		t.Errorf("found %q", got)
	}
	os.Remove(filepath.Join(docs, "b.jsonl"))
	if r := ingest(t, c, true, docs); r.Passages != 0 || len(find(t, c, "owls", 5)) != 0 {
		t.Errorf("%d passages without both", r.Passages)
	}
}

// The index on disk ranks as the one in memory does.
func TestCollection_Search_RanksAsRankDoes(t *testing.T) {
	c, _, docs := collection(t)
	var lines strings.Builder
	var all []Document
	for i := range 60 {
		text := fmt.Sprintf("Passage %d: %s and %s.", i, []string{"ravens", "owls", "rooks", "swifts", "gulls"}[i%5], []string{"hide food", "hear well", "sleep in flight"}[i%3])
		fmt.Fprintf(&lines, `{"id":"%d","title":"Bird %d","text":%q}`+"\n", i, i%7, text)
		all = append(all, Document{ID: fmt.Sprint(i), Title: fmt.Sprintf("Bird %d", i%7), Text: text})
	}
	writeDoc(t, filepath.Join(docs, "birds.jsonl"), lines.String())
	ingest(t, c, false, docs)
	for question, shared := range map[string]bool{"which ravens hide food?": true, "owls that sleep": true, "bird 3": true, "owls AND NOT hear \"(": true, "AND OR NOT \"(": false, "nothing of the kind": false} {
		best, err := Rank(t.Context(), Split(all, 20, wordCount), question, 7)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range best {
			want = append(want, p.Text)
		}
		if !shared { // no word: Rank gives the first ones
			want = nil
		}
		if got := find(t, c, question, 7); !slices.Equal(got, want) {
			t.Errorf("%q: found %q, want %q", question, got, want)
		}
	}
}

// What an ended run left undone is done by the next: in the database, and in the index.
func TestCollection_EndedAtAnyMoment_GoesOn(t *testing.T) {
	c, root, docs := collection(t)
	for i := range 30 {
		writeDoc(t, filepath.Join(docs, fmt.Sprintf("%02d.txt", i)), fmt.Sprintf("Raven number %d hides food.", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Ingest(ctx, Ingestion{Paths: []string{docs}, Tokens: 20, Count: wordCount, Progress: func(done int) {
		if done == 11 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("ended with %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = OpenCollection(root, "notes", false)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(find(t, c, "raven", 50)); n != 11 {
		t.Errorf("after 11 of 30 files %d passages are found", n)
	}
	if r := ingest(t, c, false, docs); r.Added != 19 || r.Unchanged != 11 || r.Passages != 30 {
		t.Errorf("going on: %+v", r)
	}
	c.Close()
	if err := os.RemoveAll(filepath.Join(root, "notes", "words")); err != nil {
		t.Fatal(err)
	}
	if c, err = OpenCollection(root, "notes", false); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := len(find(t, c, "raven", 50)); n != 30 {
		t.Errorf("with an index made anew %d passages of 30 are found", n)
	}
}

func TestCollections_NamesAndErrors(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"", "..", "../x", "a/b", ".hidden", "a b", strings.Repeat("x", 65), "ä"} {
		var bad *NameError
		if _, err := OpenCollection(root, name, true); !errors.As(err, &bad) || bad.Known != nil {
			t.Errorf("%q: %v, want that it cannot be a name", name, err)
		}
	}
	if _, err := OpenCollection(root, "none", false); err == nil || !strings.Contains(err.Error(), "nor any other; 'tessera ingest -c none PATH' makes it") {
		t.Errorf("none at all: %v", err)
	}
	for _, name := range []string{"b", "a.1"} {
		c, err := OpenCollection(root, name, true)
		if err != nil {
			t.Fatal(err)
		}
		if name == "b" {
			if _, err := OpenCollection(root, name, false); err == nil || !strings.Contains(err.Error(), "another process has this collection open") {
				t.Errorf("open twice: %v", err)
			}
		}
		if err := RemoveCollection(root, name); err == nil {
			t.Errorf("%s was removed while it was open", name)
		}
		c.Close()
	}
	if _, err := OpenCollection(root, "none", false); err == nil || !strings.Contains(err.Error(), "there are a.1, b") {
		t.Errorf("another one: %v", err)
	}
	if names, err := Collections(root); err != nil || !slices.Equal(names, []string{"a.1", "b"}) {
		t.Errorf("names %q, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(root, "a.1", "passages.db"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "a.1"} {
		if err := RemoveCollection(root, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, _ := Collections(root); len(names) != 0 {
		t.Errorf("after removing them: %q", names)
	}
	if err := RemoveCollection(root, "../b"); err == nil {
		t.Error("what is no name was removed")
	}
}
