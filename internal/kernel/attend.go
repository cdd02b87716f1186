package kernel

// KeyTile is how many keys are scored together.
const KeyTile = 32

// Keys prepares n rows of keys, at most KeyTile, of d values each for Scores: k as stored, dst [KeyTile × d] in the path's own order.
// Rows past n come out as anything.
func Keys(dst, k []float32, n, d int) {
	dst, k = dst[:KeyTile*d], k[:n*d]
	if !tiled(d) {
		copy(dst, k)
		return
	}
	whole := n &^ 7
	if whole > 0 {
		transposeAVX2(&dst[0], &k[0], whole, d)
	}
	for j := whole; j < n; j++ {
		for i, v := range k[j*d:][:d] {
			dst[i*KeyTile+j] = v
		}
	}
}

// tiled says whether keys stand transposed [d × KeyTile], so that a vector holds one value of eight keys.
func tiled(d int) bool { return features.avx2 && d > 0 && d%8 == 0 }

// Scores writes the products of every row of q, d values each, with n prepared keys to dst [rows of q × KeyTile]. Each is one sum in
// ascending order, fused on the paths that transpose. Values past the n-th of a row are anything.
func Scores(dst, q, keys []float32, n, d int) {
	rows := len(q) / d
	dst, keys = dst[:rows*KeyTile], keys[:KeyTile*d]
	switch {
	case !tiled(d) || rows == 0:
		dotRows(dst, q, keys[:n*d], d)
	case n > KeyTile-8 && features.avx512:
		scoresAVX512(&dst[0], &q[0], &keys[0], rows, d)
	case n > KeyTile-8:
		scoresAVX2(&dst[0], &q[0], &keys[0], rows, d)
	default: // the end of a block: passages are short, so there are many
		for at := 0; at < n; at += 8 {
			narrowScoresAVX2(&dst[at], &q[0], &keys[at], rows, d)
		}
	}
}

// Rotate writes src, times scale, to dst with each pair of neighbours turned: turns holds the cosine and the sine for each pair. Values
// past the turns are scaled alone. dst may be src. Every path has the same bits.
func Rotate(dst, src, turns []float32, scale float32) {
	dst, turns = dst[:len(src)], turns[:min(len(turns), len(src))]
	i := 0
	if features.avx2 && len(turns) >= 8 {
		i = len(turns) &^ 7
		rotateAVX2(&dst[0], &src[0], &turns[0], i, scale)
	}
	for ; i+1 < len(turns); i += 2 {
		c, s := turns[i], turns[i+1]
		x, y := src[i]*scale, src[i+1]*scale
		dst[i] = float32(x*c) - float32(y*s)
		dst[i+1] = float32(y*c) + float32(x*s)
	}
	for ; i < len(src); i++ {
		dst[i] = src[i] * scale
	}
}

// Fold takes n scored rows of values, at most KeyTile, into a running softmax. Its state is the maximum score m, the sum Σ e^(s-m) and
// the weighted values Σ e^(s-m)·v [d]; v is [n × d]. scores has KeyTile values, of which the first n count; it is overwritten.
func Fold(state, scores, v []float32, n int) {
	d := len(state) - 2
	scores, v = scores[:KeyTile], v[:n*d]
	if features.avx512 && d%16 == 0 && n > 0 {
		foldAVX512(&state[0], &scores[0], &v[0], n, d)
		return
	}
	if tiled(d) && n > 0 {
		foldAVX2(&state[0], &scores[0], &v[0], n, d)
		return
	}
	scores = scores[:n]
	m, sum, acc := state[0], state[1], state[2:]
	top := m
	for _, s := range scores {
		top = max(top, s)
	}
	if top > m {
		shrink := Exp(m - top)
		sum *= shrink
		for i := range acc {
			acc[i] *= shrink
		}
		m = top
	}
	for i, s := range scores {
		scores[i] = Exp(s - m)
		sum += scores[i]
	}
	addWeighted(acc, scores, v)
	state[0], state[1] = m, sum
}
