package prompt_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
)

func TestSplit_MarkerLines_SeparateBlocks(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		docs       []prompt.Document
		question   string
	}{
		{"two blocks", "Title: A\na\nb\n[[block]]\n\nc\n\n[[block]]\nWho?\n", []prompt.Document{{Title: "A", Text: "a\nb"}, {Text: "c"}}, "Who?"},
		{"no marker", " Who?\nAnd why?\n", nil, "Who?\nAnd why?"},
		{"marker first, twice, and last", "[[block]]\n[[block]]\na\n[[block]]", []prompt.Document{{Text: "a"}}, ""},
		{"line breaks of Windows", "a\r\n[[block]]\r\nWho?\r\n", []prompt.Document{{Text: "a"}}, "Who?"},
		{"not a line of its own", "a [[block]]\n [[block]]\n[[block]] \nWho?", nil, "a [[block]]\n [[block]]\n[[block]] \nWho?"},
		{"indentation counts", "\n\n  a\n[[block]]\nq", []prompt.Document{{Text: "  a"}}, "q"},
		{"a title without text", "Title: A\n[[block]]\nTitle: \nb\n[[block]]\nq", []prompt.Document{{Text: "Title: A"}, {Text: "Title: \nb"}}, "q"},
		{"empty", "", nil, ""},
	} {
		if docs, question := prompt.Split(tt.text); !reflect.DeepEqual(docs, tt.docs) || question != tt.question {
			t.Errorf("%s: got %q, %q; want %q, %q", tt.name, docs, question, tt.docs, tt.question)
		}
	}
}

// A prompt marked by hand and the same passages as documents share every block.
func FuzzSplit_GivesTheBlocksOfDocuments(f *testing.F) {
	f.Add("A", "a\nb", "c", "Who?")
	f.Add("", "Title: x\ny", "[[block]]x", "q")
	f.Add("A\r", "a", "Title: A\n b", "q")
	template := newTemplate(f, chatML, newTokenizer(f, byteVocab()))
	f.Fuzz(func(t *testing.T, title, a, b, question string) {
		for _, s := range []string{a, b} {
			if strings.Trim(s, "\r\n") != s || s == "" {
				t.Skip("line breaks around a block do not count")
			}
		}
		if strings.ContainsAny(title, "\r\n") || strings.TrimSpace(question) != question || question == "" ||
			slices.Contains(strings.FieldsFunc(a+"\n"+b+"\n"+question, func(r rune) bool { return r == '\n' || r == '\r' }), prompt.Marker) {
			t.Skip()
		}
		first := "Title: " + title + "\n" + a
		if title == "" {
			first = a
		}
		docs, q := prompt.Split(first + "\n[[block]]\n" + b + "\n[[block]]\n" + question)
		got, err := template.Build("", docs, q)
		if err != nil {
			t.Fatal(err)
		}
		want, err := template.Build("", []prompt.Document{{Title: title, Text: a}, {Text: b}}, question)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("marked %q + %q + %q: got %v, want %v", first, b, question, got, want)
		}
	})
}
