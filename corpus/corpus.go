// Package corpus turns paths into documents, documents into passages, and passages into the few that a question needs.
//
// Read takes files and folders (JSON Lines, CSV, text, Markdown, HTML, DOCX, PDF) and gives documents of plain UTF-8 text; Split cuts them
// into passages of whole paragraphs; Rank picks passages by BM25. Each step is a pure function of its input: the same files give
// the same passages byte for byte, which matters because a passage's text is what its cached keys and values are found by.
package corpus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// A Document is the readable text of one file, or of one line of a JSON Lines file.
//  1. Text holds something other than white space and is valid UTF-8.
//  2. Sections are in order of Offset, and each Offset lies in [0, len(Text)].
//
// Paragraphs are separated by an empty line. Ids need not be unique: nothing is looked up by them.
type Document struct {
	ID       string // as the file gives it, or the path (and line) it came from
	Title    string // as the file gives it; of other files than JSON Lines at least the file's name
	Text     string
	Path     string // the file, as reached from the path given
	Sections []Section
}

// A Section says where in its document's text a heading or a page begins. It reaches to the next one.
type Section struct {
	Offset   int
	Headings []string // from the outermost to the section's own; empty where only a page begins
	Page     int      // counted from 1; 0 where the document has no pages
}

// Skipped is something in a folder, or named twice, that gave no document.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Error says what in which file could not be read.
type Error struct {
	Path   string
	Line   int // counted from 1; 0 where no single line is to blame
	Detail string
	Advice string // what to do about it, or empty
	Err    error  // what the operating system or a library said, or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": " + e.Detail)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Hint is the advice, for the line that a command prints last.
func (e *Error) Hint() string { return e.Advice }

// maxFileBytes bounds what one file may take of memory: it is read whole.
const maxFileBytes = 512 << 20

const kindsHint = "documents are .jsonl, .csv, .txt, .md, .html, .docx or .pdf files, or folders of them"

// Read reads the files and folders named, in that order; a folder's entries in the order of their names, folders among them
// entered when their turn comes. A file reached twice is read once.
//
// What was named must be readable: a file that is missing, broken, without text or of an unknown kind is an *Error. Inside a
// folder the same is reported as Skipped and the rest is read. No document at all is an *Error too.
//
// Text may be UTF-8 or, with a byte order mark, UTF-16; other bytes are an error that names the first one, since guessing would
// change names and words silently. HTML may also declare its encoding. Line ends become \n, except inside JSON strings, which stay as they are.
//
// cacheDir is where the compiled PDF reader is kept between runs (22 MB); empty means to compile it (seconds) whenever a PDF comes.
func Read(ctx context.Context, paths []string, cacheDir string) ([]Document, []Skipped, error) {
	r := &reader{ctx: ctx, pdf: pdfReader{cacheDir: cacheDir}, seen: map[string]string{}}
	defer r.pdf.close()
	for _, path := range paths {
		if err := r.named(path); err != nil {
			return nil, nil, err
		}
	}
	if len(r.docs) == 0 {
		return nil, nil, r.nothing(paths)
	}
	return r.docs, r.skipped, nil
}

type reader struct {
	ctx     context.Context
	pdf     pdfReader
	docs    []Document
	skipped []Skipped
	visit   func(path string, info fs.FileInfo, parse func() ([]Document, error)) error // instead of keeping docs; may be nil
	seen    map[string]string                                                           // real path → the path it was first reached by; this also ends loops of links
}

// named reads a path that the user gave: what is wrong with it is an error.
func (r *reader) named(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Error{Path: path, Detail: "no such file or folder"}
	}
	if err != nil {
		return &Error{Path: path, Detail: "cannot be read", Err: plain(err)}
	}
	if first, again := r.again(path); again {
		r.skip(path, "already read as "+first)
		return nil
	}
	if info.IsDir() {
		return r.folder(path)
	}
	return r.file(path, info)
}

// folder reads what is in a folder and enters the folders in it. It fails only where the folder itself cannot be listed.
func (r *reader) folder(dir string) error {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return &Error{Path: dir, Detail: "the folder cannot be listed", Err: plain(err)}
	}
	for _, entry := range entries {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.entry(filepath.Join(dir, entry.Name())); err != nil {
			if r.ctx.Err() != nil {
				return r.ctx.Err()
			}
			r.skip(filepath.Join(dir, entry.Name()), reason(err))
		}
	}
	return nil
}

func (r *reader) entry(path string) error {
	if strings.HasPrefix(filepath.Base(path), ".") {
		return &Error{Path: path, Detail: "hidden"}
	}
	info, err := os.Stat(path)
	if err != nil {
		return &Error{Path: path, Detail: "cannot be read", Err: plain(err)}
	}
	if first, again := r.again(path); again {
		return &Error{Path: path, Detail: "already read as " + first}
	}
	if info.IsDir() {
		return r.folder(path)
	}
	return r.file(path, info)
}

// file reads one file by what the end of its name says it is.
func (r *reader) file(path string, info fs.FileInfo) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	ext := strings.ToLower(filepath.Ext(path))
	parse := map[string]func(path string, data []byte) ([]Document, error){
		".jsonl": parseJSONL,
		".txt":   parseText,
		".md":    parseMarkdown, ".markdown": parseMarkdown,
		".html": parseHTML, ".htm": parseHTML,
		".csv":  parseCSV,
		".docx": parseDOCX,
		".pdf":  func(path string, data []byte) ([]Document, error) { return r.pdf.parse(r.ctx, path, data) },
	}[ext]
	switch {
	case parse == nil && ext == "":
		return &Error{Path: path, Detail: "a name without an ending does not say what kind of file it is", Advice: kindsHint}
	case parse == nil:
		return &Error{Path: path, Detail: fmt.Sprintf("%s files cannot be read", ext), Advice: kindsHint}
	case !info.Mode().IsRegular():
		return &Error{Path: path, Detail: "is not a regular file"}
	}
	read := func() ([]Document, error) {
		data, err := readBounded(path)
		if err != nil {
			return nil, err
		}
		docs, err := parse(path, data)
		if err == nil && len(docs) == 0 {
			err = &Error{Path: path, Detail: "holds no text"}
		}
		return docs, err
	}
	if r.visit != nil {
		return r.visit(path, info, read)
	}
	docs, err := read()
	r.docs = append(r.docs, docs...)
	return err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{Path: path, Detail: "cannot be opened", Err: plain(err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1)) // the size in the folder may be out of date by now
	if err != nil {
		return nil, &Error{Path: path, Detail: "cannot be read", Err: plain(err)}
	}
	if len(data) > maxFileBytes {
		return nil, &Error{Path: path, Detail: fmt.Sprintf("is larger than %d MiB", maxFileBytes>>20), Advice: "split the file"}
	}
	return data, nil
}

// again reports whether the file or folder behind path was reached before, and remembers it.
func (r *reader) again(path string) (first string, again bool) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", false // opening it will say why
	}
	if first, again = r.seen[real]; !again {
		r.seen[real] = path
	}
	return first, again
}

func (r *reader) skip(path, reason string) {
	r.skipped = append(r.skipped, Skipped{Path: path, Reason: reason})
}

// nothing is the error for paths without a single document.
func (r *reader) nothing(paths []string) error {
	if len(paths) == 0 {
		return &Error{Path: "documents", Detail: "no path given", Advice: kindsHint}
	}
	e := &Error{Path: strings.Join(paths, ", "), Detail: "no documents found", Advice: kindsHint}
	visible := slices.DeleteFunc(slices.Clone(r.skipped), func(s Skipped) bool { return s.Reason == "hidden" })
	if len(visible) > 0 {
		e.Detail += fmt.Sprintf("; %d skipped, the first is %s: %s", len(visible), visible[0].Path, visible[0].Reason)
	}
	return e
}

// plain strips the path from an error of package os: ours names it already.
func plain(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// reason is what err says about a path that is named beside it.
func reason(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	text := strings.TrimPrefix(e.Error(), e.Path)
	return strings.TrimPrefix(strings.TrimPrefix(text, ": "), ":")
}

// document makes the document of a whole file, or none where the text is blank.
func document(path, title, text string, sections []Section) []Document {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	if title = strings.Join(strings.Fields(title), " "); title == "" {
		title = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	}
	return []Document{{ID: filepath.ToSlash(path), Title: title, Text: text, Path: path, Sections: sections}}
}

// isSpace is what counts as white space throughout: Unicode's, so that a no-break space separates words too.
func isSpace(r rune) bool { return unicode.IsSpace(r) }
