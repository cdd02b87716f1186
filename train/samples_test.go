package train

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

// curriculum has three questions of four documents each, of which the second holds the answer, and an instruction.
func curriculum(t *testing.T) *Curriculum {
	t.Helper()
	file, err := weights.Open(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	vocab, err := file.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		t.Fatal(err)
	}
	source, _ := file.ChatTemplate()
	template, err := prompt.New(source, tok, vocab.EOS)
	if err != nil {
		t.Fatal(err)
	}
	c := &Curriculum{Template: template, Tokenizer: tok, End: 254, Documents: []Range{{2, 3}}, Seed: 9}
	for _, city := range []string{"Oslo", "Lima", "Bonn"} {
		e := Example{ID: city, Question: "Which city?", Answers: []string{"The city of " + city, city}}
		for i, text := range []string{"a", "It is " + city + ".", "c", "d"} {
			e.Documents, e.Needed = append(e.Documents, prompt.Document{Text: text}), append(e.Needed, i == 1)
		}
		c.Examples = append(c.Examples, e)
	}
	c.Examples = append(c.Examples, Example{ID: "instruction", Question: "Say hello.", Answers: []string{"Hello."}, System: "Be kind."})
	return c
}

func TestCurriculum_Samples_AreThePromptAndTheAnswerInAPassage(t *testing.T) {
	c := curriculum(t)
	seen := map[string]bool{}
	for i := range 4 * len(c.Examples) {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		var answer []int32
		for j, at := range s.Targets {
			if at != len(s.Tokens)-len(s.Targets)+j {
				t.Fatalf("sample %d: targets %v of %d tokens; want the last ones", i, s.Targets, len(s.Tokens))
			}
			answer = append(answer, s.Tokens[at])
		}
		if end := answer[len(answer)-1]; end != c.End {
			t.Errorf("sample %d ends with token %d, want %d", i, end, c.End)
		}
		text, said := c.Tokenizer.Decode(s.Tokens), c.Tokenizer.Decode(answer[:len(answer)-1])
		if said == "Hello." {
			if len(s.Blocks) != 2 || !strings.Contains(text, "Be kind.") {
				t.Errorf("sample %d: the instruction in %d blocks: %q", i, len(s.Blocks), text)
			}
			continue
		}
		if !strings.Contains(text, "It is "+said+".\n\n") {
			t.Errorf("sample %d: answer %q is in no passage of %q", i, said, text)
		}
		if n := len(s.Blocks) - 2; n < c.Documents[0].Fewest || n > c.Documents[0].Most {
			t.Errorf("sample %d has %d passages, want %d to %d", i, n, c.Documents[0].Fewest, c.Documents[0].Most)
		}
		total := 0
		for _, n := range s.Blocks {
			total += n
		}
		if total != len(s.Tokens) {
			t.Errorf("sample %d: blocks of %d tokens for %d", i, total, len(s.Tokens))
		}
		seen[text] = true
	}
	if len(seen) < 9 {
		t.Errorf("%d different prompts in 12 samples of questions; passes over the examples repeat each other", len(seen))
	}
}

// A text without answers is a final block without targets, beside others that have some.
func TestCurriculum_NoAnswers_NoTargets(t *testing.T) {
	c := curriculum(t)
	c.Examples, c.Questions = c.Examples[:2], []int{2}
	c.Examples[0].Answers = nil
	for i := range 4 {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		with := 0
		for first, next := range s.finalBlocks() {
			if at, _ := slices.BinarySearch(s.Targets, first); at < len(s.Targets) && s.Targets[at] < next {
				with++
			}
		}
		if s.Finals != 2 || with != 1 {
			t.Errorf("sample %d: %d of %d final blocks have targets, want one of two", i, with, s.Finals)
		}
	}
}

func TestCurriculum_Questions_ShareTheDocumentsTheyNeed(t *testing.T) {
	c := curriculum(t)
	c.Examples, c.Questions, c.Documents = c.Examples[:3], []int{2}, []Range{{5, 5}}
	for i := range 9 {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		if s.Finals != 2 || len(s.Blocks) != 1+5+2 {
			t.Fatalf("sample %d: %d blocks, %d of them final ones; want the system's, 5 and 2", i, len(s.Blocks), s.Finals)
		}
		var answers []string
		for first, next := range s.finalBlocks() {
			text := c.Tokenizer.Decode(s.Tokens[first:next])
			if strings.Count(text, "Which city?") != 1 {
				t.Errorf("sample %d: final block %q", i, text)
			}
			var answer []int32
			for _, at := range s.Targets {
				if at >= first && at < next {
					answer = append(answer, s.Tokens[at])
				}
			}
			if len(answer) == 0 || answer[len(answer)-1] != c.End || s.Tokens[next-1] != c.End {
				t.Fatalf("sample %d: answer %v; want it to end with the block and %d", i, answer, c.End)
			}
			answers = append(answers, c.Tokenizer.Decode(answer[:len(answer)-1]))
			if passages := c.Tokenizer.Decode(s.Tokens[:len(s.Tokens)-s.Blocks[6]-s.Blocks[7]]); strings.Count(passages, "It is "+answers[len(answers)-1]+".\n\n") != 1 {
				t.Errorf("sample %d: answer %q is not in one passage of %q", i, answers[len(answers)-1], passages)
			}
		}
		if answers[0] == answers[1] && i%3 != 1 { // 2 of 3, the third and the first of the next pass, 2 of 3
			t.Errorf("sample %d asks for %q twice", i, answers[0])
		}
	}
	c.Examples[0].System = "Another."
	if _, err := c.Sample(0); err == nil || !strings.Contains(err.Error(), "system messages differ") {
		t.Errorf("two system messages over the same documents: %v", err)
	}
}

// With stretches of other numbers of questions, each example is still asked once before any is asked again.
func TestCurriculum_QuestionsInStretches_TakeTurns(t *testing.T) {
	c := curriculum(t)
	c.Examples, c.Questions, c.Samples, c.Keep = c.Examples[:3], []int{2, 1, 3}, 12, 0.3
	next := 0
	for i := range 14 { // the last two behind the end
		if c.keeps(i) {
			continue
		}
		want := []int{2, 1, 3}[min(i/4, 2)]
		s, err := c.Sample(i)
		if err != nil || s.finals() != want {
			t.Fatalf("sample %d: %d questions, want %d (%v)", i, s.finals(), want, err)
		}
		var asked []string
		for first, n := range s.finalBlocks() {
			asked = append(asked, c.Tokenizer.Decode(s.Tokens[first:n]))
		}
		for _, text := range asked {
			if e := c.example(next); !strings.Contains(text, e.Answers[1]) {
				t.Errorf("sample %d: %q, want the question that is answered by %q", i, text, e.Answers[1])
			}
			next++
		}
	}
}

func TestCurriculum_SampleDependsOnItsNumberAlone(t *testing.T) {
	forward, backward := curriculum(t), curriculum(t)
	var want []Sample
	for i := range 10 {
		s, err := forward.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, s)
	}
	for i := 9; i >= 0; i-- {
		if got, err := backward.Sample(i); err != nil || !reflect.DeepEqual(got, want[i]) {
			t.Errorf("sample %d asked for last: %v, %v; want %v", i, got, err, want[i])
		}
	}
}

func TestCurriculum_Keep_MixesInTextAndInstructions(t *testing.T) {
	c := curriculum(t)
	c.Instructions, c.Examples = c.Examples[3:], c.Examples[:3]
	c.Keep = 0.5
	c.Instructions[0].Answers[0] = strings.Repeat("Hello. ", keptTokens)
	var texts, instructions, questions int
	for i := range 24 {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		text := c.Tokenizer.Decode(s.Tokens)
		switch {
		case !s.Keep:
			questions++
			if len(s.Targets) == 0 || !strings.Contains(text, "Which city?") {
				t.Errorf("sample %d: a question with %d targets: %q", i, len(s.Targets), text)
			}
			continue
		case len(s.Blocks) == 1:
			texts++
			if len(s.Tokens) != keptTokens || strings.Contains(text, "Which") || !strings.Contains(text, "It is ") {
				t.Errorf("sample %d: a text of %d tokens: %q", i, len(s.Tokens), text)
			}
		default:
			instructions++
			if !strings.Contains(text, "Say hello.") || len(s.Tokens) > 2*keptTokens {
				t.Errorf("sample %d: an instruction of %d tokens: %q", i, len(s.Tokens), text)
			}
		}
		if len(s.Targets) > 0 {
			t.Errorf("sample %d: targets %v of a sample to keep", i, s.Targets)
		}
	}
	if texts != 6 || instructions != 6 || questions != 12 {
		t.Errorf("%d texts, %d instructions, %d questions; want 6, 6, 12", texts, instructions, questions)
	}
}

func TestCurriculum_Documents_AreOfTheStretch(t *testing.T) {
	c := curriculum(t)
	c.Examples = c.Examples[:3]
	c.Documents, c.Samples = []Range{{1, 1}, {3, 3}}, 12
	for i := range 12 {
		s, err := c.Sample(i)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(s.Blocks)-2, 1+i/6*2; got != want {
			t.Errorf("sample %d of 12 has %d documents, want %d", i, got, want)
		}
	}
}

func TestCurriculum_TooLong_LeavesOutWhatIsNotNeeded(t *testing.T) {
	c := curriculum(t)
	c.Examples = c.Examples[:1]
	for d := range c.Examples[0].Documents {
		if !c.Examples[0].Needed[d] {
			c.Examples[0].Documents[d].Text = strings.Repeat("long ", 100)
		}
	}
	c.MaxTokens = 400
	s, err := c.Sample(0)
	if err != nil || len(s.Blocks) != 3 {
		t.Errorf("%d blocks, %v; want system, the needed passage and the question", len(s.Blocks), err)
	}
	c.MaxTokens = 50
	if _, err := c.Sample(0); err == nil || !strings.Contains(err.Error(), "example Oslo") || !strings.Contains(err.Error(), "at most 50 fit") {
		t.Errorf("a sample that cannot fit: %v", err)
	}
}
