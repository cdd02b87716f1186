package kernel

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// matrix is rows × cols random values in a view with room to spare, transposed in memory or not.
func matrixView(rng *rand.Rand, rows, cols int, transposed bool) View {
	if transposed {
		return matrixView(rng, cols, rows, false).T()
	}
	stride := cols + rng.IntN(3)
	return View{random(rng, rows*stride), stride, 1}
}

func (v View) at(i, j int) float32 { return v.Data[i*v.Row+j*v.Col] }

// column is column j of v, of n values; row is row i.
func (v View) column(j, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = v.at(i, j)
	}
	return out
}

func (v View) row(i, n int) []float32 { return v.T().column(i, n) }

func TestGemm_AgreesWithFloat64(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		pool := NewPool(2)
		defer pool.Close()
		var gemms Gemms
		for _, shape := range [][3]int{{1, 1, 1}, {6, 16, 8}, {5, 15, 7}, {7, 17, 9}, {12, 32, 256}, {97, 193, 257}, {100, 40, 600}, {13, 200, 1}, {2, 3, 513}} {
			rows, cols, k := shape[0], shape[1], shape[2]
			for bits := range 8 {
				aT, bT, add := bits&1 != 0, bits&2 != 0, bits&4 != 0
				a, b := matrixView(rng, rows, k, aT), matrixView(rng, k, cols, bT)
				a2, b2 := matrixView(rng, rows, 3, bT), matrixView(rng, 3, cols, aT)
				var packed, packed2 Packed
				packed.Pack(pool, b, k, cols)
				packed2.Pack(nil, b2, 3, cols)
				stride := cols + 2
				dst := random(rng, rows*stride)
				before := append([]float32{}, dst...)
				gemms.Run(pool, Gemm{Dst: dst, Stride: stride, Rows: rows, Add: add, Terms: [6]Term{{a, &packed}, {a2, &packed2}}})
				for i := range rows {
					for j := range stride {
						got := dst[i*stride+j]
						if j >= cols {
							if got != before[i*stride+j] {
								t.Fatalf("%d×%d×%d: wrote beside row %d", rows, cols, k, i)
							}
							continue
						}
						want, size := dot64(a.row(i, k), b.column(j, k))
						more, moreSize := dot64(a2.row(i, 3), b2.column(j, 3))
						want, size = want+more, size+moreSize
						if add {
							want += float64(before[i*stride+j])
							size += 10
						}
						if d := float64(got) - want; !(d <= tolerance(k+4, size) && -d <= tolerance(k+4, size)) {
							t.Fatalf("%d×%d×%d, A transposed %v, B %v, add %v: (%d, %d) is %v, want %v", rows, cols, k, aT, bT, add, i, j, got, want)
						}
					}
				}
			}
		}
	})
}

func TestGemm_RowsColumnsThreads_SameBits(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		const rows, cols, k = 100, 210, 300
		a, b := matrixView(rng, rows, k, false), matrixView(rng, k, cols, false)
		multiply := func(threads, from, to, left, right int, a View) []float32 {
			pool := NewPool(threads)
			defer pool.Close()
			var p Packed
			p.Pack(pool, View{b.Data[left:], b.Row, b.Col}, k, right-left)
			dst := make([]float32, (to-from)*(right-left))
			g := Gemm{Dst: dst, Stride: right - left, Rows: to - from, Terms: [6]Term{{View{a.Data[from*a.Row:], a.Row, a.Col}, &p}}}
			var gemms Gemms
			if threads == 1 {
				gemms.Compute(&g)
			} else {
				gemms.Run(pool, g)
			}
			return dst
		}
		want := multiply(1, 0, rows, 0, cols, a)
		turned := make([]float32, rows*k) // the same factor, in columns
		for i := range rows {
			for j := range k {
				turned[j*rows+i] = a.at(i, j)
			}
		}
		for _, c := range []struct {
			threads, from, to, left, right int
			a                              View
		}{
			{4, 0, rows, 0, cols, a}, {3, 0, rows, 0, cols, View{turned, 1, rows}}, {1, 50, 51, 0, cols, a}, {2, 7, 99, 5, 38, a}, {1, 11, 21, 200, 201, View{turned, 1, rows}},
		} {
			got := multiply(c.threads, c.from, c.to, c.left, c.right, c.a)
			for i := range c.to - c.from {
				width := c.right - c.left
				if j, same := sameBits(got[i*width:][:width], want[(i+c.from)*cols+c.left:][:width]); !same {
					t.Fatalf("rows %d to %d, columns %d to %d on %d threads: row %d differs at column %d", c.from, c.to, c.left, c.right, c.threads, i, j)
				}
			}
		}
	})
}

// Weights that were trained do not depend on how wide a machine's vectors are.
func TestGemm_WideVectors_SameBits(t *testing.T) {
	if !features.avx512 {
		t.Skip("no AVX-512 here")
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for _, shape := range [][3]int{{100, 210, 300}, {12, 32, 8}, {13, 33, 257}, {11, 48, 5}, {192, 96, 600}} {
		rows, cols, k := shape[0], shape[1], shape[2]
		for _, transposed := range []bool{false, true} {
			a, b := matrixView(rng, rows, k, transposed), matrixView(rng, k, cols, transposed)
			multiply := func(f featureSet) []float32 {
				defer func(all featureSet) { features = all }(features)
				features = f
				var p Packed
				p.Pack(nil, b, k, cols)
				dst := make([]float32, rows*cols)
				var gemms Gemms
				for range 2 { // the second adds
					gemms.Compute(&Gemm{Dst: dst, Stride: cols, Rows: rows, Add: true, Terms: [6]Term{{a, &p}}})
				}
				return dst
			}
			if i, same := sameBits(multiply(features), multiply(featureSet{avx2: true})); !same {
				t.Errorf("%d×%d×%d, transposed %v: output %d differs", rows, cols, k, transposed, i)
			}
		}
	}
}

func TestGemm_AfterTheFirst_AllocatesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	pool := NewPool(2)
	defer pool.Close()
	a, b, dst := matrixView(rng, 50, 300, true), matrixView(rng, 300, 50, true), make([]float32, 50*50)
	var p Packed
	var gemms Gemms
	if n := testing.AllocsPerRun(10, func() {
		p.Pack(pool, b, 300, 50)
		gemms.Run(pool, Gemm{Dst: dst, Stride: 50, Rows: 50, Terms: [6]Term{{a, &p}}})
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// BenchmarkGemm reports the share of what the widest float32 multiply-add of the path can do, measured in turn with it.
func BenchmarkGemm(b *testing.B) {
	rng := rand.New(rand.NewPCG(7, 8))
	pool := NewPool(1)
	defer pool.Close()
	peak := Peaks()[1]
	for _, c := range []struct {
		rows, cols, k int
		transposed    bool
	}{{1200, 576, 576, false}, {1200, 1536, 576, false}, {1200, 576, 1536, false}, {576, 576, 1200, true}, {1200, 16, 576, false}, {1200, 576, 16, false}, {128, 1200, 64, false}, {64, 1200, 128, true}} {
		b.Run(fmt.Sprintf("%dx%dx%d/transposed=%v", c.rows, c.cols, c.k, c.transposed), func(b *testing.B) {
			a := matrixView(rng, c.rows, c.k, c.transposed)
			var p Packed
			p.Pack(pool, matrixView(rng, c.k, c.cols, false), c.k, c.cols)
			dst := make([]float32, c.rows*c.cols)
			var gemms Gemms
			product, limit := time.Hour, time.Hour // the quickest of each: others share the machine
			for b.Loop() {
				start := time.Now()
				gemms.Run(pool, Gemm{Dst: dst, Stride: c.cols, Rows: c.rows, Terms: [6]Term{{a, &p}}})
				product = min(product, time.Since(start))
				start = time.Now()
				pool.Run(1, peakTask{&peak})
				limit = min(limit, time.Since(start))
			}
			gflops := 2 * float64(c.rows*c.cols*c.k) / product.Seconds() / 1e9
			top := 20 * float64(peakRounds*peak.ops) / limit.Seconds() / 1e9
			b.ReportMetric(gflops, "GFLOP/s")
			b.ReportMetric(100*gflops/top, "%peak")
		})
	}
}

type peakTask struct{ p *Peak }

func (t peakTask) Do(int, int) {
	for range 20 {
		t.p.Run()
	}
}
