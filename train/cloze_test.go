package train

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
)

// With its answer in the blank, a cloze is words of a document, and the answer is a name or a number that the rest does not give away.
func TestCloze_WithItsAnswer_IsInADocument(t *testing.T) {
	documents := []prompt.Document{
		{Text: "The Rhine rises high up in the Alps. It passes Basel, Bonn and Cologne, and ends in the North Sea (near Rotterdam, in 2 arms)."},
		{Text: "Copper was smelted in Serbia about 5000 BC, long before iron was. Élan vital was named by Henri Bergson in 1907!"},
		{Text: ""}, {Text: "no names stand here, nor numbers, and so no question either"},
	}
	rng := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for range 300 {
		question, answer, ok := cloze(rng, documents)
		if !ok {
			continue
		}
		context, is := strings.CutPrefix(question, clozeQuestion)
		if !is || strings.Count(context, blank) != 1 {
			t.Fatalf("question %q", question)
		}
		if whole := strings.Replace(context, blank, answer, 1); !strings.Contains(documents[0].Text, whole) && !strings.Contains(documents[1].Text, whole) {
			t.Errorf("%q with %q is in no document", question, answer)
		}
		if strings.Contains(context, answer) || !isName(answer) {
			t.Errorf("%q is answered by %q", question, answer)
		}
		seen[answer] = true
	}
	for _, want := range []string{"Alps", "Basel", "Cologne", "North Sea", "Rotterdam", "Serbia", "5000 BC", "Henri Bergson", "1907"} {
		if !seen[want] {
			t.Errorf("never asked for %q; of %v", want, seen)
		}
	}
	for _, wrong := range []string{"The", "It", "Copper", "Élan", "Sea", "Bergson"} {
		if seen[wrong] {
			t.Errorf("asked for %q, the first word of a sentence or half a name", wrong)
		}
	}
	if _, _, ok := cloze(rng, documents[2:]); ok {
		t.Error("a question of no names")
	}
}

func TestCurriculum_Cloze_AsksMoreOfTheSameDocuments(t *testing.T) {
	c := curriculum(t)
	for i := range c.Examples[:3] {
		for j := range c.Examples[i].Documents {
			c.Examples[i].Documents[j].Text += " There is a bridge from here to Vienna, they say, and one to Prague."
		}
	}
	c.Examples, c.Cloze = c.Examples[:3], 2
	for i := range 6 {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for first, next := range s.finalBlocks() {
			text := c.Tokenizer.Decode(s.Tokens[first:next])
			if is := strings.Contains(text, clozeQuestion); is != (at > 0) {
				t.Errorf("sample %d, question %d: %q", i, at, text)
			}
			at++
		}
		if at != 3 {
			t.Errorf("sample %d asks %d questions, want one and two made of its documents", i, at)
		}
	}
}
