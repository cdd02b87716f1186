package server

import (
	"context"
	"errors"
	"time"

	"github.com/tessera-llm/tessera/prompt"
)

// warmRest is how long nobody must have asked anything before passages are warmed, warmBatch how many are at a time.
const (
	warmRest  = time.Second
	warmBatch = 8
)

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
		passages, err := open.After(at.after, warmBatch)
		if err != nil {
			return false, err
		}
		if len(passages) == 0 {
			continue
		}
		documents, tokens := []prompt.Document{}, 0
		for _, p := range passages {
			if tokens += s.tessera.Count(p.Title) + s.tessera.Count(p.Text) + 8; len(documents) > 0 && tokens > s.tessera.Context()/2 {
				break
			}
			documents = append(documents, prompt.Document{Title: p.Title, Text: p.Text})
		}
		ctx, cancel := context.WithCancel(ctx)
		s.warming.Store(&cancel)
		if s.idle() { // whoever came before that could not cut it short
			err = s.tessera.Warm(ctx, documents, open.salt)
		} else {
			err = context.Canceled
		}
		s.warming.Store(nil)
		cancel()
		if at.attempts++; err == nil || !errors.Is(err, context.Canceled) && at.attempts == 3 { // ones that cannot be are left out
			*at = warmth{after: passages[len(documents)-1].ID}
		}
		return err == nil, err
	}
	return false, nil
}
