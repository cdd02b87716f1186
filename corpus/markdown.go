package corpus

import (
	"fmt"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	extast "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// parseMarkdown reads GitHub-flavoured Markdown. Marks of emphasis and the targets of links are dropped, code is kept as it is laid
// out. The title is the front matter's, or the first heading's where that is of level 1.
func parseMarkdown(path string, data []byte) ([]Document, error) {
	source, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	title, source := frontMatter(normalizeLines(source))
	m := markdown{source: []byte(source)}
	m.blocks(goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser().Parse(text.NewReader(m.source)))
	if s := m.sections; title == "" && len(s) > 0 && m.topLevel {
		title = s[0].Headings[0]
	}
	return document(path, title, m.String(), m.sections), nil
}

// frontMatter cuts a YAML header off, which says what a page generator wants to know, and returns its title.
func frontMatter(source string) (title, rest string) {
	header, rest, ok := strings.Cut(strings.TrimPrefix(source, "---\n"), "\n---\n")
	if !ok || !strings.HasPrefix(source, "---\n") {
		return "", source
	}
	for line := range strings.Lines(header) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == "title" {
			title = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return title, rest
}

type markdown struct {
	flow
	source   []byte
	topLevel bool // whether the first heading is of level 1
}

// blocks writes the children of a block, each a paragraph or, in a list without empty lines, a line.
func (m *markdown) blocks(parent ast.Node) {
	for n := parent.FirstChild(); n != nil; n = n.NextSibling() {
		switch n := n.(type) {
		case *ast.Heading:
			if len(m.sections) == 0 {
				m.topLevel = n.Level == 1
			}
			m.heading(n.Level, m.inline(n))
		case *ast.Paragraph, *ast.TextBlock:
			m.text(m.inline(n))
			if n.Kind() == ast.KindTextBlock {
				m.gap(line)
			} else {
				m.gap(paragraph)
			}
		case *ast.FencedCodeBlock, *ast.CodeBlock:
			m.gap(paragraph)
			m.verbatim(m.lines(n))
			m.gap(paragraph)
		case *ast.HTMLBlock:
			m.gap(paragraph)
			html := m.lines(n)
			if n.HasClosure() {
				html += string(n.ClosureLine.Value(m.source))
			}
			pour(&m.flow, []byte(html))
			m.gap(paragraph)
		case *ast.List:
			m.list(n)
		case *extast.Table:
			m.gap(paragraph)
			m.table(n)
			m.gap(paragraph)
		default: // a quotation, or what an extension of the parser may bring
			m.gap(paragraph)
			m.blocks(n)
			m.gap(paragraph)
		}
	}
}

func (m *markdown) list(list *ast.List) {
	number := list.Start
	for item := list.FirstChild(); item != nil; item = item.NextSibling() {
		m.gap(line)
		if list.IsOrdered() {
			m.write(fmt.Sprintf("%d.", number))
			number++
		} else {
			m.write("-")
		}
		m.gap(space)
		m.blocks(item)
		m.gap(line)
	}
	m.gap(paragraph)
}

func (m *markdown) table(table *extast.Table) {
	for row := table.FirstChild(); row != nil; row = row.NextSibling() {
		var cells []string
		for cell := row.FirstChild(); cell != nil; cell = cell.NextSibling() {
			cells = append(cells, m.inline(cell))
		}
		m.text(strings.Join(cells, " | "))
		m.gap(line)
	}
}

// inline gives the text within a block. Tags of inline HTML are dropped, the text between them stays.
func (m *markdown) inline(parent ast.Node) string {
	var b strings.Builder
	ast.Walk(parent, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Text:
			value := n.Segment.Value(m.source)
			if n.Parent().Kind() != ast.KindCodeSpan {
				value = util.ResolveEntityNames(util.ResolveNumericReferences(util.UnescapePunctuations(value)))
			}
			b.Write(value)
			if n.SoftLineBreak() || n.HardLineBreak() {
				b.WriteByte('\n')
			}
		case *ast.String:
			b.Write(n.Value)
		case *ast.AutoLink:
			b.Write(n.Label(m.source))
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

func (m *markdown) lines(n ast.Node) string {
	var b strings.Builder
	for i := range n.Lines().Len() {
		segment := n.Lines().At(i)
		b.Write(segment.Value(m.source))
	}
	return b.String()
}
