package pull

import (
	"context"
	"fmt"
	"io"
	"time"
)

// watchdog ends a context when what is expected next does not come in time; the context's cause then says what did not.
type watchdog struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func watch(ctx context.Context) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{cancel: cancel}
}

func (w *watchdog) answerWithin(d time.Duration) { w.expect(d, "did not answer in %v") }
func (w *watchdog) bytesWithin(d time.Duration)  { w.expect(d, "sent nothing for %v") }

func (w *watchdog) expect(d time.Duration, otherwise string) {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(d, func() { w.cancel(fmt.Errorf(otherwise, d)) })
}

func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(nil)
}

// watched reads r, whose errors after the end of ctx are told by ctx.
type watched struct {
	ctx context.Context
	r   io.Reader
}

func (w watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if err != nil && err != io.EOF && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}
