// Package kv keeps the keys and values of blocks: computed once, immutable, found by what they were computed from.
// An ID covers every input of the computation (see Inputs); the bytes under it are never changed, only removed.
// A Store holds blocks in memory and, where it is given a folder, in one file each, laid out as docs/block-format.md says.
package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// Limits that hold where Options leaves them zero.
const (
	DefaultRAMBytes  = 1 << 30
	DefaultDiskBytes = 20 << 30
)

// maxQueueBytes may wait to be written before Put waits too.
const maxQueueBytes = 256 << 20

// touchEvery is how stale the time of last use in a folder may be: a block that is used often is not touched each time.
const touchEvery = time.Minute

var (
	// ErrMissing: no tier has the block, or what was there was not whole and has been set aside. Compute it and Put it.
	ErrMissing = errors.New("kv: no such block")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("kv: the store is closed")
)

// A Store holds, at every moment and for its files after a crash at any point:
//  1. A file under the name of an ID is whole: header and checksums hold, or it is set aside by the first Get that meets it.
//  2. The files, temporary ones and those set aside included, are at most DiskBytes, counted over all processes.
//  3. The blocks in memory are at most RAMBytes, or every one of them is leased or waits to be written.
//  4. A leased block's bytes do not move, change or unmap until its last Close, whatever happens to its file or the store.
//  5. A block is in the idle ring if and only if it is in the map, has no lease and does not wait to be written.
//  6. The counts of bytes are the sums of what they count.
//
// check walks those that concern memory, checkFolder those of the folder.
type Store struct {
	ramLimit   int64
	queueLimit int64
	warn       func(error)
	touchEvery time.Duration
	folder     *folder // nil: memory only

	mu       sync.Mutex
	changed  sync.Cond           // on mu: whenever something below changes that someone may wait for
	blocks   map[ID]*block       // the blocks a Get can find in memory
	idle     block               // ring of those that may be evicted, most recently used at idle.next
	detached map[*block]struct{} // not to be found any more, but leased
	ram      int64               // bytes of all in blocks
	garbage  []*block            // to be unmapped by unlock

	loading  map[ID]struct{} // being read from the folder, by one Get each
	dropping bool            // no Get may read from the folder
	queue    []*block        // to be written, oldest first
	writing  *block          // taken from the queue's head
	queued   int64           // bytes of queue and writing
	tidied   bool            // the writer has surveyed the folder

	unwritten   error // first failed write since the last Flush
	writesFail  bool  // the last write failed, and was warned of
	readsFail   bool  // the last read failed, and was warned of
	closed      bool
	writerEnded chan struct{} // nil: memory only
}

// Options of a store; the zero value is sensible.
type Options struct {
	RAMBytes   int64  // bound of the blocks kept in memory, mapped files included; 0: DefaultRAMBytes
	DiskBytes  int64  // bound of the folder; 0: DefaultDiskBytes
	KernelPath string // which kernels compute the blocks that are Put, for the files' headers; at most 40 bytes
	// Warn is told what went wrong without failing a request: a file that was set aside, or that could not be written or read,
	// and at Open that others can write to the folder.
	// A run of failures is told once. It is called from any goroutine and must not call the store. nil: nobody is told.
	Warn func(error)
}

// Open returns a store over the folder dir, which is made if it is missing; "" keeps blocks in memory only.
func Open(dir string, o Options) (*Store, error) { return openOn(vfs.OS{}, dir, o) }

func openOn(files vfs.FS, dir string, o Options) (*Store, error) {
	if o.RAMBytes < 0 || o.DiskBytes < 0 {
		return nil, fmt.Errorf("kv: limits: found %d bytes of RAM and %d of disk, expected none below 0", o.RAMBytes, o.DiskBytes)
	}
	if len(o.KernelPath) > maxKernelPath || !utf8.ValidString(o.KernelPath) || strings.Contains(o.KernelPath, "\x00") {
		return nil, fmt.Errorf("kv: kernel path: found %q, expected at most %d bytes of text", o.KernelPath, maxKernelPath)
	}
	s := &Store{
		ramLimit:   o.RAMBytes,
		queueLimit: maxQueueBytes,
		warn:       o.Warn,
		touchEvery: touchEvery,
		blocks:     map[ID]*block{},
		detached:   map[*block]struct{}{},
		loading:    map[ID]struct{}{},
	}
	s.changed.L = &s.mu
	s.idle.next, s.idle.prev = &s.idle, &s.idle
	if s.ramLimit == 0 {
		s.ramLimit = DefaultRAMBytes
	}
	if o.DiskBytes == 0 {
		o.DiskBytes = DefaultDiskBytes
	}
	if s.warn == nil {
		s.warn = func(error) {}
	}
	if dir == "" {
		return s, nil
	}
	s.folder = &folder{fs: files, dir: dir, limit: o.DiskBytes, kernelPath: o.KernelPath}
	if err := s.folder.open(); err != nil {
		return nil, err
	}
	if info, err := files.Stat(dir); err == nil && info.Mode&0o022 != 0 {
		s.warn(fmt.Errorf("kv: %s: found mode %04o, expected 0700: others can write here, and whoever can may change what the model reads", dir, info.Mode))
	}
	s.writerEnded = make(chan struct{})
	go s.writer()
	return s, nil
}

// Get returns the block under id from the nearest tier, or ErrMissing. The caller must Close the lease;
// until then the bytes stay where they are. A block that comes from a file has been verified, all of it.
// Safe for concurrent use; of several Gets of one block, one reads the file and the others find it in memory.
func (s *Store) Get(id ID, shape Shape) (*Lease, error) {
	l, err := s.Lend(id, shape)
	if err != nil {
		return nil, err
	}
	if m := l.block.mapping; m != nil && !l.Whole() {
		m.Ahead(0, len(m.Data))
	}
	for i := range shape.Layers {
		if l.Layer(i) != nil {
			l.Close()
			return nil, ErrMissing
		}
	}
	return l, nil
}

// Lend is Get for who reads layer by layer: of a file only the header has been verified, and Layer has to be asked for each layer
// before its bytes are used.
func (s *Store) Lend(id ID, shape Shape) (*Lease, error) {
	if err := shape.validate(); err != nil {
		return nil, fmt.Errorf("kv: block %v: %w", id, err)
	}
	s.mu.Lock()
	for {
		if s.closed {
			s.unlock()
			return nil, ErrClosed
		}
		if b := s.blocks[id]; b != nil {
			return s.getFromRAM(b, shape) // unlocks
		}
		if s.folder == nil {
			s.unlock()
			return nil, ErrMissing
		}
		if _, busy := s.loading[id]; !busy && !s.dropping {
			break
		}
		s.changed.Wait()
	}
	s.loading[id] = struct{}{}
	s.unlock()

	m, err := s.folder.load(id, shape)

	s.mu.Lock()
	delete(s.loading, id)
	s.changed.Broadcast()
	if err != nil {
		s.unlock()
		return nil, s.missing(id, err)
	}
	s.readsFail = false
	b, source := s.blocks[id], RAM
	if b == nil { // else it was Put meanwhile
		b, source = &block{id: id, shape: shape, payload: payloadOf(m.Data, shape), mapping: m, touched: time.Now()}, Disk
		s.attach(b)
	} else {
		s.garbage = append(s.garbage, &block{mapping: m})
	}
	l := s.lease(b, source)
	s.evict()
	s.unlock()
	s.folder.touch(id)
	return l, nil
}

// getFromRAM leases a block of the map, after a look at its file if it has one. It is called with mu locked and unlocks it.
func (s *Store) getFromRAM(b *block, shape Shape) (*Lease, error) {
	l := s.lease(b, RAM)
	touch := s.folder != nil && time.Since(b.touched) >= s.touchEvery
	if touch {
		b.touched = time.Now()
	}
	s.unlock()
	if touch {
		s.folder.touch(b.id)
	}
	var err error
	if b.shape != shape {
		err = misfit("shape of block "+b.id.String(), b.shape, shape)
	} else if b.mapping != nil {
		err = s.folder.changed(b.mapping)
	}
	if err != nil {
		l.Close()
		s.setAside(b.id, b, err)
		return nil, ErrMissing
	}
	return l, nil
}

// missing turns an error of loading a block into ErrMissing, after doing and saying what it asks for.
func (s *Store) missing(id ID, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrMissing
	}
	if _, ok := errors.AsType[*FormatError](err); ok {
		s.setAside(id, nil, err)
		return ErrMissing
	}
	s.mu.Lock()
	again := s.readsFail
	s.readsFail = true
	s.unlock()
	if !again {
		s.warn(fmt.Errorf("kv: stored blocks cannot be read and are computed again: %w", err))
	}
	return ErrMissing
}

// Put takes ownership of payload, which Alloc made and shape describes, and returns a lease on it at once; the file is written
// in the background. A block that the store already holds in memory stays instead: equal ids have equal bytes.
// Put waits only while more bytes wait to be written than the disk has kept up with (256 MiB).
func (s *Store) Put(id ID, shape Shape, payload []byte) (*Lease, error) {
	if id == (ID{}) {
		return nil, errors.New("kv: block id: found zero, expected the ID of its inputs")
	}
	if err := shape.validate(); err != nil {
		return nil, fmt.Errorf("kv: block %v: %w", id, err)
	}
	if len(payload) != shape.Bytes() || !aligned(payload) {
		return nil, fmt.Errorf("kv: block %v: payload: found %d bytes at %p, expected %d at a multiple of %d, from Alloc", id, len(payload), payload, shape.Bytes(), alignment)
	}
	s.mu.Lock()
	for s.queued > s.queueLimit && !s.closed {
		s.changed.Wait()
	}
	if s.closed {
		s.unlock()
		return nil, ErrClosed
	}
	if b := s.blocks[id]; b != nil {
		if l, err := s.getFromRAM(b, shape); err == nil { // unlocks
			return l, nil
		}
		return s.Put(id, shape, payload) // that one was set aside
	}
	b := &block{id: id, shape: shape, payload: payload, touched: time.Now()}
	s.attach(b)
	l := s.lease(b, Computed)
	if s.folder != nil {
		b.waiting = true
		s.queue = append(s.queue, b)
		s.queued += int64(len(payload))
		s.changed.Broadcast()
	}
	s.evict()
	s.unlock()
	return l, nil
}

// writer is the goroutine that surveys the folder once and then writes what was Put, until the store is closed and all is written.
func (s *Store) writer() {
	defer close(s.writerEnded)
	s.wrote(nil, s.folder.tidy())
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.changed.Wait()
		}
		if len(s.queue) == 0 {
			s.unlock()
			return
		}
		b := s.queue[0]
		s.queue[0], s.queue = nil, s.queue[1:]
		s.writing = b
		s.unlock()
		s.wrote(b, s.folder.write(b.id, b.shape, b.payload))
	}
}

// wrote notes the outcome of writing b, or with nil of the survey.
func (s *Store) wrote(b *block, err error) {
	s.mu.Lock()
	if b == nil {
		s.tidied = true
	} else {
		s.writing = nil
		s.unqueue(b)
	}
	again := s.writesFail
	s.writesFail = err != nil
	if err != nil && s.unwritten == nil {
		s.unwritten = fmt.Errorf("kv: %s: computed blocks cannot be written and live in memory only: %w", s.folder.dir, err)
	}
	told := s.unwritten
	s.evict()
	s.changed.Broadcast()
	s.unlock()
	if err != nil && !again {
		s.warn(told)
	}
}

// unqueue makes b, which does not wait to be written any more, a block like any other.
func (s *Store) unqueue(b *block) {
	b.waiting = false
	s.queued -= int64(len(b.payload))
	s.settle(b)
}

// Flush waits until everything that was Put before is written, and returns the first failure since the last Flush.
func (s *Store) Flush() error {
	s.mu.Lock()
	defer s.unlock()
	for s.folder != nil && (len(s.queue) > 0 || s.writing != nil || !s.tidied) {
		s.changed.Wait()
	}
	err := s.unwritten
	s.unwritten = nil
	return err
}

// Close waits until everything is written and ends the store. Open leases stay valid until they are closed.
// Blocks that could not be written are lost; Warn has been told.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.unlock()
		return ErrClosed
	}
	s.closed = true
	s.changed.Broadcast()
	s.unlock()
	if s.writerEnded != nil {
		<-s.writerEnded
	}
	s.mu.Lock()
	for len(s.loading) > 0 || s.dropping {
		s.changed.Wait()
	}
	for _, b := range s.blocks {
		s.detach(b)
	}
	s.unlock()
	return nil
}

// Fault tells which leased block's mapped file holds the address. A file that is cut short under its mapping makes reading fault;
// whoever reads payloads runs under debug.SetPanicOnFault, recovers the runtime.Error, asks here with its Addr() and calls SetAside.
func (s *Store) Fault(addr uintptr) (path string, id ID, ok bool) {
	s.mu.Lock()
	defer s.unlock()
	at := func(b *block) bool { return b.mapping != nil && b.leases > 0 && within(addr, b.mapping.Data) }
	for _, b := range s.blocks {
		if at(b) {
			return b.mapping.path, b.id, true
		}
	}
	for b := range s.detached {
		if at(b) {
			return b.mapping.path, b.id, true
		}
	}
	return "", ID{}, false
}

// SetAside takes a block whose file turned out to be wrong out of the store: the next Get does not find it, the file is kept in
// the subfolder bad, and Warn is told the reason. Leases on it stay valid. A block that this process has computed and still
// holds in memory was not read from a file, and stays.
func (s *Store) SetAside(id ID, reason error) {
	s.mu.Lock()
	b := s.blocks[id]
	s.unlock()
	if s.folder == nil || (b != nil && b.mapping == nil) {
		return
	}
	s.setAside(id, b, fmt.Errorf("kv: %s: %w", s.folder.path(id), reason))
}

// setAside takes b out of memory, if it is not nil, and its file out of the folder, unless another one has taken its place.
func (s *Store) setAside(id ID, b *block, reason error) {
	s.mu.Lock()
	if b != nil && s.blocks[id] == b {
		s.cancel(b)
		s.detach(b)
	}
	s.unlock()
	if s.folder == nil {
		s.warn(fmt.Errorf("kv: a block in memory was discarded and is computed again: %w", reason))
		return
	}
	if b != nil && b.mapping != nil {
		if now, err := s.folder.fs.Stat(s.folder.path(id)); err == nil && now.Inode != b.mapping.Info.Inode {
			return
		}
	}
	switch moved, err := s.folder.setAside(id); {
	case err != nil:
		s.warn(fmt.Errorf("%w; the block is computed again, but its file cannot be moved away: %w", reason, err))
	case moved || b != nil: // else another goroutine or process was quicker, and has told
		s.warn(fmt.Errorf("%w; the file was moved to the subfolder %s and the block is computed again", reason, badDir))
	}
}

// Drop removes blocks from memory and folder and tells how many there were and their bytes on disk, or in memory if only there.
// Leases stay valid. Other processes that have a block in memory keep it there.
func (s *Store) Drop(ids ...ID) (blocks int, bytes int64, err error) {
	if len(ids) == 0 {
		return 0, 0, nil
	}
	return s.drop(ids)
}

// DropAll is Drop of all blocks, and of the files that were set aside.
func (s *Store) DropAll() (blocks int, bytes int64, err error) { return s.drop(nil) }

func (s *Store) drop(ids []ID) (blocks int, bytes int64, err error) {
	doomed := func(id ID) bool { return ids == nil || slices.Contains(ids, id) }
	s.mu.Lock()
	for s.dropping && !s.closed {
		s.changed.Wait()
	}
	if s.closed {
		s.unlock()
		return 0, 0, ErrClosed
	}
	s.dropping = true // from here on no Get brings a block back from its file
	dropped := map[ID]int64{}
	for _, b := range slices.Clone(s.queue) {
		if doomed(b.id) {
			s.cancel(b)
			dropped[b.id] = int64(len(b.payload))
		}
	}
	s.evict()
	for s.inFlight(doomed) {
		s.changed.Wait()
	}
	for id, b := range s.blocks {
		if doomed(id) {
			s.cancel(b)
			s.detach(b)
			dropped[id] = int64(len(b.payload))
		}
	}
	s.unlock()

	if s.folder != nil {
		var removed map[ID]int64
		removed, err = s.folder.remove(ids)
		for id, n := range removed {
			dropped[id] = n
		}
	}

	s.mu.Lock()
	s.dropping = false
	s.changed.Broadcast()
	s.unlock()
	for _, n := range dropped {
		bytes += n
	}
	return len(dropped), bytes, err
}

// inFlight reports whether a block is between memory and its file, in either direction.
func (s *Store) inFlight(which func(ID) bool) bool {
	if s.writing != nil && which(s.writing.id) {
		return true
	}
	for id := range s.loading {
		if which(id) {
			return true
		}
	}
	return false
}

// Info describes a block.
type Info struct {
	ID         ID
	Shape      Shape
	Bytes      int64  // of its file, or of its payload in memory
	KernelPath string // which kernels computed it; "" where only memory has it
	LastUsed   time.Time
	Path       string // "": only memory has it
	Err        error  // the file's header is not right; Shape and KernelPath are unknown, and the first Get will set it aside
}

// List lists the blocks in the folder, by the headers of their files, and those that only memory has; most recently used first.
func (s *Store) List() ([]Info, error) {
	var infos []Info
	onDisk := map[ID]bool{}
	if s.folder != nil {
		files, err := s.folder.files()
		if err != nil {
			return nil, fmt.Errorf("kv: cannot list: %w", err)
		}
		for _, file := range files {
			if file.kind != blockFile {
				continue
			}
			h, err := s.folder.inspect(file.path)
			if errors.Is(err, fs.ErrNotExist) { // removed since
				continue
			}
			onDisk[file.id] = true
			infos = append(infos, Info{ID: file.id, Shape: h.shape, Bytes: file.info.Size, KernelPath: h.kernelPath, LastUsed: file.info.ModTime, Path: file.path, Err: err})
		}
	}
	s.mu.Lock()
	for id, b := range s.blocks {
		if !onDisk[id] {
			infos = append(infos, Info{ID: id, Shape: b.shape, Bytes: int64(len(b.payload)), LastUsed: b.touched})
		}
	}
	s.unlock()
	slices.SortFunc(infos, func(a, b Info) int { return b.LastUsed.Compare(a.LastUsed) })
	return infos, nil
}

// Stat is how full a store is.
type Stat struct {
	Dir       string // "": memory only
	Blocks    int    // in the folder
	DiskBytes int64  // of all files in the folder
	DiskLimit int64
	SetAside  int // files that were not whole, kept in the subfolder bad
	RAMBlocks int
	RAMBytes  int64
	RAMLimit  int64
}

// Stat counts the folder's files and the blocks in memory.
func (s *Store) Stat() (Stat, error) {
	s.mu.Lock()
	st := Stat{RAMBlocks: len(s.blocks), RAMBytes: s.ram, RAMLimit: s.ramLimit}
	s.unlock()
	if s.folder == nil {
		return st, nil
	}
	st.Dir, st.DiskLimit = s.folder.dir, s.folder.limit
	files, err := s.folder.files()
	if err != nil {
		return Stat{}, fmt.Errorf("kv: cannot count: %w", err)
	}
	for _, file := range files {
		st.DiskBytes += file.info.Size
		switch file.kind {
		case blockFile:
			st.Blocks++
		case badFile:
			st.SetAside++
		}
	}
	return st, nil
}
