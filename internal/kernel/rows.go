package kernel

import "math"

// dotRows writes the products of every row of x with every row of w, rows of k values, to dst [rows of x × KeyTile].
// Each is one sum in the order of MatMul's.
func dotRows(dst, x, w []float32, k int) {
	m := len(w) / k
	row := func(j int) []float32 { return w[min(j, m-1)*k:][:k] }
	for j := 0; j < m; j += panelRows {
		n := min(panelRows, m-j)
		w0, w1, w2, w3 := row(j), row(j+1), row(j+2), row(j+3)
		t, rows := 0, len(x)/k
		for ; t+1 < rows; t += 2 {
			sums := dot4x2(w0, w1, w2, w3, x[t*k:][:k], x[(t+1)*k:][:k])
			copy(dst[t*KeyTile+j:][:n], sums[:])
			copy(dst[(t+1)*KeyTile+j:][:n], sums[panelRows:])
		}
		if t < rows {
			sums := dot4(w0, w1, w2, w3, x[t*k:][:k])
			copy(dst[t*KeyTile+j:][:n], sums[:])
		}
	}
}

// dot4x2 is Σ_k w_j[k]·x_i[k] for four rows of weights and two of activations, all of len(w0) values: x0's four sums,
// then x1's.
func dot4x2(w0, w1, w2, w3, x0, x1 []float32) (sums [2 * panelRows]float32) {
	n := len(w0)
	w1, w2, w3, x0, x1 = w1[:n], w2[:n], w3[:n], x0[:n], x1[:n]
	if features.avx2 && n >= 8 {
		dot4x2AVX2(&w0[0], &w1[0], &w2[0], &w3[0], &x0[0], &x1[0], n, &sums)
		return sums
	}
	a, b := dot4(w0, w1, w2, w3, x0), dot4(w0, w1, w2, w3, x1)
	copy(sums[:], a[:])
	copy(sums[panelRows:], b[:])
	return sums
}

// dot4 is dot4x2 for one row of activations: the same sums in the same order.
func dot4(w0, w1, w2, w3, x []float32) (sums [panelRows]float32) {
	n := len(w0)
	w1, w2, w3, x = w1[:n], w2[:n], w3[:n], x[:n]
	if features.avx2 && n >= 8 {
		twice := dot4x2(w0, w1, w2, w3, x, x)
		copy(sums[:], twice[:])
		return sums
	}
	return dot4Portable(w0, w1, w2, w3, x)
}

// dot4Portable sums in ascending k. The conversions to float32 forbid a fused multiply-add, which would round differently
// on machines that have one. Five slices of one length is what the compiler keeps in registers: with a second row of
// activations it spills sums, and the loop takes longer than two of these.
func dot4Portable(w0, w1, w2, w3, x []float32) [panelRows]float32 {
	n := len(w0)
	w1, w2, w3, x = w1[:n], w2[:n], w3[:n], x[:n]
	var a0, a1, a2, a3 float32
	for k, w := range w0 {
		p := x[k]
		a0 += float32(w * p)
		a1 += float32(w1[k] * p)
		a2 += float32(w2[k] * p)
		a3 += float32(w3[k] * p)
	}
	return [panelRows]float32{a0, a1, a2, a3}
}

// addWeighted adds Σ_j p[j]·v[j] to acc [D], v being rows of D values, in ascending j.
func addWeighted(acc, p, v []float32) {
	d := len(acc)
	for j, pj := range p {
		row := v[j*d:][:d]
		for i := range acc {
			acc[i] += float32(pj * row[i])
		}
	}
}

// F16ToF32s converts half floats.
func F16ToF32s(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := 0
	if features.avx2 && len(src) >= 8 {
		i = len(src) &^ 7
		f16ToF32AVX2(&dst[0], &src[0], i)
	}
	for ; i < len(src); i++ {
		dst[i] = F16ToF32(src[i])
	}
}

// F32ToF16s converts to half floats, rounding to nearest, ties to even.
func F32ToF16s(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	i := 0
	if features.avx2 && len(src) >= 8 {
		i = len(src) &^ 7
		f32ToF16AVX2(&dst[0], &src[0], i)
	}
	for ; i < len(src); i++ {
		dst[i] = F32ToF16(src[i])
	}
}

// BF16ToF32s converts bfloat16 numbers.
func BF16ToF32s(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := 0
	if features.avx2 && len(src) >= 8 {
		i = len(src) &^ 7
		bf16ToF32AVX2(&dst[0], &src[0], i)
	}
	for ; i < len(src); i++ {
		dst[i] = BF16ToF32(src[i])
	}
}

// F32ToBF16s converts to bfloat16, rounding to nearest, ties to even.
func F32ToBF16s(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	i := 0
	if features.avx2 && len(src) >= 8 {
		i = len(src) &^ 7
		f32ToBF16AVX2(&dst[0], &src[0], i)
	}
	for ; i < len(src); i++ {
		dst[i] = F32ToBF16(src[i])
	}
}

// Q8Group is how many codes share a scale.
const Q8Group = 32

// F32ToQ8s writes src, whole groups, as 8-bit codes with a scale, a half, for each group: a value is code·scale. The scale is a 127th of the
// largest magnitude, rounded to a half; a code is the nearest one from -127 to 127, ties to even. A group that holds Inf or NaN, or a number
// whose scale no half holds (8.3 million), has the scale NaN, and so is every value of it. The bits are the same on every path.
func F32ToQ8s(codes []int8, scales []uint16, src []float32) {
	groups := len(src) / Q8Group
	codes, scales, src = codes[:groups*Q8Group], scales[:groups], src[:groups*Q8Group]
	if features.avx2 && groups > 0 {
		f32ToQ8AVX2(&codes[0], &scales[0], &src[0], groups)
		return
	}
	for g := range scales {
		scales[g] = q8Portable((*[Q8Group]int8)(codes[g*Q8Group:]), (*[Q8Group]float32)(src[g*Q8Group:]))
	}
}

// q8Portable writes one group's codes and returns its scale.
func q8Portable(codes *[Q8Group]int8, x *[Q8Group]float32) uint16 {
	var top uint32 // the bits of the largest magnitude: those of Inf are larger than a number's, and a NaN's than those of Inf
	for _, v := range x {
		top = max(top, math.Float32bits(v)&0x7fffffff)
	}
	scale := F32ToF16(math.Float32frombits(top) / 127)
	clear(codes[:])
	switch {
	case scale == 0:
		return 0
	case scale >= 0x7c00:
		return 0x7e00
	}
	inverse := 1 / F16ToF32(scale)
	for i, v := range x {
		codes[i] = int8(min(max(math.RoundToEven(float64(v*inverse)), -127), 127)) // beyond only where the scale is a small subnormal
	}
	return scale
}

// Q8ToF32s converts codes, whole groups, with their scales.
func Q8ToF32s(dst []float32, codes []int8, scales []uint16) {
	groups := len(codes) / Q8Group
	dst, codes, scales = dst[:groups*Q8Group], codes[:groups*Q8Group], scales[:groups]
	if features.avx2 && groups > 0 {
		q8ToF32AVX2(&dst[0], &codes[0], &scales[0], groups)
		return
	}
	for g, s := range scales {
		scale := F16ToF32(s)
		for i, c := range codes[g*Q8Group:][:Q8Group] {
			dst[g*Q8Group+i] = float32(c) * scale
		}
	}
}
