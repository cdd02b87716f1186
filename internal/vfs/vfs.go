// Package vfs is the few operations on files that a store of immutable files needs, as an interface: the real file system (OS),
// and one in memory (Mem) that fails on demand and can lose, as a power cut would, what was not synced. WriteFile is for files of other kinds.
package vfs

import (
	"io"
	"time"
)

// FS holds files that are written once under a temporary name, renamed into place, mapped, and removed.
// Errors are *fs.PathError, so that errors.Is finds fs.ErrNotExist and its like. Safe for concurrent use.
type FS interface {
	// MkdirAll makes dir and the parents it lacks, for the user alone (0700), and returns once they would survive a power cut.
	MkdirAll(dir string) error
	// CreateTemp makes a file of size zero bytes for the user alone (0600) that RemoveStale leaves alone until it is closed
	// or its process dies. A caller holds a Lock that RemoveStale's caller takes too.
	CreateTemp(path string, size int64) (File, error)
	// RemoveStale removes a file that CreateTemp made, unless its writer is still at work.
	RemoveStale(path string) (removed bool, err error)
	// Map gives the bytes of a file, in place where the file system can. Removing or renaming the file does not hurt them;
	// cutting it short makes reading beyond its new end fault.
	Map(path string) (*Mapping, error)
	// Rename is atomic and replaces what was at to. It and Remove survive a power cut once SyncDir was called.
	Rename(from, to string) error
	Remove(path string) error
	SyncDir(dir string) error
	List(dir string) ([]Info, error)
	Stat(path string) (Info, error)
	// Touch sets the time of the last modification.
	Touch(path string, t time.Time) error
	// Lock makes the file if it is missing and waits until no one else, in any process, holds it. Death of the process unlocks.
	Lock(path string) (Locked, error)
}

// File is a file being written, from its start.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// Locked is a lock that is held, on a file whose few bytes the holders may share.
type Locked interface {
	Contents() ([]byte, error)
	SetContents(b []byte) error // a longer previous content keeps its tail
	Unlock() error
}

// Info describes a file. Two files at one path, one after the other, differ in Inode while the first is mapped.
type Info struct {
	Name    string
	Size    int64
	ModTime time.Time
	Dir     bool
	Mode    uint32 // permission bits
	Inode   uint64
}

// Mapping is the bytes of a file, to be read only.
type Mapping struct {
	Data  []byte
	Info  Info
	unmap func([]byte) error
	ahead func([]byte)
}

// Ahead has the disk bring bytes from to to of the file, while the caller goes on. What cannot be read is found out by who reads Data.
func (m *Mapping) Ahead(from, to int) {
	if to = min(to, len(m.Data)); m.ahead != nil && from < to {
		m.ahead(m.Data[from/pageBytes*pageBytes : to])
	}
}

// pageBytes is a multiple of the pages that machines have: 4, 16 or 64 KiB.
const pageBytes = 64 << 10

// Close gives the bytes back; reading Data afterwards faults.
func (m *Mapping) Close() error {
	data := m.Data
	m.Data = nil
	if m.unmap == nil || data == nil {
		return nil
	}
	return m.unmap(data)
}
