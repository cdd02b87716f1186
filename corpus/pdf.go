package corpus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klippa-app/go-pdfium"
	pdferrors "github.com/klippa-app/go-pdfium/errors"
	"github.com/klippa-app/go-pdfium/references"
	"github.com/klippa-app/go-pdfium/requests"
	"github.com/klippa-app/go-pdfium/webassembly"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// What one PDF may take. The file is copied into the reader's memory, so its size is bounded below that.
const (
	pdfTime        = 2 * time.Minute
	pdfMemoryPages = 1 << 30 / 65536 // of WebAssembly: 64 KiB each
	pdfFileBytes   = 512 << 20
	pdfTextBytes   = 64 << 20
)

// A pdfReader reads PDF files with PDFium in a WebAssembly sandbox, which sees neither files nor network. Each file gets a sandbox
// of its own: one that runs out of time or memory takes nothing with it. The compiled code is shared between them.
type pdfReader struct {
	cacheDir string
	compiled wazero.CompilationCache // nil until the first PDF
}

func (r *pdfReader) close() {
	if r.compiled != nil {
		r.compiled.Close(context.Background())
	}
}

func (r *pdfReader) parse(ctx context.Context, path string, data []byte) ([]Document, error) {
	if len(data) > pdfFileBytes {
		return nil, &Error{Path: path, Detail: fmt.Sprintf("is larger than %d MiB", pdfFileBytes>>20), Advice: "split the file"}
	}
	limited, cancel := context.WithTimeout(ctx, pdfTime)
	defer cancel()
	title, pages, err := r.pages(limited, data)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, &Error{Path: path, Detail: fmt.Sprintf("not read within %v", pdfTime), Advice: "split the file"}
	case errors.Is(err, pdferrors.ErrPassword):
		return nil, &Error{Path: path, Detail: "needs a password", Advice: "save a copy without one"}
	case errors.Is(err, pdferrors.ErrFormat):
		return nil, &Error{Path: path, Detail: "is not a PDF file, or is damaged"}
	case err != nil:
		return nil, &Error{Path: path, Detail: "cannot be read as PDF", Err: err}
	}
	text, sections := joinPages(pages)
	docs := document(path, title, text, sections)
	if docs == nil {
		return nil, &Error{Path: path, Detail: fmt.Sprintf("no text on its %d pages", len(pages)), Advice: "a scanned document needs text recognition first, such as ocrmypdf"}
	}
	return docs, nil
}

// pages returns the text of each page, and the title that the file declares.
func (r *pdfReader) pages(ctx context.Context, data []byte) (title string, pages []string, err error) {
	if r.compiled == nil {
		if r.compiled, err = compilationCache(r.cacheDir); err != nil {
			return "", nil, err
		}
	}
	ctx = experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0))
	pool, err := webassembly.Init(webassembly.Config{
		Context: ctx, MinIdle: 1, MaxIdle: 1, MaxTotal: 1,
		FSConfig: wazero.NewFSConfig(), // nothing of the host: by default the whole disk would be mounted
		Stdout:   io.Discard, Stderr: io.Discard,
		RuntimeConfig: wazero.NewRuntimeConfig().
			WithCoreFeatures(api.CoreFeaturesV2 | experimental.CoreFeaturesExceptionHandling).
			WithCompilationCache(r.compiled).
			WithMemoryLimitPages(pdfMemoryPages).
			WithCloseOnContextDone(true),
	})
	if err != nil {
		return "", nil, fmt.Errorf("starting the PDF reader: %w", err)
	}
	defer pool.Close()
	instance, err := pool.GetInstanceWithContext(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("starting the PDF reader: %w", err)
	}
	opened, err := instance.OpenDocument(&requests.OpenDocument{File: &data})
	if err != nil {
		return "", nil, err
	}
	if meta, err := instance.FPDF_GetMetaText(&requests.FPDF_GetMetaText{Document: opened.Document, Tag: "Title"}); err == nil {
		title = cleanPDF(meta.Value)
	}
	pages, err = pageTexts(ctx, instance, opened.Document)
	return title, pages, err
}

func pageTexts(ctx context.Context, instance pdfium.Pdfium, doc references.FPDF_DOCUMENT) ([]string, error) {
	count, err := instance.FPDF_GetPageCount(&requests.FPDF_GetPageCount{Document: doc})
	if err != nil {
		return nil, err
	}
	var pages []string
	total := 0
	for i := range count.PageCount {
		page := requests.Page{ByIndex: &requests.PageByIndex{Document: doc, Index: i}}
		got, err := instance.GetPageText(&requests.GetPageText{Page: page})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", i+1, err)
		}
		if total += len(got.Text); total > pdfTextBytes {
			return nil, fmt.Errorf("more than %d MiB of text by page %d", pdfTextBytes>>20, i+1)
		}
		pages = append(pages, cleanPDF(got.Text))
	}
	return pages, nil
}

// compilationCache keeps compiled code under dir or, where that cannot be written, for as long as the reader lives.
func compilationCache(dir string) (wazero.CompilationCache, error) {
	if dir == "" {
		return wazero.NewCompilationCache(), nil
	}
	dir = filepath.Join(dir, "pdf")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return wazero.NewCompilationCache(), nil
	}
	return wazero.NewCompilationCacheWithDir(dir)
}

// cleanPDF takes out what PDFium puts in for layout: a word divided at a line's end, marked by U+0002 or U+FFFE, becomes whole.
func cleanPDF(text string) string {
	text = normalizeLines(text)
	for _, mark := range []string{"\u0002", "\ufffe"} {
		text = strings.ReplaceAll(text, mark+"\n", "")
		text = strings.ReplaceAll(text, mark, "")
	}
	return strings.TrimSpace(strings.Map(dropControl, text))
}

// joinPages makes one text of pages. A PDF has lines, not paragraphs, so a paragraph is taken to end with a line that ends a
// sentence and is clearly shorter than its page's longest; its other lines are joined. A page's end ends a line, no more:
// paragraphs run on.
func joinPages(pages []string) (string, []Section) {
	var f flow
	var sections []Section
	for i, page := range pages {
		if page == "" {
			continue
		}
		longest := 0
		for line := range strings.Lines(page) {
			longest = max(longest, utf8.RuneCountInString(strings.TrimSpace(line)))
		}
		for n, line := range strings.Split(page, "\n") {
			if line = strings.TrimSpace(line); line == "" {
				f.gap(paragraph)
				continue
			}
			f.separate()
			if n == 0 {
				sections = append(sections, Section{Offset: f.b.Len(), Page: i + 1})
			}
			f.text(line)
			f.gap(space)
			if endsSentence(line, "\n", "") && utf8.RuneCountInString(line)*5 < longest*4 {
				f.gap(paragraph)
			}
		}
	}
	return f.String(), sections
}
