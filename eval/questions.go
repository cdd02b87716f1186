package eval

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Dataset is the questions of one file.
type Dataset struct {
	Name      string // the file's, without folder and endings
	SHA256    [32]byte
	Questions []Question
}

// A Question is asked over its passages; any of Answers is right. No two questions of a dataset have the same ID.
type Question struct {
	ID       string
	Text     string
	Answers  []string
	Passages []Passage
	Split    string // what the file marks it as: "train", "test"; "": nothing
}

// A Passage is one text that comes with a question.
type Passage struct {
	Title     string `json:"title"`
	Text      string `json:"text"`
	Gold      bool   `json:"gold"`       // annotated as supporting the answer; in some sets no passage is
	HasAnswer bool   `json:"has_answer"` // contains an answer
}

// A DataError says what is wrong with a file of questions, and where.
type DataError struct {
	Path    string
	Line    int    // from 1; 0: the file as a whole
	Field   string // "" where it is not about one
	Problem string // what was found and what was expected
}

func (e *DataError) Error() string {
	where := e.Path
	if e.Line > 0 {
		where += fmt.Sprintf(":%d", e.Line)
	}
	if e.Field != "" {
		where += ": " + e.Field
	}
	return where + ": " + e.Problem
}

// ReadDataset reads a file of questions, plain or gzip, one JSON object a line or one JSON array of them. What the objects are, their
// fields tell:
//
//	passages           Tessera's own: {"id","question","answers","passages":[{"title","text","gold","has_answer"}]}
//	ctxs               questions with retrieved passages, as DPR and Lost in the Middle have them (NQ-open, TriviaQA):
//	                   {"question","answers","ctxs":[{"title","text","has_answer" or "hasanswer","isgold"}]}
//	retrieval_result   the same from FlashRAG and Search-R1: {"question","golden_answers","retrieval_result":[{"contents":"title\ntext"}]}
//	context            HotpotQA (distractor) and 2WikiMultiHopQA, as published: {"_id","question","answer","supporting_facts":[[title,n]…],
//	                   "context":[[title,[sentence…]]…]}, or as FlashRAG has them, in columns and under "metadata"
//
// Other fields are passed over. The first bad line is an error, a *DataError: an accuracy over part of a set is another figure.
func ReadDataset(path string) (*Dataset, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := &Dataset{Name: dataName(path), SHA256: sha256.Sum256(raw)}
	text, err := unzip(raw)
	if err != nil {
		return nil, &DataError{Path: path, Problem: fmt.Sprintf("cannot be unpacked: %v; is it whole?", err)}
	}
	lineOf := map[string]int{}
	err = eachObject(text, func(line int, object json.RawMessage) error {
		q, err := parseQuestion(object)
		if err != nil {
			return at(path, line, err)
		}
		if q.ID == "" {
			q.ID = fmt.Sprintf("%s-%d", d.Name, len(d.Questions)+1)
		}
		if other, ok := lineOf[q.ID]; ok {
			return &DataError{path, line, "id", fmt.Sprintf("%q is that of line %d too; want another for each question", q.ID, other)}
		}
		lineOf[q.ID] = line
		d.Questions = append(d.Questions, *q)
		return nil
	})
	if err != nil {
		return nil, at(path, 0, err)
	}
	if len(d.Questions) == 0 {
		return nil, &DataError{Path: path, Problem: "holds no question"}
	}
	return d, nil
}

func dataName(path string) string {
	name := strings.TrimSuffix(filepath.Base(path), ".gz")
	return strings.TrimSuffix(strings.TrimSuffix(name, ".jsonl"), ".json")
}

func unzip(raw []byte) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		return raw, nil
	}
	r, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// at puts a place to an error that has none yet.
func at(path string, line int, err error) error {
	var e *DataError
	if !errors.As(err, &e) {
		return &DataError{Path: path, Line: line, Problem: err.Error()}
	}
	if e.Path == "" {
		e.Path, e.Line = path, max(line, e.Line)
	}
	return e
}

// eachObject calls do for each object of a JSON array, or of JSON Lines, with the line that it begins on.
func eachObject(text []byte, do func(line int, object json.RawMessage) error) error {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		n := 0
		for line := range bytes.Lines(text) {
			n++
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			if err := do(n, line); err != nil {
				return err
			}
		}
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return err
	}
	line, seen := 1, 0
	for d.More() {
		// The offset is behind the last object; a comma and white space may come before the next.
		from := int(d.InputOffset())
		from += len(text[from:]) - len(bytes.TrimLeft(text[from:], ", \t\r\n"))
		line += bytes.Count(text[seen:from], []byte("\n"))
		seen = from
		var object json.RawMessage
		if err := d.Decode(&object); err != nil {
			return &DataError{Line: line, Problem: fmt.Sprintf("not JSON: %v", err)}
		}
		if err := do(line, object); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return &DataError{Problem: "the list does not end; is the file whole?"}
	}
	return nil
}

// questionFields are the fields of all formats.
type questionFields struct {
	ID       any      `json:"id"`
	HotpotID any      `json:"_id"`
	Question string   `json:"question"`
	Answers  []string `json:"answers"`
	Golden   []string `json:"golden_answers"`
	Answer   *string  `json:"answer"`
	Split    string   `json:"split"`

	Passages  []Passage `json:"passages"`
	Retrieved []struct {
		Title     string `json:"title"`
		Text      string `json:"text"`
		HasAnswer *bool  `json:"has_answer"`
		Middle    *bool  `json:"hasanswer"` // Lost in the Middle's spelling
		Gold      bool   `json:"isgold"`
	} `json:"ctxs"`
	Searched []struct {
		Contents string `json:"contents"`
	} `json:"retrieval_result"`

	hotpotFields
	Metadata hotpotFields `json:"metadata"`
}

type hotpotFields struct {
	Context    paragraphs `json:"context"`
	Supporting titles     `json:"supporting_facts"`
}

// paragraphs are passages in sentences: [[title, [sentence…]]…], or in columns {"title":[…], "sentences" or "content":[[…]…]}.
type paragraphs []Passage

func (p *paragraphs) UnmarshalJSON(b []byte) error {
	var columns struct {
		Title     []string   `json:"title"`
		Sentences [][]string `json:"sentences"`
		Content   [][]string `json:"content"`
	}
	*p = nil
	if bytes.HasPrefix(b, []byte("{")) {
		if err := json.Unmarshal(b, &columns); err != nil {
			return shape("context", err)
		}
		columns.Sentences = append(columns.Sentences, columns.Content...)
	} else {
		var rows []json.RawMessage
		if err := json.Unmarshal(b, &rows); err != nil {
			return shape("context", err)
		}
		for i, raw := range rows {
			var title string
			var sentences []string
			row := []any{&title, &sentences}
			if err := json.Unmarshal(raw, &row); err != nil || len(row) != 2 {
				return &DataError{Field: fmt.Sprintf("context[%d]", i), Problem: "want a pair of a title and a list of sentences"}
			}
			columns.Title, columns.Sentences = append(columns.Title, title), append(columns.Sentences, sentences)
		}
	}
	if len(columns.Title) != len(columns.Sentences) {
		return &DataError{Field: "context", Problem: fmt.Sprintf("%d titles for %d texts; want one each", len(columns.Title), len(columns.Sentences))}
	}
	for i, title := range columns.Title {
		*p = append(*p, Passage{Title: title, Text: join(columns.Sentences[i])})
	}
	return nil
}

// join makes a text of sentences, some sets of which begin with their space and some do not.
func join(sentences []string) string {
	var b strings.Builder
	for _, s := range sentences {
		if b.Len() > 0 && !strings.HasPrefix(s, " ") {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	return strings.TrimSpace(b.String())
}

// titles are those of supporting facts: [[title, n]…], or in columns {"title":[…]}.
type titles []string

func (t *titles) UnmarshalJSON(b []byte) error {
	*t = nil
	if bytes.HasPrefix(b, []byte("{")) {
		var columns struct {
			Title []string `json:"title"`
		}
		err := json.Unmarshal(b, &columns)
		*t = columns.Title
		return shape("supporting_facts", err)
	}
	var rows [][]any
	if err := json.Unmarshal(b, &rows); err != nil {
		return shape("supporting_facts", err)
	}
	for i, row := range rows {
		title, ok := "", false
		if len(row) > 0 {
			title, ok = row[0].(string)
		}
		if !ok {
			return &DataError{Field: fmt.Sprintf("supporting_facts[%d]", i), Problem: "want a pair of a title and a number"}
		}
		*t = append(*t, title)
	}
	return nil
}

// shape turns an error of decoding into one that names the field; outer is the field that b was, or "".
func shape(outer string, err error) error {
	var wrong *json.UnmarshalTypeError
	var e *DataError
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.As(err, &wrong):
		field := strings.Trim(outer+"."+wrong.Field, ".")
		return &DataError{Field: field, Problem: fmt.Sprintf("found a JSON %s, expected %s", wrong.Value, wrong.Type)}
	}
	return &DataError{Field: outer, Problem: fmt.Sprintf("not JSON: %v", err)}
}

func parseQuestion(object []byte) (*Question, error) {
	var present map[string]json.RawMessage
	if err := json.Unmarshal(object, &present); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, &DataError{Problem: "not a JSON object; want one question"}
		}
		return nil, shape("", err)
	}
	var f questionFields
	if err := json.Unmarshal(object, &f); err != nil {
		return nil, shape("", err)
	}
	q := &Question{ID: idOf(f.ID), Text: strings.TrimSpace(f.Question), Answers: slices.Concat(f.Answers, f.Golden), Split: f.Split}
	if q.ID == "" {
		q.ID = idOf(f.HotpotID)
	}
	if q.Text == "" {
		return nil, &DataError{Field: "question", Problem: "is missing or empty"}
	}
	if f.Answer != nil && len(q.Answers) == 0 {
		q.Answers = []string{*f.Answer}
	}
	if len(q.Answers) == 0 && (f.Answers == nil || q.Split != "train") { // training can do without, where a file says that there are none
		return nil, &DataError{Field: "answers", Problem: "is missing or empty; want a list of those that are right"}
	}
	for i, a := range q.Answers {
		if strings.TrimSpace(a) == "" {
			return nil, &DataError{Field: fmt.Sprintf("answers[%d]", i), Problem: "is empty"}
		}
	}
	field := f.passages(q)
	if field == "" {
		return nil, &DataError{Problem: fmt.Sprintf(`no passages: found fields %s; want "passages", "ctxs", "retrieval_result" or "context"`,
			strings.Join(slices.Sorted(maps.Keys(present)), ", "))}
	}
	for i, p := range q.Passages {
		if strings.TrimSpace(p.Text) == "" {
			return nil, &DataError{Field: fmt.Sprintf("%s[%d]", field, i), Problem: "has no text"}
		}
	}
	return q, nil
}

// idOf takes a string, or a number as many sets have it.
func idOf(id any) string {
	switch id := id.(type) {
	case string:
		return id
	case float64:
		return fmt.Sprintf("%.0f", id)
	}
	return ""
}

// passages gives q its passages, from the field that it returns, "" where there is none.
func (f *questionFields) passages(q *Question) string {
	switch {
	case len(f.Passages) > 0:
		q.Passages = f.Passages
		return "passages"
	case len(f.Retrieved) > 0:
		for _, c := range f.Retrieved {
			p := Passage{Title: c.Title, Text: c.Text, Gold: c.Gold}
			switch {
			case c.HasAnswer != nil:
				p.HasAnswer = *c.HasAnswer
			case c.Middle != nil:
				p.HasAnswer = *c.Middle
			default:
				p.HasAnswer = contains(p.Text, q.Answers)
			}
			q.Passages = append(q.Passages, p)
		}
		return "ctxs"
	case len(f.Searched) > 0:
		for _, c := range f.Searched {
			title, text, _ := strings.Cut(c.Contents, "\n")
			q.Passages = append(q.Passages, Passage{Title: strings.Trim(title, `"`), Text: text, HasAnswer: contains(text, q.Answers)})
		}
		return "retrieval_result"
	}
	h := f.hotpotFields
	if len(h.Context) == 0 {
		h = f.Metadata
	}
	if len(h.Context) == 0 {
		return ""
	}
	for _, p := range h.Context {
		if p.Text == "" {
			continue // some paragraphs of the published sets are empty
		}
		p.Gold, p.HasAnswer = slices.Contains(h.Supporting, p.Title), contains(p.Text, q.Answers)
		q.Passages = append(q.Passages, p)
	}
	return "context"
}

// Choose returns k of the passages in their order: those that are gold first, or where none is those that have an answer, then as
// they come.
func Choose(passages []Passage, k int) []Passage {
	if len(passages) <= k {
		return passages
	}
	wanted := func(p Passage) bool { return p.Gold }
	if !slices.ContainsFunc(passages, wanted) {
		wanted = func(p Passage) bool { return p.HasAnswer }
	}
	take := make([]bool, len(passages))
	left := k
	for _, round := range []bool{true, false} {
		for i, p := range passages {
			if left > 0 && wanted(p) == round {
				take[i] = true
				left--
			}
		}
	}
	var chosen []Passage
	for i, p := range passages {
		if take[i] {
			chosen = append(chosen, p)
		}
	}
	return chosen
}
