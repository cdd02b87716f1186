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
	"strings"
)

// features is what the code may use of this CPU. One value, so that a test narrows it and puts it back by one assignment.
type featureSet struct {
	avx2   bool // AVX2, FMA and F16C
	avx512 bool // and AVX-512 F, BW, DQ, VL and VNNI
	amx    bool // and AMX with int8, which the system lets this process use
}

var features, featuresErr = narrow(detect(), os.Getenv("TESSERA_CPU"))

// paths are the words of TESSERA_CPU, each with what it may use, from the plainest on.
var paths = []struct {
	word string
	uses featureSet
}{
	{"portable", featureSet{}},
	{"avx2", featureSet{avx2: true}},
	{"avx512", featureSet{avx2: true, avx512: true}},
	{"amx", featureSet{avx2: true, avx512: true, amx: true}},
}

// narrow leaves of f what the environment variable TESSERA_CPU allows: the word of a path, or "" for all.
func narrow(f featureSet, word string) (featureSet, error) {
	if word == "" {
		return f, nil
	}
	var words []string
	for _, p := range paths {
		if p.word != word {
			words = append(words, p.word)
			continue
		}
		if p.uses.avx2 && !f.avx2 || p.uses.avx512 && !f.avx512 || p.uses.amx && !f.amx {
			return f, fmt.Errorf("TESSERA_CPU is %s, which this machine or build does not have; unset it or take %s", word, f.path())
		}
		return p.uses, nil
	}
	return f, fmt.Errorf("TESSERA_CPU is %q; known are %s", word, strings.Join(words, ", "))
}

// path is the word of the last path that f has all of.
func (f featureSet) path() string {
	switch {
	case f.amx:
		return "amx"
	case f.avx512:
		return "avx512"
	case f.avx2:
		return "avx2"
	}
	return "portable"
}

// Check returns what is wrong with TESSERA_CPU, or nil. Commands call it first.
func Check() error { return featuresErr }

// Path names the code that computes: block files carry it, since two paths may round differently.
func Path() string { return features.path() }

// Paths are the names of the paths that this machine and build have, whatever TESSERA_CPU allows, the plainest first.
func Paths() []string {
	var words []string
	for _, p := range paths {
		if _, err := narrow(detect(), p.word); err == nil {
			words = append(words, p.word)
		}
	}
	return words
}
