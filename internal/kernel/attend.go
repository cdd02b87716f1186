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

// Rotate writes heads of d values from src, times scale, to dst with each pair of neighbours turned: turns holds the cosine and the sine for
// each pair of a head. Values past the turns are scaled alone. dst may be src. Every path has the same bits.
func Rotate(dst, src, turns []float32, d int, scale float32) {
	dst, turns = dst[:len(src)], turns[:min(len(turns), d)]
	first := 0 // of each head, what is left to do
	switch heads := len(src) / d; {
	case heads == 0 || len(turns) < 8:
	case features.avx512 && len(turns)%16 == 0:
		first = len(turns)
		rotateAVX512(&dst[0], &src[0], &turns[0], heads, first, d, scale)
	case features.avx2:
		first = len(turns) &^ 7
		rotateAVX2(&dst[0], &src[0], &turns[0], heads, first, d, scale)
	}
	if first == d {
		return
	}
	for h := 0; h+d <= len(src); h += d {
		to, from, i := dst[h:h+d], src[h:h+d], first
		for ; i+1 < len(turns); i += 2 {
			c, s := turns[i], turns[i+1]
			x, y := from[i]*scale, from[i+1]*scale
			to[i] = float32(x*c) - float32(y*s)
			to[i+1] = float32(y*c) + float32(x*s)
		}
		for ; i < d; i++ {
			to[i] = from[i] * scale
		}
	}
}

// Fold takes n scored keys into the running softmaxes of several rows. A row's state is the maximum score m, the sum Σ e^(s-m) and the
// weighted values Σ e^(s-m)·v [d]; states is [rows × (2 + d)], v [n × d]. scores, as Scores writes them, are of one tile of keys after
// the other, stride values apart; they are overwritten.
//
// A row's result does not depend on the other rows. Where there is assembly the maximum is that of all n scores at once, elsewhere it moves
// from tile to tile.
func Fold(states, scores []float32, stride int, v []float32, n, d int) {
	rows := len(states) / (2 + d)
	if rows == 0 || n <= 0 {
		return
	}
	states, v = states[:rows*(2+d)], v[:n*d]
	scores = scores[:(n-1)/KeyTile*stride+rows*KeyTile]
	switch {
	case tiled(d) && features.avx512 && d%16 == 0:
		softmaxAVX512(&states[0], &scores[0], rows, n, 4*stride, d)
		valuesAVX512(&states[0], &scores[0], &v[0], rows, n, 4*stride, d)
		return
	case tiled(d):
		softmaxAVX2(&states[0], &scores[0], rows, n, 4*stride, d)
		valuesAVX2(&states[0], &scores[0], &v[0], rows, n, 4*stride, d)
		return
	}
	for from := 0; from < n; from += KeyTile {
		count := min(KeyTile, n-from)
		for r := range rows {
			foldPortable(states[r*(2+d):][:2+d], scores[from/KeyTile*stride+r*KeyTile:][:count], v[from*d:][:count*d])
		}
	}
}

func foldPortable(state, scores, v []float32) {
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
