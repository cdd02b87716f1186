package weights

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
)

func TestQuantize_TheFileIsTheModelInAnotherType(t *testing.T) {
	from, err := Open(testenv.Tiny("tiny-untied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for typ, fileType := range fileTypes {
		path := filepath.Join(t.TempDir(), "model.gguf")
		last := int64(0)
		kept, err := from.Quantize(context.Background(), path, typ, func(done, total int64) {
			if last = done; done > total {
				t.Errorf("%d of %d bytes done", done, total)
			}
		})
		if err != nil || len(kept) > 0 || last == 0 {
			t.Fatalf("%v: kept %v, %d bytes done, %v", typ, kept, last, err)
		}
		to, err := Open(path)
		if err != nil {
			t.Fatalf("%v: what was written does not open: %v", typ, err)
		}
		if n, _ := to.Uint("general.file_type"); n != uint64(fileType) {
			t.Errorf("%v: general.file_type %d, want %d", typ, n, fileType)
		}
		want, _ := from.Vocab()
		if got, err := to.Vocab(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: another vocabulary, or %v", typ, err)
		}
		if got, _ := to.Uint("llama.block_count"); got != 2 || to.Architecture() != "llama" {
			t.Errorf("%v: %d blocks of %q", typ, got, to.Architecture())
		}
		for _, a := range from.Tensors() {
			b, ok := to.Tensor(a.Name)
			wantType := typ
			if len(a.Shape) == 1 {
				wantType = a.Type
			}
			if !ok || b.Type != wantType || !reflect.DeepEqual(b.Shape, a.Shape) {
				t.Fatalf("%v: tensor %s is %v %v, want %v %v", typ, a.Name, b.Type, b.Shape, wantType, a.Shape)
			}
			data := make([]byte, len(b.Data))
			values := make([]float32, a.Shape[0]*max(1, len(a.Data)/4/a.Shape[0]))
			kernel.Dequantize(a.Type, values, a.Data)
			if err := kernel.Quantize(wantType, data, values); err != nil || string(data) != string(b.Data) {
				t.Errorf("%v: tensor %s does not hold its quantized values (%v)", typ, a.Name, err)
			}
		}
		to.Close()
	}
}

func TestQuantize_AValueThatIsNoNumber_LeavesNoFile(t *testing.T) {
	b, err := os.ReadFile(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) - 4000; i < len(b)-3996; i++ { // inside the last matrix, or a vector beside it
		b[i] = 0xff
	}
	path := filepath.Join(t.TempDir(), "broken.gguf")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to := filepath.Join(t.TempDir(), "out.gguf")
	if _, err := from.Quantize(context.Background(), to, kernel.Q8_0, func(int64, int64) {}); err == nil || !strings.Contains(err.Error(), "tensor ") || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("%v, want an error that names the tensor and NaN", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(to)); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}
