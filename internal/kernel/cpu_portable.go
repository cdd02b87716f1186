//go:build !amd64 || purego

package kernel

func detect() featureSet { return featureSet{} }

func dot4x2AVX2(w0, w1, w2, w3, x0, x1 *float32, n int, out *[2 * panelRows]float32) {
	panic("kernel: no AVX2 in this build")
}
func f16ToF32AVX2(dst *float32, src *uint16, n int) { panic("kernel: no AVX2 in this build") }

type tileArgs struct {
	dst                *float32
	dstStride          uintptr
	x                  *int16
	xStride            uintptr
	xScales, xSums     *float32
	groupStride        uintptr
	codes              *int16
	scales, mins       *float32
	groups, parts, add int
}

func tile4AVX2(a *tileArgs) { panic("kernel: no AVX2 in this build") }

type streamArgs struct {
	records                      *byte
	record                       uintptr
	groups                       int
	dst                          *float32
	x                            *int16
	xScales, xSums               *float32
	xTotals                      *int32
	bias, parts, half, mins, add int
}

type amxArgs struct {
	dst                            *float32
	dstStride                      uintptr
	x                              *int8
	xStride                        uintptr
	xScales, xSums                 *float32
	groupStride                    uintptr
	codes                          *int8
	scales, mins                   *float32
	groups, parts, partCodes, rest int
	add, tokens                    int
	buffer                         *byte
	config                         *[64]byte
}

type tileScoresArgs struct {
	high, low         *uint16
	stride            int
	keysHigh, keysLow *uint16
	scores            *float32
	blocks, steps     int
	config            *[64]byte
}

type tileSoftmaxArgs struct {
	scores, state *float32
	stateStride   int
	high, low     *uint16
	shrink        *float32
	visible       *int32
	rows          int
}

type tileValuesArgs struct {
	high, low, valuesHigh, valuesLow *uint16
	stride                           int
	state                            *float32
	stateStride                      int
	shrink                           *float32
	rows, quads                      int
	buffer                           *float32
	config                           *[64]byte
}

func splitBF16(high, low *uint16, src *float32, n int)         { panic("kernel: no AMX in this build") }
func splitPairs(high, low *uint16, src *float32, pairs, d int) { panic("kernel: no AMX in this build") }
func tileScores(a *tileScoresArgs)                             { panic("kernel: no AMX in this build") }
func tileSoftmax(a *tileSoftmaxArgs)                           { panic("kernel: no AMX in this build") }
func tileValues(a *tileValuesArgs)                             { panic("kernel: no AMX in this build") }

func tile8AVX512(a *tileArgs)     { panic("kernel: no AVX-512 in this build") }
func tilesAMX(a *amxArgs)         { panic("kernel: no AMX in this build") }
func stream4AVX512(a *streamArgs) { panic("kernel: no AVX-512 in this build") }
func stream8AVX512(a *streamArgs) { panic("kernel: no AVX-512 in this build") }
func unpackBytes4(dst *int8, src *byte, groups, record int, bias int8) {
	panic("kernel: no AMX in this build")
}
func unpackBytes8(dst *int8, src *byte, groups, record int) { panic("kernel: no AMX in this build") }
func splitCodes(dst *int8, codes *int16, groups int)        { panic("kernel: no AMX in this build") }
func stream4AVX2(a *streamArgs)                             { panic("kernel: no AVX2 in this build") }
func stream8AVX2(a *streamArgs)                             { panic("kernel: no AVX2 in this build") }
func unpack4AVX2(dst *int16, src *byte, groups, record int, bias int16) {
	panic("kernel: no AVX2 in this build")
}
func unpack8AVX2(dst *int16, src *byte, groups, record int) { panic("kernel: no AVX2 in this build") }
func codeAVX2(codes *int16, totals *int32, scales, sums, x *float32, groups int) {
	panic("kernel: no AVX2 in this build")
}
func sumSquaresAVX2(x *float32, n int) float64 { panic("kernel: no AVX2 in this build") }
func scaleRowAVX2(dst, x, gain *float32, n int, scale float32) {
	panic("kernel: no AVX2 in this build")
}
func swiGLUAVX2(gate, up *float32, n int)             { panic("kernel: no AVX2 in this build") }
func transposeAVX2(dst, src *float32, n, d int)       { panic("kernel: no AVX2 in this build") }
func scoresAVX512(dst, q, keys *float32, rows, d int) { panic("kernel: no AVX-512 in this build") }
func scoresAVX2(dst, q, keys *float32, rows, d int)   { panic("kernel: no AVX2 in this build") }
func f32ToF16AVX2(dst *uint16, src *float32, n int)   { panic("kernel: no AVX2 in this build") }
func bf16ToF32AVX2(dst *float32, src *uint16, n int)  { panic("kernel: no AVX2 in this build") }
func f32ToBF16AVX2(dst *uint16, src *float32, n int)  { panic("kernel: no AVX2 in this build") }
func q8ToF32AVX2(dst *float32, codes *int8, scales *uint16, groups int) {
	panic("kernel: no AVX2 in this build")
}
func f32ToQ8AVX2(codes *int8, scales *uint16, src *float32, groups int) {
	panic("kernel: no AVX2 in this build")
}
func halvesAVX2(dst *float32, src *byte, groups, record int) { panic("kernel: no AVX2 in this build") }
func narrowScoresAVX2(dst, q, keys *float32, rows, d int)    { panic("kernel: no AVX2 in this build") }
func rotateAVX2(dst, src, turns *float32, heads, n, d int, scale float32) {
	panic("kernel: no AVX2 in this build")
}
func rotateAVX512(dst, src, turns *float32, heads, n, d int, scale float32) {
	panic("kernel: no AVX-512 in this build")
}
func panelRowF32(dst, x, panel *float32, depth int)          { panic("kernel: no AVX2 in this build") }
func panelRowF16(dst, x *float32, panel *uint16, depth int)  { panic("kernel: no AVX2 in this build") }
func panelRowBF16(dst, x *float32, panel *uint16, depth int) { panic("kernel: no AVX2 in this build") }
func softmaxAVX2(states, scores *float32, rows, n, stride, d int) {
	panic("kernel: no AVX2 in this build")
}
func valuesAVX2(states, weights, v *float32, rows, n, stride, d int) {
	panic("kernel: no AVX2 in this build")
}
func softmaxAVX512(states, scores *float32, rows, n, stride, d int) {
	panic("kernel: no AVX-512 in this build")
}
func valuesAVX512(states, weights, v *float32, rows, n, stride, d int) {
	panic("kernel: no AVX-512 in this build")
}

type gemmArgs struct {
	dst            *float32
	dstStride      uintptr
	a              *float32
	tile, row, col uintptr
	b              *float32
	strip          uintptr
	depth, tiles   int
	add            int
}

func gemm12x32AVX512(a *gemmArgs)                         { panic("kernel: no AVX-512 in this build") }
func gemm6x16AVX2(a *gemmArgs)                            { panic("kernel: no AVX2 in this build") }
func packRowsAVX2(dst, src *float32, k, stride int)       { panic("kernel: no AVX2 in this build") }
func packTransposedAVX2(dst, src *float32, k, stride int) { panic("kernel: no AVX2 in this build") }

func exponentialsAVX2(x *float32, n int, scale, shift float32) float32 {
	panic("kernel: no AVX2 in this build")
}
func maxAVX2(x *float32, n int) float32 { panic("kernel: no AVX2 in this build") }
func softmaxGradientAVX2(dp, p *float32, n int, mean, scale float32) {
	panic("kernel: no AVX2 in this build")
}
func swiGLUGradientAVX2(gate, up, dh *float32, n int) { panic("kernel: no AVX2 in this build") }
