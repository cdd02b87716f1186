package weights

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// Merge writes the model of f to path with the adapter's changes made to its matrices: those are of type t then, F32, F16, BF16 or Q8_0,
// all others as they are. The adapter must be one for f. path is a whole file afterwards or what it was. progress is told how many of
// f's tensors are done.
func (f *File) Merge(ctx context.Context, path string, a *Adapter, t kernel.Type, progress func(done, total int)) (err error) {
	if a.beyondLoRA() {
		return errors.New("the adapter acts on final blocks alone, hides sinks or has link tokens, which a model's matrices cannot: use it beside the model, or train one without --final-only, --hide-sinks and --link-tokens")
	}
	tensors := slices.Clone(f.tensors)
	for _, c := range a.Changes {
		tensors[f.byName[c.Tensor]].Type = t
	}
	w, err := Create(path, f.Metadata(), tensors)
	if err != nil {
		return err
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
	for i, tensor := range f.tensors {
		if err := ctx.Err(); err != nil {
			return err
		}
		data := tensor.Data
		if at := slices.IndexFunc(a.Changes, func(c Change) bool { return c.Tensor == tensor.Name }); at >= 0 {
			if data, err = tensor.merged(&a.Changes[at], a.Scale(&a.Changes[at]), t); err != nil {
				return f.Errorf(tensorField(tensor.Name), "cannot be written as %v: %v", t, err)
			}
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		progress(i+1, len(f.tensors))
	}
	return w.Commit()
}

// merged returns W + scale·B·A in type t.
func (t Tensor) merged(c *Change, scale float32, to kernel.Type) ([]byte, error) {
	w := make([]float32, c.Out*c.In)
	kernel.Dequantize(t.Type, w, t.Data)
	for out := range c.Out {
		row := w[out*c.In:][:c.In]
		for r := range c.Rank {
			b := scale * c.B[out*c.Rank+r]
			for i, v := range c.A[r*c.In:][:c.In] {
				row[i] += b * v
			}
		}
	}
	data := make([]byte, to.RowBytes(len(w)))
	return data, kernel.Quantize(to, data, w)
}
