package adapters_test

import (
	"testing"

	"github.com/tessera-llm/tessera/adapters"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/weights"
)

// What ships fits together: the default model has an adapter, that is the one which its record is of, and neither it nor prompts have
// changed since it was evaluated.
func TestFor_DefaultModel_AdapterIsTheEvaluatedOne(t *testing.T) {
	base, err := weights.Open(testenv.Model(t))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	model, err := base.Fingerprint(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	shipped, ok := adapters.For(model)
	if !ok {
		t.Fatalf("no adapter for the default model, %v", weights.Hash(model))
	}
	if len(shipped.GGUF) > 16<<20 {
		t.Errorf("%s has %d bytes; at most 16 MiB are to ship", shipped.Name, len(shipped.GGUF))
	}
	a, err := weights.ReadAdapter(shipped.Name, shipped.GGUF, base)
	if err != nil {
		t.Fatal(err)
	}
	record, err := weights.ParseRecord(shipped.Name, shipped.Record)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint := a.Fingerprint()
	if err := record.Of(model, &fingerprint, prompt.Format); err != nil {
		t.Error(err)
	}
	if _, ok := adapters.For([32]byte{1}); ok {
		t.Error("another model has an adapter, too")
	}
}
