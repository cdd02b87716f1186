package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
)

// floatMatrix is a matrix of m × k float32 weights.
func floatMatrix(w []float32, m, k int) Matrix {
	b := make([]byte, 0, 4*len(w))
	for _, v := range w {
		u := math.Float32bits(v)
		b = append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
	}
	x, err := NewMatrix(F32, m, k, b)
	if err != nil {
		panic(err)
	}
	return x
}

func random(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// quantized is random bytes as weights of type t, scales kept small and finite.
func quantized(rng *rand.Rand, t Type, m, k int) Matrix {
	b := make([]byte, m*t.RowBytes(k))
	for {
		for i := range b {
			b[i] = byte(rng.Uint32()) &^ 0x40 // halves below 2
		}
		x, err := NewMatrix(t, m, k, b)
		if err != nil {
			panic(err)
		}
		return x
	}
}

func BenchmarkMatMul(b *testing.B) {
	for _, t := range []Type{F32, Q4_1, Q8_0} {
		for _, rows := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%v/T=%d", t, rows), func(b *testing.B) {
				const m, k = 1536, 576
				rng := rand.New(rand.NewPCG(1, 2))
				w := quantized(rng, t, m, k)
				x, dst := random(rng, rows*k), make([]float32, rows*m)
				pool := NewPool(runtime.GOMAXPROCS(0))
				defer pool.Close()
				var mm MatMul
				for b.Loop() {
					mm.Run(pool, dst, x, rows, &w)
				}
				b.ReportMetric(2*float64(m*k*rows)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
