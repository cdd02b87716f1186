package tokenizer

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A preTokenizer cuts text into the words inside which byte-level BPE joins. Each is published as a regular expression, given with
// its scanner; the scanner does what repeated leftmost matching of the expression does, and the fuzz tests compare the two.
type preTokenizer struct {
	scan       func(text string) int // bytes of the first word of text, which is valid UTF-8 and not empty
	wholeWords bool                  // a word that is a token is that token, whatever the merges say
}

// preTokenizers are those supported, by their name in `tokenizer.ggml.pre`. No name is no choice: files without one were made before there was
// one, and their text may have been cut in any of these ways.
var preTokenizers = map[string]preTokenizer{
	"gpt-2":     {scan: func(text string) int { return scanGPT2(text, false) }},
	"smollm":    {scan: func(text string) int { return scanGPT2(text, true) }},
	"llama-bpe": {scan: func(text string) int { return scanLlama3(text, 3) }, wholeWords: true},
	"qwen2":     {scan: func(text string) int { return scanLlama3(text, 1) }},
}

func preTokenizerNames() string {
	return strings.Join(slices.Sorted(maps.Keys(preTokenizers)), ", ")
}

// scanGPT2 is the scanner of gpt-2:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// and, with loneDigits, of smollm, which first cuts out every \p{N} by itself and applies the expression to what lies between.
func scanGPT2(text string, loneDigits bool) int {
	if n := contraction(text, false); n > 0 {
		return n
	}
	word := 0
	if text[0] == ' ' && len(text) > 1 {
		word = 1
	}
	class, width := first(text[word:])
	switch {
	case class == number && loneDigits && word > 0:
		return word
	case class == number && loneDigits:
		return width
	case class <= number:
		return run(text, word+width, class)
	}
	end, last, _ := spaces(text)
	if end == len(text) || last == 0 {
		return end
	}
	if loneDigits {
		if class, _ := first(text[end:]); class == number {
			return end // there the text of the expression ends
		}
	}
	return last
}

// scanLlama3 is the scanner of llama-bpe, with maxDigits 3, and of qwen2, with 1:
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
func scanLlama3(text string, maxDigits int) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	class, width := first(text)
	if class == letter {
		return run(text, width, letter)
	}
	if class == number {
		for range maxDigits - 1 {
			class, w := first(text[width:])
			if class != number {
				break
			}
			width += w
		}
		return width
	}
	second, width2 := first(text[width:])
	if second == letter && class != newline {
		return run(text, width+width2, letter)
	}
	if class == other || text[0] == ' ' && second == other {
		end := run(text, width, other)
		for end < len(text) && (text[end] == '\r' || text[end] == '\n') {
			end++
		}
		return end
	}
	end, last, lines := spaces(text)
	if lines > 0 {
		return lines
	}
	if end == len(text) || last == 0 {
		return end
	}
	return last
}

// contraction returns the length of 's, 't, 're, 've, 'm, 'll or 'd at the start of text, or 0. Upper case means ASCII.
func contraction(text string, upperToo bool) int {
	if text[0] != '\'' {
		return 0
	}
	at := func(i int) byte {
		if i >= len(text) {
			return 0
		}
		if upperToo && text[i] >= 'A' && text[i] <= 'Z' {
			return text[i] + 'a' - 'A'
		}
		return text[i]
	}
	switch at(1) {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if at(2) == 'e' {
			return 3
		}
	case 'l':
		if at(2) == 'l' {
			return 3
		}
	}
	return 0
}

// spaces measures the run of white space at the start of text: where it ends, where its last rune starts,
// and where its last \r or \n ends (0 without one).
func spaces(text string) (end, last, lines int) {
	for end < len(text) {
		class, width := first(text[end:])
		if class < space {
			break
		}
		last = end
		end += width
		if class == newline {
			lines = end
		}
	}
	return end, last, lines
}

// run returns where the run of runes of one class ends that reaches to i.
func run(text string, i int, c class) int {
	for i < len(text) {
		class, width := first(text[i:])
		if class != c {
			break
		}
		i += width
	}
	return i
}

type class uint8

const (
	other   class = iota // [^\s\p{L}\p{N}]
	letter               // \p{L}
	number               // \p{N}
	space                // \s except the next
	newline              // [\r\n]
	nothing              // the end of the text
)

// first returns the class and width of the first rune of text.
func first(text string) (class, int) {
	if text == "" {
		return nothing, 0
	}
	if c := text[0]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, width := utf8.DecodeRuneInString(text)
	return classOf(r), width
}

var asciiClass = func() (t [utf8.RuneSelf]class) {
	for c := range t {
		t[c] = classOf(rune(c))
	}
	return t
}()

func classOf(r rune) class {
	switch {
	case r == '\r' || r == '\n':
		return newline
	case unicode.IsLetter(r):
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.IsSpace(r):
		return space
	}
	return other
}
