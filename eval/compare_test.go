package eval

import (
	"math"
	"testing"
)

// statsmodels 0.15.0: proportion_confint(k, n, 0.05, 'wilson').
func TestWilson_AsStatsmodels(t *testing.T) {
	for _, tt := range []struct {
		k, n     int
		low, top float64
	}{
		{18, 150, 0.077269030878, 0.181708354841},
		{14, 150, 0.056411867477, 0.150563931276},
		{0, 10, 0, 0.277532799863},
		{10, 10, 0.722467200137, 1},
		{1, 1, 0.206549314377, 1},
		{57, 1000, 0.044253440359, 0.073137067659},
		{203, 400, 0.458668596198, 0.556188719387},
		{0, 0, 0, 1}, // nothing is known
	} {
		if got := Wilson(tt.k, tt.n); math.Abs(got[0]-tt.low) > 1e-11 || math.Abs(got[1]-tt.top) > 1e-11 {
			t.Errorf("%d of %d: got %v, want [%v, %v]", tt.k, tt.n, got, tt.low, tt.top)
		}
	}
}

// scipy 1.17.1: binomtest(b, b+c).pvalue.
func TestMcNemar_AsScipysBinomialTest(t *testing.T) {
	for _, tt := range []struct {
		b, c int
		p    float64
	}{
		{0, 0, 1}, {5, 5, 1}, {3, 3, 1}, {14, 4, 0.0308837890625}, {1, 9, 0.021484375}, {9, 1, 0.021484375}, {0, 6, 0.03125},
		{60, 23, 5.97359563861e-05}, {400, 300, 0.000178476314486},
	} {
		if got := McNemar(tt.b, tt.c); math.Abs(got-tt.p) > 1e-9*tt.p {
			t.Errorf("%d and %d: got %.12g, want %.12g", tt.b, tt.c, got, tt.p)
		}
	}
}

// outcomes makes a set of so many differences of 1, -1 and 0.
func outcomes(up, down, n int) []float64 {
	set := make([]float64, n)
	for i := range up + down {
		set[i] = 1
		if i >= up {
			set[i] = -1
		}
	}
	return set
}

// scipy 1.17.1: bootstrap(…, method='percentile', n_resamples=100000), three seeds, whose ends differ by up to a question, 1/400. The
// second case resamples within each of two sets and averages their means.
func TestBootstrap_AsScipy(t *testing.T) {
	a, b := outcomes(31, 52, 400), outcomes(20, 9, 227)
	for _, tt := range []struct {
		sets     [][]float64
		low, top float64
		off      float64
	}{
		{[][]float64{a}, -0.0975, -0.0075, 1.01 / 400},
		{[][]float64{a, b}, -0.03399, 0.02994, 0.001},
		{[][]float64{outcomes(0, 0, 5)}, 0, 0, 0},
	} {
		got := bootstrap(tt.sets, 1)
		if math.Abs(got[0]-tt.low) > tt.off || math.Abs(got[1]-tt.top) > tt.off {
			t.Errorf("got %v, want [%v, %v] to within %v", got, tt.low, tt.top, tt.off)
		}
		if again := bootstrap(tt.sets, 1); again != got {
			t.Errorf("the same seed gives %v and %v", got, again)
		}
	}
}

func TestCompare_CountsPairs_AndAveragesOverSets(t *testing.T) {
	result := func(name, attention, outcomes string) *Result {
		r := &Result{Dataset: name, Attention: "full", Weights: Weights{Model: "m.gguf"}, N: len(outcomes), Outcomes: outcomes, Reencoded: true, Passages: 10}
		if attention == "block" {
			r.Attention = "block"
		}
		for _, o := range outcomes {
			r.Correct += int(o - '0')
		}
		r.Accuracy = float64(r.Correct) / float64(r.N)
		return r
	}
	report := NewReport([]*Result{
		result("nq", "full", "11110000"), result("nq", "block", "10001000"),
		result("hotpot", "full", "1100"), result("hotpot", "block", "1110"),
		result("other", "full", "11"), result("other", "block", "1"), // not the same questions
	})
	want := []struct {
		sets             int
		n, only, against int
		difference       float64
	}{{1, 8, 1, 3, -0.25}, {1, 4, 1, 0, 0.25}, {2, 12, 2, 3, 0}}
	if len(report.Comparisons) != len(want) {
		t.Fatalf("%d comparisons, want %d: %+v", len(report.Comparisons), len(want), report.Comparisons)
	}
	for i, w := range want {
		c := report.Comparisons[i]
		if c.Of != "m, block, 10 passages" || c.Against != "m, full, 10 passages" {
			t.Errorf("comparison %d is of %q against %q", i, c.Of, c.Against)
		}
		if len(c.Datasets) != w.sets || c.N != w.n || c.OnlyOf != w.only || c.OnlyAgainst != w.against || math.Abs(c.Difference-w.difference) > 1e-12 ||
			c.McNemar != McNemar(w.only, w.against) || !(c.Interval[0] <= w.difference && w.difference <= c.Interval[1]) {
			t.Errorf("comparison %d: got %+v, want %+v", i, c, w)
		}
	}
}
