package corpus

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
	"golang.org/x/net/html/charset"
)

func parseHTML(path string, data []byte) ([]Document, error) {
	data, err := decodeHTML(path, data)
	if err != nil {
		return nil, err
	}
	var f flow
	title := pour(&f, data)
	return document(path, title, f.String(), f.sections), nil
}

// decodeHTML gives UTF-8: as a byte order mark says, or because it already is, or as the page declares.
// An undeclared page that is not UTF-8 is read as Windows-1252, as browsers do; that never fails.
func decodeHTML(path string, data []byte) ([]byte, error) {
	bom := bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) || bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff"))
	if bom {
		text, err := decode(path, data)
		return []byte(text), err
	}
	if utf8.Valid(data) {
		return data, nil
	}
	encoding, name, _ := charset.DetermineEncoding(data[:min(len(data), 1024)], "")
	out, err := encoding.NewDecoder().Bytes(data)
	if err != nil {
		return nil, &Error{Path: path, Detail: fmt.Sprintf("declared as %s, which it is not", name), Err: err}
	}
	return bytes.ToValidUTF8(out, []byte("\ufffd")), nil
}

// A page walks through HTML with the tokenizer and a stack of open elements of its own. html.Parse builds what the standard
// says, but refuses pages with more than 512 open elements, which generated pages have; and of the standard's tree only one thing
// matters here: where an element that hides its content ends. So a deep page is read like any other, in time linear in its length.
type page struct {
	f       *flow
	open    []element
	count   map[string]int   // how many elements of a name are open
	hidden  int              // how many open elements hide their content
	pre     *strings.Builder // text of the open pre, whose layout is kept
	heading *strings.Builder // text of the open heading
	title   string
}

type element struct {
	name  string
	hides bool
}

// pour adds the visible text of HTML to f and returns the page's title, or its first h1 where it has none.
func pour(f *flow, data []byte) (title string) {
	p := page{f: f, count: map[string]int{}}
	z := html.NewTokenizer(bytes.NewReader(data))
	for {
		switch z.Next() {
		case html.ErrorToken: // the end; reading from memory has no other error
			p.close(0)
			return p.title
		case html.TextToken:
			p.text(string(z.Text()))
		case html.StartTagToken, html.SelfClosingTagToken:
			p.start(z.Token())
		case html.EndTagToken:
			name, _ := z.TagName()
			p.end(string(name))
		}
	}
}

func (p *page) text(s string) {
	switch {
	case p.count["title"] > 0 && p.count["svg"] == 0:
		if p.title == "" {
			p.title = strings.Join(strings.Fields(s), " ")
		}
	case p.hidden > 0:
	case p.heading != nil:
		p.heading.WriteString(s)
	case p.pre != nil:
		p.pre.WriteString(s)
	default:
		p.f.text(s)
	}
}

func (p *page) start(t html.Token) {
	if block[t.DataAtom] && p.count["p"] > 0 {
		p.end("p") // a paragraph ends where another block begins
	}
	p.separate(t.DataAtom)
	if t.DataAtom == atom.Img && p.hidden == 0 {
		p.text(attribute(t, "alt"))
	}
	foreign := t.DataAtom == atom.Svg || t.DataAtom == atom.Math || p.count["svg"] > 0 || p.count["math"] > 0
	if void[t.DataAtom] || foreign && t.Type == html.SelfClosingTagToken { // elsewhere HTML ignores the slash
		return
	}
	e := element{name: t.Data, hides: hides(t)}
	if e.hides {
		p.hidden++
	}
	if p.hidden == 0 && level(e.name) > 0 && p.heading == nil {
		p.heading = new(strings.Builder)
	}
	if p.hidden == 0 && e.name == "pre" && p.pre == nil {
		p.pre = new(strings.Builder)
	}
	p.open = append(p.open, e)
	p.count[e.name]++
}

// end closes the innermost open element of a name with all inside it; a stray end tag closes nothing.
func (p *page) end(name string) {
	p.separate(atom.Lookup([]byte(name)))
	if p.count[name] == 0 {
		return
	}
	i := len(p.open) - 1
	for p.open[i].name != name {
		i--
	}
	p.close(i)
}

// close closes the open elements from the i-th on.
func (p *page) close(i int) {
	for _, e := range p.open[i:] {
		p.count[e.name]--
		if e.hides {
			p.hidden--
		}
		if e.name == "pre" && p.pre != nil {
			p.f.verbatim(p.pre.String())
			p.pre = nil
			p.f.gap(paragraph)
		}
		if level(e.name) > 0 && p.heading != nil {
			text := p.heading.String()
			p.heading = nil
			p.f.heading(level(e.name), text)
			if p.title == "" && e.name == "h1" {
				p.title = text
			}
		}
	}
	p.open = p.open[:i]
}

// separate asks for the gap that an element's start or end leaves.
func (p *page) separate(a atom.Atom) {
	g := none
	switch {
	case a == atom.Br || a == atom.Tr || a == atom.Li || a == atom.Dt || a == atom.Dd || a == atom.Option:
		g = line
	case a == atom.Td || a == atom.Th:
		g = space
	case block[a]:
		g = paragraph
	}
	switch {
	case g != none && p.heading != nil:
		p.heading.WriteByte(' ')
	case g == line && p.pre != nil:
		p.pre.WriteByte('\n')
	default:
		p.f.gap(g)
	}
}

// hides reports whether a reader of the page does not see an element's content, or sees it on every page of the site alike.
func hides(t html.Token) bool {
	switch t.DataAtom {
	case atom.Script, atom.Style, atom.Noscript, atom.Template, atom.Iframe, atom.Noembed, atom.Noframes, atom.Object, atom.Svg,
		atom.Math, atom.Canvas, atom.Audio, atom.Video, atom.Nav, atom.Title, atom.Select, atom.Textarea, atom.Button, atom.Dialog:
		return true
	}
	for _, a := range t.Attr {
		if a.Key == "hidden" || a.Key == "aria-hidden" && a.Val == "true" || a.Key == "role" && a.Val == "navigation" {
			return true
		}
	}
	return false
}

func attribute(t html.Token, key string) string {
	for _, a := range t.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// level is 1 to 6 for h1 to h6, and otherwise 0.
func level(name string) int {
	if len(name) == 2 && name[0] == 'h' && name[1] >= '1' && name[1] <= '6' {
		return int(name[1] - '0')
	}
	return 0
}

func set(atoms ...atom.Atom) map[atom.Atom]bool {
	m := make(map[atom.Atom]bool, len(atoms))
	for _, a := range atoms {
		m[a] = true
	}
	return m
}

// block elements stand apart from what is around them; void ones have no content.
var (
	block = set(atom.Address, atom.Article, atom.Aside, atom.Blockquote, atom.Caption, atom.Center, atom.Details, atom.Dialog, atom.Div, atom.Dl,
		atom.Fieldset, atom.Figcaption, atom.Figure, atom.Footer, atom.Form, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6,
		atom.Header, atom.Hgroup, atom.Hr, atom.Main, atom.Menu, atom.Nav, atom.Ol, atom.P, atom.Pre, atom.Section, atom.Summary,
		atom.Table, atom.Ul)
	void = set(atom.Area, atom.Base, atom.Br, atom.Col, atom.Embed, atom.Hr, atom.Img, atom.Input, atom.Link, atom.Meta, atom.Param,
		atom.Source, atom.Track, atom.Wbr)
)
