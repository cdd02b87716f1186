package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/grammar"
	"github.com/tessera-llm/tessera/prompt"
)

// A responsesRequest is the body of /v1/responses. Nothing is kept of a response: a conversation goes on by sending its items again.
type responsesRequest struct {
	Input        input             `json:"input"`
	Instructions string            `json:"instructions"`
	Documents    []prompt.Document `json:"documents"`
	generationRequest
	MaxOutputTokens    *int           `json:"max_output_tokens"`
	Text               *textOptions   `json:"text"`
	PreviousResponseID string         `json:"previous_response_id"`
	Tools              []any          `json:"tools"`
	Metadata           map[string]any `json:"metadata"`
}

type textOptions struct {
	Format *struct {
		Type   string          `json:"type"`
		Schema json.RawMessage `json:"schema"`
	} `json:"format"`
}

// input is a text, which is a user's message, or a list of items.
type input []chatMessage

func (in *input) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*in = input{{Role: "user", Content: content(text)}}
		return nil
	}
	var items []struct {
		chatMessage
		Type   string  `json:"type"`
		Output content `json:"output"`
	}
	if err := json.Unmarshal(b, &items); err != nil {
		return fmt.Errorf("input: expected a text or a list of items: %w", err)
	}
	for i, item := range items {
		switch item.Type {
		case "", "message":
			*in = append(*in, item.chatMessage)
		case "function_call_output":
			*in = append(*in, chatMessage{Role: "tool", Content: item.Output})
		case "function_call", "reasoning": // what led to a tool's result, which is a document
		default:
			return fmt.Errorf("input: item %d is of type %q; this model reads messages and results of functions", i+1, item.Type)
		}
	}
	return nil
}

// respond is POST /v1/responses.
func (s *Server) respond(w http.ResponseWriter, r *http.Request, k *Key) error {
	var q responsesRequest
	if err := readJSON(r, &q); err != nil {
		return err
	}
	if q.PreviousResponseID != "" {
		return invalid("previous_response_id", "nothing is kept of responses; send the conversation's items as input")
	}
	if len(q.Tools) > 0 {
		return invalid("tools", "this endpoint calls none; /v1/chat/completions does, where the model's chat template has them")
	}
	if len(q.Input) == 0 {
		return invalid("input", "is missing")
	}
	chat := chatRequest{Messages: q.Input, generationRequest: q.generationRequest}
	if q.Instructions != "" {
		chat.Messages = append([]chatMessage{{Role: "system", Content: content(q.Instructions)}}, chat.Messages...)
	}
	messages, err := chat.conversation()
	if err != nil {
		return err
	}
	if q.MaxTokens = q.MaxOutputTokens; q.MaxTokens != nil && *q.MaxTokens < 1 {
		return invalid("max_output_tokens", "found %d, expected at least 1", *q.MaxTokens)
	}
	g, _, err := q.generation(k)
	if err != nil {
		return err
	}
	if g.Grammar, err = q.Text.grammar(); err != nil {
		return err
	}
	documents, err := s.documents(r.Context(), k, q.Tessera, q.Documents, messages)
	if err != nil {
		return err
	}
	a := response{s: s, w: w, q: &q, id: "resp_" + id(), item: "msg_" + id(), created: time.Now().Unix()}
	text := "" // as it was emitted: the receipt's answer is without spaces around it
	g.Emit = func(piece string) error {
		text += piece
		if !q.Stream {
			return nil
		}
		if err := a.begin(); err != nil {
			return err
		}
		return a.send(responseEvent{"response.output_text.delta", map[string]any{"item_id": a.item, "output_index": 0, "content_index": 0, "delta": piece, "logprobs": []any{}}})
	}
	got, err := s.measured(r.Context(), g, func(g tessera.Generation) (*tessera.Receipt, error) { return s.tessera.Chat(r.Context(), messages, g) })
	if err != nil {
		return err
	}
	a.citations = citationsOf(messages[len(messages)-1].Content, text, documents)
	whole := a.body(text, got, &receipt{Receipt: got, Documents: documents})
	if !q.Stream {
		writeJSON(w, whole)
		return nil
	}
	if err := a.begin(); err != nil { // an answer without text has sent nothing yet
		return err
	}
	return a.end(text, whole)
}

// grammar is what the format holds answers to, nil for none.
func (t *textOptions) grammar() (*grammar.Grammar, error) {
	if t == nil || t.Format == nil {
		return nil, nil
	}
	return grammarOf("text.format.type", t.Format.Type, "text.format.schema", t.Format.Schema)
}

// A response is one under way.
type response struct {
	s        *Server
	w        http.ResponseWriter
	q        *responsesRequest
	id, item string
	created  int64
	events   int

	citations []citation // once the answer is whole
}

// begin sends the events before the text, unless they were.
func (a *response) begin() error {
	if a.events > 0 {
		return nil
	}
	beginStream(a.w)
	under := a.body("", nil, nil)
	return a.send(
		responseEvent{"response.created", map[string]any{"response": under}},
		responseEvent{"response.in_progress", map[string]any{"response": under}},
		responseEvent{"response.output_item.added", map[string]any{"output_index": 0, "item": a.message("in_progress")}},
		responseEvent{"response.content_part.added", map[string]any{"item_id": a.item, "output_index": 0, "content_index": 0, "part": a.textPart("")}},
	)
}

// end sends the events behind the text.
func (a *response) end(text string, whole map[string]any) error {
	status := whole["status"].(string)
	return a.send(
		responseEvent{"response.output_text.done", map[string]any{"item_id": a.item, "output_index": 0, "content_index": 0, "text": text, "logprobs": []any{}}},
		responseEvent{"response.content_part.done", map[string]any{"item_id": a.item, "output_index": 0, "content_index": 0, "part": a.textPart(text)}},
		responseEvent{"response.output_item.done", map[string]any{"output_index": 0, "item": a.message(status, a.textPart(text))}},
		responseEvent{"response." + status, map[string]any{"response": whole}},
	)
}

type responseEvent struct {
	kind   string
	fields map[string]any
}

// send sends events, numbered from the first of the response on.
func (a *response) send(events ...responseEvent) error {
	for _, e := range events {
		e.fields["type"], e.fields["sequence_number"] = e.kind, a.events
		a.events++
		if _, err := fmt.Fprintf(a.w, "event: %s\n", e.kind); err != nil {
			return err
		}
		if err := writeEvent(a.w, e.fields); err != nil {
			return err
		}
	}
	return nil
}

// textPart is the text with its citations as annotations: OpenAI's of a file, and where in both texts they are.
func (a *response) textPart(text string) map[string]any {
	annotations := []any{}
	for _, c := range a.citations {
		annotations = append(annotations, map[string]any{
			"type": "file_citation", "file_id": c.Document, "filename": c.Document, "index": c.End,
			"start": c.Start, "end": c.End, "text_start": c.TextStart, "text_end": c.TextEnd,
		})
	}
	return map[string]any{"type": "output_text", "text": text, "annotations": annotations, "logprobs": []any{}}
}

func (a *response) message(status string, parts ...map[string]any) map[string]any {
	if parts == nil {
		parts = []map[string]any{}
	}
	return map[string]any{"type": "message", "id": a.item, "status": status, "role": "assistant", "content": parts}
}

// body is the response as it stands, got being nil until it has ended.
func (a *response) body(text string, got *tessera.Receipt, r *receipt) map[string]any {
	q := a.q
	format := map[string]any{"type": "text"}
	if q.Text != nil && q.Text.Format != nil {
		format["type"] = q.Text.Format.Type
		if len(q.Text.Format.Schema) > 0 {
			format["schema"] = q.Text.Format.Schema
		}
	}
	var instructions any
	if q.Instructions != "" {
		instructions = q.Instructions
	}
	if q.Metadata == nil {
		q.Metadata = map[string]any{}
	}
	b := map[string]any{
		"id": a.id, "object": "response", "created_at": a.created, "status": "in_progress", "error": nil, "incomplete_details": nil,
		"instructions": instructions, "max_output_tokens": q.MaxTokens, "model": a.s.tessera.Name(), "output": []any{}, "parallel_tool_calls": false,
		"previous_response_id": nil, "store": false, "temperature": q.Temperature, "top_p": q.TopP, "text": map[string]any{"format": format},
		"tool_choice": "none", "tools": []any{}, "truncation": "disabled", "usage": nil, "metadata": q.Metadata,
	}
	if got == nil {
		return b
	}
	b["status"] = "completed"
	if got.Finish == engine.FinishLength {
		b["status"], b["incomplete_details"] = "incomplete", map[string]any{"reason": "max_output_tokens"}
	}
	b["output"] = []any{a.message(b["status"].(string), a.textPart(text))}
	b["usage"] = map[string]any{
		"input_tokens": got.Usage.Prompt, "input_tokens_details": map[string]any{"cached_tokens": got.Usage.Cached},
		"output_tokens": got.Usage.Completion, "output_tokens_details": map[string]any{"reasoning_tokens": 0}, "total_tokens": got.Usage.Prompt + got.Usage.Completion,
	}
	b["tessera"] = r
	return b
}
