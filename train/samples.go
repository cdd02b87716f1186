package train

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
)

// An Example is a question over documents with the answers that are right, or an instruction without documents.
type Example struct {
	ID        string
	Question  string
	Answers   []string
	Documents []prompt.Document
	Needed    []bool // of each document: it holds the answer or supports it, and stays in every sample
	System    string // message; "": prompt.DefaultSystem
}

// A Curriculum makes samples of examples: every pass over them is in a new order, with other documents beside the needed ones and all of
// these in a new order. Sample i depends on the Curriculum and i alone.
type Curriculum struct {
	Examples  []Example
	Template  *prompt.Template
	Tokenizer *tokenizer.Tokenizer
	End       int32 // the token that ends an answer

	Fewest, Most int // documents of a sample, unless more are needed or fewer are there
	MaxTokens    int // of a sample; documents that are not needed are left out where it would be longer
	Seed         uint64

	epoch int
	order []int
}

// Sample is the i-th.
func (c *Curriculum) Sample(i int) (Sample, error) {
	n := len(c.Examples)
	if n == 0 {
		return Sample{}, fmt.Errorf("no examples to train on")
	}
	if epoch := i / n; c.order == nil || c.epoch != epoch {
		c.epoch, c.order = epoch, rand.New(rand.NewPCG(c.Seed, uint64(epoch))).Perm(n)
	}
	e := &c.Examples[c.order[i%n]]
	rng := rand.New(rand.NewPCG(c.Seed+1, uint64(i)))
	chosen := e.choose(rng, c.Fewest+rng.IntN(c.Most-c.Fewest+1))
	for {
		s, err := c.build(e, chosen)
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

// build is the prompt as inference builds it, the answer and its end.
func (c *Curriculum) build(e *Example, chosen []int) (s Sample, err error) {
	docs := make([]prompt.Document, len(chosen))
	for i, d := range chosen {
		docs[i] = e.Documents[d]
	}
	blocks, err := c.Template.Build(e.System, docs, e.Question)
	if err != nil {
		return s, err
	}
	for _, b := range blocks {
		s.Tokens, s.Blocks = append(s.Tokens, b.Tokens...), append(s.Blocks, len(b.Tokens))
	}
	answer := append(c.Tokenizer.EncodeContinued(e.answer()), c.End)
	for range answer {
		s.Targets = append(s.Targets, len(s.Tokens)+len(s.Targets))
	}
	s.Tokens = append(s.Tokens, answer...)
	s.Blocks[len(s.Blocks)-1] += len(answer)
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
