package weights

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
)

// openSettled opens a file long enough after its last change for it to be remembered.
func openSettled(t *testing.T, data []byte) (*File, string) {
	t.Helper()
	path := writeFile(t, data)
	time.Sleep(settled + 20*time.Millisecond)
	return openFile(t, path), path
}

func fingerprint(t *testing.T, f *File, dir string) [32]byte {
	t.Helper()
	sum, err := f.Fingerprint(dir)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// forge makes the memo say hash of every file it remembers, so that an answer from the memo shows.
func forge(t *testing.T, dir, hash string) {
	t.Helper()
	memo := filepath.Join(dir, memoName)
	all := recall(memo)
	if len(all) == 0 {
		t.Fatal("nothing was remembered")
	}
	for path, r := range all {
		r.Blake3 = hash
		all[path] = r
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(memo, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

var forged = hex.EncodeToString(bytes.Repeat([]byte{0xaa}, 32))

func TestFingerprint_IsBlake3OfTheWholeFile_AndIsRemembered(t *testing.T) {
	data := newSample().encode()
	f, path := openSettled(t, data)
	dir := filepath.Join(t.TempDir(), "made", "if missing")
	want := blake3.Sum256(data)
	if got := fingerprint(t, f, dir); got != want {
		t.Fatalf("%x, want %x", got, want)
	}
	forge(t, dir, forged)
	again := openFile(t, path)
	if got := fingerprint(t, again, dir); hex.EncodeToString(got[:]) != forged {
		t.Errorf("%x: it was hashed again", got)
	}
}

func TestFingerprint_ChangedFile_IsHashedAgain(t *testing.T) {
	s := newSample()
	f, path := openSettled(t, s.encode())
	dir := t.TempDir()
	fingerprint(t, f, dir)
	forge(t, dir, forged)
	for name, change := range map[string]func() error{
		"touched":  func() error { return os.Chtimes(path, time.Time{}, time.Unix(1e9, 0)) },
		"in place": func() error { s.data[0]++; return os.WriteFile(path, s.encode(), 0o600) },
		"replaced": func() error {
			s.data[0]++
			if err := os.WriteFile(path+".new", s.encode(), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if got, want := fingerprint(t, openFile(t, path), dir), blake3.Sum256(s.encode()); got != want {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

func TestFingerprint_DamagedMemo_IsIgnoredAndRewritten(t *testing.T) {
	data := newSample().encode()
	f, _ := openSettled(t, data)
	want := blake3.Sum256(data)
	for _, memo := range []string{"", "{", "[]", `{"x": 1}`, "\x00\x00"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, memoName), []byte(memo), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := fingerprint(t, f, dir); got != want {
			t.Errorf("memo %q: %x, want %x", memo, got, want)
		}
		if len(recall(filepath.Join(dir, memoName))) != 1 {
			t.Errorf("memo %q was not rewritten", memo)
		}
	}
	dir := t.TempDir()
	fingerprint(t, f, dir)
	forge(t, dir, "aa")
	if got := fingerprint(t, f, dir); got != want {
		t.Errorf("a remembered hash of one byte: %x, want %x", got, want)
	}
}

func TestFingerprint_WhereNothingCanBeWritten_IsStillRight(t *testing.T) {
	data := newSample().encode()
	f, path := openSettled(t, data)
	if got, want := fingerprint(t, f, filepath.Join(path, "below a file")), blake3.Sum256(data); got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestFingerprint_FileJustWritten_IsNotRemembered(t *testing.T) {
	start := time.Now()
	f := openFile(t, writeFile(t, newSample().encode()))
	dir := t.TempDir()
	fingerprint(t, f, dir)
	if time.Since(start) > settled {
		t.Skip("the machine was too slow for the file to be new")
	}
	if all := recall(filepath.Join(dir, memoName)); len(all) != 0 {
		t.Errorf("remembered %v", all)
	}
}

func TestFingerprint_CutShortWhileOpen_IsAnError(t *testing.T) {
	path := writeFile(t, newSample().encode())
	f := openFile(t, path)
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	_, err := f.Fingerprint(t.TempDir())
	if want := path + ": file: had 716 bytes when it was opened and has 10 now"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestFingerprint_ManyAtOnce_AgreeAndLeaveAWholeMemo(t *testing.T) {
	data := newSample().encode()
	f, _ := openSettled(t, data)
	dir := t.TempDir()
	want := blake3.Sum256(data)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if got, err := f.Fingerprint(dir); err != nil || got != want {
				t.Errorf("%x, %v, want %x", got, err, want)
			}
		})
	}
	group.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || len(recall(filepath.Join(dir, memoName))) != 1 {
		t.Errorf("the folder holds %v (%v), want the memo alone, with one entry", entries, err)
	}
}
