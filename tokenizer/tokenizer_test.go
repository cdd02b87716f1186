package tokenizer

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// byteVocab is a small byte-complete vocabulary of byte-level BPE: the 256 bytes, then the results of the merges, then the markers.
func byteVocab() Vocab {
	v := Vocab{Model: "gpt2", Pre: "gpt-2", Unknown: -1, EOT: -1}
	for c := range 256 {
		v.Tokens = append(v.Tokens, written(byte(c)))
	}
	v.Merges = []string{"h e", "l l", "a a", "Ġ t", "Ġt he", "he ll", "aa aa", "hell o", "i m", "Ġ Ġ", "Ċ Ċ", "1 2", "< |", "| >", "<| im", "Ã ¤"}
	for _, m := range v.Merges {
		v.Tokens = append(v.Tokens, strings.Replace(m, " ", "", 1))
	}
	v.Types = slices.Repeat([]int32{typeNormal}, len(v.Tokens))
	v = with(v, typeControl, "<|im_start|>", "<|im_end|>", "<|im")
	v = with(v, typeUserDefined, "<tool>", "aa<tool>")
	v.BOS, v.EOS = id(v, "<|im_start|>"), id(v, "<|im_end|>")
	return v
}

// pieceVocab is a small byte-complete vocabulary of SentencePiece BPE.
func pieceVocab() Vocab {
	v := Vocab{Model: "llama", Pre: "default", BOS: 1, EOS: 2, EOT: -1, Unknown: 0, AddBOS: true, AddSpacePrefix: true}
	v = with(v, typeUnknown, "<unk>")
	v = with(v, typeControl, "<s>", "</s>")
	for c := range 256 {
		v = with(v, typeByte, fmt.Sprintf("<0x%02X>", c))
	}
	v = with(v, typeNormal, "▁", "h", "e", "l", "o", "a", "<", "s", ">", "/", "0", "x", "A", "i", "m", "|", "ä", "ll", "he", "▁he", "hell", "▁hello", "aa", "aaa", "aaaa", "<s", "</", "</s", "▁▁", "▁▁▁", "<0", "<0x", "0A", "im", "lo", "aaaaaaaa")
	v = with(v, typeUserDefined, "<|im_start|>", "▁tool")
	for i := range v.Tokens {
		v.Scores = append(v.Scores, -float32(i*7%13)) // some equal, some in the other order than the ids
	}
	return v
}

// written is a byte as byte-level BPE writes it.
func written(c byte) string {
	for r, b := range byteOfRune {
		if b == c {
			return string(r)
		}
	}
	return ""
}

func with(v Vocab, typ int32, tokens ...string) Vocab {
	v.Tokens = append(slices.Clip(v.Tokens), tokens...)
	v.Types = append(slices.Clip(v.Types), slices.Repeat([]int32{typ}, len(tokens))...)
	return v
}

func id(v Vocab, token string) int32 { return int32(slices.Index(v.Tokens, token)) }

func mustNew(t testing.TB, v Vocab) *Tokenizer {
	t.Helper()
	tok, err := New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func names(v Vocab, ids []int32) []string {
	var out []string
	for _, id := range ids {
		out = append(out, v.Tokens[id])
	}
	return out
}

func vocabs() map[string]Vocab {
	llama3, qwen, smol, noSpace, inner := byteVocab(), byteVocab(), byteVocab(), pieceVocab(), pieceVocab()
	llama3.Pre, qwen.Pre, smol.Pre = "llama-bpe", "qwen2", "smollm"
	noSpace.AddSpacePrefix = false
	inner = with(inner, typeNormal, "o▁", "o▁h", "▁▁h")
	inner.Scores = append(inner.Scores, -1, 0, 0)
	return map[string]Vocab{"gpt-2": byteVocab(), "llama-bpe": llama3, "qwen2": qwen, "smollm": smol, "llama": pieceVocab(), "llama without dummy prefix": noSpace, "llama with inner spaces": inner}
}

func FuzzEncode_JoinsLikeTheSlowTwin_AndComesBack(f *testing.F) {
	for _, text := range texts {
		f.Add(text)
	}
	all := vocabs()
	toks := map[string]*Tokenizer{}
	for name, v := range all {
		toks[name] = mustNew(f, v)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 300 {
			text = text[:300] // the twin is cubic
		}
		for name, tok := range toks {
			v := all[name]
			ids := tok.Encode(text)
			for _, id := range ids {
				if typ := v.Types[id]; typ != typeNormal && typ != typeByte {
					t.Fatalf("%s: %q yields %q of type %d", name, text, v.Tokens[id], typ)
				}
			}
			if want := slowEncode(v, text); !slices.Equal(ids, want) {
				t.Errorf("%s: %q:\n got %q\nwant %q", name, text, names(v, ids), names(v, want))
			}
			whole := string([]rune(text)) // what is no UTF-8 reads as U+FFFD
			if v.Model == modelSentencePiece {
				whole = strings.ReplaceAll(whole, spaceMark, " ")
			}
			if got := tok.Decode(ids); got != whole {
				t.Errorf("%s: %q comes back as %q", name, text, got)
			}
			tok.NextSpecial(text)
		}
	})
}

// Few letters, so that many pairs compete: this is where an error in the order of joining shows.
func TestEncode_RandomTextOverFewLetters_JoinsLikeTheSlowTwin(t *testing.T) {
	const seed = 4
	random := rand.New(rand.NewPCG(seed, seed))
	letters := strings.Split("aaahello  <|im0ä\n", "")
	for name, v := range vocabs() {
		tok := mustNew(t, v)
		for range 100 {
			var b strings.Builder
			for range random.IntN(60) {
				b.WriteString(letters[random.IntN(len(letters))])
			}
			text := b.String()
			if got, want := tok.Encode(text), slowEncode(v, text); !slices.Equal(got, want) {
				t.Errorf("%s, seed %d: %q:\n got %q\nwant %q", name, seed, text, names(v, got), names(v, want))
			}
		}
	}
}

// Merges in random order make one token in several ways, so that equal pairs turn up from right to left too.
func TestEncode_RandomMerges_JoinLikeTheSlowTwin(t *testing.T) {
	const seed = 5
	random := rand.New(rand.NewPCG(seed, seed))
	for range 40 {
		v := byteVocab()
		v.Merges = nil
		made := []string{"a", "b"}
		for range 25 {
			l, r := made[random.IntN(len(made))], made[random.IntN(len(made))]
			if len(l+r) > 8 || slices.Contains(v.Merges, l+" "+r) {
				continue
			}
			v.Merges = append(v.Merges, l+" "+r)
			if !slices.Contains(made, l+r) {
				made = append(made, l+r)
				v = with(v, typeNormal, l+r)
			}
		}
		random.Shuffle(len(v.Merges), func(i, j int) { v.Merges[i], v.Merges[j] = v.Merges[j], v.Merges[i] })
		tok := mustNew(t, v)
		for range 20 {
			text := make([]byte, 40)
			for i := range text {
				text[i] = "ab"[random.IntN(2)]
			}
			if got, want := tok.Encode(string(text)), slowEncode(v, string(text)); !slices.Equal(got, want) {
				t.Fatalf("seed %d, merges %q: %q:\n got %q\nwant %q", seed, v.Merges, text, names(v, got), names(v, want))
			}
		}
	}
}

func TestMerger_Candidates_ArePoppedByRankThenFromTheLeft(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 6))
	var m merger
	var want, got []uint64
	for range 300 {
		order := uint64(random.IntN(3))<<32 | uint64(random.IntN(1000))
		want = append(want, order)
		m.push(candidate{order: order})
	}
	for len(m.heap) > 0 {
		got = append(got, m.pop().order)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %x", got)
	}
}

// slowEncode joins by looking at all pairs each time.
func slowEncode(v Vocab, text string) []int32 {
	text = string([]rune(text))
	ordinary := map[string]int32{}
	for id, token := range v.Tokens {
		if _, ok := ordinary[token]; !ok && v.Types[id] == typeNormal {
			ordinary[token] = int32(id)
		}
	}
	joinAll := func(symbols []string, rank func(left, right string) (float64, bool)) []string {
		for {
			best, at := math.Inf(1), -1
			for i := 0; i+1 < len(symbols); i++ {
				if r, ok := rank(symbols[i], symbols[i+1]); ok && r < best {
					best, at = r, i
				}
			}
			if at < 0 {
				return symbols
			}
			symbols[at] += symbols[at+1]
			symbols = slices.Delete(symbols, at+1, at+2)
		}
	}
	var ids []int32
	if v.Model == modelByteLevel {
		for text != "" {
			n := preTokenizers[v.Pre].scan(text)
			var symbols []string
			for _, c := range []byte(text[:n]) {
				symbols = append(symbols, written(c))
			}
			text = text[n:]
			if id, ok := ordinary[strings.Join(symbols, "")]; ok && v.Pre == "llama-bpe" {
				ids = append(ids, id)
				continue
			}
			for _, s := range joinAll(symbols, func(l, r string) (float64, bool) {
				i := slices.Index(v.Merges, l+" "+r)
				return float64(i), i >= 0 && v.Types[slices.Index(v.Tokens, l+r)] == typeNormal
			}) {
				ids = append(ids, ordinary[s])
			}
		}
		return ids
	}
	if v.AddSpacePrefix && text != "" {
		text = " " + text
	}
	symbols := strings.Split(strings.ReplaceAll(text, " ", spaceMark), "")
	for _, s := range joinAll(symbols, func(l, r string) (float64, bool) {
		id, ok := ordinary[l+r]
		return -float64(v.Scores[id]), ok
	}) {
		if id, ok := ordinary[s]; ok {
			ids = append(ids, id)
			continue
		}
		for _, c := range []byte(s) {
			ids = append(ids, int32(slices.Index(v.Tokens, fmt.Sprintf("<0x%02X>", c))))
		}
	}
	return ids
}

func FuzzDecoder_AnyIDs_GivesWholeRunesThatAddUpToDecode(f *testing.F) {
	f.Add([]byte{0xf0, 0x9f, 0xa6, 0x99, ' ', 0xe2, 0x82, 'a', 0xf0, 0x9f})
	f.Add([]byte{0xff, 0xc0, 0x80, 0xed, 0xa0, 0x80, 0xe2})
	f.Add([]byte("  hello \x00\xff"))
	byteTok, pieceTok := mustNew(f, byteVocab()), mustNew(f, pieceVocab())
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, tok := range []*Tokenizer{byteTok, pieceTok} {
			var ids []int32
			var raw []byte
			for _, c := range data {
				id := int32(c) * 5 % int32(tok.Size()+2)
				if tok == byteTok {
					id = int32(c) // the bytes come first in its vocabulary
				}
				ids = append(ids, id)
				raw = append(raw, tok.Piece(id)...)
			}
			d := tok.Decoder()
			var got strings.Builder
			for _, id := range ids {
				s := d.Push(id)
				if !utf8.ValidString(s) {
					t.Fatalf("%v: half a rune in %q", ids, s)
				}
				got.WriteString(s)
			}
			got.WriteString(d.Flush())
			want := string([]rune(string(raw)))
			if tok.prefix {
				want = strings.TrimPrefix(want, " ")
			}
			if got.String() != want || tok.Decode(ids) != want {
				t.Errorf("%v: streamed %q, decoded %q, want %q", ids, got.String(), tok.Decode(ids), want)
			}
		}
	})
}

func TestDecoder_RuneInPieces_ComesOutWhole(t *testing.T) {
	tok := mustNew(t, byteVocab())
	var got []string
	d := tok.Decoder()
	for _, c := range []byte("a🦙b") {
		got = append(got, d.Push(int32(c))) // in this vocabulary the token of a byte is the byte
	}
	got = append(got, d.Push(0xf0), d.Push(0x9f), d.Flush(), d.Push('c'))
	if want := []string{"a", "", "", "", "🦙", "b", "", "", "\ufffd\ufffd", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDecode_DummyPrefix_IsTakenAwayOnce(t *testing.T) {
	v := pieceVocab()
	tok := mustNew(t, v)
	for _, text := range []string{"hello", " hello", "  hello ", ""} {
		ids := append([]int32{v.BOS}, tok.Encode(text)...)
		if got := tok.Decode(ids); got != text {
			t.Errorf("%q comes back as %q", text, got)
		}
	}
	if got := tok.Decode(append(tok.Encode("hello"), tok.EncodeContinued(" hello")...)); got != "hello hello" {
		t.Errorf("got %q", got)
	}
}

func TestEncode_MarkersInDocuments_StayText(t *testing.T) {
	for name, v := range vocabs() {
		tok := mustNew(t, v)
		for id, text := range v.Tokens {
			if v.Types[id] == typeNormal {
				continue
			}
			for _, text := range []string{text, "a" + text + "a", text + text} {
				ids := tok.Encode(text)
				for _, got := range ids {
					if typ := v.Types[got]; typ != typeNormal && typ != typeByte {
						t.Errorf("%s: %q yields the token %q", name, text, v.Tokens[got])
					}
				}
				if got := tok.Decode(ids); got != strings.ReplaceAll(text, spaceMark, " ") {
					t.Errorf("%s: %q comes back as %q", name, text, got)
				}
			}
		}
	}
}

// A vocabulary whose merges, whole words or pieces lead to a control token must not open that way to documents.
func TestEncode_MergesThatMakeAControlToken_AreLeftOut(t *testing.T) {
	v := byteVocab()
	v.Merges = append(v.Merges, "e n", "en d")
	v = with(v, typeNormal, "en")
	v = with(v, typeControl, "end")
	for _, pre := range []string{"gpt-2", "llama-bpe"} {
		v.Pre = pre
		if got := names(v, mustNew(t, v).Encode("end")); !slices.Equal(got, []string{"en", "d"}) {
			t.Errorf("%s: got %q", pre, got)
		}
	}
	p := pieceVocab()
	p.AddSpacePrefix = false
	if got := names(p, mustNew(t, p).Encode("</s>")); !slices.Equal(got, []string{"</s", ">"}) {
		t.Errorf("got %q", got)
	}
}

func TestNew_EndMarkerThatTheFileCallsNormal_IsControl(t *testing.T) {
	v := byteVocab()
	v.Merges = append(v.Merges, "<|im_end| >")
	v = with(v, typeNormal, "<|im_end|")
	v.Types[v.EOS], v.Types[v.BOS] = typeNormal, typeNormal
	tok := mustNew(t, v)
	if !tok.IsControl(v.EOS) || !tok.IsControl(v.BOS) || !tok.IsEnd(v.EOS) || tok.IsEnd(v.BOS) {
		t.Errorf("EOS: control %v, end %v; BOS: control %v, end %v", tok.IsControl(v.EOS), tok.IsEnd(v.EOS), tok.IsControl(v.BOS), tok.IsEnd(v.BOS))
	}
	if v.Types[v.EOS] != typeNormal {
		t.Error("New changed the caller's types")
	}
}

func TestNextSpecial_LeftmostThenLongest(t *testing.T) {
	b, p := byteVocab(), pieceVocab()
	for _, c := range []struct {
		vocab Vocab
		text  string
		at    int
		want  string // "" for none
	}{
		{b, "<|im_start|>hello<|im_end|>", 0, "<|im_start|>"},
		{b, "hello<|im_end|><tool>", 5, "<|im_end|>"},
		{b, "x<|im_end|>", 1, "<|im_end|>"}, // which starts with <|im
		{b, "a<tool>", 1, "<tool>"},         // user-defined too
		{b, "<|i m_end|>", 11, ""},
		{p, "<unk>hello</s>", 10, "</s>"}, // the unknown token is none
		{p, "", 0, ""},
	} {
		at, n, got := mustNew(t, c.vocab).NextSpecial(c.text)
		if at != c.at || n != len(c.want) || n > 0 && got != id(c.vocab, c.want) {
			t.Errorf("%s %q: token %d, %d bytes from %d on, want %q at %d", c.vocab.Model, c.text, got, n, at, c.want, c.at)
		}
	}
}

func TestEncode_BytesWithoutAToken(t *testing.T) {
	b := byteVocab()
	b.Tokens[4] = "" // no token for byte 4
	if got := mustNew(t, b).Encode("<\x04|"); !slices.Equal(got, []int32{id(b, "<|")}) {
		t.Errorf("byte-level BPE: got %v, want the byte dropped", got)
	}
	p := pieceVocab()
	p.AddSpacePrefix = false
	p.Types[id(p, "<0xC3>")] = typeUnused
	if got := names(p, mustNew(t, p).Encode("aéü")); !slices.Equal(got, []string{"a", "<unk>", "<unk>"}) {
		t.Errorf("SentencePiece: got %q", got)
	}
	p.Unknown = p.EOS
	if _, err := New(p); err == nil {
		t.Error("a control token as unknown token is no way out for a document's text")
	}
}

func TestNew_DuplicateTokens_TheFirstNormalOneIsUsed(t *testing.T) {
	b := with(byteVocab(), typeNormal, "hello", "h")
	if got := mustNew(t, b).Encode("hello"); !slices.Equal(got, []int32{id(b, "hello")}) {
		t.Errorf("got %v", got)
	}
	b.Types['h'] = typeUnused
	if got := mustNew(t, b).Encode("h"); !slices.Equal(got, []int32{int32(len(b.Tokens) - 1)}) {
		t.Errorf("got %v", got)
	}
}

func TestPiece_OfWhatStandsForNoText_IsNil(t *testing.T) {
	v := with(byteVocab(), typeUnused, "[PAD]")
	v = with(v, typeNormal, "plainly written")
	tok := mustNew(t, v)
	for _, id := range []int32{-1, math.MinInt32, v.BOS, v.EOS, id(v, "[PAD]"), int32(tok.Size()), math.MaxInt32} {
		if got := tok.Piece(id); got != nil {
			t.Errorf("Piece(%d) = %q", id, got)
		}
	}
	for token, want := range map[string]string{"Ġthe": " the", "<tool>": "<tool>", "Ã¤": "ä", "plainly written": "plainly written"} {
		if got := tok.Piece(id(v, token)); string(got) != want {
			t.Errorf("Piece of %q = %q, want %q", token, got, want)
		}
	}
	if _, ok := tok.Special("Ġthe"); ok {
		t.Error("an ordinary token is not special")
	}
	if got, ok := tok.Special("<tool>"); !ok || got != id(v, "<tool>") {
		t.Errorf("Special(<tool>) = %d, %v", got, ok)
	}
}

func TestNew_BadVocabulary_IsNamed(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(v *Vocab)
		want string
	}{
		{"unknown model", func(v *Vocab) { v.Model = "bert" }, `tokenizer.ggml.model: found "bert", want a supported model: "gpt2" or "llama"`},
		{"unknown pre", func(v *Vocab) { v.Pre = "tekken" }, `tokenizer.ggml.pre: found "tekken", want a supported pre-tokenizer: gpt-2, llama-bpe, qwen2, smollm`},
		{"no pre", func(v *Vocab) { v.Pre = "" }, `tokenizer.ggml.pre: found "", want a supported`},
		{"pre of SentencePiece", func(v *Vocab) { *v = pieceVocab(); v.Pre = "gpt-2" }, `tokenizer.ggml.pre: found "gpt-2", want "default"`},
		{"no tokens", func(v *Vocab) { v.Tokens = nil }, "tokenizer.ggml.tokens: found 0 tokens"},
		{"no types", func(v *Vocab) { v.Types = nil }, "tokenizer.ggml.token_type: found 0 types"},
		{"short types", func(v *Vocab) { v.Types = v.Types[:9] }, "tokenizer.ggml.token_type: found 9 types"},
		{"type 7", func(v *Vocab) { v.Types[3] = 7 }, "tokenizer.ggml.token_type[3]: found 7, want 1 to 6"},
		{"type 0", func(v *Vocab) { v.Types[3] = 0 }, "tokenizer.ggml.token_type[3]: found 0"},
		{"BOS too large", func(v *Vocab) { v.BOS = int32(len(v.Tokens)) }, "tokenizer.ggml.bos_token_id: found 2"},
		{"EOS -2", func(v *Vocab) { v.EOS = -2 }, "tokenizer.ggml.eos_token_id: found -2"},
		{"EOT too large", func(v *Vocab) { v.EOT = math.MaxInt32 }, "tokenizer.ggml.eot_token_id"},
		{"unknown too large", func(v *Vocab) { v.Unknown = 99999 }, "tokenizer.ggml.unknown_token_id"},
		{"BOS wanted, none there", func(v *Vocab) { v.BOS, v.AddBOS = -1, true }, "tokenizer.ggml.add_bos_token: found true without"},
		{"merge of one word", func(v *Vocab) { v.Merges[2] = "aa" }, `tokenizer.ggml.merges[2]: found "aa", want two tokens`},
		{"merge without left", func(v *Vocab) { v.Merges[2] = " a" }, "tokenizer.ggml.merges[2]"},
		{"empty merge", func(v *Vocab) { v.Merges[2] = "" }, "tokenizer.ggml.merges[2]"},
		{"merge of an unknown token", func(v *Vocab) { v.Merges[2] = "a zz" }, `tokenizer.ggml.merges[2]: found "a zz", want "zz" among the tokens`},
		{"merge into an unknown token", func(v *Vocab) { v.Merges[2] = "z z" }, `want "zz" among the tokens`},
		{"byte token of BPE", func(v *Vocab) { v.Types[0] = typeByte }, "tokenizer.ggml.tokens[0]"},
		{"byte token without a byte", func(v *Vocab) { *v = pieceVocab(); v.Tokens[5] = "<0xZZ>" }, `tokenizer.ggml.tokens[5]: found "<0xZZ>" of type byte`},
		{"short scores", func(v *Vocab) { *v = pieceVocab(); v.Scores = v.Scores[:5] }, "tokenizer.ggml.scores: found 5 scores"},
		{"NaN score", func(v *Vocab) { *v = pieceVocab(); v.Scores[5] = float32(math.NaN()) }, "tokenizer.ggml.scores[5]: found NaN"},
		{"no byte and no unknown", func(v *Vocab) { *v = pieceVocab(); v.Types[13] = typeUnused; v.Unknown = -1 }, "no byte token <0x0A> and no token of type unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := byteVocab()
			c.edit(&v)
			_, err := New(v)
			var typed *Error
			if !errors.As(err, &typed) || !strings.HasPrefix(err.Error(), "tokenizer.ggml.") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// Vocabularies from hostile files: any types, ids, merges and scores give an error or a tokenizer that keeps its promises.
func FuzzNew_AnyVocabulary_NeverPanics(f *testing.F) {
	f.Add("gpt2", "gpt-2", "a\nb\nab\n\n<x>", "a b\nab a", []byte{1, 1, 1, 1, 3}, int32(4), "abab <x>")
	f.Add("llama", "", "<unk>\n▁\na\n▁a\n▁\n<s>", "", []byte{2, 1, 1, 1, 1, 3}, int32(0), " a a<s>")
	f.Fuzz(func(t *testing.T, model, pre, tokens, merges string, types []byte, special int32, text string) {
		v := Vocab{Model: model, Pre: pre, Tokens: strings.Split(tokens, "\n"), BOS: special, EOS: -1, EOT: -1, Unknown: special, AddSpacePrefix: true}
		if merges != "" {
			v.Merges = strings.Split(merges, "\n")
		}
		for i, typ := range types {
			v.Types = append(v.Types, int32(typ))
			v.Scores = append(v.Scores, float32(i%3))
		}
		tok, err := New(v)
		if err != nil {
			return
		}
		for _, id := range slices.Concat(tok.Encode(text), tok.EncodeContinued(text)) {
			if tok.IsControl(id) || v.Types[id] == typeUserDefined {
				t.Errorf("%q yields %d of type %d", text, id, v.Types[id])
			}
		}
		if at, n, _ := tok.NextSpecial(text); at < 0 || n < 0 || at+n > len(text) {
			t.Errorf("a special token of %d bytes from %d on in %q", n, at, text)
		}
	})
}

func TestTokenizer_UsedConcurrently_GivesTheSame(t *testing.T) {
	for name, v := range vocabs() {
		tok := mustNew(t, v)
		text := strings.Join(texts, " ")
		want := tok.Encode(text)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 20 {
					if got := tok.Encode(text); !slices.Equal(got, want) {
						t.Errorf("%s: got %v, want %v", name, got, want)
					}
					tok.NextSpecial(text)
					tok.Decode(want)
				}
			})
		}
		wg.Wait()
	}
}
