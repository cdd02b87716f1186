package corpus

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// parseCSV reads one document a row: a line "column: value" for each value that is there, by the names in the first row. Values are separated by
// whichever of comma, semicolon and tab the first row has most of.
func parseCSV(path string, data []byte) ([]Document, error) {
	all, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(all, "\n")
	r := csv.NewReader(strings.NewReader(all))
	for _, mark := range []rune{';', '\t'} {
		if strings.Count(first, string(mark)) > strings.Count(first, string(r.Comma)) {
			r.Comma = mark
		}
	}
	r.FieldsPerRecord, r.ReuseRecord = -1, true
	bad := func(err error) error {
		var wrong *csv.ParseError
		if errors.As(err, &wrong) {
			return &Error{Path: path, Line: wrong.Line, Detail: wrong.Err.Error(), Advice: "quote values that hold quotes, and double the quotes in them"}
		}
		return &Error{Path: path, Detail: "cannot be read", Err: err}
	}
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, bad(err)
	}
	names := make([]string, len(header))
	for i, name := range header {
		if names[i] = strings.Join(strings.Fields(name), " "); names[i] == "" {
			names[i] = fmt.Sprintf("column %d", i+1)
		}
	}
	title := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	var docs []Document
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, bad(err)
		}
		line, _ := r.FieldPos(0)
		if len(row) > len(names) {
			return nil, &Error{Path: path, Line: line, Detail: fmt.Sprintf("has %d values, the first row %d names", len(row), len(names)), Advice: "quote values that hold the separator"}
		}
		var text strings.Builder
		for i, value := range row {
			if value = strings.TrimSpace(value); value != "" {
				fmt.Fprintf(&text, "%s: %s\n", names[i], value)
			}
		}
		if text.Len() > 0 {
			docs = append(docs, Document{ID: fmt.Sprintf("%s:%d", filepath.ToSlash(path), line), Title: title, Text: strings.TrimSuffix(text.String(), "\n"), Path: path})
		}
	}
}
