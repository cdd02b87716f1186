package eval

import (
	"slices"
	"strings"
	"unicode"
)

// A Grade is how an output does against the gold answers; each figure is that of the answer it does best against.
type Grade struct {
	Correct bool    // it contains an answer: the accuracy of the paper, and of Lost in the Middle before it
	Exact   bool    // it is an answer
	F1      float64 // harmonic mean of precision and recall over tokens
}

// Judge grades an output. Both sides are normalized first, as SQuAD's evaluation does: lower case, no ASCII punctuation, no articles,
// white space folded. An answer that is nothing then, as "A" is, cannot be contained.
func Judge(output string, answers []string) (g Grade) {
	g.Correct = contains(output, answers)
	output = normalize(output)
	for _, a := range answers {
		a = normalize(a)
		g.Exact = g.Exact || a == output
		g.F1 = max(g.F1, f1(strings.Fields(output), strings.Fields(a)))
	}
	return g
}

// contains is Judge's Correct alone.
func contains(text string, answers []string) bool {
	text = normalize(text)
	return slices.ContainsFunc(answers, func(a string) bool {
		a = normalize(a)
		return a != "" && strings.Contains(text, a)
	})
}

func normalize(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsPunct(r) || unicode.IsSymbol(r)) {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
	var b strings.Builder
	for s != "" {
		end := strings.IndexFunc(s, func(r rune) bool { return !inWord(r) })
		switch end {
		case -1:
			end = len(s)
		case 0:
			end = strings.IndexFunc(s, inWord)
			if end < 0 {
				end = len(s)
			}
		}
		switch word := s[:end]; word {
		case "a", "an", "the":
			b.WriteByte(' ')
		default:
			b.WriteString(word)
		}
		s = s[end:]
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func inWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }

// f1 is that of the words of got against those of want; a word counts as often as it stands on both sides.
func f1(got, want []string) float64 {
	if len(got) == 0 || len(want) == 0 {
		if len(got) == len(want) {
			return 1
		}
		return 0
	}
	left := map[string]int{}
	for _, w := range want {
		left[w]++
	}
	same := 0
	for _, w := range got {
		if left[w] > 0 {
			left[w]--
			same++
		}
	}
	return 2 * float64(same) / float64(len(got)+len(want))
}
