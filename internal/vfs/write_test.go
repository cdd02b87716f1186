package vfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile_WholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "a"), filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	write := func(path, text string, err error) error {
		return WriteFile(path, 0o640, func(w io.Writer) error {
			_, _ = io.WriteString(w, text)
			return err
		})
	}
	must := func(what, want string) {
		t.Helper()
		entries, _ := os.ReadDir(dir)
		if got, err := os.ReadFile(path); err != nil || string(got) != want || len(entries) != 2 {
			t.Errorf("%s: %q (%v) in a folder of %d; want %q, and the link beside it", what, got, err, len(entries), want)
		}
	}
	if err := write(path, "one", nil); err != nil {
		t.Error(err)
	}
	must("new", "one")
	if err := write(path, "two", broken); !errors.Is(err, broken) {
		t.Error(err)
	}
	must("what did not end", "one")
	if err := write(link, "three", nil); err != nil {
		t.Error(err)
	}
	must("by a link", "three")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is one no more: %v, %v", info.Mode(), err)
	}
	if err := write(filepath.Join(dir, "none", "a"), "x", nil); err == nil {
		t.Error("written into a folder that is not there")
	}
	if err := write(dir, "x", nil); err == nil {
		t.Error("a folder was written")
	}
}

// A device is written to, not replaced.
func TestWriteFile_Device_StaysOne(t *testing.T) {
	before, err := os.Stat(os.DevNull)
	if err != nil {
		t.Skip(err)
	}
	if before.Mode().IsRegular() {
		t.Fatalf("%s is a regular file", os.DevNull)
	}
	if err := WriteFile(os.DevNull, 0o644, func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }); err != nil {
		t.Error(err)
	}
	if after, err := os.Stat(os.DevNull); err != nil || after.Mode() != before.Mode() {
		t.Errorf("it is %v now, was %v (%v)", after.Mode(), before.Mode(), err)
	}
}
