package eval

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
)

func dataFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// One question in every format there is; all say the same.
func TestReadDataset_EveryFormat_GivesTheSameQuestion(t *testing.T) {
	want := Question{ID: "7", Text: "Where is Ulm?", Answers: []string{"Germany"}, Passages: []Passage{
		{Title: "Ulm", Text: "Ulm is a city. It is in Germany.", Gold: true, HasAnswer: true},
		{Title: "Linz", Text: "Linz is in Austria.", Gold: false, HasAnswer: false},
	}}
	for _, tt := range []struct {
		name, text string
		unmarked   bool // the format does not tell which passages are gold
	}{
		{"tessera", `{"id":"7","dataset":"x","question":"Where is Ulm?","answers":["Germany"],"passages":[` +
			`{"title":"Ulm","text":"Ulm is a city. It is in Germany.","gold":true,"has_answer":true},{"title":"Linz","text":"Linz is in Austria.","gold":false,"has_answer":false}]}`, false},
		{"lost in the middle", `{"id":7,"question":"Where is Ulm?","answers":["Germany"],"nq_annotated_gold":{},"ctxs":[` +
			`{"id":"1","title":"Ulm","text":"Ulm is a city. It is in Germany.","hasanswer":true,"isgold":true},{"title":"Linz","text":"Linz is in Austria.","hasanswer":false,"isgold":false}]}`, false},
		{"DPR", `[{"id":"7","question":"Where is Ulm?","answers":["Germany"],"ctxs":[` +
			`{"id":"wiki:1","title":"Ulm","text":"Ulm is a city. It is in Germany.","score":"81.5","has_answer":true},{"title":"Linz","text":"Linz is in Austria.","has_answer":false}]}]`, true},
		{"DPR without marks", `{"id":"7","question":"Where is Ulm?","answers":["Germany"],"ctxs":[` +
			`{"title":"Ulm","text":"Ulm is a city. It is in Germany."},{"title":"Linz","text":"Linz is in Austria."}]}`, true},
		{"Search-R1", `{"id":"7","question":"Where is Ulm?","golden_answers":["Germany"],"retrieval_result":[` +
			`{"id":"1","contents":"\"Ulm\"\nUlm is a city. It is in Germany."},{"contents":"Linz\nLinz is in Austria."}]}`, true},
		{"HotpotQA", `[{"_id":"7","question":"Where is Ulm?","answer":"Germany","type":"bridge","supporting_facts":[["Ulm",1]],` +
			`"context":[["Ulm",["Ulm is a city."," It is in Germany."]],["Linz",["Linz is in Austria."]]]}]`, false},
		{"2WikiMultiHopQA", `[{"_id":"7","question":"Where is Ulm?","answer":"Germany","evidences":[["Ulm","country","Germany"]],"supporting_facts":[["Ulm",1]],` +
			`"context":[["Ulm",["Ulm is a city.","It is in Germany."]],["Linz",["Linz is in Austria."]],["Empty",[]]]}]`, false},
		{"FlashRAG's HotpotQA", `{"id":"7","question":"Where is Ulm?","golden_answers":["Germany"],"metadata":{"supporting_facts":{"title":["Ulm"],"sent_id":[1]},` +
			`"context":{"title":["Ulm","Linz"],"sentences":[["Ulm is a city."," It is in Germany."],["Linz is in Austria."]]}}}`, false},
		{"FlashRAG's 2WikiMultiHopQA", `{"id":"7","question":"Where is Ulm?","golden_answers":["Germany"],"metadata":{"supporting_facts":{"title":["Ulm"]},` +
			`"context":{"title":["Ulm","Linz"],"content":[["Ulm is a city.","It is in Germany."],["Linz is in Austria."]]}}}`, false},
	} {
		d, err := ReadDataset(dataFile(t, "set.json", tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		want := want
		want.Passages = append([]Passage(nil), want.Passages...)
		want.Passages[0].Gold = !tt.unmarked
		if len(d.Questions) != 1 || !reflect.DeepEqual(d.Questions[0], want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, d.Questions, want)
		}
	}
}

const twoLines = `{"question":"a?","answers":["a"],"passages":[{"text":"x"}]}` + "\r\n\n" + `{"question":"b?","answers":["b"],"passages":[{"text":"y"}]}`

func TestReadDataset_GzipOrPlain_WithoutIDs(t *testing.T) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	w.Write([]byte(twoLines))
	w.Close()
	for name, text := range map[string]string{"nq-test.jsonl": twoLines, "nq-test.jsonl.gz": zipped.String(), "nq-test.json": "\ufeff" + twoLines} {
		d, err := ReadDataset(dataFile(t, name, text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d.Name != "nq-test" || len(d.Questions) != 2 || d.Questions[0].ID != "nq-test-1" || d.Questions[1].ID != "nq-test-2" || d.SHA256 != sha256.Sum256([]byte(text)) {
			t.Errorf("%s: got %+v", name, d)
		}
	}
}

func TestReadDataset_WhatIsWrong_IsNamedWithFileLineAndField(t *testing.T) {
	good := `{"id":"g","question":"a?","answers":["a"],"passages":[{"text":"x"}]}`
	for _, tt := range []struct{ text, want string }{
		{"", "f.jsonl: holds no question"},
		{"[]", "f.jsonl: holds no question"},
		{"\x1f\x8b rest", "f.jsonl: cannot be unpacked"},
		{good + "\n{", "f.jsonl:2: not JSON"},
		{good + "\n3", "f.jsonl:2: not a JSON object"},
		{good + "\n\n" + good, `f.jsonl:3: id: "g" is that of line 1 too`},
		{`{"answers":["a"],"passages":[{"text":"x"}]}`, "f.jsonl:1: question: is missing or empty"},
		{`{"question":7,"answers":["a"],"passages":[{"text":"x"}]}`, "f.jsonl:1: question: found a JSON number, expected string"},
		{`{"question":"a?","passages":[{"text":"x"}]}`, "f.jsonl:1: answers: is missing"},
		{`{"question":"a?","answers":"a","passages":[{"text":"x"}]}`, "f.jsonl:1: answers: found a JSON string, expected []string"},
		{`{"question":"a?","answers":["a"," "],"passages":[{"text":"x"}]}`, "f.jsonl:1: answers[1]: is empty"},
		{`{"question":"a?","answers":["a"],"docs":[]}`, `f.jsonl:1: no passages: found fields answers, docs, question; want "passages"`},
		{`{"question":"a?","answers":["a"],"passages":[{"text":"x"},{"title":"t"}]}`, "f.jsonl:1: passages[1]: has no text"},
		{`{"question":"a?","answers":["a"],"ctxs":[{"text":"x","has_answer":"yes"}]}`, "f.jsonl:1: ctxs.has_answer: found a JSON string, expected bool"},
		{`{"question":"a?","answer":"a","context":[["t"]]}`, "f.jsonl:1: context[0]: want a pair"},
		{`{"question":"a?","answer":"a","context":[["t",["s"]],["u","s"]]}`, "f.jsonl:1: context[1]: want a pair"},
		{`{"question":"a?","answer":"a","context":"[]"}`, "f.jsonl:1: context: found a JSON string"},
		{`{"question":"a?","answer":"a","context":{"title":["t"],"sentences":[]}}`, "f.jsonl:1: context: 1 titles for 0 texts"},
		{`{"question":"a?","answer":"a","context":[["t",["s"]]],"supporting_facts":[[1,"t"]]}`, "f.jsonl:1: supporting_facts[0]: want a pair"},
		{"[\n" + good + ",\n" + `{"question":""}` + "\n]", "f.jsonl:3: question: is missing"},
		{"[\n" + good + ",\n\n  " + `{"question":}` + "\n]", "f.jsonl:4: not JSON"},
		{"[\n" + good + "\n", "f.jsonl: the list does not end"},
	} {
		path := dataFile(t, "f.jsonl", tt.text)
		d, err := ReadDataset(path)
		var typed *DataError
		if err == nil || !errors.As(err, &typed) || !strings.HasPrefix(strings.TrimPrefix(err.Error(), filepath.Dir(path)+"/"), tt.want) {
			t.Errorf("%q: got %v, %v; want %q", tt.text, d, err, tt.want)
		}
	}
}

func FuzzReadDataset(f *testing.F) {
	for _, s := range []string{twoLines, "[" + strings.ReplaceAll(twoLines, "\r\n\n", ",") + "]", `{"question":"q","answer":"a","context":[["t",["s"]]]}`, "\x1f\x8b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "f.jsonl")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := ReadDataset(path)
		if err != nil {
			var typed *DataError
			if !errors.As(err, &typed) || typed.Path != path {
				t.Errorf("error %v (%T); want a DataError of this file", err, err)
			}
			return
		}
		for _, q := range d.Questions {
			if q.ID == "" || q.Text == "" || len(q.Answers) == 0 || len(q.Passages) == 0 {
				t.Errorf("accepted %+v", q)
			}
		}
	})
}

// The counts are those of the folder's README.
func TestReadDataset_SharedData(t *testing.T) {
	for name, n := range map[string]int{"nq-test": 1000, "hotpotqa-test": 400, "2wiki-test": 227, "triviaqa-test": 320} {
		d, err := ReadDataset(testenv.Shared(t, "data", name+".jsonl.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if d.Name != name || len(d.Questions) != n {
			t.Errorf("%s: %d questions, want %d", d.Name, len(d.Questions), n)
		}
		for _, q := range d.Questions {
			if len(q.Passages) != 10 {
				t.Errorf("%s: %d passages, want 10", q.ID, len(q.Passages))
			}
		}
	}
}

func TestChoose_KeepsGold_ElseThoseWithAnAnswer_InOrder(t *testing.T) {
	// a passage a letter: g gold, h with an answer, b both, x neither; capitals are those to be chosen
	for _, tt := range []struct {
		k    int
		want string
	}{
		{2, "XxxBx"}, {3, "XXxBx"}, {1, "xxxBx"}, {2, "xxHxH"}, {1, "xxHxh"}, {3, "XxHxH"}, {2, "XXxx"}, {2, "XxGh"}, {1, "Ggx"}, {5, "XGH"},
	} {
		var passages []Passage
		want := ""
		for i, r := range tt.want {
			lower := strings.ToLower(string(r))
			name := string(rune('0' + i))
			passages = append(passages, Passage{Text: name, Gold: lower == "g" || lower == "b", HasAnswer: lower == "h" || lower == "b"})
			if lower != string(r) {
				want += name
			}
		}
		got := ""
		for _, p := range Choose(passages, tt.k) {
			got += p.Text
		}
		if got != want {
			t.Errorf("%d of %s: got passages %s, want %s", tt.k, strings.ToLower(tt.want), got, want)
		}
	}
}
