package kernel

import "math"

// RMSNorm writes x[i]·g[i] / √(mean(x²) + eps) to dst, row by row of len(g) values; the mean is taken in float64.
// dst may be x.
func RMSNorm(dst, x, g []float32, eps float32) {
	k := len(g)
	for r := 0; r+k <= len(x); r += k {
		row, out := x[r:r+k], dst[r:r+k]
		var sum float64
		i := 0
		if features.avx2 && k >= 16 {
			i = k &^ 15
			sum = sumSquaresAVX2(&row[0], i)
		}
		for _, v := range row[i:] {
			sum += float64(v) * float64(v)
		}
		scale := float32(1 / math.Sqrt(sum/float64(k)+float64(eps)))
		if i > 0 {
			scaleRowAVX2(&out[0], &row[0], &g[0], i, scale)
		}
		for ; i < k; i++ {
			out[i] = row[i] * scale * g[i]
		}
	}
}

// SwiGLU writes silu(gate)·up to gate, silu(x) = x / (1 + e^-x).
func SwiGLU(gate, up []float32) {
	up = up[:len(gate)]
	i := 0
	if features.avx2 && len(gate) >= 8 {
		i = len(gate) &^ 7
		swiGLUAVX2(&gate[0], &up[0], i)
	}
	for ; i < len(gate); i++ {
		g := gate[i]
		gate[i] = g / (1 + Exp(-g)) * up[i]
	}
}

// AddRows adds bias [K] to every row of x [T × K].
func AddRows(x, bias []float32) {
	k := len(bias)
	for r := 0; r+k <= len(x); r += k {
		row := x[r : r+k]
		for i, b := range bias {
			row[i] += b
		}
	}
}

// Exp is e^x in float32, within 2 units in the last place: 0 below the range (no denormals), +Inf above, NaN for NaN.
//
// x = n·ln2 + r with |r| ≤ ln2/2; ln2 in two parts so that r is exact enough, e^r by its series to the 7th power, 2^n by
// the exponent's bits.
func Exp(x float32) float32 {
	const (
		log2e  = 1.44269504088896341
		ln2Hi  = 0.693359375 // 10 bits: n·ln2Hi is exact
		ln2Lo  = -2.12194440e-4
		top    = 88.72283
		bottom = -87.33654
	)
	if !(x <= top) { // above, or NaN
		if x != x {
			return x
		}
		return float32(math.Inf(1))
	}
	if x < bottom {
		return 0
	}
	n := math.Floor(float64(x)*log2e + 0.5)
	f := float32(n)
	r := float32(x-float32(f*ln2Hi)) - float32(f*ln2Lo)
	p := float32(1.0 / 5040)
	p = float32(p*r) + 1.0/720
	p = float32(p*r) + 1.0/120
	p = float32(p*r) + 1.0/24
	p = float32(p*r) + 1.0/6
	p = float32(p*r) + 0.5
	p = float32(float32(p*r)*r) + r + 1
	e := int32(n)
	if e > 127 { // e^x is finite, but 2^128 alone is not
		return p * 2 * math.Float32frombits(uint32(e-1+127)<<23)
	}
	return p * math.Float32frombits(uint32(e+127)<<23)
}

// LogSumExp is log Σ e^x[i], in float64.
func LogSumExp(x []float32) float64 {
	top := math.Inf(-1)
	for _, v := range x {
		top = max(top, float64(v))
	}
	if math.IsInf(top, -1) {
		return top
	}
	var sum float64
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	return top + math.Log(sum)
}
