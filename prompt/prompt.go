// Package prompt turns a question, its documents and a system message into blocks of token ids: the format tessera-prompt/1.
//
// The format, in every attention mode (the prompt is the concatenation of its blocks):
//
//	system  everything up to the first passage: beginning-of-sequence token if the model wants one, template, system message
//	passage "Title: {title}\n{text}\n\n", or "{text}\n\n" without a title; nothing in it depends on its place
//	turn    in a chat, an earlier question with its answer, up to where the next turn's passages come
//	query   "Question: {question}" and the rest of the template up to where the assistant starts
//
// The model's own chat template is rendered with placeholders where text will stand, once for each number of turns, and cut
// there (layout.go). So the template never sees text from outside, and only what the template itself wrote can be a special token.
// Each block is tokenized by itself: between two special tokens of the template, its words and the text beside them are
// encoded as one text. A SentencePiece dummy prefix goes to the start of the system block alone.
//
// A template without a system role (it raises an error, drops the message, or moves it behind the passages) gets the system
// message and an empty line at the start of the first user message. A model without a template gets the layout of plainTemplate.
package prompt

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/ardanlabs/jinja"

	"github.com/tessera-llm/tessera/tokenizer"
)

// Format names the rules of this package. Evaluation records and adapters carry it, since ids, training and stored blocks hang on it.
const Format = "tessera-prompt/1"

// DefaultSystem is the system message of a prompt that gives none.
const DefaultSystem = "Answer the question in a few words, using the documents."

// A Document becomes one passage; how long texts are cut into several is decided before.
type Document struct{ ID, Title, Text string }

// A Turn is an earlier question of a chat with the documents it brought and the answer it got.
type Turn struct {
	Docs             []Document
	Question, Answer string
}

// Kind says what a block holds.
type Kind string

// The kinds of blocks; the package doc says what each holds.
const (
	System  Kind = "system"
	Passage Kind = "passage"
	Earlier Kind = "turn"
	Query   Kind = "query"
	Link    Kind = "link" // none of this package's: an adapter's tokens, which the engine puts behind a passage
)

// A Block is what attention treats as one: it attends to itself and, where Dependent, to every block before it.
type Block struct {
	Kind      Kind
	Dependent bool
	Tokens    []int32
	Doc       int // a passage: the index of its document, counted over the documents of all turns in order; otherwise -1
}

// A Template builds prompts for one model. Safe for concurrent use. It holds:
//  1. In every layout each of system, passages, questions and answers stands exactly once, in the order of the chat.
//  2. Text given to Build reaches the tokenizer by Encode and EncodeContinued alone, which yield no special token.
type Template struct {
	tok  *tokenizer.Tokenizer
	eos  int32
	chat *jinja.Template

	mu      sync.Mutex
	layouts map[shape][]part
}

// A shape is what the layout of a prompt depends on.
type shape struct{ earlier, tools int }

// New compiles a chat template (empty where the model has none) and lays out a prompt without earlier turns, so that a template that
// cannot serve is refused here, by a *TemplateError, and not at the first question. eos is what the template writes for eos_token, or -1.
func New(source string, tok *tokenizer.Tokenizer, eos int32) (*Template, error) {
	if source == "" {
		source = plainTemplate
	}
	chat, err := compile(source)
	if err != nil {
		return nil, err
	}
	t := &Template{tok: tok, eos: eos, chat: chat, layouts: map[shape][]part{}}
	if _, err := t.layout(shape{}); err != nil {
		return nil, err
	}
	return t, nil
}

// Build gives the blocks of one question: the system block, a passage for each document, the query. An empty system message means DefaultSystem.
func (t *Template) Build(system string, docs []Document, question string) ([]Block, error) {
	return t.BuildChat(system, nil, nil, docs, question)
}

// HasTools tells whether the template has a place for tools.
func (t *Template) HasTools() bool {
	_, err := t.layout(shape{tools: 1})
	return err == nil
}

// BuildChat is Build after earlier turns: each is an Earlier block behind its passages, so that passages of later turns stand in the middle. tools are
// those that may be called, as JSON, where the template has a place for them: it is before the passages.
func (t *Template) BuildChat(system string, tools []string, earlier []Turn, docs []Document, question string) ([]Block, error) {
	if system == "" {
		system = DefaultSystem
	}
	turns := append(slices.Clone(earlier), Turn{Docs: docs, Question: question})
	for i, turn := range turns {
		if strings.TrimSpace(turn.Question) == "" {
			return nil, fmt.Errorf("prompt: turn %d of %d: the question is empty; expected text", i+1, len(turns))
		}
	}
	layout, err := t.layout(shape{len(earlier), len(tools)})
	if err != nil {
		return nil, err
	}

	b := builder{tok: t.tok}
	for _, p := range layout {
		switch p.slot {
		case words:
			b.write(p.text)
		case special:
			b.special(p.id)
		case systemText:
			b.write(system)
		case toolText:
			b.write(tools[p.turn])
		case passages:
			if p.turn == 0 {
				b.end(System, -1)
			} else {
				b.end(Earlier, -1)
			}
			b.passages(turns[p.turn].Docs)
		case questionText:
			b.write("Question: " + turns[p.turn].Question)
		case answerText:
			b.write(turns[p.turn].Answer)
		}
	}
	b.end(Query, -1)
	return b.blocks, nil
}

// keptLayouts bounds the layouts that are remembered: a longer chat is laid out anew each time, which costs little beside its answer.
const keptLayouts = 64

// layout returns the parts of a prompt of a shape.
func (t *Template) layout(s shape) ([]part, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if parts, ok := t.layouts[s]; ok {
		return parts, nil
	}
	parts, err := layOut(t.chat, s.earlier, s.tools)
	if err != nil {
		return nil, err
	}
	parts = resolve(parts, t.tok, t.eos)
	if len(t.layouts) < keptLayouts {
		t.layouts[s] = parts
	}
	return parts, nil
}

// A builder collects the tokens of the current block; text waits until it is known to be whole, since two halves may encode differently.
type builder struct {
	tok    *tokenizer.Tokenizer
	blocks []Block
	docs   int // passages so far
	tokens []int32
	text   strings.Builder
}

func (b *builder) write(text string) { b.text.WriteString(text) }

func (b *builder) special(id int32) {
	b.encode()
	b.tokens = append(b.tokens, id)
}

// encode tokenizes the waiting text. Only at the very start of the prompt, with at most a beginning-of-sequence token before it, may it get a dummy prefix.
func (b *builder) encode() {
	if b.text.Len() == 0 {
		return
	}
	bos, _ := b.tok.BOS()
	start := len(b.blocks) == 0 && (len(b.tokens) == 0 || len(b.tokens) == 1 && b.tokens[0] == bos)
	if start {
		b.tokens = append(b.tokens, b.tok.Encode(b.text.String())...)
	} else {
		b.tokens = append(b.tokens, b.tok.EncodeContinued(b.text.String())...)
	}
	b.text.Reset()
}

// end closes the current block.
func (b *builder) end(kind Kind, doc int) {
	b.encode()
	b.blocks = append(b.blocks, Block{Kind: kind, Dependent: kind == Earlier || kind == Query, Tokens: b.tokens, Doc: doc})
	b.tokens = nil
}

func (b *builder) passages(docs []Document) {
	for _, d := range docs {
		b.write(d.passage())
		b.end(Passage, b.docs)
		b.docs++
	}
}

func (d Document) passage() string {
	if d.Title == "" {
		return d.Text + "\n\n"
	}
	return "Title: " + d.Title + "\n" + d.Text + "\n\n"
}
