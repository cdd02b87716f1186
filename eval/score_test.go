package eval

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/weights"
)

// open loads a model for a test.
func open(t testing.TB, path string) (*model.Model, *model.Workspace) {
	t.Helper()
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	m, err := model.New(file)
	if err != nil {
		t.Fatal(err)
	}
	w := m.NewWorkspace(runtime.GOMAXPROCS(0))
	t.Cleanup(w.Close)
	return m, w
}

// The shared vectors are log-probabilities of a float32 implementation of the same file. Float32 with keys and values in
// float16 or float32 must come within 0.002 on average.
func TestScore_SharedVectors_AgreeWithFloat32Reference(t *testing.T) {
	if testing.Short() {
		t.Skip("some 7,000 tokens of the real model")
	}
	files, err := filepath.Glob(filepath.Join(testenv.Shared(t, "vectors", "logits"), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	m, w := open(t, testenv.Model(t))
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cases, err := ReadCases(f, path)
		if err != nil {
			t.Fatal(err)
		}
		var want []Score
		readJSON(t, path, &want)
		for i := range cases {
			t.Run(filepath.Base(path)+"/"+cases[i].Name, func(t *testing.T) {
				got, err := ScoreCase(context.Background(), m, w, kv.F16, &cases[i], nil)
				if err != nil {
					t.Fatal(err)
				}
				mean, worst := distance(t, got.NextLogprob, want[i].NextLogprob)
				kl := divergence(got.LastTop, want[i].LastTop)
				t.Logf("mean |Δ log p| %.6f, worst %.6f, KL over the last position's top ten %.8f", mean, worst, kl)
				if mean > 0.002 || !(kl < 1e-4) {
					t.Errorf("mean |Δ log p| %.6f, want ≤ 0.002; KL %.8f, want < 1e-4", mean, kl)
				}
			})
		}
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func distance(t *testing.T, got, want []float64) (mean, worst float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d log-probabilities, want %d", len(got), len(want))
	}
	for i := range got {
		d := math.Abs(got[i] - want[i])
		mean += d / float64(len(got))
		if worst = max(worst, d); math.IsNaN(d) {
			t.Fatalf("log-probability %d is %v, want %v", i, got[i], want[i])
		}
	}
	return mean, worst
}

// divergence is Σ p·(log p - log q) over the ids that the reference lists; an id missing from got counts as +Inf.
func divergence(got, want []Top) float64 {
	var kl float64
	for _, w := range want {
		q := math.Inf(-1)
		for _, g := range got {
			if g.ID == w.ID {
				q = g.Logprob
			}
		}
		if math.IsInf(q, -1) && w == want[len(want)-1] {
			continue // the tenth and eleventh may swap
		}
		kl += math.Exp(w.Logprob) * (w.Logprob - q)
	}
	return kl
}
