package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
)

// together runs the functions at the same time and fails where they do not end.
func together(t *testing.T, do ...func()) {
	t.Helper()
	var all sync.WaitGroup
	for _, f := range do {
		all.Go(f)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		panic("requests wait for each other: a deadlock") // with all stacks
	}
}

func TestGenerate_TwoRequestsWantTheSameBlocks_EachIsComputedOnce(t *testing.T) {
	passages := []string{alps, baikal, copper, "Ravens can count. ", "Tin melts at 232 degrees. "}
	rounds := 30
	if testing.Short() {
		rounds = 12
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(uint64(round), 7))
		attention := Block
		e := start(t, setting{})
		texts := func() []string {
			out := []string{system}
			order := rng.Perm(len(passages))
			if round%3 == 2 { // full mode: a common prefix
				attention, order = Full, []int{0, 1, 2, 3, 4}
			}
			for i, p := range order {
				if out = append(out, passages[p]); round%3 == 1 && i == 2 {
					out = append(out, "turn: hm? ")
				}
			}
			return append(out, fmt.Sprintf("%d?", rng.IntN(100)))
		}
		q := [2]Request{in(attention, question(texts()...)), in(attention, question(texts()...))}
		var recs [2]*Receipt
		var errs [2]error
		together(t,
			func() { recs[0], errs[0] = e.Generate(context.Background(), q[0]) },
			func() { recs[1], errs[1] = e.Generate(context.Background(), q[1]) })
		computed := map[kv.ID]int{}
		for i := range recs {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			for _, b := range recs[i].Blocks[:len(recs[i].Blocks)-1] {
				if n := computed[b.ID]; b.Source == kv.Computed {
					computed[b.ID] = n + 1
				} else {
					computed[b.ID] = n
				}
			}
			if want := start(t, setting{}).ask(t, q[i]); recs[i].Text != want.text {
				t.Errorf("round %d: request %d answers %q, alone %q", round, i, recs[i].Text, want.text)
			}
		}
		for id, n := range computed {
			if n != 1 {
				t.Errorf("round %d: block %v was computed %d times", round, id, n)
			}
		}
		e.close()
	}
}

// Between looking for a block and claiming it another request may finish it: the claim alone is no reason to compute.
func TestGenerate_BlockStoredBeforeTheClaim_IsNotComputedAgain(t *testing.T) {
	q := question(system, where)
	other, e := start(t, setting{}), start(t, setting{})
	want := other.ask(t, q)
	shape := e.model.KVShape(kv.F16, len(system))
	theirs, err := other.store.Get(want.rec.Blocks[0].ID, shape)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	e.claims.mu.Lock() // the request looks, and then waits here to claim
	together(t,
		func() {
			rec, err := e.Generate(context.Background(), q)
			if err != nil {
				t.Error(err)
				return
			}
			mustCome(t, "stored meanwhile", rec, "ram computed")
		},
		func() {
			defer e.claims.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			payload := kv.Alloc(shape.Bytes())
			copy(payload, theirs.Payload())
			lease, err := e.store.Put(theirs.ID(), shape, payload)
			if err != nil {
				t.Error(err)
				return
			}
			lease.Close()
		})
	mustEqual(t, "afterwards", e.ask(t, q), want)
}

// One request claims blocks and then fails; another that was waiting for them computes them itself.
func TestGenerate_TheOtherRequestFails_ThisOneIsRight(t *testing.T) {
	want := start(t, setting{}).ask(t, question(system, alps, baikal, where))
	broken := errors.New("nobody reads")
	for _, tt := range []struct {
		name string
		make func(r *Request, cancel func()) // is called before the request
		want func(error) bool
	}{
		{"cancelled", func(r *Request, cancel func()) { r.Progress = func(_, _ int) { cancel() } }, func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"cancelled while it waits to compute", nil, func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"wrong token", func(r *Request, _ func()) { r.Blocks[3].Tokens[0] = 1 << 20 }, func(err error) bool { return err != nil }},
		{"emit fails", func(r *Request, _ func()) { r.Emit = func(string) error { return broken } }, func(err error) bool { return errors.Is(err, broken) }},
	} {
		for _, attention := range []Attention{Block, Full} {
			e := start(t, setting{})
			ctx, cancel := context.WithCancel(context.Background())
			failing, waiting := in(attention, question(system, alps, copper, which)), in(attention, question(system, alps, baikal, where))
			expect := want
			if attention == Full {
				expect = start(t, setting{}).ask(t, waiting)
			}
			if tt.make != nil {
				tt.make(&failing, cancel)
			}
			release := e.hold() // nobody computes: the failing request keeps its claims
			var failed, err error
			var rec *Receipt
			together(t,
				func() { _, failed = e.Generate(ctx, failing) },
				func() {
					for e.pending() < 3 {
						time.Sleep(time.Millisecond)
					}
					rec, err = e.Generate(context.Background(), waiting)
				},
				func() {
					time.Sleep(20 * time.Millisecond) // both want the same blocks now, most likely
					if tt.make == nil {
						cancel()
					}
					release()
				})
			cancel()
			if !tt.want(failed) {
				t.Errorf("%s, %s: the failing request ended with %v", tt.name, attention, failed)
			}
			if err != nil || rec.Text != expect.text {
				t.Errorf("%s, %s: the other got %v, error %v; want %q", tt.name, attention, rec, err, expect.text)
			}
			if n := e.pending(); n != 0 {
				t.Errorf("%s, %s: %d claims were left", tt.name, attention, n)
			}
		}
	}
}

// hold keeps the scheduler from computing until release is called.
func (r *running) hold() (release func()) {
	holds, released, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	seq := model.Sequence{Tokens: []int32{1}, KV: r.model.NewKV(kv.F16, 1), Logits: func(int, []float32) {
		close(holds)
		<-released
	}}
	go func() {
		defer close(ended)
		_ = r.scheduler.compute(context.Background(), "", false, []model.Sequence{seq}, nil)
	}()
	<-holds
	return func() {
		close(released)
		<-ended
	}
}

// pending is the number of blocks being computed.
func (r *running) pending() int {
	r.claims.mu.Lock()
	defer r.claims.mu.Unlock()
	return len(r.claims.pending)
}

// A waiting request that is given up ends at once, whatever the other does.
func TestGenerate_CancelledWhileWaiting_EndsAtOnce(t *testing.T) {
	e := start(t, setting{})
	q := question(system, alps, where)
	blocks, _, _ := e.plan(&q)
	for _, b := range blocks {
		e.claims.claim(b.id)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	together(t, func() {
		if _, err := e.Generate(ctx, q); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
	})
	e.claims.release(blocks)
	e.ask(t, q)
}

// Requests over overlapping blocks, in both modes and with turns, some given up at a random moment: none waits for ever, and
// every answer is what the request gets alone.
func TestGenerate_ManyOverlappingRequests_AllEndWithTheRightAnswer(t *testing.T) {
	passages := []string{alps, baikal, copper, "turn: hm? ", "turn: why? Because. "}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds, requests := 6, 10
	if testing.Short() {
		rounds = 3
	}
	answers := map[string]string{}
	alone := start(t, setting{})
	for range rounds {
		e := start(t, setting{ramBytes: []int64{0, 1}[rng.IntN(2)], dir: storeDir(t)})
		type job struct {
			q       Request
			want    string
			timeout time.Duration
		}
		var do []func()
		for range requests {
			texts := []string{system}
			for _, p := range rng.Perm(len(passages))[:1+rng.IntN(4)] {
				texts = append(texts, passages[p])
			}
			j := job{q: in([]Attention{Block, Full}[rng.IntN(2)], question(append(texts, where)...)), timeout: 30 * time.Second}
			j.q.MaxTokens = 3
			key := fmt.Sprint(j.q.Attention, texts)
			if _, ok := answers[key]; !ok {
				answers[key] = alone.ask(t, j.q).text
			}
			j.want = answers[key]
			if rng.IntN(3) == 0 {
				j.timeout = time.Duration(rng.IntN(20)) * time.Millisecond
			}
			do = append(do, func() {
				ctx, cancel := context.WithTimeout(context.Background(), j.timeout)
				defer cancel()
				rec, err := e.Generate(ctx, j.q)
				if err != nil && !(j.timeout < time.Second && errors.Is(err, context.DeadlineExceeded)) {
					t.Errorf("seed %d: %s: %v", seed, key, err)
				}
				if err == nil && rec.Text != j.want {
					t.Errorf("seed %d: %s: answer %q, alone %q", seed, key, rec.Text, j.want)
				}
			})
		}
		together(t, do...)
		if n := e.pending(); n != 0 {
			t.Errorf("seed %d: %d claims were left", seed, n)
		}
		e.close()
	}
}
