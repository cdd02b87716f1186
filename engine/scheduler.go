package engine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/tessera-llm/tessera/model"
)

// A scheduler computes the sequences of all requests on one workspace, one forward pass after the other, in one goroutine. A pass takes the
// next token of every answer that is under way, and beside them as much of the prompts that wait as makes it about three times as long:
// answers flow on while prompts are computed, and read the weights once for all of them. What a sequence comes to does not depend on the
// others of its pass.
//
// Prompts share the rows that are left: tenants take turns by how many rows they had, and within a tenant the shortest prompt goes before
// the others, which have half of the passes to themselves, oldest first, so that none waits for ever.
type scheduler struct {
	work    *model.Workspace
	changed chan struct{} // holds one token: something below changed
	ended   chan struct{}

	mu        sync.Mutex
	jobs      []*job // under way or waiting, in the order in which they came
	answering int    // requests between the first token of an answer and its last
	closed    bool

	// Of the goroutine alone.
	passes       int
	rows         map[string]float64 // that each tenant had, above who had the fewest
	batch        []model.Sequence
	pieces       []piece
	step, perRow time.Duration // how long a pass of tokens alone takes, and a row of a prompt
}

// A job is sequences that a request waits for.
type job struct {
	ctx      context.Context
	batch    []model.Sequence
	tenant   string
	token    bool // the next token of an answer
	rows     int  // all of them
	left     int
	seq, at  int // where they begin: token at of sequence seq
	progress chan int
	done     chan error // told once; nobody computes with the batch afterwards
}

// A piece is the rows of a job in one pass.
type piece struct {
	job      *job
	rows     int
	from, to int // of the pass's sequences
	seq, at  int // where it ends in the job
}

// gather is how long a pass waits for answers whose last token was chosen a moment ago: they go on together.
const gather = 300 * time.Microsecond

// A prompt gets at least so many rows of a pass, and all of them together at most so many.
const (
	fewestRows = 16
	mostRows   = model.MaxRows
)

func newScheduler(work *model.Workspace) *scheduler {
	s := &scheduler{work: work, changed: make(chan struct{}, 1), ended: make(chan struct{}), rows: map[string]float64{}}
	go s.run()
	return s
}

// close ends the goroutine. No request may be under way.
func (s *scheduler) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wake()
	<-s.ended
}

func (s *scheduler) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// compute runs a batch beside those of other requests. progress, if not nil, is told the rows done so far. On an error KVs are as they were,
// as far as Len tells.
func (s *scheduler) compute(ctx context.Context, tenant string, token bool, batch []model.Sequence, progress func(rows int)) error {
	j := &job{ctx: ctx, batch: batch, tenant: tenant, token: token, progress: make(chan int, 1), done: make(chan error, 1)}
	lens := make([]int, len(batch))
	for i := range batch {
		lens[i] = batch[i].KV.Len
		j.rows += len(batch[i].Tokens)
	}
	j.left = j.rows
	if err := ctx.Err(); err != nil || j.rows == 0 {
		return err
	}
	s.mu.Lock()
	s.jobs = append(s.jobs, j)
	s.mu.Unlock()
	s.wake()
	stopped := ctx.Done()
	for {
		select {
		case <-stopped:
			stopped = nil // the goroutine gives the job up before its next pass
			s.wake()
		case rows := <-j.progress:
			if progress != nil {
				progress(rows)
			}
		case err := <-j.done:
			if err != nil {
				for i := range batch {
					batch[i].KV.Len = lens[i]
				}
			} else if progress != nil {
				progress(j.rows)
			}
			return err
		}
	}
}

// begin and end tell of an answer that it is under way: its next token is worth waiting for.
func (s *scheduler) begin() { s.answers(1) }

func (s *scheduler) end() { s.answers(-1) }

func (s *scheduler) answers(n int) {
	s.mu.Lock()
	s.answering += n
	s.mu.Unlock()
	s.wake()
}

// load is how many answers are under way, and how many prompts are computed or wait.
func (s *scheduler) load() (answers, prompts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		if !j.token {
			prompts++
		}
	}
	return s.answering, prompts
}

// run makes passes as long as there is something to compute.
func (s *scheduler) run() {
	defer close(s.ended)
	for s.plan() {
		start := time.Now()
		err := s.work.Forward(context.Background(), s.batch, nil)
		s.learn(time.Since(start))
		for i := range s.pieces {
			p := &s.pieces[i]
			failure := err
			if err != nil && len(s.pieces) > 1 { // whose was it?
				failure = s.work.Forward(context.Background(), s.batch[p.from:p.to], nil)
			}
			s.advance(p, failure)
		}
		clear(s.batch)
		clear(s.pieces) // and with them the keys and values of requests that have ended
	}
}

// plan waits until there is something to compute, and chooses the next pass. False: the scheduler was closed.
func (s *scheduler) plan() bool {
	var late <-chan time.Time
	expired := false
	for {
		s.mu.Lock()
		s.dropCancelled()
		tokens := 0
		for _, j := range s.jobs {
			if j.token {
				tokens++
			}
		}
		closed, idle := s.closed, len(s.jobs) == 0
		ready := !closed && !idle && (expired || tokens >= s.answering)
		if ready {
			s.choose()
		}
		s.mu.Unlock()
		switch {
		case closed || ready:
			return ready
		case idle:
			late, expired = nil, false
		case late == nil:
			late = time.After(gather)
		}
		select {
		case <-s.changed:
		case <-late:
			expired = true
		}
	}
}

func (s *scheduler) dropCancelled() {
	s.jobs = slices.DeleteFunc(s.jobs, func(j *job) bool {
		err := j.ctx.Err()
		if err != nil {
			j.done <- err
		}
		return err != nil
	})
}

// choose fills batch and pieces.
func (s *scheduler) choose() {
	s.batch, s.pieces, s.passes = s.batch[:0], s.pieces[:0], s.passes+1
	var prompts []*job
	for _, j := range s.jobs {
		if j.token {
			s.take(j, j.left)
		} else {
			prompts = append(prompts, j)
		}
	}
	s.meet(prompts)
	for room := s.room(); room > 0 && len(prompts) > 0; {
		i := s.first(prompts)
		n := min(prompts[i].left, room)
		s.take(prompts[i], n)
		s.rows[prompts[i].tenant] += float64(n)
		room -= n
		prompts = slices.Delete(prompts, i, i+1)
	}
}

// room is how many rows of prompts a pass takes: all that there is room for, or so many that answers come at a third of their pace.
func (s *scheduler) room() int {
	if s.answering == 0 {
		return mostRows
	}
	return int(min(max(2*s.step/max(s.perRow, 1), fewestRows), mostRows))
}

// meet forgets tenants who want nothing, and lets new ones begin with as many rows as who had the fewest.
func (s *scheduler) meet(prompts []*job) {
	had := s.rows
	s.rows = map[string]float64{}
	for _, j := range prompts {
		if rows, known := had[j.tenant]; known {
			s.rows[j.tenant] = rows
		}
	}
	fewest, any := 0.0, false
	for _, rows := range s.rows {
		if !any || rows < fewest {
			fewest, any = rows, true
		}
	}
	for _, j := range prompts {
		s.rows[j.tenant] = max(s.rows[j.tenant]-fewest, 0) // also keeps numbers small
	}
}

// first is the index of the prompt whose turn it is.
func (s *scheduler) first(prompts []*job) int {
	first := 0
	for i, j := range prompts[1:] {
		rows, least := s.rows[j.tenant], s.rows[prompts[first].tenant]
		if rows < least || rows == least && j.tenant == prompts[first].tenant && s.passes%2 == 1 && j.left < prompts[first].left {
			first = i + 1
		}
	}
	return first
}

// take puts the next n rows of a job into the pass.
func (s *scheduler) take(j *job, n int) {
	p := piece{job: j, rows: n, from: len(s.batch), seq: j.seq, at: j.at}
	for n > 0 {
		part, at := j.batch[p.seq], p.at
		rows := min(len(part.Tokens)-at, n)
		n -= rows
		if p.at += rows; p.at == len(part.Tokens) {
			p.seq, p.at = p.seq+1, 0
		}
		if rows == 0 {
			continue
		}
		part.Tokens = part.Tokens[at : at+rows]
		if part.LogitsFrom -= at; part.LogitsFrom >= rows {
			part.Logits = nil // wanted of a later piece alone
		}
		if part.Logits != nil && at > 0 {
			whole := part.Logits
			part.Logits = func(i int, logits []float32) { whole(at+i, logits) }
		}
		part.LogitsFrom = max(part.LogitsFrom, 0)
		s.batch = append(s.batch, part)
	}
	p.to = len(s.batch)
	s.pieces = append(s.pieces, p)
}

// advance tells a job of its piece.
func (s *scheduler) advance(p *piece, failure error) {
	j := p.job
	j.left, j.seq, j.at = j.left-p.rows, p.seq, p.at
	if failure == nil && j.left > 0 {
		select { // the newest figure
		case <-j.progress:
		default:
		}
		j.progress <- j.rows - j.left
		return
	}
	s.mu.Lock()
	s.jobs = slices.DeleteFunc(s.jobs, func(other *job) bool { return other == j })
	s.mu.Unlock()
	j.done <- failure
}

// learn keeps how long passes take, as a mean that forgets.
func (s *scheduler) learn(took time.Duration) {
	rows, tokens := 0, false
	for _, p := range s.pieces {
		if p.job.token {
			tokens = true
		} else {
			rows += p.rows
		}
	}
	mean := func(of *time.Duration, now time.Duration) {
		if *of == 0 {
			*of = now
		}
		*of += (now - *of) / 4
	}
	switch {
	case rows == 0:
		mean(&s.step, took)
	case !tokens:
		mean(&s.perRow, took/time.Duration(rows))
	default:
		mean(&s.perRow, max(took-s.step, 0)/time.Duration(rows))
	}
}
