package eval

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/weights"
)

func someResults() []*Result {
	adapter, hash := "tuned.gguf", weights.Hash{7}
	make := func(dataset string, a engine.Attention, outcomes string, adapted bool) *Result {
		d := &Dataset{Name: dataset, SHA256: [32]byte{1}}
		w := Weights{Model: "m.gguf", Fingerprint: weights.Hash{9}}
		if adapted {
			w.Adapter, w.AdapterHash = &adapter, &hash
		}
		answers := map[string]Answer{}
		for i, o := range outcomes {
			id := string(rune('a' + i))
			d.Questions = append(d.Questions, Question{ID: id, Answers: []string{"1"}})
			answers[id] = Answer{ID: id, Output: string(o), Prompt: 10, Computed: 7, Generated: 2, Seconds: 0.5}
		}
		return newResult(d, Setting{Attention: a, Passages: 10, MaxTokens: 64}, w, "avx2", d.Questions, answers)
	}
	return []*Result{
		make("nq", engine.Full, "1110", false), make("nq", engine.Block, "1000", false), make("nq", engine.Full, "1111", true), make("nq", engine.Block, "1101", true),
		make("hotpot", engine.Full, "10", false), make("hotpot", engine.Block, "11", false),
	}
}

func TestNewResult_GradesAndSums(t *testing.T) {
	r := someResults()[0]
	if r.N != 4 || r.Correct != 3 || r.Accuracy != 0.75 || r.EM != 0.75 || r.F1 != 0.75 || r.Outcomes != "1110" || r.Interval != Wilson(3, 4) ||
		r.PromptTokens != 40 || r.ComputedTokens != 28 || r.GeneratedTokens != 8 || r.Seconds != 2 {
		t.Errorf("got %+v", r)
	}
}

func TestReport_SurvivesItsJSON_AndOneResultToo(t *testing.T) {
	results := someResults()
	for _, tt := range []struct {
		doc  any
		want []*Result
	}{{NewReport(results), results}, {results[2], results[2:3]}} {
		b, err := json.Marshal(tt.doc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadResults(dataFile(t, "r.json", string(b)))
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
		}
	}
}

func TestReadResults_WhatIsWrong_IsNamed(t *testing.T) {
	b, err := json.Marshal(someResults()[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, want string }{
		{string(b), "x", "r.json: not a result"},
		{string(b), "{}", "r.json: schema: found 0, expected 1"},
		{`"schema":1`, `"schema":2`, "r.json: schema: found 2"},
		{`"1110"`, `"111"`, "r.json: result 1: want a dataset and n outcomes"},
		{`"1110"`, `"1112"`, "result 1"},
		{`"correct":3`, `"correct":2`, "result 1"},
		{`"dataset":"nq"`, `"dataset":""`, "result 1"},
		{string(b), `{"schema":1,"results":[null]}`, "result 1"},
	} {
		path := dataFile(t, "r.json", strings.Replace(string(b), tt.old, tt.new, 1))
		if _, err := ReadResults(path); err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s → %s: got %v, want %q", tt.old, tt.new, err, tt.want)
		}
	}
}

// Each kind of run is compared with the first of as many passages, and block attention with full attention of the same weights: on each set
// that both have, and on all together.
func TestNewReport_ComparesWithTheFirst_AndBlockWithFull(t *testing.T) {
	results := someResults()
	for _, r := range someResults()[1:3] {
		r.Passages = 4
		results = append(results, r)
	}
	var got []string
	for _, c := range NewReport(results).Comparisons {
		got = append(got, strings.Join(c.Datasets, "+")+": "+strings.ReplaceAll(c.Of+" – "+c.Against, ", 10 passages", ""))
	}
	want := []string{
		"nq: m, block – m, full", "hotpot: m, block – m, full", "nq+hotpot: m, block – m, full",
		"nq: m + tuned, full – m, full",
		"nq: m + tuned, block – m, full", "nq: m + tuned, block – m + tuned, full",
		"nq: m + tuned, full, 4 passages – m, block, 4 passages",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestReport_Markdown_HasARowAKind(t *testing.T) {
	var b bytes.Buffer
	if err := NewReport(someResults()).WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| weights | attention | passages | nq | hotpot | mean |\n| --- | --- | ---: | ---: | ---: | ---: |\n",
		"| m | full | 10 | 75.0 [30.1, 95.4] | 50.0 [9.5, 90.5] | 62.5 [25.0, 100.0] |\n", // Wilson by statsmodels: 3 of 4, 1 of 2
		"| m + tuned | block | 10 | 75.0 [30.1, 95.4] |  |  |\n",
		"| m | full | 10 | nq | 4 | 75.0 | 75.0 | 40 | 28 | 2 |\n",
		"| m, block, 10 passages | m, full, 10 passages | nq, hotpot | 6 | 0.0 [",
		"| m, block, 10 passages | m, full, 10 passages | nq | 4 | −50.0 [",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

func TestReport_Figure_IsDrawn(t *testing.T) {
	for format, begins := range map[string]string{"svg": "<?xml", "png": "\x89PNG"} {
		var b bytes.Buffer
		if err := NewReport(someResults()).WriteFigure(&b, format); err != nil || !strings.HasPrefix(b.String(), begins) {
			t.Errorf("%s: %v, begins with %.10q", format, err, b.String())
		}
		if format == "svg" {
			for _, want := range []string{">tuned, block<", ">no adapter, full<", "hotpot", "accuracy"} {
				if !strings.Contains(b.String(), want) {
					t.Errorf("the figure does not say %q", want)
				}
			}
		}
	}
	results := someResults()
	results[0].Model, results[0].Passages = "another", 4
	var b bytes.Buffer
	if err := NewReport(results).WriteFigure(&b, "svg"); err != nil || !strings.Contains(b.String(), ">m + tuned, block, 10 passages<") {
		t.Errorf("%v; the figure of two models does not say \"m + tuned, block, 10 passages\"", err)
	}
}

func TestNewRecord_PairsModes_AndWritesWhatTheGateReads(t *testing.T) {
	results := someResults()
	date := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	record, err := NewRecord(append(results[:2:2], results[4:]...), date)
	if err != nil {
		t.Fatal(err)
	}
	want := &weights.Record{Schema: 1, Date: time.Date(2026, 1, 2, 2, 4, 5, 0, time.UTC), Model: weights.Hash{9}, Prompt: "tessera-prompt/1", Sets: []weights.Scores{
		{Dataset: "nq", N: 4, Passages: 10, Full: 0.75, FullInterval: Wilson(3, 4), Block: 0.25, BlockInterval: Wilson(1, 4)},
		{Dataset: "hotpot", N: 2, Passages: 10, Full: 0.5, FullInterval: Wilson(1, 2), Block: 1, BlockInterval: Wilson(2, 2)},
	}}
	if !reflect.DeepEqual(record, want) {
		t.Errorf("got %+v, want %+v", record, want)
	}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := record.Write(path); err != nil {
		t.Fatal(err)
	}
	if back, err := weights.ReadRecord(path); err != nil || back.Gap() != 0 || !back.Passes() {
		t.Errorf("read back: %+v, %v; want a gap of 0", back, err)
	}
	if _, err := NewRecord(results[1:3], date); err == nil { // block of one, full of other weights
		t.Error("a record without full mode of the same weights")
	}
}

func TestReport_Steps_AreThoseInTheAdaptersNames(t *testing.T) {
	results := someResults()
	var b bytes.Buffer
	if err := NewReport(results).WriteSteps(&b, "svg"); err == nil || !strings.Contains(err.Error(), "tuned.gguf, has no step") {
		t.Errorf("an adapter without a step: %v", err)
	}
	for _, r := range results {
		if r.Adapter != nil {
			name := "block.step120.gguf"
			r.Adapter = &name
		}
	}
	if training, step, ok := results[2].step(); training != "block" || step != 120 || !ok {
		t.Errorf("training %q, step %d, %v; want block, 120", training, step, ok)
	}
	b.Reset()
	if err := NewReport(results).WriteSteps(&b, "svg"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"steps of training", "block: full, 10 passages", "block: block, 10 passages"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the figure does not say %q", want)
		}
	}
}
