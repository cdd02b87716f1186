package tokenizer

import (
	"fmt"
	"strconv"
	"strings"
)

// byteLevel is byte-level BPE (GPT-2): words from a pre-tokenizer, in which pairs of tokens are joined in the order of the merges.
type byteLevel struct {
	pre   preTokenizer
	bytes [256]int32 // the token of a single byte, or none
	joins map[uint64]join
	words map[string]int32 // tokens by the bytes they stand for; only where whole words are looked up first
}

type join struct {
	id   int32
	rank uint32
}

func newByteLevel(v Vocab, pieces [][]byte) (*byteLevel, error) {
	pre, ok := preTokenizers[v.Pre]
	if !ok {
		return nil, &Error{"tokenizer.ggml.pre", strconv.Quote(v.Pre), "a supported pre-tokenizer: " + preTokenizerNames()}
	}
	b := &byteLevel{pre: pre, joins: make(map[uint64]join, len(v.Merges))}
	if pre.wholeWords {
		b.words = make(map[string]int32, len(v.Tokens))
	}
	ids := make(map[string]int32, len(v.Tokens))
	for id, text := range v.Tokens {
		if v.Types[id] == typeUserDefined {
			pieces[id] = []byte(text)
		}
		if v.Types[id] == typeByte {
			var err error
			if pieces[id], err = bytePiece(id, text); err != nil {
				return nil, err
			}
		}
		if old, ok := ids[text]; !ok || v.Types[old] != typeNormal && v.Types[id] == typeNormal {
			ids[text] = int32(id)
		}
		if v.Types[id] != typeNormal {
			continue
		}
		bytes, ok := readByteLevel(text)
		if !ok { // a token added later, written plainly
			pieces[id] = []byte(text)
			continue
		}
		pieces[id] = bytes
		if b.words != nil && ids[text] == int32(id) {
			b.words[string(bytes)] = int32(id)
		}
	}
	for r, c := range byteOfRune {
		b.bytes[c] = none
		if id, ok := ids[string(r)]; ok && v.Types[id] == typeNormal {
			b.bytes[c] = id
		}
	}
	for rank, merge := range v.Merges {
		if err := b.addMerge(merge, rank, ids, v.Types); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// addMerge learns one line of merges, "left right".
func (b *byteLevel) addMerge(merge string, rank int, ids map[string]int32, types []int32) error {
	left, right, ok := strings.Cut(merge, " ")
	if !ok || left == "" || right == "" {
		return &Error{fmt.Sprintf("tokenizer.ggml.merges[%d]", rank), strconv.Quote(merge), "two tokens with a space between"}
	}
	var id [3]int32
	for i, text := range [...]string{left, right, left + right} {
		if id[i], ok = ids[text]; !ok {
			return &Error{fmt.Sprintf("tokenizer.ggml.merges[%d]", rank), strconv.Quote(merge), fmt.Sprintf("%q among the tokens", text)}
		}
		if types[id[i]] != typeNormal {
			return nil
		}
	}
	key := pairKey(id[0], id[1])
	if _, ok := b.joins[key]; !ok {
		b.joins[key] = join{id: id[2], rank: uint32(rank)}
	}
	return nil
}

func (b *byteLevel) appendIDs(ids []int32, text string) []int32 {
	var m merger
	m.pair = func(left, right int32) (int32, uint32, bool) {
		j, ok := b.joins[pairKey(m.id[left], m.id[right])]
		return j.id, j.rank, ok
	}
	for text != "" {
		n := min(b.pre.scan(text), maxWord)
		word := text[:n]
		text = text[n:]
		if id, ok := b.words[word]; ok {
			ids = append(ids, id)
			continue
		}
		m.reset()
		for i := range len(word) {
			if id := b.bytes[word[i]]; id != none {
				m.add(id)
			}
		}
		m.run()
		for i := int32(0); int(i) < len(m.id); i = m.next[i] {
			ids = append(ids, m.id[i])
		}
	}
	return ids
}

// readByteLevel returns the bytes that a token of byte-level BPE stands for.
func readByteLevel(text string) ([]byte, bool) {
	bytes := make([]byte, 0, len(text))
	for _, r := range text {
		c, ok := byteOfRune[r]
		if !ok {
			return nil, false
		}
		bytes = append(bytes, c)
	}
	return bytes, true
}

// byteOfRune undoes the writing of bytes as printable runes in the tokens of byte-level BPE: the printable
// bytes of Latin-1 stand for themselves, the other ones for U+0100 onwards in their order.
var byteOfRune = func() map[rune]byte {
	m := make(map[rune]byte, 256)
	next := rune(0x100)
	for c := range rune(256) {
		if c >= '!' && c <= '~' || c >= '¡' && c <= '¬' || c >= '®' {
			m[c] = byte(c)
		} else {
			m[next] = byte(c)
			next++
		}
	}
	return m
}()

func pairKey(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }
