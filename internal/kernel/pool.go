package kernel

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// A Task is work cut into items that do not depend on each other. Do computes item i; worker is below Pool.Threads, and at
// any moment no two items run under the same worker, so that scratch memory can be kept by worker.
type Task interface {
	Do(worker, i int)
}

// A Pool runs tasks on a fixed number of workers, the caller being worker 0. One Run at a time; further callers wait.
//
// A token passes some 200 Runs, a few microseconds each, and waking a parked thread takes longer than that. So a worker that
// has nothing to do looks for the next Run for a while before it parks, giving way to other goroutines as it does.
type Pool struct {
	mu      sync.Mutex
	workers []worker
	ended   sync.WaitGroup

	// The Run under way. Written by its caller before round is raised, and read by workers after they saw it raised.
	task    Task
	items   int64
	next    atomic.Int64 // the next item nobody has begun
	busy    atomic.Int64 // workers that have not ended this Run
	round   atomic.Uint64
	closed  bool
	failure atomic.Pointer[failure]
}

// worker is one goroutine of a pool. Whoever takes parked from true to false has to deal with wake: the worker itself goes
// on without it, a Run sends.
type worker struct {
	parked atomic.Bool
	wake   chan struct{}
	_      [64]byte // a cache line apart from the next worker's
}

// failure is the first panic of a Run's items, carried to the caller.
type failure struct{ value any }

// looks is how often a worker looks for the next Run before it parks, about 200 µs; every yieldEvery looks it lets other
// goroutines run.
const (
	looks      = 1 << 16
	yieldEvery = 1 << 8
)

// NewPool starts threads-1 workers, which live until Close.
func NewPool(threads int) *Pool {
	p := &Pool{workers: make([]worker, max(threads, 1)-1)}
	for i := range p.workers {
		p.workers[i].wake = make(chan struct{}, 1)
		p.ended.Add(1)
		go p.work(i)
	}
	return p
}

// Threads is the number of workers, the caller included.
func (p *Pool) Threads() int { return len(p.workers) + 1 }

// Run calls task.Do for every i below n and returns when all are done. A panic in an item, such as the fault of reading a
// mapped file that was cut short (a runtime.Error with an Addr method), is raised again here once the others have ended.
func (p *Pool) Run(n int, task Task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.task, p.items = task, int64(n)
	p.next.Store(0)
	if n > 1 {
		p.start()
	}
	p.drain(0)
	for i := 1; p.busy.Load() > 0; i++ {
		if i%yieldEvery == 0 {
			runtime.Gosched()
		}
	}
	p.task = nil
	if f := p.failure.Swap(nil); f != nil {
		panic(f.value)
	}
}

// start lets the workers at the Run, and wakes those that have parked.
func (p *Pool) start() {
	p.busy.Store(int64(len(p.workers)))
	p.round.Add(1)
	for i := range p.workers {
		w := &p.workers[i]
		if w.parked.Load() && w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
}

// Close ends the workers. No Run may be under way or follow.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.start()
	p.ended.Wait()
}

func (p *Pool) work(i int) {
	defer p.ended.Done()
	w := &p.workers[i]
	for round := uint64(1); ; round++ {
		w.await(&p.round, round)
		if p.closed {
			return
		}
		p.drain(i + 1)
		p.busy.Add(-1)
	}
}

// await returns when rounds has reached round. A wake alone does not mean that: a Run that saw this worker parked may get to waking
// it only after the worker has found that Run's round by itself, done it, and parked again.
func (w *worker) await(rounds *atomic.Uint64, round uint64) {
	for {
		for i := 1; i <= looks; i++ {
			if rounds.Load() >= round {
				return
			}
			if i%yieldEvery == 0 {
				runtime.Gosched()
			}
		}
		w.parked.Store(true)
		if rounds.Load() >= round && w.parked.CompareAndSwap(true, false) {
			return // it came between the last look and the parking, and its caller did not see this worker parked
		}
		<-w.wake
	}
}

func (p *Pool) drain(worker int) {
	// Weights and cached blocks are mapped files: a fault there is an error of this task, not the end of the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			p.failure.CompareAndSwap(nil, &failure{v})
			p.next.Store(p.items) // what is left need not start
		}
	}()
	for {
		i := p.next.Add(1) - 1
		if i >= p.items {
			return
		}
		p.task.Do(worker, int(i))
	}
}
