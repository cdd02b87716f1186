package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// A softmax built tile by tile is the whole one, for any number of queries, the last tile not full, and queries that see less than others;
// and a query alone has the bits that it has among others.
func TestTileSoftmax_TileByTile_IsOneSoftmax(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		const seed = 7
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, d := range []int{64, 128} {
			if !OnTiles(d) {
				t.Skip("this path has no tiles")
			}
			var tiles, alone TileSoftmax
			for _, rows := range []int{1, 3, 16, 33, 48} {
				for _, keys := range []int{1, 31, 32, 33, 100} {
					q, k, v := random(rng, rows*d), halves(random(rng, keys*d)), halves(random(rng, keys*d))
					for i := range q {
						q[i] /= 4 // scores of a few units
					}
					sees := make([]int, rows)
					for r := range sees {
						sees[r] = max(1, keys-rng.IntN(40))
					}
					state := softmaxOnTiles(&tiles, q, k, v, d, sees)
					for r := range rows {
						got := state[r*(2+d):][:2+d]
						want := softmax64(q[r*d:][:d], k[:sees[r]*d], v, d)
						for i, w := range want {
							if g := float64(got[2+i]) / float64(got[1]); !(math.Abs(g-w) <= 1e-4) {
								t.Fatalf("seed %d, D=%d, %d queries, %d keys: query %d, value %d = %v, want %v", seed, d, rows, keys, r, i, g, w)
							}
						}
						one := softmaxOnTiles(&alone, q[r*d:][:d], k, v, d, sees[r:r+1])
						if i, ok := sameBits(one, got); !ok {
							t.Fatalf("D=%d, %d queries, %d keys: query %d, value %d alone is %v, among others %v", d, rows, keys, r, i, one[i], got[i])
						}
					}
				}
			}
		}
	})
}

func softmaxOnTiles(tiles *TileSoftmax, q, k, v []float32, d int, sees []int) []float32 {
	rows, keys := len(q)/d, len(k)/d
	state := make([]float32, rows*(2+d))
	for r := range rows {
		state[r*(2+d)] = float32(math.Inf(-1))
	}
	tiles.Queries(q, d)
	for from := 0; from < keys; from += KeyTile {
		n := min(KeyTile, keys-from)
		visible := make([]int32, rows)
		for r := range visible {
			visible[r] = int32(min(max(sees[r]-from, 0), n))
		}
		tiles.Fold(state, k[from*d:], v[from*d:], n, visible)
	}
	return state
}

// halves rounds values to half floats.
func halves(x []float32) []float32 {
	for i := range x {
		x[i] = F16ToF32(F32ToF16(x[i]))
	}
	return x
}

// softmax64 is Σ e^(q·k)·v / Σ e^(q·k).
func softmax64(q, k, v []float32, d int) []float64 {
	out := make([]float64, d)
	sum := 0.0
	for j := range len(k) / d {
		s, _ := dot64(q, k[j*d:][:d])
		w := math.Exp(s)
		sum += w
		for i := range out {
			out[i] += w * float64(v[j*d+i])
		}
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}
