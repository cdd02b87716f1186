package corpus

import (
	"archive/zip"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Bounds of a Word document: an archive may unfold to a thousand times its size.
const (
	maxDocxBytes = 256 << 20
	maxDocxDepth = 200
)

// parseDOCX reads the text of a Word document (ECMA-376, part 1, section 17): paragraphs, headings by their style, cells of tables as lines. Headers,
// footers, notes and comments are other files of the archive, and are left out.
func parseDOCX(path string, data []byte) ([]Document, error) {
	const part = "word/document.xml"
	advice := "open it in a word processor and save it again, or save it as text"
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, &Error{Path: path, Detail: "is no Word document: no zip archive", Err: err, Advice: advice}
	}
	f, err := archive.Open(part)
	if err != nil {
		return nil, &Error{Path: path, Detail: "is no Word document: it has no " + part, Advice: advice}
	}
	defer f.Close()
	limited := &io.LimitedReader{R: f, N: maxDocxBytes}
	d := &docx{xml: xml.NewDecoder(limited)}
	if err := d.read(); err != nil {
		if limited.N <= 0 {
			err = fmt.Errorf("unfolds to more than %d MiB", maxDocxBytes>>20)
		}
		return nil, &Error{Path: path, Detail: part + ": " + err.Error(), Advice: advice}
	}
	title := ""
	if len(d.sections) > 0 {
		title = d.sections[0].Headings[0]
	}
	return document(path, title, d.String(), d.sections), nil
}

// docx reads the XML of a document's body.
type docx struct {
	flow
	xml *xml.Decoder

	level int             // of the paragraph as a heading; 0: it is none
	words strings.Builder // its text
}

func (d *docx) read() error {
	depth, inText, deleted := 0, false, 0
	for {
		token, err := d.xml.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth++; depth > maxDocxDepth {
				return fmt.Errorf("is nested more than %d deep", maxDocxDepth)
			}
			switch t.Name.Local {
			case "p":
				d.level = 0
				d.words.Reset()
				d.gap(paragraph)
			case "pStyle":
				d.level = headingLevel(t)
			case "del", "delText", "instrText": // what was deleted under revision, and the code of fields
				deleted++
			case "t":
				inText = true
			case "tab":
				d.add(" ")
			case "br", "cr":
				d.gap(line)
			case "tc":
				d.gap(line)
			}
		case xml.EndElement:
			depth--
			switch t.Name.Local {
			case "del", "delText", "instrText":
				deleted--
			case "t":
				inText = false
			case "p":
				if text := strings.Join(strings.Fields(d.words.String()), " "); d.level > 0 && text != "" {
					d.heading(d.level, text)
				}
			}
		case xml.CharData:
			if inText && deleted == 0 {
				d.add(string(t))
			}
		}
	}
}

// add adds text to the paragraph, or to the heading that it is.
func (d *docx) add(text string) {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if d.level > 0 {
		d.words.WriteString(text)
		return
	}
	d.text(text)
}

// headingLevel is that of a style such as Heading1 (or Title, which stands above them), 0 for others.
func headingLevel(style xml.StartElement) int {
	for _, a := range style.Attr {
		if a.Name.Local != "val" {
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(a.Value, " ", ""))
		if name == "title" {
			return 1
		}
		if number, ok := strings.CutPrefix(name, "heading"); ok {
			if n, err := strconv.Atoi(number); err == nil && n >= 1 && n <= 9 {
				return n
			}
		}
	}
	return 0
}
