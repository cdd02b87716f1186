//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

func detect() featureSet {
	// Every CPU with AVX2 has F16C; x/sys/cpu does not report it.
	return featureSet{avx2: cpu.X86.HasAVX2 && cpu.X86.HasFMA}
}

// dot4x2AVX2 writes Σ_k w_j[k]·x_0[k] for the four rows of weights to out[0:4], and for x_1 to out[4:8]. n is at least 8.
// Eight partial sums, k mod 8, are added pairwise at the end.
//
//go:noescape
func dot4x2AVX2(w0, w1, w2, w3, x0, x1 *float32, n int, out *[2 * panelRows]float32)

// f16ToF32AVX2 converts n values, a multiple of 8.
//
//go:noescape
func f16ToF32AVX2(dst *float32, src *uint16, n int)

// foldAVX2 is Fold of n scores, 1 to KeyTile, and d values a row, a multiple of 8. It reads all KeyTile scores.
//
//go:noescape
func foldAVX2(state, scores, v *float32, n, d int)

// swiGLUAVX2 is SwiGLU of n values, a multiple of 8.
//
//go:noescape
func swiGLUAVX2(gate, up *float32, n int)

// tileArgs are what the tile kernels work on: tileRows outputs of a few tokens, over n groups of columns. Strides are in bytes.
type tileArgs struct {
	dst         *float32 // outputs of the first token
	dstStride   uintptr
	x           *int16 // codes of the first token
	xStride     uintptr
	xScales     *float32
	xSums       *float32
	groupStride uintptr // from a token's scales, or sums, to the next one's
	codes       *int16  // the panel's
	scales      *float32
	mins        *float32 // nil: none
	groups      int
	parts       int
	add         int // 1: start from what dst holds, 0: from zero
}

// tile4AVX2 computes four tokens. Sums of products are exact integers within a group (or half one, with two parts); then,
// group by group, out = fma(sum, scale·xScale, out) and out = fma(min, xSum, out).
//
//go:noescape
func tile4AVX2(a *tileArgs)

// streamArgs are what the streaming kernels work on: tileRows outputs of one token, straight from packed records.
type streamArgs struct {
	records *byte
	record  uintptr // bytes
	groups  int
	dst     *float32
	x       *int16
	xScales *float32
	xSums   *float32
	xTotals *int32
	bias    int // taken from each 4-bit code
	parts   int
	half    int // 1: scales and mins are half floats, 0: float32
	mins    int // 1: there are mins
	add     int // 1: start from what dst holds, 0: from zero
}

// stream4AVX2 and stream8AVX2 have the bits of tile4AVX2, for 4- and 8-bit codes.
//
//go:noescape
func stream4AVX2(a *streamArgs)

//go:noescape
func stream8AVX2(a *streamArgs)

//go:noescape
func unpack4AVX2(dst *int16, src *byte, groups, record int, bias int16)

//go:noescape
func unpack8AVX2(dst *int16, src *byte, groups, record int)

// halvesAVX2 converts the tileRows half floats that stand at src, and again record bytes further, for each group.
//
//go:noescape
func halvesAVX2(dst *float32, src *byte, groups, record int)

//go:noescape
func codeAVX2(codes *int16, totals *int32, scales, sums, x *float32, groups int)

// transposeAVX2 writes n rows of d values as d rows of KeyTile. n and d are multiples of 8, above 0.
//
//go:noescape
func transposeAVX2(dst, src *float32, n, d int)

// scoresAVX2 is Scores on transposed keys, for all KeyTile of them.
//
//go:noescape
func scoresAVX2(dst, q, keys *float32, rows, d int)

// narrowScoresAVX2 is scoresAVX2 for the eight keys that keys points at, and dst likewise.
//
//go:noescape
func narrowScoresAVX2(dst, q, keys *float32, rows, d int)

// rotateAVX2 is Rotate of n values, a multiple of 8, above 0.
//
//go:noescape
func rotateAVX2(dst, src, turns *float32, n int, scale float32)

// f32ToF16AVX2 converts n values, a multiple of 8.
//
//go:noescape
func f32ToF16AVX2(dst *uint16, src *float32, n int)
