package tessera

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/grammar"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/prompt"
)

// A Message is one of a chat.
type Message struct {
	Role      Role
	Content   string
	Documents []prompt.Document // a user's: what the question is asked of, each one a block
}

// Role is who says a message.
type Role string

// The roles of messages.
const (
	System    Role = "system"
	User      Role = "user"
	Assistant Role = "assistant"
)

// plainSystem is the system message of a chat that has none and no documents.
const plainSystem = "You are a helpful assistant."

// A Generation is what Chat and Complete have in common: how an answer is made. The zero value is greedy, with attention by the quality gate.
type Generation struct {
	Attention Attention // "": Auto
	Parts     int       // as in Question
	MaxTokens int       // 0: as many as the context has room for, in Complete none with Echo
	Grammar   *grammar.Grammar
	Tools     []string // that Chat's answer may call, as JSON; the template must have a place for them
	Begin     string   // what Chat's answer begins with; it is not told of
	Salt      []byte   // keeps one tenant's blocks from another's
	engine.Sampling

	Logprobs bool // tell Token of the answer's tokens
	Likely   int  // and of so many likeliest ones in the place of each
	Token    func(engine.Token)
	Emit     func(text string) error // is given the answer as it comes; may be nil
	Progress func(done, total int)   // as in Question
}

// A MessageError says which message of a chat cannot be where it is.
type MessageError struct {
	Index   int // of the message
	Problem string
}

func (e *MessageError) Error() string { return fmt.Sprintf("message %d: %s", e.Index+1, e.Problem) }

// Chat answers the last message, a user's. Earlier questions with their answers are blocks that depend on all before them; documents are
// blocks of their own wherever they stand.
func (t *Tessera) Chat(ctx context.Context, messages []Message, g Generation) (*Receipt, error) {
	start := time.Now()
	system, turns, err := turnsOf(messages)
	if err != nil {
		return nil, err
	}
	var documents []prompt.Document
	for _, turn := range turns {
		documents = append(documents, turn.Docs...)
	}
	if system == "" && len(documents) == 0 {
		system = plainSystem
	}
	last := turns[len(turns)-1]
	blocks, err := t.template.BuildChat(system, g.Tools, turns[:len(turns)-1], last.Docs, last.Question)
	if err != nil {
		return nil, err
	}
	final := &blocks[len(blocks)-1]
	final.Tokens = append(final.Tokens, t.tok.EncodeContinued(g.Begin)...)
	return t.generate(ctx, start, blocks, documents, g, false)
}

// turnsOf sorts messages into the system's and turns, the last one without an answer.
func turnsOf(messages []Message) (system string, turns []prompt.Turn, err error) {
	asked := false // the last turn has a question and no answer yet
	var last []int // message of each turn's question
	join := func(a, b string) string {
		if a == "" || b == "" {
			return a + b
		}
		return a + "\n\n" + b
	}
	for i, m := range messages {
		switch m.Role {
		case System:
			if len(turns) > 0 {
				return "", nil, &MessageError{i, "is the system's; expected those before all others"}
			}
			system = join(system, m.Content)
		case User:
			if !asked {
				turns, last, asked = append(turns, prompt.Turn{}), append(last, i), true
			}
			last[len(last)-1] = i
			turn := &turns[len(turns)-1]
			turn.Question, turn.Docs = join(turn.Question, m.Content), append(turn.Docs, m.Documents...)
		case Assistant:
			if !asked {
				return "", nil, &MessageError{i, "is the assistant's; expected a user's before it"}
			}
			turns[len(turns)-1].Answer, asked = m.Content, false
		default:
			return "", nil, &MessageError{i, fmt.Sprintf("has role %q; expected system, user or assistant", m.Role)}
		}
	}
	switch {
	case len(messages) == 0:
		return "", nil, &MessageError{-1, "is missing; expected at least a user's"}
	case !asked:
		return "", nil, &MessageError{len(messages) - 1, "is the last one; expected a user's"}
	}
	for i, turn := range turns {
		if strings.TrimSpace(turn.Question) == "" {
			return "", nil, &MessageError{last[i], "the question is empty"}
		}
	}
	return system, turns, nil
}

// Complete goes on from a prompt of token ids as it stands, without the chat template.
func (t *Tessera) Complete(ctx context.Context, ids []int32, echo bool, g Generation) (*Receipt, error) {
	start := time.Now()
	if len(ids) == 0 {
		return nil, ErrNoQuestion
	}
	blocks := []prompt.Block{{Kind: prompt.Query, Dependent: true, Tokens: ids, Doc: -1}}
	return t.generate(ctx, start, blocks, nil, g, echo)
}

// HasTools tells whether the model's chat template has a place for tools.
func (t *Tessera) HasTools() bool { return t.template.HasTools() }

// Tokenize is the ids of a text as it begins a prompt.
func (t *Tessera) Tokenize(text string) []int32 {
	ids := t.tok.Encode(text)
	if bos, ok := t.tok.BOS(); ok && t.tok.AddBOS() {
		ids = append([]int32{bos}, ids...)
	}
	return ids
}

// Detokenize is the text of ids. One that is not in the vocabulary is an error.
func (t *Tessera) Detokenize(ids []int32) (string, error) {
	for i, id := range ids {
		if id < 0 || int(id) >= t.tok.Size() {
			return "", fmt.Errorf("token %d is %d; the vocabulary has 0 to %d", i+1, id, t.tok.Size()-1)
		}
	}
	return t.tok.Decode(ids), nil
}

// Count is how many tokens a text has in the middle of a prompt.
func (t *Tessera) Count(text string) int { return len(t.tok.EncodeContinued(text)) }

// Piece is the bytes of one token, which may be half a character.
func (t *Tessera) Piece(id int32) []byte { return t.tok.Piece(id) }

// Name is the model's, without the ending of its file.
func (t *Tessera) Name() string { return strings.TrimSuffix(t.name, ".gguf") }

// Context is how many tokens a prompt and its answer may have together.
func (t *Tessera) Context() int { return t.model.Context }

// Load is how many answers are being generated at the moment, and how many prompts are computed or wait.
func (t *Tessera) Load() (answers, prompts int) { return t.engine.Load() }

func (t *Tessera) generate(ctx context.Context, start time.Time, blocks []prompt.Block, documents []prompt.Document, g Generation, echo bool) (*Receipt, error) {
	attention, parts, err := t.attention(g.Attention, g.Parts)
	if err != nil {
		return nil, err
	}
	most := g.MaxTokens
	if most == 0 && !echo {
		most = t.model.Context
	}
	prepared := time.Since(start)
	leave, err := t.admit(ctx, engine.Link(t.model, blocks, attention), attention, parts, most)
	if err != nil {
		return nil, err
	}
	defer leave()
	r, err := t.engine.Generate(ctx, engine.Request{
		Blocks: blocks, Attention: attention, Parts: parts, Sampling: g.Sampling, MaxTokens: most, Salt: g.Salt, Grammar: g.Grammar,
		Logprobs: g.Logprobs, Likely: g.Likely, Echo: echo, Token: g.Token, Emit: g.Emit, Progress: g.Progress,
	})
	if err != nil {
		return nil, err
	}
	return t.receipt(r, attention, blocks, documents, prepared), nil
}

// A MemoryError says that an answer would need more memory for keys and values than there is for all.
type MemoryError struct{ Need, Most int64 }

func (e *MemoryError) Error() string {
	return fmt.Sprintf("prompt and answer take %d MiB of keys and values, and there are %d for all; fewer or shorter documents, or a lower max_tokens, take less", e.Need>>20, e.Most>>20)
}

// admit waits until there is memory for the keys and values of a prompt and so many tokens of its answer, and for those of the parts that the passages
// are seen in; leave gives it back.
func (t *Tessera) admit(ctx context.Context, blocks []prompt.Block, a engine.Attention, parts, answer int) (leave func(), err error) {
	if t.memory == nil {
		return func() {}, nil
	}
	tokens := 0
	for _, b := range blocks {
		tokens += len(b.Tokens)
	}
	need := t.KVBytes(min(tokens+answer, t.model.Context) + engine.PartsTokens(blocks, a, parts, min(answer, t.model.Context-tokens)))
	if need > t.most {
		return nil, &MemoryError{need, t.most}
	}
	if err := t.memory.Acquire(ctx, need); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { t.memory.Release(need) }, nil
}

// StoreStat is how full the store is.
func (t *Tessera) StoreStat() (kv.Stat, error) { return t.store.Stat() }

// Stored is how full the store is, and its blocks, the one used last first.
func (t *Tessera) Stored() (kv.Stat, []kv.Info, error) {
	stat, err := t.store.Stat()
	if err != nil {
		return stat, nil, err
	}
	infos, err := t.store.List()
	return stat, infos, err
}

// Drop removes blocks from the store, or all of them where no ids are given.
func (t *Tessera) Drop(ids ...kv.ID) (blocks int, bytes int64, err error) {
	if len(ids) == 0 {
		return t.store.DropAll()
	}
	return t.store.Drop(ids...)
}

// WarmAtOnce is how many documents Warm does well with at a time: about as many as half of a small context holds.
const WarmAtOnce = 8

// Warm computes and stores the blocks that the store lacks of the first of some documents, so that no question waits for them: one at least, and no
// more than half of the context holds. It returns how many that were.
func (t *Tessera) Warm(ctx context.Context, documents []prompt.Document, salt []byte) (taken int, err error) {
	blocks, err := t.template.Build("", documents, "?")
	if err != nil {
		return 0, err
	}
	stored, err := t.engine.Stored(engine.Request{Blocks: blocks, Attention: engine.Block, Salt: salt})
	if err != nil {
		return 0, err
	}
	var missing []prompt.Document
	tokens := 0
	for i, b := range blocks {
		if b.Kind != prompt.Passage {
			continue
		}
		if tokens += len(b.Tokens); taken > 0 && tokens > t.model.Context/2 {
			break
		}
		if taken++; !stored[i] {
			missing = append(missing, documents[b.Doc])
		}
	}
	if len(missing) > 0 {
		_, err = t.Chat(ctx, []Message{{Role: User, Content: "?", Documents: missing}}, Generation{Attention: Block, Parts: 1, MaxTokens: 1, Salt: salt})
	}
	return taken, err
}

// KVBytes is the memory that the keys and values of so many tokens take.
func (t *Tessera) KVBytes(tokens int) int64 { return int64(t.model.KVShape(kv.F16, tokens).Bytes()) }
