package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

func TestCallReader_CallsAndText_HoweverTheyAreCut(t *testing.T) {
	type call struct{ Name, Arguments string }
	for _, tt := range []struct {
		answer, text string
		calls        []call
	}{
		{"plain <text> <tool", "plain <text> <tool", nil},
		{`<tool_call>
{"name": "a", "arguments": {"x": 1}}
</tool_call>`, "", []call{{"a", `{"x": 1}`}}},
		{`Let me see.<tool_call>{"name":"a"}</tool_call> and <tool_call>{"name":"b","parameters":{"y":"</x>"}}</tool_call>.`, "Let me see. and .", []call{{"a", "{}"}, {"b", `{"y":"</x>"}`}}},
		{`<tool_call>{"name":"a","arguments":"{\"x\":1}"}`, "", []call{{"a", `{"x":1}`}}},
		{`<tool_call>{"name":"a","argu`, `<tool_call>{"name":"a","argu`, nil},
		{`<tool_call>no JSON</tool_call>!`, `<tool_call>no JSON</tool_call>!`, nil},
	} {
		for size := 1; size <= len(tt.answer); size++ {
			var r callReader
			text := ""
			for from := 0; from < len(tt.answer); from += size {
				text += r.push(tt.answer[from:min(from+size, len(tt.answer))])
			}
			text += r.end()
			var calls []call
			for _, c := range r.calls {
				if c.ID == "" || c.Type != "function" {
					t.Errorf("%q: call %+v", tt.answer, c)
				}
				calls = append(calls, call{c.Function.Name, c.Function.Arguments})
			}
			if text != tt.text || !reflect.DeepEqual(calls, tt.calls) {
				t.Errorf("%q by %d: %q, %v; want %q, %v", tt.answer, size, text, calls, tt.text, tt.calls)
			}
		}
	}
}

func TestSpaced_IsAsPythonWritesIt(t *testing.T) {
	got, err := spaced(json.RawMessage(`{ "b":[1,2] ,
		"a":"x:\"y,z\\" }`))
	if want := `{"b": [1, 2], "a": "x:\"y,z\\"}`; err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

// withTemplate is the tiny model with another chat template.
func withTemplate(t *testing.T, template string) (path string) {
	t.Helper()
	file, err := weights.Open(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	path = filepath.Join(t.TempDir(), "tools.gguf")
	m := file.Metadata()
	m.Set("tokenizer.chat_template", template)
	w, err := weights.Create(path, m, file.Tensors())
	if err != nil {
		t.Fatal(err)
	}
	for _, tensor := range file.Tensors() {
		if _, err := w.Write(tensor.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestChat_Tools_AreCalledWhereTheTemplateHasThem(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: withTemplate(t, `{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}`), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := httptest.NewServer(New(x, Options{}))
	defer s.Close()
	client := openai.NewClient(option.WithBaseURL(s.URL+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
	q := openai.ChatCompletionNewParams{
		Model: "tools", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Which birds?")},
		Tools: []openai.ChatCompletionToolUnionParam{
			openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "look_up", Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{"bird": map[string]any{"enum": []string{"raven", "owl"}}}, "required": []string{"bird"}, "additionalProperties": false}}),
			openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "rest"}),
		},
		ToolChoice: openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "look_up"}),
	}
	got, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	choice := got.Choices[0]
	if len(choice.Message.ToolCalls) != 1 || choice.FinishReason != "tool_calls" || choice.Message.Content != "" {
		t.Fatalf("got %s", got.RawJSON())
	}
	call := choice.Message.ToolCalls[0]
	var arguments struct{ Bird string }
	if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil || call.Function.Name != "look_up" || arguments.Bird != "raven" && arguments.Bird != "owl" {
		t.Errorf("calls %s", call.RawJSON())
	}

	stream := client.Chat.Completions.NewStreaming(t.Context(), q)
	var all openai.ChatCompletionAccumulator
	for stream.Next() {
		all.AddChunk(stream.Current())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if c := all.Choices[0]; len(c.Message.ToolCalls) != 1 || c.Message.ToolCalls[0].Function.Arguments != call.Function.Arguments || c.FinishReason != "tool_calls" {
		t.Errorf("streamed: %+v", c)
	}

	// A schema may refer to parts of itself, as clients write those of nested types.
	nested := `{"$defs":{"bird":{"enum":["kite","wren"]}},"type":"object","properties":{"a":{"$ref":"#/$defs/bird"}},"required":["a"],"additionalProperties":false}`
	if got, err = client.Chat.Completions.New(t.Context(), q, option.WithJSONSet("tools", []any{map[string]any{"type": "function", "function": map[string]any{"name": "look_up", "parameters": json.RawMessage(nested)}}})); err != nil {
		t.Fatal(err)
	}
	var bird struct{ A string }
	if a := got.Choices[0].Message.ToolCalls[0].Function.Arguments; json.Unmarshal([]byte(a), &bird) != nil || bird.A != "kite" && bird.A != "wren" {
		t.Errorf("called with %s", a)
	}

	// What the tools gave are documents of the question, and the next answer rests on them.
	q.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("auto")}
	q.MaxTokens = openai.Int(5)
	q.Messages = append(q.Messages, choice.Message.ToParam(), openai.ToolMessage("Ravens hide food.", call.ID))
	if got, err = client.Chat.Completions.New(t.Context(), q, option.WithJSONSet("tessera", map[string]any{"attention": "block"})); err != nil {
		t.Fatal(err)
	}
	var r receiptOf
	if err := json.Unmarshal([]byte(got.RawJSON()), &r); err != nil || len(r.Tessera.Documents) != 1 || len(r.Tessera.Blocks) != 3 || got.Choices[0].FinishReason != "length" {
		t.Errorf("after the call: %s", got.RawJSON())
	}

	var failure *openai.Error
	q.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "sleep"})
	if _, err := client.Chat.Completions.New(t.Context(), q); !errors.As(err, &failure) || failure.StatusCode != 400 || !strings.Contains(failure.Message, `there is no tool "sleep"`) {
		t.Errorf("a tool that is not there: %v", err)
	}
}

// A schema of a megabyte is taken or refused, soon; whatever its shape, the server answers the next request.
func TestSchemas_OfAMegabyte_AreAnswered(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: withTemplate(t, `{% for m in messages %}{{ m.content }}{% endfor %}`), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := httptest.NewServer(New(x, Options{}))
	defer s.Close()
	const size = 1 << 20
	word := strings.Repeat("w", size)
	list := func(item string) string { return "[" + strings.Repeat(item+",", size/(len(item)+1)) + item + "]" }
	properties := func(value string) string {
		var b strings.Builder
		for i := range size / (len(value) + 12) {
			fmt.Fprintf(&b, "%q:%s,", fmt.Sprint("p", i), value)
		}
		return `{` + b.String() + `"last":` + value + `}`
	}
	for name, schema := range map[string]string{
		"a long name":             `{"type":"object","properties":{"` + word + `":{"type":"integer"}},"required":["` + word + `"]}`,
		"many properties":         `{"type":"object","properties":` + properties(`{"type":"string"}`) + `}`,
		"many words":              `{"enum":` + list(`"raven"`) + `}`,
		"many alternatives":       `{"anyOf":` + list(`{"type":"integer"}`) + `}`,
		"alternatives of objects": `{"anyOf":` + list(`{"type":"object","properties":{"a":{"anyOf":[{"type":"string"},{"type":"null"}]}}}`) + `}`,
		"deep":                    strings.Repeat(`{"items":`, size/9) + `{}` + strings.Repeat(`}`, size/9),
		"deep lists":              `{"enum":[` + strings.Repeat(`[`, size/2) + strings.Repeat(`]`, size/2) + `]}`,
		"definitions":             `{"$defs":` + properties(`{"$ref":"#/$defs/last"}`) + `,"$ref":"#/$defs/p0"}`,
		"long description":        `{"type":"integer","description":"` + word + `"}`,
		"a long pattern":          `{"type":"string","pattern":"` + strings.Repeat("(a|b)*", size/6) + `"}`,
		"many of a kind":          `{"type":"array","items":{"type":"integer"},"minItems":1000000000,"maxItems":1000000000}`,
		"long words":              `{"type":"string","minLength":1000000000}`,
	} {
		for where, body := range map[string]string{
			"response_format": `{"messages":[{"role":"user","content":"?"}],"max_tokens":4,"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":` + schema + `}}}`,
			"tools":           `{"messages":[{"role":"user","content":"?"}],"max_tokens":4,"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":` + schema + `}}]}`,
		} {
			status, text := post(t, s.URL+"/v1/chat/completions", body)
			if status != 200 && status != 400 || status == 400 && len(text) > 2000 {
				t.Errorf("%s in %s: %d %.300s", name, where, status, text)
			}
		}
	}
	if status, text := post(t, s.URL+"/v1/completions", `{"prompt":"a","max_tokens":1}`); status != 200 {
		t.Errorf("afterwards: %d %s", status, text)
	}
}
