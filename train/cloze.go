package train

import (
	"math/rand/v2"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tessera-llm/tessera/prompt"
)

// A cloze is a question that a text answers of itself: one of its sentences with a blank where a name or a number stood. It wants no labels, so there is
// no end of them, and over passages that were retrieved for one question it takes telling apart what is alike.

// clozeQuestion is what comes before the sentence.
const clozeQuestion = "Fill in the blank: "

const (
	blank        = "____"
	clozeTries   = 20
	clozeAnswer  = 4  // words at most
	clozeBefore  = 24 // words of the sentence before the blank, at most
	clozeAfter   = 12
	clozeContext = 6 // words of it altogether, at least
)

// cloze draws one from documents; not ok: none was found.
func cloze(rng *rand.Rand, documents []prompt.Document) (question, answer string, ok bool) {
	for range clozeTries {
		words := strings.Fields(documents[rng.IntN(len(documents))].Text)
		if len(words) == 0 {
			continue
		}
		first := rng.IntN(len(words))
		if first == 0 || !isName(words[first]) || isName(words[first-1]) || endsSentence(words[first-1]) {
			continue
		}
		next := first + 1 // behind the answer
		for next < len(words) && next-first < clozeAnswer && isName(words[next]) && !endsClause(words[next-1]) {
			next++
		}
		name := strings.Join(words[first:next], " ")
		answer = strings.TrimRightFunc(name, unicode.IsPunct)
		behind := name[len(answer):] // punctuation
		from, to := first, next
		for from > 0 && first-from < clozeBefore && !endsSentence(words[from-1]) {
			from--
		}
		for to < len(words) && to-next < clozeAfter && !endsSentence(words[to-1]) {
			to++
		}
		context := strings.Join(words[from:first], " ") + " " + blank + behind + " " + strings.Join(words[next:to], " ")
		if first-from+to-next < clozeContext || len(answer) < 2 || strings.Contains(strings.ToLower(context), strings.ToLower(answer)) {
			continue
		}
		return clozeQuestion + strings.TrimSpace(context), answer, true
	}
	return "", "", false
}

// isName tells whether a word begins as names and numbers do.
func isName(word string) bool {
	r, _ := utf8.DecodeRuneInString(word)
	return unicode.IsUpper(r) || unicode.IsDigit(r)
}

func endsClause(word string) bool { return strings.ContainsAny(word[len(word)-1:], ".,;:!?()\"") }

func endsSentence(word string) bool { return strings.ContainsAny(word[len(word)-1:], ".!?") }
