package cite

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

var birds = []Document{
	{ID: "r", Title: "Ravens", Text: "Ravens hide food in autumn. In 1871 they were seen at the old lighthouse."},
	{ID: "o", Title: "Owls", Text: "Owls hear mice under the snow. They nest in old barns."},
	{ID: "g", Title: "Gulls", Text: "Gulls nest on cliffs. The lighthouse at Norre, où they sleep, was built in 1871 of red granite."},
}

func TestFind_WhatTheAnswerRestsOn(t *testing.T) {
	for _, tt := range []struct {
		name, question, answer string
		want                   []string // document: stretch of the answer → stretch of the text
	}{
		{"a fact of one", "Who hears mice?", "Owls hear mice under the snow.", []string{"o: Owls hear mice under the snow → Owls hear mice under the snow"}},
		{"of two that have it, the question's", "When was the lighthouse at Norre built?", "1871", []string{"g: 1871 → 1871"}},
		{"other words around it", "", "It seems that they nest in barns or old ones.", []string{"o: It seems that they nest in barns or old ones → They nest in"}},
		{"two sentences", "", "Ravens hide food in autumn. Gulls nest on cliffs!", []string{"r: Ravens hide food in autumn → Ravens hide food in autumn", "g: Gulls nest on cliffs → Gulls nest on cliffs"}},
		{"letters of more bytes", "", "À Norre, où they sleep", []string{"g: À Norre, où they sleep → Norre, où they sleep"}},
		{"a marker", "", "See [o].", []string{"o: [o] → "}},
		{"nothing", "Who hides food?", "Elephants", nil},
		{"empty", "", "", nil},
	} {
		var got []string
		for _, c := range Find(tt.question, tt.answer, birds) {
			d := birds[c.Document]
			got = append(got, d.ID+": "+string([]rune(tt.answer)[c.Start:c.End])+" → "+string([]rune(d.Text)[c.TextStart:c.TextEnd]))
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := Find("", "Owls", nil); len(got) != 0 {
		t.Errorf("without documents: %v", got)
	}
}

func FuzzFind(f *testing.F) {
	f.Add("Who?", "Ravens [a] hide. Food\nby 1.5 m", "Ravens hide food", "Title")
	f.Add("", "é\xff [b]\u0301x", "\u0301é \xffx", "[b]")
	f.Fuzz(func(t *testing.T, question, answer, text, title string) {
		documents := []Document{{ID: "a", Title: title, Text: text}, {ID: "b", Text: title}}
		for _, c := range Find(question, answer, documents) {
			if c.Start < 0 || c.Start >= c.End || c.End > utf8.RuneCountInString(answer) {
				t.Errorf("%q: cites %d to %d", answer, c.Start, c.End)
			}
			if n := utf8.RuneCountInString(documents[c.Document].Text); c.TextStart < 0 || c.TextStart > c.TextEnd || c.TextEnd > n || c.Marker != (c.TextStart == c.TextEnd) {
				t.Errorf("%q: cites %d to %d of %d characters", answer, c.TextStart, c.TextEnd, n)
			}
		}
	})
}

// Text that repeats itself is what runs take longest to be found in.
func BenchmarkFind(b *testing.B) {
	documents := []Document{{Text: strings.Repeat("so it is and ", 300)}, {Text: strings.Repeat("it is so ", 300)}}
	answer := strings.Repeat("it is so and so ", 100)
	for b.Loop() {
		Find("is it", answer, documents)
	}
}
