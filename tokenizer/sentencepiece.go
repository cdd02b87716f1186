package tokenizer

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// sentencePiece is SentencePiece BPE: neighbours are joined while their concatenation is a token, the best score first.
type sentencePiece struct {
	ids        map[string]int32 // normal tokens by their text, a space as a space
	rank       []uint32         // of each token by score, the best first; equal scores have equal ranks
	longest    int              // bytes of the longest token
	innerSpace bool             // some token has a space behind another character
	bytes      [256]int32       // the byte tokens, or none
	unknown    int32            // what stands for a character without a token and without byte tokens
}

// spaceMark is how the tokens of SentencePiece write a space.
const spaceMark = "▁"

func newSentencePiece(v Vocab, pieces [][]byte) (*sentencePiece, error) {
	// There is no pre-tokenizer here. A name other than the one that converters write would mean something we do not know.
	if v.Pre != "" && v.Pre != "default" {
		return nil, &Error{"tokenizer.ggml.pre", strconv.Quote(v.Pre), `"default", the only one supported for the model "llama"`}
	}
	s := &sentencePiece{ids: make(map[string]int32, len(v.Tokens)), unknown: v.Unknown}
	var err error
	if s.rank, err = ranks(v); err != nil {
		return nil, err
	}
	for i := range s.bytes {
		s.bytes[i] = none
	}
	for id, text := range v.Tokens {
		switch v.Types[id] {
		case typeByte:
			if pieces[id], err = bytePiece(id, text); err != nil {
				return nil, err
			}
			s.bytes[pieces[id][0]] = int32(id)
		case typeUserDefined:
			pieces[id] = []byte(strings.ReplaceAll(text, spaceMark, " "))
		case typeNormal:
			text = strings.ReplaceAll(text, spaceMark, " ")
			pieces[id] = []byte(text)
			if _, ok := s.ids[text]; !ok {
				s.ids[text] = int32(id)
				s.longest = max(s.longest, len(text))
				s.innerSpace = s.innerSpace || strings.Contains(strings.TrimLeft(text, " "), " ")
			}
		}
	}
	if s.unknown >= 0 && v.Types[s.unknown] != typeUnknown && v.Types[s.unknown] != typeNormal {
		s.unknown = none // documents must not yield it
	}
	if missing := slices.Index(s.bytes[:], none); missing >= 0 && s.unknown < 0 {
		return nil, &Error{"tokenizer.ggml.tokens", fmt.Sprintf("no byte token <0x%02X> and no token of type unknown", missing), "all 256 byte tokens, or an unknown token"}
	}
	return s, nil
}

func (s *sentencePiece) appendIDs(ids []int32, text string) []int32 {
	text = strings.ReplaceAll(text, spaceMark, " ")
	var m merger
	var word string
	var starts []int32 // of the characters of word, and its end
	m.pair = func(left, right int32) (int32, uint32, bool) {
		from, to := starts[left], starts[m.next[right]]
		if int(to-from) > s.longest {
			return none, 0, false
		}
		id, ok := s.ids[word[from:to]]
		if !ok {
			return none, 0, false
		}
		return id, s.rank[id], true
	}
	for text != "" {
		n := s.scan(text)
		word, text = text[:n], text[n:]
		m.reset()
		starts = starts[:0]
		for i := range word {
			starts = append(starts, int32(i))
			m.add(none)
		}
		starts = append(starts, int32(n))
		m.run()
		for i := int32(0); int(i) < len(m.id); i = m.next[i] {
			if m.id[i] != none {
				ids = append(ids, m.id[i])
			} else {
				ids = s.appendRune(ids, word[starts[i]:starts[i+1]])
			}
		}
	}
	return ids
}

// scan returns the length of what is joined by itself: where no token has a space behind another character, nothing is joined
// across the start of a run of spaces, and short stretches are quicker than the whole text.
func (s *sentencePiece) scan(text string) int {
	end := len(text)
	if !s.innerSpace {
		spaces := len(text) - len(strings.TrimLeft(text, " "))
		if next := strings.IndexByte(text[spaces:], ' '); next >= 0 {
			end = spaces + next
		}
	}
	if end <= maxWord {
		return end
	}
	for end = maxWord; !utf8.RuneStart(text[end]); end-- {
	}
	return end
}

// appendRune appends the token of a character that was joined with none: its own, or its bytes, or unknown.
func (s *sentencePiece) appendRune(ids []int32, char string) []int32 {
	if id, ok := s.ids[char]; ok {
		return append(ids, id)
	}
	for i := range len(char) {
		if s.bytes[char[i]] == none {
			return append(ids, s.unknown)
		}
	}
	for i := range len(char) {
		ids = append(ids, s.bytes[char[i]])
	}
	return ids
}

// ranks turns scores into ranks, which the merger compares.
func ranks(v Vocab) ([]uint32, error) {
	if len(v.Scores) != len(v.Tokens) {
		return nil, &Error{"tokenizer.ggml.scores", fmt.Sprintf("%d scores", len(v.Scores)), fmt.Sprintf("one for each of %d tokens", len(v.Tokens))}
	}
	order := make([]int32, len(v.Scores))
	for id, score := range v.Scores {
		if score != score {
			return nil, &Error{fmt.Sprintf("tokenizer.ggml.scores[%d]", id), "NaN", "a number"}
		}
		order[id] = int32(id)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(v.Scores[b], v.Scores[a]) })
	rank := make([]uint32, len(order))
	for i := 1; i < len(order); i++ {
		rank[order[i]] = rank[order[i-1]]
		if v.Scores[order[i]] != v.Scores[order[i-1]] {
			rank[order[i]]++
		}
	}
	return rank, nil
}

// bytePiece reads a byte token, "<0x0A>".
func bytePiece(id int, text string) ([]byte, error) {
	if len(text) == 6 && strings.HasPrefix(text, "<0x") && text[5] == '>' {
		if c, err := strconv.ParseUint(text[3:5], 16, 8); err == nil {
			return []byte{byte(c)}, nil
		}
	}
	return nil, &Error{fmt.Sprintf("tokenizer.ggml.tokens[%d]", id), strconv.Quote(text) + " of type byte", "<0x00> to <0xFF>"}
}
