package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/cite"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/grammar"
	"github.com/tessera-llm/tessera/prompt"
)

// A chatRequest is the body of /v1/chat/completions.
type chatRequest struct {
	Messages  []chatMessage     `json:"messages"`
	Documents []prompt.Document `json:"documents"` // of the last question
	generationRequest
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Logprobs            bool            `json:"logprobs"`
	TopLogprobs         int             `json:"top_logprobs"`
	ResponseFormat      *responseFormat `json:"response_format"`
	Tools               []tool          `json:"tools"`
	ToolChoice          toolChoice      `json:"tool_choice"`
}

// A generationRequest is what both kinds of completions ask for alike.
type generationRequest struct {
	Stream        bool           `json:"stream"`
	StreamOptions *streamOptions `json:"stream_options"`
	N             *int           `json:"n"`
	Stop          texts          `json:"stop"`
	Seed          *int64         `json:"seed"`
	Temperature   *float32       `json:"temperature"`
	TopP          *float32       `json:"top_p"`
	TopK          int            `json:"top_k"`
	MaxTokens     *int           `json:"max_tokens"`
	Tessera       *extension     `json:"tessera"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// An extension is what Tessera takes beyond OpenAI's API.
type extension struct {
	Attention  tessera.Attention `json:"attention"`
	Parts      int               `json:"parts"`      // that the passages are seen in, with block; 0: 1
	Collection string            `json:"collection"` // documents of the last question are the best of it
	Passages   int               `json:"passages"`   // as many; 0: ten
	Split      *bool             `json:"split"`      // documents that are marked within a message become blocks; true unless said
}

type responseFormat struct {
	Type   string `json:"type"`
	Schema *struct {
		Schema json.RawMessage `json:"schema"`
	} `json:"json_schema"`
}

// A chatMessage is one of a chat; its content is a text, or a list of parts that are.
type chatMessage struct {
	Role      string  `json:"role"`
	Content   content `json:"content"`
	ToolCalls []any   `json:"tool_calls"`
	Name      string  `json:"name"`
}

type content string

func (c *content) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct{ Type, Text string }
	if err := json.Unmarshal(b, &parts); err != nil {
		return fmt.Errorf("content: expected a text, or a list of parts {\"type\":\"text\",\"text\"}")
	}
	for _, p := range parts {
		if p.Type != "text" && p.Type != "input_text" && p.Type != "output_text" {
			return fmt.Errorf("content: a part of type %q; this model reads text", p.Type)
		}
		*c += content(p.Text)
	}
	return nil
}

// texts is one text or a list of them.
type texts []string

func (t *texts) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

// mostChoices is how many answers one request may ask for.
const mostChoices = 16

// generation checks what is asked for and makes it what a Tessera takes.
func (q *generationRequest) generation(k *Key) (g tessera.Generation, choices int, err error) {
	choices = 1
	if q.N != nil {
		choices = *q.N
	}
	if choices < 1 || choices > mostChoices {
		return g, 0, invalid("n", "found %d, expected 1 to %d", choices, mostChoices)
	}
	g.Salt, g.Stop, g.TopK = k.salt(), q.Stop, q.TopK
	if q.Temperature != nil {
		g.Temperature = *q.Temperature
	}
	if q.TopP != nil {
		g.TopP = *q.TopP
	}
	if g.Seed = rand.Uint64(); q.Seed != nil {
		g.Seed = uint64(*q.Seed)
	}
	if q.MaxTokens != nil {
		if g.MaxTokens = *q.MaxTokens; g.MaxTokens < 1 {
			return g, 0, invalid("max_tokens", "found %d, expected at least 1", g.MaxTokens)
		}
	}
	if q.Tessera != nil {
		g.Attention = q.Tessera.Attention
		switch g.Attention {
		case "", tessera.Auto, tessera.Block, tessera.Full:
		default:
			return g, 0, invalid("tessera.attention", "found %q, expected auto, block or full", g.Attention)
		}
		g.Parts = q.Tessera.Parts
		if err := g.Attention.CheckParts(g.Parts); err != nil {
			return g, 0, invalid("tessera.parts", "%v", err)
		}
	}
	return g, choices, g.Validate()
}

// conversation makes the messages what a Tessera takes. Results of tools are documents of the question that they were fetched for.
func (q *chatRequest) conversation() ([]tessera.Message, error) {
	split := q.Tessera == nil || q.Tessera.Split == nil || *q.Tessera.Split
	var out []tessera.Message
	for i, m := range q.Messages {
		text := string(m.Content)
		switch m.Role {
		case "system", "developer":
			out = append(out, tessera.Message{Role: tessera.System, Content: text})
		case "user":
			one := tessera.Message{Role: tessera.User, Content: text}
			if split {
				one.Documents, one.Content = prompt.Segment(text)
			}
			out = append(out, one)
		case "assistant":
			if text != "" || len(m.ToolCalls) == 0 {
				out = append(out, tessera.Message{Role: tessera.Assistant, Content: text})
			}
		case "tool", "function":
			if len(out) == 0 || out[len(out)-1].Role != tessera.User {
				return nil, &tessera.MessageError{Index: i, Problem: "is a tool's; expected a user's before it"}
			}
			results := []prompt.Document{{Text: text}}
			if split {
				results = prompt.Results(text)
			}
			if len(results) == 1 && results[0].Title == "" {
				results[0].Title = m.Name
			}
			last := &out[len(out)-1]
			last.Documents = append(last.Documents, results...)
		default:
			return nil, &tessera.MessageError{Index: i, Problem: fmt.Sprintf("has role %q; expected system, developer, user, assistant or tool", m.Role)}
		}
	}
	if len(out) == 0 {
		return nil, invalid("messages", "there are none; expected at least a user's")
	}
	return out, nil
}

// number gives an id to every document that has none, so that the receipt can name it.
func number(messages []tessera.Message) {
	n := 0
	for i := range messages {
		for j := range messages[i].Documents {
			n++
			if d := &messages[i].Documents[j]; d.ID == "" {
				d.ID = strconv.Itoa(n)
			}
		}
	}
}

// chat is POST /v1/chat/completions.
func (s *Server) chat(w http.ResponseWriter, r *http.Request, k *Key) error {
	var q chatRequest
	if err := readJSON(r, &q); err != nil {
		return err
	}
	messages, err := q.conversation()
	if err != nil {
		return err
	}
	if q.MaxCompletionTokens != nil {
		q.MaxTokens = q.MaxCompletionTokens
	}
	g, choices, err := q.generation(k)
	if err != nil {
		return err
	}
	if q.TopLogprobs < 0 || q.TopLogprobs > 20 {
		return invalid("top_logprobs", "found %d, expected 0 to 20", q.TopLogprobs)
	}
	g.Logprobs, g.Likely = q.Logprobs, q.TopLogprobs
	if g.Grammar, err = q.ResponseFormat.grammar(); err != nil {
		return err
	}
	use, err := q.toolUse()
	if err != nil {
		return err
	}
	if use != nil {
		if !s.tessera.HasTools() {
			return invalid("tools", "the chat template of %s has no place for them; send what they would say as documents, or as messages of role tool", s.tessera.Name())
		}
		if g.Tools = use.texts; use.required != nil {
			g.Grammar, g.Begin = use.required, callBegin+"\n"
		}
	}
	documents, err := s.documents(r.Context(), k, q.Tessera, q.Documents, messages)
	if err != nil {
		return err
	}
	c := completion{s: s, id: "chatcmpl-" + id(), object: "chat.completion", created: time.Now().Unix(), q: &q.generationRequest, chat: true, tools: use, question: messages[len(messages)-1].Content, documents: documents}
	return c.answer(r.Context(), w, g, choices, func(g tessera.Generation) (*tessera.Receipt, error) { return s.tessera.Chat(r.Context(), messages, g) })
}

// grammar is what a response format holds answers to, nil for none.
func (f *responseFormat) grammar() (*grammar.Grammar, error) {
	if f == nil {
		return nil, nil
	}
	var schema json.RawMessage
	if f.Schema != nil {
		schema = f.Schema.Schema
	}
	return grammarOf("response_format.type", f.Type, "response_format.json_schema.schema", schema)
}

// grammarOf is what a format of a kind holds answers to, nil for none. kindParam and schemaParam name the fields that kind and schema are from.
func grammarOf(kindParam, kind, schemaParam string, schema json.RawMessage) (*grammar.Grammar, error) {
	switch kind {
	case "", "text":
		return nil, nil
	case "json_object":
		return grammar.JSONObject(), nil
	case "json_schema":
		if len(schema) == 0 {
			return nil, invalid(schemaParam, "is missing")
		}
		return grammar.JSONSchema(schema)
	}
	return nil, invalid(kindParam, "found %q, expected text, json_object or json_schema", kind)
}

// id is a random one.
func id() string { return fmt.Sprintf("%016x%08x", rand.Uint64(), rand.Uint32()) }

// A completion is the answers to one request, as they are sent.
type completion struct {
	s         *Server
	id        string
	object    string // of the whole; a chunk's has an ending
	created   int64
	q         *generationRequest
	chat      bool
	tools     *toolUse          // nil: there are none
	question  string            // the last one of a chat
	documents []receiptDocument // that it has

	tokens []engine.Token // of the answer under way that were not sent
}

// usage counts tokens.
type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// add counts an answer, and its prompt unless an earlier answer was to the same.
func (u *usage) add(r *tessera.Receipt, again bool) {
	u.Completion += r.Usage.Completion
	if !again {
		u.Prompt, u.Details.Cached = u.Prompt+r.Usage.Prompt, u.Details.Cached+r.Usage.Cached
	}
	u.Total = u.Prompt + u.Completion
}

// A receipt is the receipt of the first answer, with the documents that were sent.
type receipt struct {
	*tessera.Receipt
	Answer    *struct{}         `json:"answer,omitempty"` // stands in the choices
	Documents []receiptDocument `json:"documents,omitempty"`
}

type receiptDocument struct {
	ID    string `json:"id"`
	Title string `json:"title,omitempty"`
	Text  string `json:"text"`
	Place string `json:"place,omitempty"` // in the file that it is of
}

// A generate makes one answer to a prompt.
type generate func(tessera.Generation) (*tessera.Receipt, error)

// answer makes so many choices for each prompt one after the other: a prompt is computed once. It sends them as they come, or all at the end.
func (c *completion) answer(ctx context.Context, w http.ResponseWriter, g tessera.Generation, choices int, prompts ...generate) error {
	var (
		all   []any
		sum   usage
		first *receipt
	)
	for i := range choices * len(prompts) {
		text := ""
		calls := callReader{inCall: c.tools != nil && c.tools.required != nil}
		one := g
		one.Seed += uint64(i % choices)
		one.Token = func(t engine.Token) { c.tokens = append(c.tokens, t) }
		one.Emit = func(piece string) error {
			if c.tools != nil {
				if piece = calls.push(piece); piece == "" {
					return nil
				}
			}
			text += piece
			if !c.q.Stream {
				return nil
			}
			return c.send(w, c.envelope(c.chunkObject(), c.delta(i, piece, c.take(), "")))
		}
		r, err := c.s.measured(ctx, one, prompts[i/choices])
		if err != nil {
			return err
		}
		sum.add(r, i%choices > 0)
		finish := string(r.Finish)
		if rest := calls.end(); c.tools != nil {
			if rest != "" {
				text += rest
				if c.q.Stream {
					if err := c.send(w, c.envelope(c.chunkObject(), c.delta(i, rest, c.take(), ""))); err != nil {
						return err
					}
				}
			}
			if len(calls.calls) > 0 && r.Finish == engine.FinishStop {
				finish = "tool_calls"
			}
		}
		if first == nil {
			first = &receipt{Receipt: r, Documents: c.documents}
		}
		if c.q.Stream {
			if err := c.sendCalls(w, i, calls.calls); err != nil {
				return err
			}
			choice := c.delta(i, "", c.take(), finish)
			c.addCitations(choice, text)
			last := c.envelope(c.chunkObject(), choice)
			if i == choices*len(prompts)-1 && !c.usageWanted() {
				last["tessera"] = first
			}
			if err := c.send(w, last); err != nil {
				return err
			}
			continue
		}
		choice := c.choice(i, text, c.take(), finish)
		if len(calls.calls) > 0 {
			message := choice["message"].(map[string]any)
			if message["tool_calls"] = calls.calls; text == "" {
				message["content"] = nil
			}
		}
		c.addCitations(choice, text)
		all = append(all, choice)
	}
	if c.q.Stream {
		if c.usageWanted() {
			last := c.envelope(c.chunkObject())
			last["usage"], last["tessera"] = sum, first
			if err := c.send(w, last); err != nil {
				return err
			}
		}
		return endStream(w)
	}
	whole := c.envelope(c.object, all...)
	whole["usage"], whole["tessera"] = sum, first
	writeJSON(w, whole)
	return nil
}

// A citation says which stretch of an answer rests on which stretch of a document; offsets are characters.
type citation struct {
	Document  string `json:"document"`
	Start     int    `json:"start"`
	End       int    `json:"end"`
	TextStart int    `json:"text_start"`
	TextEnd   int    `json:"text_end"`
	Marker    bool   `json:"marker,omitempty"` // the answer names the document itself
}

// citationsOf are those of an answer.
func citationsOf(question, answer string, documents []receiptDocument) []citation {
	among := make([]cite.Document, len(documents))
	for i, d := range documents {
		among[i] = cite.Document{ID: d.ID, Title: d.Title, Text: d.Text}
	}
	list := []citation{}
	for _, c := range cite.Find(question, answer, among) {
		list = append(list, citation{documents[c.Document].ID, c.Start, c.End, c.TextStart, c.TextEnd, c.Marker})
	}
	return list
}

// addCitations gives a choice its citations, where there are documents.
func (c *completion) addCitations(choice map[string]any, text string) {
	if len(c.documents) > 0 {
		choice["citations"] = citationsOf(c.question, text, c.documents)
	}
}

func (c *completion) usageWanted() bool {
	return c.q.StreamOptions != nil && c.q.StreamOptions.IncludeUsage
}

// send sends an event, and begins the stream with the first one: until then errors have a status.
func (c *completion) send(w http.ResponseWriter, event any) error {
	if w.Header().Get("Content-Type") != eventStream {
		beginStream(w)
	}
	return writeEvent(w, event)
}

// sendCalls sends the calls of tools, each in one piece.
func (c *completion) sendCalls(w http.ResponseWriter, index int, calls []toolCall) error {
	for n, call := range calls {
		choice := c.delta(index, "", nil, "")
		choice["delta"] = map[string]any{"role": "assistant", "tool_calls": []any{map[string]any{
			"index": n, "id": call.ID, "type": call.Type, "function": call.Function,
		}}}
		if err := c.send(w, c.envelope(c.chunkObject(), choice)); err != nil {
			return err
		}
	}
	return nil
}

// take are the tokens since the last piece.
func (c *completion) take() []engine.Token {
	t := c.tokens
	c.tokens = nil
	return t
}

func (c *completion) chunkObject() string {
	if c.chat {
		return c.object + ".chunk"
	}
	return c.object
}

// envelope is what stands around choices, whole or pieces of them.
func (c *completion) envelope(object string, choices ...any) map[string]any {
	if choices == nil {
		choices = []any{}
	}
	return map[string]any{"id": c.id, "object": object, "created": c.created, "model": c.s.tessera.Name(), "choices": choices}
}

// delta is a piece of a choice.
func (c *completion) delta(index int, text string, tokens []engine.Token, finish string) map[string]any {
	choice := map[string]any{"index": index, "finish_reason": nil, "logprobs": c.logprobs(tokens)}
	if finish != "" {
		choice["finish_reason"] = finish
	}
	if c.chat {
		delta := map[string]any{}
		if finish == "" {
			delta["role"], delta["content"] = "assistant", text
		}
		choice["delta"] = delta
	} else {
		choice["text"] = text
	}
	return choice
}

// choice is a whole one.
func (c *completion) choice(index int, text string, tokens []engine.Token, finish string) map[string]any {
	choice := map[string]any{"index": index, "finish_reason": finish, "logprobs": c.logprobs(tokens)}
	if c.chat {
		choice["message"] = map[string]any{"role": "assistant", "content": text, "refusal": nil}
	} else {
		choice["text"] = text
	}
	return choice
}

// logprobs are those of tokens in the shape of the endpoint, null for none.
func (c *completion) logprobs(tokens []engine.Token) any {
	if len(tokens) == 0 {
		return nil
	}
	if !c.chat {
		return c.plainLogprobs(tokens)
	}
	entry := func(id int32, logprob float64) map[string]any {
		piece := c.s.tessera.Piece(id)
		numbers := make([]int, len(piece))
		for i, b := range piece {
			numbers[i] = int(b)
		}
		return map[string]any{"token": string(bytes.ToValidUTF8(piece, []byte("\uFFFD"))), "logprob": logprob, "bytes": numbers}
	}
	list := []any{}
	for _, t := range tokens {
		e, top := entry(t.ID, t.Logprob), []any{}
		for _, a := range t.Likely {
			top = append(top, entry(a.ID, a.Logprob))
		}
		e["top_logprobs"] = top
		list = append(list, e)
	}
	return map[string]any{"content": list, "refusal": nil}
}
