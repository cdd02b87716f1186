package kernel

import "math"

// What training adds to the arithmetic value by value: softmax with its pieces apart, and the gradients of what elementwise.go computes.

// Exponentials replaces each x[i] by e^(scale·x[i] - shift) and returns their sum.
func Exponentials(x []float32, scale, shift float32) (sum float32) {
	i := 0
	if features.avx2 && len(x) >= 8 {
		i = len(x) &^ 7
		sum = exponentialsAVX2(&x[0], i, scale, shift)
	}
	for ; i < len(x); i++ {
		x[i] = Exp(float32(x[i]*scale) - shift)
		sum += x[i]
	}
	return sum
}

// Max is the greatest value of x, -Inf of none.
func Max(x []float32) float32 {
	top, i := float32(math.Inf(-1)), 0
	if features.avx2 && len(x) >= 8 {
		i = len(x) &^ 7
		top = maxAVX2(&x[0], i)
	}
	for ; i < len(x); i++ {
		if x[i] > top {
			top = x[i]
		}
	}
	return top
}

// SoftmaxGradient replaces the gradient dp of a row of weights p = softmax(scale·s) by that of the scores s: scale·p·(dp - mean), where
// mean is Σ p·dp.
func SoftmaxGradient(dp, p []float32, mean, scale float32) {
	p = p[:len(dp)]
	i := 0
	if features.avx2 && len(dp) >= 8 {
		i = len(dp) &^ 7
		softmaxGradientAVX2(&dp[0], &p[0], i, mean, scale)
	}
	for ; i < len(dp); i++ {
		dp[i] = float32(p[i]*(dp[i]-mean)) * scale
	}
}

// SwiGLUGradient takes the gradient dh of h = silu(gate)·up back, in place: gate and up become their gradients, and dh becomes h.
func SwiGLUGradient(gate, up, dh []float32) {
	up, dh = up[:len(gate)], dh[:len(gate)]
	i := 0
	if features.avx2 && len(gate) >= 8 {
		i = len(gate) &^ 7
		swiGLUGradientAVX2(&gate[0], &up[0], &dh[0], i)
	}
	for ; i < len(gate); i++ {
		g, u, d := gate[i], up[i], dh[i]
		sigmoid := 1 / (1 + Exp(-g))
		silu := g * sigmoid
		gate[i] = d * u * (sigmoid + float32(silu*(1-sigmoid)))
		up[i] = d * silu
		dh[i] = silu * u
	}
}

// RMSNormGradient adds to dx the gradient of RMSNorm's input x, row by row of len(g) values, where dy is that of its output. scales gets
// each row's 1 / √(mean(x²) + eps), which the gradient of g needs.
func RMSNormGradient(dx, dy, x, g, scales []float32, eps float32) {
	k := len(g)
	for r := range scales {
		x, dy, dx := x[r*k:][:k], dy[r*k:][:k], dx[r*k:][:k]
		var squares, along float64
		for i, v := range x {
			squares += float64(v) * float64(v)
			along += float64(v) * float64(float32(dy[i]*g[i]))
		}
		scale := 1 / math.Sqrt(squares/float64(k)+float64(eps))
		back := float32(along / float64(k) * scale * scale * scale)
		scales[r] = float32(scale)
		for i, v := range x {
			dx[i] += float32(float32(dy[i]*g[i])*scales[r]) - float32(v*back)
		}
	}
}
