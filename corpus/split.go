package corpus

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Passage is a piece of a document: Text is Document.Text[Start:End], and begins and ends with a word unless it is the whole document.
type Passage struct {
	ID         string // the document's where the passage is all of it, else the document's with "#" and the passage's number from 1
	Doc        string // the document's ID
	Title      string // the document's title and the headings above all of the passage
	Text       string
	Path       string
	Page       int // where the passage begins, counted from 1; 0 where the document has no pages
	Start, End int
}

// Split cuts documents into passages of at most maxTokens tokens as count counts them; a document that is no longer is one passage,
// unchanged. Passages are whole paragraphs where they can be. A longer paragraph is cut at ends of sentences, a longer sentence
// between words, and only a longer word between runes (a single rune is never cut, whatever it counts). A passage ends early where a
// new section begins and it is at least half full.
//
// Nothing is lost: between two passages of a document there is only white space.
func Split(docs []Document, maxTokens int, count func(string) int) []Passage {
	var passages []Passage
	for i := range docs {
		s := splitter{doc: &docs[i], max: max(maxTokens, 1), count: count}
		passages = append(passages, s.split()...)
	}
	return passages
}

type splitter struct {
	doc   *Document
	max   int
	count func(string) int
}

// A span is a part of the document's text that neither begins nor ends with white space.
type span struct{ start, end int }

func (s *splitter) split() []Passage {
	if s.fits(span{0, len(s.doc.Text)}) {
		p := s.passage(span{0, len(s.doc.Text)})
		p.ID, p.Title = s.doc.ID, s.doc.Title
		return []Passage{p}
	}
	var passages []Passage
	for _, at := range s.pack(s.cut(span{0, len(s.doc.Text)}, 0)) {
		p := s.passage(at)
		p.ID = fmt.Sprintf("%s#%d", s.doc.ID, len(passages)+1)
		passages = append(passages, p)
	}
	return passages
}

func (s *splitter) fits(at span) bool { return s.count(s.doc.Text[at.start:at.end]) <= s.max }

// levels are the ways to cut, coarsest first.
var levels = []func(text string, at span) []span{paragraphs, sentences, words}

// cut gives spans that fit, in order, cutting no finer than it must.
func (s *splitter) cut(at span, level int) []span {
	if level == len(levels) {
		return s.runes(at)
	}
	var fitting []span
	for _, part := range levels[level](s.doc.Text, at) {
		if s.fits(part) {
			fitting = append(fitting, part)
		} else {
			fitting = append(fitting, s.cut(part, level+1)...)
		}
	}
	return fitting
}

// runes cuts a word that is too long into the longest parts that fit.
func (s *splitter) runes(word span) []span {
	var parts []span
	for word.start < word.end {
		end := s.longestFit(word)
		parts = append(parts, span{word.start, end})
		word.start = end
	}
	return parts
}

// longestFit is where the longest part that fits ends, or the first rune. It doubles its way up, so that a word of megabytes is
// not counted whole for each of its parts.
func (s *splitter) longestFit(word span) int {
	size := s.max
	for word.start+size < word.end && s.fits(s.prefix(word, size)) {
		size *= 2
	}
	size = min(size, word.end-word.start)
	tooLong := sort.Search(size+1, func(n int) bool { return !s.fits(s.prefix(word, n)) })
	_, first := utf8.DecodeRuneInString(s.doc.Text[word.start:])
	return max(s.prefix(word, tooLong-1).end, word.start+first)
}

// prefix is the part of word that ends at the last whole rune within size bytes.
func (s *splitter) prefix(word span, size int) span {
	end := word.start + max(size, 0)
	for end > word.start && end < word.end && !utf8.RuneStart(s.doc.Text[end]) {
		end--
	}
	return span{word.start, end}
}

// pack joins neighbours as long as they fit together.
func (s *splitter) pack(parts []span) []span {
	var packed []span
	for _, part := range s.glue(parts) {
		last := len(packed) - 1
		if last >= 0 && !s.sectionEnds(packed[last], part) && s.fits(span{packed[last].start, part.end}) {
			packed[last].end = part.end
			continue
		}
		packed = append(packed, part)
	}
	return packed
}

// glue joins a heading to what it stands above, where both fit, so that no passage ends with the heading of the next.
func (s *splitter) glue(parts []span) []span {
	var glued []span
	for _, part := range parts {
		last := len(glued) - 1
		if last >= 0 && s.isHeading(glued[last]) && s.fits(span{glued[last].start, part.end}) {
			glued[last].end = part.end
			continue
		}
		glued = append(glued, part)
	}
	return glued
}

// isHeading reports whether the span ends with a heading: one line from where the last section begins.
func (s *splitter) isHeading(at span) bool {
	i := s.section(at.end - 1)
	return len(s.headings(i)) > 0 && !strings.Contains(s.doc.Text[s.doc.Sections[i].Offset:at.end], "\n")
}

// sectionEnds reports whether a passage should end before next, which begins a section under another heading.
func (s *splitter) sectionEnds(passage, next span) bool {
	a, b := s.section(passage.end-1), s.section(next.start)
	return a != b && len(s.headings(b)) > 0 && 2*s.count(s.doc.Text[passage.start:passage.end]) >= s.max
}

// section is the index of the section that holds offset, or -1 before the first.
func (s *splitter) section(offset int) int {
	i, found := slices.BinarySearchFunc(s.doc.Sections, offset, func(sec Section, offset int) int { return sec.Offset - offset })
	if found {
		return i
	}
	return i - 1
}

func (s *splitter) headings(section int) []string {
	if section < 0 {
		return nil
	}
	return s.doc.Sections[section].Headings
}

func (s *splitter) passage(at span) Passage {
	p := Passage{Doc: s.doc.ID, Path: s.doc.Path, Text: s.doc.Text[at.start:at.end], Start: at.start, End: at.end}
	first, last := s.section(at.start), s.section(max(at.end-1, at.start))
	if first >= 0 {
		p.Page = s.doc.Sections[first].Page
	}
	// The title must be true of the whole passage: where it runs over several sections, what their headings have in common.
	common := s.headings(first)
	for i := first + 1; i <= last; i++ {
		common = commonPrefix(common, s.headings(i))
	}
	if len(common) > 0 && common[0] == s.doc.Title {
		common = common[1:]
	}
	title := common
	if s.doc.Title != "" {
		title = append([]string{s.doc.Title}, common...)
	}
	p.Title = strings.Join(title, ": ")
	return p
}

func commonPrefix(a, b []string) []string {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// paragraphs cuts at empty lines.
func paragraphs(text string, at span) []span {
	return cutWhere(text, at, func(_, gap, _ string) bool { return strings.Count(gap, "\n") > 1 })
}

// sentences cuts after a sentence's closing mark and before an item of a list.
func sentences(text string, at span) []span {
	return cutWhere(text, at, func(before, gap, after string) bool {
		return endsSentence(before, gap, after) || strings.Contains(gap, "\n") && beginsItem(after)
	})
}

// words cuts at white space.
func words(text string, at span) []span {
	return cutWhere(text, at, func(_, gap, _ string) bool { return gap != "" })
}

// cutWhere cuts at the runs of white space, and at the empty gaps behind a full-width mark, for which ends says so. The white space
// at a cut and at the edges belongs to no part.
func cutWhere(text string, at span, ends func(before, gap, after string) bool) []span {
	var parts []span
	start := at.start + leadingSpace(text[at.start:at.end])
	var previous rune
	for i := start; i < at.end; {
		gap := leadingSpace(text[i:at.end])
		if i+gap == at.end {
			at.end = i
			break
		}
		if (gap > 0 || strings.ContainsRune(wideMarks+wideClosers, previous)) && i > start && ends(text[start:i], text[i:i+gap], text[i+gap:at.end]) {
			parts = append(parts, span{start, i})
			start = i + gap
		}
		r, n := utf8.DecodeRuneInString(text[i+gap:])
		previous = r
		i += gap + n
	}
	if start < at.end {
		parts = append(parts, span{start, at.end})
	}
	return parts
}

func leadingSpace(s string) int { return len(s) - len(strings.TrimLeftFunc(s, isSpace)) }

const (
	wideMarks   = "。！？"
	wideClosers = "」』）”’"
)

// endsSentence reports whether a sentence ends between before and after: a closing mark, perhaps in quotes or brackets, and not the
// full stop of an initial, of an abbreviation or before a small letter. It may miss ends; a passage is then cut elsewhere.
func endsSentence(before, gap, after string) bool {
	before = before[max(0, len(before)-40):]
	body := strings.TrimRightFunc(before, func(r rune) bool { return unicode.In(r, unicode.Pe, unicode.Pf) || r == '"' || r == '\'' })
	mark, n := utf8.DecodeLastRuneInString(body)
	next, _ := utf8.DecodeRuneInString(after)
	switch {
	case strings.ContainsRune(wideMarks, mark):
		return !strings.ContainsRune(wideMarks+wideClosers, next)
	case gap == "":
		return false
	case mark == '!' || mark == '?' || mark == '…':
		return !unicode.IsLower(next)
	case mark != '.' || unicode.IsLower(next):
		return false
	}
	word := body[:len(body)-n]
	word = word[strings.LastIndexFunc(word, func(r rune) bool { return isSpace(r) || unicode.In(r, unicode.Ps, unicode.Pi) })+1:]
	initial := utf8.RuneCountInString(word) == 1 && unicode.IsUpper([]rune(word)[0])
	return !initial && !abbreviations[strings.ToLower(word)]
}

// abbreviations that a name or number follows more often than the next sentence.
var abbreviations = map[string]bool{"mr": true, "mrs": true, "ms": true, "dr": true, "prof": true, "st": true, "gen": true, "rev": true,
	"vs": true, "e.g": true, "i.e": true, "cf": true, "fig": true, "vol": true, "no": true, "ca": true, "approx": true}

// beginsItem reports whether a line begins an item of a list.
func beginsItem(line string) bool {
	for _, mark := range []string{"- ", "* ", "+ ", "• "} {
		if strings.HasPrefix(line, mark) {
			return true
		}
	}
	rest := strings.TrimLeft(line[:min(len(line), 8)], "0123456789")
	return len(rest) < min(len(line), 8) && (strings.HasPrefix(rest, ". ") || strings.HasPrefix(rest, ") "))
}
