package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

// loadStreams are how many clients ask at a time, of loadPassages passages; a client in loadHangUps hangs up in the middle of an answer.
const (
	loadStreams  = 200
	loadPassages = 1000
	loadHangUps  = 8
)

// A server under more clients than it lets in answers, or says honestly that it cannot now; the same question has the same answer whoever
// asks beside it; and what it held when nobody asked it holds again afterwards. TESSERA_LOAD is how long; with
// TESSERA_LOAD_MODEL=default it is the default model, else the tiny one. The store is small, so that blocks go to the disk and out of it all the while.
func TestLoad(t *testing.T) {
	period := 2 * time.Second
	if text := os.Getenv("TESSERA_LOAD"); text != "" {
		var err error
		if period, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	o, used := tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Store: t.TempDir(), RAMBytes: 1 << 20, DiskBytes: 4 << 20, Threads: 2}, 4
	if os.Getenv("TESSERA_LOAD_MODEL") == "default" {
		o.Model, o.RAMBytes, o.DiskBytes, used = testenv.Model(t), 64<<20, 256<<20, 10
	}
	x, err := tessera.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := httptest.NewServer(New(x, Options{Waiting: 100})) // beside 64 that are computed: some clients are told to come back
	defer s.Close()
	l := &load{url: s.URL + "/v1/chat/completions", used: used, answers: map[int]string{}, statuses: map[int]int{}}

	l.run(t, loadStreams, time.Now().Add(max(period/20, 300*time.Millisecond))) // what is made once is made
	before := l.level(t, x)
	l.tokens, l.between, l.first = 0, durations{}, durations{}
	began := time.Now()
	l.run(t, loadStreams, began.Add(period))
	took := time.Since(began)
	s.CloseClientConnections()
	var after level
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if after = l.level(t, x); after.within(before) || time.Now().After(deadline) {
			break
		}
	}
	if !after.within(before) {
		t.Errorf("held before %+v, afterwards %+v", before, after)
	}
	for status, n := range l.statuses {
		if status != http.StatusOK && status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
			t.Errorf("%d answers have status %d", n, status)
		}
	}
	if l.statuses[http.StatusOK] == 0 || l.tokens == 0 {
		t.Fatalf("nothing was answered: %v", l.statuses)
	}
	t.Logf("%d clients, %v: answers by status %v, %.0f tokens/s; to the first piece p50 %v, p99 %v; between pieces p50 %v, p99 %v, %.1f times; held before %+v, afterwards %+v",
		loadStreams, took.Round(time.Second), l.statuses, float64(l.tokens)/took.Seconds(), l.first.at(.5), l.first.at(.99), l.between.at(.5), l.between.at(.99),
		float64(l.between.at(.99))/float64(l.between.at(.5)), before, after)
}

// A load is clients that ask, and what they got.
type load struct {
	url  string
	used int // passages of a question

	mu             sync.Mutex
	answers        map[int]string // by question
	statuses       map[int]int
	tokens         int
	first, between durations
}

// durations counts them by tenths of a millisecond, so that it takes the same memory for any number.
type durations [1 << 16]int

const durationStep = 100 * time.Microsecond

func (d *durations) add(t time.Duration) { d[min(int(t/durationStep), len(d)-1)]++ }

// at is what a share of them does not exceed.
func (d *durations) at(share float64) time.Duration {
	all := 0
	for _, n := range d {
		all += n
	}
	for i, n := range d {
		if share -= float64(n) / float64(max(all, 1)); share <= 0 {
			return time.Duration(i+1) * durationStep
		}
	}
	return time.Duration(len(d)) * durationStep
}

func (l *load) run(t *testing.T, clients int, until time.Time) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(clients)))
			for time.Now().Before(until) {
				if err := l.ask(client, rng.IntN(500), i%loadHangUps == 0); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// ask asks one of the questions and reads the answer as it comes, or two pieces of it.
func (l *load) ask(client *http.Client, question int, hangUp bool) error {
	rng := rand.New(rand.NewPCG(1, uint64(question)))
	documents := make([]string, l.used)
	for i := range documents {
		documents[i] = fmt.Sprintf("Raven number %d hides food.", rng.IntN(loadPassages))
	}
	body, _ := json.Marshal(map[string]any{
		"messages": []any{map[string]string{"role": "user", "content": fmt.Sprintf("Who hides %d?", question)}}, "documents": documents,
		"max_tokens": 48, "stream": true, "tessera": map[string]string{"attention": "block"},
	})
	began := time.Now()
	response, err := client.Post(l.url, "application/json", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	l.mu.Lock()
	l.statuses[response.StatusCode]++
	l.mu.Unlock()
	if response.StatusCode != http.StatusOK {
		if response.StatusCode == http.StatusTooManyRequests && response.Header.Get("Retry-After") == "" {
			return fmt.Errorf("a 429 that does not say when to come back")
		}
		_, err := io.Copy(io.Discard, response.Body)
		time.Sleep(100 * time.Millisecond) // a second would be right, were there one
		return err
	}
	lines, text, whole, pieces := bufio.NewScanner(response.Body), "", false, 0
	for last := began; lines.Scan(); {
		data, is := strings.CutPrefix(lines.Text(), "data: ")
		if !is {
			continue
		}
		if data == "[DONE]" {
			whole = true
			break
		}
		var chunk struct {
			Error   any
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
			return fmt.Errorf("%s: %v", data, err)
		}
		if len(chunk.Choices) == 0 || chunk.Choices[0].Delta.Content == "" {
			continue
		}
		text += chunk.Choices[0].Delta.Content
		now := time.Now()
		l.mu.Lock()
		if l.tokens++; pieces == 0 {
			l.first.add(now.Sub(began))
		} else {
			l.between.add(now.Sub(last))
		}
		l.mu.Unlock()
		last = now
		if pieces++; hangUp && pieces == 2 {
			return nil
		}
	}
	if !whole {
		return fmt.Errorf("a stream that ends without [DONE]: %w", lines.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, asked := l.answers[question]; asked && was != text {
		return fmt.Errorf("question %d: answered %q, before %q", question, text, was)
	}
	l.answers[question] = text
	return nil
}

// A level is what a process holds beside the store's blocks.
type level struct {
	goroutines, files int
	heap              uint64
}

// within says whether it is what it was, but for what comes and goes.
func (l level) within(before level) bool {
	return l.goroutines <= before.goroutines+2 && l.files <= before.files+2 && l.heap <= before.heap+16<<20
}

func (l *load) level(t *testing.T, x *tessera.Tessera) level {
	if _, _, err := x.Drop(); err != nil { // where blocks are, in files or in the heap, changes all the while
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC() // what lies in a sync.Pool lasts for one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd") // none elsewhere than on Linux
	return level{runtime.NumGoroutine(), len(files), m.HeapAlloc}
}
