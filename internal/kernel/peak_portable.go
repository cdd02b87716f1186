//go:build !amd64 || purego

package kernel

func archPeaks() []Peak { return nil }

func readSumAVX2(data *uint64, n int) uint64 { panic("kernel: no AVX2 in this build") }
