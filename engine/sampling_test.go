package engine

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestSampling_ZeroValue_TakesTheLargestLogit(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, tt := range []struct {
		name   string
		logits []float32
		want   int32
	}{
		{"largest", []float32{-1, 3, 2}, 1},
		{"ties go to the lowest id", []float32{0, 3, 3, 3}, 1},
		{"all negative", []float32{-9, -3, -7}, 1},
		{"NaN is never chosen", []float32{nan, 1, nan, 2, nan}, 3},
		{"+Inf is the largest", []float32{1, inf, inf}, 1},
		{"-Inf elsewhere", []float32{-inf, -inf, -5}, 2},
	} {
		for _, s := range []Sampling{{}, {Temperature: 1, TopK: 1}} { // one candidate left: the same answer
			if got, err := newSampler(s).next(tt.logits, nil); err != nil || got != tt.want {
				t.Errorf("%s: %+v: got %d, %v; want %d", tt.name, s, got, err, tt.want)
			}
		}
	}
}

func TestSampler_NoNumberAmongLogits_IsAnError(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, logits := range [][]float32{{nan, nan}, {-inf, nan}, {}} {
		for _, s := range []Sampling{{}, {Temperature: 1, TopP: 0.5}} {
			if id, err := newSampler(s).next(logits, nil); err == nil {
				t.Errorf("logits %v, %+v: got token %d, want an error", logits, s, id)
			}
		}
	}
}

// The logits are the logarithms of these probabilities; each filter leaves what the table says, renormalized.
func TestSampler_Draws_MatchProbabilities(t *testing.T) {
	p := []float64{0.05, 0.4, 0.1, 0.25, 0.2}
	for _, tt := range []struct {
		name   string
		s      Sampling
		recent []int32
		want   []float64
	}{
		{"temperature 1", Sampling{Temperature: 1}, nil, p},
		{"temperature 2 takes square roots", Sampling{Temperature: 2}, nil, []float64{0.2236, 0.6325, 0.3162, 0.5, 0.4472}},
		{"temperature 0.5 takes squares", Sampling{Temperature: 0.5}, nil, []float64{0.0025, 0.16, 0.01, 0.0625, 0.04}},
		{"top-k", Sampling{Temperature: 1, TopK: 3}, nil, []float64{0, 0.4, 0, 0.25, 0.2}},
		{"top-k above the vocabulary", Sampling{Temperature: 1, TopK: 9}, nil, p},
		{"top-p takes in the token that reaches it", Sampling{Temperature: 1, TopP: 0.7}, nil, []float64{0, 0.4, 0, 0.25, 0.2}},
		{"top-p 1", Sampling{Temperature: 1, TopP: 1}, nil, p},
		{"top-p of what top-k left", Sampling{Temperature: 1, TopK: 3, TopP: 0.7}, nil, []float64{0, 0.4, 0, 0.25, 0}},
		{"min-p", Sampling{Temperature: 1, MinP: 0.3}, nil, []float64{0, 0.4, 0, 0.25, 0.2}},
		{"min-p 1", Sampling{Temperature: 1, MinP: 1}, nil, []float64{0, 1, 0, 0, 0}},
		{"penalty 2 squares a probability, once", Sampling{Temperature: 1, RepetitionPenalty: 2}, []int32{1, 1, 1}, []float64{0.05, 0.16, 0.1, 0.25, 0.2}},
		{"penalty comes before top-k", Sampling{Temperature: 1, RepetitionPenalty: 2, TopK: 2}, []int32{1}, []float64{0, 0, 0, 0.25, 0.2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			logits := make([]float32, len(p))
			for i := range p {
				logits[i] = float32(math.Log(p[i]))
			}
			const n = 60_000
			one, each := make([]float64, len(p)), make([]float64, len(p))
			s := newSampler(tt.s)
			for i := range n {
				one[draw(t, s, logits, tt.recent)]++ // many draws of one seed
				fresh := tt.s
				fresh.Seed = uint64(i)
				if i < n/10 {
					each[draw(t, newSampler(fresh), logits, tt.recent)]++ // the first draw of many seeds
				}
			}
			checkCounts(t, "one seed", one, tt.want)
			checkCounts(t, "many seeds", each, tt.want)
		})
	}
}

func draw(t *testing.T, s *sampler, logits []float32, recent []int32) int32 {
	t.Helper()
	id, err := s.next(logits, recent)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// checkCounts compares counts with weights: within five standard deviations, and none where the weight is zero.
func checkCounts(t *testing.T, name string, counts, weights []float64) {
	t.Helper()
	n, total := 0.0, 0.0
	for i := range counts {
		n += counts[i]
		total += weights[i]
	}
	for i := range counts {
		p := weights[i] / total
		if dev := math.Abs(counts[i] - n*p); dev > 5*math.Sqrt(n*p*(1-p)) {
			t.Errorf("%s: token %d: drawn %v of %v times; want %.0f", name, i, counts[i], n, n*p)
		}
	}
}

func TestSampler_PositiveLogit_IsDividedByThePenalty(t *testing.T) {
	s := newSampler(Sampling{RepetitionPenalty: 2})
	logits := []float32{4, 3, -1}
	if got := draw(t, s, logits, []int32{0, -5, 99}); got != 1 {
		t.Errorf("penalized 4 against 3: got token %d, want 1", got)
	}
	if !slices.Equal(logits, []float32{4, 3, -1}) {
		t.Errorf("the caller's logits became %v", logits)
	}
	if got := draw(t, s, logits, nil); got != 0 {
		t.Errorf("without recent tokens: got %d, want 0: a penalty outlived its call", got)
	}
}

func TestSampler_SameSeed_SameTokens(t *testing.T) {
	s := Sampling{Temperature: 1, TopK: 20, TopP: 0.9, MinP: 0.01, RepetitionPenalty: 1.1, Seed: 7}
	a, b := newSampler(s), newSampler(s)
	s.Seed = 8
	other := newSampler(s)
	random := rand.New(rand.NewPCG(1, 1))
	differ := false
	for range 200 {
		logits := randomLogits(random, 100)
		x := draw(t, a, logits, []int32{1, 2})
		if y := draw(t, b, slices.Clone(logits), []int32{1, 2}); x != y {
			t.Fatalf("seed 7 gave %d and %d", x, y)
		}
		differ = differ || x != draw(t, other, logits, []int32{1, 2})
	}
	if !differ {
		t.Error("seeds 7 and 8 gave the same 200 tokens")
	}
}

func TestSampler_AfterTheFirstToken_AllocatesNothing(t *testing.T) {
	logits := randomLogits(rand.New(rand.NewPCG(2, 2)), 5000)
	recent := []int32{5, 6, 7}
	for _, s := range []Sampling{{}, {RepetitionPenalty: 1.2}, {Temperature: 0.8, TopK: 40, TopP: 0.9, MinP: 0.05, RepetitionPenalty: 1.2}} {
		sampler := newSampler(s)
		draw(t, sampler, logits, recent)
		if n := testing.AllocsPerRun(20, func() { draw(t, sampler, logits, recent) }); n != 0 {
			t.Errorf("%+v: %v allocations a token", s, n)
		}
	}
}

func TestLikeliest_AgreesWithSorting(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		all := make([]candidate, 1+random.IntN(40))
		for i := range all {
			all[i] = candidate{id: int32(i), logit: float64(random.IntN(8))} // many ties
		}
		want := slices.Clone(all)
		slices.SortFunc(want, func(a, b candidate) int {
			if a.likelier(b) {
				return -1
			}
			return 1
		})
		k := 1 + random.IntN(len(all))
		got := slices.Clone(likeliest(all, func(n int, _ candidate) bool { return n == k }))
		slices.Reverse(got)
		if !slices.Equal(got, want[:k]) {
			t.Fatalf("likeliest %d: got %v, want %v", k, got, want[:k])
		}
	}
}

func TestSampling_Validate_NamesTheField(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, tt := range []struct {
		s    Sampling
		want string
	}{
		{Sampling{Temperature: -1}, "temperature is -1"},
		{Sampling{Temperature: nan}, "temperature is NaN"},
		{Sampling{Temperature: inf}, "temperature is +Inf"},
		{Sampling{TopK: -3}, "top-k is -3"},
		{Sampling{TopP: 1.5}, "top-p is 1.5"},
		{Sampling{MinP: -0.1}, "min-p is -0.1"},
		{Sampling{RepetitionPenalty: -2}, "repetition penalty is -2"},
		{Sampling{Stop: []string{"x", ""}}, `a stop string is ""`},
		{Sampling{Stop: []string{"\xff"}}, `a stop string is "\xff"`},
	} {
		err := tt.s.Validate()
		var typed *SamplingError
		if !errors.As(err, &typed) || !strings.Contains(err.Error(), tt.want) || typed.Expected == "" {
			t.Errorf("%+v: got %v; want %q", tt.s, err, tt.want)
		}
	}
	for _, s := range []Sampling{{}, {Temperature: 2, TopK: 1, TopP: 1, MinP: 1, RepetitionPenalty: 1.3, Stop: []string{"\n"}}} {
		if err := s.Validate(); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func randomLogits(random *rand.Rand, n int) []float32 {
	logits := make([]float32, n)
	for i := range logits {
		logits[i] = float32(random.NormFloat64() * 3)
	}
	return logits
}

func TestStopper_HoldsBackOnlyABeginning(t *testing.T) {
	s := stopper{stops: []string{"\nQuestion:", "END"}}
	for _, step := range []struct {
		push, emit string
		stopped    bool
	}{
		{"Paris", "Paris", false},
		{"\nQue", "", false},
		{"ue", "\nQueue", false},
		{" E", " ", false},
		{"EN", "E", false},
		{"D of it", "", true},
	} {
		if emit, stopped := s.push(step.push); emit != step.emit || stopped != step.stopped {
			t.Fatalf("push(%q) = %q, %v; want %q, %v", step.push, emit, stopped, step.emit, step.stopped)
		}
	}
}

func TestStopper_TextEndsInABeginning_FlushGivesIt(t *testing.T) {
	s := stopper{stops: []string{"END"}}
	emit, _ := s.push("the EN")
	if got := emit + s.flush() + s.flush(); got != "the EN" {
		t.Errorf("got %q, want %q", got, "the EN")
	}
}

// However text is cut into pieces, what comes out is what a search of the whole text gives, and nothing is held that cannot become a stop string.
func FuzzStopper(f *testing.F) {
	f.Add("abcabd abcd", "abcd", "bc", uint64(1))
	f.Add("aaaaab", "aab", "ab", uint64(2))
	f.Add("ananas banana", "nana", "anab", uint64(3))
	f.Add("Wien\nQuestion: é", "\nQ", "é", uint64(4))
	f.Add("xyx", "xyxy", "q", uint64(5))
	f.Fuzz(func(t *testing.T, text, a, b string, seed uint64) {
		if a == "" || b == "" {
			t.Skip()
		}
		stops := []string{a, b}
		want, wantStopped := textBeforeStop(text, stops)
		random := rand.New(rand.NewPCG(seed, 0))
		s := stopper{stops: stops}
		got, stopped := "", false
		for rest := text; rest != "" && !stopped; {
			n := 1 + random.IntN(min(4, len(rest)))
			var emit string
			emit, stopped = s.push(rest[:n])
			got += emit
			rest = rest[n:]
			if s.held != "" && !strings.HasPrefix(a, s.held) && !strings.HasPrefix(b, s.held) {
				t.Fatalf("stops %q: holds back %q", stops, s.held)
			}
		}
		if got += s.flush(); got != want || stopped != wantStopped {
			t.Errorf("text %q, stops %q, seed %d: got %q, %v; want %q, %v", text, stops, seed, got, stopped, want, wantStopped)
		}
	})
}

// textBeforeStop looks at every beginning of text in turn, for a stop string at its end.
func textBeforeStop(text string, stops []string) (string, bool) {
	for end := range len(text) + 1 {
		longest := 0
		for _, stop := range stops {
			if strings.HasSuffix(text[:end], stop) {
				longest = max(longest, len(stop))
			}
		}
		if longest > 0 {
			return text[:end-longest], true
		}
	}
	return text, false
}

func BenchmarkSampler(b *testing.B) {
	logits := randomLogits(rand.New(rand.NewPCG(4, 4)), 49152)
	for _, bench := range []struct {
		name string
		s    Sampling
	}{{"greedy", Sampling{}}, {"top-k=40", Sampling{Temperature: 1, TopK: 40}}, {"top-p=0.9", Sampling{Temperature: 1, TopP: 0.9}}} {
		b.Run(bench.name, func(b *testing.B) {
			s := newSampler(bench.s)
			for b.Loop() {
				if _, err := s.next(logits, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
