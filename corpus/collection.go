package corpus

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/index/scorch"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// A Collection is the passages of files, kept in a folder: a database, which is the truth, and a keyword index, which follows it.
//  1. A passage that several files hold is there once, and goes with the last of them.
//  2. A file's passages change together, in one transaction: a kill at any moment leaves the old ones or the new ones.
//  3. What the index still lacks of the database is noted there, in the same transaction; opening makes up for it.
//
// One process at a time has it open.
type Collection struct {
	dir   string
	db    *bbolt.DB
	words bleve.Index

	behind int // about how many passages the index lacks
}

// Buckets of the database.
var (
	filesBucket    = []byte("files")    // absolute path → fileRecord
	passagesBucket = []byte("passages") // number, 8 bytes → passageRecord
	hashesBucket   = []byte("hashes")   // hash of title and text → number
	todoBucket     = []byte("todo")     // number → nothing: the index is to be brought up to the passage, there or gone
)

type fileRecord struct {
	Size     int64     `json:"size"`
	ModTime  time.Time `json:"mtime"`
	Passages []uint64  `json:"passages"`
}

type passageRecord struct {
	Title string `json:"title,omitempty"`
	Text  string `json:"text"`
	Path  string `json:"path"`
	Page  int    `json:"page,omitempty"`
	Files int    `json:"files"` // that hold it
}

var collectionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// A NameError says that something cannot be the name of a collection, or is the name of none.
type NameError struct {
	Name  string
	Known []string // nil: the name cannot be one
}

func (e *NameError) Error() string {
	switch {
	case e.Known == nil:
		return fmt.Sprintf("%q cannot be a collection's name: letters, digits, dots, dashes and underscores can, up to 64, and a letter or digit first", e.Name)
	case len(e.Known) == 0:
		return fmt.Sprintf("there is no collection %q, nor any other; 'tessera ingest -c %s PATH' makes it", e.Name, e.Name)
	}
	return fmt.Sprintf("there is no collection %q; there are %s", e.Name, strings.Join(e.Known, ", "))
}

var errInUse = errors.New("another process has this collection open; 'tessera serve' takes documents over HTTP and in its page")

// Collections are the names of those under a folder.
func Collections(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		if e.IsDir() && collectionName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// OpenCollection opens the collection of a name under a folder. One that is not there is made where create is set, and else a *NameError.
func OpenCollection(root, name string, create bool) (*Collection, error) {
	if !collectionName.MatchString(name) {
		return nil, &NameError{Name: name}
	}
	c := &Collection{dir: filepath.Join(root, name)}
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) && !create {
		known, err := Collections(root)
		if err != nil {
			return nil, err
		}
		return nil, &NameError{name, known}
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	path := filepath.Join(c.dir, "passages.db")
	if c.db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second}); err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) {
			err = errInUse
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	err = c.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{filesBucket, passagesBucket, hashesBucket, todoBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = c.openWords()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", c.dir, err), c.Close())
	}
	return c, nil
}

// openWords opens the index and brings it up to the database; one that is missing or does not fit is made anew.
func (c *Collection) openWords() error {
	path := filepath.Join(c.dir, "words")
	words, err := bleve.Open(path)
	if err == nil {
		c.words = words
		if err := c.catchUp(context.Background()); err == nil {
			if n, err := words.DocCount(); err == nil && n == uint64(c.count(passagesBucket)) {
				return nil
			}
		}
		if err := words.Close(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if c.words, err = bleve.NewUsing(path, indexMapping(), scorch.Name, scorch.Name, nil); err != nil {
		return fmt.Errorf("keyword index: %w", err)
	}
	err = c.db.Update(func(tx *bbolt.Tx) error {
		todo := tx.Bucket(todoBucket)
		return tx.Bucket(passagesBucket).ForEach(func(number, _ []byte) error { return todo.Put(number, nil) })
	})
	if err != nil {
		return err
	}
	return c.catchUp(context.Background())
}

// Close ends the use of the collection. Closing again does nothing.
func (c *Collection) Close() error {
	var errs []error
	if c.words != nil {
		errs = append(errs, c.words.Close())
		c.words = nil
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// An Ingestion is what to take into a collection, and how.
type Ingestion struct {
	Paths    []string // files and folders
	Sync     bool     // files under Paths that are gone are dropped
	Tokens   int      // of a passage at most
	Count    func(string) int
	CacheDir string         // for the PDF reader
	Progress func(done int) // is told how many files are done; may be nil
}

// An IngestReport says what became of the files.
type IngestReport struct {
	Added     int       `json:"added"`
	Changed   int       `json:"changed"`
	Unchanged int       `json:"unchanged"`
	Dropped   int       `json:"dropped"`
	Skipped   []Skipped `json:"skipped"`
	Passages  int       `json:"passages"` // in the collection now
}

// Ingest takes files into the collection. What has the size and time of last time costs nothing, and what holds the same passages is
// unchanged. It can be ended at any moment, and goes on where it was when it is asked for the same again.
func (c *Collection) Ingest(ctx context.Context, in Ingestion) (*IngestReport, error) {
	report := &IngestReport{Skipped: []Skipped{}}
	seen := map[string]bool{}
	done := 0
	r := &reader{ctx: ctx, pdf: pdfReader{cacheDir: in.CacheDir}, seen: map[string]string{}}
	defer r.pdf.close()
	r.visit = func(path string, info fs.FileInfo, parse func() ([]Document, error)) error {
		key, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		seen[key] = true
		if err := c.take(key, info, parse, &in, report); err != nil {
			return err
		}
		if done++; in.Progress != nil {
			in.Progress(done)
		}
		if c.behind < batchSize {
			return nil
		}
		return c.catchUp(ctx)
	}
	for _, path := range in.Paths {
		if err := r.named(path); err != nil {
			return nil, errors.Join(err, c.catchUp(ctx))
		}
	}
	report.Skipped = append(report.Skipped, r.skipped...)
	if in.Sync {
		if err := c.dropGone(in.Paths, seen, report); err != nil {
			return nil, err
		}
	}
	err := c.catchUp(ctx)
	report.Passages = c.count(passagesBucket)
	return report, err
}

// take replaces a file's passages by those it holds now.
func (c *Collection) take(key string, info fs.FileInfo, parse func() ([]Document, error), in *Ingestion, report *IngestReport) error {
	var was *fileRecord
	err := c.db.View(func(tx *bbolt.Tx) (err error) {
		was, err = fileOf(tx, key)
		return err
	})
	if err != nil {
		return err
	}
	if was != nil && was.Size == info.Size() && was.ModTime.Equal(info.ModTime()) {
		report.Unchanged++
		return nil
	}
	docs, err := parse()
	if err != nil {
		return err
	}
	passages := Split(docs, in.Tokens, in.Count)
	c.behind += len(passages)
	return c.db.Update(func(tx *bbolt.Tx) error {
		now := &fileRecord{Size: info.Size(), ModTime: info.ModTime()}
		held := map[uint64]bool{}
		for i := range passages {
			number, err := hold(tx, &passages[i], held)
			if err != nil {
				return err
			}
			if !held[number] { // a passage that the file repeats counts once
				held[number] = true
				now.Passages = append(now.Passages, number)
			}
		}
		switch {
		case was == nil:
			report.Added++
		case slices.Equal(was.Passages, now.Passages):
			report.Unchanged++
		default:
			report.Changed++
		}
		if was != nil {
			for _, number := range was.Passages {
				if err := release(tx, number); err != nil {
					return err
				}
			}
		}
		return put(tx.Bucket(filesBucket), []byte(key), now)
	})
}

// hold adds a file to those that hold a passage, unless it is among them, and returns the passage's number.
func hold(tx *bbolt.Tx, p *Passage, held map[uint64]bool) (uint64, error) {
	hash := hashOf(p.Title, p.Text)
	hashes, passages := tx.Bucket(hashesBucket), tx.Bucket(passagesBucket)
	if known := hashes.Get(hash); known != nil {
		number := binary.BigEndian.Uint64(known)
		if held[number] {
			return number, nil
		}
		record, err := passageOf(tx, number)
		if err != nil {
			return 0, err
		}
		record.Files++
		return number, put(passages, keyOf(number), record)
	}
	number, err := passages.NextSequence()
	if err != nil {
		return 0, err
	}
	return number, errors.Join(put(passages, keyOf(number), &passageRecord{p.Title, p.Text, p.Path, p.Page, 1}),
		hashes.Put(hash, keyOf(number)), tx.Bucket(todoBucket).Put(keyOf(number), nil))
}

// release takes a file from those that hold a passage; nobody's is removed.
func release(tx *bbolt.Tx, number uint64) error {
	record, err := passageOf(tx, number)
	if err != nil {
		return err
	}
	passages := tx.Bucket(passagesBucket)
	if record.Files--; record.Files > 0 {
		return put(passages, keyOf(number), record)
	}
	return errors.Join(passages.Delete(keyOf(number)), tx.Bucket(hashesBucket).Delete(hashOf(record.Title, record.Text)), tx.Bucket(todoBucket).Put(keyOf(number), nil))
}

// dropGone removes the files under paths that are there no more.
func (c *Collection) dropGone(paths []string, seen map[string]bool, report *IngestReport) error {
	var roots []string
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		roots = append(roots, abs)
	}
	return c.db.Update(func(tx *bbolt.Tx) error {
		var gone []string
		files := tx.Bucket(filesBucket)
		err := files.ForEach(func(key, _ []byte) error {
			path := string(key)
			within := slices.ContainsFunc(roots, func(root string) bool {
				return path == root || strings.HasPrefix(path, strings.TrimSuffix(root, string(filepath.Separator))+string(filepath.Separator))
			})
			if !within || seen[path] {
				return nil
			}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				gone = append(gone, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, path := range gone {
			record, err := fileOf(tx, path)
			if err != nil {
				return err
			}
			for _, number := range record.Passages {
				if err := release(tx, number); err != nil {
					return err
				}
			}
			if err := files.Delete([]byte(path)); err != nil {
				return err
			}
			report.Dropped++
		}
		return nil
	})
}

// catchUp brings the index up to the database.
func (c *Collection) catchUp(ctx context.Context) error {
	c.behind = 0
	for {
		batch := c.words.NewBatch()
		var numbers [][]byte
		err := c.db.View(func(tx *bbolt.Tx) error {
			todo := tx.Bucket(todoBucket).Cursor()
			for key, _ := todo.First(); key != nil && len(numbers) < batchSize; key, _ = todo.Next() {
				numbers = append(numbers, slices.Clone(key))
				id := wordID(binary.BigEndian.Uint64(key))
				data := tx.Bucket(passagesBucket).Get(key)
				if data == nil {
					batch.Delete(id)
					continue
				}
				var p passageRecord
				if err := json.Unmarshal(data, &p); err != nil {
					return err
				}
				if err := batch.Index(id, map[string]any{field: p.Title + "\n" + p.Text}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || len(numbers) == 0 {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err // the database remembers what is to be done
		}
		if err := c.words.Batch(batch); err != nil {
			return fmt.Errorf("keyword index: %w", err)
		}
		err = c.db.Update(func(tx *bbolt.Tx) error {
			for _, key := range numbers {
				if err := tx.Bucket(todoBucket).Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// Found is a passage with its place among those that match a question.
type Found struct {
	Passage
	Score float64
}

// Search returns the k passages that best match a question, best first, by BM25 as Rank does it; fewer where fewer share a word with it.
func (c *Collection) Search(ctx context.Context, question string, k int) ([]Found, error) {
	if k < 1 {
		return nil, fmt.Errorf("search: k is %d, expected at least 1", k)
	}
	result, err := c.words.SearchInContext(ctx, request(question, k))
	if err != nil {
		return nil, fmt.Errorf("keyword index: %w", err)
	}
	found := make([]Found, 0, len(result.Hits))
	err = c.db.View(func(tx *bbolt.Tx) error {
		for _, hit := range result.Hits {
			number, err := strconv.ParseUint(hit.ID, 10, 64)
			if err != nil {
				return fmt.Errorf("keyword index: unknown passage %q", hit.ID)
			}
			p, err := passageOf(tx, number)
			if err != nil {
				return err
			}
			found = append(found, Found{p.passage(number), hit.Score})
		}
		return nil
	})
	return found, err
}

// Passages are those of one document: of the file at a path, or of the only one whose path ends so; or the passage of a number, as Search
// gives it. None: there is no such document, or there are several.
func (c *Collection) Passages(document string) (list []Passage, err error) {
	err = c.db.View(func(tx *bbolt.Tx) error {
		file, err := fileOf(tx, document)
		if err != nil {
			return err
		}
		if number, err := strconv.ParseUint(document, 10, 64); file == nil && err == nil && tx.Bucket(passagesBucket).Get(keyOf(number)) != nil {
			file = &fileRecord{Passages: []uint64{number}}
		}
		if file == nil {
			var paths []string
			_ = tx.Bucket(filesBucket).ForEach(func(path, _ []byte) error {
				if strings.HasSuffix(filepath.ToSlash(string(path)), "/"+document) {
					paths = append(paths, string(path))
				}
				return nil
			})
			if len(paths) != 1 {
				return nil
			}
			if file, err = fileOf(tx, paths[0]); err != nil {
				return err
			}
		}
		for _, number := range file.Passages {
			p, err := passageOf(tx, number)
			if err != nil {
				return err
			}
			list = append(list, p.passage(number))
		}
		return nil
	})
	return list, err
}

// After are up to n passages that came after the one with the number of an id, or the first ones for "".
func (c *Collection) After(id string, n int) (list []Passage, err error) {
	from := uint64(0)
	if id != "" {
		if from, err = strconv.ParseUint(id, 10, 64); err != nil {
			return nil, fmt.Errorf("passage %q: %w", id, err)
		}
		from++
	}
	err = c.db.View(func(tx *bbolt.Tx) error {
		passages := tx.Bucket(passagesBucket).Cursor()
		for key, data := passages.Seek(keyOf(from)); key != nil && len(list) < n; key, data = passages.Next() {
			var p passageRecord
			if err := json.Unmarshal(data, &p); err != nil {
				return err
			}
			list = append(list, p.passage(binary.BigEndian.Uint64(key)))
		}
		return nil
	})
	return list, err
}

func (p *passageRecord) passage(number uint64) Passage {
	return Passage{ID: strconv.FormatUint(number, 10), Doc: p.Path, Title: p.Title, Text: p.Text, Path: p.Path, Page: p.Page, End: len(p.Text)}
}

// CollectionStat is how large a collection is.
type CollectionStat struct {
	Files    int   `json:"documents"`
	Passages int   `json:"passages"`
	Bytes    int64 `json:"bytes"` // of its folder
}

// A Listing is a collection among others: how large it is, or why it cannot be opened.
type Listing struct {
	Name string `json:"name"`
	*CollectionStat
	Error string `json:"error,omitempty"`
}

// List is the Listing of a collection that was to be opened, with the error that there was.
func List(name string, c *Collection, err error) Listing {
	if err != nil {
		return Listing{Name: name, Error: err.Error()}
	}
	stat := c.Stat()
	return Listing{Name: name, CollectionStat: &stat}
}

// Stat counts.
func (c *Collection) Stat() CollectionStat {
	s := CollectionStat{Files: c.count(filesBucket), Passages: c.count(passagesBucket)}
	_ = filepath.WalkDir(c.dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				s.Bytes += info.Size()
			}
		}
		return nil
	})
	return s
}

// count is how many keys a bucket has.
func (c *Collection) count(bucket []byte) (n int) {
	_ = c.db.View(func(tx *bbolt.Tx) error { // fails only when closed
		n = tx.Bucket(bucket).Stats().KeyN
		return nil
	})
	return n
}

// RemoveCollection removes a collection, which nobody may have open. It may be damaged.
func RemoveCollection(root, name string) error {
	c, err := OpenCollection(root, name, false)
	if err == nil {
		err = c.Close()
	} else if _, unnamed := errors.AsType[*NameError](err); !unnamed && !errors.Is(err, errInUse) {
		err = nil // what cannot be opened can be removed
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(root, name))
}

// hashOf is what equal passages have alike.
func hashOf(title, text string) []byte {
	hash := sha256.Sum256(fmt.Appendf(nil, "%d %s%s", len(title), title, text))
	return hash[:16]
}

func keyOf(number uint64) []byte { return binary.BigEndian.AppendUint64(nil, number) }

func wordID(number uint64) string { return fmt.Sprintf("%012d", number) } // padded: they break ties

func fileOf(tx *bbolt.Tx, path string) (*fileRecord, error) {
	data := tx.Bucket(filesBucket).Get([]byte(path))
	if data == nil {
		return nil, nil
	}
	var f fileRecord
	return &f, json.Unmarshal(data, &f)
}

func passageOf(tx *bbolt.Tx, number uint64) (*passageRecord, error) {
	data := tx.Bucket(passagesBucket).Get(keyOf(number))
	if data == nil {
		return nil, fmt.Errorf("passage %d is missing", number)
	}
	var p passageRecord
	return &p, json.Unmarshal(data, &p)
}

func put(b *bbolt.Bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}
