package corpus

import (
	"archive/zip"
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestCSV_RowsAreDocuments(t *testing.T) {
	for name, text := range map[string]string{
		"commas":     "name,found in,\nRaven,\"hills, coasts\",x\n\n,,\nOwl,,\n",
		"semicolons": "name;found in;\r\nRaven;hills, coasts;x\r\nOwl;;\r\n",
		"tabs":       "name\tfound  in\t\nRaven\thills, coasts\tx\nOwl\n",
	} {
		docs, err := parseCSV("dir/birds.csv", []byte(text))
		if err != nil || len(docs) != 2 {
			t.Fatalf("%s: %+v, %v", name, docs, err)
		}
		if want := "name: Raven\nfound in: hills, coasts\ncolumn 3: x"; docs[0].Text != want || docs[0].Title != "birds" || docs[0].ID != "dir/birds.csv:2" {
			t.Errorf("%s: %+v, want %q", name, docs[0], want)
		}
		if docs[1].Text != "name: Owl" {
			t.Errorf("%s: %+v", name, docs[1])
		}
	}
	for text, want := range map[string]string{"a,b\n1,2,3\n": "birds.csv:2: has 3 values, the first row 2 names", "a\n\"x\n": "birds.csv:", "a\nx\"y\n": `birds.csv:2: bare "`} {
		var bad *Error
		if _, err := parseCSV("birds.csv", []byte(text)); !errors.As(err, &bad) || !strings.Contains(err.Error(), want) || bad.Advice == "" {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// docxOf is a Word document with a body.
func docxOf(body string) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("word/document.xml")
	if err == nil {
		_, err = f.Write([]byte(body))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err) // memory does not fail
	}
	return b.Bytes()
}

const wordOpen = `<?xml version="1.0"?><w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>`

func TestDOCX_TextAndHeadings(t *testing.T) {
	body := wordOpen + `<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Birds</w:t></w:r><w:r><w:t xml:space="preserve"> of the coast</w:t></w:r></w:p>
<w:p><w:r><w:t>Gulls &amp; terns</w:t><w:tab/><w:t>nest</w:t><w:br/><w:t>here.</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>
<w:p><w:pPr><w:pStyle w:val="Heading2"/></w:pPr><w:r><w:t>Table</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>Raven</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Owl</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:body></w:document>`
	docs, err := parseDOCX("coast.docx", docxOf(body))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%+v, %v", docs, err)
	}
	d := docs[0]
	if want := "Birds of the coast\n\nGulls & terns nest\nhere.\n\nTable\n\nRaven\n\nOwl"; d.Text != want || d.Title != "Birds of the coast" {
		t.Errorf("title %q, text %q; want %q", d.Title, d.Text, want)
	}
	if len(d.Sections) != 2 || strings.Join(d.Sections[1].Headings, "/") != "Birds of the coast/Table" {
		t.Errorf("sections %+v", d.Sections)
	}
	checkDocuments(t, docs)
}

func TestDOCX_WhatCannotBeRead_IsSaid(t *testing.T) {
	var other bytes.Buffer
	w := zip.NewWriter(&other)
	_, _ = w.Create("mimetype")
	w.Close()
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"no archive":      {[]byte("hello"), "no zip archive"},
		"another archive": {other.Bytes(), "it has no word/document.xml"},
		"no XML":          {docxOf("<w:p"), "XML syntax error"},
		"nested":          {docxOf(strings.Repeat("<a>", 300)), "nested more than 200 deep"},
		"cut":             {docxOf(wordOpen)[:100], "no zip archive"},
		"a bomb":          {docxOf(wordOpen + "<w:p><w:r><w:t>" + strings.Repeat(" ", maxDocxBytes)), "unfolds to more than 256 MiB"},
	} {
		var bad *Error
		if _, err := parseDOCX("x.docx", c.data); !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if docs, err := parseDOCX("x.docx", docxOf(wordOpen+"</w:body></w:document>")); err != nil || len(docs) != 0 {
		t.Errorf("an empty one: %+v, %v", docs, err)
	}
}

func FuzzCSV(f *testing.F) {
	fuzzReader(f, "a.csv", parseCSV, "a,b\n1,2\n", "a;b\n\"x;\"\"y\";2\n", "\ta\n\x00\t\xff\n", "a\n\n,\n")
}

func FuzzDOCX(f *testing.F) {
	zipped := func(path string, data []byte) ([]Document, error) { return parseDOCX(path, docxOf(string(data))) }
	fuzzReader(f, "a.docx", zipped, wordOpen+`<w:p><w:pPr><w:pStyle w:val="Title"/></w:pPr><w:t>x</w:t></w:p>`, "<p><pStyle val='heading 2'/><t>a</t><p><t>b</t></p></p>", "<t>&#1;</t>", "<del><t>x</del></t>")
}
