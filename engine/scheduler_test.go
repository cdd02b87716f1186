package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
)

// Requests that come and go while others are under way answer as they do alone.
func TestGenerate_ManyTogether_AnswerAsAlone(t *testing.T) {
	passages := []string{alps, baikal, copper, "Ravens can count. ", "Tin melts at 232 degrees. "}
	var requests []Request
	var want []string
	for i := range 16 {
		q := question(system, passages[i%5], passages[(i+1+i/5)%5], fmt.Sprintf("%d?", i))
		q.MaxTokens = 5 + 7*i%40
		requests = append(requests, in([]Attention{Block, Full}[i%2], q))
		want = append(want, start(t, setting{}).ask(t, requests[i]).text)
	}
	e := start(t, setting{})
	var do []func()
	for i, r := range requests {
		do = append(do, func() {
			rec, err := e.Generate(context.Background(), r)
			if err != nil || rec.Text != want[i] {
				t.Errorf("request %d: %v, %v; alone it answers %q", i, rec, err, want[i])
			}
		})
	}
	together(t, do...)
	if answers, prompts := e.Load(); answers != 0 || prompts != 0 {
		t.Errorf("%d answers and %d prompts under way when all are done", answers, prompts)
	}
}

// While a long prompt is computed, an answer goes on. How long passes take decides into how many pieces the prompt is cut, and on a busy
// machine anything may seem long: once in some tries is enough.
func TestGenerate_LongPrompt_DoesNotHoldUpAnswers(t *testing.T) {
	pieces, during := 0, int64(0)
	for try := 0; try < 5 && (pieces < 3 || during < 2); try++ {
		pieces, during = longBesideAnswer(t)
	}
	if pieces < 3 || during < 2 {
		t.Errorf("a prompt of 450 tokens in %d pieces, and %d tokens of an answer between the first and the last", pieces, during)
	}
}

// longBesideAnswer computes a prompt of 450 tokens while an answer is under way: in how many pieces, and how many tokens of the answer came
// between the first and the last.
func longBesideAnswer(t *testing.T) (pieces int, between int64) {
	e := start(t, setting{})
	first := make(chan struct{})
	var tokens, before, during atomic.Int64
	answer := question(system, where)
	answer.MaxTokens = 300
	answer.Emit = func(string) error {
		if tokens.Add(1) == 1 {
			close(first)
		}
		return nil
	}
	long := question(strings.Repeat("x", 450), where)
	long.Progress = func(done, total int) {
		if pieces++; done < total && before.Load() == 0 {
			before.Store(tokens.Load() + 1)
		}
		during.Store(tokens.Load())
	}
	together(t,
		func() {
			if _, err := e.Generate(context.Background(), answer); err != nil {
				t.Error(err)
			}
		},
		func() {
			<-first
			if _, err := e.Generate(context.Background(), long); err != nil {
				t.Error(err)
			}
		})
	return pieces, during.Load() - before.Load()
}

// What is wrong with one request is not laid on those of the same pass.
func TestScheduler_OneOfAPassFails_TheOthersDoNot(t *testing.T) {
	e := start(t, setting{})
	release := e.hold()
	sequence := func(tokens ...int32) []model.Sequence {
		return []model.Sequence{{Tokens: tokens, KV: e.model.NewKV(kv.F16, len(tokens))}}
	}
	good, bad := sequence(1, 2, 3), sequence(4, 1<<20)
	var failed, err error
	together(t,
		func() { err = e.scheduler.compute(context.Background(), "", false, good, nil) },
		func() { failed = e.scheduler.compute(context.Background(), "", false, bad, nil) },
		func() {
			for _, prompts := e.Load(); prompts < 3; _, prompts = e.Load() {
			}
			release()
		})
	if err != nil || good[0].KV.Len != 3 {
		t.Errorf("the good one: %v, %d tokens", err, good[0].KV.Len)
	}
	if failed == nil || bad[0].KV.Len != 0 {
		t.Errorf("the bad one: %v, %d tokens", failed, bad[0].KV.Len)
	}
}

func TestScheduler_Cancelled_EndsBeforeItsTurn(t *testing.T) {
	e := start(t, setting{})
	release := e.hold()
	ctx, cancel := context.WithCancel(context.Background())
	seq := []model.Sequence{{Tokens: []int32{1, 2}, KV: e.model.NewKV(kv.F16, 2)}}
	together(t,
		func() {
			if err := e.scheduler.compute(ctx, "", false, seq, nil); !errors.Is(err, context.Canceled) || seq[0].KV.Len != 0 {
				t.Errorf("cancelled while it waits: %v, %d tokens computed", err, seq[0].KV.Len)
			}
		},
		func() {
			for _, prompts := e.Load(); prompts < 2; _, prompts = e.Load() {
			}
			cancel()
			release()
		})
}

// Tenants take turns; within one, every other pass goes to the shortest prompt first, the rest to the oldest.
func TestScheduler_Choose_IsFair(t *testing.T) {
	prompt := func(tenant string, rows int) *job {
		return &job{tenant: tenant, rows: rows, left: rows, batch: []model.Sequence{{Tokens: make([]int32, rows)}}}
	}
	s := &scheduler{rows: map[string]float64{}}
	long, short, other := prompt("a", 5000), prompt("a", 40), prompt("b", 5000)
	token := &job{tenant: "b", token: true, rows: 1, left: 1, batch: []model.Sequence{{Tokens: []int32{1}}}}
	s.jobs = []*job{long, short, other, token}
	s.answering, s.step, s.perRow = 1, 10_000, 200 // 100 rows beside tokens
	got := map[*job]int{}
	for pass := range 10 {
		s.choose()
		rows := 0
		if s.pieces[0].job != token {
			t.Errorf("pass %d: no token of the answer", pass)
		}
		for _, p := range s.pieces[1:] {
			rows += p.rows
			got[p.job] += p.rows
			p.job.left -= p.rows
			p.job.at += p.rows
		}
		if rows != 100 {
			t.Errorf("pass %d: %d rows of prompts, want 100", pass, rows)
		}
		if short.left == 0 && len(s.jobs) == 4 {
			s.jobs = []*job{long, other, token}
			if pass > 2 {
				t.Errorf("the short prompt ended in pass %d", pass)
			}
		}
	}
	if a, b := got[long]+got[short], got[other]; a < 400 || b < 400 {
		t.Errorf("of 1,000 rows one tenant got %d, the other %d", a, b)
	}
}
