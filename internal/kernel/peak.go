package kernel

// A Peak is what one instruction can do at most: the denominator for "how close to the limit". Its loop has enough
// independent sums to hide the instruction's latency, and touches no memory.
type Peak struct {
	Name string // the instruction and its width
	Unit string // of ten to the nine: "GFLOP/s" or "Gop/s", a multiplication and an addition being two

	// Without is why this machine or build has no figure; "" where Run can be called.
	Without string

	loop func(n int)
	ops  int // operations of one round of loop
}

// peakRounds keeps one call below a few tens of microseconds: assembly cannot be preempted.
const peakRounds = 2000

// Run computes for a moment and returns how many operations that were. Safe for concurrent use.
func (p *Peak) Run() (ops float64) {
	p.loop(peakRounds)
	return float64(p.ops) * peakRounds
}

// Peaks lists the instructions that matrix products may be made of, first the plain twin's.
func Peaks() []Peak {
	return append([]Peak{{Name: "f32 multiply-add, plain Go", Unit: "GFLOP/s", loop: multiplyAddPortable, ops: 2 * 12}}, archPeaks()...)
}

// multiplyAddPortable adds twelve products to twelve sums, n times. Go rounds each product, so it is not one instruction.
func multiplyAddPortable(n int) {
	var a, b, c, d, e, f, g, h, i, j, k, l float32
	x, y := peakFactors[0], peakFactors[1]
	for range n {
		a += float32(a * x)
		b += float32(b * y)
		c += float32(c * x)
		d += float32(d * y)
		e += float32(e * x)
		f += float32(f * y)
		g += float32(g * x)
		h += float32(h * y)
		i += float32(i * x)
		j += float32(j * y)
		k += float32(k * x)
		l += float32(l * y)
	}
	if a+b+c+d+e+f+g+h+i+j+k+l != 0 { // keeps the sums alive
		panic("kernel: zeros add up to something")
	}
}

// peakFactors are variables, so that the compiler does not know them.
var peakFactors = [2]float32{0.5, 0.25}

// ReadSum reads all of data, once and in order, as fast as one core can, and returns a sum that depends on it: for
// measuring memory. What does not fill 256 bytes at the end is left out.
func ReadSum(data []uint64) uint64 {
	data = data[:len(data)&^31]
	if len(data) == 0 {
		return 0
	}
	if features.avx2 {
		return readSumAVX2(&data[0], len(data))
	}
	return readSumPortable(data)
}

func readSumPortable(data []uint64) uint64 {
	var a, b, c, d uint64
	for ; len(data) >= 8; data = data[8:] {
		x := (*[8]uint64)(data)
		a, b, c, d = a+x[0]+x[4], b+x[1]+x[5], c+x[2]+x[6], d+x[3]+x[7]
	}
	return a + b + c + d
}
