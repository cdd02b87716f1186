package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

func TestRate_OfEachTenant_FurtherOnesAreToldWhenToComeBack(t *testing.T) {
	keys, err := ReadKeys("", "owls aaaaaaaaaaaaaaaa,ravens bbbbbbbbbbbbbbbb")
	if err != nil {
		t.Fatal(err)
	}
	_, s := start(t, Options{Keys: keys, PerMinute: 3})
	ask := func(secret string) *http.Response {
		t.Helper()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/completions", strings.NewReader(`{"prompt":"a","max_tokens":1}`))
		r.Header.Set("Authorization", "Bearer "+secret)
		response, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response
	}
	for i := range 3 {
		if r := ask("aaaaaaaaaaaaaaaa"); r.StatusCode != 200 {
			t.Errorf("request %d: %d", i, r.StatusCode)
		}
	}
	if r := ask("aaaaaaaaaaaaaaaa"); r.StatusCode != 429 || r.Header.Get("Retry-After") != "20" {
		t.Errorf("the fourth: %d, to come back after %q s", r.StatusCode, r.Header.Get("Retry-After"))
	}
	if r := ask("bbbbbbbbbbbbbbbb"); r.StatusCode != 200 {
		t.Errorf("another tenant's: %d", r.StatusCode)
	}
}

func TestMemory_AnswersThatDoNotFitTogether_Wait(t *testing.T) {
	const context = 512
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	one := x.KVBytes(context)
	x.Close()
	if x, err = tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2, Memory: one / 2}); err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := httptest.NewServer(New(x, Options{}))
	defer s.Close()
	if status, text := post(t, s.URL+"/v1/completions", `{"prompt":"a","max_tokens":500}`); status != 400 || !strings.Contains(text, `"too_large"`) {
		t.Errorf("an answer larger than there is memory: %d %s", status, text)
	}
	done := make(chan int)
	for range 4 { // each takes more than half of it
		go func() {
			status, _ := post(t, s.URL+"/v1/completions", `{"prompt":"a","max_tokens":200}`)
			done <- status
		}()
	}
	most := 0 // of them under way
	for left := 4; left > 0; {
		select {
		case status := <-done:
			if left--; status != 200 {
				t.Errorf("one of four that do not fit together: %d", status)
			}
		case <-time.After(100 * time.Microsecond):
			answers, prompts := x.Load()
			most = max(most, answers+prompts)
		}
	}
	if most != 1 {
		t.Errorf("%d of four that do not fit together were computed at once", most)
	}
}

// The dashboard asks for nothing that the metrics do not have.
func TestDashboard_AsksForWhatIsThere(t *testing.T) {
	_, s := start(t, Options{})
	for range 2 {
		if status, text := post(t, s.URL+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Who?"}],"max_tokens":3}`); status != 200 {
			t.Fatal(status, text)
		}
	}
	response, err := http.Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	metrics, _ := io.ReadAll(response.Body)
	dashboard, err := os.ReadFile(filepath.Join("..", "deploy", "grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	var panels struct{ Panels []struct{ Title string } }
	if err := json.Unmarshal(dashboard, &panels); err != nil || len(panels.Panels) < 5 {
		t.Fatalf("%d panels, %v", len(panels.Panels), err)
	}
	for _, name := range regexp.MustCompile(`\b(?:tessera|process|go)_[a-z_]+`).FindAllString(string(dashboard), -1) {
		if !regexp.MustCompile(`(?m)^` + name + `[{ ]`).Match(metrics) {
			t.Errorf("there is no metric %s", name)
		}
	}
}

func TestTraces_SpansOfARequest(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	defer provider.Shutdown(context.WithoutCancel(t.Context()))
	_, s := start(t, Options{Tracer: provider})
	const parent = "0af7651916cd43dd8448eb211c80319c"
	body := `{"messages":[{"role":"user","content":"Who hides secretword?"}],"documents":["Ravens hide food."],"max_tokens":3,"tessera":{"attention":"block"}}`
	if status, text := post(t, s.URL+"/v1/chat/completions", body, "traceparent", "00-"+parent+"-b7ad6b7169203331-01"); status != 200 {
		t.Fatal(status, text)
	}
	if status, _ := post(t, s.URL+"/v1/chat/completions", `{}`); status != 400 {
		t.Fatal(status)
	}
	var list tracetest.SpanStubs
	for deadline := time.Now().Add(5 * time.Second); len(list) < 4 && time.Now().Before(deadline); time.Sleep(time.Millisecond) { // the last ends behind the answer
		list = spans.GetSpans()
	}
	names := map[string]tracetest.SpanStub{}
	for _, span := range list {
		if span.SpanContext.TraceID().String() == parent {
			names[span.Name] = span
		}
		for _, a := range span.Attributes {
			if strings.Contains(a.Value.String(), "secretword") {
				t.Errorf("%s tells of the prompt: %s", span.Name, a.Value.String())
			}
		}
	}
	root, answer := names["POST /v1/chat/completions"], names["answer"]
	if root.Parent.SpanID().String() != "b7ad6b7169203331" || answer.Parent.SpanID() != root.SpanContext.SpanID() || names["queue"].Name == "" {
		t.Errorf("spans %+v", list)
	}
	if len(answer.Events) != 1 || answer.Events[0].Name != "first token" {
		t.Errorf("events of the answer: %+v", answer.Events)
	}
	attributes := map[string]string{}
	for _, a := range append(root.Attributes, answer.Attributes...) {
		attributes[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{"http.response.status_code": "200", "tessera.attention": "block", "tessera.blocks.computed": "3", "gen_ai.usage.output_tokens": "3"} {
		if attributes[key] != want {
			t.Errorf("%s is %q, want %q", key, attributes[key], want)
		}
	}
}

// Clients that begin a request and never end it keep nobody else waiting, and are told to go.
func TestSlowBodies_KeepNobodyWaiting(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	server := New(x, Options{Active: 2, Waiting: 2})
	server.bodyTime = 3 * time.Second
	s := httptest.NewServer(server)
	defer s.Close()
	var slow []net.Conn
	for range 3 * (2 + 2) {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"prompt\":"); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	if status, text := post(t, s.URL+"/v1/completions", `{"prompt":"a","max_tokens":1}`); status != 200 {
		t.Errorf("beside slow clients: %d %s", status, text)
	}
	for _, c := range slow {
		answer, err := io.ReadAll(c) // to the end: the server closes
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") {
			t.Errorf("a slow client: %v, %.200q", err, answer)
		}
	}
	// Slow to send, but in time.
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, part := range []string{"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 29\r\n\r\n{\"prompt\":", "\"a\",\"max_tokens\":1}"} {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Errorf("a body in two parts: %v, %.200q", err, answer)
	}
}

// Files may take longer than a request otherwise may, as long as they come; who stops sending is told to go.
func TestUpload_MayTakeLong_NotStandStill(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	server := New(x, Options{Library: t.TempDir()})
	defer server.Close()
	server.bodyTime = 3 * time.Second
	s := httptest.NewUnstartedServer(server)
	s.Config.ReadHeaderTimeout, s.Config.ReadTimeout = 10*time.Second, 200*time.Millisecond
	s.Start()
	defer s.Close()
	form := "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\r\nRavens hide food.\r\n--b--\r\n"
	send := func(parts ...string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		head := fmt.Sprintf("POST /api/collections/birds/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n", len(form))
		for _, part := range append([]string{head}, parts...) {
			if _, err := io.WriteString(c, part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(150 * time.Millisecond)
		}
		return c
	}
	whole, cutInHead, cutInText := send(form[:20], form[20:70], form[70:]), send(form[:20]), send(form[:80])
	for _, tt := range []struct {
		name         string
		c            net.Conn
		status, text string
	}{
		{"in three parts", whole, "200", `"added":1`},
		{"that ends in the head of a file", cutInHead, "408", "nothing came of the files for 3s"},
		{"that ends in the text of a file", cutInText, "408", "nothing came of the files for 3s"},
	} {
		answer, err := io.ReadAll(tt.c) // to the end: the server closes
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+tt.status+" ") || !strings.Contains(string(answer), tt.text) {
			t.Errorf("a form %s: %v, %q; want %s with %q", tt.name, err, answer, tt.status, tt.text)
		}
	}
}
