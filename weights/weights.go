// Package weights opens model files: a path goes in, named tensors come out, in place, with the metadata that says how to use them.
// The format is GGUF, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): a header of keys with typed values, the names,
// shapes and types of the tensors, and their data, aligned.
//
// A file may be damaged or hostile. All of the header is checked when it is opened, and what is wrong with it is an *Error.
package weights

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A File is an open model file. It is safe for concurrent use until Close. From Open to Close:
//  1. Each tensor's Data is exactly the bytes that its shape and type need, inside the file; no two overlap.
//  2. Metadata is a copy in memory: what the methods return outlives Close. Tensor data is the mapped file and does not.
type File struct {
	path    string
	file    *os.File // kept for Fingerprint, which asks what it was when it was opened
	data    []byte   // the whole file, mapped
	header  string   // the file up to the tensor data, copied; metadata values lie in it
	meta    map[string]value
	tensors []Tensor
	byName  map[string]int        // index into tensors
	err     atomic.Pointer[Error] // the first key asked for as a type it does not have
}

// A Tensor is a named array in a file.
type Tensor struct {
	Name  string
	Type  kernel.Type
	Shape []int  // in GGUF's order: Shape[0] is the length of a row, whose values are contiguous
	Data  []byte // the mapped file, read-only; gone when the File is closed
}

// An Error tells what is wrong with a model file, and where.
type Error struct {
	Path   string
	Field  string // "version", "tensor blk.0.attn_q.weight", "metadata llama.block_count"
	Detail string // what was found and what was expected
}

func (e *Error) Error() string { return e.Path + ": " + e.Field + ": " + e.Detail }

// Open maps the model file at path and checks its header. A tensor of a type that this program cannot read is an error here
// rather than later, since a model needs all of its tensors.
func Open(path string) (*File, error) {
	// Looked at before it is opened, because opening a pipe waits for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{path, "file", fmt.Sprintf("is %s, expected a GGUF file", kindOf(info.Mode()))}
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f, err := read(path, file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return f, nil
}

// read maps file and parses it. It leaves nothing mapped when it fails.
func read(path string, file *os.File) (*File, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 { // an empty mapping is refused by the system, with a poorer message
		return nil, &Error{path, "file", "is empty, expected a GGUF file"}
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "map", Path: path, Err: err}
	}
	f := &File{path: path, file: file, data: data}
	if err := parse(f); err != nil {
		unix.Munmap(data)
		return nil, err
	}
	return f, nil
}

// Close unmaps the file. No tensor's Data may be touched afterwards.
func (f *File) Close() error {
	err := unix.Munmap(f.data)
	f.data = nil
	if e := f.file.Close(); err == nil {
		err = e
	}
	return err
}

// Path returns the path the file was opened by.
func (f *File) Path() string { return f.path }

// Size returns the file's length in bytes.
func (f *File) Size() int64 { return int64(len(f.data)) }

// Tensor returns the tensor of that name.
func (f *File) Tensor(name string) (Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// Tensors returns all tensors, in the order of the file. The caller must not change them.
func (f *File) Tensors() []Tensor { return f.tensors }

// Errorf returns an *Error about a field of the file, for what only a reader of the model can know to be wrong.
func (f *File) Errorf(field, format string, args ...any) error {
	return &Error{f.path, field, fmt.Sprintf(format, args...)}
}

func kindOf(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&os.ModeNamedPipe != 0:
		return "a pipe"
	default:
		return "a special file"
	}
}
