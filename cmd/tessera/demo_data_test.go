package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

//go:embed demo/passages.jsonl
var demoPassagesFile []byte

//go:embed demo/questions.jsonl
var demoQuestionsFile []byte

type demoPassageLine struct{ ID, Title, Text string }

type demoQuestionLine struct {
	Question string
	Answers  []string
	Passages []string
}

func demoLines[T any](t *testing.T, name string, file []byte) (lines []T) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(file))
	decoder.DisallowUnknownFields()
	for decoder.More() {
		var line T
		if err := decoder.Decode(&line); err != nil {
			t.Fatalf("%s, entry %d: %v", name, len(lines)+1, err)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDemoData_PassagesAreShortAndDistinct(t *testing.T) {
	passages := demoLines[demoPassageLine](t, "passages.jsonl", demoPassagesFile)
	if len(passages) != 40 {
		t.Errorf("%d passages, want 40", len(passages))
	}
	seen := map[string]bool{}
	for _, p := range passages {
		if p.ID == "" || p.Title == "" || seen[p.ID] || seen[p.Title] {
			t.Errorf("passage %q, title %q: empty or used twice", p.ID, p.Title)
		}
		seen[p.ID], seen[p.Title] = true, true
		if n := len(strings.Fields(p.Text)); n < 45 || n > 90 {
			t.Errorf("passage %s has %d words, want 45 to 90", p.ID, n)
		}
	}
}

// Each question can be answered from one of its passages and no other of them; the questions together use every passage; and all but
// the first find most of theirs computed already, in another order than before, which is what the demo is there to show.
func TestDemoData_QuestionsReuseEachOthersPassages(t *testing.T) {
	texts := map[string]string{}
	for _, p := range demoLines[demoPassageLine](t, "passages.jsonl", demoPassagesFile) {
		texts[p.ID] = p.Text
	}
	questions := demoLines[demoQuestionLine](t, "questions.jsonl", demoQuestionsFile)
	if len(questions) != 10 {
		t.Errorf("%d questions, want 10", len(questions))
	}
	computed := map[string]bool{}
	var before []string
	for i, q := range questions {
		reused := 0
		var answering []string
		for n, id := range q.Passages {
			if texts[id] == "" || slices.Contains(q.Passages[:n], id) {
				t.Errorf("%q: passage %q is unknown or named twice", q.Question, id)
			}
			if computed[id] {
				reused++
			}
			if len(q.Answers) > 0 && strings.Contains(texts[id], q.Answers[0]) {
				answering = append(answering, id)
			}
		}
		if len(q.Passages) != 10 || len(answering) != 1 {
			t.Errorf("%q: %d passages, want 10; the answer %q is in %v, want one", q.Question, len(q.Passages), q.Answers, answering)
		}
		if i > 0 && (reused < 5 || reused == 10) {
			t.Errorf("%q: %d of its passages were used before, want 5 to 9", q.Question, reused)
		}
		if i > 0 && sameOrder(before, q.Passages) {
			t.Errorf("%q: what it shares with the question before comes in the same order", q.Question)
		}
		for _, id := range q.Passages {
			computed[id] = true
		}
		before = q.Passages
	}
	if len(computed) != len(texts) {
		t.Errorf("%d of %d passages are used", len(computed), len(texts))
	}
}

// sameOrder reports whether what a and b share comes in the same order in both.
func sameOrder(a, b []string) bool {
	common := func(from, other []string) (shared []string) {
		for _, id := range from {
			if slices.Contains(other, id) {
				shared = append(shared, id)
			}
		}
		return shared
	}
	return slices.Equal(common(a, b), common(b, a))
}
