package server

import (
	"context"
	"errors"
	"time"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/prompt"
)

// warmRest is how long nobody must have asked anything before passages are warmed.
const warmRest = time.Second

// A warmth is how far a collection has been warmed. It is warmUp's alone.
type warmth struct {
	after    string // this passage
	attempts int    // at the ones that follow
}

// warmUp computes and stores the blocks of the open collections' passages while nobody asks anything, until ctx ends. A request cuts short
// what is under way. It stops short of what would push other blocks out of the store.
func (s *Server) warmUp(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(warmRest):
		}
		for ctx.Err() == nil && s.idle() {
			more, err := s.warmNext(ctx)
			if err != nil && !errors.Is(err, context.Canceled) {
				s.o.Log.Warn("warming", "error", err)
			}
			if !more {
				break
			}
		}
	}
}

// idle tells whether nobody has asked anything for a while.
func (s *Server) idle() bool {
	return s.waiting.Load() == 0 && time.Since(time.Unix(0, s.asked.Load())) >= warmRest
}

// warmNext warms the next few passages, and tells whether there may be more.
func (s *Server) warmNext(ctx context.Context) (more bool, err error) {
	stat, err := s.tessera.StoreStat()
	if err != nil {
		return false, err
	}
	used, limit := stat.DiskBytes, stat.DiskLimit
	if stat.Dir == "" {
		used, limit = stat.RAMBytes, stat.RAMLimit
	}
	if used > limit/10*9 {
		return false, nil
	}
	for _, open := range s.library.all() {
		at := &open.warmed
		passages, err := open.After(at.after, tessera.WarmAtOnce)
		if err != nil {
			return false, err
		}
		if len(passages) == 0 {
			continue
		}
		documents := make([]prompt.Document, len(passages))
		for i, p := range passages {
			documents[i] = prompt.Document{Title: p.Title, Text: p.Text}
		}
		ctx, cancel := context.WithCancel(ctx)
		s.warming.Store(&cancel)
		taken, err := 0, context.Canceled
		if s.idle() { // whoever came before that could not cut it short
			taken, err = s.tessera.Warm(ctx, documents, open.salt)
		}
		s.warming.Store(nil)
		cancel()
		if at.attempts++; err == nil || !errors.Is(err, context.Canceled) && at.attempts == 3 { // ones that cannot be are left out
			*at = warmth{after: passages[max(taken, 1)-1].ID}
		}
		return err == nil, err
	}
	return false, nil
}
