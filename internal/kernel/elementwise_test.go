package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The range is walked by bit patterns, so every binade is visited alike, and next to the places where the code branches
// every float is.
func TestExp_WithinTwoUlp_OverTheWholeRange(t *testing.T) {
	worst, at := 0.0, float32(0)
	check := func(bits uint32) {
		x := math.Float32frombits(bits)
		got, want := float64(Exp(x)), math.Exp(float64(x))
		switch {
		case want > math.MaxFloat32:
			if !math.IsInf(got, 1) {
				t.Fatalf("Exp(%v) = %v, want +Inf", x, got)
			}
			return
		case want < 0x1p-126:
			if got != 0 {
				t.Fatalf("Exp(%v) = %v, want 0", x, got)
			}
			return
		}
		_, exponent := math.Frexp(want)
		if ulps := math.Abs(got-want) / math.Ldexp(1, exponent-24); !(ulps <= worst) {
			worst, at = ulps, x
		}
	}
	for _, sign := range []uint32{0, 1 << 31} {
		for bits := uint32(0); bits < 0x7f800000; bits += 1499 {
			check(bits | sign)
		}
	}
	for _, edge := range []float32{88.72283, -87.33654, math.Ln2, -math.Ln2, math.Ln2 / 2, -math.Ln2 / 2, 88.37626 /* 127.5·ln 2 */, 1, -1} {
		for d := -2000; d <= 2000; d++ {
			check(uint32(int(math.Float32bits(edge)) + d))
		}
	}
	t.Logf("worst: %.3f ulp at %v", worst, at)
	if worst > 2 {
		t.Errorf("Exp(%v) is off by %.3f units in the last place, want at most 2", at, worst)
	}
}

func TestExp_Edges(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct{ x, want float32 }{
		{0, 1}, {float32(math.Copysign(0, -1)), 1}, // exactly: merging a softmax with an empty one must not change it
		{inf, inf}, {-inf, 0}, {89, inf}, {-88, 0}, {math.MaxFloat32, inf}, {-math.MaxFloat32, 0},
		{math.SmallestNonzeroFloat32, 1}, {-math.SmallestNonzeroFloat32, 1},
	} {
		if got := Exp(c.x); got != c.want {
			t.Errorf("Exp(%v) = %v, want %v", c.x, got, c.want)
		}
	}
	if got := Exp(float32(math.NaN())); got == got {
		t.Errorf("Exp(NaN) = %v", got)
	}
	if got := Exp(math.Nextafter32(88.72283, 89)); got != inf {
		t.Errorf("one float above the top: %v, want +Inf", got)
	}
	if got := Exp(88.72283); got == inf || got < 3.4e38 {
		t.Errorf("Exp(88.72283) = %v, want almost the largest float32", got)
	}
}

func TestRMSNorm_AgreesWithFloat64_InPlaceToo(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed, eps = 10, 1e-5
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, k := range []int{1, 3, 15, 16, 17, 64, 577} {
			for rows := range 4 {
				x, g := random(rng, rows*k), random(rng, k)
				scale(x, 1e-3) // so that eps counts
				dst := make([]float32, rows*k)
				RMSNorm(dst, x, g, eps)
				for i, got := range dst {
					_, squares := dot64(x[i/k*k:][:k], x[i/k*k:][:k])
					want := float64(x[i]) * float64(g[i%k]) / math.Sqrt(squares/float64(k)+eps)
					if math.Abs(float64(got)-want) > 3*0x1p-24*math.Abs(want) {
						t.Errorf("seed %d, k %d: row %d, value %d = %v, want %v", seed, k, i/k, i%k, got, want)
					}
				}
				RMSNorm(x, x, g, eps)
				if i, ok := sameBits(x, dst); !ok {
					t.Errorf("seed %d, k %d: in place value %d = %v, apart %v", seed, k, i, x[i], dst[i])
				}
			}
		}
		large, ones := make([]float32, 16), make([]float32, 16)
		for i := range large { // values whose squares no float32 holds
			large[i], ones[i] = 3e19, 1
		}
		large[15] = 4e19
		RMSNorm(large, large, ones, 0)
		if math.Abs(float64(large[0])-3/math.Sqrt(151.0/16)) > 1e-6 {
			t.Errorf("the norm of fifteen 3e19 and a 4e19 = %v, want 0.9766 and 1.3021", large)
		}
	})
}

func TestSwiGLU_AgreesWithFloat64(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 0))
	gate, up := random(rng, 500), random(rng, 500)
	scale(gate, 10)
	gate = append(gate, 0, 100, -100, 1e30, -1e30, 80, -80)
	up = append(up, 2, 2, 2, 2, 2, 2, 2)
	got := append([]float32{}, gate...)
	SwiGLU(got, up)
	for i, g := range gate {
		silu := float64(g) / (1 + math.Exp(-float64(g)))
		want := silu * float64(up[i])
		if math.Abs(float64(got[i])-want) > 6*0x1p-24*math.Abs(want)+1e-36 {
			t.Errorf("silu(%v)·%v = %v, want %v", g, up[i], got[i], want)
		}
	}
	nan := []float32{float32(math.NaN()), 1}
	SwiGLU(nan, []float32{1, 1})
	if nan[0] == nan[0] || nan[1] != nan[1] {
		t.Errorf("NaN, 1 became %v, want NaN and a number", nan)
	}
}

func TestAddRows_AddsToEveryRow(t *testing.T) {
	x := []float32{1, 2, 3, 10, 20, 30}
	AddRows(x, []float32{0.5, -1, 0})
	if i, ok := sameBits(x, []float32{1.5, 1, 3, 10.5, 19, 30}); !ok {
		t.Errorf("value %d of %v is wrong", i, x)
	}
}

func TestLogSumExp_OfLargeSmallAndNoValues(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		x    []float32
		want float64
	}{
		{[]float32{0}, 0},
		{[]float32{0, 0, 0, 0}, math.Log(4)},
		{[]float32{1000, 1000}, 1000 + math.Ln2},
		{[]float32{-1000, -1000}, -1000 + math.Ln2},
		{[]float32{-inf, 3, -inf}, 3},
		{[]float32{1, 2, 3}, math.Log(math.E + math.E*math.E + math.E*math.E*math.E)},
		{nil, math.Inf(-1)},
	} {
		if got := LogSumExp(c.x); got != c.want && !(math.Abs(got-c.want) <= 1e-12) {
			t.Errorf("LogSumExp(%v) = %v, want %v", c.x, got, c.want)
		}
	}
}

func BenchmarkExp(b *testing.B) {
	x := random(rand.New(rand.NewPCG(1, 2)), 1024)
	var sum float32
	for b.Loop() {
		for _, v := range x {
			sum += Exp(v)
		}
	}
	b.ReportMetric(float64(len(x))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mvalues/s")
	if sum < 0 {
		b.Error("e^x below 0")
	}
}

func scale(x []float32, f float32) {
	for i := range x {
		x[i] *= f
	}
}
