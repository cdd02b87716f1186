package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress is a bar on a terminal for work that may be long. Anywhere else it draws nothing, so that logs and pipes stay clean.
type progress struct {
	w     io.Writer // nil where there is no terminal
	label string
	bytes bool // the bar counts bytes, not things
	bar   *progressbar.ProgressBar
}

func newProgress(w io.Writer, label string, bytes bool) *progress {
	p := &progress{label: label, bytes: bytes}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = w
	}
	return p
}

// set draws the bar at done of total; total -1 is unknown, and done below the last one is a new start.
func (p *progress) set(done, total int64) {
	if p.w == nil {
		return
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.w),
			progressbar.OptionSetDescription(p.label),
			progressbar.OptionShowBytes(p.bytes),
			progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish())
	}
	if p.bar.GetMax64() != total {
		p.bar.ChangeMax64(total)
	}
	p.bar.Set64(done) // fails only where the terminal does
}

// clear takes the bar away, so that the next line stands alone; set draws it again.
func (p *progress) clear() {
	if p.bar != nil {
		p.bar.Clear()
		p.bar = nil
	}
}
