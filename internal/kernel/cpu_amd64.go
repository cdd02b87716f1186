//go:build amd64 && !purego

package kernel

import (
	"sync"

	"golang.org/x/sys/cpu"
)

func detect() featureSet {
	x := &cpu.X86
	var f featureSet
	f.avx2 = x.HasAVX2 && x.HasFMA // every CPU with AVX2 has F16C; x/sys/cpu does not report it
	f.avx512 = f.avx2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX512VNNI
	f.amx = f.avx512 && x.HasAMXTile && x.HasAMXInt8 && x.HasAMXBF16 && tilesAllowed()
	return f
}

// tilesAllowed asks the system, once, for the registers of AMX. x/sys/cpu says what the CPU has, and not whether the system saves
// them: bits 17 and 18 of XCR0.
var tilesAllowed = sync.OnceValue(func() bool {
	const tileState = 1<<17 | 1<<18
	return xcr0()&tileState == tileState && requestTiles()
})

// xcr0 is what register state the system saves. Only for CPUs with AVX.
func xcr0() uint32

// dot4x2AVX2 writes Σ_k w_j[k]·x_0[k] for the four rows of weights to out[0:4], and for x_1 to out[4:8]. n is at least 8.
// Eight partial sums, k mod 8, are added pairwise at the end.
//
//go:noescape
func dot4x2AVX2(w0, w1, w2, w3, x0, x1 *float32, n int, out *[2 * panelRows]float32)

// f16ToF32AVX2 converts n values, a multiple of 8.
//
//go:noescape
func f16ToF32AVX2(dst *float32, src *uint16, n int)

// panelRowF32, panelRowF16 and panelRowBF16 write the products of one row of x with the tileRows rows of a panel, depth columns of it, to dst: sums in
// ascending order, as gemm6x16AVX2 has them.
//
//go:noescape
func panelRowF32(dst, x, panel *float32, depth int)

//go:noescape
func panelRowF16(dst, x *float32, panel *uint16, depth int)

//go:noescape
func panelRowBF16(dst, x *float32, panel *uint16, depth int)

// softmaxAVX2 is the part of Fold that makes weights of scores, valuesAVX2 the one that adds weighted values. d is a multiple of 8, rows
// and n are above 0; stride, from one tile of scores to the next, is in bytes.
//
//go:noescape
func softmaxAVX2(states, scores *float32, rows, n, stride, d int)

//go:noescape
func valuesAVX2(states, weights, v *float32, rows, n, stride, d int)

// softmaxAVX512 and valuesAVX512 are their twins; d is a multiple of 16.
//
//go:noescape
func softmaxAVX512(states, scores *float32, rows, n, stride, d int)

//go:noescape
func valuesAVX512(states, weights, v *float32, rows, n, stride, d int)

// sumSquaresAVX2 is Σ x[i]², in float64; n is a multiple of 16, above 0.
//
//go:noescape
func sumSquaresAVX2(x *float32, n int) float64

// scaleRowAVX2 writes x[i]·scale·gain[i]; n is a multiple of 16, above 0.
//
//go:noescape
func scaleRowAVX2(dst, x, gain *float32, n int, scale float32)

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

// tile8AVX512 is tile4AVX2 for eight tokens, and with the same bits.
//
//go:noescape
func tile8AVX512(a *tileArgs)

// amxArgs are what tilesAMX works on.
type amxArgs struct {
	dst         *float32 // outputs of the first token
	dstStride   uintptr
	x           *int8 // the first token's bytes: for each group its high ones, then its low ones
	xStride     uintptr
	xScales     *float32 // of the tokens, and what makes their number a multiple of sixteen
	xSums       *float32
	groupStride uintptr
	codes       *int8 // the panel's
	scales      *float32
	mins        *float32 // nil: none
	groups      int
	parts       int
	partCodes   int // bytes of the panel's codes a part
	rest        int // of a group's 64 bytes of x, those that its parts do not step over
	add         int
	tokens      int
	buffer      *byte // 4 KiB for tiles, aligned to 64
	config      *[64]byte
}

// tilesAMX computes all tokens, with the same bits as tile8AVX512.
//
//go:noescape
func tilesAMX(a *amxArgs)

// splitBF16 writes n numbers, a multiple of 16, as the sum of two.
//
//go:noescape
func splitBF16(high, low *uint16, src *float32, n int)

// splitPairs is splitBF16 of 2·pairs rows of d values, a multiple of 16: pairs rows of d pairs, one of two rows each.
//
//go:noescape
func splitPairs(high, low *uint16, src *float32, pairs, d int)

type tileScoresArgs struct {
	high, low         *uint16 // queries
	stride            int     // bytes a query
	keysHigh, keysLow *uint16
	scores            *float32
	blocks            int // of blockRows queries
	steps             int // of 32 values
	config            *[64]byte
}

// tileScores writes the products of queries and keys.
//
//go:noescape
func tileScores(a *tileScoresArgs)

type tileSoftmaxArgs struct {
	scores      *float32
	state       *float32
	stateStride int // bytes
	high, low   *uint16
	shrink      *float32
	visible     *int32
	rows        int
}

// tileSoftmax updates maxima and sums, and writes the scores' weights and what the states' values shrink by.
//
//go:noescape
func tileSoftmax(a *tileSoftmaxArgs)

type tileValuesArgs struct {
	high, low             *uint16 // weights
	valuesHigh, valuesLow *uint16
	stride                int      // bytes a row of pairs of values
	state                 *float32 // the first query's values
	stateStride           int      // bytes
	shrink                *float32
	rows                  int
	quads                 int // of 64 values
	buffer                *float32
	config                *[64]byte
}

// tileValues shrinks the states' values and adds the weighted ones.
//
//go:noescape
func tileValues(a *tileValuesArgs)

// unpackBytes4 and unpackBytes8 write bytes, for tilesAMX.
//
//go:noescape
func unpackBytes4(dst *int8, src *byte, groups, record int, bias int8)

//go:noescape
func unpackBytes8(dst *int8, src *byte, groups, record int)

// splitCodes writes codes as bytes, for tilesAMX: for each group the high ones, then the low ones.
//
//go:noescape
func splitCodes(dst *int8, codes *int16, groups int)

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
func stream4AVX512(a *streamArgs)

//go:noescape
func stream8AVX512(a *streamArgs)

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

//go:noescape
func scoresAVX512(dst, q, keys *float32, rows, d int)

// narrowScoresAVX2 is scoresAVX2 for the eight keys that keys points at, and dst likewise.
//
//go:noescape
func narrowScoresAVX2(dst, q, keys *float32, rows, d int)

// rotateAVX2 is Rotate of the first n values, a multiple of 8, above 0, of each head.
//
//go:noescape
func rotateAVX2(dst, src, turns *float32, heads, n, d int, scale float32)

// rotateAVX512 is rotateAVX2 of a multiple of 16.
//
//go:noescape
func rotateAVX512(dst, src, turns *float32, heads, n, d int, scale float32)

// f32ToF16AVX2 converts n values, a multiple of 8.
//
//go:noescape
func f32ToF16AVX2(dst *uint16, src *float32, n int)

// bf16ToF32AVX2 and f32ToBF16AVX2 convert n values, a multiple of 8, above 0.
//
//go:noescape
func bf16ToF32AVX2(dst *float32, src *uint16, n int)

//go:noescape
func f32ToBF16AVX2(dst *uint16, src *float32, n int)

// q8ToF32AVX2 and f32ToQ8AVX2 convert groups, at least one, of Q8Group values.
//
//go:noescape
func q8ToF32AVX2(dst *float32, codes *int8, scales *uint16, groups int)

//go:noescape
func f32ToQ8AVX2(codes *int8, scales *uint16, src *float32, groups int)

// gemmArgs are what the micro kernel of Gemm works on: tiles below each other of one strip, over depth values of k. Strides are in bytes.
type gemmArgs struct {
	dst            *float32
	dstStride      uintptr
	a              *float32
	tile, row, col uintptr // of a: from a tile to the next, a row, a value of k
	b              *float32
	strip          uintptr // of b, to the next strip; gemm12x32AVX512's alone
	depth, tiles   int
	add            int // 1: add to what dst holds, 0: overwrite it
}

//go:noescape
func gemm6x16AVX2(a *gemmArgs)

// gemm12x32AVX512 computes two strips of tiles that are pairs of gemm6x16AVX2's, with the same bits.
//
//go:noescape
func gemm12x32AVX512(a *gemmArgs)

// packRowsAVX2 writes k rows of gemmCols values, stride values apart, as a strip of a Packed. k is above 0.
//
//go:noescape
func packRowsAVX2(dst, src *float32, k, stride int)

// packTransposedAVX2 writes k values, a multiple of 8, above 0, each of gemmCols columns, stride values apart, as a strip of a Packed.
//
//go:noescape
func packTransposedAVX2(dst, src *float32, k, stride int)

// The four that follow work on n values, a multiple of 8, above 0.
//
//go:noescape
func exponentialsAVX2(x *float32, n int, scale, shift float32) float32

//go:noescape
func maxAVX2(x *float32, n int) float32

//go:noescape
func softmaxGradientAVX2(dp, p *float32, n int, mean, scale float32)

//go:noescape
func swiGLUGradientAVX2(gate, up, dh *float32, n int)
