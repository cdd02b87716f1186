package kv

import (
	"errors"
	"fmt"
	"io/fs"
)

// check walks the invariants of memory (see Store) and panics with the first that does not hold. Called with the lock held.
func (s *Store) check() {
	must := func(ok bool, number int, format string, args ...any) {
		if !ok {
			panic(fmt.Sprintf("kv: invariant %d: ", number) + fmt.Sprintf(format, args...))
		}
	}
	idle := map[*block]bool{}
	for b := s.idle.next; b != &s.idle; b = b.next {
		must(b.next.prev == b && b.prev.next == b, 5, "the ring is broken at %v", b.id)
		must(s.blocks[b.id] == b, 5, "%v is idle and not in the map", b.id)
		idle[b] = true
	}
	var ram, queued int64
	for id, b := range s.blocks {
		must(b.id == id, 5, "%v is in the map as %v", b.id, id)
		must(idle[b] == (b.leases == 0 && !b.waiting), 5, "%v: idle %v, %d leases, waits to be written %v", id, idle[b], b.leases, b.waiting)
		ram += int64(len(b.payload))
	}
	must(ram == s.ram, 6, "memory: counted %d, found %d bytes", s.ram, ram)
	must(s.ram <= s.ramLimit || len(idle) == 0, 3, "memory: %d bytes over a limit of %d, with %d blocks idle", s.ram, s.ramLimit, len(idle))
	waiting := s.queue
	if s.writing != nil {
		waiting = append(waiting[:len(waiting):len(waiting)], s.writing)
	}
	for _, b := range waiting {
		must(b.waiting, 6, "%v is in the queue and does not wait", b.id)
		queued += int64(len(b.payload))
	}
	must(queued == s.queued, 6, "queue: counted %d, found %d bytes", s.queued, queued)
	for b := range s.detached {
		must(b.leases > 0 || b.waiting, 4, "%v is neither to be found nor leased and was kept", b.id)
		must(s.blocks[b.id] != b, 4, "%v is detached and in the map", b.id)
	}
	for _, b := range s.garbage {
		must(b.leases == 0, 4, "%v is leased and about to be unmapped", b.id)
	}
}

// check walks the invariants of the folder (see Store): the sizes of all files, and every byte of every block.
func (f *folder) check() error {
	u, err := f.lockUsage()
	if err != nil {
		return err
	}
	defer u.unlock()
	files, err := f.files()
	if err != nil {
		return err
	}
	var total int64
	for _, file := range files {
		total += file.info.Size
		if file.kind != blockFile {
			continue
		}
		h, err := f.inspect(file.path)
		if err == nil {
			var m *mapped
			if m, err = f.load(file.id, h.shape); err == nil {
				err = errors.Join(m.verifyAll(), m.Close())
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // set aside by someone meanwhile
			return fmt.Errorf("kv: invariant 1: %w", err)
		}
	}
	if total > f.limit || total > u.bytes {
		return fmt.Errorf("kv: invariant 2: %s: %d bytes of files, counted %d, the limit is %d", f.dir, total, u.bytes, f.limit)
	}
	return nil
}
