package tokenizer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

// Every pair NAME.inp, NAME.out among the shared vectors: NAME is a vocabulary there, or "smollm" for the default model's.
func TestEncode_SharedVectors_AgreeWithTheModelsOwnTokenizers(t *testing.T) {
	dir := testenv.Shared(t, "vectors", "tokenizer")
	inputs, err := filepath.Glob(filepath.Join(dir, "*.inp"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no *.inp in %s (%v)", dir, err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".inp")
		t.Run(name, func(t *testing.T) {
			tok := vocabulary(t, name)
			texts := readTexts(t, input)
			lines := readLines(t, strings.TrimSuffix(input, ".inp")+".out")
			if len(texts) != len(lines) {
				t.Fatalf("%d texts, %d lines of ids", len(texts), len(lines))
			}
			for i, text := range texts {
				if got := join(tok.Encode(text)); got != strings.TrimSpace(lines[i]) {
					t.Errorf("text %d %q:\n got %s\nwant %s", i, text, got, lines[i])
				}
				if got := tok.Decode(tok.Encode(text)); got != text {
					t.Errorf("text %d %q comes back as %q", i, text, got)
				}
			}
		})
	}
}

// vocabularies are built once: the largest takes a third of a second.
var vocabularies sync.Map

// vocabulary returns the tokenizer of a vocabulary among the shared vectors, or, named smollm, of the default model.
func vocabulary(t testing.TB, name string) *tokenizer.Tokenizer {
	t.Helper()
	if tok, ok := vocabularies.Load(name); ok {
		return tok.(*tokenizer.Tokenizer)
	}
	var path string
	if name == "smollm" {
		path = testenv.Model(t)
	} else {
		path = testenv.Shared(t, "vectors", "tokenizer", name)
	}
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	vocab, err := file.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	vocabularies.Store(name, tok)
	return tok
}

// The texts of a file each end with a line "__ggml_vocab_test__"; the last may end with the file.
func readTexts(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	texts := strings.Split(string(data), "\n__ggml_vocab_test__\n")
	if texts[len(texts)-1] == "" {
		texts = texts[:len(texts)-1]
	}
	return texts
}

func readLines(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func join(ids []int32) string { return strings.Trim(fmt.Sprint(ids), "[]") }

// A document may hold one endless word. On a quiet machine the slowest of these takes half a second; looking at
// the whole word for each join would take many minutes. The limit lies between, so that a busy machine passes.
func TestEncode_AMegabyteOfOneWord_TakesNoQuadraticTime(t *testing.T) {
	const limit = 40 * time.Second
	for _, name := range []string{"ggml-vocab-llama-bpe.gguf", "ggml-vocab-llama-spm.gguf", "smollm"} {
		for _, unit := range []string{"a", " "} {
			t.Run(fmt.Sprintf("%s/%q", name, unit), func(t *testing.T) {
				tok := vocabulary(t, name)
				text := strings.Repeat(unit, 1<<20)
				start := time.Now()
				ids := tok.Encode(text)
				if took := time.Since(start); took > limit {
					t.Errorf("took %v, more than %v", took, limit)
				}
				if got := tok.Decode(ids); got != text {
					t.Errorf("%d bytes come back as %d", len(text), len(got))
				}
			})
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, name := range []string{"ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-bpe.gguf", "ggml-vocab-qwen2.gguf", "ggml-vocab-llama-spm.gguf", "smollm"} {
		b.Run(name, func(b *testing.B) {
			tok := vocabulary(b, name)
			b.SetBytes(int64(len(passage)))
			b.ReportMetric(float64(len(tok.Encode(passage))), "tokens")
			b.ReportAllocs()
			for b.Loop() {
				tok.Encode(passage)
			}
		})
	}
}

const passage = `The lighthouse at the mouth of the river was lit for the first time in 1861, and a keeper lived in it until 1934. ` +
	`Its lamp burned rape oil, later paraffin, and could be seen from a distance of 22 kilometres in clear weather. ` +
	`When the harbour was moved to the other bank, the tower lost its purpose; the town bought it for a symbolic price, ` +
	`repaired the stairs and opened a small museum. Visitors who climb the 187 steps see the islands, the old shipyard and, on some days, the coast beyond.`
