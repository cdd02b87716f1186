package tessera

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"
)

// PassageTokens is about how long a passage gets when a long document is split, DefaultPassages how many a question gets.
const (
	PassageTokens    = 150
	DefaultPassages  = 10
	DefaultMaxTokens = 128
)

// Attention is the mode of a question: see the engine's Full and Block.
type Attention string

const (
	// Auto takes Block where the model carries a passing block evaluation, otherwise Full with a warning.
	Auto  Attention = "auto"
	Block Attention = Attention(engine.Block)
	Full  Attention = Attention(engine.Full)
)

// A Question is asked of documents. Only Text is needed.
type Question struct {
	Text      string            // without Documents, lines that are exactly [[block]] cut it into passages and the question
	Documents []corpus.Document // split into passages where they are long
	Ranked    bool              // Documents are passages already, the best first
	Passages  int               // how many passages the prompt holds at most, the best by BM25; 0: DefaultPassages
	System    string            // system message; "": prompt.DefaultSystem
	Attention Attention         // "": Auto
	Parts     int               // with Block: of the passages, each seen by itself beside all of them, see engine.Views; 0: none. Auto takes the number of the evaluation record
	MaxTokens int               // 0: DefaultMaxTokens
	engine.Sampling

	Emit     func(text string) error // is given the answer as it comes; may be nil
	Progress func(done, total int)   // is told how many tokens of the prompt are computed; may be nil
}

// Ask answers a question: documents → passages → blocks → keys and values, stored or computed → final block → answer.
func (t *Tessera) Ask(ctx context.Context, q Question) (*Receipt, error) {
	start := time.Now()
	attention, _, err := t.attention(q.Attention, q.Parts)
	if err != nil {
		return nil, err
	}
	documents, question, err := t.passages(ctx, &q, attention)
	if err != nil {
		return nil, err
	}
	blocks, err := t.template.Build(q.System, documents, question)
	if err != nil {
		return nil, err
	}
	return t.generate(ctx, start, blocks, documents, Generation{
		Attention: q.Attention, Parts: q.Parts, MaxTokens: cmp.Or(q.MaxTokens, DefaultMaxTokens), Sampling: q.Sampling, Emit: q.Emit, Progress: q.Progress,
	}, false)
}

// attention resolves Auto, Block where the evaluation record of these weights passes the quality gate, else Full; and in how many parts the passages are seen.
func (t *Tessera) attention(a Attention, parts int) (engine.Attention, int, error) {
	if err := a.CheckParts(parts); err != nil {
		return "", 0, err
	}
	switch a {
	case Block:
		return engine.Block, parts, nil
	case Full:
		return engine.Full, 1, nil
	case Auto, "":
		if t.AutoIsBlock() {
			return engine.Block, t.record.Parts, nil
		}
		t.warnFull.Do(func() {
			e := &UntunedError{Model: t.name, Adapter: t.adapter}
			if t.record != nil {
				e.Measured, e.Gap, e.Allowed = true, t.record.Gap(), t.record.Allowed()
			}
			t.warn(e)
		})
		return engine.Full, 1, nil
	}
	return "", 0, fmt.Errorf("attention: %q; want %s, %s or %s", a, Auto, Block, Full)
}

// Record is the evaluation record of the model with its adapter, nil where nobody has measured them.
func (t *Tessera) Record() *weights.Record { return t.record }

// AutoIsBlock tells whether Auto is Block with this model and adapter, by the quality gate.
func (t *Tessera) AutoIsBlock() bool { return t.record != nil && t.record.Passes() }

// CheckParts says what is wrong with asking for passages in so many parts in this mode; 0 asks for none.
func (a Attention) CheckParts(parts int) error {
	switch {
	case parts < 0:
		return fmt.Errorf("found %d parts, expected at least 1", parts)
	case parts > 0 && a != Block:
		return fmt.Errorf("found %d parts with attention %q, expected attention %s for them: only there does no passage depend on others", parts, a, Block)
	}
	return nil
}

// UntunedError warns that Auto took full attention: nobody has measured block attention with these weights, or it was too far behind.
type UntunedError struct {
	Model, Adapter string
	Measured       bool
	Gap, Allowed   float64 // points of accuracy
}

func (e *UntunedError) Error() string {
	name := e.Model
	if e.Adapter != "" {
		name += " with " + e.Adapter
	}
	if e.Measured {
		return fmt.Sprintf("%s: block attention was %.1f points less accurate than full attention, more than %.1f: answering with full attention", name, e.Gap, e.Allowed)
	}
	return fmt.Sprintf("%s carries no evaluation of block attention: answering with full attention", name)
}

// ErrNoQuestion: the question is empty.
var ErrNoQuestion = errors.New("the question is empty")

// passages are the documents as they go into the prompt, and the question.
func (t *Tessera) passages(ctx context.Context, q *Question, attention engine.Attention) (documents []prompt.Document, question string, err error) {
	question = q.Text
	if q.Documents == nil {
		documents, question = prompt.Split(q.Text)
	}
	if strings.TrimSpace(question) == "" {
		return nil, "", ErrNoQuestion
	}
	if q.Documents == nil {
		return documents, question, nil
	}
	longest, k := PassageTokens, cmp.Or(q.Passages, DefaultPassages)
	if q.Ranked {
		longest = math.MaxInt // they are passages
	}
	all := corpus.Split(q.Documents, longest, t.Count)
	asGiven := !q.Ranked && attention == engine.Full && len(all) <= k // as for other questions: what full attention computed for them is a prefix
	if !q.Ranked && !asGiven {
		if all, err = corpus.Rank(ctx, all, question, k); err != nil {
			return nil, "", err
		}
	}
	if !asGiven {
		slices.Reverse(all) // nearest to the question the best one: see docs/training.md, "The order of passages"
	}
	for _, p := range all {
		documents = append(documents, prompt.Document{ID: p.ID, Title: p.Title, Text: p.Text})
	}
	return documents, question, nil
}

// A Receipt is the answer and what it took, in the JSON form that `tessera ask --json` prints.
type Receipt struct {
	Schema    int            `json:"schema"` // 1
	Answer    string         `json:"answer"`
	Finish    engine.Finish  `json:"finish"`
	Model     string         `json:"model"`
	Adapter   *string        `json:"adapter"`
	Attention string         `json:"attention"`
	Parts     int            `json:"parts"` // of the passages
	Blocks    []ReceiptBlock `json:"blocks"`
	Usage     ReceiptUsage   `json:"usage"`
	Timings   ReceiptTimings `json:"timings"`
	FLOPs     ReceiptFLOPs   `json:"flops"`
}

// A ReceiptBlock is one block of the prompt.
type ReceiptBlock struct {
	Kind   string `json:"kind"` // system, passage or query
	ID     string `json:"id"`
	Doc    string `json:"doc,omitempty"` // the passage's id
	Title  string `json:"title,omitempty"`
	Tokens int    `json:"tokens"`
	Source string `json:"source"` // computed, ram or disk
}

// ReceiptUsage counts tokens; cached ones are those of the prompt whose keys and values were found, not computed.
type ReceiptUsage struct {
	Prompt     int `json:"prompt_tokens"`
	Cached     int `json:"cached_tokens"`
	Completion int `json:"completion_tokens"`
}

// ReceiptTimings are in milliseconds. TTFT counts from the question to the first token, the model's loading apart.
type ReceiptTimings struct {
	Load    float64 `json:"load_ms"`
	KV      float64 `json:"kv_ms"`
	Prefill float64 `json:"prefill_ms"`
	TTFT    float64 `json:"ttft_ms"`
	Decode  float64 `json:"decode_ms"`
}

// ReceiptFLOPs are floating-point operations up to the first token, of the matrices alone and with attention; and what full attention over
// the whole prompt, nothing of it stored, takes.
type ReceiptFLOPs struct {
	Matrices float64 `json:"matrices"`
	Total    float64 `json:"total"`
	Full     float64 `json:"full"`
}

func (t *Tessera) receipt(r *engine.Receipt, attention engine.Attention, blocks []prompt.Block, documents []prompt.Document, prepared time.Duration) *Receipt {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	out := &Receipt{
		Schema: 1, Answer: strings.TrimSpace(r.Text), Finish: r.Finish, Model: t.name, Attention: string(attention), Parts: r.Parts,
		Usage:   ReceiptUsage{r.Prompt, r.Cached, r.Completion},
		Timings: ReceiptTimings{ms(t.load), ms(r.Lookup), ms(r.Prefill), ms(prepared + r.TTFT), ms(r.Decode)},
		FLOPs:   ReceiptFLOPs{Matrices: r.MatrixFLOPs, Total: r.MatrixFLOPs + r.AttentionFLOPs},
	}
	matrices, full := t.model.FLOPs(r.Prompt, 0)
	out.FLOPs.Full = matrices + full + t.model.OutputFLOPs()
	if t.adapter != "" {
		out.Adapter = &t.adapter
	}
	for i, b := range r.Blocks {
		rb := ReceiptBlock{Kind: string(blocks[i].Kind), ID: b.ID.String(), Tokens: b.Tokens, Source: b.Source.String()}
		if d := blocks[i].Doc; d >= 0 {
			rb.Doc, rb.Title = documents[d].ID, documents[d].Title
		}
		out.Blocks = append(out.Blocks, rb)
	}
	return out
}
