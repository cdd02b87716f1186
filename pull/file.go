package pull

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// file is a source on this machine, by its path.
type file string

func (f file) String() string { return string(f) }

// identify says where f's bytes belong: the place of the alias they are the file of, f itself if it lies in the models folder
// dir, local/ otherwise. The hash is then known, so that an unchanged file is copied once.
func (f file) identify(ctx context.Context, dir string, t target) (target, error) {
	r, err := os.Open(string(f))
	if err != nil {
		return t, err
	}
	defer r.Close()
	head := make([]byte, len(magic))
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return t, err
	}
	if err := checkMagic(t.name, head[:n]); err != nil {
		return t, err
	}
	if t.sha256, err = sumOf(ctx, r); err != nil {
		return t, err
	}
	path, err := filepath.Abs(string(f))
	if err != nil {
		return t, err
	}
	if inside, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(inside) {
		t.dir = filepath.Dir(path)
		return t, nil
	}
	for _, a := range aliases {
		if a.sha256 == t.sha256 {
			t.dir, t.name = dir, a.name
		}
	}
	return t, nil
}

func (f file) fetch(ctx context.Context, p *puller, t *target, part *part) error {
	r, err := os.Open(string(f))
	if err != nil {
		return err
	}
	defer r.Close()
	if err := part.reset(); err != nil {
		return err
	}
	if err := p.roomFor(part, t.bytes); err != nil {
		return err
	}
	return p.copy(ctx, *t, part, r, t.bytes, func() {})
}

// copy appends r to t's part and reports the way to total bytes; arrived is called after each piece.
func (p *puller) copy(ctx context.Context, t target, part *part, r io.Reader, total int64, arrived func()) error {
	body := bufio.NewReaderSize(r, 256<<10)
	if part.size == 0 { // what is no model at all must not cost the whole download
		head, err := body.Peek(len(magic))
		if err != nil && err != io.EOF {
			return broken{err}
		}
		if err := checkMagic(t.name, head); err != nil {
			return err
		}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			arrived()
			if _, err := part.Write(buf[:n]); err != nil {
				return err
			}
			p.progress(part.size, total)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken{err}
		}
		if ctx.Err() != nil {
			return broken{context.Cause(ctx)}
		}
	}
}

// broken is the end of a source's bytes before their time: what is worth another attempt.
type broken struct{ error }

func (b broken) Unwrap() error { return b.error }

const magic = "GGUF"

// checkMagic fails where name promises a GGUF file and head, its first bytes, are those of something else.
func checkMagic(name string, head []byte) error {
	if filepath.Ext(name) == ".gguf" && string(head) != magic {
		return fmt.Errorf("%s is no GGUF file: it begins with %q, expected %q", name, head, magic)
	}
	return nil
}
