// Package kv keeps the keys and values of blocks: computed once, immutable, found by what they were computed from.
// An ID covers every input of the computation (see Inputs); the bytes under it are never changed, only removed.
// A Store holds blocks in memory and, where it is given a folder, in one file each, laid out as docs/block-format.md says.
package kv

import (
	"errors"
	"fmt"
	"sync"
)

// Limits that hold where Options leaves them zero.
const (
	DefaultRAMBytes  = 1 << 30
	DefaultDiskBytes = 20 << 30
)

var (
	// ErrMissing: no tier has the block, or what was there was not whole and has been set aside. Compute it and Put it.
	ErrMissing = errors.New("kv: no such block")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("kv: the store is closed")
)

// Options of a store; the zero value is sensible.
type Options struct {
	RAMBytes   int64  // bound of the blocks kept in memory, mapped files included; 0: DefaultRAMBytes
	DiskBytes  int64  // bound of the folder; 0: DefaultDiskBytes
	KernelPath string // which kernels compute the blocks that are Put, written into their headers; at most 40 bytes
	// Warn is told what went wrong without failing a request: a block that was not whole, a block that could not be written.
	// It may be called from any goroutine, and must not call the store. nil: nobody is told.
	Warn func(error)
}

type Store struct {
	options Options

	mu     sync.Mutex
	blocks map[ID]*block
	idle   block // ring of the blocks that may be evicted, most recently used at idle.next
	ram    int64 // bytes of all blocks in the map
	closed bool
}

// Open returns a store over the folder dir, which is made if it is missing; "" keeps blocks in memory only.
func Open(dir string, o Options) (*Store, error) {
	if o.RAMBytes < 0 || o.DiskBytes < 0 {
		return nil, fmt.Errorf("kv: limits: found %d bytes of RAM and %d of disk, expected none below 0", o.RAMBytes, o.DiskBytes)
	}
	if o.RAMBytes == 0 {
		o.RAMBytes = DefaultRAMBytes
	}
	if o.DiskBytes == 0 {
		o.DiskBytes = DefaultDiskBytes
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	s := &Store{options: o, blocks: map[ID]*block{}}
	s.idle.next, s.idle.prev = &s.idle, &s.idle
	return s, nil
}

// Get returns the block under id from the nearest tier, or ErrMissing. The caller must Close the lease;
// until then the bytes stay where they are. Safe for concurrent use.
func (s *Store) Get(id ID, shape Shape) (*Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	b := s.blocks[id]
	if b == nil || b.shape != shape {
		return nil, ErrMissing
	}
	return s.lease(b, RAM), nil
}

// Put takes ownership of payload, which Alloc made and shape describes, and returns a lease on it at once.
// A block that the store already holds in memory stays: equal ids have equal bytes.
func (s *Store) Put(id ID, shape Shape, payload []byte) (*Lease, error) {
	if err := shape.validate(); err != nil {
		return nil, fmt.Errorf("kv: block %v: %w", id, err)
	}
	if len(payload) != shape.Bytes() || !aligned(payload) {
		return nil, fmt.Errorf("kv: block %v: payload: found %d bytes at %p, expected %d from Alloc", id, len(payload), payload, shape.Bytes())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	b := s.blocks[id]
	if b == nil {
		b = &block{id: id, shape: shape, payload: payload}
		s.blocks[id] = b
		s.ram += int64(len(payload))
	}
	l := s.lease(b, Computed)
	for s.ram > s.options.RAMBytes && s.idle.prev != &s.idle {
		old := s.idle.prev
		old.unlink()
		delete(s.blocks, old.id)
		s.ram -= int64(len(old.payload))
	}
	return l, nil
}

func (s *Store) lease(b *block, from Source) *Lease {
	if b.leases == 0 && b.next != nil {
		b.unlink()
	}
	b.leases++
	return &Lease{store: s, block: b, source: from}
}

// Flush waits until everything that was Put is written.
func (s *Store) Flush() error { return nil }

// Close ends the store. Leases that are still open stay valid until they are closed.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

type block struct {
	id         ID
	shape      Shape
	payload    []byte
	leases     int
	next, prev *block // in the idle ring, nil outside it
}

func (b *block) unlink() {
	b.prev.next, b.next.prev = b.next, b.prev
	b.next, b.prev = nil, nil
}

// Source tells where a lease's block came from.
type Source uint8

// The sources, nearest first.
const (
	Computed Source = iota // handed to Put
	RAM
	Disk
)

func (s Source) String() string { return [...]string{"computed", "ram", "disk"}[s] }

// A Lease keeps a block's bytes in place until it is closed.
type Lease struct {
	store  *Store
	block  *block
	source Source
	closed bool
}

func (l *Lease) ID() ID          { return l.block.id }
func (l *Lease) Shape() Shape    { return l.block.shape }
func (l *Lease) Source() Source  { return l.source }
func (l *Lease) Payload() []byte { return l.block.payload }

// Close ends the lease; Payload must not be read any more. Close exactly once.
func (l *Lease) Close() {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.closed {
		panic("kv: lease closed twice")
	}
	l.closed = true
	b := l.block
	b.leases--
	if b.leases == 0 && s.blocks[b.id] == b {
		b.next, b.prev = s.idle.next, &s.idle
		b.next.prev, s.idle.next = b, b
	}
}

// Fault tells which leased block's mapped file holds the address.
func (s *Store) Fault(addr uintptr) (path string, id ID, ok bool) { return "", ID{}, false }

// SetAside removes a block whose bytes turned out to be wrong, so that the next Get does not find it.
func (s *Store) SetAside(id ID, reason error) {}

const formatVersion = 1
