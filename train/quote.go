package train

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// quoteWords is how long a sentence is that is quoted whole. A longer one ends with the answer.
const quoteWords = 32

// quoted is an answer in the words of the documents: the sentence of a needed one that holds it, of several the one that shares most words with
// the question. It is the answer itself where none holds it, or not in so many words.
func (e *Example) quoted(answer string) string {
	asked := map[string]bool{}
	for _, w := range strings.FieldsFunc(strings.ToLower(e.Question), isSpace) {
		asked[w] = true
	}
	best, most := answer, -1
	for d := range e.Documents {
		if !e.Needed[d] {
			continue
		}
		words := strings.Fields(e.Documents[d].Text)
		for from, to := 0, 0; from < len(words); from = to {
			for to = from + 1; to < len(words) && !endsSentence(words[to-1]); {
				to++
			}
			sentence := strings.Join(words[from:to], " ")
			at := indexOfWords(sentence, answer)
			if at < 0 {
				continue
			}
			shared := map[string]bool{}
			for _, w := range strings.FieldsFunc(strings.ToLower(sentence), isSpace) {
				if asked[w] {
					shared[w] = true
				}
			}
			if to-from > quoteWords {
				sentence = sentence[:at+len(answer)]
			}
			if len(shared) > most && len(strings.Fields(sentence)) <= quoteWords {
				best, most = sentence, len(shared)
			}
		}
	}
	return best
}

// indexOfWords is where text has part, and no letter or digit beside it; -1: nowhere.
func indexOfWords(text, part string) int {
	for from := 0; ; {
		at := strings.Index(text[from:], part)
		if at < 0 || part == "" {
			return -1
		}
		at += from
		before, _ := utf8.DecodeLastRuneInString(text[:at])
		behind, _ := utf8.DecodeRuneInString(text[at+len(part):])
		if isSpace(before) && isSpace(behind) {
			return at
		}
		from = at + len(part)
	}
}

// isSpace tells what stands between words: all but letters and digits. What stands at an end of a text is no letter either.
func isSpace(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }
