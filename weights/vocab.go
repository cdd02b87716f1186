package weights

import (
	"math"
	"slices"

	"github.com/tessera-llm/tessera/tokenizer"
)

const normalToken = 1 // the GGUF type of a token that is nothing special

// Vocab returns the vocabulary that tokenizer.ggml.* describes. Where a file is silent it gets what llama.cpp takes silence for:
// a SentencePiece model begins a text with BOS and a space, and its unknown, BOS and EOS tokens are 0, 1 and 2; a byte-level model
// begins with BOS only if its pre-tokenizer is Llama 3's, and has the special tokens it names.
func (f *File) Vocab() (tokenizer.Vocab, error) {
	var v tokenizer.Vocab
	v.Model, _ = f.String("tokenizer.ggml.model")
	v.Pre, _ = f.String("tokenizer.ggml.pre")
	v.Tokens, _ = f.Strings("tokenizer.ggml.tokens")
	v.Types, _ = f.Ints("tokenizer.ggml.token_type")
	v.Scores, _ = f.Floats("tokenizer.ggml.scores")
	v.Merges, _ = f.Strings("tokenizer.ggml.merges")
	if v.Types == nil {
		v.Types = slices.Repeat([]int32{normalToken}, len(v.Tokens))
	}

	sentencePiece := v.Model == "llama"
	v.Unknown, v.BOS, v.EOS = -1, -1, -1
	if sentencePiece {
		v.Unknown, v.BOS, v.EOS = 0, 1, 2
	}
	v.Unknown = f.tokenID("tokenizer.ggml.unknown_token_id", v.Unknown)
	v.BOS = f.tokenID("tokenizer.ggml.bos_token_id", v.BOS)
	v.EOS = f.tokenID("tokenizer.ggml.eos_token_id", v.EOS)
	v.EOT = f.tokenID("tokenizer.ggml.eot_token_id", -1)
	v.AddBOS = f.boolOr("tokenizer.ggml.add_bos_token", sentencePiece || v.Pre == "llama-bpe")
	v.AddEOS = f.boolOr("tokenizer.ggml.add_eos_token", false)
	v.AddSpacePrefix = f.boolOr("tokenizer.ggml.add_space_prefix", sentencePiece)

	if err := f.checkVocab(v); err != nil {
		return tokenizer.Vocab{}, err
	}
	return v, nil
}

// ChatTemplate returns the Jinja template that renders a conversation.
func (f *File) ChatTemplate() (string, bool) { return f.String("tokenizer.chat_template") }

// checkVocab refuses a vocabulary whose parts do not fit together.
func (f *File) checkVocab(v tokenizer.Vocab) error {
	if err := f.Err(); err != nil {
		return err
	}
	needs := []struct {
		key     string
		missing bool
		what    string
	}{
		{"tokenizer.ggml.model", v.Model == "", "the kind of vocabulary"},
		{"tokenizer.ggml.tokens", len(v.Tokens) == 0, "the texts of the tokens"},
		{"tokenizer.ggml.merges", v.Model == "gpt2" && v.Merges == nil, "by a byte-level (gpt2) vocabulary"},
		{"tokenizer.ggml.scores", v.Model == "llama" && v.Scores == nil, "by a SentencePiece (llama) vocabulary"},
	}
	for _, n := range needs {
		if n.missing {
			return f.Errorf(metadataField(n.key), "is missing, expected %s", n.what)
		}
	}
	size := len(v.Tokens)
	if n := len(v.Types); n != size {
		return f.Errorf("metadata tokenizer.ggml.token_type", "has %s elements, expected one for each of the %s tokens", grouped(uint64(n)), grouped(uint64(size)))
	}
	if n := len(v.Scores); n != size && n != 0 {
		return f.Errorf("metadata tokenizer.ggml.scores", "has %s elements, expected one for each of the %s tokens", grouped(uint64(n)), grouped(uint64(size)))
	}
	for _, id := range []struct {
		name string
		id   int32
	}{{"unknown", v.Unknown}, {"bos", v.BOS}, {"eos", v.EOS}, {"eot", v.EOT}} {
		if int(id.id) >= size {
			return f.Errorf("metadata tokenizer.ggml."+id.name+"_token_id", "is %d, the vocabulary has %s tokens", id.id, grouped(uint64(size)))
		}
	}
	return nil
}

// tokenID returns the token id under key, or otherwise where there is none. Converters also write -1 as a uint32 for none.
func (f *File) tokenID(key string, otherwise int32) int32 {
	id, ok := f.Uint(key)
	switch {
	case !ok:
		return otherwise
	case id == math.MaxUint32:
		return -1
	default:
		return int32(min(id, math.MaxInt32)) // what is too large stays too large for any vocabulary
	}
}

func (f *File) boolOr(key string, otherwise bool) bool {
	if b, ok := f.Bool(key); ok {
		return b
	}
	return otherwise
}
