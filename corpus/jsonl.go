package corpus

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// parseJSONL reads one document a line: {"id", "title", "text"}, of which only text is required; blank lines and other fields
// are passed over. A broken line fails the file, since going on would answer from half a collection without a word.
func parseJSONL(path string, data []byte) ([]Document, error) {
	all, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	var docs []Document
	n := 0
	for line := range strings.Lines(all) {
		n++
		if strings.TrimSpace(line) == "" {
			continue
		}
		doc, err := parseLine(line)
		if err != nil {
			return nil, &Error{Path: path, Line: n, Detail: err.Error(), Advice: `each line is {"id": "…", "title": "…", "text": "…"}`}
		}
		if doc.ID == "" {
			doc.ID = fmt.Sprintf("%s:%d", filepath.ToSlash(path), n)
		}
		doc.Path = path
		docs = append(docs, doc)
	}
	return docs, nil
}

func parseLine(line string) (Document, error) {
	var fields struct {
		ID    json.RawMessage `json:"id"` // a string, or a number as many sets have it
		Title string          `json:"title"`
		Text  *string         `json:"text"`
	}
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		return Document{}, sayJSON(line, err)
	}
	switch {
	case fields.Text == nil:
		return Document{}, errors.New(`field "text" is missing`)
	case strings.TrimSpace(*fields.Text) == "":
		return Document{}, errors.New(`field "text" is empty`)
	}
	id, err := parseID(fields.ID)
	return Document{ID: id, Title: fields.Title, Text: *fields.Text}, err
}

func parseID(raw json.RawMessage) (string, error) {
	var id any
	if raw == nil {
		return "", nil
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return "", err
	}
	switch id := id.(type) {
	case nil:
		return "", nil
	case string:
		return id, nil
	case float64:
		return string(raw), nil // as written: no rounding
	}
	return "", fmt.Errorf(`field "id": found %s, expected a string`, shorten(string(raw)))
}

// sayJSON puts the errors of encoding/json into words about the line.
func sayJSON(line string, err error) error {
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return fmt.Errorf("field %q: found %s, expected a string", wrong.Field, article(wrong.Value))
	case errors.As(err, &wrong):
		return fmt.Errorf("found %s, expected an object", article(wrong.Value))
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON at byte %d of %s: %s", syntax.Offset, shorten(strings.TrimSpace(line)), syntax.Error())
	}
	return err
}

func article(kind string) string {
	if strings.HasPrefix(kind, "a") || strings.HasPrefix(kind, "o") {
		return "an " + kind
	}
	return "a " + kind
}

// shorten keeps an error on one line of a terminal.
func shorten(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
