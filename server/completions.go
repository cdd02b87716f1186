package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/engine"
)

// A completionRequest is the body of /v1/completions.
type completionRequest struct {
	Prompt prompts `json:"prompt"`
	generationRequest
	Logprobs *int    `json:"logprobs"`
	Echo     bool    `json:"echo"`
	Suffix   *string `json:"suffix"`
}

// prompts are one text, several, the ids of one, or those of several.
type prompts []plainPrompt

type plainPrompt struct {
	text string
	ids  []int32
}

func (p *prompts) UnmarshalJSON(b []byte) error {
	var (
		list texts
		ids  []int32
		many [][]int32
	)
	switch {
	case json.Unmarshal(b, &list) == nil:
		for _, text := range list {
			*p = append(*p, plainPrompt{text: text})
		}
	case json.Unmarshal(b, &ids) == nil:
		*p = prompts{{ids: ids}}
	case json.Unmarshal(b, &many) == nil:
		for _, one := range many {
			*p = append(*p, plainPrompt{ids: one})
		}
	default:
		return fmt.Errorf("prompt: expected a text, token ids, or a list of either")
	}
	return nil
}

// mostPrompts is how many prompts one request may have.
const mostPrompts = 64

// defaultMaxTokens is OpenAI's for this endpoint.
const defaultMaxTokens = 16

// complete is POST /v1/completions.
func (s *Server) complete(w http.ResponseWriter, r *http.Request, k *Key) error {
	var q completionRequest
	if err := readJSON(r, &q); err != nil {
		return err
	}
	if len(q.Prompt) < 1 || len(q.Prompt) > mostPrompts {
		return invalid("prompt", "found %d of them, expected 1 to %d", len(q.Prompt), mostPrompts)
	}
	if q.Suffix != nil && *q.Suffix != "" {
		return invalid("suffix", "is not supported")
	}
	onlyEcho := q.Echo && q.MaxTokens != nil && *q.MaxTokens == 0
	if onlyEcho {
		q.MaxTokens = nil
	}
	g, choices, err := q.generation(k)
	if err != nil {
		return err
	}
	if q.MaxTokens == nil && !onlyEcho {
		g.MaxTokens = defaultMaxTokens
	}
	if q.Logprobs != nil {
		if *q.Logprobs < 0 || *q.Logprobs > 20 {
			return invalid("logprobs", "found %d, expected 0 to 20", *q.Logprobs)
		}
		g.Logprobs, g.Likely = true, *q.Logprobs
	}
	var prompts []generate
	for _, one := range q.Prompt {
		if one.ids == nil {
			one.ids = s.tessera.Tokenize(one.text)
		} else if one.text, err = s.tessera.Detokenize(one.ids); err != nil {
			return invalid("prompt", "%v", err)
		}
		if len(one.ids) == 0 {
			return invalid("prompt", "is empty")
		}
		prompts = append(prompts, func(g tessera.Generation) (*tessera.Receipt, error) {
			if !q.Echo {
				return s.tessera.Complete(r.Context(), one.ids, false, g)
			}
			return s.echo(r, one, g)
		})
	}
	c := completion{s: s, id: "cmpl-" + id(), object: "text_completion", created: time.Now().Unix(), q: &q.generationRequest}
	return c.answer(r.Context(), w, g, choices, prompts...)
}

// echo puts the prompt before the answer.
func (s *Server) echo(r *http.Request, p plainPrompt, g tessera.Generation) (*tessera.Receipt, error) {
	emit, began := g.Emit, false
	begin := func() error {
		if began {
			return nil
		}
		began = true
		return emit(p.text)
	}
	g.Emit = func(text string) error {
		if err := begin(); err != nil {
			return err
		}
		return emit(text)
	}
	tell := g.Token
	if !g.Logprobs {
		g.Token = nil
	} else {
		tell(engine.Token{ID: p.ids[0], Logprob: math.NaN()}) // nothing comes before it: it has no probability
	}
	receipt, err := s.tessera.Complete(r.Context(), p.ids, true, g)
	if err == nil {
		err = begin()
	}
	return receipt, err
}

// plainLogprobs are log-probabilities in this endpoint's shape.
func (c *completion) plainLogprobs(tokens []engine.Token) any {
	var (
		names   = []string{}
		values  = []any{}
		top     = []any{}
		offsets = []int{}
		at      = 0
	)
	name := func(id int32) string {
		return string(bytes.ToValidUTF8(c.s.tessera.Piece(id), []byte("\uFFFD")))
	}
	for _, t := range tokens {
		names, offsets = append(names, name(t.ID)), append(offsets, at)
		at += len([]rune(name(t.ID)))
		if math.IsNaN(t.Logprob) {
			values, top = append(values, nil), append(top, nil)
			continue
		}
		likely := map[string]float64{}
		for _, a := range t.Likely {
			likely[name(a.ID)] = a.Logprob
		}
		values, top = append(values, t.Logprob), append(top, likely)
	}
	return map[string]any{"tokens": names, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}
}

// models is GET /v1/models.
func (s *Server) models(w http.ResponseWriter, r *http.Request, k *Key) error {
	writeJSON(w, map[string]any{"object": "list", "data": []any{s.describe()}})
	return nil
}

func (s *Server) model(w http.ResponseWriter, r *http.Request, k *Key) error {
	if id := r.PathValue("id"); id != s.tessera.Name() {
		return &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Param: "model", Code: "model_not_found", Message: fmt.Sprintf("there is no model %q; this server has %q", id, s.tessera.Name())}
	}
	writeJSON(w, s.describe())
	return nil
}

func (s *Server) describe() any {
	return map[string]any{"id": s.tessera.Name(), "object": "model", "created": s.started.Unix(), "owned_by": "tessera", "context": s.tessera.Context()}
}

// tokenize is POST /tokenize.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request, k *Key) error {
	var q struct {
		Content *string `json:"content"`
		Prompt  *string `json:"prompt"`
	}
	if err := readJSON(r, &q); err != nil {
		return err
	}
	if q.Content == nil {
		q.Content = q.Prompt
	}
	if q.Content == nil {
		return invalid("content", "is missing")
	}
	ids := s.tessera.Tokenize(*q.Content)
	if ids == nil {
		ids = []int32{}
	}
	writeJSON(w, map[string]any{"tokens": ids, "count": len(ids)})
	return nil
}

// detokenize is POST /detokenize.
func (s *Server) detokenize(w http.ResponseWriter, r *http.Request, k *Key) error {
	var q struct {
		Tokens []int32 `json:"tokens"`
	}
	if err := readJSON(r, &q); err != nil {
		return err
	}
	text, err := s.tessera.Detokenize(q.Tokens)
	if err != nil {
		return invalid("tokens", "%v", err)
	}
	writeJSON(w, map[string]any{"content": text})
	return nil
}
