package kernel

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eachPath runs body once on every path. A path that this CPU or build lacks is skipped, or fails the test where
// TESSERA_REQUIRE_PATHS names it (avx2,avx512), so that a machine meant to test it says so when it does not.
func eachPath(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	for _, p := range paths {
		t.Run(p.word, func(t *testing.T) {
			narrowed, err := narrow(detect(), p.word)
			switch {
			case err == nil:
			case slices.Contains(strings.Split(os.Getenv("TESSERA_REQUIRE_PATHS"), ","), p.word):
				t.Fatalf("TESSERA_REQUIRE_PATHS names %s, which cannot run here", p.word)
			default:
				t.Skipf("%s cannot run here", p.word)
			}
			defer func(all featureSet) { features = all }(features)
			features = narrowed
			body(t)
		})
	}
}

func TestEachPath_NarrowsAndRestores(t *testing.T) {
	before := features
	var ran []string
	eachPath(t, func(t *testing.T) { ran = append(ran, Path()) })
	if want := Paths(); !slices.Equal(ran, want) || ran[0] != "portable" {
		t.Errorf("ran on %v, want %v", ran, want)
	}
	if features != before {
		t.Errorf("features are %+v afterwards, were %+v", features, before)
	}
}

func TestNarrow_EachWord(t *testing.T) {
	none, some := featureSet{}, featureSet{avx2: true}
	most := featureSet{avx2: true, avx512: true}
	all := featureSet{avx2: true, avx512: true, amx: true}
	for _, c := range []struct {
		word     string
		have     featureSet
		want     featureSet
		complain string
	}{
		{"", all, all, ""},
		{"", none, none, ""},
		{"portable", all, none, ""},
		{"portable", none, none, ""},
		{"avx2", all, some, ""},
		{"avx2", none, none, "TESSERA_CPU is avx2, which this machine or build does not have; unset it or take portable"},
		{"avx512", all, most, ""},
		{"avx512", some, some, "TESSERA_CPU is avx512, which this machine or build does not have; unset it or take avx2"},
		{"amx", all, all, ""},
		{"amx", most, most, "TESSERA_CPU is amx, which this machine or build does not have; unset it or take avx512"},
		{"AVX2", all, all, `TESSERA_CPU is "AVX2"; known are portable, avx2, avx512, amx`},
		{"sse9", none, none, `TESSERA_CPU is "sse9"; known are portable, avx2, avx512, amx`},
	} {
		got, err := narrow(c.have, c.word)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if got != c.want || said != c.complain {
			t.Errorf("narrow(%+v, %q) = %+v, %q; want %+v, %q", c.have, c.word, got, said, c.want, c.complain)
		}
	}
}

// random is n normally distributed values.
func random(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// dot64 is Σ a[i]·b[i] and Σ |a[i]·b[i]| in float64.
func dot64(a, b []float32) (sum, size float64) {
	for i := range a {
		p := float64(a[i]) * float64(b[i])
		sum += p
		size += math.Abs(p)
	}
	return sum, size
}

// tolerance is how far a float32 sum of n products of the given size may be off: a few roundings of the largest partial sum,
// and √n for what a walk of n roundings adds up to. A term left out or taken twice is far outside.
func tolerance(n int, size float64) float64 { return (8 + math.Sqrt(float64(n))) * 0x1p-24 * size }

// sameBits tells whether a and b are equal bit for bit, and where they first differ.
func sameBits(a, b []float32) (int, bool) {
	if len(a) != len(b) {
		return min(len(a), len(b)), false
	}
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return i, false
		}
	}
	return 0, true
}
