//go:build unix

package vfs

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// OS is the file system of the machine.
type OS struct{}

// MkdirAll makes what is missing from the top down and syncs the parent of each.
func (OS) MkdirAll(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			err = &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return err
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if err := (OS{}).MkdirAll(filepath.Dir(dir)); err != nil {
			return err
		}
		return OS{}.MkdirAll(dir)
	case err != nil:
		return err
	}
	return OS{}.SyncDir(filepath.Dir(dir))
}

// CreateTemp marks the file by an advisory lock on it, which the kernel takes back however the process ends.
func (OS) CreateTemp(path string, size int64) (File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return f, nil
}

func (OS) RemoveStale(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch err := flock(f, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, os.Remove(path)
}

func (OS) Map(path string) (*Mapping, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	m := &Mapping{Info: infoOf(filepath.Base(path), &st), unmap: unix.Munmap, ahead: ahead}
	switch {
	case uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG:
		return nil, &fs.PathError{Op: "map", Path: path, Err: errors.New("not a regular file")}
	case st.Size > math.MaxInt:
		return nil, &fs.PathError{Op: "map", Path: path, Err: unix.EFBIG}
	case st.Size == 0: // cannot be mapped, and need not
		return m, nil
	}
	m.Data, err = unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &fs.PathError{Op: "map", Path: path, Err: err}
	}
	_ = unix.Madvise(m.Data, unix.MADV_RANDOM) // what is to be read is told by Ahead, in the order in which it is needed
	return m, nil
}

// ahead asks for pages without waiting for them.
func ahead(pages []byte) { _ = unix.Madvise(pages, unix.MADV_WILLNEED) }

func (OS) Rename(from, to string) error { return os.Rename(from, to) }

func (OS) Remove(path string) error { return os.Remove(path) }

func (OS) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (OS) List(dir string) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(entries))
	for _, e := range entries {
		info, err := OS{}.Stat(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) { // removed since
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Stat does not follow a symbolic link: it describes what Rename and Remove act on.
func (OS) Stat(path string) (Info, error) {
	var st unix.Stat_t
	for {
		err := unix.Lstat(path, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Info{}, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		return infoOf(filepath.Base(path), &st), nil
	}
}

func infoOf(name string, st *unix.Stat_t) Info {
	return Info{
		Name:    name,
		Size:    st.Size,
		ModTime: time.Unix(st.Mtim.Unix()),
		Dir:     uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR,
		Mode:    uint32(st.Mode) & 0o777,
		Inode:   st.Ino,
	}
}

func (OS) Touch(path string, t time.Time) error { return os.Chtimes(path, time.Time{}, t) }

func (OS) Lock(path string) (Locked, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if at, err := os.Stat(path); err == nil && os.SameFile(held, at) {
			return locked{f}, nil
		}
		f.Close() // the file was removed while we waited: this lock keeps no one out
	}
}

// locked is a lock by flock: closing the file unlocks it.
type locked struct{ f *os.File }

func (l locked) Contents() ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(l.f, 0, 1<<16))
}

func (l locked) SetContents(b []byte) error {
	_, err := l.f.WriteAt(b, 0)
	return err
}

func (l locked) Unlock() error { return l.f.Close() }

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		return nil
	}
}
