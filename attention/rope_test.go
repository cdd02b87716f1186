package attention

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestPlain_IsThePublishedFormula(t *testing.T) {
	r := Plain(64, 10000)
	if len(r.Freqs) != 32 || r.Magnitude != 1 {
		t.Fatalf("%d frequencies and magnitude %v, want 32 and 1", len(r.Freqs), r.Magnitude)
	}
	// θ_i = 10000^(-2i/64): a tenth at a quarter of the pairs, a hundredth at half.
	for i, want := range map[int]float64{0: 1, 8: 0.1, 16: 0.01, 24: 0.001} {
		if got := r.Freqs[i]; math.Abs(got-want) > 1e-15 {
			t.Errorf("frequency %d = %v, want %v", i, got, want)
		}
	}
}

func TestLinear_DividesPositions(t *testing.T) {
	base, r := Plain(32, 10000), Plain(32, 10000).Linear(4)
	for i, f := range r.Freqs {
		if want := base.Freqs[i] / 4; f != want {
			t.Errorf("frequency %d = %v, want %v", i, f, want)
		}
	}
	if r.Magnitude != 1 {
		t.Errorf("magnitude %v, want 1", r.Magnitude)
	}
}

func TestFactors_DivideEachFrequency_AndAreChecked(t *testing.T) {
	base := Plain(8, 10000)
	r, err := base.Factors([]float32{1, 2, 4, 32})
	if err != nil {
		t.Fatal(err)
	}
	for i, factor := range []float64{1, 2, 4, 32} {
		if want := base.Freqs[i] / factor; r.Freqs[i] != want {
			t.Errorf("frequency %d = %v, want %v", i, r.Freqs[i], want)
		}
	}
	for _, c := range []struct {
		factors []float32
		want    string
	}{
		{[]float32{1, 1, 1}, "3 frequency factors, but heads turn 4 pairs"},
		{[]float32{1, 1, 0, 1}, "frequency factor 2 is 0, not a positive number"},
		{[]float32{-1, 1, 1, 1}, "frequency factor 0 is -1, not a positive number"},
		{[]float32{1, 1, 1, float32(math.NaN())}, "frequency factor 3 is NaN, not a positive number"},
		{[]float32{1, float32(math.Inf(1)), 1, 1}, "frequency factor 1 is +Inf, not a positive number"},
	} {
		if _, err := base.Factors(c.factors); err == nil || err.Error() != c.want {
			t.Errorf("Factors(%v): %v, want %q", c.factors, err, c.want)
		}
	}
}

// YaRN as arXiv 2309.00071, section 3.2, has it: with r(d) = L/λ(d) turns over the original context of L positions, pairs of
// less than α turns are interpolated, those of more than β are not, and γ ramps in between. Like llama.cpp and
// transformers, Tessera ramps linearly in the index of the pair, between the rounded indices at which r is β and α, and
// not in r itself; here they come from a search instead of the closed form.
func TestYaRN_AgreesWithThePapersFormula(t *testing.T) {
	for _, c := range []struct {
		dims         int
		base, factor float64
		context      int
		fast, slow   float64
	}{
		{128, 10000, 16, 4096, 32, 1},
		{64, 1e6, 4, 32768, 32, 1},
		{64, 10000, 2.5, 2048, 16, 2},
	} {
		plain := Plain(c.dims, c.base)
		turns := func(pair float64) float64 { // over the context, at a pair that need not be whole
			wavelength := 2 * math.Pi * math.Pow(c.base, 2*pair/float64(c.dims))
			return float64(c.context) / wavelength
		}
		pairOf := func(n float64) float64 {
			low, high := -1000.0, 1000.0
			for range 200 {
				if middle := (low + high) / 2; turns(middle) > n {
					low = middle
				} else {
					high = middle
				}
			}
			return low
		}
		low, high := math.Max(math.Floor(pairOf(c.fast)), 0), math.Min(math.Ceil(pairOf(c.slow)), float64(c.dims-1))
		got := plain.YaRN(c.base, c.factor, c.context, c.fast, c.slow)
		kept, interpolated := 0, 0
		for i, f := range got.Freqs {
			gamma := 1 - (float64(i)-low)/(high-low) // 1: keep
			gamma = math.Min(math.Max(gamma, 0), 1)
			want := (1-gamma)*plain.Freqs[i]/c.factor + gamma*plain.Freqs[i]
			if math.Abs(f-want) > 1e-14*want {
				t.Errorf("%+v: frequency %d = %v, want %v", c, i, f, want)
			}
			switch {
			case f == plain.Freqs[i]:
				kept++
			case f == plain.Freqs[i]/c.factor:
				interpolated++
			}
			if n := turns(float64(i)); n < c.slow && i > int(high) && f != plain.Freqs[i]/c.factor || n > c.fast && i < int(low) && f != plain.Freqs[i] {
				t.Errorf("%+v: pair %d turns %v times and has frequency %v of %v", c, i, n, f, plain.Freqs[i])
			}
		}
		if kept == 0 || interpolated == 0 || kept+interpolated == len(got.Freqs) {
			t.Errorf("%+v: %d frequencies kept, %d interpolated of %d; this case shows no ramp", c, kept, interpolated, len(got.Freqs))
		}
		if want := 0.1*math.Log(c.factor) + 1; got.Magnitude != want {
			t.Errorf("%+v: magnitude %v, want 0.1·ln(%v) + 1 = %v", c, got.Magnitude, c.factor, want)
		}
	}
}

func TestTable_Turn_AgreesWithFloat64_UpTo100000(t *testing.T) {
	const seed = 9
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, c := range []struct {
		name string
		rope RoPE
		d    int
	}{
		{"plain", Plain(64, 10000), 64},
		{"two heads", Plain(16, 10000), 16},
		{"partial", Plain(24, 10000), 80},
		{"yarn", Plain(128, 10000).YaRN(10000, 16, 4096, 32, 1), 128},
		{"none", RoPE{Magnitude: 1}, 16},
	} {
		table := NewTable(c.rope)
		for _, p := range []int{0, 1, 511, 512, 4095, 65_537, 99_999, 100_000} {
			if testing.Short() && p > 5000 {
				continue
			}
			table.Reach(p + 1)
			x := normal(rng, 2*c.d)
			got := append([]float32{}, x...)
			table.Turn(got, got, c.d, p, 1)
			there, back := make([]float32, len(x)), make([]float32, len(x))
			table.Turn(there, x, c.d, p/3, 1)
			table.Move(there, there, c.d, p-p/3)
			table.Move(back, got, c.d, -p)
			for h := 0; h < len(x); h += c.d {
				want, start := turned64(c.rope, x[h:h+c.d], p), turned64(c.rope, x[h:h+c.d], 0)
				for i := range want {
					size := 4.0
					if i < 2*len(c.rope.Freqs) {
						size = math.Hypot(float64(x[h+i&^1]), float64(x[h+i|1])) * c.rope.Magnitude
					} else if got[h+i] != x[h+i] {
						t.Errorf("%s: value %d past the turned ones changed from %v to %v", c.name, i, x[h+i], got[h+i])
					}
					if math.Abs(float64(got[h+i])-want[i]) > 3e-7*size {
						t.Fatalf("seed %d, %s, position %d: value %d = %v, want %v", seed, c.name, p, h+i, got[h+i], want[i])
					}
					if math.Abs(float64(there[h+i])-want[i]) > 6e-7*size || math.Abs(float64(back[h+i])-start[i]) > 6e-7*size {
						t.Fatalf("seed %d, %s, position %d: value %d moved there = %v, want %v; moved back = %v, want %v",
							seed, c.name, p, h+i, there[h+i], want[i], back[h+i], start[i])
					}
				}
			}
		}
	}
}

// Growing must not change what was there, or a block's bits would hang on what the table was used for before.
func TestTable_ReachInSteps_SameBitsAsAtOnce(t *testing.T) {
	rope := Plain(16, 10000)
	steps, once := NewTable(rope), NewTable(rope)
	once.Reach(5000)
	for _, n := range []int{0, 1, 2, 600, 601, 3000, 5000, 10} {
		steps.Reach(n)
	}
	for p := range 5000 {
		a, b := make([]float32, 16), make([]float32, 16)
		for i := range a {
			a[i], b[i] = float32(i+1), float32(i+1)
		}
		steps.Turn(a, a, 16, p, 1)
		once.Turn(b, b, 16, p, 1)
		if i, ok := sameBits(a, b); !ok {
			t.Fatalf("position %d, value %d: %v when grown in steps, %v at once", p, i, a[i], b[i])
		}
	}
}

// Whoever has called Reach can turn, whatever others let the table grow to in the meantime.
func TestTable_ReachFromManyGoroutines(t *testing.T) {
	for range 30 {
		table := NewTable(Plain(2, 10000))
		var reached, all sync.WaitGroup
		reached.Add(8)
		for g := range 8 {
			all.Go(func() {
				n := 4000 + 100*g
				table.Reach(n)
				reached.Done()
				reached.Wait()
				x := []float32{1, 0}
				table.Turn(x, x, 2, n-1, 1)
				if want := math.Cos(float64(n - 1)); math.Abs(float64(x[0])-want) > 1e-7 {
					t.Errorf("position %d: the first value turned from 1 to %v, want %v", n-1, x[0], want)
				}
			})
		}
		all.Wait()
	}
}
