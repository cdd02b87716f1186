package weights

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// fileTypes are GGUF's numbers for what most tensors of a file are, as general.file_type has them.
var fileTypes = map[kernel.Type]uint32{kernel.F32: 0, kernel.F16: 1, kernel.Q4_0: 2, kernel.Q4_1: 3, kernel.Q8_0: 7, kernel.BF16: 32}

// quantizationVersion is that of the layouts that kernel.Quantize writes, as general.quantization_version has it.
const quantizationVersion = uint32(2)

// Quantize writes the model of f to path with its matrices in type t, one of F32, F16, BF16, Q4_0, Q4_1 and Q8_0. Vectors stay as they
// are, and so does a matrix that has type t; one whose rows are not whole blocks of t is written in F16, and inF16 names those. All
// metadata but the type is copied. path is a whole file afterwards or what it was. progress is told how many bytes of f's tensors are done.
func (f *File) Quantize(ctx context.Context, path string, t kernel.Type, progress func(done, total int64)) (inF16 []string, err error) {
	fileType, ok := fileTypes[t]
	if !ok {
		return nil, fmt.Errorf("type %v cannot be written", t)
	}
	var total int64
	tensors := slices.Clone(f.tensors)
	for i, tensor := range f.tensors {
		total += int64(len(tensor.Data))
		switch {
		case len(tensor.Shape) < 2:
		case tensor.Shape[0]%t.BlockLen() != 0:
			tensors[i].Type = kernel.F16
			inF16 = append(inF16, tensor.Name)
		default:
			tensors[i].Type = t
		}
	}
	m := f.Metadata()
	m.Set("general.file_type", fileType)
	m.Set("general.quantization_version", quantizationVersion)
	w, err := Create(path, m, tensors)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Discard()) }()

	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			if _, fault := v.(interface{ Addr() uintptr }); !fault {
				panic(v)
			}
			err = f.Errorf("file", "cannot be read to its end any more: it was cut short since it was opened, or its disk failed")
		}
	}()
	pool := kernel.NewPool(runtime.GOMAXPROCS(0))
	defer pool.Close()
	var done int64
	for i, tensor := range f.tensors {
		c := &conversion{from: tensor.Type, to: tensors[i].Type, cols: tensor.Shape[0]}
		for from := 0; from < len(tensor.Data); {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			to := min(from+c.pieceBytes(), len(tensor.Data))
			data, row, err := c.convert(pool, tensor.Data[from:to])
			if err != nil {
				return nil, f.Errorf(tensorField(tensor.Name), "row %d: %v", from/c.from.RowBytes(c.cols)+row, err)
			}
			if _, err := w.Write(data); err != nil {
				return nil, err
			}
			done += int64(to - from)
			from = to
			progress(done, total)
		}
	}
	return inF16, w.Commit()
}

// pieceValues bounds how many values are float32 at a time, a longer row apart.
const pieceValues = 1 << 20

// A conversion is the task of writing rows of one type in another, one an item.
type conversion struct {
	from, to kernel.Type
	cols     int
	src, dst []byte
	floats   []float32
	errs     []error // of each row
}

// rows returns how many are converted at a time.
func (c *conversion) rows() int { return max(pieceValues/c.cols, 1) }

// pieceBytes returns how many bytes of the source those are.
func (c *conversion) pieceBytes() int { return c.rows() * c.from.RowBytes(c.cols) }

// convert returns src, whole rows, no more than a piece, in the type wanted, until the next call. An error is that of the row it names.
func (c *conversion) convert(pool *kernel.Pool, src []byte) (dst []byte, row int, err error) {
	if c.from == c.to {
		return src, 0, nil
	}
	if n := len(src) / c.from.RowBytes(c.cols); c.floats == nil {
		c.floats, c.dst, c.errs = make([]float32, n*c.cols), make([]byte, n*c.to.RowBytes(c.cols)), make([]error, n)
	}
	c.src = src
	n := len(src) / c.from.RowBytes(c.cols)
	pool.Run(n, c)
	for row, err := range c.errs[:n] {
		if err != nil {
			return nil, row, err
		}
	}
	return c.dst[:n*c.to.RowBytes(c.cols)], 0, nil
}

// Do converts row i.
func (c *conversion) Do(_, i int) {
	src, dst := c.from.RowBytes(c.cols), c.to.RowBytes(c.cols)
	x := c.floats[i*c.cols:][:c.cols]
	kernel.Dequantize(c.from, x, c.src[i*src:][:src])
	c.errs[i] = kernel.Quantize(c.to, c.dst[i*dst:][:dst], x)
}
