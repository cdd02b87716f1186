package kv

import (
	"slices"
	"time"
)

// A Lease keeps a block's bytes in place until it is closed.
type Lease struct {
	store  *Store
	block  *block
	source Source
	closed bool // guarded by the store's lock
}

// ID is the block's.
func (l *Lease) ID() ID { return l.block.id }

// Shape tells how Payload is laid out.
func (l *Lease) Shape() Shape { return l.block.shape }

// Source tells where the Get or Put that gave this lease found the block.
func (l *Lease) Source() Source { return l.source }

// Payload is the block's keys and values, to be read only: after Lend, the layers that Layer was asked for. A payload from a file is
// mapped: see Store.Fault.
func (l *Lease) Payload() []byte { return l.block.payload }

// Layer returns when the bytes of a layer are read and verified; it does both unless another lease on the block did or does. An error
// tells that the file was not whole: the block has been set aside, and the lease is good only to be closed.
func (l *Lease) Layer(layer int) error {
	b := l.block
	if b.mapping == nil {
		return nil
	}
	err := b.mapping.verify(layer)
	if err != nil {
		b.mapping.aside.Do(func() { l.store.setAside(b.id, b, err) })
	}
	return err
}

// Ahead has the disk bring layers that Layer will be asked for, those below to, without waiting.
func (l *Lease) Ahead(from, to int) {
	if m := l.block.mapping; m != nil && from < to {
		start, _ := m.layer(from)
		_, end := m.layer(to - 1)
		m.Ahead(start, end)
	}
}

// Whole tells whether every layer is read and verified already.
func (l *Lease) Whole() bool {
	m := l.block.mapping
	return m == nil || int(m.verified.Load()) == len(m.once)
}

// Close ends the lease; Payload must not be read any more. Close exactly once.
func (l *Lease) Close() {
	s := l.store
	s.mu.Lock()
	defer s.unlock()
	if l.closed {
		panic("kv: the lease on block " + l.block.id.String() + " was closed twice")
	}
	l.closed = true
	l.block.leases--
	s.settle(l.block)
	s.evict()
}

// Source tells where a block was found.
type Source uint8

// The sources.
const (
	Computed Source = iota // this Put brought it
	RAM                    // in this process's memory, or mapped by it already
	Disk                   // in its file
)

func (s Source) String() string { return [...]string{"computed", "ram", "disk"}[s] }

// block is a block in memory: computed by this process, or a mapped file.
type block struct {
	id      ID
	shape   Shape
	payload []byte
	mapping *mapped // nil: payload is on the heap

	// Guarded by the store's lock.
	leases     int
	waiting    bool // to be written
	touched    time.Time
	next, prev *block // in the idle ring, nil outside it
}

// The methods below are called with the store's lock held.

// attach makes a block one that Get finds. The caller leases it at once.
func (s *Store) attach(b *block) {
	s.blocks[b.id] = b
	s.ram += int64(len(b.payload))
}

// detach makes a block one that Get does not find; its bytes go with its last lease.
func (s *Store) detach(b *block) {
	delete(s.blocks, b.id)
	s.ram -= int64(len(b.payload))
	b.unlink()
	s.detached[b] = struct{}{}
	s.settle(b)
}

func (s *Store) lease(b *block, from Source) *Lease {
	b.unlink()
	b.leases++
	return &Lease{store: s, block: b, source: from}
}

// settle puts a block where it belongs once nobody needs it: in the idle ring, or away.
func (s *Store) settle(b *block) {
	if b.leases > 0 || b.waiting {
		return
	}
	if _, ok := s.detached[b]; ok {
		delete(s.detached, b)
		s.garbage = append(s.garbage, b)
		return
	}
	b.next, b.prev = s.idle.next, &s.idle
	b.next.prev, b.prev.next = b, b
}

func (b *block) unlink() {
	if b.next != nil {
		b.prev.next, b.next.prev = b.next, b.prev
		b.next, b.prev = nil, nil
	}
}

// evict removes the least recently used idle blocks until memory is within its bound or none is left.
func (s *Store) evict() {
	for s.ram > s.ramLimit && s.idle.prev != &s.idle {
		s.detach(s.idle.prev)
	}
}

// cancel takes a block out of the queue of those to be written, if it is still in it.
func (s *Store) cancel(b *block) {
	if i := slices.Index(s.queue, b); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.unqueue(b)
		s.changed.Broadcast()
	}
}

// unlock ends every section under the lock: invariants are checked where they are built in, and what became garbage is unmapped
// after unlocking, since that takes the kernel a while.
func (s *Store) unlock() {
	garbage := s.garbage
	s.garbage = nil
	if invariants {
		s.check()
	}
	s.mu.Unlock()
	for _, b := range garbage {
		if b.mapping != nil {
			_ = b.mapping.Close() // fails only for what is not a mapping
		}
	}
}
