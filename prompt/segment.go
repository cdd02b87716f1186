package prompt

import (
	"encoding/json"
	"errors"
	"html"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Segment finds the documents in a message that an application made for any model, by the marks that are common:
//
//	a line [[block]]                                     between them and before the question (Split)
//	<source id="1" name="…">…</source>                   also document, doc and passage; inside, elements of title and text may stand
//	[1] …  or  Document 1: …  or  Document [1](Title: …) numbered from 1, each at the start of a line, the last one up to an empty line
//
// A message whose marks leave no question, and one with a single numbered section, has no documents: it is the question as it stands.
// The marks are no part of a document's text, so that the same document under another number is the same block.
func Segment(text string) (docs []Document, question string) {
	for line := range strings.Lines(text) {
		if strings.TrimRight(line, "\r\n") == Marker {
			return Split(text)
		}
	}
	for _, find := range []func(string) ([]Document, string){elements, sections} {
		if docs, question := find(text); len(docs) > 0 && question != "" {
			return docs, question
		}
	}
	return nil, text
}

// Results finds the documents in what a tool gave: a JSON list of them, alone or in a field of an object, or marks as in Segment. Anything
// else is one document.
func Results(text string) []Document {
	if docs := listed([]byte(text)); len(docs) > 0 {
		return docs
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &fields) == nil {
		for _, name := range []string{"documents", "results", "passages", "sources", "items", "data"} {
			if docs := listed(fields[name]); len(docs) > 0 {
				return docs
			}
		}
	}
	for _, find := range []func(string) ([]Document, string){elements, sections} {
		if docs, rest := find(text); len(docs) > 0 && rest == "" {
			return docs
		}
	}
	return []Document{{Text: text}}
}

func listed(data []byte) (docs []Document) {
	if json.Unmarshal(data, &docs) != nil || slices.ContainsFunc(docs, func(d Document) bool { return d.Text == "" }) {
		return nil
	}
	return docs
}

// UnmarshalJSON reads the shapes of documents that are common: {"id","title","text"}, content or snippet for text, name for title, all of
// them under "data", or a text alone. One with an id alone is one that is known by it.
func (d *Document) UnmarshalJSON(b []byte) error {
	*d = Document{}
	if json.Unmarshal(b, &d.Text) == nil {
		if d.Text == "" {
			return errors.New("a document is empty")
		}
		return nil
	}
	type fields struct {
		ID                                  id
		Title, Name, Text, Content, Snippet string
	}
	var flat struct {
		fields
		Data *fields
	}
	if json.Unmarshal(b, &flat) != nil {
		return errors.New(`expected a text, or an object {"id","title","text"}`)
	}
	f := flat.fields
	if flat.Data != nil {
		if f = *flat.Data; f.ID == "" {
			f.ID = flat.ID
		}
	}
	d.ID, d.Title, d.Text = string(f.ID), first(f.Title, f.Name), first(f.Text, f.Content, f.Snippet)
	if d.Text == "" && d.ID == "" {
		return errors.New("a document has neither text nor id")
	}
	return nil
}

// id is a text or a number.
type id string

func (i *id) UnmarshalJSON(b []byte) error {
	var number json.Number
	if json.Unmarshal(b, &number) == nil {
		*i = id(number)
		return nil
	}
	return json.Unmarshal(b, (*string)(i))
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

var (
	elementStart = regexp.MustCompile(`(?i)<(source|document|doc|passage)((?:\s[^<>]*)?)>`)
	attribute    = regexp.MustCompile(`([A-Za-z_-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')`)
	emptyWrapper = regexp.MustCompile(`(?i)<(context|contexts|sources|documents|docs|passages|search_results)(?:\s[^<>]*)?>\s*</(context|contexts|sources|documents|docs|passages|search_results)>`)
)

// elements finds the documents between tags. What stands around them, wrappers that they leave empty apart, is the question.
func elements(text string) (docs []Document, question string) {
	var rest strings.Builder
	unclosed := map[string]bool{} // names that have no end any more: looked for once
	lower := asciiLower(text)
	for {
		m := elementStart.FindStringSubmatchIndex(text)
		if m == nil {
			break
		}
		name := lower[m[2]:m[3]]
		length := -1
		if !unclosed[name] {
			length = strings.Index(lower[m[1]:], "</"+name+">")
		}
		if length < 0 {
			unclosed[name] = true
			rest.WriteString(text[:m[1]])
			text, lower = text[m[1]:], lower[m[1]:]
			continue
		}
		d := Document{}
		for _, a := range attribute.FindAllStringSubmatch(text[m[4]:m[5]], -1) {
			switch value := html.UnescapeString(a[2] + a[3]); strings.ToLower(a[1]) {
			case "id", "index":
				d.ID = value
			case "title", "name":
				d.Title = value
			}
		}
		body := text[m[1] : m[1]+length]
		if title, ok := element(body, "title", "source", "name"); ok {
			d.Title = first(d.Title, strings.TrimSpace(title))
		}
		if content, ok := element(body, "document_content", "content", "text"); ok {
			body = content
		}
		if d.Text = strings.Trim(body, "\r\n"); strings.TrimSpace(d.Text) != "" {
			docs = append(docs, d)
		}
		rest.WriteString(text[:m[0]])
		end := m[1] + length + len("</>") + len(name)
		text, lower = text[end:], lower[end:]
	}
	rest.WriteString(text)
	return docs, strings.TrimSpace(emptyWrapper.ReplaceAllString(rest.String(), ""))
}

// element is what stands in the first element of one of the names.
func element(text string, names ...string) (string, bool) {
	lower := asciiLower(text)
	for _, name := range names {
		from := strings.Index(lower, "<"+name+">")
		if from < 0 {
			continue
		}
		from += len(name) + len("<>")
		if length := strings.Index(lower[from:], "</"+name+">"); length >= 0 {
			return text[from : from+length], true
		}
	}
	return "", false
}

// asciiLower keeps every byte at its place, as strings.ToLower does not.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

var sectionStart = regexp.MustCompile(`(?im)^[ \t]*(?:(?:document|passage|source|context|text)[ \t]*(?:\[(\d{1,4})\]|(\d{1,4}))[ \t]*(?:\(title:[ \t]*([^\n]*?)\))?[ \t]*:?|\[(\d{1,4})\][ \t]*:?)[ \t]*`)

var emptyLine = regexp.MustCompile(`\n\r?\n`)

// sections finds documents that are numbered from 1 on.
func sections(text string) (docs []Document, question string) {
	var starts [][]int
	for _, m := range sectionStart.FindAllStringSubmatchIndex(text, -1) {
		number := 0
		for _, group := range []int{1, 2, 4} {
			if m[2*group] >= 0 {
				number, _ = strconv.Atoi(text[m[2*group]:m[2*group+1]])
			}
		}
		if number == len(starts)+1 {
			starts = append(starts, m)
		}
	}
	if len(starts) < 2 {
		return nil, text
	}
	for i, m := range starts {
		body := text[m[1]:]
		if i+1 < len(starts) {
			body = text[m[1]:starts[i+1][0]]
		} else {
			if end := emptyLine.FindStringIndex(body); end != nil {
				body, question = body[:end[0]], body[end[1]:]
			}
		}
		d := Document{ID: strconv.Itoa(i + 1)}
		if m[6] >= 0 {
			d.Title = text[m[6]:m[7]]
		}
		if d.Text = strings.TrimSpace(body); d.Text == "" {
			return nil, text // a list of numbers, not of documents
		}
		docs = append(docs, d)
	}
	before, after := strings.TrimSpace(text[:starts[0][0]]), strings.TrimSpace(question)
	if before != "" && after != "" {
		return docs, before + "\n\n" + after
	}
	return docs, before + after
}
