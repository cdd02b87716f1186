// Package tokenizer turns text into the token ids of a model's vocabulary, and ids back into text.
//
// In goes a Vocab, as a model file states it; out comes a Tokenizer of one of two kinds:
//   - "gpt2", byte-level BPE: a pre-tokenizer cuts the text into words, and in each word the pair that stands first in the list of
//     merges is joined until none is left.
//   - "llama", SentencePiece BPE: over the whole text, the two neighbours whose concatenation has the best score are joined until
//     none is a token; a character without a token becomes its bytes.
//
// Text of documents and users (Encode, EncodeContinued) yields tokens of type normal, byte and unknown only, whatever it contains.
// Control tokens and user-defined ones (Special) come from template text alone (NextSpecial). User-defined tokens are held back too,
// though other engines look for them in any text: many files call the markers of their chat format user-defined, and a document
// that could write such a marker could end its own turn. The price is that the few vocabularies with user-defined runs of spaces spell
// them in ordinary tokens.
//
// Text is taken as it is, without Unicode normalization. A byte that is no UTF-8 reads as U+FFFD. Otherwise Decode gives back what was
// encoded, where the vocabulary has a token for every byte, with two limits: bytes without a token are dropped in byte-level BPE
// (the files state no token for them), and SentencePiece, which writes a space as U+2581, cannot tell the two apart.
package tokenizer

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Vocab is a vocabulary as a GGUF file states it; the comments give the key below `tokenizer.ggml.`.
type Vocab struct {
	Model  string    // model: "gpt2" or "llama"
	Pre    string    // pre: the pre-tokenizer of byte-level BPE
	Tokens []string  // tokens; an empty one is never produced
	Types  []int32   // token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; one a token
	Scores []float32 // scores, one a token; SentencePiece only
	Merges []string  // merges: "left right", best first; byte-level BPE only

	BOS, EOS, EOT, Unknown int32 // …_token_id, or -1
	AddBOS, AddEOS         bool  // add_bos_token, add_eos_token
	AddSpacePrefix         bool  // add_space_prefix; SentencePiece only
}

// Token types, with GGUF's numbers.
const (
	typeNormal      = 1
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
	typeUnused      = 5
	typeByte        = 6
)

// A Tokenizer is immutable and safe for concurrent use.
//  1. 0 ≤ id < Size for every id it returns.
//  2. Encode and EncodeContinued return no control and no user-defined token.
//  3. pieces[id] is nil for tokens that stand for no text: control, unknown, unused.
type Tokenizer struct {
	segment  segmenter
	pieces   [][]byte
	types    []int32
	specials [256][]special // by first byte, longest first
	ids      map[string]int32
	ends     map[int32]bool
	bos      int32
	addBOS   bool
	prefix   bool // SentencePiece's dummy prefix: the first text of a prompt starts with a space
}

// A segmenter appends the ids of text (valid UTF-8, not empty), which knows no special tokens.
type segmenter interface {
	appendIDs(ids []int32, text string) []int32
}

type special struct {
	text string
	id   int32
}

// endNames are the tokens by which known chat formats end a turn. A file names one or two of them as EOS and EOT, while
// its model may produce another one. They count as control tokens even where the file calls them normal.
var endNames = []string{
	"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot|>", "<end_of_turn>",
}

// New builds the tokenizer of a vocabulary, or returns an *Error naming the field that is missing, malformed or not supported.
// Tolerated: empty tokens, two tokens with one text (the first normal one is used), and merges that
// would make a token of another type than normal (they are left out).
func New(v Vocab) (*Tokenizer, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	t := &Tokenizer{
		pieces: make([][]byte, len(v.Tokens)),
		types:  slices.Clone(v.Types),
		ids:    map[string]int32{},
		ends:   map[int32]bool{},
		bos:    v.BOS,
		addBOS: v.AddBOS,
		prefix: v.Model == modelSentencePiece && v.AddSpacePrefix,
	}
	t.markEnds(v)
	t.collectSpecials(v.Tokens)
	v.Types = t.types

	var err error
	if v.Model == modelByteLevel {
		t.segment, err = newByteLevel(v, t.pieces)
	} else {
		t.segment, err = newSentencePiece(v, t.pieces)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Encode returns the ids of the text of a document or user. With SentencePiece the text is preceded by the
// dummy prefix if the vocabulary wants it. No BOS is added.
func (t *Tokenizer) Encode(text string) []int32 { return t.appendText(nil, text, t.prefix) }

// EncodeContinued is Encode without the dummy prefix, for text that follows other text.
func (t *Tokenizer) EncodeContinued(text string) []int32 { return t.appendText(nil, text, false) }

func (t *Tokenizer) appendText(ids []int32, text string, prefix bool) []int32 {
	if text == "" {
		return ids
	}
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	if prefix {
		text = " " + text
	}
	return t.segment.appendIDs(ids, text)
}

// NextSpecial finds the first control or user-defined token in text that a chat template wrote: the leftmost, and the longest of those
// that start there, as n bytes from at on. Without one, n is 0.
func (t *Tokenizer) NextSpecial(text string) (at, n int, id int32) {
	for i := range len(text) {
		for _, s := range t.specials[text[i]] {
			if strings.HasPrefix(text[i:], s.text) {
				return i, len(s.text), s.id
			}
		}
	}
	return len(text), 0, 0
}

// Decode returns the text of ids: the concatenated pieces, invalid bytes as U+FFFD.
// Where Encode adds a dummy prefix, Decode takes one leading space away.
func (t *Tokenizer) Decode(ids []int32) string {
	d := t.Decoder()
	var text strings.Builder
	for _, id := range ids {
		text.WriteString(d.Push(id))
	}
	text.WriteString(d.Flush())
	return text.String()
}

// Piece returns the bytes that one token stands for, possibly a part of a rune. It is nil for control, unknown and unused tokens
// and ids outside the vocabulary. The caller must not change the bytes.
func (t *Tokenizer) Piece(id int32) []byte {
	if !t.has(id) {
		return nil
	}
	return t.pieces[id]
}

// Special returns the control or user-defined token with exactly this text.
func (t *Tokenizer) Special(text string) (id int32, ok bool) {
	id, ok = t.ids[text]
	return id, ok
}

// IsControl says whether id is a control token, which Encode never returns and which stands for no text.
func (t *Tokenizer) IsControl(id int32) bool { return t.has(id) && t.types[id] == typeControl }

// IsEnd says whether generation ends with id: EOS, EOT, or a token by which a known chat format ends a turn.
func (t *Tokenizer) IsEnd(id int32) bool { return t.ends[id] }

// BOS returns the token that starts a prompt, if the vocabulary has one; AddBOS says whether the model wants it there.
func (t *Tokenizer) BOS() (id int32, ok bool) { return t.bos, t.bos >= 0 }

// AddBOS says whether the model wants its prompts to start with BOS. It implies that there is one.
func (t *Tokenizer) AddBOS() bool { return t.addBOS }

// Size returns the number of tokens; ids are 0 … Size-1.
func (t *Tokenizer) Size() int { return len(t.pieces) }

func (t *Tokenizer) has(id int32) bool { return id >= 0 && int(id) < len(t.pieces) }

// markEnds fills t.ends and makes what ends or starts a prompt a control token, so that no document can write it.
func (t *Tokenizer) markEnds(v Vocab) {
	for _, id := range []int32{v.EOS, v.EOT} {
		if id >= 0 {
			t.ends[id] = true
		}
	}
	for id, text := range v.Tokens {
		if slices.Contains(endNames, text) {
			t.ends[int32(id)] = true
		}
	}
	for id := range t.ends {
		t.types[id] = typeControl
	}
	if v.BOS >= 0 {
		t.types[v.BOS] = typeControl
	}
}

func (t *Tokenizer) collectSpecials(tokens []string) {
	for id, text := range tokens {
		if text == "" || t.types[id] != typeControl && t.types[id] != typeUserDefined {
			continue
		}
		if _, ok := t.ids[text]; ok {
			continue
		}
		t.ids[text] = int32(id)
		t.specials[text[0]] = append(t.specials[text[0]], special{text, int32(id)})
	}
	for _, s := range t.specials {
		slices.SortFunc(s, func(a, b special) int { return len(b.text) - len(a.text) })
	}
}
