// Package cite finds which documents an answer rests on: an answer, its question and its documents go in, spans of both texts come out. It looks at words
// alone, so it serves any model.
//
// Each sentence of the answer is held against every document: runs of words that both have count, longer runs more and words that few of the documents have more.
// Where several documents have the same run, the one that has more of the question's words is cited.
package cite

import (
	"math"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Citation is a stretch of an answer that rests on a stretch of a document. Offsets are characters (Unicode code points), the end not included.
type Citation struct {
	Document  int // which one, from 0 on
	Start     int // in the answer
	End       int
	TextStart int // in the document's text; equal to TextEnd for a marker, which says no more than the document
	TextEnd   int
	Marker    bool // the answer says so itself, by [2] for the second document or [id]
}

// A Document is what may be cited.
type Document struct{ ID, Title, Text string }

// questionWeight is what a word of the question that a document has counts for beside a word of the answer: enough to choose between documents that both
// hold the answer, too little to choose one that does not.
const questionWeight = 0.1

// Find cites documents in an answer, in the order of the answer. A sentence has one citation at most, beside its markers.
func Find(question, answer string, documents []Document) []Citation {
	list := markers(answer, documents)
	m := newMatcher(question, documents)
	for _, s := range sentences(answer) {
		if c, ok := m.cite(answer, s); ok {
			list = append(list, c)
		}
	}
	inCharacters(list, answer, documents)
	return list
}

var marker = regexp.MustCompile(`\[([^\[\]\s]{1,64})\]`)

func markers(answer string, documents []Document) (list []Citation) {
	known := map[string]int{}
	for i, d := range documents {
		if d.ID != "" {
			known[d.ID] = i
		}
	}
	for _, at := range marker.FindAllStringSubmatchIndex(answer, -1) {
		if i, ok := known[answer[at[2]:at[3]]]; ok {
			list = append(list, Citation{Document: i, Start: at[0], End: at[1], Marker: true})
		}
	}
	return list
}

// A word is one of a text, in lower case, with its place in bytes.
type word struct {
	text     string
	from, to int
}

func words(text string) (list []word) {
	from := -1
	for i, r := range text + " " {
		inWord := unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)
		switch {
		case inWord && from < 0:
			from = i
		case !inWord && from >= 0:
			list = append(list, word{strings.ToLower(text[from:i]), from, i})
			from = -1
		}
	}
	return list
}

// sentences are the words of each sentence or line.
func sentences(text string) (list [][]word) {
	all := words(text)
	start := 0
	for i := range all {
		if i+1 == len(all) || ends(text[all[i].to:all[i+1].from]) {
			list = append(list, all[start:i+1])
			start = i + 1
		}
	}
	return list
}

// ends tells whether what stands between two words ends a sentence: a full stop that a space follows, or a line's end.
func ends(between string) bool {
	return strings.Contains(between, "\n") || strings.ContainsAny(between, ".!?") && strings.ContainsAny(between, " \t\"”)")
}

// A matcher has the words of the documents.
type matcher struct {
	texts  [][]word           // of each document
	places []map[string][]int // of each word in it
	weight map[string]float64 // of a word: rare among the documents, more
	asked  []float64          // what a document's words have of the question's
}

func newMatcher(question string, documents []Document) *matcher {
	m := &matcher{weight: map[string]float64{}}
	have := map[string]int{}
	for _, d := range documents {
		list := words(d.Text)
		at := map[string][]int{}
		for i, w := range list {
			at[w.text] = append(at[w.text], i)
		}
		for _, w := range words(d.Title) {
			if _, is := at[w.text]; !is {
				at[w.text] = nil
			}
		}
		for w := range at {
			have[w]++
		}
		m.texts, m.places = append(m.texts, list), append(m.places, at)
	}
	n := float64(len(documents))
	for w, df := range have {
		m.weight[w] = math.Log(1 + (n-float64(df)+0.5)/(float64(df)+0.5))
	}
	for i := range documents {
		asked := 0.0
		for _, w := range words(question) {
			if _, is := m.places[i][w.text]; is {
				asked += m.weight[w.text]
			}
		}
		m.asked = append(m.asked, asked)
	}
	return m
}

// cite finds the document that has most of a sentence.
func (m *matcher) cite(answer string, sentence []word) (c Citation, ok bool) {
	best := 0.0
	for i := range m.texts {
		score, run, at := m.overlap(i, sentence)
		if run == 0 {
			continue
		}
		if score += questionWeight * m.asked[i]; score > best {
			first, last := m.texts[i][at], m.texts[i][at+run-1]
			best, ok = score, true
			c = Citation{Document: i, Start: sentence[0].from, End: sentence[len(sentence)-1].to, TextStart: first.from, TextEnd: last.to}
		}
	}
	return c, ok
}

// overlap is what a document has of a sentence, and its longest run: so many words, from one of its own on. None: 0.
func (m *matcher) overlap(document int, sentence []word) (score float64, run, at int) {
	text, heaviest := m.texts[document], 0.0
	for i := 0; i < len(sentence); {
		length, start := 0, 0
		for _, p := range m.places[document][sentence[i].text] {
			n := 0
			for i+n < len(sentence) && p+n < len(text) && sentence[i+n].text == text[p+n].text {
				n++
			}
			if n > length {
				length, start = n, p
			}
		}
		weight := 0.0
		for _, w := range sentence[i : i+length] {
			weight += m.weight[w.text]
		}
		weight *= 1 + math.Log(float64(max(length, 1))) // words in the same order say more than the same words
		score += weight
		if weight > heaviest {
			heaviest, run, at = weight, length, start
		}
		i += max(length, 1)
	}
	return score, run, at
}

// inCharacters makes characters of offsets in bytes.
func inCharacters(list []Citation, answer string, documents []Document) {
	for i := range list {
		c := &list[i]
		text := documents[c.Document].Text
		c.Start, c.End = utf8.RuneCountInString(answer[:c.Start]), utf8.RuneCountInString(answer[:c.End])
		c.TextStart, c.TextEnd = utf8.RuneCountInString(text[:c.TextStart]), utf8.RuneCountInString(text[:c.TextEnd])
	}
}
