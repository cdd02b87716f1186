package kv

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// folder is the disk tier: one file a block, shared by any number of processes.
//
//	ab/abcd….kv            a block; the subfolder is the first two digits of its ID
//	ab/abcd….0123….tmp     a block being written; its writer holds a lock on it
//	bad/abcd….0123….kv     a file that was not whole, kept for whoever wants to know why
//	lock                   its lock is held by who makes room; it holds the bytes in use, at least (see usage)
//
// The files are the truth: nothing else has to be kept or repaired. Only making room is coordinated.
type folder struct {
	fs         vfs.FS
	dir        string
	limit      int64
	kernelPath string
}

const (
	blockSuffix = ".kv"
	tempSuffix  = ".tmp"
	badDir      = "bad"
	lockName    = "lock"
)

func (f *folder) subdir(id ID) string { return filepath.Join(f.dir, id.String()[:2]) }

func (f *folder) path(id ID) string {
	name := id.String()
	return filepath.Join(f.dir, name[:2], name+blockSuffix)
}

// open makes the folder and reports, now instead of at the first write, why it cannot be used.
func (f *folder) open() error {
	if err := f.fs.MkdirAll(f.dir); err != nil {
		return f.unusable(err, "a folder, or a path where one can be made")
	}
	if _, err := f.fs.List(f.dir); err != nil {
		return f.unusable(err, "a folder that can be read")
	}
	u, err := f.lockUsage()
	if err != nil {
		return f.unusable(err, "a folder that can be written to")
	}
	return u.unlock()
}

func (f *folder) unusable(err error, expected string) error {
	return fmt.Errorf("kv: %s: cannot keep blocks here: expected %s: %w", f.dir, expected, err)
}

// load maps a block; its layers are still to be verified. The errors: fs.ErrNotExist; *FormatError if the file is not the block; others if
// it could not be read.
func (f *folder) load(id ID, shape Shape) (*mapped, error) {
	path := f.path(id)
	m, err := f.fs.Map(path)
	if err != nil {
		return nil, err
	}
	b, err := newMapped(m, path, id, shape)
	if err != nil {
		m.Close()
		return nil, err
	}
	return b, nil
}

// A mapped is a mapped file whose header is right, and what is known of its layers.
type mapped struct {
	*vfs.Mapping
	header   header
	path     string
	once     []sync.Once // of each layer
	errs     []error
	verified atomic.Int32 // layers that are whole
	aside    sync.Once    // setting it aside, where one is not
}

// newMapped checks by the header that a file holds the block id and has the shape.
func newMapped(file *vfs.Mapping, path string, id ID, shape Shape) (*mapped, error) {
	m := &mapped{Mapping: file, path: path, once: make([]sync.Once, shape.Layers), errs: make([]error, shape.Layers)}
	m.Ahead(0, headerBytes(shape.Layers))
	return m, m.guarded(func() (err error) {
		m.header, err = parseHeader(m.Data)
		switch {
		case err != nil:
			return err
		case m.header.id != id:
			return misfit("id", m.header.id, fmt.Sprintf("%v as in the file's name", id))
		case m.header.shape != shape:
			return misfit("shape", m.header.shape, shape)
		}
		return nil
	})
}

// verify reads a layer and compares it with its checksum, unless that was done.
func (m *mapped) verify(layer int) error {
	m.once[layer].Do(func() {
		from, to := m.layer(layer)
		if m.errs[layer] = m.guarded(func() error { return m.header.checkLayer(layer, m.Data[from:to]) }); m.errs[layer] == nil {
			m.verified.Add(1)
		}
	})
	return m.errs[layer]
}

// layer is where in the file a layer's bytes are.
func (m *mapped) layer(layer int) (from, to int) {
	size := m.header.shape.LayerBytes()
	from = headerBytes(m.header.shape.Layers) + layer*size
	return from, from + size
}

// verifyAll reads every byte.
func (m *mapped) verifyAll() error {
	m.Ahead(0, len(m.Data))
	for i := range m.once {
		if err := m.verify(i); err != nil {
			return err
		}
	}
	return nil
}

// guarded runs read, which reads the mapped bytes, and puts the path to what it finds wrong.
func (m *mapped) guarded(read func() error) error {
	err := guarded(m.Data, read)
	if bad, ok := errors.AsType[*FormatError](err); ok {
		bad.Path = m.path
	}
	return err
}

// guarded runs read, which reads the mapped bytes. Where the file has been cut short meanwhile they fault; that becomes an error.
func guarded(mapped []byte, read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface{ Addr() uintptr })
		if !ok || !within(fault.Addr(), mapped) {
			panic(r)
		}
		at := fault.Addr() - uintptr(unsafe.Pointer(unsafe.SliceData(mapped)))
		err = misfit("file", fmt.Sprintf("its end before byte %d while reading", at), byteCount(len(mapped)))
	}()
	return read()
}

func within(addr uintptr, b []byte) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return addr >= start && addr-start < uintptr(len(b))
}

// payloadOf is the payload in a file.
func payloadOf(file []byte, s Shape) []byte {
	b := file[headerBytes(s.Layers):]
	return b[:len(b):len(b)]
}

// changed compares a mapped file with what is at its path now: the same file with another size has been tampered with.
// A file that is gone or replaced leaves the mapping whole.
func (f *folder) changed(m *mapped) error {
	now, err := f.fs.Stat(m.path)
	if err != nil || now.Inode != m.Info.Inode || now.Size == int64(len(m.Data)) {
		return nil
	}
	return &FormatError{Path: m.path, Part: "file, since it was mapped", Found: byteCount(int(now.Size)), Expected: byteCount(len(m.Data))}
}

// touch makes the block the most recently used one, for every process. A folder that is read-only meanwhile just ages.
func (f *folder) touch(id ID) { _ = f.fs.Touch(f.path(id), time.Now()) }

// write writes a block that is not there yet: room is made, a temporary file written, synced, renamed, and the name synced.
func (f *folder) write(id ID, shape Shape, payload []byte) error {
	path := f.path(id)
	if _, err := f.fs.Stat(path); err == nil {
		return nil // another process was quicker; equal ids have equal bytes
	}
	size := fileBytes(shape)
	temp := strings.TrimSuffix(path, blockSuffix) + fmt.Sprintf(".%016x", rand.Uint64()) + tempSuffix
	file, err := f.reserve(id, temp, size)
	if err != nil {
		return err
	}
	err = f.fill(file, newHeader(id, shape, f.kernelPath, payload).encode(), payload)
	if err == nil {
		err = f.publish(temp, path, size) // before the file is closed: until then no one takes it for stale
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		f.giveUp(temp, size)
		return err
	}
	return f.fs.SyncDir(f.subdir(id))
}

func (f *folder) fill(file vfs.File, parts ...[]byte) error {
	for _, p := range parts {
		if _, err := file.Write(p); err != nil {
			return err
		}
	}
	return file.Sync()
}

// publish gives a whole file its name, under the lock, so that a survey sees it under one name and not under both or none.
func (f *folder) publish(temp, path string, size int64) error {
	u, err := f.lockUsage()
	if err != nil {
		return err
	}
	defer u.unlock()
	_, there := f.fs.Stat(path)
	if err := f.fs.Rename(temp, path); err != nil {
		return err
	}
	if there == nil { // another process was quicker; its file is replaced by the same bytes
		_ = u.set(u.bytes - size)
	}
	return nil
}

// giveUp removes a temporary file. Where even that fails, the next survey does it.
func (f *folder) giveUp(temp string, size int64) {
	u, err := f.lockUsage()
	if err != nil {
		return
	}
	defer u.unlock()
	if f.fs.Remove(temp) == nil {
		_ = u.set(u.bytes - size)
	}
}

// reserve makes room for a file of size bytes and creates it, at full size, so that a survey by another process counts it.
func (f *folder) reserve(id ID, temp string, size int64) (vfs.File, error) {
	if size > f.limit {
		return nil, fmt.Errorf("a block of %d bytes does not fit the limit of %d", size, f.limit)
	}
	u, err := f.lockUsage()
	if err != nil {
		return nil, err
	}
	defer u.unlock()
	if u.bytes+size > f.limit {
		if err := f.makeRoom(u, size); err != nil {
			return nil, err
		}
	}
	if err := u.set(u.bytes + size); err != nil {
		return nil, err
	}
	if err := f.fs.MkdirAll(f.subdir(id)); err != nil {
		return nil, err
	}
	return f.fs.CreateTemp(temp, size)
}

// tidy surveys the folder once: the count of bytes is corrected, what dead writers left is removed, and so is what is over the limit.
func (f *folder) tidy() error {
	u, err := f.lockUsage()
	if err != nil {
		return err
	}
	defer u.unlock()
	return f.makeRoom(u, 0)
}

// makeRoom surveys the folder and, if there are not size bytes free, removes files: first those set aside, then the least
// recently used. A survey costs a stat a file, so it then frees a sixteenth of the limit more, for the writes to come.
func (f *folder) makeRoom(u *usage, size int64) error {
	files, err := f.files()
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(file file) bool {
		removed := false
		if file.kind == tempFile {
			removed, _ = f.fs.RemoveStale(file.path)
		}
		return removed
	})
	total := int64(0)
	for _, file := range files {
		total += file.info.Size
	}
	if total+size > f.limit {
		slices.SortFunc(files, func(a, b file) int {
			return cmp.Or(-cmp.Compare(a.kind, b.kind), a.info.ModTime.Compare(b.info.ModTime), cmp.Compare(a.path, b.path))
		})
		for _, file := range files {
			if total <= max(f.limit-f.limit/16-size, 0) {
				break
			}
			if file.kind == tempFile {
				continue
			}
			if err := f.fs.Remove(file.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			total -= file.info.Size
		}
	}
	if err := u.set(total); err != nil {
		return err
	}
	if total+size > f.limit {
		return fmt.Errorf("no room for %d bytes: other writers hold %d of %d", size, total, f.limit)
	}
	return nil
}

// usage is the folder's lock and the count of bytes it guards. The count is at least what the files hold: it is raised before a
// file is made and lowered after one is removed, so that who dies in between errs to the safe side. A survey corrects it.
type usage struct {
	lock  vfs.Locked
	bytes int64
}

// lockUsage takes the lock. A count that is missing or senseless reads as too large, which leads to a survey.
func (f *folder) lockUsage() (*usage, error) {
	lock, err := f.fs.Lock(filepath.Join(f.dir, lockName))
	if errors.Is(err, fs.ErrNotExist) { // someone removed the whole folder
		if err = f.fs.MkdirAll(f.dir); err == nil {
			lock, err = f.fs.Lock(filepath.Join(f.dir, lockName))
		}
	}
	if err != nil {
		return nil, err
	}
	u := &usage{lock, f.limit}
	b, err := lock.Contents()
	if err != nil {
		lock.Unlock()
		return nil, err
	}
	if len(b) == 8 {
		u.bytes = int64(min(binary.LittleEndian.Uint64(b), math.MaxInt64/2))
	}
	return u, nil
}

func (u *usage) set(n int64) error {
	var b [8]byte
	u.bytes = max(n, 0)
	binary.LittleEndian.PutUint64(b[:], uint64(u.bytes))
	return u.lock.SetContents(b[:])
}

func (u *usage) unlock() error { return u.lock.Unlock() }

// setAside moves a file to bad/, so that no one finds it under its id; under the lock, so that a survey sees it in one place and not in none.
// moved is false where the file is gone already.
func (f *folder) setAside(id ID) (moved bool, err error) {
	u, err := f.lockUsage()
	if err != nil {
		return false, err
	}
	defer u.unlock()
	if err := f.fs.MkdirAll(filepath.Join(f.dir, badDir)); err != nil {
		return false, err
	}
	err = f.fs.Rename(f.path(id), filepath.Join(f.dir, badDir, fmt.Sprintf("%v.%016x%s", id, rand.Uint64(), blockSuffix)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// remove removes the files of the ids, or with nil all files, and tells which blocks there were.
func (f *folder) remove(ids []ID) (removed map[ID]int64, err error) {
	u, err := f.lockUsage()
	if err != nil {
		return nil, err
	}
	defer u.unlock()
	var files []file
	if ids == nil {
		if files, err = f.files(); err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		if info, err := f.fs.Stat(f.path(id)); err == nil {
			files = append(files, file{f.path(id), blockFile, id, info})
		}
	}
	removed = map[ID]int64{}
	var freed int64
	for _, file := range files {
		gone, ferr := false, error(nil)
		if file.kind == tempFile {
			gone, ferr = f.fs.RemoveStale(file.path)
		} else {
			ferr = f.fs.Remove(file.path)
			gone = ferr == nil
		}
		if ferr != nil && !errors.Is(ferr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("kv: cannot drop: %w", ferr))
		}
		if gone {
			freed += file.info.Size
			if file.kind == blockFile {
				removed[file.id] = file.info.Size
			}
		}
	}
	return removed, errors.Join(err, u.set(u.bytes-freed))
}

// file is a file of ours in the folder.
type file struct {
	path string
	kind fileKind
	id   ID
	info vfs.Info
}

type fileKind uint8

const (
	blockFile fileKind = iota
	tempFile
	badFile // greatest: the first to make room
)

// files lists the files of ours. Files that come and go meanwhile may or may not be in the list; those of others are not.
func (f *folder) files() ([]file, error) {
	subdirs, err := f.fs.List(f.dir)
	if err != nil {
		return nil, err
	}
	var files []file
	for _, sub := range subdirs {
		if !sub.Dir || (len(sub.Name) != 2 && sub.Name != badDir) {
			continue
		}
		infos, err := f.fs.List(filepath.Join(f.dir, sub.Name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, info := range infos {
			if kind, id, ok := parseName(sub.Name, info.Name); ok && !info.Dir {
				files = append(files, file{filepath.Join(f.dir, sub.Name, info.Name), kind, id, info})
			}
		}
	}
	return files, nil
}

// parseName tells what a file is by its name and subfolder.
func parseName(subdir, name string) (kind fileKind, id ID, ok bool) {
	stem, suffix := strings.TrimSuffix(name, filepath.Ext(name)), filepath.Ext(name)
	digits, mark, marked := strings.Cut(stem, ".")
	id, ok = ParseID(digits)
	ok = ok && marked == (len(mark) == 16) && (subdir == badDir || strings.HasPrefix(digits, subdir))
	switch {
	case suffix == blockSuffix && subdir == badDir && marked:
		return badFile, id, ok
	case suffix == blockSuffix && subdir != badDir && !marked:
		return blockFile, id, ok
	case suffix == tempSuffix && subdir != badDir && marked:
		return tempFile, id, ok
	}
	return 0, ID{}, false
}

// inspect reads a file's header for a list.
func (f *folder) inspect(path string) (h header, err error) {
	m, err := f.fs.Map(path)
	if err != nil {
		return header{}, err
	}
	defer m.Close()
	err = guarded(m.Data, func() error {
		h, err = parseHeader(m.Data)
		return err
	})
	if bad, ok := errors.AsType[*FormatError](err); ok {
		bad.Path = path
	}
	return h, err
}
