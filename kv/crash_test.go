package kv

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/tessera-llm/tessera/internal/vfs"
)

var errPower = errors.New("the power is off")

// powerCut lets everything fail from the n-th change on.
func powerCut(files *vfs.Mem, n int) (changes *atomic.Int64) {
	changes = new(atomic.Int64)
	files.Fail = func(op vfs.Op, _ string) error {
		if op.Changes() {
			changes.Add(1)
		}
		if changes.Load() > int64(n) {
			return errPower
		}
		return nil
	}
	return changes
}

// workload runs a store until the power goes and gives the blocks that a successful Flush has acknowledged.
// Those must be there afterwards, unless they were dropped since or the bound is tight.
func workload(files *vfs.Mem, o Options) map[int]bool {
	o.Warn = func(error) {}
	acknowledged, written := map[int]bool{}, map[int]bool{}
	s, err := openOn(files, "/kv", o)
	if err != nil {
		return acknowledged
	}
	defer s.Close()
	s.touchEvery = 0
	for step := range 10 {
		if l, err := s.Put(idOf(step), small, payloadFor(idOf(step), small)); err == nil {
			l.Close()
			written[step] = true
		}
		if l, err := s.Get(idOf(step/2), small); err == nil {
			l.Close()
		}
		switch {
		case step == 4:
			delete(acknowledged, 1)
			delete(written, 1)
			s.Drop(idOf(1))
		case step == 6:
			delete(acknowledged, 3)
			delete(written, 3)
			s.SetAside(idOf(3), errors.New("for the test"))
			s.Drop(idOf(3))
		case step%2 == 1:
			if s.Flush() == nil {
				acknowledged = maps.Clone(written)
			}
		}
	}
	return acknowledged
}

func TestStore_PowerCutAtAnyChange_LeavesEveryBlockWholeOrAbsent(t *testing.T) {
	for name, o := range map[string]Options{
		"room for all":  {},
		"one byte RAM":  {RAMBytes: 1},
		"tight on disk": {RAMBytes: 1, DiskBytes: 4 * smallFile},
	} {
		t.Run(name, func(t *testing.T) {
			for cut := 0; ; cut++ {
				files := vfs.NewMem()
				changes := powerCut(files, cut)
				acknowledged := workload(files, o)
				for seed := range uint64(4) {
					after := files.AfterPowerCut(rand.New(rand.NewPCG(seed, uint64(cut))))
					s, w := open(t, after, "/kv", o)
					what := fmt.Sprintf("cut after change %d, seed %d", cut, seed)
					if err := s.Flush(); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if err := s.folder.check(); err != nil { // before any Get could set a bad one aside
						t.Fatalf("%s: %v", what, err)
					}
					for n := range 10 {
						if got := get(t, s, n); got == "missing" && acknowledged[n] && o.DiskBytes == 0 {
							t.Fatalf("%s: block %d was flushed and is missing", what, n)
						}
					}
					if told := w.all(); len(told) > 0 {
						t.Fatalf("%s: %q", what, told)
					}
					put(t, s, 10)
					checked(t, s)
					files, err := s.folder.files()
					if err != nil {
						t.Fatal(err)
					}
					for _, f := range files {
						if f.kind == tempFile {
							t.Fatalf("%s: %s is left", what, f.path)
						}
					}
					s.Close()
				}
				if int(changes.Load()) <= cut {
					t.Logf("%d changes, each cut once", cut)
					return // the workload came to its end
				}
			}
		})
	}
}
