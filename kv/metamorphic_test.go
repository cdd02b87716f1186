package kv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// One seeded list of operations is played on stores of several configurations and on a plain map. A store without tight bounds
// answers as the map does; one with tight bounds may have lost a block, but never has another one, or other bytes.
func TestStore_AnswersAsAPlainMap(t *testing.T) {
	const blocks = 12
	ram, disk := int64(2*small.Bytes()), int64(5*smallFile)
	for _, cfg := range []struct {
		name    string
		dir     bool
		o       Options
		bounded bool
		files   func() vfs.FS
	}{
		{name: "memory"},
		{name: "memory, two blocks", o: Options{RAMBytes: ram}, bounded: true},
		{name: "disk", dir: true},
		{name: "disk, no memory", dir: true, o: Options{RAMBytes: 1}},
		{name: "disk, two blocks in memory", dir: true, o: Options{RAMBytes: ram}},
		{name: "five blocks on disk", dir: true, o: Options{RAMBytes: ram, DiskBytes: disk}, bounded: true},
		{name: "real files", dir: true, o: Options{RAMBytes: ram}, files: func() vfs.FS { return vfs.OS{} }},
	} {
		t.Run(cfg.name, func(t *testing.T) {
			seeds := uint64(6)
			if cfg.files != nil {
				seeds = 1 // every write waits for the disk
			}
			for seed := range seeds {
				play(t, seed, blocks, cfg.dir, cfg.o, cfg.bounded, cfg.files)
			}
		})
	}
}

func play(t *testing.T, seed uint64, blocks int, disk bool, o Options, bounded bool, files func() vfs.FS) {
	rng := rand.New(rand.NewPCG(seed, 0))
	var on vfs.FS = vfs.NewMem()
	if files != nil {
		on = files()
	}
	dir := ""
	if disk {
		dir = newDir(t)
	}
	s, _ := open(t, on, dir, o)
	has := map[int]bool{}
	held := map[int]*Lease{}
	var log []string
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d, after %q: %s", seed, log, fmt.Sprintf(format, args...))
	}
	for range 120 {
		n := rng.IntN(blocks)
		id := idOf(n)
		switch op := rng.IntN(20); {
		case op < 8: // as a request does: get it, or compute it
			log = append(log, fmt.Sprint("use ", n))
			l, err := s.Get(id, small)
			switch {
			case errors.Is(err, ErrMissing) && has[n] && !bounded:
				fail("block %d: missing, the map has it", n)
			case err == nil && !has[n]:
				fail("block %d: found, the map does not have it", n)
			case errors.Is(err, ErrMissing):
				l, err = s.Put(id, small, payloadFor(id, small))
			}
			if err != nil {
				fail("block %d: %v", n, err)
			}
			has[n] = true
			if held[n] == nil && rng.IntN(4) == 0 {
				held[n] = l
			} else {
				l.Close()
			}
		case op < 13:
			log = append(log, fmt.Sprint("get ", n))
			if got := get(t, s, n); (got == "missing") == has[n] && !(bounded && has[n]) {
				fail("block %d: got %s, the map has it: %v", n, got, has[n])
			}
		case op < 15:
			log = append(log, fmt.Sprint("release ", n))
			if held[n] != nil {
				if string(held[n].Payload()) != string(payloadFor(id, small)) {
					fail("block %d: changed under its lease", n)
				}
				held[n].Close()
				delete(held, n)
			}
		case op < 16:
			log = append(log, fmt.Sprint("drop ", n))
			if _, _, err := s.Drop(id); err != nil {
				fail("%v", err)
			}
			delete(has, n)
		case op < 17 && rng.IntN(4) == 0:
			log = append(log, "drop all")
			if _, _, err := s.DropAll(); err != nil {
				fail("%v", err)
			}
			clear(has)
		case op < 19 && disk && rng.IntN(3) == 0:
			log = append(log, "reopen") // with leases still open
			if err := s.Close(); err != nil {
				fail("%v", err)
			}
			s, _ = open(t, on, dir, o)
		default:
			log = append(log, "list")
			infos, err := s.List()
			if err != nil {
				fail("%v", err)
			}
			for _, info := range infos {
				if info.Err != nil {
					fail("listed: %v", info.Err)
				}
			}
		}
		if rng.IntN(3) == 0 { // otherwise the writer stays behind
			checked(t, s)
		} else {
			s.mu.Lock()
			s.check()
			s.mu.Unlock()
		}
	}
	for _, l := range held {
		l.Close()
	}
	checked(t, s)
}
