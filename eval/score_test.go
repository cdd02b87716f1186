package eval

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/weights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

// A reference is a case of the shared vectors: what a float32 implementation of the same file says, and for full attention how far
// llama.cpp, which quantizes activations, is from that.
type reference struct {
	Score
	LlamaCPP *struct {
		MeanAbsDelta float64 `json:"mean_abs_delta"`
		KL           float64
	} `json:"llama_cpp"`
}

// With keys and values in float16 the mean stays within 0.002, and everything within llama.cpp's own distance. With keys and values in
// float32 the portable path, which computes in float32 throughout, leaves almost nothing but the rounding of the reference's five
// decimals; the others, whose matrix products take 16-bit activations, stay within 0.002 there too. bfloat16 and 8-bit codes are coarser.
func TestScore_SharedVectors_AgreeWithFloat32Reference(t *testing.T) {
	if testing.Short() {
		t.Skip("some 4,500 tokens of the real model")
	}
	files, err := filepath.Glob(filepath.Join(testenv.Shared(t, "vectors", "logits"), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	portable := kernel.Path() == "portable"
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
		var references []reference
		readJSON(t, path, &references)
		for i := range cases {
			c, ref := &cases[i], references[i]
			t.Run(c.Name, func(t *testing.T) {
				if portable && len(c.IDs) >= 200 && os.Getenv("TESSERA_LARGE") == "" {
					t.Skip("takes minutes on the portable path, which the shorter cases hold to a tighter limit; TESSERA_LARGE=1 runs it")
				}
				maxMean, maxKL := 0.002, 2e-5
				if l := ref.LlamaCPP; l != nil {
					maxMean, maxKL = min(maxMean, l.MeanAbsDelta), min(maxKL, l.KL)
				}
				mustAgree(t, m, w, kv.F16, c, ref, maxMean, maxKL)
				if len(c.IDs) < 200 {
					maxMean, maxKL := 0.002, 1e-6
					if portable {
						maxMean, maxKL = 5e-5, 1e-8
					}
					mustAgree(t, m, w, kv.F32, c, ref, maxMean, maxKL)
				}
				if len(c.IDs) < 200 && !portable { // its conversions have the same bits
					mustAgree(t, m, w, kv.BF16, c, ref, 0.01, 1e-4)
					mustAgree(t, m, w, kv.Q8, c, ref, 0.05, 1e-3)
				}
			})
		}
	}
}

func mustAgree(t *testing.T, m *model.Model, w *model.Workspace, typ kv.Type, c *Case, want reference, maxMean, maxKL float64) {
	t.Helper()
	got, err := ScoreCase(context.Background(), m, w, typ, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.First != want.First || len(got.LastTop) != lastTop {
		t.Fatalf("first is %d and last_top has %d, want %d and %d", got.First, len(got.LastTop), want.First, lastTop)
	}
	mean, worst := distance(t, got.NextLogprob, want.NextLogprob)
	kl := divergence(got.LastTop, want.LastTop)
	t.Logf("%v: mean |Δ log p| %.7f, worst %.6f, KL %.3g", typ, mean, worst, kl)
	if !(mean <= maxMean) || !(kl <= maxKL) {
		t.Errorf("%v: mean |Δ log p| %.7f, want ≤ %g; KL %.3g, want ≤ %g", typ, mean, maxMean, kl, maxKL)
	}
}

func TestReadCases_WhatIsWrong_IsNamed(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{`{`, "not a list"},
		{`{"ids":[1]}`, "not a list"},
		{`[]`, "holds no case"},
		{`[{"name":"a","ids":[]}]`, `case 0 ("a"): ids: empty`},
		{`[{"ids":[1]},{"name":"b","ids":[1,"x"]}]`, "not a list"},
		{`[{"ids":[1,2],"first":2}]`, "first: 2; want 0 to 1"},
		{`[{"ids":[1,2],"first":-1}]`, "first: -1"},
		{`[{"ids":[1,2,3],"blocks":[1,1]}]`, "lengths add up to 2; want 3"},
		{`[{"ids":[1,2,3],"blocks":[1,3]}]`, "blocks[1]: 3 tokens; want 1 to 2"},
		{`[{"ids":[1,2,3],"blocks":[3,0]}]`, "blocks[1]: 0 tokens"},
		{`[{"ids":[1,2,3],"blocks":[]}]`, "lengths add up to 0; want 3"},
		{`[{"ids":[1,2,3],"blocks":[1,2],"dependent":[1]}]`, "dependent[0]: block 1"},
		{`[{"ids":[1,2,3],"blocks":[1,2],"dependent":[-1]}]`, "dependent[0]: block -1"},
		{`[{"ids":[1,2,3],"dependent":[0]}]`, "blocks is null"},
	} {
		if cases, err := ReadCases(strings.NewReader(tt.file), "f.json"); err == nil || !strings.HasPrefix(err.Error(), "f.json: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", tt.file, cases, err, tt.want)
		}
	}
}

func TestScoreCase_EveryBlockDependent_EqualsFull(t *testing.T) {
	m, w := open(t, testenv.Tiny("tiny-tied.gguf"))
	score := func(c Case) Score {
		c.IDs = []int32{72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100}
		s, err := ScoreCase(context.Background(), m, w, kv.F32, &c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	full, dependent := score(Case{}), score(Case{Blocks: []int{4, 1, 3, 3}, Dependent: []int{0, 1, 2}})
	block := score(Case{Blocks: []int{4, 1, 3, 3}})
	if _, worst := distance(t, dependent.NextLogprob, full.NextLogprob); worst > 1e-5 {
		t.Errorf("every block dependent: log-probabilities are up to %g off full attention's", worst)
	}
	if _, worst := distance(t, block.NextLogprob, full.NextLogprob); worst < 1e-3 {
		t.Errorf("independent blocks: log-probabilities are only %g off full attention's: the test shows nothing", worst)
	}
	for first := range 11 { // what is scored does not depend on where scoring begins
		if part := score(Case{First: first}); !slices.Equal(part.NextLogprob, full.NextLogprob[first:]) || !slices.Equal(part.LastTop, full.LastTop) || part.First != first {
			t.Errorf("from %d: got %+v, want %v", first, part, full.NextLogprob[first:])
		}
	}
}

func TestScoreCase_TokenOutsideTheVocabulary_IsAnErrorThatNamesTheCase(t *testing.T) {
	m, w := open(t, testenv.Tiny("tiny-tied.gguf"))
	_, err := ScoreCase(context.Background(), m, w, kv.F16, &Case{Name: "bad", IDs: []int32{1, 256}}, nil)
	if err == nil || !strings.Contains(err.Error(), `"bad"`) || !strings.Contains(err.Error(), "token id 256; the vocabulary has 0 to 255") {
		t.Errorf("got %v", err)
	}
}

func TestTop_JSON_IsAPair(t *testing.T) {
	b, err := json.Marshal(Top{7, -1.5})
	if err != nil || string(b) != "[7,-1.5]" {
		t.Errorf("got %s, %v", b, err)
	}
	for _, bad := range []string{`[1]`, `[1,2,3]`, `{"id":1}`, `["a",1]`} {
		var top Top
		if err := json.Unmarshal([]byte(bad), &top); err == nil {
			t.Errorf("%s is accepted as %v", bad, top)
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

// divergence is Σ p·(log p - log q) over the ids that both list and all others taken as one: never below 0 but for rounding, and at
// most the divergence over the whole vocabulary. Ids in only one of the lists, which the last places may be, are with the others.
func divergence(got, want []Top) float64 {
	var kl float64
	p, q := 1.0, 1.0 // what is left
	listed := 0
	for _, w := range want {
		for _, g := range got {
			if g.ID == w.ID {
				listed++
				kl += math.Exp(w.Logprob) * (w.Logprob - g.Logprob)
				p, q = p-math.Exp(w.Logprob), q-math.Exp(g.Logprob)
			}
		}
	}
	if listed < len(want)-2 || !(p > 0 && q > 0) {
		return math.Inf(1)
	}
	return kl + p*math.Log(p/q)
}
