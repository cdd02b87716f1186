package kernel

import (
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
type Pool struct {
	mu      sync.Mutex
	wake    []chan struct{} // one a worker, so that each takes part in a Run exactly once
	done    sync.WaitGroup
	task    Task
	items   int64
	next    atomic.Int64
	failure atomic.Pointer[failure]
}

// failure is the first panic of a Run's items, carried to the caller.
type failure struct{ value any }

// NewPool starts threads-1 workers, which live until Close.
func NewPool(threads int) *Pool {
	p := &Pool{wake: make([]chan struct{}, max(threads, 1)-1)}
	for i := range p.wake {
		p.wake[i] = make(chan struct{}, 1)
		go p.work(i + 1)
	}
	return p
}

// Threads is the number of workers, the caller included.
func (p *Pool) Threads() int { return len(p.wake) + 1 }

// Run calls task.Do for every i below n and returns when all are done. A panic in an item, such as the fault of reading a
// mapped file that was cut short (a runtime.Error with an Addr method), is raised again here once the others have ended.
func (p *Pool) Run(n int, task Task) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.task, p.items = task, int64(n)
	p.next.Store(0)
	helpers := min(len(p.wake), n-1)
	for i := range helpers {
		p.done.Add(1)
		p.wake[i] <- struct{}{}
	}
	p.drain(0)
	p.done.Wait()
	p.task = nil
	if f := p.failure.Swap(nil); f != nil {
		panic(f.value)
	}
}

// Close ends the workers. No Run may be under way or follow.
func (p *Pool) Close() {
	for _, c := range p.wake {
		close(c)
	}
}

func (p *Pool) work(worker int) {
	for range p.wake[worker-1] {
		p.drain(worker)
		p.done.Done()
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
