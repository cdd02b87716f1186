package train

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"
)

// Targets are the matrices of a layer that an adapter can change, as the GGUF names them.
var Targets = []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

// NewAdapter makes the adapter that training starts from: of the given rank, for the targets in every layer (nil: all). A is uniform in
// ±1/√in, drawn by seed, and B zero, so that it changes nothing yet.
func NewAdapter(file *weights.File, rank int, alpha float32, targets []string, seed uint64) (*weights.Adapter, error) {
	if rank < 1 || !(alpha > 0) {
		return nil, fmt.Errorf("rank %d and alpha %v; expected positive numbers", rank, alpha)
	}
	if targets == nil {
		targets = Targets
	}
	for _, t := range targets {
		if !slices.Contains(Targets, t) {
			return nil, fmt.Errorf("target %q; known are %s", t, strings.Join(Targets, ", "))
		}
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	a := &weights.Adapter{Architecture: file.Architecture(), Alpha: alpha}
	for _, t := range file.Tensors() {
		part := strings.Split(t.Name, ".") // blk, layer, target, weight
		if len(part) != 4 || part[0] != "blk" || part[3] != "weight" || !slices.Contains(targets, part[2]) || len(t.Shape) != 2 {
			continue
		}
		if most := min(t.Shape[0], t.Shape[1]); rank > most {
			return nil, fmt.Errorf("rank %d; expected at most %d, the rank that a change of %s can have", rank, most, t.Name)
		}
		c := weights.Change{Tensor: t.Name, In: t.Shape[0], Out: t.Shape[1], Rank: rank}
		c.A, c.B = make([]float32, rank*c.In), make([]float32, c.Out*rank)
		bound := 1 / math.Sqrt(float64(c.In))
		for i := range c.A {
			c.A[i] = float32((2*rng.Float64() - 1) * bound)
		}
		a.Changes = append(a.Changes, c)
	}
	return a, nil
}

// NewLinkTokens are link tokens that begin as some of the model's tokens: their embeddings.
func NewLinkTokens(file *weights.File, tokens []int32) ([][]float32, error) {
	t, ok := file.Tensor("token_embd.weight")
	if !ok {
		return nil, file.Errorf("tensor token_embd.weight", "is missing")
	}
	embedding, err := kernel.NewMatrix(t.Type, t.Shape[1], t.Shape[0], t.Data)
	if err != nil {
		return nil, err
	}
	links := make([][]float32, len(tokens))
	for i, id := range tokens {
		links[i] = make([]float32, embedding.Cols)
		embedding.Row(links[i], int(id))
	}
	return links, nil
}
