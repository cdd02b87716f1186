package vfs

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// each runs the body on every file system, in a folder that exists.
func each(t *testing.T, body func(t *testing.T, files FS, dir string)) {
	for name, files := range map[string]FS{"os": OS{}, "mem": NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			if err := files.MkdirAll(dir); err != nil {
				t.Fatal(err)
			}
			body(t, files, dir)
		})
	}
}

// write makes a file by a temporary name, as the interface is meant to be used.
func write(t *testing.T, files FS, path, content string) {
	t.Helper()
	f, err := files.CreateTemp(path+".tmp", int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{content[:len(content)/2], content[len(content)/2:]} {
		if n, err := f.Write([]byte(part)); err != nil || n != len(part) {
			t.Fatal(n, err)
		}
	}
	for _, err := range []error{f.Sync(), files.Rename(path+".tmp", path), f.Close(), files.SyncDir(filepath.Dir(path))} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, files FS, path string) string {
	t.Helper()
	m, err := files.Map(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return string(m.Data)
}

func names(t *testing.T, files FS, dir string) (names []string) {
	t.Helper()
	infos, err := files.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		names = append(names, info.Name)
	}
	slices.Sort(names)
	return names
}

func TestFS_WhatIsWrittenIsReadListedAndRemoved(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		path := filepath.Join(dir, "file")
		write(t, files, path, "some bytes")
		if got := read(t, files, path); got != "some bytes" {
			t.Errorf("got %q", got)
		}
		if got := names(t, files, dir); !slices.Equal(got, []string{"file"}) {
			t.Errorf("names: got %q", got)
		}
		when := time.Unix(1_000_000_000, 5000)
		if err := files.Touch(path, when); err != nil {
			t.Error(err)
		}
		info, err := files.Stat(path)
		if err != nil || info.Name != "file" || info.Size != 10 || info.Dir || !info.ModTime.Equal(when) {
			t.Errorf("stat: got %+v, %v", info, err)
		}
		if info, err := files.Stat(dir); err != nil || !info.Dir {
			t.Errorf("stat of the folder: got %+v, %v", info, err)
		}
		if got := names(t, files, filepath.Dir(dir)); !slices.Equal(got, []string{"b"}) {
			t.Errorf("names above: got %q", got)
		}
		if err := files.Remove(path); err != nil {
			t.Error(err)
		}
		if got := names(t, files, dir); len(got) > 0 {
			t.Errorf("after removing: got %q", got)
		}
	})
}

func TestFS_WhatIsMissingIsErrNotExist(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		path := filepath.Join(dir, "none")
		_, mapped := files.Map(path)
		_, stat := files.Stat(path)
		_, list := files.List(path)
		_, stale := files.RemoveStale(path)
		_, create := files.CreateTemp(filepath.Join(path, "x"), 1)
		_, lock := files.Lock(filepath.Join(path, "lock"))
		for i, err := range []error{mapped, stat, list, stale, create, lock, files.Remove(path), files.Rename(path, path+"2"), files.SyncDir(path), files.Touch(path, time.Now())} {
			if _, ok := errors.AsType[*fs.PathError](err); !errors.Is(err, fs.ErrNotExist) || (!ok && i != 7) {
				t.Errorf("operation %d: got %v, want a PathError of ErrNotExist", i, err)
			}
		}
	})
}

func TestMapping_OutlivesItsName(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		path := filepath.Join(dir, "file")
		write(t, files, path, "old")
		m, err := files.Map(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		write(t, files, path, "newer")
		info, err := files.Stat(path)
		if err != nil || info.Inode == m.Info.Inode {
			t.Errorf("the new file is not to be told from the mapped one: %v, %+v", err, info)
		}
		if err := files.Remove(path); err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != "old" {
			t.Errorf("got %q, want the mapped file's bytes", m.Data)
		}
	})
}

func TestMap_OfAnEmptyFileHasNoBytes(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		write(t, files, filepath.Join(dir, "file"), "")
		if got := read(t, files, filepath.Join(dir, "file")); got != "" {
			t.Errorf("got %q", got)
		}
	})
}

func TestRemoveStale_LeavesAWriterAlone(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		path := filepath.Join(dir, "x.tmp")
		f, err := files.CreateTemp(path, 7)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := files.CreateTemp(path, 7); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second one at the same path: got %v, want ErrExist", err)
		}
		if info, err := files.Stat(path); err != nil || info.Size != 7 {
			t.Errorf("got %+v, %v, want 7 bytes from the start", info, err)
		}
		if removed, err := files.RemoveStale(path); removed || err != nil {
			t.Errorf("while it is written: got %v, %v", removed, err)
		}
		f.Close()
		if removed, err := files.RemoveStale(path); !removed || err != nil {
			t.Errorf("afterwards: got %v, %v", removed, err)
		}
	})
}

func TestLock_IsHeldByOneAndCarriesBytes(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		path := filepath.Join(dir, "lock")
		first, err := files.Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		var freed atomic.Bool
		done := make(chan string)
		go func() {
			second, err := files.Lock(path)
			if err != nil {
				done <- err.Error()
				return
			}
			defer second.Unlock()
			if !freed.Load() {
				done <- "locked twice"
				return
			}
			b, _ := second.Contents()
			done <- string(b)
		}()
		for _, b := range []string{"12345678", "abc"} {
			if err := first.SetContents([]byte(b)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(20 * time.Millisecond)
		freed.Store(true)
		first.Unlock()
		if got := <-done; got != "abc45678" {
			t.Errorf("got %q", got)
		}
	})
}

// Whoever waited for a lock file that was removed meanwhile must not believe to be alone.
func TestLock_OfARemovedFile_IsTakenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := OS{}.Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		second, err := OS{}.Lock(path)
		if err == nil {
			_, err = os.Stat(path) // the lock that is held is on the file that is there
			second.Unlock()
		}
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	first.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMkdirAll_OverAFile_SaysSo(t *testing.T) {
	each(t, func(t *testing.T, files FS, dir string) {
		write(t, files, filepath.Join(dir, "file"), "x")
		for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "file", "below")} {
			if err := files.MkdirAll(path); err == nil {
				t.Errorf("%s: made", path)
			}
		}
	})
}

func TestMem_PowerCut_KeepsWhatWasSynced(t *testing.T) {
	for seed := range uint64(50) {
		m := NewMem()
		if err := m.MkdirAll("/d"); err != nil {
			t.Fatal(err)
		}
		write(t, m, "/d/a", "synced")
		after := m.AfterPowerCut(rand.New(rand.NewPCG(seed, 0)))
		if got := read(t, after, "/d/a"); got != "synced" {
			t.Fatalf("seed %d: got %q", seed, got)
		}
	}
}

// The point of Mem: each way in which a disk may forget does happen.
func TestMem_PowerCut_ForgetsWhatWasNotSynced(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		m := NewMem()
		if err := m.MkdirAll("/d"); err != nil {
			t.Fatal(err)
		}
		f, err := m.CreateTemp("/d/t", 4)
		if err != nil {
			t.Fatal(err)
		}
		f.Write([]byte("full"))
		if err := m.Rename("/d/t", "/d/a"); err != nil { // neither the file nor the folder was synced
			t.Fatal(err)
		}
		f.Close()
		after := m.AfterPowerCut(rand.New(rand.NewPCG(seed, 0)))
		switch got := names(t, after, "/d"); {
		case len(got) == 0:
			seen["neither name"] = true
		case got[0] == "t":
			seen["old name"] = true
		default:
			switch b := read(t, after, "/d/a"); {
			case b == "full":
				seen["whole"] = true
			case len(b) == 4:
				seen["zero tail"] = true
			default:
				seen["cut"] = true
			}
		}
	}
	for _, fate := range []string{"neither name", "old name", "whole", "zero tail", "cut"} {
		if !seen[fate] {
			t.Errorf("%s: never happened", fate)
		}
	}
}

func TestMem_FailsOnDemand(t *testing.T) {
	m := NewMem()
	m.Fail = func(op Op, path string) error {
		if op == OpCreate && path == "/d/x" {
			return syscall.ENOSPC
		}
		return nil
	}
	if err := m.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.CreateTemp("/d/x", 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want no space left", err)
	}
	if _, err := m.CreateTemp("/d/y", 1); err != nil {
		t.Errorf("another path: %v", err)
	}
}
