package weights

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// fileTypes are GGUF's numbers for what most tensors of a file are, as general.file_type has them.
var fileTypes = map[kernel.Type]uint32{kernel.F32: 0, kernel.F16: 1, kernel.Q4_0: 2, kernel.Q4_1: 3, kernel.Q8_0: 7, kernel.BF16: 32}

// quantizationVersion is that of the layouts that kernel.Quantize writes, as general.quantization_version has it.
const quantizationVersion = 2

// Quantize writes the model of f to path with its matrices in type t, one of F32, F16, BF16, Q4_0, Q4_1 and Q8_0. Vectors stay as they
// are, and a matrix whose rows are not whole blocks of t is written as F16; kept names those. All other metadata is copied. The file is
// written under another name beside path, synced and renamed: path is a whole file or what it was. progress is told bytes of f done.
func (f *File) Quantize(ctx context.Context, path string, t kernel.Type, progress func(done, total int64)) (kept []string, err error) {
	fileType, ok := fileTypes[t]
	if !ok {
		return nil, fmt.Errorf("type %v cannot be written", t)
	}
	types := make([]kernel.Type, len(f.tensors))
	for i, tensor := range f.tensors {
		switch types[i] = t; {
		case len(tensor.Shape) < 2:
			types[i] = tensor.Type
		case tensor.Shape[0]%t.BlockLen() != 0:
			types[i] = kernel.F16
			kept = append(kept, tensor.Name)
		}
	}
	alignment, err := alignment(f)
	if err != nil {
		return nil, err
	}
	header, err := f.headerWith(types, map[string]uint32{"general.file_type": fileType, "general.quantization_version": quantizationVersion}, alignment)
	if err != nil {
		return nil, err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, temp.Close(), os.Remove(temp.Name()))
		}
	}()
	w := bufio.NewWriterSize(temp, 1<<20)
	if _, err := w.Write(header); err != nil {
		return nil, err
	}
	var done int64
	for i, tensor := range f.tensors {
		n := 0
		write := func(b []byte) error {
			n += len(b)
			_, err := w.Write(b)
			return err
		}
		each := func(bytes int) {
			done += int64(bytes)
			progress(done, f.Size())
		}
		if err := convert(ctx, f, tensor, types[i], write, each); err != nil {
			return nil, err
		}
		if err := write(make([]byte, -n&(int(alignment)-1))); err != nil {
			return nil, err
		}
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	if err := temp.Chmod(0o644); err != nil {
		return nil, err
	}
	if err := temp.Sync(); err != nil {
		return nil, err
	}
	if err := temp.Close(); err != nil {
		return nil, err
	}
	return kept, os.Rename(temp.Name(), path)
}

// headerWith is f's header as version 3, with the types of its tensors changed and some uint32 metadata set: all that comes before the
// tensors' data, the padding to it included.
func (f *File) headerWith(types []kernel.Type, set map[string]uint32, alignment uint64) ([]byte, error) {
	p := &parser{path: f.path, data: f.data}
	_, n, err := p.preamble()
	if err != nil {
		return nil, err
	}
	var entries bytes.Buffer
	count := uint64(0)
	for range n {
		start := p.off
		key, err := p.text("key")
		if err != nil {
			return nil, err
		}
		if _, err := p.value(metadataField(string(key))); err != nil {
			return nil, err
		}
		if _, ours := set[string(key)]; !ours {
			entries.Write(f.data[start:p.off])
			count++
		}
	}
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	var own []byte
	for _, key := range []string{"general.file_type", "general.quantization_version"} {
		own = le.AppendUint32(le.AppendUint32(text(own, key), uint32(kindUint32)), set[key])
		count++
	}
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, uint64(len(f.tensors))), count)
	b = append(append(b, entries.Bytes()...), own...)
	offset := uint64(0)
	for i, t := range f.tensors {
		b = le.AppendUint32(text(b, t.Name), uint32(len(t.Shape)))
		values := 1
		for _, d := range t.Shape {
			b = le.AppendUint64(b, uint64(d))
			values *= d
		}
		b = le.AppendUint64(le.AppendUint32(b, uint32(types[i])), offset)
		size := uint64(types[i].RowBytes(values))
		offset += (size + alignment - 1) / alignment * alignment
	}
	return append(b, make([]byte, -uint64(len(b))&(alignment-1))...), nil
}

// piece bounds the values that are float32 at a time.
const piece = 1 << 20

// convert writes a tensor in type t, some rows at a time; done is told how many bytes of the tensor that was.
func convert(ctx context.Context, f *File, tensor Tensor, t kernel.Type, write func([]byte) error, done func(int)) error {
	if t == tensor.Type {
		done(len(tensor.Data))
		return write(tensor.Data)
	}
	cols := tensor.Shape[0]
	c := &conversion{from: tensor.Type, to: t, cols: cols}
	rowBytes := tensor.Type.RowBytes(cols)
	rows := max(piece/cols, 1)
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	c.floats, c.out, c.errs = make([]float32, rows*cols), make([]byte, rows*t.RowBytes(cols)), make([]error, rows)
	for at := 0; at < len(tensor.Data); at += rows * rowBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.src = tensor.Data[at:min(at+rows*rowBytes, len(tensor.Data))]
		n := len(c.src) / rowBytes
		pool.Run(n, c)
		for i, err := range c.errs[:n] {
			if err != nil {
				return f.Errorf("tensor "+tensor.Name, "row %d: %v", at/rowBytes+i, err)
			}
		}
		if err := write(c.out[:n*t.RowBytes(cols)]); err != nil {
			return err
		}
		done(len(c.src))
	}
	return nil
}

// conversion is the task of converting rows, one an item.
type conversion struct {
	from, to kernel.Type
	cols     int
	src, out []byte
	floats   []float32
	errs     []error
}

func (c *conversion) Do(_, i int) {
	x := c.floats[i*c.cols:][:c.cols]
	kernel.Dequantize(c.from, x, c.src[i*c.from.RowBytes(c.cols):][:c.from.RowBytes(c.cols)])
	c.errs[i] = kernel.Quantize(c.to, c.out[i*c.to.RowBytes(c.cols):][:c.to.RowBytes(c.cols)], x)
}
