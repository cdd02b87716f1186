// Package kernel is arithmetic on slices: matrix products with quantized weights, norms, activations, number formats, and
// the workers that share them out. It knows no model.
//
// Letters: T rows of activations (tokens), K values a row, M rows of weights.
//
// Bits: a result never depends on how many rows or threads are worked on beside it. Every output is one sum in one fixed
// order, whatever the tile it was computed in (see TestMatMul_RowsAndThreads_SameBits). The order differs from path to path.
//
// The portable code is the specification. Assembly stands beside it for the few loops that take the time, picked by if at
// run time; the build tag purego leaves it out.
package kernel

import (
	"fmt"
	"os"
)

// features is what the code may use of this CPU. One value, so that a test narrows it and puts it back by one assignment.
type featureSet struct{ avx2 bool } // AVX2, FMA and F16C

var features, featuresErr = narrow(detect(), os.Getenv("TESSERA_CPU"))

// narrow leaves of f what the environment variable TESSERA_CPU allows: "portable", "avx2", or "" for all.
func narrow(f featureSet, word string) (featureSet, error) {
	switch word {
	case "":
		return f, nil
	case "portable":
		return featureSet{}, nil
	case "avx2":
		if !f.avx2 {
			return f, fmt.Errorf("TESSERA_CPU is avx2, which this machine or build does not have; unset it or take portable")
		}
		return f, nil
	}
	return f, fmt.Errorf("TESSERA_CPU is %q; known are portable and avx2", word)
}

// Check returns what is wrong with TESSERA_CPU, or nil. Commands call it first.
func Check() error { return featuresErr }

// Path names the code that computes: block files carry it, since two paths may round differently.
func Path() string {
	if features.avx2 {
		return "avx2"
	}
	return "portable"
}
