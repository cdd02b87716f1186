package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/vfs"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		writeForEver(dir) // this is the other process of a test
	}
	goleak.VerifyTestMain(m)
}

// small is a shape whose K and V do not fill their 64 bytes.
var small = Shape{Type: F16, Layers: 3, Heads: 2, Dim: 4, Tokens: 5}

// smallFile is the size of its file: a header of 4,096 bytes and 3 layers × 2 heads × 2 × 64.
const smallFile = 4096 + 768

func idOf(n int) ID { return Inputs{Type: F16, Tokens: []int32{int32(n)}}.ID() }

// payloadFor gives the bytes that belong to an id: like keys and values, they follow from it, so anyone can check them.
func payloadFor(id ID, shape Shape) []byte {
	p := Alloc(shape.Bytes())
	rng := rand.NewChaCha8(id)
	rng.Read(p)
	return p
}

// warnings collects what a store tells.
type warnings struct {
	mu   sync.Mutex
	told []string
}

func (w *warnings) warn(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, err.Error())
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.told...)
}

// mustWarn fails unless there is exactly one warning and it holds all parts; it forgets it.
func (w *warnings) mustWarn(t *testing.T, parts ...string) {
	t.Helper()
	told := w.all()
	if len(told) != 1 {
		t.Fatalf("warnings: got %q, want one that holds %q", told, parts)
	}
	for _, part := range parts {
		if !strings.Contains(told[0], part) {
			t.Errorf("warning: got %q, want it to hold %q", told[0], part)
		}
	}
	w.mu.Lock()
	w.told = nil
	w.mu.Unlock()
}

// open opens a store that the test closes, if it has not been, and that must not warn beyond what w was asked about.
func open(t *testing.T, files vfs.FS, dir string, o Options) (*Store, *warnings) {
	t.Helper()
	w := &warnings{}
	o.Warn = w.warn
	s, err := openOn(files, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	s.touchEvery = 0
	t.Cleanup(func() {
		if err := s.Close(); err != nil && err != ErrClosed {
			t.Error(err)
		}
		if told := w.all(); len(told) > 0 {
			t.Errorf("warnings that nobody expected: %q", told)
		}
	})
	return s, w
}

// newDir makes a folder for the user alone, whatever the umask.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, s *Store, n int) {
	t.Helper()
	l, err := s.Put(idOf(n), small, payloadFor(idOf(n), small))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// get closes the lease at once and gives where the block was found, "missing" if it was not.
func get(t *testing.T, s *Store, n int) string {
	t.Helper()
	l, err := s.Get(idOf(n), small)
	if errors.Is(err, ErrMissing) {
		return "missing"
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !bytes.Equal(l.Payload(), payloadFor(idOf(n), small)) {
		t.Fatalf("block %d: other bytes than were put", n)
	}
	return l.Source().String()
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Fatalf("%s: got %s, want %s", what, g, w)
	}
}

// checked checks both halves of a store that rests.
func checked(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.check()
	s.mu.Unlock()
	if s.folder != nil {
		if err := s.folder.check(); err != nil {
			t.Fatal(err)
		}
	}
}

func blockPath(dir string, n int) string {
	id := idOf(n).String()
	return filepath.Join(dir, id[:2], id+".kv")
}

func u32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
