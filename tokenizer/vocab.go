package tokenizer

import (
	"fmt"
	"math"
	"strconv"
)

const (
	modelByteLevel     = "gpt2"
	modelSentencePiece = "llama"
)

// An Error says what in a vocabulary makes it unusable.
type Error struct {
	Field string // the GGUF key, with an index where one element is meant
	Found string
	Want  string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: found %s, want %s", e.Field, e.Found, e.Want) }

// check says what is wrong with the fields that both models need. What it lets pass can be indexed by any id of the vocabulary.
func (v *Vocab) check() error {
	if v.Model != modelByteLevel && v.Model != modelSentencePiece {
		return &Error{"tokenizer.ggml.model", strconv.Quote(v.Model), `a supported model: "gpt2" or "llama"`}
	}
	if len(v.Tokens) == 0 || len(v.Tokens) > math.MaxInt32 {
		return &Error{"tokenizer.ggml.tokens", fmt.Sprintf("%d tokens", len(v.Tokens)), "1 to 2³¹-1"}
	}
	// Without types nothing would tell a control token from text, and documents could write one.
	if len(v.Types) != len(v.Tokens) {
		return &Error{"tokenizer.ggml.token_type", fmt.Sprintf("%d types", len(v.Types)), fmt.Sprintf("one for each of %d tokens", len(v.Tokens))}
	}
	for id, typ := range v.Types {
		if typ < typeNormal || typ > typeByte {
			return &Error{fmt.Sprintf("tokenizer.ggml.token_type[%d]", id), strconv.Itoa(int(typ)), "1 to 6"}
		}
	}
	for _, f := range []struct {
		name string
		id   int32
	}{{"bos", v.BOS}, {"eos", v.EOS}, {"eot", v.EOT}, {"unknown", v.Unknown}} {
		if f.id < -1 || int(f.id) >= len(v.Tokens) {
			return &Error{"tokenizer.ggml." + f.name + "_token_id", strconv.Itoa(int(f.id)), fmt.Sprintf("an id below %d", len(v.Tokens))}
		}
	}
	if v.AddBOS && v.BOS < 0 {
		return &Error{"tokenizer.ggml.add_bos_token", "true without tokenizer.ggml.bos_token_id", "both or none"}
	}
	return nil
}
