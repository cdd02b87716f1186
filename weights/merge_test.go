package weights

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
)

func TestMerge_AddsTheProduct_AndKeepsTheRest(t *testing.T) {
	b := base(t)
	a := adapterFor(b, 3, "blk.0.attn_k.weight", "blk.1.ffn_down.weight")
	for _, c := range []struct {
		kind  kernel.Type
		bound float64 // relative to the largest value of a block of 32
	}{{kernel.F32, 1e-6}, {kernel.F16, 1e-3}, {kernel.Q8_0, 1. / 200}} {
		path := filepath.Join(t.TempDir(), "merged.gguf")
		told := 0
		if err := b.Merge(t.Context(), path, a, c.kind, func(done, total int) { told = done * 100 / total }); err != nil {
			t.Fatal(err)
		}
		if told != 100 {
			t.Errorf("told of %d %%", told)
		}
		final := *a
		final.FinalOnly = true
		if err := b.Merge(t.Context(), path, &final, c.kind, func(int, int) {}); err == nil || !strings.HasPrefix(err.Error(), "the adapter acts on final blocks alone, hides sinks or has link tokens") {
			t.Errorf("an adapter for final blocks: %v", err) // and what was at path is still there
		}
		m := openFile(t, path)
		for _, was := range b.Tensors() {
			is, _ := m.Tensor(was.Name)
			var change *Change
			for i := range a.Changes {
				if a.Changes[i].Tensor == was.Name {
					change = &a.Changes[i]
				}
			}
			if change == nil {
				if is.Type != was.Type || !bytes.Equal(is.Data, was.Data) {
					t.Errorf("%s is another tensor", was.Name)
				}
				continue
			}
			got, w := make([]float32, change.In*change.Out), make([]float32, change.In*change.Out)
			kernel.Dequantize(is.Type, got, is.Data)
			kernel.Dequantize(was.Type, w, was.Data)
			want := make([]float64, len(w))
			for o := range change.Out {
				for i := range change.In {
					sum := float64(w[o*change.In+i])
					for r := range change.Rank {
						sum += float64(a.Alpha) / 3 * float64(change.B[o*change.Rank+r]) * float64(change.A[r*change.In+i])
					}
					want[o*change.In+i] = sum
				}
			}
			for i := range want {
				top := 0.0
				for _, v := range want[i/32*32:][:32] {
					top = max(top, math.Abs(v))
				}
				if is.Type != c.kind || math.Abs(float64(got[i])-want[i]) > c.bound*top {
					t.Fatalf("%s as %v: value %d is %v, want %v", was.Name, is.Type, i, got[i], want[i])
				}
			}
		}
	}
}
