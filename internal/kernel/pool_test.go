package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// taskFunc is a Task made of a function.
type taskFunc func(worker, i int)

func (f taskFunc) Do(worker, i int) { f(worker, i) }

func TestPool_EveryItemOnce_NoTwoUnderOneWorker(t *testing.T) {
	for threads := range 5 {
		pool := NewPool(threads)
		if want := max(threads, 1); pool.Threads() != want {
			t.Errorf("NewPool(%d) has %d threads, want %d", threads, pool.Threads(), want)
		}
		for _, n := range []int{0, 1, 2, 3, 1000} {
			done, busy := make([]atomic.Int32, n), make([]atomic.Int32, pool.Threads())
			pool.Run(n, taskFunc(func(worker, i int) {
				if busy[worker].Add(1) != 1 {
					t.Errorf("%d threads: two items at once under worker %d", threads, worker)
				}
				runtime.Gosched()
				done[i].Add(1)
				busy[worker].Add(-1)
			}))
			for i := range done {
				if c := done[i].Load(); c != 1 {
					t.Errorf("%d threads: item %d of %d was done %d times", threads, i, n, c)
				}
			}
		}
		pool.Close()
	}
}

// Each item waits for the other: they can only both end if two workers take part.
func TestPool_TwoThreads_WorkAtOnce(t *testing.T) {
	pool := NewPool(2)
	defer pool.Close()
	var arrived [2]chan struct{}
	arrived[0], arrived[1] = make(chan struct{}), make(chan struct{})
	pool.Run(2, taskFunc(func(_, i int) {
		close(arrived[i])
		<-arrived[1-i]
	}))
}

func TestPool_ManyCallers_TakeTurns(t *testing.T) {
	pool := NewPool(2)
	defer pool.Close()
	var running, total atomic.Int32
	ended := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { ended <- struct{}{} }()
			for range 50 {
				pool.Run(1, taskFunc(func(int, int) {
					if running.Add(1) != 1 {
						t.Error("items of two callers ran at once")
					}
					total.Add(1)
					running.Add(-1)
				}))
			}
		}()
	}
	for range 4 {
		<-ended
	}
	if total.Load() != 200 {
		t.Errorf("%d items were done, want 200", total.Load())
	}
}

func TestPool_PanicInAnItem_IsRaisedInTheCaller_AndThePoolGoesOn(t *testing.T) {
	for threads := 1; threads <= 3; threads++ {
		pool := NewPool(threads)
		cause := errors.New("item 5")
		var after atomic.Int32
		caught := panicOf(func() {
			pool.Run(10_000, taskFunc(func(_, i int) {
				if i == 5 {
					panic(cause)
				}
				after.Add(1)
			}))
		})
		if caught != cause {
			t.Errorf("%d threads: caught %v, want %v", threads, caught, cause)
		}
		if threads == 1 && after.Load() != 5 {
			t.Errorf("one thread did %d items besides the failing one, want the 5 before it", after.Load())
		}
		var done atomic.Int32
		if caught := panicOf(func() { pool.Run(100, taskFunc(func(int, int) { done.Add(1) })) }); caught != nil || done.Load() != 100 {
			t.Errorf("%d threads: the next Run did %d of 100 items and panicked with %v", threads, done.Load(), caught)
		}
		pool.Close()
	}
}

// A file that is mapped and then cut short cannot be read any more: the system answers with a signal, which has to end up as
// a panic of the caller that tells the address, whichever worker it hit.
func TestPool_MappedFileCutShort_IsAFaultWithItsAddress(t *testing.T) {
	page := os.Getpagesize()
	path := filepath.Join(t.TempDir(), "mapped")
	if err := os.WriteFile(path, make([]byte, 2*page), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, 2*page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	if err := os.Truncate(path, int64(page)); err != nil {
		t.Fatal(err)
	}
	gone := uintptr(unsafe.Pointer(unsafe.SliceData(mapped))) + uintptr(page)
	for threads := 1; threads <= 3; threads++ {
		for victim := range threads {
			pool := NewPool(threads)
			var sum atomic.Int64
			here := make(chan struct{}, threads)
			caught := panicOf(func() {
				pool.Run(threads, taskFunc(func(worker, i int) {
					// All workers are here before one reads what is gone, so each can be the victim.
					here <- struct{}{}
					for len(here) < threads {
						runtime.Gosched()
					}
					if worker == victim {
						sum.Add(int64(mapped[page+8]))
					}
					sum.Add(int64(mapped[8]))
				}))
			})
			fault, ok := caught.(interface {
				error
				Addr() uintptr
			})
			if !ok {
				t.Fatalf("%d threads, worker %d: caught %v (%T), want a fault with an address", threads, victim, caught, caught)
			}
			if fault.Addr() < gone || fault.Addr() >= gone+uintptr(page) {
				t.Errorf("%d threads, worker %d: fault at %#x, want one from %#x on", threads, victim, fault.Addr(), gone)
			}
			pool.Close()
		}
	}
	if debug.SetPanicOnFault(false) {
		t.Error("the caller's own setting for faults was changed")
	}
}

func TestPool_Run_AllocatesNothing(t *testing.T) {
	pool := NewPool(3)
	defer pool.Close()
	var task Task = taskFunc(func(int, int) {})
	if n := testing.AllocsPerRun(50, func() { pool.Run(100, task) }); n != 0 {
		t.Errorf("%v allocations a Run, want 0", n)
	}
}

// panicOf runs f and returns what it panicked with.
func panicOf(f func()) (value any) {
	defer func() { value = recover() }()
	f()
	return nil
}

func BenchmarkPool(b *testing.B) {
	for threads := 1; threads <= 2; threads++ {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			pool := NewPool(threads)
			defer pool.Close()
			var task Task = taskFunc(func(int, int) {})
			for b.Loop() {
				pool.Run(threads, task)
			}
		})
	}
}

// A Run can be late in waking a worker, when that has already done the Run's round and parked again: then the wake is for nothing.
func TestPool_AWakeForARoundAlreadyDone_IsNotTakenForTheNext(t *testing.T) {
	w, rounds, done := &worker{wake: make(chan struct{}, 1)}, &atomic.Uint64{}, make(chan struct{})
	wake := func() {
		for !w.parked.CompareAndSwap(true, false) {
			runtime.Gosched()
		}
		w.wake <- struct{}{}
	}
	rounds.Store(1)
	go func() {
		w.await(rounds, 2)
		close(done)
	}()
	for range 3 {
		wake() // late, of round 1
	}
	select {
	case <-done:
		t.Fatal("a late wake of round 1 was taken for round 2")
	default:
	}
	for !w.parked.Load() {
		runtime.Gosched()
	}
	rounds.Store(2)
	wake()
	<-done
}
