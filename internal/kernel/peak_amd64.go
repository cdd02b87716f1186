//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

// archPeaks lists the vector instructions of this CPU, whatever TESSERA_CPU allows the kernels.
func archPeaks() []Peak {
	x, avx2 := &cpu.X86, detect().avx2
	peaks := []Peak{
		{Name: "f32 FMA, 256 bits", Unit: "GFLOP/s", loop: peakFMA256, ops: 2 * 8 * 12, Without: lacking(avx2)},
		// VPMADDWD multiplies sixteen pairs and adds half of the products, VPADDD the other half: two operations a product.
		{Name: "int16 multiply-add, 256 bits", Unit: "Gop/s", loop: peakMadd256, ops: 2 * 16 * 10, Without: lacking(avx2)},
	}
	for _, p := range []struct {
		name, unit string
		has        bool
	}{
		{"f32 FMA, 512 bits", "GFLOP/s", x.HasAVX512F},
		{"int8 dot product, VNNI", "Gop/s", x.HasAVX512VNNI || x.HasAVXVNNI},
		{"bf16 dot product, AVX-512", "GFLOP/s", x.HasAVX512BF16},
		{"int8 tiles, AMX", "Gop/s", x.HasAMXInt8},
		{"bf16 tiles, AMX", "GFLOP/s", x.HasAMXBF16},
	} {
		without := lacking(p.has)
		if p.has {
			without = "not measured: no loop for it yet"
		}
		peaks = append(peaks, Peak{Name: p.name, Unit: p.unit, Without: without})
	}
	return peaks
}

func lacking(has bool) string {
	if has {
		return ""
	}
	return "not on this CPU"
}

// peakFMA256 does twelve VFMADD231PS a round.
//
//go:noescape
func peakFMA256(n int)

// peakMadd256 does ten pairs of VPMADDWD and VPADDD a round.
//
//go:noescape
func peakMadd256(n int)

// readSumAVX2 reads n numbers, a multiple of 32, above 0.
//
//go:noescape
func readSumAVX2(data *uint64, n int) uint64
