package train

import (
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
)

func TestQuoted_IsTheSentenceNearestTheQuestion(t *testing.T) {
	long := strings.Repeat("on and ", 13)
	for _, tt := range []struct{ name, question, answer, text, want string }{
		{"the sentence", "who built the harbour", "Ida Holm", "The town is old. Ida Holm built the harbour in 1904. It froze.", "Ida Holm built the harbour in 1904."},
		{"of two the nearer", "who built the harbour", "Ida Holm", "Ida Holm was born here. The harbour Ida Holm built is deep.", "The harbour Ida Holm built is deep."},
		{"no sentence", "is it deep", "yes", "The harbour is deep.", "yes"},
		{"within another word", "how many", "4", "It was built in 1904. There are 4 cranes.", "There are 4 cranes."},
		{"long, ends with the answer", "who", "Ida", "It went " + long + "Ida " + long + "ended.", "It went " + long + "Ida"},
		{"too long", "who", "Ida", "It went " + long + long + "Ida ended.", "Ida"},
		{"no end", "who", "Ida", "so said Ida", "so said Ida"},
	} {
		e := &Example{Question: tt.question, Answers: []string{tt.answer}, Needed: []bool{false, true},
			Documents: []prompt.Document{{Text: "Not here: who built the harbour? " + tt.answer + " built the harbour."}, {Text: tt.text}}}
		if got := e.quoted(tt.answer); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
