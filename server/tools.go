package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/grammar"
)

// A tool is a function that the model may ask for.
type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name       string          `json:"name"`
		Parameters json.RawMessage `json:"parameters"`
	} `json:"function"`
	raw json.RawMessage // all of it, as it was sent
}

func (t *tool) UnmarshalJSON(b []byte) error {
	type plain tool
	t.raw = bytes.Clone(b)
	return json.Unmarshal(b, (*plain)(t))
}

// A toolChoice is "none", "auto", "required", or the function that has to be called.
type toolChoice struct {
	mode string
	name string
}

func (c *toolChoice) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &c.mode) == nil {
		return nil
	}
	var named struct {
		Function struct{ Name string }
	}
	if err := json.Unmarshal(b, &named); err != nil || named.Function.Name == "" {
		return fmt.Errorf(`tool_choice: expected none, auto, required, or {"type":"function","function":{"name"}}`)
	}
	c.mode, c.name = "required", named.Function.Name
	return nil
}

// Calls of tools are written as most models do that have them in their template; what stands between is {"name","arguments"}.
const (
	callBegin = "<tool_call>"
	callEnd   = "</tool_call>"
)

const mostTools = 128

var toolName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// A toolUse is the tools of a request.
type toolUse struct {
	texts    []string         // as the template gets them
	required *grammar.Grammar // of the call that has to be; nil: the model may call or not
}

// toolUse checks the tools of a request, nil for none.
func (q *chatRequest) toolUse() (*toolUse, error) {
	if len(q.Tools) == 0 || q.ToolChoice.mode == "none" {
		return nil, nil
	}
	if len(q.Tools) > mostTools {
		return nil, invalid("tools", "found %d, expected %d at most", len(q.Tools), mostTools)
	}
	use := &toolUse{}
	calls := []any{}
	for i := range q.Tools {
		t := &q.Tools[i]
		if t.Type != "function" || !toolName.MatchString(t.Function.Name) {
			return nil, invalid("tools", "number %d: expected a function with a name of letters, digits, _ and -, up to 64", i+1)
		}
		text, err := spaced(t.raw)
		if err != nil {
			return nil, invalid("tools", "number %d: %v", i+1, err)
		}
		use.texts = append(use.texts, text)
		if len(t.Function.Parameters) == 0 {
			t.Function.Parameters = json.RawMessage(`{"type":"object","properties":{}}`)
		}
		if q.ToolChoice.name == "" || q.ToolChoice.name == t.Function.Name {
			calls = append(calls, map[string]any{
				"type": "object", "required": []string{"name", "arguments"}, "additionalProperties": false,
				"properties": ordered{{"name", map[string]any{"const": t.Function.Name}}, {"arguments", itself(t.Function.Parameters, t.Function.Name)}},
			})
		}
	}
	switch q.ToolChoice.mode {
	case "", "auto":
		return use, nil
	case "required":
	default:
		return nil, invalid("tool_choice", "found %q, expected none, auto, required or a function", q.ToolChoice.mode)
	}
	if len(calls) == 0 {
		return nil, invalid("tool_choice", "there is no tool %q", q.ToolChoice.name)
	}
	schema, err := json.Marshal(map[string]any{"anyOf": calls})
	if err != nil {
		return nil, invalid("tools", "%v", err)
	}
	if use.required, err = grammar.JSONSchema(schema); err != nil {
		return nil, invalid("tools", "a call that is required is held to the parameters' schema: %v", err)
	}
	return use, nil
}

// itself is the schema with an $id, so that a $ref in it stays within it wherever it stands. Where it is no object it is left, to be refused.
func itself(schema json.RawMessage, id string) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(schema, &fields) != nil || fields == nil || fields["$id"] != nil {
		return schema
	}
	inner := bytes.TrimSpace(schema)[1:]
	separator := ","
	if len(fields) == 0 {
		separator = ""
	}
	return slices.Concat(fmt.Appendf(nil, `{"$id":%q%s`, id, separator), inner)
}

// ordered is a JSON object whose fields keep their order: answers give them in that of the schema.
type ordered []struct {
	name  string
	value any
}

func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	for i, f := range o {
		name, _ := json.Marshal(f.name)
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.WriteString(map[bool]string{true: "{", false: ","}[i == 0])
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// spaced writes JSON as Python does, with a space behind commas and colons, since that is what models have seen. Fields keep their order.
func spaced(data json.RawMessage) (string, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return "", err
	}
	var out strings.Builder
	inText, escaped := false, false
	for _, c := range b.Bytes() {
		out.WriteByte(c)
		switch {
		case escaped:
			escaped = false
		case inText && c == '\\':
			escaped = true
		case c == '"':
			inText = !inText
		case !inText && (c == ',' || c == ':'):
			out.WriteByte(' ')
		}
	}
	return out.String(), nil
}

// A toolCall is one that the model asks for.
type toolCall struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"` // JSON
	} `json:"function"`
}

// A callReader takes the calls out of an answer as it comes.
type callReader struct {
	held   string // may be the beginning of a call, or is one that has not ended
	inCall bool
	calls  []toolCall
}

// push takes more of the answer, and returns what of it is text.
func (r *callReader) push(piece string) (text string) {
	r.held += piece
	for {
		if r.inCall {
			body, rest, ended := strings.Cut(r.held, callEnd)
			if !ended {
				return text
			}
			if !r.call(body) {
				text += callBegin + body + callEnd
			}
			r.held, r.inCall = rest, false
			continue
		}
		before, rest, begun := strings.Cut(r.held, callBegin)
		if begun {
			text += before
			r.held, r.inCall = rest, true
			continue
		}
		keep := 0 // of the end, what a call may begin with
		for n := min(len(callBegin)-1, len(r.held)); n > 0; n-- {
			if strings.HasPrefix(callBegin, r.held[len(r.held)-n:]) {
				keep = n
				break
			}
		}
		text += r.held[:len(r.held)-keep]
		r.held = r.held[len(r.held)-keep:]
		return text
	}
}

// end returns the text that was held back. A call without an end is one if it is whole: models leave the end out before their last token.
func (r *callReader) end() (text string) {
	switch {
	case !r.inCall:
		text = r.held
	case !r.call(r.held):
		text = callBegin + r.held
	}
	r.held, r.inCall = "", false
	return text
}

// call takes what stands in a call, if it is one.
func (r *callReader) call(body string) bool {
	var c struct {
		Name       string          `json:"name"`
		Arguments  json.RawMessage `json:"arguments"`
		Parameters json.RawMessage `json:"parameters"`
	}
	if json.Unmarshal([]byte(body), &c) != nil || c.Name == "" {
		return false
	}
	if c.Arguments == nil {
		c.Arguments = c.Parameters
	}
	if c.Arguments == nil {
		c.Arguments = json.RawMessage("{}")
	}
	var quoted string // some models write them as a text
	if json.Unmarshal(c.Arguments, &quoted) == nil {
		c.Arguments = json.RawMessage(quoted)
	}
	one := toolCall{ID: "call_" + id(), Type: "function"}
	one.Function.Name, one.Function.Arguments = c.Name, string(c.Arguments)
	r.calls = append(r.calls, one)
	return true
}
