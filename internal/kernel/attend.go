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
	if tiled(d) && rows > 0 {
		scoresAVX2(&dst[0], &q[0], &keys[0], rows, d)
		return
	}
	dotRows(dst, q, keys[:n*d], d)
}

// Max returns the largest value of x, at least -Inf; NaNs may be passed over.
func Max(x []float32) float32 {
	if features.avx2 && len(x) >= 8 {
		return maxAVX2(&x[0], len(x))
	}
	top := negInf
	for _, v := range x {
		if v > top {
			top = v
		}
	}
	return top
}
