package pull

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// server serves one file, with the faults that its fields name. Set them before the first request.
type server struct {
	*httptest.Server
	content []byte
	etag    string
	status  int           // answers this and nothing else
	html    bool          // answers a web page
	silent  bool          // accepts and never answers
	noRange bool          // knows no ranges
	noCheck bool          // serves a range whatever If-Range says
	cutAt   map[int]int   // request number, from 0 → bytes after which the connection is cut
	stallAt map[int]int   // the same, but the connection stays open
	pause   time.Duration // after each piece of the body

	mu       sync.Mutex
	requests []*http.Request
	quit     chan struct{}
}

func newServer(t *testing.T, content []byte) *server {
	t.Helper()
	s := &server{content: content, etag: `"v1"`, quit: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		close(s.quit)
		s.Server.Close()
	})
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	number := len(s.requests)
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	switch {
	case s.silent:
		s.wait(r)
		return
	case s.status != 0:
		w.WriteHeader(s.status)
		return
	case s.html:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<html>please log in</html>")
		return
	}
	if s.noRange {
		r.Header.Del("Range")
	}
	if s.noCheck {
		r.Header.Del("If-Range")
	}
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&faulty{ResponseWriter: w, s: s, r: r, number: number}, r, "", time.Time{}, bytes.NewReader(s.content))
}

func (s *server) wait(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.quit:
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// ranges is what each request asked for.
func (s *server) ranges() (ranges []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		ranges = append(ranges, r.Header.Get("Range"))
	}
	return ranges
}

// faulty is a response whose body ends as the server's fields say.
type faulty struct {
	http.ResponseWriter
	s      *server
	r      *http.Request
	number int
	sent   int
}

func (f *faulty) Write(b []byte) (int, error) {
	cut, isCut := f.s.cutAt[f.number]
	stall, isStall := f.s.stallAt[f.number]
	limit := len(b)
	if isCut {
		limit = min(limit, cut-f.sent)
	}
	if isStall {
		limit = min(limit, stall-f.sent)
	}
	n, err := f.ResponseWriter.Write(b[:limit])
	f.sent += n
	if f.s.pause > 0 || isCut || isStall {
		f.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(f.s.pause)
	}
	if err == nil && isCut && f.sent == cut {
		panic(http.ErrAbortHandler)
	}
	if err == nil && isStall && f.sent == stall {
		f.s.wait(f.r)
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// leavePart puts bytes where an earlier pull of tgt would have left them.
func leavePart(t *testing.T, tgt target, content []byte, meta string) {
	t.Helper()
	path := tgt.path() + partSuffix
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".json", []byte(meta), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDownload_ConnectionCut_GoesOnFromTheCut(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(500_000, 1)
	s := newServer(t, content)
	s.cutAt = map[int]int{0: 200_000, 1: 100_000, 2: 1, 3: 50_000, 4: 100}
	r, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
	mustHold(t, r, err, content)
	want := "[ bytes=200000- bytes=300000- bytes=300001- bytes=350001- bytes=350101-]"
	if got := fmt.Sprint(s.ranges()); got != want {
		t.Errorf("ranges %s, want %s", got, want)
	}
	mustBeClean(t, p.Dir)
}

func TestDownload_CutForEver_GivesUp(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(500_000, 1)
	s := newServer(t, content)
	s.noRange = true // so each attempt starts over and is cut at the same place
	s.cutAt = map[int]int{}
	for i := range 20 {
		s.cutAt[i] = 100_000
	}
	_, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
	mustFail(t, err, "given up after 3 attempts", "unexpected EOF")
	if n := s.count(); n > 4 {
		t.Errorf("%d requests that bring nothing new", n)
	}
}

func TestDownload_StallsInTheMiddle_IsCutAndGoesOn(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(500_000, 1)
	s := newServer(t, content)
	s.stallAt = map[int]int{0: 100_000}
	p.stall = 500 * time.Millisecond
	r, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
	mustHold(t, r, err, content)
	if got := fmt.Sprint(s.ranges()); got != "[ bytes=100000-]" {
		t.Errorf("ranges %s, want the second from the stall", got)
	}
}

func TestDownload_StallsForEver_SaysSo(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(500_000, 1)
	s := newServer(t, content)
	s.stallAt = map[int]int{0: 100_000, 1: 0, 2: 0, 3: 0}
	p.stall = 100 * time.Millisecond
	_, err := p.obtain(context.Background(), aliasOf(p, content, web(s.URL+"/tiny.gguf")))
	mustFail(t, err, "with 100000 bytes", "sent nothing for 100ms")
}

func TestDownload_LeftPart_ResumesOnlyTheSameFile(t *testing.T) {
	content, other := modelBytes(300_000, 1), modelBytes(300_000, 2)
	const half = 150_000
	for _, test := range []struct {
		name   string
		part   []byte
		meta   string // URL stands for the server's
		set    func(s *server)
		ranges string
	}{
		{"same", content[:half], `{"url":"URL","etag":"\"v1\"","size":300000}`, nil, "[bytes=150000-]"},
		{"no ETag, hash known", content[:half], `{"url":"URL","etag":"","size":300000}`, func(s *server) { s.etag = "" }, "[bytes=150000-]"},
		{"ETag changed", other[:half], `{"url":"URL","etag":"\"v0\"","size":300000}`, nil, "[bytes=150000-]"},
		{"ETag changed, If-Range ignored", other[:half], `{"url":"URL","etag":"\"v0\"","size":300000}`, func(s *server) { s.noCheck = true }, "[bytes=150000- ]"},
		{"size changed, nothing else to tell", other[:half], `{"url":"URL","etag":"","size":299999}`, func(s *server) { s.etag = "" }, "[bytes=150000- ]"},
		{"front of another file, nothing to tell but the hash", other[:half], `{"url":"URL","etag":"","size":300000}`, func(s *server) { s.etag = "" }, "[bytes=150000- ]"},
		{"another URL's", content[:half], `{"url":"http://elsewhere/","etag":"\"v1\"","size":300000}`, nil, "[]"},
		{"meta damaged", content[:half], `{"url`, nil, "[]"},
		{"longer than the file", append(bytes.Clone(content), 1), `{"url":"URL","etag":"\"v1\"","size":300000}`, nil, "[]"},
		{"whole", content, `{"url":"URL","etag":"\"v1\"","size":300000}`, nil, ""},
		{"whole but wrong", other, `{"url":"URL","etag":"\"v1\"","size":300000}`, nil, "[]"},
		{"server knows no ranges", other[:half], `{"url":"URL","etag":"\"v1\"","size":300000}`, func(s *server) { s.noRange = true }, "[]"},
		{"longer than the server's", content, `{"url":"URL","etag":"\"v1\"","size":-1}`, func(s *server) { s.noCheck = true }, "[bytes=300000- ]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			s := newServer(t, content)
			if test.set != nil {
				test.set(s)
			}
			url := s.URL + "/tiny.gguf"
			tiny := aliasOf(p, content, web(url))
			leavePart(t, tiny, test.part, strings.ReplaceAll(test.meta, "URL", url))
			r, err := p.obtain(context.Background(), tiny)
			mustHold(t, r, err, content)
			got := fmt.Sprint(s.ranges())
			if test.ranges == "" && s.count() != 0 || test.ranges != "" && got != test.ranges {
				t.Errorf("ranges %s, want %s", got, test.ranges)
			}
			mustBeClean(t, p.Dir)
		})
	}
}

func TestDownload_HashUnknownAndNoETag_StartsOver(t *testing.T) {
	p, _ := testPuller(t)
	content, other := modelBytes(300_000, 1), modelBytes(300_000, 2)
	s := newServer(t, content)
	s.etag = ""
	url := s.URL + "/tiny.gguf"
	tgt, err := locate(p.Dir, url)
	if err != nil {
		t.Fatal(err)
	}
	leavePart(t, tgt, other[:1000], fmt.Sprintf(`{"url":%q,"etag":"","size":300000}`, url))
	r, err := p.pull(context.Background(), url)
	mustHold(t, r, err, content)
	again, err := p.pull(context.Background(), url)
	mustHold(t, again, err, content)
	if !again.Cached || s.count() != 1 {
		t.Errorf("the second pull of %s asked again", url)
	}
	if path, err := resolve(p.Dir, url); err != nil || path != r.Path {
		t.Errorf("resolve(%s) = %s, %v; want %s", url, path, err, r.Path)
	}
}

func TestDownload_WrongHash_RemovesThePart(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(100_000, 1)
	s := newServer(t, modelBytes(100_000, 2))
	tiny := aliasOf(p, content, web(s.URL+"/tiny.gguf"))
	_, err := p.obtain(context.Background(), tiny)
	mustFail(t, err, "tiny: tiny.gguf: has SHA-256 "+sumHex(s.content), "expected "+sumHex(content), "the partial file is removed")
	if s.count() != 1 {
		t.Errorf("%d requests, want 1: the same server would send the same bytes", s.count())
	}
	if entries, _ := os.ReadDir(p.Dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestDownload_NoFileThere_SaysWhat(t *testing.T) {
	content := modelBytes(1000, 1)
	for _, test := range []struct {
		name string
		set  func(s *server)
		want []string
	}{
		{"401", func(s *server) { s.status = 401 }, []string{"401 Unauthorized", "set HF_TOKEN"}},
		{"403", func(s *server) { s.status = 403 }, []string{"403 Forbidden", "accept the model's terms"}},
		{"404", func(s *server) { s.status = 404 }, []string{"404 Not Found"}},
		{"410", func(s *server) { s.status = 410 }, []string{"410 Gone"}},
		{"204", func(s *server) { s.status = 204 }, []string{"204 No Content"}},
		{"503", func(s *server) { s.status = 503 }, []string{"given up after 3 attempts", "503 Service Unavailable"}},
		{"web page", func(s *server) { s.html = true }, []string{"sends a web page, expected a file"}},
		{"no GGUF", func(s *server) { s.content = []byte("version https://git-lfs") }, []string{`it begins with "vers", expected "GGUF"`}},
		{"empty", func(s *server) { s.content = nil }, []string{`it begins with "", expected "GGUF"`}},
		{"silent", func(s *server) { s.silent = true }, []string{"did not answer in 300ms"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			s := newServer(t, content)
			test.set(s)
			if s.silent {
				p.answer = 300 * time.Millisecond
			}
			t.Setenv("HF_ENDPOINT", s.URL)
			_, err := p.pull(context.Background(), "hf:owner/repo:tiny.gguf")
			mustFail(t, err, append(test.want, "hf:owner/repo:tiny.gguf: ")...)
			mustBeClean(t, p.Dir)
		})
	}
}

func TestDownload_WebPageInTheWay_KeepsThePart(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(100_000, 1)
	s := newServer(t, content)
	s.html = true
	url := s.URL + "/tiny.gguf"
	tiny := aliasOf(p, content, web(url))
	leavePart(t, tiny, content[:5000], fmt.Sprintf(`{"url":%q,"etag":"\"v1\"","size":100000}`, url))
	_, err := p.obtain(context.Background(), tiny)
	mustFail(t, err, "sends a web page")
	s.html = false
	r, err := p.obtain(context.Background(), tiny)
	mustHold(t, r, err, content)
	if got := fmt.Sprint(s.ranges()); got != "[bytes=5000- bytes=5000-]" {
		t.Errorf("ranges %s, want both from byte 5000", got)
	}
}

func TestDownload_NobodyListens_IsGivenUpAtOnce(t *testing.T) {
	p, _ := testPuller(t)
	p.backoff = []time.Duration{time.Minute}
	_, err := p.pull(context.Background(), "http://127.0.0.1:1/tiny.gguf")
	mustFail(t, err, "http://127.0.0.1:1/tiny.gguf: dial tcp", "refused")
}

func TestDownload_Redirected_TokenStaysHome(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(200_000, 1)
	cdn := newServer(t, content)
	cdn.cutAt = map[int]int{0: 50_000}
	var mu sync.Mutex
	var tokens []string
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		tokens = append(tokens, r.URL.Path+" "+r.Header.Get("Authorization"))
		mu.Unlock()
		if r.URL.Path == "/owner/repo/resolve/main/sub/tiny.gguf" {
			w.Header().Set("X-Linked-Etag", `"`+sumHex(content)+`"`)
			http.Redirect(w, r, "/moved", http.StatusFound) // still at home: the token may go there
			return
		}
		http.Redirect(w, r, cdn.URL+"/blob?secret=1", http.StatusFound)
	}))
	defer home.Close()
	t.Setenv("HF_ENDPOINT", home.URL+"/")
	t.Setenv("HF_TOKEN", "hf_secret")

	r, err := p.pull(context.Background(), "hf:owner/repo:sub/tiny.gguf")
	mustHold(t, r, err, content)
	if want := filepath.Join(p.Dir, "hf", "owner", "repo", "sub", "tiny.gguf"); r.Path != want || r.Source != "hf:owner/repo:sub/tiny.gguf" {
		t.Errorf("got %s from %s, want %s", r.Path, r.Source, want)
	}
	want := strings.Repeat("[/owner/repo/resolve/main/sub/tiny.gguf Bearer hf_secret][/moved Bearer hf_secret]", 2)
	if got := "[" + strings.Join(tokens, "][") + "]"; got != want {
		t.Errorf("home saw %s, want %s", got, want)
	}
	for _, req := range cdn.requests {
		if a := req.Header.Get("Authorization"); a != "" {
			t.Errorf("the other host was sent %q", a)
		}
	}
	if got := fmt.Sprint(cdn.ranges()); got != "[ bytes=50000-]" {
		t.Errorf("ranges behind the redirect: %s", got)
	}
}

func TestDownload_HubDataset_IsAskedForAsOne(t *testing.T) {
	p, _ := testPuller(t)
	s := newServer(t, []byte("{}\n"))
	t.Setenv("HF_ENDPOINT", s.URL)
	r, err := p.pull(context.Background(), "hf:datasets/owner/repo:sub/dev.jsonl")
	mustHold(t, r, err, s.content)
	if want := filepath.Join(p.Dir, "hf", "datasets", "owner", "repo", "sub", "dev.jsonl"); r.Path != want {
		t.Errorf("got %s, want %s", r.Path, want)
	}
	if got := s.requests[0].URL.Path; got != "/datasets/owner/repo/resolve/main/sub/dev.jsonl" {
		t.Errorf("asked for %s", got)
	}
}

func TestDownload_HubTellsAnotherHash_StopsBeforeTheBytes(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(1000, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Linked-Etag", `"`+sumHex([]byte("other"))+`"`)
		w.Write(content)
	}))
	defer s.Close()
	t.Setenv("HF_ENDPOINT", s.URL)
	_, err := p.obtain(context.Background(), aliasOf(p, content, hub{"owner/repo", "main", "tiny.gguf"}))
	mustFail(t, err, "offers a file of SHA-256 "+sumHex([]byte("other")), "expected "+sumHex(content))

	// Where nobody else knows the hash, the Hub's is the one to check against.
	_, err = p.pull(context.Background(), "hf:owner/repo:tiny.gguf")
	mustFail(t, err, "has SHA-256 "+sumHex(content), "expected "+sumHex([]byte("other")))
	mustBeClean(t, p.Dir)
}

func TestHub_NoFileNamed_TakesTheOnlyOneOrAsks(t *testing.T) {
	content := modelBytes(1000, 1)
	for _, test := range []struct{ name, list, want string }{
		{"one", `{"siblings":[{"rfilename":"README.md"},{"rfilename":"tiny.gguf"}]}`, ""},
		{"none", `{"siblings":[{"rfilename":"README.md"}]}`, "the repository has no .gguf file"},
		{"two", `{"siblings":[{"rfilename":"b.gguf"},{"rfilename":"a.gguf"}]}`, "the repository has 2 .gguf files: a.gguf, b.gguf\nhint: name one: 'tessera pull hf:owner/repo:a.gguf'"},
		{"hostile", `{"siblings":[{"rfilename":"../../../tiny.gguf"}]}`, "the repository has no .gguf file"},
		{"no JSON", `nothing`, "the Hub's list of files cannot be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/api/models/owner/repo":
					fmt.Fprint(w, test.list)
				case "/owner/repo/resolve/main/tiny.gguf":
					w.Write(content)
				default:
					t.Errorf("asked for %s", r.URL.Path)
				}
			}))
			defer s.Close()
			t.Setenv("HF_ENDPOINT", s.URL)
			r, err := p.pull(context.Background(), "hf:owner/repo")
			if test.want != "" {
				mustFail(t, err, "hf:owner/repo: ", test.want)
				return
			}
			mustHold(t, r, err, content)
			if again, err := p.pull(context.Background(), "hf:owner/repo"); err != nil || !again.Cached || again.Source != "hf:owner/repo:tiny.gguf" {
				t.Errorf("again: %+v, %v; want it cached", again, err)
			}
		})
	}
}
