package train

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
)

// An Example is a question over documents with the answers that are right, or an instruction without documents.
type Example struct {
	ID        string
	Question  string
	Answers   []string // none: any text over the documents, by which block mode is only drawn to full mode, see Options.Distill
	Documents []prompt.Document
	Needed    []bool // of each document: it holds the answer or supports it, and stays in every sample
	System    string // message; "": prompt.DefaultSystem
}

// A Curriculum makes samples of examples: every pass over them is in a new order, with other documents beside the needed ones and all of
// these in a new order. Between them are samples on which the model is to stay as it is: instructions, and text as documents have it. Sample i
// depends on the Curriculum and i alone.
type Curriculum struct {
	Examples  []Example
	Template  *prompt.Template
	Tokenizer *tokenizer.Tokenizer
	End       int32 // the token that ends an answer

	Documents []Range // of a sample, unless more are needed or fewer are there: each for an equal stretch of Samples
	Questions []int   // of a sample, over the documents that they need and others of theirs, for stretches too; nil: one
	Cloze     int     // more of a sample, made of sentences of its documents
	Samples   int     // of the run
	MaxTokens int     // of a sample; documents that are not needed are left out where it would be longer
	Seed      uint64

	Keep         float64   // share of the samples with Keep
	Instructions []Example // every other one of these is of them; none: all are text

	epoch int
	order []int
}

// A Range is from Fewest to Most, each as likely.
type Range struct{ Fewest, Most int }

// keptTokens is how long a text is on which the model is to stay as it is, and where an instruction's answer is cut.
const keptTokens = 192

// Hash is of all that samples depend on but the model's tokens and template.
func (c *Curriculum) Hash() (string, error) {
	of := *c
	of.Template, of.Tokenizer = nil, nil
	b, err := json.Marshal(&of)
	return fmt.Sprintf("%x", blake3.Sum256(b)), err
}

// Sample is the i-th.
func (c *Curriculum) Sample(i int) (Sample, error) {
	n := len(c.Examples)
	if n == 0 {
		return Sample{}, fmt.Errorf("no examples to train on")
	}
	rng := rand.New(rand.NewPCG(c.Seed+1, uint64(i)))
	if c.keeps(i) {
		return c.kept(int(float64(i)*c.Keep), rng)
	}
	documents := c.Documents[c.stretch(i, len(c.Documents))]
	before := 0 // questions of earlier samples
	for j := range i {
		if !c.keeps(j) {
			before += c.questions(j)
		}
	}
	asked := make([]*Example, c.questions(i))
	for q := range asked {
		asked[q] = c.example(before + q)
	}
	e := asked[0]
	if len(asked) > 1 {
		e = union(asked)
	}
	chosen := e.choose(rng, documents.Fewest+rng.IntN(documents.Most-documents.Fewest+1))
	for {
		s, err := c.build(slices.Concat(asked, c.clozes(rng, e, chosen)), e, chosen)
		if err != nil {
			return s, fmt.Errorf("example %s: %w", e.ID, err)
		}
		if c.MaxTokens == 0 || len(s.Tokens) <= c.MaxTokens {
			return s, nil
		}
		spare := -1
		for at, d := range chosen {
			if !e.Needed[d] {
				spare = at
			}
		}
		if spare < 0 {
			return s, fmt.Errorf("example %s: %d tokens with the documents it needs; at most %d fit", e.ID, len(s.Tokens), c.MaxTokens)
		}
		chosen = append(chosen[:spare], chosen[spare+1:]...)
	}
}

// keeps tells whether sample i is one on which the model is to stay as it is.
func (c *Curriculum) keeps(i int) bool { return int(float64(i+1)*c.Keep) > int(float64(i)*c.Keep) }

// stretch is which of n equal stretches of Samples sample i is in.
func (c *Curriculum) stretch(i, n int) int { return min(i*n/max(c.Samples, 1), n-1) }

// questions is how many sample i asks of Examples.
func (c *Curriculum) questions(i int) int {
	if c.Questions == nil {
		return 1
	}
	return c.Questions[c.stretch(i, len(c.Questions))]
}

// clozes are questions made of the chosen documents of an example, Cloze of them or what is found.
func (c *Curriculum) clozes(rng *rand.Rand, e *Example, chosen []int) (asked []*Example) {
	if c.Cloze == 0 || len(chosen) == 0 {
		return nil
	}
	documents := make([]prompt.Document, len(chosen))
	for i, d := range chosen {
		documents[i] = e.Documents[d]
	}
	for range c.Cloze {
		if question, answer, ok := cloze(rng, documents); ok {
			asked = append(asked, &Example{ID: "cloze", Question: question, Answers: []string{answer}, System: e.System})
		}
	}
	return asked
}

// example is the i-th of all passes over the examples.
func (c *Curriculum) example(i int) *Example {
	n := len(c.Examples)
	if epoch := i / n; c.order == nil || c.epoch != epoch {
		c.epoch, c.order = epoch, rand.New(rand.NewPCG(c.Seed, uint64(epoch))).Perm(n)
	}
	return &c.Examples[c.order[i%n]]
}

// union has the documents of all, each once, and needs what one of them needs.
func union(asked []*Example) *Example {
	u := &Example{System: asked[0].System}
	at := map[prompt.Document]int{} // by title and text
	for _, e := range asked {
		u.ID = strings.TrimPrefix(u.ID+" + "+e.ID, " + ")
		for d, doc := range e.Documents {
			key := prompt.Document{Title: doc.Title, Text: doc.Text}
			known, is := at[key]
			if !is {
				known = len(u.Documents)
				at[key] = known
				u.Documents, u.Needed = append(u.Documents, doc), append(u.Needed, false)
			}
			u.Needed[known] = u.Needed[known] || e.Needed[d]
		}
	}
	return u
}

// kept is the i-th sample on which the model is to stay as it is.
func (c *Curriculum) kept(i int, rng *rand.Rand) (s Sample, err error) {
	if len(c.Instructions) > 0 && i%2 == 0 {
		e := &c.Instructions[rng.IntN(len(c.Instructions))]
		if s, err = c.build([]*Example{e}, e, nil); err != nil {
			return s, fmt.Errorf("instruction %s: %w", e.ID, err)
		}
		final := &s.Blocks[len(s.Blocks)-1]
		over := max(len(s.Targets)-keptTokens, 0)
		if c.MaxTokens > 0 {
			over = max(over, len(s.Tokens)-c.MaxTokens)
		}
		if over >= *final {
			return s, fmt.Errorf("instruction %s: %d tokens; at most %d fit", e.ID, len(s.Tokens), c.MaxTokens)
		}
		*final -= over
		return Sample{Tokens: s.Tokens[:len(s.Tokens)-over], Blocks: s.Blocks, Keep: true}, nil
	}
	var text strings.Builder
	for range keptTokens { // documents of a word each would do
		if e := &c.Examples[rng.IntN(len(c.Examples))]; len(e.Documents) > 0 {
			text.WriteString(e.Documents[rng.IntN(len(e.Documents))].Text + "\n\n")
		}
		if s.Tokens = c.Tokenizer.Encode(text.String()); len(s.Tokens) >= keptTokens {
			break
		}
	}
	if len(s.Tokens) < 2 {
		return s, fmt.Errorf("no documents to take text from, on which the model is to stay as it is")
	}
	s.Tokens = s.Tokens[:min(len(s.Tokens), keptTokens)]
	return Sample{Tokens: s.Tokens, Blocks: []int{len(s.Tokens)}, Keep: true}, nil
}

// choose draws k of the documents, the needed ones first, and puts them in an order.
func (e *Example) choose(rng *rand.Rand, k int) []int {
	var chosen, others []int
	for d := range e.Documents {
		if e.Needed[d] {
			chosen = append(chosen, d)
		} else {
			others = append(others, d)
		}
	}
	rng.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	if more := min(max(k-len(chosen), 0), len(others)); more > 0 {
		chosen = append(chosen, others[:more]...)
	}
	rng.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	return chosen
}

// Build is the sample of an example with all its documents, in their order.
func (c *Curriculum) Build(e *Example) (Sample, error) {
	all := make([]int, len(e.Documents))
	for i := range all {
		all[i] = i
	}
	return c.build([]*Example{e}, e, all)
}

// build is the prompt as inference builds it, with the chosen documents of one example, and for each that is asked a final block of the
// question, the answer and its end.
func (c *Curriculum) build(asked []*Example, of *Example, chosen []int) (s Sample, err error) {
	docs := make([]prompt.Document, len(chosen))
	for i, d := range chosen {
		docs[i] = of.Documents[d]
	}
	if len(asked) > 1 {
		s.Finals = len(asked)
	}
	for q, e := range asked {
		if e.System != of.System {
			return s, fmt.Errorf("its system messages differ; questions over the same documents have one")
		}
		blocks, err := c.Template.Build(e.System, docs, e.Question)
		if err != nil {
			return s, err
		}
		if q > 0 {
			blocks = blocks[len(blocks)-1:]
		}
		for _, b := range blocks {
			s.Tokens, s.Blocks = append(s.Tokens, b.Tokens...), append(s.Blocks, len(b.Tokens))
		}
		if len(e.Answers) == 0 {
			continue
		}
		answer := append(c.Tokenizer.EncodeContinued(e.answer()), c.End)
		for at := range answer {
			s.Targets = append(s.Targets, len(s.Tokens)+at)
		}
		s.Tokens = append(s.Tokens, answer...)
		s.Blocks[len(s.Blocks)-1] += len(answer)
	}
	return s, nil
}

// answer is the first one that a needed document holds word for word, or the first.
func (e *Example) answer() string {
	for _, a := range e.Answers {
		for d := range e.Documents {
			if e.Needed[d] && strings.Contains(e.Documents[d].Text, a) {
				return a
			}
		}
	}
	return e.Answers[0]
}
