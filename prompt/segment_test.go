package prompt_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
)

func TestSegment_CommonMarks_SeparateDocuments(t *testing.T) {
	two := []prompt.Document{{ID: "1", Text: "Ravens hide food."}, {ID: "2", Text: "Owls hear well."}}
	for _, tt := range []struct {
		name, text string
		docs       []prompt.Document
		question   string
	}{
		{"markers", "a\n[[block]]\n<source>b</source>\n[[block]]\nWho?", []prompt.Document{{Text: "a"}, {Text: "<source>b</source>"}}, "Who?"},
		{"sources in a context", "### Task:\nAnswer by the context.\n<context>\n<source id=\"1\">Ravens hide food.</source>\n<source id=\"2\">Owls hear well.</source>\n</context>\n\nWho hides food?", two, "### Task:\nAnswer by the context.\n\n\nWho hides food?"},
		{"documents with parts", "<documents><document index='1'><source>birds &amp; co.txt</source><document_content>\nRavens hide food.\n</document_content></document></documents>Who?", []prompt.Document{{ID: "1", Title: "birds &amp; co.txt", Text: "Ravens hide food."}}, "Who?"},
		{"attributes", `<doc id=3 title="A &amp; B">x</doc> <PASSAGE name='C'>y</passage>Who?`, []prompt.Document{{Title: "A & B", Text: "x"}, {Title: "C", Text: "y"}}, "Who?"},
		{"an end is missing", "<source>a</source> and <source>b, who?", []prompt.Document{{Text: "a"}}, "and <source>b, who?"},
		{"no question", "<source>a</source>", nil, "<source>a</source>"},
		{"nothing within", "<source></source>Who?", nil, "<source></source>Who?"},
		{"other tags", "<sourcecode>a</sourcecode> <sources>b</sources> Who?", nil, "<sourcecode>a</sourcecode> <sources>b</sources> Who?"},
		{"numbers in brackets", "Context:\n[1] Ravens hide food.\n[2] Owls hear well.\n\nQuestion: who?", two, "Context:\n\nQuestion: who?"},
		{"numbers, several paragraphs", "[1] Ravens\n\nhide food.\n[2] Owls hear well.\n\nWho?\n\nAnd why?", []prompt.Document{{ID: "1", Text: "Ravens\n\nhide food."}, {ID: "2", Text: "Owls hear well."}}, "Who?\n\nAnd why?"},
		{"line ends of Windows stay, in the last one too", "[1] a\r\nb\r\n[2] a\r\nb\r\n\r\nWho?", []prompt.Document{{ID: "1", Text: "a\r\nb"}, {ID: "2", Text: "a\r\nb"}}, "Who?"},
		{"titles", "Document [1](Title: Ravens) hide food.\nDocument [2](Title: Owls (barn)) hear well.\n\nQuestion: who?\nAnswer:", []prompt.Document{{ID: "1", Title: "Ravens", Text: "hide food."}, {ID: "2", Title: "Owls (barn", Text: ") hear well."}}, "Question: who?\nAnswer:"},
		{"words and numbers", "Who?\nPassage 1: a\nPassage 2: b\n", []prompt.Document{{ID: "1", Text: "a"}, {ID: "2", Text: "b"}}, "Who?"},
		{"a number alone", "[1] a\n\nWho?", nil, "[1] a\n\nWho?"},
		{"numbers without text", "[1]\n[2]\n\nWho?", nil, "[1]\n[2]\n\nWho?"},
		{"not from one on", "[2] a\n[3] b\n\nWho?", nil, "[2] a\n[3] b\n\nWho?"},
		{"a list", "1. a\n2. b\n\nWho?", nil, "1. a\n2. b\n\nWho?"},
		{"citations within text", "As [1] says and [2] does not, who?", nil, "As [1] says and [2] does not, who?"},
		{"plain", "Who?", nil, "Who?"},
		{"empty", "", nil, ""},
	} {
		if docs, question := prompt.Segment(tt.text); !reflect.DeepEqual(docs, tt.docs) || question != tt.question {
			t.Errorf("%s: got %q, %q; want %q, %q", tt.name, docs, question, tt.docs, tt.question)
		}
	}
}

func TestSegment_SameDocumentElsewhere_IsTheSameText(t *testing.T) {
	a, _ := prompt.Segment("<source id=1>Ravens.</source><source id=2>Owls.</source>Who?")
	b, _ := prompt.Segment("[1] Owls.\n[2] Ravens.\n\nWho?")
	if a[0].Text != b[1].Text || a[1].Text != b[0].Text {
		t.Errorf("%q, %q", a, b)
	}
}

func TestResults_ListsAndMarks_AreSeveralDocuments(t *testing.T) {
	two := []prompt.Document{{ID: "7", Title: "T", Text: "a"}, {Text: "b"}}
	for text, want := range map[string][]prompt.Document{
		`[{"id":7,"title":"T","content":"a"},"b"]`:                                       two,
		`{"results":[{"id":"7","name":"T","snippet":"a"},{"text":"b"}],"total":2}`:       two,
		`{"query":"q","data":[{"id":"7","data":{"title":"T","text":"a"}},{"text":"b"}]}`: two,
		`<document id="7" title="T">a</document><document>b</document>`:                  two,
		"[1] a\n[2] b":                      {{ID: "1", Text: "a"}, {ID: "2", Text: "b"}},
		`{"temperature":12}`:                {{Text: `{"temperature":12}`}},
		`[{"id":"7"}]`:                      {{Text: `[{"id":"7"}]`}},
		`[1,2]`:                             {{Text: `[1,2]`}},
		`<document>a</document> and a word`: {{Text: `<document>a</document> and a word`}},
		`plain`:                             {{Text: "plain"}},
	} {
		if got := prompt.Results(text); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestDocument_WrongShapes_AreSaid(t *testing.T) {
	for text, want := range map[string]string{`""`: "is empty", `7`: "expected a text", `{}`: "neither text nor id", `{"text":7}`: "expected a text, or an object", `{"id":[]}`: "expected a text, or an object"} {
		var d prompt.Document
		if err := json.Unmarshal([]byte(text), &d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Whatever a message holds, what comes out stands in it, and there is a question or no document.
func FuzzSegment(f *testing.F) {
	for _, text := range []string{"<source id=1>a</source>b", "<doc><doc></doc>", "[1] a\n[2] b\n\nq", "Document [1](Title: a) b\nDocument [2] c", "a\n[[block]]\nb", "<document><title>x</title></document>q", "[1]a\r\n\r\n[2]b\r\n\r\nc", "[1]0\n[2]0\r\r\n0\n\n0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		docs, question := prompt.Segment(text)
		if len(docs) > 0 && question == "" && !strings.Contains(text, prompt.Marker) {
			t.Errorf("%q: documents %q and no question", text, docs)
		}
		for _, d := range docs {
			if d.Text == "" || !strings.Contains(strings.ReplaceAll(text, "\r\n", "\n"), strings.ReplaceAll(d.Text, "\r\n", "\n")) {
				t.Errorf("%q: document %q", text, d.Text)
			}
		}
		if len(prompt.Results(text)) == 0 {
			t.Errorf("%q: no document", text)
		}
	})
}
