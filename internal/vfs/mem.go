package vfs

import (
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Op names an operation for Mem.Fail.
type Op string

// The operations. Those up to OpSetLock change something.
const (
	OpMkdir   Op = "mkdir"
	OpCreate  Op = "create"
	OpWrite   Op = "write"
	OpSync    Op = "sync"
	OpRename  Op = "rename"
	OpRemove  Op = "remove"
	OpSyncDir Op = "syncdir"
	OpTouch   Op = "touch"
	OpSetLock Op = "setlock"
	OpLock    Op = "lock"
	OpMap     Op = "map"
	OpList    Op = "list"
	OpStat    Op = "stat"
)

// Changes reports whether the operation changes something, so that a power cut before or after it could differ.
func (op Op) Changes() bool { return op != OpLock && op != OpMap && op != OpList && op != OpStat }

// Mem is a file system in memory.
//  1. A file's bytes survive a power cut for certain once they were synced; otherwise all, none or a part of them.
//  2. What happened to the names in a folder survives once the folder was synced; otherwise the first so many changes of it, in order.
//  3. Made folders survive.
type Mem struct {
	// Fail, if not nil, is asked before every operation and may let it fail. It is called with a lock held and must not call the Mem.
	Fail func(op Op, path string) error

	mu    sync.Mutex
	dirs  map[string]*memDir
	inode uint64
}

type memDir struct {
	now, durable map[string]*memFile
	unsynced     []map[string]*memFile // changes since the last SyncDir; nil: the name was removed
}

func (d *memDir) change(c map[string]*memFile) {
	apply(d.now, c)
	d.unsynced = append(d.unsynced, c)
}

func apply(names, c map[string]*memFile) {
	for name, f := range c {
		if f == nil {
			delete(names, name)
		} else {
			names[name] = f
		}
	}
}

type memFile struct {
	inode        uint64
	data, synced []byte
	mod          time.Time
	writing      bool
	lock         *sync.Mutex
}

// NewMem returns an empty file system.
func NewMem() *Mem { return &Mem{dirs: map[string]*memDir{}} }

// AfterPowerCut returns what is left when the power goes now; rng decides what becomes of all that was not synced.
// Nothing of m's state is shared with it; m itself should not be used any more.
func (m *Mem) AfterPowerCut(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := NewMem()
	after.inode = m.inode
	for _, path := range slices.Sorted(maps.Keys(m.dirs)) { // in order, so that a seed repeats
		d := m.dirs[path]
		names := maps.Clone(d.durable)
		for _, c := range d.unsynced[:rng.IntN(len(d.unsynced)+1)] {
			apply(names, c)
		}
		left := &memDir{now: map[string]*memFile{}, durable: map[string]*memFile{}}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			f := names[name]
			data := tear(f, rng)
			left.now[name] = &memFile{inode: f.inode, data: data, synced: data, mod: f.mod, lock: new(sync.Mutex)}
		}
		left.durable = maps.Clone(left.now)
		after.dirs[path] = left
	}
	return after
}

// tear gives what a disk may hold of a file: what was synced, or the newer bytes, whole, with a zero tail, or cut.
func tear(f *memFile, rng *rand.Rand) []byte {
	if slices.Equal(f.data, f.synced) {
		return slices.Clone(f.synced)
	}
	data := slices.Clone(f.data)
	at := rng.IntN(len(data) + 1)
	switch rng.IntN(4) {
	case 0:
		return slices.Clone(f.synced)
	case 1:
		clear(data[at:])
	case 2:
		data = data[:at]
	}
	return data
}

// WriteFile sets the bytes of a file, synced: for tests that damage it.
func (m *Mem) WriteFile(path string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.dirs[filepath.Dir(path)]
	f := d.now[filepath.Base(path)]
	if f == nil {
		f = m.newFile()
		d.now[filepath.Base(path)], d.durable[filepath.Base(path)] = f, f
	}
	f.data, f.synced = slices.Clone(data), slices.Clone(data)
}

func (m *Mem) newFile() *memFile {
	m.inode++
	return &memFile{inode: m.inode, mod: time.Now(), lock: new(sync.Mutex)}
}

// begin locks m and asks Fail.
func (m *Mem) begin(op Op, path string) error {
	m.mu.Lock()
	if m.Fail != nil {
		if err := m.Fail(op, path); err != nil {
			return &fs.PathError{Op: string(op), Path: path, Err: err}
		}
	}
	return nil
}

// find gives the folder and file at path; err tells which is missing.
func (m *Mem) find(op Op, path string) (*memDir, *memFile, error) {
	d := m.dirs[filepath.Dir(path)]
	if d == nil || d.now[filepath.Base(path)] == nil {
		return d, nil, &fs.PathError{Op: string(op), Path: path, Err: fs.ErrNotExist}
	}
	return d, d.now[filepath.Base(path)], nil
}

func (m *Mem) MkdirAll(dir string) error {
	err := m.begin(OpMkdir, dir)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	for p := filepath.Clean(dir); m.dirs[p] == nil; p = filepath.Dir(p) {
		if _, f, _ := m.find(OpMkdir, p); f != nil {
			return &fs.PathError{Op: "mkdir", Path: p, Err: errors.New("not a directory")}
		}
		m.dirs[p] = &memDir{now: map[string]*memFile{}, durable: map[string]*memFile{}}
	}
	return nil
}

func (m *Mem) CreateTemp(path string, size int64) (File, error) {
	err := m.begin(OpCreate, path)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, f, _ := m.find(OpCreate, path)
	switch {
	case d == nil:
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrNotExist}
	case f != nil:
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f = m.newFile()
	f.data, f.writing = make([]byte, size), true
	d.change(map[string]*memFile{filepath.Base(path): f})
	return &memWriter{m: m, path: path, file: f}, nil
}

type memWriter struct {
	m    *Mem
	path string
	file *memFile
	at   int
}

func (w *memWriter) Write(p []byte) (int, error) {
	err := w.m.begin(OpWrite, w.path)
	defer w.m.mu.Unlock()
	if err != nil {
		n := copy(w.file.data[min(w.at, len(w.file.data)):], p[:len(p)/2]) // a write that fails may have come half way
		return n, err
	}
	w.file.data = append(w.file.data[:w.at], append(slices.Clone(p), w.file.data[min(w.at+len(p), len(w.file.data)):]...)...)
	w.at += len(p)
	w.file.mod = time.Now()
	return len(p), nil
}

func (w *memWriter) Sync() error {
	err := w.m.begin(OpSync, w.path)
	defer w.m.mu.Unlock()
	if err == nil {
		w.file.synced = slices.Clone(w.file.data)
	}
	return err
}

func (w *memWriter) Close() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	w.file.writing = false
	return nil
}

func (m *Mem) RemoveStale(path string) (bool, error) {
	err := m.begin(OpRemove, path)
	defer m.mu.Unlock()
	if err != nil {
		return false, err
	}
	d, f, err := m.find(OpRemove, path)
	if err != nil || f.writing {
		return false, err
	}
	d.change(map[string]*memFile{filepath.Base(path): nil})
	return true, nil
}

// Map gives a copy: these bytes cannot be cut short.
func (m *Mem) Map(path string) (*Mapping, error) {
	err := m.begin(OpMap, path)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	_, f, err := m.find(OpMap, path)
	if err != nil {
		return nil, err
	}
	return &Mapping{Data: slices.Clone(f.data), Info: f.info(path)}, nil
}

func (f *memFile) info(path string) Info {
	return Info{Name: filepath.Base(path), Size: int64(len(f.data)), ModTime: f.mod, Mode: 0o600, Inode: f.inode}
}

func (m *Mem) Rename(from, to string) error {
	err := m.begin(OpRename, from)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d, f, err := m.find(OpRename, from)
	if err != nil {
		return err
	}
	target := m.dirs[filepath.Dir(to)]
	switch target {
	case nil:
		return &fs.PathError{Op: "rename", Path: to, Err: fs.ErrNotExist}
	case d:
		d.change(map[string]*memFile{filepath.Base(from): nil, filepath.Base(to): f})
	default:
		target.change(map[string]*memFile{filepath.Base(to): f})
		d.change(map[string]*memFile{filepath.Base(from): nil})
	}
	return nil
}

func (m *Mem) Remove(path string) error {
	err := m.begin(OpRemove, path)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d, _, err := m.find(OpRemove, path)
	if err != nil {
		return err
	}
	d.change(map[string]*memFile{filepath.Base(path): nil})
	return nil
}

func (m *Mem) SyncDir(dir string) error {
	err := m.begin(OpSyncDir, dir)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d := m.dirs[filepath.Clean(dir)]
	if d == nil {
		return &fs.PathError{Op: "sync", Path: dir, Err: fs.ErrNotExist}
	}
	d.durable, d.unsynced = maps.Clone(d.now), nil
	return nil
}

func (m *Mem) List(dir string) ([]Info, error) {
	err := m.begin(OpList, dir)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	d := m.dirs[dir]
	if d == nil {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
	}
	var infos []Info
	for name, f := range d.now {
		infos = append(infos, f.info(name))
	}
	for p := range m.dirs {
		if p != dir && filepath.Dir(p) == dir {
			infos = append(infos, Info{Name: filepath.Base(p), Dir: true, Mode: 0o700})
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

func (m *Mem) Stat(path string) (Info, error) {
	err := m.begin(OpStat, path)
	defer m.mu.Unlock()
	if err != nil {
		return Info{}, err
	}
	if m.dirs[filepath.Clean(path)] != nil {
		return Info{Name: filepath.Base(path), Dir: true, Mode: 0o700}, nil
	}
	_, f, err := m.find(OpStat, path)
	if err != nil {
		return Info{}, err
	}
	return f.info(path), nil
}

func (m *Mem) Touch(path string, t time.Time) error {
	err := m.begin(OpTouch, path)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	_, f, err := m.find(OpTouch, path)
	if err == nil {
		f.mod = t
	}
	return err
}

func (m *Mem) Lock(path string) (Locked, error) {
	err := m.begin(OpLock, path)
	if err != nil {
		m.mu.Unlock()
		return nil, err
	}
	d, f, err := m.find(OpLock, path)
	if d == nil {
		m.mu.Unlock()
		return nil, err
	}
	if f == nil {
		f = m.newFile()
		d.change(map[string]*memFile{filepath.Base(path): f})
	}
	m.mu.Unlock()
	f.lock.Lock()
	return &memLocked{m, path, f}, nil
}

type memLocked struct {
	m    *Mem
	path string
	file *memFile
}

func (l *memLocked) Contents() ([]byte, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return slices.Clone(l.file.data), nil
}

func (l *memLocked) SetContents(b []byte) error {
	err := l.m.begin(OpSetLock, l.path)
	defer l.m.mu.Unlock()
	if err == nil {
		l.file.data = append(slices.Clone(b), l.file.data[min(len(b), len(l.file.data)):]...)
	}
	return err
}

func (l *memLocked) Unlock() error {
	l.file.lock.Unlock()
	return nil
}
