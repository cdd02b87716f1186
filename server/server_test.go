package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

// start runs a server with the tiny model, whose tokens are bytes and whose context is 512, and a client of OpenAI's for it.
func start(t *testing.T, o Options) (openai.Client, *httptest.Server) {
	t.Helper()
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(New(x, o))
	t.Cleanup(func() {
		s.Close()
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return openai.NewClient(option.WithBaseURL(s.URL+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0), option.WithHTTPClient(s.Client())), s
}

func question(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:     "tiny-tied",
		Messages:  []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Be brief."), openai.UserMessage(text)},
		MaxTokens: openai.Int(12),
	}
}

// withDocuments adds what OpenAI's client knows nothing of.
var withDocuments = []option.RequestOption{
	option.WithJSONSet("documents", []any{map[string]any{"id": "a", "title": "Ravens", "text": "Ravens hide food."}, "Owls hear well."}),
	option.WithJSONSet("tessera", map[string]any{"attention": "block"}),
}

// A receiptOf is the part of a response that tests look at.
type receiptOf struct {
	Tessera struct {
		Attention string
		Blocks    []struct{ Kind, Doc, Source string }
		Documents []struct{ ID, Text string }
	}
}

func TestChat_OpenAIsClient_AnswersWithReceipt(t *testing.T) {
	client, _ := start(t, Options{})
	var texts [2]string
	for i, want := range []string{"computed", "ram"} {
		got, err := client.Chat.Completions.New(t.Context(), question("Which bird hides food?"), withDocuments...)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Choices) != 1 || got.Choices[0].Message.Content == "" || got.Model != "tiny-tied" || got.Object != "chat.completion" {
			t.Errorf("got %+v", got)
		}
		texts[i] = got.Choices[0].Message.Content
		var r receiptOf
		if err := json.Unmarshal([]byte(got.RawJSON()), &r); err != nil {
			t.Fatal(err)
		}
		blocks := r.Tessera.Blocks
		if r.Tessera.Attention != "block" || len(blocks) != 4 || blocks[1].Doc != "a" || blocks[2].Doc != "2" || blocks[1].Source != want || blocks[3].Kind != "query" || len(r.Tessera.Documents) != 2 {
			t.Errorf("receipt %+v, want the passages to be %s", r, want)
		}
		u := got.Usage
		if u.PromptTokens == 0 || u.CompletionTokens != 12 || u.TotalTokens != u.PromptTokens+12 || (u.PromptTokensDetails.CachedTokens > 0) != (want == "ram") {
			t.Errorf("usage %+v", u)
		}
	}
	if texts[0] != texts[1] {
		t.Errorf("from computed blocks %q, from stored ones %q", texts[0], texts[1])
	}
}

// The tiny model says anything; held to a schema it says what a passage does, and that is cited.
func TestChat_Citations_SayWhatTheAnswerRestsOn(t *testing.T) {
	_, s := start(t, Options{})
	const fields = `"documents":[{"id":"o","text":"Owls hear mice."},{"id":"r","text":"It is said that ravens hide food."}],"response_format":{"type":"json_schema","json_schema":{"schema":{"const":"Ravens hide food."}}},"text":{"format":{"type":"json_schema","schema":{"const":"Ravens hide food."}}},`
	for path, want := range map[string]string{
		"/v1/chat/completions": `"citations":[{"document":"r","start":1,"end":17,"text_start":16,"text_end":32}]`,
		"/v1/responses":        `"annotations":[{"end":17,"file_id":"r","filename":"r","index":17,"start":1,"text_end":32,"text_start":16,"type":"file_citation"}]`,
	} {
		for _, stream := range []string{"false", "true"} {
			status, text := post(t, s.URL+path, `{"messages":[{"role":"user","content":"Who hides food?"}],"input":"Who hides food?",`+fields+`"stream":`+stream+`}`)
			if status != 200 || !strings.Contains(text, want) {
				t.Errorf("%s, streamed %s: %d %s; want %s", path, stream, status, text, want)
			}
		}
	}
	if status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"max_tokens":2}`); status != 200 || strings.Contains(text, "citations") {
		t.Errorf("without documents: %d %s", status, text)
	}
}

func TestResponses_OpenAIsClient_WholeAndStreamed(t *testing.T) {
	client, _ := start(t, Options{})
	q := responses.ResponseNewParams{
		Model: "tiny-tied", Instructions: openai.String("Be brief."), MaxOutputTokens: openai.Int(12),
		Input: responses.ResponseNewParamsInputUnion{OfInputItemList: responses.ResponseInputParam{
			responses.ResponseInputItemParamOfMessage("Which bird hides food?", responses.EasyInputMessageRoleUser),
		}},
	}
	whole, err := client.Responses.New(t.Context(), q, withDocuments...)
	if err != nil {
		t.Fatal(err)
	}
	same, err := client.Chat.Completions.New(t.Context(), question("Which bird hides food?"), withDocuments...)
	if err != nil {
		t.Fatal(err)
	}
	if whole.OutputText() != same.Choices[0].Message.Content || whole.Status != "incomplete" || whole.IncompleteDetails.Reason != "max_output_tokens" {
		t.Errorf("%q, %s, %+v; a chat's answer is %q", whole.OutputText(), whole.Status, whole.IncompleteDetails, same.Choices[0].Message.Content)
	}
	if u := whole.Usage; u.InputTokens != same.Usage.PromptTokens || u.OutputTokens != 12 || u.TotalTokens != u.InputTokens+12 {
		t.Errorf("usage %+v, a chat's %+v", u, same.Usage)
	}
	var r receiptOf
	if err := json.Unmarshal([]byte(whole.RawJSON()), &r); err != nil || len(r.Tessera.Blocks) != 4 || len(r.Tessera.Documents) != 2 {
		t.Errorf("receipt %+v, %v", r, err)
	}

	stream := client.Responses.NewStreaming(t.Context(), q, withDocuments...)
	text, kinds := "", []string{}
	for n := int64(0); stream.Next(); n++ {
		e := stream.Current()
		if e.SequenceNumber != n {
			t.Errorf("event %d has number %d", n, e.SequenceNumber)
		}
		if e.Type != "response.output_text.delta" {
			kinds = append(kinds, e.Type)
		} else if text += e.Delta; e.ItemID == "" {
			t.Error("a piece of no item")
		}
		if e.Type == "response.incomplete" && (e.Response.OutputText() != whole.OutputText() || e.Response.Usage.InputTokensDetails.CachedTokens == 0) {
			t.Errorf("the end says %q, %+v", e.Response.OutputText(), e.Response.Usage)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	want := []string{"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"}
	if text != whole.OutputText() || !slices.Equal(kinds, want) {
		t.Errorf("%q by %q; want %q by %q", text, kinds, whole.OutputText(), want)
	}

	q.Text = responses.ResponseTextConfigParam{Format: responses.ResponseFormatTextConfigParamOfJSONSchema("bird", map[string]any{"enum": []string{"raven"}})}
	q.MaxOutputTokens = openai.Int(40)
	held, err := client.Responses.New(t.Context(), q)
	if err != nil || held.OutputText() != `"raven"` || held.Status != "completed" {
		t.Errorf("by a schema: %q, %v", held.OutputText(), err)
	}
}

// The text is told three times, and is the same with the spaces around it; of many drawn answers some have them.
func TestResponses_Pieces_AreTheTextOfTheEnd(t *testing.T) {
	client, _ := start(t, Options{})
	for seed, spaces := 0, false; !spaces; seed++ {
		if seed == 1000 {
			t.Fatal("no answer has spaces around it")
		}
		stream := client.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{
			Model: "tiny-tied", Temperature: openai.Float(1), MaxOutputTokens: openai.Int(12), Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Which bird?")},
		}, option.WithJSONSet("seed", seed))
		var pieces, done, whole string
		for stream.Next() {
			switch e := stream.Current(); e.Type {
			case "response.output_text.delta":
				pieces += e.Delta
			case "response.output_text.done":
				done = e.Text
			case "response.incomplete", "response.completed":
				whole = e.Response.OutputText()
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if done != pieces || whole != pieces {
			t.Fatalf("seed %d: pieces %q, at the end %q, in the response %q", seed, pieces, done, whole)
		}
		spaces = strings.TrimSpace(pieces) != pieces
	}
}

func TestCompletions_SeveralPrompts_AreChoices(t *testing.T) {
	client, _ := start(t, Options{})
	one := func(p openai.CompletionNewParamsPromptUnion, n int64) *openai.Completion {
		t.Helper()
		got, err := client.Completions.New(t.Context(), openai.CompletionNewParams{Model: "tiny-tied", Prompt: p, N: openai.Int(n), MaxTokens: openai.Int(5), Temperature: openai.Float(1), Seed: openai.Int(3)})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a := one(openai.CompletionNewParamsPromptUnion{OfString: openai.String("Ravens")}, 2)
	b := one(openai.CompletionNewParamsPromptUnion{OfString: openai.String("Owls")}, 2)
	both := one(openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"Ravens", "Owls"}}, 2)
	for i, c := range both.Choices {
		if want := append(a.Choices, b.Choices...)[i]; c.Text != want.Text || c.Index != int64(i) {
			t.Errorf("choice %d is %q with index %d; alone %q", i, c.Text, c.Index, want.Text)
		}
	}
	if both.Usage.TotalTokens != a.Usage.TotalTokens+b.Usage.TotalTokens || both.Usage.PromptTokens != a.Usage.PromptTokens+b.Usage.PromptTokens {
		t.Errorf("usage %+v of %+v and %+v", both.Usage, a.Usage, b.Usage)
	}
}

// A document is the same block however it comes, unless marks are to be left alone.
func TestChat_DocumentsWithinMessages_AreBlocks(t *testing.T) {
	_, s := start(t, Options{})
	receipt := func(fields string) (r receiptOf) {
		t.Helper()
		status, text := post(t, s.URL+"/v1/chat/completions", `{"max_tokens":2,`+fields+`}`)
		if err := json.Unmarshal([]byte(text), &r); err != nil || status != 200 {
			t.Fatalf("%s: %d %s", fields, status, text)
		}
		return r
	}
	const block = `"tessera":{"attention":"block"}`
	receipt(`"messages":[{"role":"user","content":"Who?"}],"documents":["Ravens hide food.","Owls hear well."],` + block)
	for _, fields := range []string{
		`"messages":[{"role":"user","content":"<context><source id=\"x\">Owls hear well.</source><source id=\"y\">Ravens hide food.</source></context> Who?"}],` + block,
		`"messages":[{"role":"user","content":"[1] Owls hear well.\n[2] Ravens hide food.\n\nWho?"}],` + block,
		`"messages":[{"role":"user","content":"Who?"},{"role":"assistant","tool_calls":[{}]},{"role":"tool","content":"[{\"text\":\"Owls hear well.\"},{\"text\":\"Ravens hide food.\"}]"}],` + block,
		`"messages":[{"role":"user","content":"Who?"},{"role":"tool","content":"Owls hear well."},{"role":"tool","content":"Ravens hide food."}],` + block,
	} {
		r := receipt(fields)
		if b := r.Tessera.Blocks; len(b) != 4 || b[1].Source != "ram" || b[2].Source != "ram" || b[3].Kind != "query" || r.Tessera.Documents[1].Text != "Ravens hide food." {
			t.Errorf("%s: %+v", fields, r)
		}
	}
	r := receipt(`"messages":[{"role":"user","content":"[1] Owls hear well.\n[2] Ravens hide food.\n\nWho?"}],"tessera":{"attention":"block","split":false}`)
	if len(r.Tessera.Blocks) != 2 || len(r.Tessera.Documents) != 0 {
		t.Errorf("marks that are to be left alone: %+v", r)
	}
}

func TestChat_Streamed_IsTheSameText(t *testing.T) {
	client, _ := start(t, Options{})
	whole, err := client.Chat.Completions.New(t.Context(), question("Which bird?"))
	if err != nil {
		t.Fatal(err)
	}
	q := question("Which bird?")
	q.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	stream := client.Chat.Completions.NewStreaming(t.Context(), q)
	var all openai.ChatCompletionAccumulator
	pieces, receipts := 0, 0
	for stream.Next() {
		chunk := stream.Current()
		if all.AddChunk(chunk); len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "" {
			pieces++
		}
		if strings.Contains(chunk.RawJSON(), `"tessera":`) {
			receipts++
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got := all.Choices[0].Message.Content; got != whole.Choices[0].Message.Content || pieces < 2 || receipts != 1 {
		t.Errorf("%q in %d pieces, %d receipts; in one %q", got, pieces, receipts, whole.Choices[0].Message.Content)
	}
	if all.Choices[0].FinishReason != "length" || all.Usage.CompletionTokens != 12 {
		t.Errorf("finish %q, usage %+v", all.Choices[0].FinishReason, all.Usage)
	}
}

func TestChat_Parameters(t *testing.T) {
	client, _ := start(t, Options{})
	q := question("Which bird?")
	q.N, q.Temperature, q.Seed, q.Logprobs, q.TopLogprobs = openai.Int(3), openai.Float(1), openai.Int(7), openai.Bool(true), openai.Int(2)
	first, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for i, c := range first.Choices {
		if c.Message.Content != again.Choices[i].Message.Content {
			t.Errorf("choice %d: the same seed gives %q and %q", i, c.Message.Content, again.Choices[i].Message.Content)
		}
		texts = append(texts, c.Message.Content)
		if l := c.Logprobs.Content; len(l) != 12 || len(l[0].TopLogprobs) != 2 || l[0].TopLogprobs[0].Logprob < l[0].TopLogprobs[1].Logprob || l[0].Logprob > 0 {
			t.Errorf("choice %d: logprobs %+v", i, l)
		}
	}
	slices.Sort(texts)
	if len(slices.Compact(texts)) < 2 {
		t.Errorf("three choices that are drawn are all %q", texts[0])
	}
	q = question("Which bird?")
	whole, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	text := whole.Choices[0].Message.Content
	q.Stop = openai.ChatCompletionNewParamsStopUnion{OfStringArray: []string{text[4:6]}}
	stopped, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil || stopped.Choices[0].FinishReason != "stop" || !strings.HasPrefix(text, stopped.Choices[0].Message.Content) || strings.Contains(stopped.Choices[0].Message.Content, text[4:6]) {
		t.Errorf("stop at %q of %q: %+v, %v", text[4:6], text, stopped, err)
	}
}

func TestChat_JSONSchema_HoldsTheAnswer(t *testing.T) {
	client, _ := start(t, Options{})
	q := question("Which bird?")
	q.MaxTokens = openai.Int(100)
	q.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONSchema: &openai.ResponseFormatJSONSchemaParam{JSONSchema: openai.ResponseFormatJSONSchemaJSONSchemaParam{
		Name: "bird", Strict: openai.Bool(true),
		Schema: map[string]any{"type": "object", "properties": map[string]any{"bird": map[string]any{"enum": []string{"raven", "owl"}}}, "required": []string{"bird"}, "additionalProperties": false},
	}}}
	got, err := client.Chat.Completions.New(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Bird string }
	if err := json.Unmarshal([]byte(got.Choices[0].Message.Content), &v); err != nil || v.Bird != "raven" && v.Bird != "owl" {
		t.Errorf("%q: %v", got.Choices[0].Message.Content, err)
	}
}

func TestCompletions_EchoAndLogprobs(t *testing.T) {
	client, _ := start(t, Options{})
	got, err := client.Completions.New(t.Context(), openai.CompletionNewParams{
		Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Ravens")}, MaxTokens: openai.Int(0), Echo: openai.Bool(true), Logprobs: openai.Int(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := got.Choices[0]
	if c.Text != "Ravens" || len(c.Logprobs.Tokens) != 6 || c.Logprobs.Tokens[1] != "a" || c.Logprobs.TokenLogprobs[1] >= 0 || c.Logprobs.TextOffset[5] != 5 || got.Usage.CompletionTokens != 0 {
		t.Errorf("echo alone: %+v", c)
	}
	stream := client.Completions.NewStreaming(t.Context(), openai.CompletionNewParams{
		Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfTokens: []int64{82, 97}}, MaxTokens: openai.Int(4),
	})
	pieces := 0
	for stream.Next() {
		pieces++
	}
	if stream.Err() != nil || pieces < 2 {
		t.Errorf("from token ids: %d pieces, %v", pieces, stream.Err())
	}
}

func TestModels_AreListedAndNamed(t *testing.T) {
	client, _ := start(t, Options{})
	list, err := client.Models.List(t.Context())
	if err != nil || len(list.Data) != 1 || list.Data[0].ID != "tiny-tied" {
		t.Errorf("%+v, %v", list, err)
	}
	var api *openai.Error
	if _, err := client.Models.Get(t.Context(), "other"); !errors.As(err, &api) || api.StatusCode != 404 || api.Code != "model_not_found" {
		t.Errorf("a model that is not there: %v", err)
	}
}

// post sends a body and returns the status and the response.
func post(t *testing.T, url, body string, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestBadInput_Is4xxInOpenAIsShape(t *testing.T) {
	_, s := start(t, Options{BodyBytes: 4096})
	const user = `"messages":[{"role":"user","content":"Who?"}]`
	for _, tt := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/v1/chat/completions", `{`, 400, "no JSON object"},
		{"/v1/chat/completions", `[]`, 400, "no JSON object"},
		{"/v1/chat/completions", `{} {}`, 400, "something follows"},
		{"/v1/chat/completions", `{"messages":[]}`, 400, "messages: there are none"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":" "}]}`, 400, "question is empty"},
		{"/v1/chat/completions", `{"messages":[{"role":"bird","content":"x"}]}`, 400, `message 1: has role \"bird\"`},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "this model reads text"},
		{"/v1/chat/completions", `{"n":0,` + user + `}`, 400, "n: found 0"},
		{"/v1/chat/completions", `{"temperature":-1,` + user + `}`, 400, "temperature"},
		{"/v1/chat/completions", `{"max_tokens":0,` + user + `}`, 400, "max_tokens"},
		{"/v1/chat/completions", `{"max_tokens":"x",` + user + `}`, 400, "max_tokens: found a string"},
		{"/v1/chat/completions", `{"tessera":{"attention":"none"},` + user + `}`, 400, "tessera.attention"},
		{"/v1/chat/completions", `{"tessera":{"attention":"block","parts":-9},` + user + `}`, 400, "tessera.parts"},
		{"/v1/chat/completions", `{"tessera":{"parts":2},` + user + `}`, 400, "tessera.parts"},
		{"/v1/chat/completions", `{"documents":[{"id":"x"}],` + user + `}`, 400, "takes its collection"},
		{"/v1/chat/completions", `{"response_format":{"type":"json_schema","json_schema":{"schema":{"pattern":"x"}}},` + user + `}`, 400, "pattern is not supported"},
		{"/v1/chat/completions", `{"tools":[{}],` + user + `}`, 400, "tools: number 1: expected a function"},
		{"/v1/chat/completions", `{"tools":[{"type":"function","function":{"name":"a"}}],` + user + `}`, 400, "the chat template of tiny-tied has no place for them"},
		{"/v1/chat/completions", `{"tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":"often",` + user + `}`, 400, "tool_choice: found"},
		{"/v1/chat/completions", `{"tools":[{"type":"function","function":{"name":"a"}}],"tool_choice":{},` + user + `}`, 400, "tool_choice: expected none"},
		{"/v1/chat/completions", `{"tools":[{"type":"function","function":{"name":"a","parameters":{"pattern":"x"}}}],"tool_choice":"required",` + user + `}`, 400, "pattern is not supported"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"` + strings.Repeat("x", 600) + `"}]}`, 400, "context_length_exceeded"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"` + strings.Repeat("x", 5000) + `"}]}`, 413, "larger than 4096 bytes"},
		{"/v1/completions", `{"prompt":""}`, 400, "prompt: is empty"},
		{"/v1/completions", `{"prompt":[]}`, 400, "found 0 of them"},
		{"/v1/responses", `{"input":"Who?","previous_response_id":"resp_1"}`, 400, "previous_response_id: nothing is kept"},
		{"/v1/responses", `{"input":"Who?","tools":[{}]}`, 400, "tools"},
		{"/v1/responses", `{"input":[{"type":"item_reference"}]}`, 400, "item 1 is of type"},
		{"/v1/responses", `{"input":7}`, 400, "input: expected a text"},
		{"/v1/responses", `{}`, 400, "input: is missing"},
		{"/v1/responses", `{"input":"Who?","max_output_tokens":0}`, 400, "max_output_tokens: found 0"},
		{"/v1/responses", `{"input":"Who?","text":{"format":{"type":"json_schema"}}}`, 400, "text.format.schema: is missing"},
		{"/v1/completions", `{"prompt":[70000]}`, 400, "the vocabulary has"},
		{"/v1/completions", `{"prompt":{}}`, 400, "expected a text"},
		{"/tokenize", `{}`, 400, "content: is missing"},
		{"/detokenize", `{"tokens":[-1]}`, 400, "token 1 is -1"},
		{"/api/store/drop", `{"ids":["x"]}`, 400, "is no id of a block"},
	} {
		status, text := post(t, s.URL+tt.path, tt.body)
		var e struct {
			Error struct{ Message, Type, Param, Code string }
		}
		if err := json.Unmarshal([]byte(text), &e); err != nil || status != tt.status || !strings.Contains(text, tt.want) || e.Error.Type == "" || e.Error.Message == "" {
			t.Errorf("%s %.80s: %d %s; want %d with %q", tt.path, tt.body, status, text, tt.status, tt.want)
		}
	}
}

func TestTokenize_ThereAndBack(t *testing.T) {
	_, s := start(t, Options{})
	if status, text := post(t, s.URL+"/tokenize", `{"content":"Owl"}`); status != 200 || text != `{"count":3,"tokens":[79,119,108]}`+"\n" {
		t.Errorf("%d %s", status, text)
	}
	if status, text := post(t, s.URL+"/detokenize", `{"tokens":[79,119,108]}`); status != 200 || text != `{"content":"Owl"}`+"\n" {
		t.Errorf("%d %s", status, text)
	}
}

func TestCrossSiteRequests_AreRefused(t *testing.T) {
	_, s := start(t, Options{Loopback: true})
	get := func(host, origin string) int {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v1/models", nil)
		r.Host = host
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}
	for _, tt := range []struct {
		host, origin string
		want         int
	}{{"127.0.0.1:80", "", 200}, {"localhost:8080", "http://localhost:8080", 200}, {"[::1]:1", "", 200}, {"evil.example", "", 403}, {"127.0.0.1.evil.example", "", 403}, {"localhost:8080", "http://evil.example", 403}, {"localhost:8080", "null", 403}} {
		if got := get(tt.host, tt.origin); got != tt.want {
			t.Errorf("host %q, origin %q: %d, want %d", tt.host, tt.origin, got, tt.want)
		}
	}
}

func TestKeys_TenantsDoNotShareBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# tenants\nann 0123456789abcdef-ann admin\nbob 0123456789abcdef-bob\n")
	keys, err := ReadKeys(path, "eve 0123456789abcdef-eve")
	if err != nil {
		t.Fatal(err)
	}
	_, s := start(t, Options{Keys: keys})
	body := `{"messages":[{"role":"user","content":"Who?"}],"documents":["Ravens hide food."],"max_tokens":2,"tessera":{"attention":"block"}}`
	ask := func(secret string) (int, int) {
		status, text := post(t, s.URL+"/v1/chat/completions", body, "Authorization", "Bearer "+secret)
		var v struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		_ = json.Unmarshal([]byte(text), &v)
		return status, v.Usage.Details.Cached
	}
	for _, tt := range []struct {
		secret string
		status int
		cached bool
	}{{"0123456789abcdef-ann", 200, false}, {"0123456789abcdef-ann", 200, true}, {"0123456789abcdef-bob", 200, false}, {"0123456789abcdef-bob", 200, true}, {"0123456789abcdef-eve", 200, false}, {"wrong", 401, false}, {"", 401, false}} {
		if status, cached := ask(tt.secret); status != tt.status || (cached > 0) != tt.cached {
			t.Errorf("%s: status %d, %d tokens cached; want %d, cached %v", tt.secret, status, cached, tt.status, tt.cached)
		}
	}
	for secret, want := range map[string]int{"0123456789abcdef-ann": 200, "0123456789abcdef-bob": 403} {
		if status, text := post(t, s.URL+"/api/store/drop", `{}`, "Authorization", "Bearer "+secret); status != want {
			t.Errorf("dropping blocks with %s: %d %s, want %d", secret, status, text, want)
		}
	}
	write("carl 0123456789abcdef-carl\n")
	if err := keys.Reload(); err != nil {
		t.Fatal(err)
	}
	write("carl short\n")
	if err := keys.Reload(); err == nil || !strings.Contains(err.Error(), "keys:1: the secret of carl has 5 characters") {
		t.Errorf("a secret that is too short: %v", err)
	}
	if was, _ := ask("0123456789abcdef-ann"); was != 401 {
		t.Errorf("a key that was taken away: %d", was)
	}
	if is, _ := ask("0123456789abcdef-carl"); is != 200 {
		t.Errorf("a key that came: %d", is)
	}
}

func TestQueue_Full_IsTold(t *testing.T) {
	_, s := start(t, Options{Active: 1, Waiting: 1})
	body := `{"messages":[{"role":"user","content":"Who?"}],"max_tokens":300}`
	var mu sync.Mutex
	seen := map[int]int{}
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			status, text := post(t, s.URL+"/v1/chat/completions", body)
			mu.Lock()
			defer mu.Unlock()
			seen[status]++
			if status == 429 && !strings.Contains(text, "try again") {
				t.Errorf("429 says %s", text)
			}
		})
	}
	all.Wait()
	if seen[200] < 2 || seen[429] < 1 || seen[200]+seen[429] != 12 {
		t.Errorf("statuses %v of 12 requests at once, one computed and one waiting", seen)
	}
}

// A client that goes away frees its place within a step, whether it is told of steps or of the end; others go on.
func TestClientGone_EndsItsAnswer(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := httptest.NewServer(New(x, Options{Active: 1}))
	defer s.Close()
	ended := func() (answers int) {
		response, err := http.Get(s.URL + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		for _, m := range regexp.MustCompile(`(?m)^tessera_answers_total\{.*\} ([0-9]+)$`).FindAllSubmatch(text, -1) {
			n, _ := strconv.Atoi(string(m[1]))
			answers += n
		}
		return answers
	}
	const choices = 16 // one after the other, each as long as the context
	for _, stream := range []string{"false", "true"} {
		before := ended()
		ctx, cancel := context.WithCancel(t.Context())
		body := fmt.Sprintf(`{"messages":[{"role":"user","content":"Who?"}],"n":%d,"stream":%s}`, choices, stream)
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chat/completions", strings.NewReader(body))
		gone := make(chan error)
		go func() {
			response, err := http.DefaultClient.Do(r)
			if err == nil {
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			gone <- err
		}()
		for n := 0; n == 0; n, _ = x.Load() {
			select {
			case err := <-gone:
				t.Fatalf("streamed %s: ended before it was left: %v", stream, err)
			case <-time.After(time.Millisecond):
			}
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("streamed %s: %v, want that the client has gone", stream, err)
		}
		if status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"max_tokens":1}`); status != 200 {
			t.Errorf("streamed %s: the next request: %d %s", stream, status, text)
		}
		if n := ended() - before - 1; n < 0 || n >= choices {
			t.Errorf("streamed %s: %d of %d answers came to their end before the next request was answered", stream, n, choices)
		}
	}
}

// A server that is told to end answers what is under way, and nothing new.
func TestServe_Drains(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	ctx, end := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- New(x, Options{}).Serve(ctx, l, 10*time.Second) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(`{"messages":[{"role":"user","content":"Who?"}],"stream":true,"max_tokens":200}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	end()
	rest, err := io.ReadAll(lines)
	if err != nil || !bytes.HasSuffix(rest, []byte("data: [DONE]\n\n")) {
		t.Errorf("the answer under way: %v, ends with %q", err, rest[max(0, len(rest)-100):])
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if response, err := client.Get(url + "/health"); err == nil {
		response.Body.Close()
		t.Error("a server that has ended answers")
	}
}

func TestPage_IsServedWithItsPolicy(t *testing.T) {
	_, s := start(t, Options{})
	for path, want := range map[string]string{"/": "<title>Tessera</title>", "/app.js": "/v1/chat/completions", "/style.css": "--ground", "/icon.svg": "<svg", "/health": "ok", "/metrics": "tessera_prompts_waiting", "/api/store": `"tiers"`} {
		response, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != 200 || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d, without %q", path, response.StatusCode, want)
		}
		if path == "/" && !strings.Contains(response.Header.Get("Content-Security-Policy"), "default-src 'self'") {
			t.Error("the page has no policy")
		}
	}
	for _, path := range []string{"/../server.go", "/web/index.html", "/none", "/..%2fserver.go"} {
		if response, err := http.Get(s.URL + path); err != nil || response.StatusCode != 404 {
			t.Errorf("%s: %v, %v; want 404", path, response.StatusCode, err)
		} else {
			response.Body.Close()
		}
	}
}

func TestReadKeys_WhatIsWrong_IsNamed(t *testing.T) {
	if k, err := ReadKeys("", ""); k != nil || err != nil {
		t.Errorf("no keys: %v, %v", k, err)
	}
	for env, want := range map[string]string{"ann": "key 1: found 1 fields", "ann 0123456789abcdef x": "found 3 fields", "ann 0123456789abcdef,bob": "key 2", "#": "no keys"} {
		if _, err := ReadKeys("", env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", env, err, want)
		}
	}
	if _, err := ReadKeys(filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// upload sends files to a collection as a browser does, and returns the status and the response.
func upload(t *testing.T, url string, files map[string]string) (int, string) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for name, text := range files {
		part, err := form.CreateFormFile("files", name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	form.Close()
	return post(t, url, body.String(), "Content-Type", form.FormDataContentType())
}

func TestCollections_FromFilesToAnAnswer(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	root := t.TempDir()
	server := New(x, Options{Library: root})
	s := httptest.NewServer(server)
	defer func() {
		s.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	status, text := upload(t, s.URL+"/api/collections/birds/files", map[string]string{"ravens.txt": "Ravens hide food in autumn.", "owls.md": "# Owls\n\nOwls hear mice under snow.", "x.bin": "x"})
	if status != 200 || !strings.Contains(text, `"added":2`) || !strings.Contains(text, `"skipped":[{"path":"x.bin"`) || !strings.HasSuffix(text, "data: [DONE]\n\n") {
		t.Fatalf("%d %s", status, text)
	}
	get := func(path string) string {
		response, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return string(text)
	}
	if text := get("/api/collections"); !strings.Contains(text, `"name":"birds","documents":2,"passages":2`) {
		t.Errorf("collections: %s", text)
	}
	if text := get("/api/collections/birds/search?q=mice&k=1"); !strings.Contains(text, `"place":"owls.md"`) {
		t.Errorf("search: %s", text)
	}
	status, text = post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Which ravens hide food?"}],"max_tokens":2,"tessera":{"attention":"block","collection":"birds","passages":1}}`)
	if status != 200 || !strings.Contains(text, `"text":"Ravens hide food in autumn.","place":"ravens.txt"`) || strings.Contains(text, "mice") {
		t.Errorf("an answer from a collection: %d %s", status, text)
	}
	for id, want := range map[string]string{"owls.md": "Owls hear mice under snow.", "1": ""} { // which of the files is read first is open
		status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"documents":[{"id":"`+id+`"}],"max_tokens":2,"tessera":{"collection":"birds"}}`)
		if status != 200 || strings.Count(text, `"place":`) != 1 || !strings.Contains(text, want) {
			t.Errorf("the document %s of a collection: %d %s", id, status, text)
		}
	}
	if status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"documents":[{"id":"fish.md"}],"tessera":{"collection":"birds"}}`); status != 400 || !strings.Contains(text, "no passage of the collection birds") {
		t.Errorf("a document that is not there: %d %s", status, text)
	}
	for _, tt := range []struct {
		name   string
		files  map[string]string
		status int
		want   string
	}{
		{"birds", map[string]string{}, 400, "no files"},
		{"birds", map[string]string{".hidden": "x"}, 400, "cannot be a file's name"},
		{"birds", map[string]string{strings.Repeat("x", 300): "x"}, 400, "cannot be a file's name"},
		{"..%2fup", map[string]string{"a.txt": "x"}, 400, "cannot be a collection's name"},
	} {
		if status, text := upload(t, s.URL+"/api/collections/"+tt.name+"/files", tt.files); status != tt.status || !strings.Contains(text, tt.want) {
			t.Errorf("%s, %v: %d %s; want %d with %q", tt.name, tt.files, status, text, tt.status, tt.want)
		}
	}
	for _, body := range []string{"--b\r\n[]--b--\r\n", "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\r\nx", ""} {
		if status, text := post(t, s.URL+"/api/collections/birds/files", body, "Content-Type", "multipart/form-data; boundary=b"); status != 400 {
			t.Errorf("the form %q: %d %s", body, status, text)
		}
	}
	if status, text := upload(t, s.URL+"/api/collections/birds/files", map[string]string{`..\..\evil.txt`: "Swifts sleep in flight.", "../../evil2.txt": "Gulls."}); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	if files, _ := filepath.Glob(filepath.Join(root, "..", "evil*")); len(files) > 0 {
		t.Errorf("a name led out of the folder: %q", files)
	}
	if status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"tessera":{"collection":"fish"}}`); status != 404 || !strings.Contains(text, "there are birds") {
		t.Errorf("a collection that is not there: %d %s", status, text)
	}
	if err := os.Mkdir(filepath.Join(root, "alps"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "alps", "passages.db"), []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := get("/api/collections"); !regexp.MustCompile(`\[\{"name":"alps","error":"[^"]*passages.db: [^"]+"\},\{"name":"birds","documents":4,`).MatchString(text) {
		t.Errorf("collections, one of them damaged: %s", text)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.URL+"/api/collections/birds", nil)
	if response, err := http.DefaultClient.Do(r); err != nil || response.StatusCode != 200 {
		t.Errorf("removing it: %v, %v", response, err)
	} else {
		response.Body.Close()
	}
	if text := get("/api/collections"); strings.Contains(text, "birds") {
		t.Errorf("collections after removing: %s", text)
	}
}

// The document tells of every route and of no other, and of what `tessera` may have; its references lead somewhere.
func TestOpenAPI_TellsOfTheRoutes(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]any
		Components map[string]map[string]struct{ Properties map[string]any }
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	var told []string
	for path, methods := range doc.Paths {
		for method := range methods {
			told = append(told, strings.ToUpper(method)+" "+path)
		}
	}
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	routes := New(x, Options{}).routes
	for i := range routes {
		routes[i] = strings.Replace(routes[i], "{id...}", "{id}", 1)
	}
	slices.Sort(told)
	slices.Sort(routes)
	if !slices.Equal(told, routes) {
		t.Errorf("told of %q\nroutes  %q", told, routes)
	}
	var fields []string
	for f := range reflect.TypeFor[extension]().Fields() {
		fields = append(fields, f.Tag.Get("json"))
	}
	slices.Sort(fields)
	if properties := slices.Sorted(maps.Keys(doc.Components["schemas"]["Extension"].Properties)); !slices.Equal(properties, fields) {
		t.Errorf("told of %q in tessera\nfields  %q", properties, fields)
	}
	for _, ref := range regexp.MustCompile(`"#/components/([A-Za-z]+)/([A-Za-z]+)"`).FindAllStringSubmatch(string(openAPI), -1) {
		if _, there := doc.Components[ref[1]][ref[2]]; !there {
			t.Errorf("%s leads nowhere", ref[0])
		}
	}
}
