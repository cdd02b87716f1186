package pull

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const partSuffix = ".part"

// part is a file that is growing towards its place, locked against every other puller as long as it is open.
//
//  1. The lock is on the file itself, so it ends with the process and leaves nothing behind.
//  2. Whoever holds it holds the file that has the name: a part that was renamed into place is no longer the one to lock.
//  3. What is on disk of it came from the download that meta describes.
type part struct {
	f       *os.File
	path    string
	size    int64
	resumed bool // some bytes are of an earlier process, or of an earlier connection
	meta    partMeta
}

// partMeta is what a resumed download is compared with; it lies beside the part as JSON.
type partMeta struct {
	URL  string `json:"url"`
	ETag string `json:"etag"`
	Size int64  `json:"size"` // of the whole file; -1 where the server did not say
}

// openPart opens and locks t's part, waiting for another process that has it.
func (p *puller) openPart(ctx context.Context, t target) (*part, error) {
	name := t.path()
	if t.name == "" {
		name = filepath.Join(t.dir, "unnamed")
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	path := name + partSuffix
	for waited := false; ; waited = true {
		f, err := lockFile(path)
		if err == nil {
			return loadPart(f, path)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if !waited {
			p.note("another process is pulling %s; waiting for it", filepath.Base(name))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lockFile opens path and locks it, or fails with EWOULDBLOCK where another has it or just renamed it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var mine, named fs.FileInfo
		if mine, err = f.Stat(); err == nil {
			if named, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, named) {
				err = unix.EWOULDBLOCK
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func loadPart(f *os.File, path string) (*part, error) {
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &part{f: f, path: path, size: fi.Size(), resumed: fi.Size() > 0}
	// Without a readable meta the bytes are of nobody knows what; a zero meta matches no download, so they are dropped.
	if b, err := os.ReadFile(p.metaPath()); err != nil || json.Unmarshal(b, &p.meta) != nil {
		p.meta = partMeta{}
	}
	return p, nil
}

func (p *part) metaPath() string { return p.path + ".json" }

// describe says which download the next bytes are of.
func (p *part) describe(m partMeta) error {
	if m == p.meta {
		return nil
	}
	p.meta = m
	return writeJSON(p.metaPath(), m)
}

// Write appends.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.f.WriteAt(b, p.size)
	p.size += int64(n)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = advised{fmt.Errorf("the disk is full after %d bytes of %s", p.size, p.path), "make room; the same command goes on from there"}
	}
	return n, err
}

// reset starts over with no bytes.
func (p *part) reset() error {
	p.resumed = false
	if p.size == 0 {
		return nil
	}
	p.size = 0
	return p.f.Truncate(0)
}

// sum is the SHA-256 of the bytes so far, in hex.
func (p *part) sum(ctx context.Context) (string, error) {
	return sumOf(ctx, io.NewSectionReader(p.f, 0, p.size))
}

func sumOf(ctx context.Context, r io.Reader) (string, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
	}
}

// commit puts the part in t's place and remembers r about it.
func (p *part) commit(t target, r Result) error {
	if err := p.f.Sync(); err != nil {
		return err
	}
	os.Remove(p.metaPath()) // before the rename: afterwards it might be the next one's
	if err := os.Rename(p.path, t.path()); err != nil {
		return err
	}
	return remember(t, r)
}

// close lets the lock go. A part with bytes in it stays for the next pull.
func (p *part) close() {
	if p.size == 0 {
		os.Remove(p.path)
		os.Remove(p.metaPath())
	}
	p.f.Close()
}

// record is what .FILE.pulled remembers: as long as size and time of the file are these, its hash is this.
type record struct {
	Source string    `json:"source"`
	SHA256 string    `json:"sha256"`
	Bytes  int64     `json:"bytes"`
	Time   time.Time `json:"time"` // the file's modification time
}

func (t target) recordPath() string {
	return filepath.Join(filepath.Dir(t.path()), "."+filepath.Base(t.path())+".pulled")
}

func remember(t target, r Result) error {
	fi, err := os.Stat(t.path())
	if err != nil {
		return err
	}
	return writeJSON(t.recordPath(), record{r.Source, r.SHA256, r.Bytes, fi.ModTime()})
}

// present returns t's file, marked Cached, if it is in place and right; a zero Result if it is not.
func (t target) present() (Result, error) {
	if t.name == "" {
		found, err := filepath.Glob(filepath.Join(t.dir, "*.gguf"))
		if err != nil || len(found) != 1 {
			return Result{}, nil
		}
		t.name = filepath.Base(found[0])
	}
	f, err := os.Open(t.path())
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, nil
	}
	if err != nil {
		return Result{}, failure(t.ref, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Result{}, failure(t.ref, err)
	}
	if !fi.Mode().IsRegular() {
		return Result{}, &Error{t.ref, fmt.Errorf("%s is a %s, expected a file", t.path(), kindOf(fi)), "move it away"}
	}
	var known record
	if b, err := os.ReadFile(t.recordPath()); err != nil || json.Unmarshal(b, &known) != nil {
		known = record{Source: t.path()} // put there by hand
	}
	want := t.sha256
	if want == "" {
		want = known.SHA256
	}
	if want == "" || t.bytes != 0 && fi.Size() != t.bytes {
		return Result{}, nil
	}
	r := Result{t.path(), known.Source, want, fi.Size(), true}
	if known.SHA256 == want && known.Bytes == fi.Size() && known.Time.Equal(fi.ModTime()) {
		return r, nil
	}
	sum, err := sumOf(context.Background(), f)
	if err != nil {
		return Result{}, failure(t.ref, err)
	}
	if sum != want {
		return Result{}, nil
	}
	remember(t, r) // fails where the folder is read-only; then the next call hashes again
	return r, nil
}

// writeJSON replaces path by v, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"+partSuffix)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// freeSpace is how many bytes the user may still write to the file system of dir.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(uint64(st.Bavail) * uint64(st.Bsize)), nil
}

// roomFor fails early, with figures, where n more bytes will not fit beside part.
func (p *puller) roomFor(part *part, n int64) error {
	dir := filepath.Dir(part.path)
	free, err := p.free(dir)
	if err != nil || n <= free {
		return nil // not knowing is no reason to stop: a full disk ends the write anyway
	}
	return advised{fmt.Errorf("needs %d bytes, %s has %d free", n, dir, free), "make room, or set TESSERA_HOME to a folder on another disk"}
}
