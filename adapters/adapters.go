// Package adapters holds the adapters that ship with Tessera: block-tuned, for the default model, each with the evaluation record that the
// quality gate reads. `tessera train` made them; docs/training.md says how.
package adapters

import (
	_ "embed"
	"encoding/hex"
)

// An Adapter ships in the binary.
type Adapter struct {
	Name   string // of its file
	GGUF   []byte
	Record []byte // JSON, see weights.Record
	model  string // fingerprint of the model's file, in hex
}

var (
	//go:embed smollm2-135m-instruct.block.gguf
	smolLM2 []byte
	//go:embed smollm2-135m-instruct.block.json
	smolLM2Record []byte
)

var shipped = []Adapter{{
	Name: "smollm2-135m-instruct.block.gguf", GGUF: smolLM2, Record: smolLM2Record,
	model: "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3",
}}

// For returns the adapter for the model with this fingerprint.
func For(model [32]byte) (*Adapter, bool) {
	for i := range shipped {
		if shipped[i].model == hex.EncodeToString(model[:]) {
			return &shipped[i], true
		}
	}
	return nil, false
}
