package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

func TestDemoQuestions_HaveTheirPassages(t *testing.T) {
	questions, err := demoQuestions()
	if err != nil {
		t.Fatal(err)
	}
	if len(questions) != 10 {
		t.Errorf("%d questions, want 10", len(questions))
	}
	for _, q := range questions {
		if len(q.docs) != 10 || q.Question == "" || len(q.Answers) == 0 {
			t.Errorf("%q has %d answers and %d passages, want 10", q.Question, len(q.Answers), len(q.docs))
		}
		for i, d := range q.docs {
			if d.ID != q.Passages[i] || d.Text == "" {
				t.Errorf("%q: passage %q is %+v", q.Question, q.Passages[i], d)
			}
		}
	}
}

// The demo with one question over three passages, its restart in this process.
func TestDemo_OneQuestion_PrintsItsTable(t *testing.T) {
	if testing.Short() {
		t.Skip("some 700 tokens of the real model")
	}
	if kernel.Path() == "portable" {
		t.Skip("takes minutes there; the tiny model goes the same way")
	}
	path := testenv.Model(t)
	t.Setenv("TESSERA_HOME", t.TempDir())
	questions, err := demoQuestions()
	if err != nil {
		t.Fatal(err)
	}
	q := questions[0]
	q.docs = q.docs[:3]
	var out, errs bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	d := &demo{cmd: cmd, path: path, questions: []demoQuestion{q}}
	store := newStoreDir(t)
	runs, err := d.ask("", fullMode)
	if err != nil {
		t.Fatal(err)
	}
	for _, modes := range [][]demoMode{{coldMode, warmMode, usualMode}, {restartedMode}} {
		block, err := d.ask(store, modes...)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, block...)
	}
	if err := d.print(&out, runs); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"full computed", "block computed", "block ram", "block ram", "block disk"} {
		r := runs[i].Receipts[0]
		if got := r.Attention + " " + r.Blocks[1].Source; got != want {
			t.Errorf("run %d (%s): %s, want %s", i, runs[i].Name, got, want)
		}
	}
	for _, want := range []string{q.Question, "TTFT, median", "block, cold ", "as 'ask' does, warm ", "block, after a restart ", "1 of 1 answers of block attention are the same"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed %s\nwhich lacks %q", out.String(), want)
		}
	}
	if errs.Len() > 0 {
		t.Errorf("on stderr, without a terminal: %q", errs.String())
	}
	var flops []float64
	for _, run := range runs {
		flops = append(flops, sum(run, func(r *tessera.Receipt) float64 { return r.FLOPs.Total }))
	}
	if !(flops[1] > 5*flops[2] && flops[2] == flops[4] && flops[2] < flops[3] && flops[3] < flops[0]) {
		t.Errorf("operations to the first token are %v in the five runs; warm ones must be few", flops)
	}
	if parts := runs[3].Receipts[0].Parts; parts != 3 {
		t.Errorf("as 'ask' does: %d parts of three passages, want 3, as the adapter's record says", parts)
	}
}

func TestMeasured_SaysWhatTheRecordSays(t *testing.T) {
	for _, c := range []struct {
		record *weights.Record
		want   string
	}{
		{nil, "How often block attention is right with these weights nobody has measured yet: 'tessera eval --gate' does."},
		{&weights.Record{Sets: []weights.Scores{{N: 40, Full: 0.5, Block: 0.25}, {N: 10, Full: 0.1, Block: 0.2}}},
			"Of 50 questions of benchmarks, full attention is right for 30.0 %, block attention for 22.5 %: docs/training.md."},
		{&weights.Record{Parts: 10, Sets: []weights.Scores{{N: 40, Full: 0.5, Block: 0.5}}},
			"Of 40 questions of benchmarks, full attention is right for 50.0 %, block attention over all passages and 10 parts of them for 50.0 %: docs/training.md."},
	} {
		if got := measured(c.record); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
