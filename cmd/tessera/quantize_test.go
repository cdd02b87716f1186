package main

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

// A process that is killed while it writes leaves no file under the name it was given, or a whole one, and the next is not hindered.
func TestQuantize_Killed_LeavesNoFileOrAWholeOne(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.gguf"), filepath.Join(dir, "to.gguf")
	const cols, rows = 4096, 4096
	w, err := weights.Create(from, &weights.Metadata{}, []weights.Tensor{{Name: "w", Type: kernel.F16, Shape: []int{cols, rows}}})
	if err != nil {
		t.Fatal(err)
	}
	for range rows {
		if _, err := w.Write(make([]byte, 2*cols)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	cut := 0
	for range 6 {
		cmd := command(dir, "quantize", from, to, "Q8_0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
			if left, _ := filepath.Glob(to + "*"); len(left) > 0 { // it writes, or has written
				break
			}
		}
		time.Sleep(time.Duration(rng.Int64N(int64(50 * time.Millisecond))))
		cmd.Process.Kill()
		cmd.Wait()
		f, err := weights.Open(to)
		if errors.Is(err, fs.ErrNotExist) {
			cut++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := errors.Join(f.Close(), os.Remove(to)); err != nil {
			t.Fatal(err)
		}
	}
	if cut == 0 {
		t.Errorf("seed %d: no process was killed before it was done", seed)
	}
	output(t, command(dir, "quantize", from, to, "Q8_0"))
	if left, _ := filepath.Glob(to + "?*"); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}
