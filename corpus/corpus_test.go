package corpus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// write makes files under a new folder and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, paths ...string) ([]Document, []Skipped) {
	t.Helper()
	docs, skipped, err := Read(context.Background(), paths, "")
	if err != nil {
		t.Fatal(err)
	}
	return docs, skipped
}

// readOne reads a single file of the given name and content.
func readOne(t *testing.T, name, content string) Document {
	t.Helper()
	docs, _ := read(t, filepath.Join(write(t, map[string]string{name: content}), name))
	if len(docs) != 1 {
		t.Fatalf("%d documents, want 1", len(docs))
	}
	return docs[0]
}

func TestRead_BrokenFile_SaysWhereAndWhat(t *testing.T) {
	for _, test := range []struct{ name, file, content, want string }{
		{"cut line", "a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y", "a.jsonl:2: not JSON at byte 10"},
		{"text missing", "a.jsonl", "\n\n{\"id\":\"1\"}\n", `a.jsonl:3: field "text" is missing`},
		{"text null", "a.jsonl", `{"text":null}`, `a.jsonl:1: field "text" is missing`},
		{"text blank", "a.jsonl", `{"text":" \n"}`, `a.jsonl:1: field "text" is empty`},
		{"text a number", "a.jsonl", `{"text":3}`, `a.jsonl:1: field "text": found a number, expected a string`},
		{"title a list", "a.jsonl", `{"title":[],"text":"x"}`, `a.jsonl:1: field "title": found an array, expected a string`},
		{"id an object", "a.jsonl", `{"id":{},"text":"x"}`, `a.jsonl:1: field "id": found {}, expected a string`},
		{"not an object", "a.jsonl", `["x"]`, "a.jsonl:1: found an array, expected an object"},
		{"two objects on a line", "a.jsonl", `{"text":"x"} {"text":"y"}`, "a.jsonl:1: not JSON at byte 14"},
		{"only blank lines", "a.jsonl", "\n \n", "a.jsonl: holds no text"},
		{"Latin-1", "a.txt", "a\nr\xe9sum\xe9", "a.txt:2: byte 3 (0xe9) is not UTF-8"},
		{"Latin-1 in JSON", "a.jsonl", "{\"text\":\"r\xe9sum\xe9\"}", "a.jsonl:1: byte 10 (0xe9) is not UTF-8"},
		{"binary", "a.md", "\x7fELF\x00", "a.md:1: byte 4 is zero: this is not text"},
		{"half a UTF-16 unit", "a.txt", "\xff\xfea\x00b", "a.txt: UTF-16 by its byte order mark, but 5 bytes"},
		{"half a surrogate pair", "a.txt", "\xff\xfea\x00\x00\xd8", "a.txt: UTF-16 by its byte order mark, but character 1 is no text"},
		{"empty", "a.txt", "", "a.txt: holds no text"},
		{"only tags", "a.html", "<p><script>x</script></p>", "a.html: holds no text"},
		{"unknown kind", "a.odt", "x", "a.odt: .odt files cannot be read"},
		{"no ending", "README", "x", "README: a name without an ending does not say what kind of file it is"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := write(t, map[string]string{test.file: test.content})
			_, _, err := Read(context.Background(), []string{filepath.Join(dir, test.file)}, "")
			var typed *Error
			if !errors.As(err, &typed) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if got := strings.TrimPrefix(err.Error(), dir+"/"); !strings.HasPrefix(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestRead_NothingToRead_NamesThePath(t *testing.T) {
	dir := write(t, map[string]string{"hidden/.a.txt": "x", "odd/b.odt": "x", "odd/.git/c.txt": "x"})
	for _, test := range []struct {
		paths []string
		want  string
	}{
		{nil, "documents: no path given"},
		{[]string{dir + "/missing.txt"}, dir + "/missing.txt: no such file or folder"},
		{[]string{dir + "/hidden"}, dir + "/hidden: no documents found"},
		{[]string{dir + "/odd"}, dir + "/odd: no documents found; 1 skipped, the first is " + dir + "/odd/b.odt: .odt files cannot be read"},
	} {
		_, _, err := Read(context.Background(), test.paths, "")
		if err == nil || err.Error() != test.want {
			t.Errorf("%v: got %v, want %s", test.paths, err, test.want)
		}
	}
}

func TestRead_UnreadableFolder_IsAnError(t *testing.T) {
	dir := write(t, map[string]string{"in/locked/a.txt": "x", "in/b.txt": "y"})
	locked := filepath.Join(dir, "in", "locked")
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(locked, 0o700)
	if _, err := os.ReadDir(locked); err == nil {
		t.Skip("this user may read everything")
	}
	if _, _, err := Read(context.Background(), []string{locked}, ""); err == nil || !strings.Contains(err.Error(), "locked: the folder cannot be listed: permission denied") {
		t.Errorf("named: got %v", err)
	}
	docs, skipped := read(t, filepath.Join(dir, "in"))
	if len(docs) != 1 || len(skipped) != 1 || skipped[0].Reason != "the folder cannot be listed: permission denied" {
		t.Errorf("inside: got %v, %v", docs, skipped)
	}
}

func TestRead_Folder_IsSortedAndReportsWhatItSkips(t *testing.T) {
	dir := write(t, map[string]string{
		"b.txt": "bee", "a.MD": "ay", "c/d.html": "dee", "c/e.jsonl": `{"id":7,"text":"ee"}` + "\n" + `{"text":"ef"}`,
		"broken.jsonl": "{", "photo.png": "x", ".hidden.txt": "x", "empty.txt": "",
	})
	for name, target := range map[string]string{"loop": ".", "c/up": "..", "again.txt": "b.txt", "nowhere.txt": "gone.txt"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Skip(err)
		}
	}
	docs, skipped := read(t, dir)
	var got []string
	for _, d := range docs {
		got = append(got, strings.TrimPrefix(d.ID, dir+"/")+"="+d.Text)
	}
	// again.txt comes before b.txt, which is then the one already read.
	if want := []string{"a.MD=ay", "again.txt=bee", "c/d.html=dee", "7=ee", "c/e.jsonl:2=ef"}; !reflect.DeepEqual(got, want) {
		t.Errorf("documents: got %q, want %q", got, want)
	}
	got = nil
	for _, s := range skipped {
		got = append(got, strings.ReplaceAll(s.Path+": "+s.Reason, dir+"/", ""))
	}
	want := []string{".hidden.txt: hidden", "b.txt: already read as again.txt",
		"broken.jsonl: 1: not JSON at byte 1 of {: unexpected end of JSON input", "c/up: already read as " + dir,
		"empty.txt: holds no text", "loop: already read as " + dir, "nowhere.txt: cannot be read: no such file or directory",
		"photo.png: .png files cannot be read"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("skipped: got  %q\nwant %q", got, want)
	}
}

func TestRead_Cancelled_Stops(t *testing.T) {
	dir := write(t, map[string]string{"a.txt": "x"})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, path := range []string{dir, dir + "/a.txt"} {
		if _, _, err := Read(ctx, []string{path}, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestRead_Encodings_GiveTheSameText(t *testing.T) {
	for name, content := range map[string]string{
		"plain":            "Zoë\n\n😀 x",
		"mark":             "\xef\xbb\xbfZoë\n\n😀 x",
		"CRLF":             "Zoë\r\n\r\n😀 x\r\n",
		"CR":               "Zoë\r\r😀 x",
		"UTF-16, little":   "\xff\xfeZ\x00o\x00\xeb\x00\n\x00\n\x00\x3d\xd8\x00\xde \x00x\x00",
		"UTF-16, big":      "\xfe\xff\x00Z\x00o\x00\xeb\x00\n\x00\n\xd8\x3d\xde\x00\x00 \x00x",
		"blank at an edge": "\n\nZoë\n\n😀 x\n\n",
	} {
		if got := readOne(t, "a.txt", content); got.Text != "Zoë\n\n😀 x" || got.Title != "a" {
			t.Errorf("%s: got %q, title %q", name, got.Text, got.Title)
		}
	}
}

func TestRead_JSONL_KeepsTextByteForByte(t *testing.T) {
	text := " two  spaces,\r\n\tan end \n"
	got := readOne(t, "a.jsonl", `{"id":"x","title":"T","text":" two  spaces,\r\n\tan end \n","more":1}`+"\r\n")
	if got.Text != text || got.ID != "x" || got.Title != "T" {
		t.Fatalf("got %+v", got)
	}
	passages := Split([]Document{got}, 150, words9)
	if len(passages) != 1 || passages[0].Text != text || passages[0].ID != "x" || passages[0].Title != "T" {
		t.Errorf("got %+v", passages)
	}
}

func TestHTML_GivesWhatAReaderSees(t *testing.T) {
	for _, test := range []struct{ name, page, title, want string }{
		{"page", "<!DOCTYPE html><html><head><title>A &amp; B\n C</title><style>p{}</style><script>if (a<b) x()</script></head><body>" +
			"<nav><ul><li>Home</ul></nav><h1>Rivers</h1><p>The  Nile\nis <b>lo</b>ng.<p>So<br>what?</p><!-- no --><noscript>Turn on</noscript></body>",
			"A & B C", "Rivers\n\nThe Nile is long.\n\nSo\nwhat?"},
		{"list and table", "<ul><li>one<li>two</ul><table><tr><th>City<th>River<tr><td>Paris</td><td>Seine</td></tr></table>", "a", "one\ntwo\n\nCity River\nParis Seine"},
		{"title from h1", "<h1>The <i>first</i></h1><h1>second</h1>x", "The first", "The first\n\nsecond\n\nx"},
		{"hidden", "<p hidden>a<p>b<div aria-hidden=true>c<p>d</div>e", "a", "b\n\ne"},
		{"unclosed nav in a closed div", "<div><nav>x</div><p>y", "a", "y"},
		{"stray end tags", "</div></p>x</nav></b>y", "a", "x\n\ny"},
		{"pre", "<pre>\nif x:\n    <b>go</b>\n      on\n</pre>", "a", "if x:\n    go\n      on"},
		{"image", `<p>See <img alt="a red fox" src=x>.`, "a", "See a red fox."},
		{"svg", "<p>a<svg><title>icon</title><path/><g/></svg>b<svg/>c", "a", "abc"},
		{"declared encoding", "<meta charset=windows-1252><p>r\xe9sum\xe9 \x96 x", "a", "résumé – x"},
		{"no-break space", "<p>1&nbsp;km", "a", "1 km"},
	} {
		got := readOne(t, "a.html", test.page)
		if got.Text != test.want || got.Title != test.title {
			t.Errorf("%s:\ngot  %q, title %q\nwant %q, title %q", test.name, got.Text, got.Title, test.want, test.title)
		}
	}
}

// golang.org/x/net/html refuses such a page; a reader of ours must not, nor take time that grows with the square of the depth.
func TestHTML_DeepPage_IsReadLikeAnyOther(t *testing.T) {
	const depth = 200_000
	for _, tag := range []string{"div", "b"} {
		page := strings.Repeat("<"+tag+">", depth) + "deep" + strings.Repeat("</"+tag+">", depth) + "<p>after" + strings.Repeat("</i>", depth)
		if got := readOne(t, "a.html", page); strings.Join(strings.Fields(got.Text), " ") != "deep after" {
			t.Errorf("%s: got %.80q", tag, got.Text)
		}
	}
}

func TestMarkdown_GivesItsText(t *testing.T) {
	source := "---\ntitle: \"The Guide\"\nlayout: x\n---\n# Start\n\nHard\nwrapped *text* with `code &amp; \\*` &amp; a [link](http://x.example).\n\n" +
		"- one\n- two\n  1. nested\n\n## Sub\n\n```go\nfunc main() {\n\n\tx()\n}\n```\n\n> quoted\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n" +
		"<div>raw <b>html</b><script>no</script></div>\n\n![a fox](f.png) and \\*stars\\*\n\nOther\n=====\n\nEnd.\n"
	want := "Start\n\nHard wrapped text with code &amp; \\* & a link.\n\n- one\n- two\n1. nested\n\nSub\n\nfunc main() {\n\n\tx()\n}\n\n" +
		"quoted\n\na | b\n1 | 2\n\nraw html\n\na fox and *stars*\n\nOther\n\nEnd."
	got := readOne(t, "a.md", strings.ReplaceAll(source, "\n", "\r\n"))
	if got.Text != want || got.Title != "The Guide" {
		t.Errorf("title %q\ngot  %q\nwant %q", got.Title, got.Text, want)
	}
	var sections []string
	for _, s := range got.Sections {
		sections = append(sections, strings.Join(s.Headings, "/")+" at "+strings.SplitN(got.Text[s.Offset:], "\n", 2)[0])
	}
	if want := []string{"Start at Start", "Start/Sub at Sub", "Other at Other"}; !reflect.DeepEqual(sections, want) {
		t.Errorf("sections: got %q, want %q", sections, want)
	}
	if got := readOne(t, "a.md", "# First\n\nx"); got.Title != "First" {
		t.Errorf("got title %q", got.Title)
	}
	if got := readOne(t, "a.md", "intro\n\n## Second level\n\nx"); got.Title != "a" {
		t.Errorf("got title %q", got.Title)
	}
}

// fuzzReader holds what every reader must: no panic, and documents that keep their invariants.
func fuzzReader(f *testing.F, name string, parse func(string, []byte) ([]Document, error), seeds ...string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := parse(name, data)
		if err != nil {
			return
		}
		checkDocuments(t, docs)
		checkPassages(t, docs, Split(docs, 5, words9), 5, words9)
	})
}

func FuzzJSONL(f *testing.F) {
	fuzzReader(f, "a.jsonl", parseJSONL, `{"id":"a","title":"b","text":"c"}`, "{\"text\":\"\\ud800 x\"}\n\n{\"id\":1e9,\"text\":\"y\"}", "\xff\xfe{\x00}\x00", `{"text":"`+strings.Repeat("a ", 100)+`"}`)
}

func FuzzHTML(f *testing.F) {
	fuzzReader(f, "a.html", parseHTML, "<h1>a<h2>b</h1><p>c", "<nav><p>x</nav>y<pre>\n a</pre>", "<svg/><title>t</title>\x00é\xff", "<h1><h2 hidden></h2>\x01</h1>z", "<meta charset=utf-16><p>x\xfe")
}

func FuzzMarkdown(f *testing.F) {
	fuzzReader(f, "a.md", parseMarkdown, "# a\n\nb\n\n## c\n- d\n\n      e\n", "---\ntitle: x\n---\ny", "<div>\n<h2>x</h2>\n", "|a|\n|-|\n|b|", "1) x\n\n\ty\n[a]: b\n[a]", "# \x01\n\n&#0;")
}

func checkDocuments(t *testing.T, docs []Document) {
	t.Helper()
	for _, d := range docs {
		if strings.TrimSpace(d.Text) == "" || firstInvalid([]byte(d.Text)) >= 0 {
			t.Fatalf("text %q", d.Text)
		}
		last := 0
		for _, s := range d.Sections {
			if s.Offset < last || s.Offset > len(d.Text) {
				t.Fatalf("section at %d after %d in %d bytes", s.Offset, last, len(d.Text))
			}
			if last = s.Offset; len(s.Headings) > 0 && !strings.HasPrefix(d.Text[s.Offset:], s.Headings[len(s.Headings)-1]) {
				t.Fatalf("section %q begins with %.40q", s.Headings, d.Text[s.Offset:])
			}
		}
	}
}
