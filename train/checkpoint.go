package train

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"unsafe"

	"github.com/zeebo/blake3"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/vfs"
)

// A checkpoint is one file: checkpointMagic, the length of a header as 8 bytes, the header in JSON, the values of what is trained, their
// gradients, first and second moments as float32, all little-endian, and the BLAKE3 of all before it.
const checkpointMagic = "tessera-train/3\n"

// checkpointHeader is what must be as it was for training to go on, and the steps made.
type checkpointHeader struct {
	Options Options
	Model   string // its file's fingerprint
	Trained string // the tensors, with their shapes
	Path    string // of the kernels: others round differently
	Of      string // what samples are made of
	Steps   []Step

	Underway Step
	Learnt   int

	Validations []Validation
	Validating  validating
}

func (t *Trainer) header() checkpointHeader {
	names := blake3.New()
	for _, p := range t.net.params.list {
		fmt.Fprintf(names, "%s%v ", p.name, p.shape)
	}
	if a := t.net.adapter; a != nil {
		fmt.Fprintf(names, "alpha %v, final only: %v, hidden sinks: %d", a.Alpha, a.FinalOnly, a.HiddenSinks)
	}
	trained := fmt.Sprintf("%d tensors of %d values, %x", len(t.net.params.list), len(t.net.params.values), names.Sum(nil)[:8])
	return checkpointHeader{t.Options, fmt.Sprintf("%x", t.fingerprint), trained, kernel.Path(), t.of, t.steps, t.underway, t.learnt, t.validations, t.validating}
}

// save replaces the file at path by the present state; it survives a power cut when save returns. A save that fails leaves the file as it
// was.
func (t *Trainer) save(files vfs.FS, path string) (err error) {
	header, err := json.Marshal(t.header())
	if err != nil {
		return err
	}
	temporary := path + ".writing"
	switch removed, err := files.RemoveStale(temporary); { // what a process that died left
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !removed:
		return fmt.Errorf("%s: another training is writing it", path)
	}
	f, err := files.CreateTemp(temporary, 0)
	if err != nil {
		return err
	}
	open := true
	defer func() {
		if err != nil {
			if open {
				err = errors.Join(err, f.Close())
			}
			err = errors.Join(err, files.Remove(temporary))
		}
	}()
	hash := blake3.New()
	start := binary.LittleEndian.AppendUint64([]byte(checkpointMagic), uint64(len(header)))
	p := &t.net.params
	for _, part := range [][]byte{start, header, bytesOf(p.values), bytesOf(p.grads), bytesOf(p.first), bytesOf(p.second)} {
		hash.Write(part)
		if _, err := f.Write(part); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, err := f.Write(hash.Sum(nil)); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	open = false
	if err := f.Close(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := files.Rename(temporary, path); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(path))
}

// bytesOf views values as the bytes they are in memory.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}

// resume takes the state from the file at path. A file that is damaged, or of another training, is an error.
func (t *Trainer) resume(files vfs.FS, path string) error {
	m, err := files.Map(path)
	if err != nil {
		return err
	}
	defer m.Close()
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s: "+format+"; remove the file to begin anew", append([]any{path}, args...)...)
	}
	data := m.Data
	sum := blake3.New().Size()
	if !bytes.HasPrefix(data, []byte(checkpointMagic)) || len(data) < len(checkpointMagic)+8+sum {
		return fail("is no checkpoint of this version")
	}
	data, want := data[:len(data)-sum], data[len(data)-sum:]
	hash := blake3.New()
	hash.Write(data)
	if !bytes.Equal(hash.Sum(nil), want) {
		return fail("its checksum is wrong: the file is damaged")
	}
	data = data[len(checkpointMagic):]
	n := binary.LittleEndian.Uint64(data)
	if data = data[8:]; n > uint64(len(data)) {
		return fail("its header has %d bytes, the file %d more", n, len(data))
	}
	var was checkpointHeader
	if err := json.Unmarshal(data[:n], &was); err != nil {
		return fail("%v", err)
	}
	is := t.header()
	was.Options.Threads, was.Options.Memory = is.Options.Threads, is.Options.Memory
	for _, c := range []struct {
		what    string
		was, is any
	}{{"options", was.Options, is.Options}, {"the model", was.Model, is.Model}, {"trained tensors", was.Trained, is.Trained}, {"kernel path", was.Path, is.Path}, {"samples", was.Of, is.Of}} {
		if c.was != c.is {
			return fail("it was trained with %s %+v, not %+v", c.what, c.was, c.is)
		}
	}
	p := &t.net.params
	if data = data[n:]; len(data) != 4*4*len(p.values) {
		return fail("it holds %d bytes of values, not %d", len(data), 4*4*len(p.values))
	}
	for _, part := range [][]float32{p.values, p.grads, p.first, p.second} {
		data = data[copy(bytesOf(part), data):]
	}
	t.steps, t.underway, t.learnt, t.validations, t.validating = was.Steps, was.Underway, was.Learnt, was.Validations, was.Validating
	t.net.repack(t.pool)
	return nil
}
