package server

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/prompt"
)

// A library is the collections that requests have asked for, open until the server closes. Each tenant has its own.
type library struct {
	root string // "": there are none
	mu   sync.Mutex
	open map[string]*openCollection // by folder and name
}

// An openCollection is one of a tenant's.
type openCollection struct {
	*corpus.Collection
	salt   []byte
	warmed warmth
}

func (l *library) all() []*openCollection {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.open))
}

var errNoCollections = &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Message: "this server keeps no collections"}

// rootOf is the folder of a key's collections.
func (l *library) rootOf(k *Key) string {
	if k == nil {
		return l.root
	}
	return filepath.Join(l.root, ".tenants", k.Tenant)
}

func (l *library) get(k *Key, name string, create bool) (*corpus.Collection, error) {
	if l.root == "" {
		return nil, errNoCollections
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	root := l.rootOf(k)
	key := filepath.Join(root, name)
	if c := l.open[key]; c != nil {
		return c.Collection, nil
	}
	c, err := corpus.OpenCollection(root, name, create)
	if err != nil {
		return nil, err
	}
	l.open[key] = &openCollection{Collection: c, salt: k.salt()}
	return c, nil
}

func (l *library) remove(k *Key, name string) error {
	if l.root == "" {
		return errNoCollections
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	root := l.rootOf(k)
	key := filepath.Join(root, name)
	var closed error
	if c := l.open[key]; c != nil {
		delete(l.open, key)
		closed = c.Close()
	}
	return errors.Join(closed, corpus.RemoveCollection(root, name))
}

func (l *library) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, c := range l.open {
		errs = append(errs, c.Close())
	}
	clear(l.open)
	return errors.Join(errs...)
}

// collections is GET /api/collections. One that another process has open, or that is damaged, does not hide the others.
func (s *Server) collections(w http.ResponseWriter, r *http.Request, k *Key) error {
	list := []corpus.Listing{}
	if s.library.root != "" {
		names, err := corpus.Collections(s.library.rootOf(k))
		if err != nil {
			return err
		}
		for _, name := range names {
			c, err := s.library.get(k, name, false)
			list = append(list, corpus.List(name, c, err))
		}
	}
	writeJSON(w, map[string]any{"collections": list})
	return nil
}

func (s *Server) removeCollection(w http.ResponseWriter, r *http.Request, k *Key) error {
	if err := s.library.remove(k, r.PathValue("name")); err != nil {
		return err
	}
	writeJSON(w, map[string]any{"removed": r.PathValue("name")})
	return nil
}

// search is GET /api/collections/{name}/search?q=…&k=….
func (s *Server) search(w http.ResponseWriter, r *http.Request, k *Key) error {
	c, err := s.library.get(k, r.PathValue("name"), false)
	if err != nil {
		return err
	}
	n := tessera.DefaultPassages
	if text := r.FormValue("k"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > 1000 {
			return invalid("k", "found %q, expected 1 to 1000", text)
		}
	}
	found, err := c.Search(r.Context(), r.FormValue("q"), n)
	if err != nil {
		return err
	}
	type passage struct {
		receiptDocument
		Score float64 `json:"score"`
	}
	list := []passage{}
	for _, f := range found {
		list = append(list, passage{receiptDocument{f.ID, f.Title, f.Text, place(f.Passage)}, f.Score})
	}
	writeJSON(w, map[string]any{"passages": list})
	return nil
}

// place says where a passage stands.
func place(p corpus.Passage) string {
	name := filepath.Base(p.Path)
	if p.Page > 0 {
		return name + ", page " + strconv.Itoa(p.Page)
	}
	return name
}

// addFiles is POST /api/collections/{name}/files: a form with files, which are kept beside the collection and taken into it. The response
// is a stream: how far it is, and in the end the report.
func (s *Server) addFiles(w http.ResponseWriter, r *http.Request, k *Key) error {
	c, err := s.library.get(k, r.PathValue("name"), true)
	if err != nil {
		return err
	}
	folder := filepath.Join(s.library.rootOf(k), r.PathValue("name"), "files")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	body := &steadyBody{ReadCloser: r.Body, connection: http.NewResponseController(w), patience: s.bodyTime}
	r.Body = body
	paths, err := keepFiles(folder, r)
	if body.stands {
		return tooSlow(w, "nothing came of the files for %v", s.bodyTime)
	}
	if err != nil {
		return err
	}
	_ = body.connection.SetReadDeadline(time.Time{}) // as in receive
	beginStream(w)
	// What was sent is taken in whether or not someone waits for it.
	report, err := c.Ingest(context.WithoutCancel(r.Context()), corpus.Ingestion{
		Paths: []string{folder}, Tokens: tessera.PassageTokens, Count: s.tessera.Count, CacheDir: s.o.Cache,
		Progress: func(done int) {
			_ = writeEvent(w, map[string]int{"done": done, "total": max(len(paths), done)}) // the report follows, for who still listens
		},
	})
	if err != nil {
		return err
	}
	for i := range report.Skipped {
		report.Skipped[i].Path = filepath.Base(report.Skipped[i].Path)
	}
	if err := writeEvent(w, map[string]any{"report": report}); err != nil {
		return err
	}
	return endStream(w)
}

// A steadyBody may take as long as it comes: each read of it has patience anew.
type steadyBody struct {
	io.ReadCloser
	connection *http.ResponseController
	patience   time.Duration
	stands     bool // a read had none left; of a part's head that ends so, the form's reader says that it is malformed
}

func (b *steadyBody) Read(p []byte) (int, error) {
	_ = b.connection.SetReadDeadline(time.Now().Add(b.patience)) // as in receive
	n, err := b.ReadCloser.Read(p)
	b.stands = b.stands || errors.Is(err, os.ErrDeadlineExceeded)
	return n, err
}

// keepFiles writes the files of a form, of which there is one at least.
func keepFiles(folder string, r *http.Request) (paths []string, err error) {
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, invalid("", "expected a form with files (multipart/form-data): %v", err)
	}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, uploadError(err)
		}
		path, err := keepFile(folder, part)
		if err != nil {
			return nil, err
		}
		if path != "" {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return nil, invalid("files", "the form has no files")
	}
	return paths, nil
}

// keepFile writes a file of a form under the last part of its name.
func keepFile(folder string, part *multipart.Part) (path string, err error) {
	defer part.Close()
	if part.FileName() == "" {
		return "", nil
	}
	name := filepath.Base(strings.ReplaceAll(part.FileName(), `\`, "/"))
	if name == "." || name == "/" || strings.HasPrefix(name, ".") || strings.ContainsRune(name, 0) || len(name) > 200 {
		return "", invalid("files", "%q cannot be a file's name", part.FileName())
	}
	f, err := os.CreateTemp(folder, ".upload-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, part)
	if closed := f.Close(); err == nil {
		err = closed
	}
	path = filepath.Join(folder, name)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", errors.Join(uploadError(err), os.Remove(f.Name()))
	}
	return path, nil
}

// uploadError makes what the client did wrong a 4xx: all but what the folder's files make of it.
func uploadError(err error) error {
	var (
		tooLarge *http.MaxBytesError
		ours     *fs.PathError
		linked   *os.LinkError
	)
	if errors.As(err, &tooLarge) || errors.As(err, &ours) || errors.As(err, &linked) {
		return err
	}
	return invalid("", "the form cannot be read: %v", err)
}

// documents gives the last message its documents: those sent, of which some may be of a collection by their ids, and otherwise, where one
// is named, the passages of it that the message asks for. It returns those of all messages, for the receipt.
func (s *Server) documents(ctx context.Context, k *Key, e *extension, sent []prompt.Document, messages []tessera.Message) ([]receiptDocument, error) {
	if e == nil {
		e = &extension{}
	}
	var c *corpus.Collection
	var err error
	if e.Collection != "" {
		if c, err = s.library.get(k, e.Collection, false); err != nil {
			return nil, err
		}
	}
	n := e.Passages
	if n == 0 {
		n = tessera.DefaultPassages
	}
	if n < 1 || n > 1000 {
		return nil, invalid("tessera.passages", "found %d, expected 1 to 1000", n)
	}
	var found []corpus.Passage
	last := &messages[len(messages)-1]
	named := false
	for _, d := range sent {
		if d.Text != "" {
			last.Documents = append(last.Documents, d)
			continue
		}
		if c == nil {
			return nil, invalid("documents", "%q has no text; one that was ingested takes its collection in tessera.collection", d.ID)
		}
		passages, err := c.Passages(d.ID)
		if err != nil {
			return nil, err
		}
		if len(passages) == 0 {
			return nil, invalid("documents", "%q has no text and is no passage of the collection %s, nor a file of it, or several end so", d.ID, e.Collection)
		}
		named, found = true, append(found, passages...)
	}
	if c != nil && !named {
		best, err := c.Search(ctx, last.Content, n)
		if err != nil {
			return nil, err
		}
		for _, f := range slices.Backward(best) { // as `ask` has them, the best one nearest to the question
			found = append(found, f.Passage)
		}
	}
	number(messages)
	var all []receiptDocument
	for _, m := range messages {
		for _, d := range m.Documents {
			all = append(all, receiptDocument{ID: d.ID, Title: d.Title, Text: d.Text})
		}
	}
	for _, p := range found {
		last.Documents = append(last.Documents, prompt.Document{ID: p.ID, Title: p.Title, Text: p.Text})
		all = append(all, receiptDocument{p.ID, p.Title, p.Text, place(p)})
	}
	return all, nil
}
