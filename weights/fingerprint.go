package weights

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/tessera-llm/tessera/internal/vfs"
)

const memoName = "fingerprints.json"

// settled is how old a file's last change must be, before the file is hashed, for the hash to be remembered: a second change within the
// same tick of the file system's clock, some milliseconds, would not show in the file's times.
const settled = 100 * time.Millisecond

// An identity is what changes whenever a file's bytes do. Times are in nanoseconds.
type identity struct {
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime"`
	Ctime int64  `json:"ctime"`
	Inode uint64 `json:"inode"`
}

// A remembered fingerprint holds as long as the file's identity is what it was.
type remembered struct {
	identity
	Blake3 string `json:"blake3"`
}

// Fingerprint returns the BLAKE3 hash of the whole file. It is worked out once and remembered by path, size, times and inode in
// a file in the folder cacheDir, which is made if it is not there; "" remembers nothing. That file only saves time: where it cannot be
// read or written, or is damaged, the hash is worked out anew; and of two processes that write it at once one loses its entry.
func (f *File) Fingerprint(cacheDir string) ([32]byte, error) {
	before, err := f.identity()
	if err != nil {
		return [32]byte{}, err
	}
	old := time.Since(time.Unix(0, before.Ctime)) > settled
	key, err := filepath.Abs(f.path)
	if err != nil {
		return [32]byte{}, err
	}
	memo := "" // no file has this path
	if cacheDir != "" {
		memo = filepath.Join(cacheDir, memoName)
	}
	if r, ok := recall(memo)[key]; ok && r.identity == before {
		if sum, err := hex.DecodeString(r.Blake3); err == nil && len(sum) == 32 {
			return [32]byte(sum), nil
		}
	}
	sum, err := f.hash()
	if err != nil {
		return [32]byte{}, err
	}
	after, err := f.identity()
	if err != nil {
		return [32]byte{}, err
	}
	if after != before {
		return [32]byte{}, f.Errorf("file", "changed while it was read")
	}
	if old && memo != "" {
		remember(memo, key, remembered{before, hex.EncodeToString(sum[:])})
	}
	return sum, nil
}

// hash reads the file rather than the mapping: if it was cut short, reading ends, where touching the mapping would be a fault.
func (f *File) hash() (sum [32]byte, err error) {
	h := blake3.New()
	n, err := io.CopyBuffer(h, io.NewSectionReader(f.file, 0, f.Size()), make([]byte, 1<<20))
	if err != nil {
		return sum, err
	}
	if n != f.Size() {
		return sum, f.Errorf("file", "had %s bytes when it was opened and has %s now", grouped(uint64(f.Size())), grouped(uint64(n)))
	}
	h.Sum(sum[:0])
	return sum, nil
}

// identity asks about the open file, not about what its path may have come to mean.
func (f *File) identity() (identity, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.file.Fd()), &s); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	return identity{Size: s.Size, Mtime: s.Mtim.Nano(), Ctime: s.Ctim.Nano(), Inode: s.Ino}, nil
}

// recall reads what is remembered, by path; nothing where there is nothing readable.
func recall(memo string) map[string]remembered {
	var all map[string]remembered
	if b, err := os.ReadFile(memo); err != nil || json.Unmarshal(b, &all) != nil {
		return nil
	}
	return all
}

// remember adds an entry, replacing the memo in one step. Failures cost only time, later, so they are let go.
func remember(memo, key string, r remembered) {
	all := recall(memo)
	if all == nil {
		all = make(map[string]remembered)
	}
	all[key] = r
	b, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return
	}
	dir := filepath.Dir(memo)
	if os.MkdirAll(dir, 0o700) != nil {
		return
	}
	_ = vfs.WriteFile(memo, 0o600, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}
