package kv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// writerEnv names the folder in which the test binary, run again, writes blocks until it is killed.
const writerEnv = "TESSERA_TEST_KV_WRITER"

// page is a shape of 64 KiB, so that writing takes a while.
var page = Shape{Type: F16, Layers: 4, Heads: 1, Dim: 64, Tokens: 64}

const (
	pageFile  = 4096 + 65536
	diskBytes = 40 * pageFile
	universe  = 100 // more than there is room for
)

func writeForEver(dir string) {
	die := func(err error) {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(3)
	}
	s, err := Open(dir, Options{RAMBytes: 8 * 65536, DiskBytes: diskBytes, Warn: die})
	if err != nil {
		die(err)
	}
	for {
		id := idOf(rand.IntN(universe))
		l, err := s.Get(id, page)
		if errors.Is(err, ErrMissing) {
			l, err = s.Put(id, page, payloadFor(id, page))
		}
		if err != nil {
			die(err)
		}
		if string(l.Payload()) != string(payloadFor(id, page)) {
			die(fmt.Errorf("block %v: other bytes", id))
		}
		l.Close()
		if rand.IntN(10) == 0 {
			if err := s.Flush(); err != nil {
				die(err)
			}
		}
	}
}

// writer is another process.
type writer struct {
	*exec.Cmd
	said *strings.Builder
}

func startWriter(t *testing.T, dir string) writer {
	t.Helper()
	w := writer{exec.Command(os.Args[0]), new(strings.Builder)}
	w.Env = append(os.Environ(), writerEnv+"="+dir)
	w.Stderr = w.said
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

// kill ends it as kill -9 does, and fails the test if it had ended by itself.
func (w writer) kill(t *testing.T) {
	t.Helper()
	w.Process.Kill()
	if w.Wait(); w.ProcessState.Exited() || w.said.Len() > 0 {
		t.Errorf("the writer ended by itself: %v: %s", w.ProcessState, w.said)
	}
}

func TestStore_WritersKilledAtAnyMoment_LeaveEverythingWhole(t *testing.T) {
	dir := newDir(t)
	survivor := startWriter(t, dir) // what is cleaned up must not be this one's
	var s *Store
	stale := 0
	const rounds = 8
	for round := range rounds {
		w := startWriter(t, dir)
		time.Sleep(20*time.Millisecond + rand.N(120*time.Millisecond))
		w.kill(t)
		if round == rounds-1 {
			survivor.kill(t)
			stale = countTemps(t, dir)
		}
		s, _ = open(t, vfs.OS{}, dir, Options{DiskBytes: diskBytes})
		checked(t, s)
		if round < rounds-1 {
			s.Close()
		}
	}
	if n := countTemps(t, dir); n != 0 {
		t.Errorf("%d temporary files of dead writers are left", n)
	}
	st, err := s.Stat()
	if err != nil || st.Blocks == 0 || st.SetAside != 0 {
		t.Errorf("got %+v, %v, want some blocks and none set aside", st, err)
	}
	t.Logf("%d blocks; the last two writers left %d temporary files", st.Blocks, stale)
	for n := range universe {
		l, err := s.Get(idOf(n), page)
		if err == ErrMissing {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(l.Payload()) != string(payloadFor(idOf(n), page)) {
			t.Errorf("block %d: other bytes", n)
		}
		l.Close()
	}
}

func countTemps(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := (&folder{fs: vfs.OS{}, dir: dir}).files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.kind == tempFile {
			n++
		}
	}
	return n
}

// The temporary file of a dead writer goes at the next open, the one of a live writer stays.
func TestOpen_RemovesTemporaryFilesOfTheDeadOnly(t *testing.T) {
	dir := newDir(t)
	s, _ := open(t, vfs.OS{}, dir, Options{})
	checked(t, s)
	name := func(mark string) string {
		return strings.TrimSuffix(blockPath(dir, 0), ".kv") + "." + strings.Repeat(mark, 16) + ".tmp"
	}
	if err := (vfs.OS{}).MkdirAll(s.folder.subdir(idOf(0))); err != nil {
		t.Fatal(err)
	}
	live, err := vfs.OS{}.CreateTemp(name("a"), smallFile)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	dead, err := vfs.OS{}.CreateTemp(name("b"), smallFile)
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	s.Close()
	s, _ = open(t, vfs.OS{}, dir, Options{})
	checked(t, s)
	if _, err := os.Stat(name("a")); err != nil {
		t.Errorf("live: %v", err)
	}
	if _, err := os.Stat(name("b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dead: got %v, want it removed", err)
	}
}

func TestStore_TwoProcessesWriteAndEvict_WithinOneBound(t *testing.T) {
	dir := newDir(t)
	a, b := startWriter(t, dir), startWriter(t, dir)
	s, _ := open(t, vfs.OS{}, dir, Options{DiskBytes: diskBytes, RAMBytes: 1})
	most := int64(0)
	for end := time.Now().Add(1200 * time.Millisecond); time.Now().Before(end); {
		if err := s.folder.check(); err != nil {
			t.Fatal(err)
		}
		st, err := s.Stat()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, st.DiskBytes)
		for n := range 5 {
			l, err := s.Get(idOf(n), page)
			if err == ErrMissing {
				l, err = s.Put(idOf(n), page, payloadFor(idOf(n), page))
			}
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
	a.kill(t)
	b.kill(t)
	checked(t, s)
	if most < diskBytes/2 {
		t.Errorf("the folder held at most %d of %d bytes: nothing had to be evicted", most, diskBytes)
	}
}
