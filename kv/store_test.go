package kv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/vfs"
)

func TestStore_FindsABlockInMemoryThenInItsFile(t *testing.T) {
	dir := newDir(t)
	s, _ := open(t, vfs.OS{}, dir, Options{})
	want(t, "before Put", get(t, s, 0), "missing")
	l, err := s.Put(idOf(0), small, payloadFor(idOf(0), small))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "source of Put", l.Source(), "computed")
	l.Close()
	want(t, "after Put", get(t, s, 0), "ram")
	checked(t, s)
	s.Close()

	s, _ = open(t, vfs.OS{}, dir, Options{})
	want(t, "after a restart", get(t, s, 0), "disk")
	want(t, "once more", get(t, s, 0), "ram")
	checked(t, s)
}

func TestStore_FilesAreForTheUserAlone(t *testing.T) {
	dir := filepath.Join(newDir(t), "deep", "kv")
	s, _ := open(t, vfs.OS{}, dir, Options{})
	put(t, s, 0)
	checked(t, s)
	for path, mode := range map[string]fs.FileMode{
		dir: 0o700, filepath.Dir(blockPath(dir, 0)): 0o700, blockPath(dir, 0): 0o600, filepath.Join(dir, lockName): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: got %v, %v, want %v", path, info.Mode(), err, mode)
		}
	}
}

func TestPut_OfABlockInMemory_KeepsTheFirst(t *testing.T) {
	s, _ := open(t, nil, "", Options{})
	first, second := payloadFor(idOf(0), small), payloadFor(idOf(0), small)
	a, err := s.Put(idOf(0), small, first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Put(idOf(0), small, second)
	if err != nil {
		t.Fatal(err)
	}
	if &a.Payload()[0] != &first[0] || &b.Payload()[0] != &first[0] || b.Source() != RAM {
		t.Errorf("second Put: source %v, payload of the first: %v", b.Source(), &b.Payload()[0] == &first[0])
	}
	a.Close()
	b.Close()
	checked(t, s)
}

func TestPut_RefusesWhatItCannotKeep(t *testing.T) {
	s, _ := open(t, nil, "", Options{})
	good := payloadFor(idOf(0), small)
	for said, put := range map[string]func() (*Lease, error){
		"block id: found zero":         func() (*Lease, error) { return s.Put(ID{}, small, good) },
		"tokens: found 0":              func() (*Lease, error) { return s.Put(idOf(0), Shape{F16, 1, 1, 1, 0}, nil) },
		"KV type: found type 9":        func() (*Lease, error) { return s.Put(idOf(0), Shape{9, 1, 1, 1, 1}, nil) },
		"payload: found 704 bytes":     func() (*Lease, error) { return s.Put(idOf(0), small, good[64:]) },
		"at a multiple of 64":          func() (*Lease, error) { return s.Put(idOf(0), small, append(Alloc(800)[8:8], good...)) },
		"head dimension: found 100000": func() (*Lease, error) { return s.Get(idOf(0), Shape{F16, 1, 1, 100000, 1}) },
	} {
		if l, err := put(); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("got %v, %v, want an error that says %q", l, err, said)
		}
	}
}

func TestOpen_SaysWhyAFolderCannotBeUsed(t *testing.T) {
	dir := newDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failing := func(op vfs.Op, err error) *vfs.Mem {
		m := vfs.NewMem()
		m.Fail = func(o vfs.Op, path string) error {
			if o == op {
				return err
			}
			return nil
		}
		return m
	}
	for _, c := range []struct {
		files vfs.FS
		dir   string
		o     Options
		said  []string
	}{
		{vfs.OS{}, file, Options{}, []string{file, "expected a folder", "not a directory"}},
		{vfs.OS{}, filepath.Join(file, "below"), Options{}, []string{file, "expected a folder", "not a directory"}},
		{failing(vfs.OpMkdir, syscall.EACCES), "/kv", Options{}, []string{"/kv", "expected a folder", "permission denied"}},
		{failing(vfs.OpList, syscall.EACCES), "/kv", Options{}, []string{"/kv", "expected a folder that can be read", "permission denied"}},
		{failing(vfs.OpLock, syscall.EROFS), "/kv", Options{}, []string{"/kv", "expected a folder that can be written to", "read-only"}},
		{nil, "", Options{RAMBytes: -1}, []string{"found -1 bytes of RAM"}},
		{nil, "", Options{KernelPath: strings.Repeat("x", 41)}, []string{"kernel path", "at most 40 bytes"}},
	} {
		s, err := openOn(c.files, c.dir, c.o)
		if err == nil {
			s.Close()
			t.Errorf("%v: opened, want an error that says %q", c.dir, c.said)
			continue
		}
		for _, part := range c.said {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("got %q, want it to say %q", err, part)
			}
		}
	}
}

func TestOpen_RealPermissions(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may do everything")
	}
	for mode, said := range map[fs.FileMode]string{0o500: "can be written to", 0o300: "can be read"} {
		dir := newDir(t)
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("mode %v: got %v, want an error that says %q", mode, err, said)
		}
		os.Chmod(dir, 0o700)
	}
}

func TestOpen_WarnsOfAFolderThatOthersCanWriteTo(t *testing.T) {
	dir := newDir(t)
	for mode, warns := range map[fs.FileMode]bool{0o700: false, 0o755: false, 0o770: true, 0o702: true} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		s, w := open(t, vfs.OS{}, dir, Options{})
		s.Close()
		if warns {
			w.mustWarn(t, dir, fmt.Sprintf("mode %04o", mode), "expected 0700")
		}
	}
}

func TestStore_WriteFailure_IsToldOnceAndServedFromMemory(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpCreate, vfs.OpWrite, vfs.OpSync, vfs.OpRename} {
		t.Run(string(op), func(t *testing.T) {
			files := vfs.NewMem()
			s, w := open(t, files, "/kv", Options{})
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			full := true
			files.Fail = func(o vfs.Op, path string) error {
				if full && o == op && strings.HasSuffix(path, tempSuffix) {
					return syscall.ENOSPC
				}
				return nil
			}
			for n := range 3 {
				put(t, s, n)
			}
			if err := s.Flush(); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("Flush: got %v, want no space left", err)
			}
			w.mustWarn(t, "/kv", "live in memory only", "no space left")
			want(t, "Get", get(t, s, 2), "ram")
			full = false
			put(t, s, 3)
			checked(t, s) // nothing is left of the attempts
			st, err := s.Stat()
			if err != nil || st.Blocks != 1 || st.DiskBytes != smallFile {
				t.Errorf("after space was found again: got %+v, %v, want one block", st, err)
			}
		})
	}
}

func TestStore_ReadFailure_IsToldOnceAndIsAMiss(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	for n := range 2 {
		put(t, s, n)
	}
	checked(t, s)
	s.Close()
	s, w := open(t, files, "/kv", Options{})
	checked(t, s)
	files.Fail = func(o vfs.Op, path string) error {
		if o == vfs.OpMap {
			return syscall.EIO
		}
		return nil
	}
	want(t, "first", get(t, s, 0), "missing")
	want(t, "second", get(t, s, 1), "missing")
	w.mustWarn(t, blockPath("/kv", 0), "cannot be read", "input/output error")
	files.Fail = nil
	want(t, "later", get(t, s, 1), "disk")
}

func TestStore_AnotherShapeUnderAnId_IsSetAside(t *testing.T) {
	other := small
	other.Tokens++
	for _, dir := range []string{"", "/kv"} {
		s, w := open(t, vfs.NewMem(), dir, Options{})
		put(t, s, 0)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(idOf(0), other); err != ErrMissing {
			t.Errorf("got %v, want ErrMissing", err)
		}
		w.mustWarn(t, "shape", idOf(0).String(), "5 tokens", "6 tokens")
		want(t, "afterwards", get(t, s, 0), "missing")
		checked(t, s)
	}
}

func TestMemory_KeepsTheMostRecentlyUsedWithinItsBound(t *testing.T) {
	s, _ := open(t, nil, "", Options{RAMBytes: int64(3 * small.Bytes())})
	for n := range 3 {
		put(t, s, n)
	}
	want(t, "use of 0", get(t, s, 0), "ram")
	put(t, s, 3) // 1 is the oldest now
	for n, source := range []string{"ram", "missing", "ram", "ram"} {
		want(t, fmt.Sprint("block ", n), get(t, s, n), source)
	}
	checked(t, s)
}

func TestMemory_LeasedBlocksStayBeyondTheBound(t *testing.T) {
	dir := newDir(t)
	s, _ := open(t, vfs.OS{}, dir, Options{})
	for n := range 8 {
		put(t, s, n)
	}
	s.Close()
	s, _ = open(t, vfs.OS{}, dir, Options{RAMBytes: 1})
	var leases []*Lease
	for n := range 8 {
		l, err := s.Get(idOf(n), small)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	want(t, "a leased one", get(t, s, 0), "ram")
	if _, _, err := s.DropAll(); err != nil {
		t.Fatal(err)
	}
	s.Close() // leases outlive even that
	for n, l := range leases {
		if !bytes.Equal(l.Payload(), payloadFor(idOf(n), small)) {
			t.Errorf("block %d changed under its lease", n)
		}
		l.Close()
	}
	if len(s.detached) > 0 || len(s.blocks) > 0 {
		t.Errorf("kept after the last Close: %d and %d blocks", len(s.detached), len(s.blocks))
	}
}

func TestLease_ClosedTwice_Panics(t *testing.T) {
	s, _ := open(t, nil, "", Options{})
	put(t, s, 0)
	l, err := s.Get(idOf(0), small)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	l.Close()
}

func TestFolder_LeastRecentlyUsedGoesFirst(t *testing.T) {
	// One byte of RAM: every Get without a lease on the block reads the file. Room for 16 files; one more than
	// that frees a sixteenth beyond its own, so two.
	s, _ := open(t, vfs.NewMem(), "/kv", Options{RAMBytes: 1, DiskBytes: 16 * smallFile})
	for n := range 16 {
		put(t, s, n)
		checked(t, s)
	}
	want(t, "use of 0", get(t, s, 0), "disk")
	put(t, s, 16)
	checked(t, s)
	for n, source := range []string{"disk", "missing", "missing", "disk"} {
		want(t, fmt.Sprint("block ", n), get(t, s, n), source)
	}
	want(t, "the new one", get(t, s, 16), "disk")
}

func TestFolder_SetAsideFilesMakeRoomFirst(t *testing.T) {
	files := vfs.NewMem()
	s, w := open(t, files, "/kv", Options{RAMBytes: 1, DiskBytes: 16 * smallFile})
	for n := range 16 {
		put(t, s, n)
	}
	checked(t, s)
	for _, n := range []int{14, 15} {
		s.SetAside(idOf(n), errors.New("for the test"))
		w.mustWarn(t, blockPath("/kv", n), "for the test")
	}
	put(t, s, 16)
	checked(t, s)
	st, err := s.Stat()
	if err != nil || st.SetAside != 0 || st.Blocks != 15 {
		t.Errorf("got %+v, %v, want 15 blocks, none set aside", st, err)
	}
}

func TestFolder_ABlockLargerThanTheLimit_StaysInMemory(t *testing.T) {
	s, w := open(t, vfs.NewMem(), "/kv", Options{DiskBytes: smallFile - 1})
	put(t, s, 0)
	if err := s.Flush(); err == nil {
		t.Error("Flush: got no error")
	}
	w.mustWarn(t, "4864 bytes does not fit the limit of 4863")
	want(t, "Get", get(t, s, 0), "ram")
}

func TestFolder_OpenedWithASmallerLimit_Shrinks(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	for n := range 10 {
		put(t, s, n)
	}
	s.Close()
	s, _ = open(t, files, "/kv", Options{DiskBytes: 4 * smallFile})
	checked(t, s)
}

func TestFolder_WithoutItsLockFileOrWithNonsenseInIt_IsCountedAgain(t *testing.T) {
	for _, content := range []string{"", "x", "\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff"} {
		files := vfs.NewMem()
		s, _ := open(t, files, "/kv", Options{DiskBytes: 8 * smallFile})
		for n := range 6 {
			put(t, s, n)
		}
		s.Close()
		files.WriteFile("/kv/lock", []byte(content))
		s, _ = open(t, files, "/kv", Options{DiskBytes: 8 * smallFile})
		for n := range 6 {
			put(t, s, 6+n)
		}
		checked(t, s)
	}
}

func TestFolder_FilesOfOthersAreLeftAlone(t *testing.T) {
	dir := newDir(t)
	foreign := []string{"README", "ab/notes.kv", "ab/" + strings.Repeat("0", 64) + ".kv", "bad/x.kv", "abc/" + idOf(1).String() + ".kv"}
	for _, name := range foreign {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 10000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := open(t, vfs.OS{}, dir, Options{DiskBytes: 2 * smallFile})
	for n := range 5 {
		put(t, s, n)
	}
	checked(t, s)
	if _, _, err := s.DropAll(); err != nil {
		t.Fatal(err)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestFolder_RemovedUnderARunningStore_IsMadeAgain(t *testing.T) {
	dir := filepath.Join(newDir(t), "kv")
	s, _ := open(t, vfs.OS{}, dir, Options{RAMBytes: 1})
	put(t, s, 0)
	checked(t, s)
	l, err := s.Get(idOf(0), small)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	put(t, s, 1)
	checked(t, s)
	want(t, "new block", get(t, s, 1), "disk")
	want(t, "leased block", get(t, s, 0), "ram")
}

func TestDrop_RemovesFromMemoryAndFolder(t *testing.T) {
	for _, dir := range []string{"", newDir(t)} {
		s, _ := open(t, vfs.OS{}, dir, Options{})
		for n := range 5 {
			put(t, s, n)
		}
		n, size, err := s.Drop(idOf(1), idOf(3), idOf(99)) // some may not be written yet
		if err != nil || n != 2 || size == 0 {
			t.Errorf("got %d blocks, %d bytes, %v, want two", n, size, err)
		}
		checked(t, s)
		for n, source := range []string{"ram", "missing", "ram", "missing", "ram"} {
			want(t, fmt.Sprint("block ", n), get(t, s, n), source)
		}
		if n, _, err := s.DropAll(); err != nil || n != 3 {
			t.Errorf("all: got %d blocks, %v, want three", n, err)
		}
		checked(t, s)
		infos, err := s.List()
		if err != nil || len(infos) != 0 {
			t.Errorf("afterwards: got %v, %v, want none", infos, err)
		}
	}
}

func TestList_MostRecentlyUsedFirst(t *testing.T) {
	s, _ := open(t, vfs.NewMem(), "/kv", Options{KernelPath: "avx2"})
	for n := range 3 {
		put(t, s, n)
	}
	checked(t, s)
	want(t, "use of 0", get(t, s, 0), "ram")
	infos, err := s.List()
	if err != nil || len(infos) != 3 {
		t.Fatalf("got %v, %v, want three", infos, err)
	}
	first := infos[0]
	if first.ID != idOf(0) || first.Shape != small || first.Bytes != smallFile || first.KernelPath != "avx2" || first.Path != blockPath("/kv", 0) || time.Since(first.LastUsed) > time.Minute {
		t.Errorf("got %+v", first)
	}
}

func TestPut_WaitsWhileTheQueueIsOverItsLimit(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.queueLimit = int64(small.Bytes())
	goOn := make(chan struct{})
	files.Fail = func(op vfs.Op, path string) error {
		if op == vfs.OpSync {
			<-goOn
		}
		return nil
	}
	done := make(chan struct{})
	go func() {
		for n := range 3 {
			put(t, s, n)
		}
		close(done)
	}()
	select {
	case <-done:
		t.Error("three blocks were taken while none could be written and the limit is one")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	<-done
	checked(t, s)
}

// large has layers of several pages, so that a file can be cut between them.
var large = Shape{Type: F32, Layers: 4, Heads: 1, Dim: 64, Tokens: 256}

// openLarge gives a store whose only block is in its file, and the file's path.
func openLarge(t *testing.T) (s *Store, w *warnings, path string) {
	dir := newDir(t)
	s, _ = open(t, vfs.OS{}, dir, Options{})
	l, err := s.Put(idOf(0), large, payloadFor(idOf(0), large))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.Close()
	s, w = open(t, vfs.OS{}, dir, Options{})
	return s, w, blockPath(dir, 0)
}

// readAll reads a payload as the engine does.
func readAll(b []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = r.(runtime.Error)
		}
	}()
	sum := byte(0)
	for _, x := range b {
		sum += x
	}
	runtime.KeepAlive(sum)
	return nil
}

func TestStore_FileCutUnderItsMapping_FailsTheReaderNotTheProcess(t *testing.T) {
	s, w, path := openLarge(t)
	lease, err := s.Get(idOf(0), large)
	if err != nil {
		t.Fatal(err)
	}
	if err := readAll(lease.Payload()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(headerBytes(large.Layers)+large.LayerBytes())); err != nil {
		t.Fatal(err)
	}

	done := make(chan error)
	go func() { done <- readAll(lease.Payload()) }()
	fault, ok := (<-done).(interface {
		error
		Addr() uintptr
	})
	if !ok {
		t.Fatal("reading beyond the end of the file did not fault")
	}
	at, id, ok := s.Fault(fault.Addr())
	if !ok || at != path || id != idOf(0) {
		t.Fatalf("Fault: got %q, %v, %v, want %q", at, id, ok, path)
	}
	if _, _, ok := s.Fault(fault.Addr() + 1<<30); ok {
		t.Error("Fault knows an address of nobody")
	}
	s.SetAside(id, fmt.Errorf("it ends before byte %d", 123))
	w.mustWarn(t, path, "it ends before byte 123")
	if _, _, ok := s.Fault(fault.Addr()); !ok {
		t.Error("a second request with the same fault is not told whose it is")
	}
	s.SetAside(id, errors.New("the second request")) // says nothing: it has been told
	lease.Close()

	if _, err := s.Get(idOf(0), large); err != ErrMissing {
		t.Errorf("Get afterwards: got %v, want ErrMissing", err)
	}
	l, err := s.Put(idOf(0), large, payloadFor(idOf(0), large))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.SetAside(id, errors.New("a third request, late")) // does not touch what was computed since
	checked(t, s)
	if info, err := os.Stat(path); err != nil || info.Size() != fileBytes(large) {
		t.Errorf("the block was not written again: %v", err)
	}
}

func TestStore_FileCutBetweenTwoGets_IsSetAside(t *testing.T) {
	s, w, path := openLarge(t)
	l, err := s.Get(idOf(0), large)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.Truncate(path, fileBytes(large)-1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(idOf(0), large); err != ErrMissing {
		t.Errorf("got %v, want ErrMissing", err)
	}
	w.mustWarn(t, path, "since it was mapped: found 528383 bytes, expected 528384 bytes")
	checked(t, s)
}

// What Lend gives is verified layer by layer: one that is not whole is told when it is asked for, once, and sets the block aside.
func TestLend_LayerNotWhole_IsToldWhenAskedFor(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	put(t, s, 0)
	checked(t, s)
	s.Close()
	file := slices.Concat(newHeader(idOf(0), small, "", payloadFor(idOf(0), small)).encode(), payloadFor(idOf(0), small))
	last := small.Layers - 1
	file[headerBytes(small.Layers)+last*small.LayerBytes()] ^= 1
	files.WriteFile(blockPath("/kv", 0), file)
	s, w := open(t, files, "/kv", Options{})
	first, err := s.Lend(idOf(0), small)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Lend(idOf(0), small)
	if err != nil || first.Source() != Disk || second.Source() != RAM {
		t.Fatalf("from %v, then from %v, %v; want disk, then ram", first.Source(), second.Source(), err)
	}
	for layer := range last {
		if err := first.Layer(layer); err != nil || first.Whole() {
			t.Errorf("layer %d: %v, whole %v; want it read, and more to come", layer, err, first.Whole())
		}
	}
	if told := w.all(); len(told) != 0 {
		t.Errorf("told %q of layers that are whole", told)
	}
	for _, l := range []*Lease{first, second, first} {
		if err := l.Layer(last); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s: layer %d", blockPath("/kv", 0), last)) || l.Whole() {
			t.Errorf("last layer: %v, whole %v; want an error that names file and layer", err, l.Whole())
		}
	}
	w.mustWarn(t, blockPath("/kv", 0), "moved to the subfolder bad")
	first.Close()
	if _, err := s.Lend(idOf(0), small); err != ErrMissing {
		t.Errorf("afterwards: %v, want ErrMissing", err)
	}
	second.Close()
	checked(t, s)
}

// The checksum is computed by assembly where the machine has some; a fault in there is an error too.
func TestVerify_FileCutWhileItIsRead_IsAnError(t *testing.T) {
	_, _, path := openLarge(t)
	for _, left := range []int64{0, 4096, 1 << 18} {
		m, err := vfs.OS{}.Map(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, left); err != nil {
			t.Fatal(err)
		}
		err = verify(m.Data, idOf(0), large)
		if bad, ok := errors.AsType[*FormatError](err); !ok || (left != 0 && !strings.Contains(bad.Found, fmt.Sprint("its end before byte ", left))) {
			t.Errorf("cut to %d: got %v, want the byte where the file ends", left, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(path, slices.Concat(newHeader(idOf(0), large, "", payloadFor(idOf(0), large)).encode(), payloadFor(idOf(0), large)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStore_ManyGoroutines(t *testing.T) {
	for _, dir := range []string{"", newDir(t)} {
		s, _ := open(t, vfs.OS{}, dir, Options{RAMBytes: int64(4 * small.Bytes()), DiskBytes: 10 * smallFile})
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := range 60 {
					n := (worker*7 + i*5) % 16
					l, err := s.Get(idOf(n), small)
					if err == ErrMissing {
						l, err = s.Put(idOf(n), small, payloadFor(idOf(n), small))
					}
					if err != nil {
						t.Error(err)
						return
					}
					runtime.Gosched()
					if !bytes.Equal(l.Payload(), payloadFor(idOf(n), small)) {
						t.Errorf("block %d: other bytes", n)
					}
					l.Close()
					switch i % 20 {
					case 7:
						_, _, err = s.Drop(idOf(n))
					case 13:
						_, err = s.List()
					case 17:
						_, err = s.Stat()
					case 19:
						if worker == 0 {
							_, _, err = s.DropAll()
						}
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		checked(t, s)
	}
}

func TestGet_OfOneBlockByMany_ReadsTheFileOnce(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	put(t, s, 0)
	s.Close()
	s, _ = open(t, files, "/kv", Options{})
	checked(t, s)
	var reads atomic.Int64
	files.Fail = func(op vfs.Op, _ string) error {
		if op == vfs.OpMap {
			reads.Add(1)
			time.Sleep(20 * time.Millisecond) // the others come meanwhile
		}
		return nil
	}
	var wg sync.WaitGroup
	sources := make([]Source, 8)
	for i := range sources {
		wg.Go(func() {
			l, err := s.Get(idOf(0), small)
			if err != nil {
				t.Error(err)
				return
			}
			sources[i] = l.Source()
			l.Close()
		})
	}
	wg.Wait()
	slices.Sort(sources)
	want(t, "sources", sources, "[ram ram ram ram ram ram ram disk]")
	want(t, "times the file was read", reads.Load(), 1)
}

// heldSync is a file system on which a written file is not synced before goOn is closed.
type heldSync struct {
	vfs.FS
	reached, goOn chan struct{}
}

type heldFile struct {
	vfs.File
	h heldSync
}

func (h heldSync) CreateTemp(path string, size int64) (vfs.File, error) {
	f, err := h.FS.CreateTemp(path, size)
	return heldFile{f, h}, err
}

func (f heldFile) Sync() error {
	f.h.reached <- struct{}{}
	<-f.h.goOn
	return f.File.Sync()
}

func TestDrop_OfABlockBeingWritten_WaitsAndRemovesIt(t *testing.T) {
	files := heldSync{vfs.NewMem(), make(chan struct{}, 1), make(chan struct{})}
	s, _ := open(t, files, "/kv", Options{})
	put(t, s, 0)
	<-files.reached
	done := make(chan error)
	go func() {
		_, _, err := s.Drop(idOf(0))
		done <- err
	}()
	select {
	case <-done:
		t.Fatal("Drop returned before the file got its name")
	case <-time.After(30 * time.Millisecond):
	}
	close(files.goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	checked(t, s)
	want(t, "afterwards", get(t, s, 0), "missing")
}

func TestSetAside_LeavesAFileThatHasTakenThePlaceOfTheBadOne(t *testing.T) {
	s, _, path := openLarge(t)
	l, err := s.Get(idOf(0), large)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Truncate(path, 0), os.Remove(path), os.WriteFile(path, good, 0o600)} { // as another process does
		if err != nil {
			t.Fatal(err)
		}
	}
	s.SetAside(idOf(0), errors.New("for the test"))
	l.Close()
	l, err = s.Get(idOf(0), large)
	if err != nil || l.Source() != Disk {
		t.Fatalf("got %v, want the new file", err)
	}
	l.Close()
}

func TestStore_Closed_SaysSo(t *testing.T) {
	s, _ := open(t, vfs.NewMem(), "/kv", Options{})
	s.Close()
	_, get := s.Get(idOf(0), small)
	_, put := s.Put(idOf(0), small, payloadFor(idOf(0), small))
	_, _, drop := s.DropAll()
	for _, err := range []error{get, put, drop, s.Close()} {
		if err != ErrClosed {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
}
