package kernel

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestReadSum_IsTheSumOfWholeLines(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]uint64, 1000)
	for i := range data {
		data[i] = rng.Uint64()
	}
	eachPath(t, func(t *testing.T) {
		for n := range len(data) {
			var want uint64
			for _, x := range data[:n/32*32] {
				want += x
			}
			if got := ReadSum(data[:n]); got != want {
				t.Fatalf("%d numbers: got %d, want %d", n, got, want)
			}
		}
	})
}

// An instruction's rate on one core lies within what any core of our time can do; a count that is off by the vector's width, or a
// loop that the compiler emptied, does not. Vector instructions must beat the plain twin.
func TestPeaks_RatesArePlausible(t *testing.T) {
	var plain float64
	for _, p := range Peaks() {
		if p.Without != "" {
			t.Logf("%s: %s", p.Name, p.Without)
			continue
		}
		var rate float64
		for range 5 { // the best of five: another process may have the core
			begin, ops := time.Now(), 0.0
			for time.Since(begin) < 2*time.Millisecond {
				ops += p.Run()
			}
			rate = max(rate, ops/float64(time.Since(begin).Nanoseconds()))
		}
		t.Logf("%s: %.1f %s", p.Name, rate, p.Unit)
		if rate < 0.1 || rate > 10000 {
			t.Errorf("%s: %g %s", p.Name, rate, p.Unit)
		}
		if plain == 0 {
			plain = rate
		} else if rate < 2*plain {
			t.Errorf("%s: %g %s, the plain loop %g", p.Name, rate, p.Unit, plain)
		}
	}
}
