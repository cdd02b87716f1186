//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

// archPeaks lists the vector instructions of this CPU, whatever TESSERA_CPU allows the kernels.
func archPeaks() []Peak {
	x, f := &cpu.X86, detect()
	return []Peak{
		{Name: "f32 FMA, 256 bits", Unit: "GFLOP/s", loop: peakFMA256, ops: 2 * 8 * 12, Without: lacking(f.avx2)},
		// VPMADDWD multiplies sixteen pairs and adds half of the products, VPADDD the other half: two operations a product.
		{Name: "int16 multiply-add, 256 bits", Unit: "Gop/s", loop: peakMadd256, ops: 2 * 16 * 10, Without: lacking(f.avx2)},
		{Name: "f32 FMA, 512 bits", Unit: "GFLOP/s", loop: peakFMA512, ops: 2 * 16 * 12, Without: lacking(f.avx512)},
		{Name: "int16 dot product, VNNI", Unit: "Gop/s", loop: peakDot16, ops: 2 * 32 * 12, Without: lacking(f.avx512)},
		{Name: "int8 dot product, VNNI", Unit: "Gop/s", loop: peakDot8, ops: 2 * 64 * 12, Without: lacking(f.avx512)},
		{Name: "bf16 dot product, AVX-512", Unit: "GFLOP/s", loop: peakDotBF16, ops: 2 * 32 * 12, Without: lacking(f.avx512 && x.HasAVX512BF16)},
		{Name: "int8 tiles, AMX", Unit: "Gop/s", loop: func(n int) { peakTilesInt8(n, &wholeTiles) }, ops: 4 * 2 * 16 * 16 * 64, Without: lacking(f.amx)},
		{Name: "bf16 tiles, AMX", Unit: "GFLOP/s", loop: func(n int) { peakTilesBF16(n, &wholeTiles) }, ops: 4 * 2 * 16 * 16 * 32, Without: lacking(f.amx && x.HasAMXBF16)},
	}
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

// peakFMA512, peakDot16, peakDot8 and peakDotBF16 do twelve VFMADD231PS, VPDPWSSD, VPDPBUSD or VDPBF16PS of 512 bits a round.
//
//go:noescape
func peakFMA512(n int)

//go:noescape
func peakDot16(n int)

//go:noescape
func peakDot8(n int)

//go:noescape
func peakDotBF16(n int)

// peakTilesInt8 and peakTilesBF16 do four products of tiles a round.
//
//go:noescape
func peakTilesInt8(n int, config *[64]byte)

//go:noescape
func peakTilesBF16(n int, config *[64]byte)

// readSumAVX2 reads n numbers, a multiple of 32, above 0.
//
//go:noescape
func readSumAVX2(data *uint64, n int) uint64
