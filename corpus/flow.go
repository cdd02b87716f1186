package corpus

import (
	"strings"
	"unicode"
)

// A flow collects the text of a structured document: running text with its white space collapsed, broken where lines,
// paragraphs and sections end. Breaks are held back until text follows, so the result neither begins nor ends with one.
type flow struct {
	b        strings.Builder
	pending  gap
	headings []heading // open ones, outermost first
	sections []Section
}

type gap int

const (
	none gap = iota
	space
	line
	paragraph
)

type heading struct {
	level int
	text  string
}

func (f *flow) String() string { return f.b.String() }

// gap asks for a separation before the next text; the widest one asked for counts.
func (f *flow) gap(g gap) { f.pending = max(f.pending, g) }

// text adds running text: any white space in it is one space.
func (f *flow) text(s string) {
	for s != "" {
		i := strings.IndexFunc(s, isSpace)
		if i != 0 {
			word := s
			if i > 0 {
				word = s[:i]
			}
			f.write(word)
			s = s[len(word):]
			continue
		}
		f.gap(space)
		s = strings.TrimLeftFunc(s, isSpace)
	}
}

// verbatim adds text as it is laid out, such as code, without empty lines at its edges.
func (f *flow) verbatim(s string) {
	s = strings.TrimRight(normalizeLines(s), " \t\n")
	for {
		first, rest, more := strings.Cut(s, "\n")
		if !more || strings.TrimSpace(first) != "" {
			break
		}
		s = rest
	}
	f.write(s)
}

func (f *flow) write(s string) {
	if s = strings.Map(dropControl, s); s != "" {
		f.separate()
		f.b.WriteString(s)
	}
}

// separate writes the gap asked for: text follows now.
func (f *flow) separate() {
	if f.b.Len() > 0 {
		f.b.WriteString([]string{none: "", space: " ", line: "\n", paragraph: "\n\n"}[f.pending])
	}
	f.pending = none
}

// heading writes a heading as a paragraph of its own and opens its section, which ends at the next heading of its level or above.
func (f *flow) heading(level int, text string) {
	text = strings.Join(strings.Fields(strings.Map(dropControl, text)), " ")
	if text == "" {
		return
	}
	for len(f.headings) > 0 && f.headings[len(f.headings)-1].level >= level {
		f.headings = f.headings[:len(f.headings)-1]
	}
	f.headings = append(f.headings, heading{level, text})
	path := make([]string, len(f.headings))
	for i, h := range f.headings {
		path[i] = h.text
	}
	f.gap(paragraph)
	f.separate()
	f.sections = append(f.sections, Section{Offset: f.b.Len(), Headings: path})
	f.b.WriteString(text)
	f.gap(paragraph)
}

// dropControl drops what no reader sees: control characters other than line end and tab.
func dropControl(r rune) rune {
	if unicode.IsControl(r) && r != '\n' && r != '\t' {
		return -1
	}
	return r
}
