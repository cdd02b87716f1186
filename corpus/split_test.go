package corpus

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// words9 counts tokens as a tokenizer roughly does: a word is one for every nine bytes begun.
func words9(s string) int {
	n := 0
	for _, w := range strings.Fields(s) {
		n += (len(w) + 8) / 9
	}
	return n
}

// checkPassages holds what Split promises of any documents.
func checkPassages(t *testing.T, docs []Document, passages []Passage, most int, count func(string) int) {
	t.Helper()
	rest := passages
	for _, doc := range docs {
		end := 0
		for len(rest) > 0 && rest[0].Doc == doc.ID && (rest[0].Start >= end && (rest[0].Start > 0 || end == 0)) {
			p := rest[0]
			if p.Text != doc.Text[p.Start:p.End] {
				t.Fatalf("passage %s is not the document's text from %d to %d", p.ID, p.Start, p.End)
			}
			if gap := doc.Text[end:p.Start]; strings.TrimSpace(gap) != "" {
				t.Fatalf("lost %q before %s", gap, p.ID)
			}
			if n := count(p.Text); n > most && utf8.RuneCountInString(p.Text) > 1 {
				t.Fatalf("passage %s has %d tokens, at most %d wanted: %q", p.ID, n, most, p.Text)
			}
			if !utf8.ValidString(p.Text) {
				t.Fatalf("passage %s cuts a rune: %q", p.ID, p.Text)
			}
			if rest, end = rest[1:], p.End; end == len(doc.Text) {
				break
			}
		}
		if gap := doc.Text[end:]; strings.TrimSpace(gap) != "" {
			t.Fatalf("lost %q at the end of %s", gap, doc.ID)
		}
	}
	if len(rest) > 0 {
		t.Fatalf("%d passages too many, first %+v", len(rest), rest[0])
	}
}

func TestSplit_AnyText_LosesNothingAndFits(t *testing.T) {
	pieces := []string{"a", "word", "Dr.", "end.", "why?", "。", "日本語", "(see", "here.)", strings.Repeat("x", 300), strings.Repeat("é", 90),
		" ", " ", " ", " ", "\n", "\n\n", "\r\n\r\n", "\t", "\u00a0", "- item", "1. item", "😀"}
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var docs []Document
		for _, id := range []string{"a", "b"} {
			doc := Document{ID: id, Title: "T"}
			for range 1 + rng.IntN(200) {
				if rng.IntN(9) == 0 {
					doc.Sections = append(doc.Sections, Section{Offset: len(doc.Text), Headings: []string{"T", "h"}[:rng.IntN(3)], Page: rng.IntN(3)})
				}
				doc.Text += pieces[rng.IntN(len(pieces))]
			}
			if strings.TrimSpace(doc.Text) != "" {
				docs = append(docs, doc)
			}
		}
		most := 1 + rng.IntN(40)
		first := Split(docs, most, words9)
		checkPassages(t, docs, first, most, words9)
		if !reflect.DeepEqual(first, Split(docs, most, words9)) {
			t.Fatalf("seed %d: two different results", seed)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func texts(passages []Passage) (texts []string) {
	for _, p := range passages {
		texts = append(texts, p.Text)
	}
	return texts
}

func TestSplit_CutsWhereAReaderWould(t *testing.T) {
	for _, test := range []struct {
		name string
		max  int
		text string
		want []string
	}{
		{"short stays whole", 9, " a b\n\nc ", []string{" a b\n\nc "}},
		{"paragraphs together", 4, "a b\n\nc d\n\ne f", []string{"a b\n\nc d", "e f"}},
		{"paragraph not cut for room", 4, "a b\n\nc d e\n\nf", []string{"a b", "c d e\n\nf"}},
		{"sentences", 4, "One two. Three four. Five six seven.", []string{"One two. Three four.", "Five six seven."}},
		{"names and numbers", 4, "By J. R. Smith. At 3.5 vs. Two then. So e.g. This one.", []string{"By J. R. Smith.", "At 3.5 vs. Two", "then.", "So e.g. This one."}},
		{"quotation", 4, "\"I go now.\" (So he said.) Then silence came.", []string{"\"I go now.\"", "(So he said.)", "Then silence came."}},
		{"no spaces in Chinese", 2, "天气很好。我们出去。他不来。", []string{"天气很好。", "我们出去。", "他不来。"}},
		{"words", 3, "a b c d e", []string{"a b c", "d e"}},
		{"list", 4, "- a b c\n- d e\n- f", []string{"- a b c", "- d e", "- f"}},
		{"monster word", 2, "abcdefghijklmnopqrstuvwxyz", []string{"abcdefghijklmnopqr", "stuvwxyz"}},
		{"runes whole", 1, "éééééééé", []string{"éééé", "éééé"}},
	} {
		got := texts(Split([]Document{{ID: "d", Text: test.text}}, test.max, words9))
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", test.name, got, test.want)
		}
	}
}

func TestSplit_SectionsNamePassages(t *testing.T) {
	doc := readOne(t, "a.md", "# Guide\n\nWelcome here.\n\n## Install\n\nRun the script now and wait.\n\n## Use\n\nShort.\n\n### More\n\nRead the manual pages then ask.\n")
	var got []string
	for _, p := range Split([]Document{doc}, 8, words9) {
		got = append(got, p.ID[strings.LastIndex(p.ID, "#"):]+" "+p.Title+" | "+strings.ReplaceAll(p.Text, "\n\n", " / "))
	}
	want := []string{"#1 Guide | Guide / Welcome here.", "#2 Guide: Install | Install / Run the script now and wait.",
		"#3 Guide: Use | Use / Short.", "#4 Guide: Use: More | More / Read the manual pages then ask."}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A word of megabytes must not be counted whole for each of its parts.
func TestSplit_MonsterWord_IsCutInLinearTime(t *testing.T) {
	doc := Document{ID: "d", Text: strings.Repeat("x", 4<<20)}
	counted := 0
	Split([]Document{doc}, 150, func(s string) int { counted += len(s); return (len(s) + 3) / 4 })
	if limit := 60 * len(doc.Text); counted > limit {
		t.Errorf("%d bytes counted for %d", counted, len(doc.Text))
	}
}
