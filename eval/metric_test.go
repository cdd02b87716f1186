package eval

import (
	"math"
	"testing"
)

// The right column is what the published recipe gives, computed with Python: s.lower(), the characters of string.punctuation removed,
// re.sub(r'\b(a|an|the)\b', ' ', s), ' '.join(s.split()).
func TestNormalize_AsSQuADDoes(t *testing.T) {
	for _, tt := range [][2]string{
		{"The  180th-Meridian!", "180thmeridian"},
		{"A", ""},
		{"an apple, a day", "apple day"},
		{"theatre", "theatre"},
		{"U.S.A.", "usa"},
		{"Rock ’n’ the roll", "rock ’n’ roll"},
		{"the–end", "–end"},
		{"L'a b", "la b"},
		{"a_n", ""},
		{"Ünïcode THE Ä", "ünïcode ä"},
		{"a\u0301 b", "\u0301 b"},
		{"don't", "dont"},
		{"$1,000 + <b>", "1000 b"},
		{"  \t\n", ""},
		{"The The", ""},
		{"x²a", "x²a"},
		{"№a a№", "№ №"},
	} {
		if got := normalize(tt[0]); got != tt[1] {
			t.Errorf("%q: got %q, want %q", tt[0], got, tt[1])
		}
	}
}

func TestJudge_TakesTheBestAnswer(t *testing.T) {
	for _, tt := range []struct {
		output  string
		answers []string
		want    Grade
	}{
		{"The 180th meridian.", []string{"antimeridian", "the 180th meridian"}, Grade{true, true, 1}},
		{"It is at the 180th meridian, in the Pacific.", []string{"180th Meridian"}, Grade{true, false, 2 * 2. / (7 + 2)}},
		{"Greenwich", []string{"180th meridian"}, Grade{}},
		{"180th", []string{"180th meridian"}, Grade{F1: 2. / 3}},
		{"Wilhelm Conrad Röntgen", []string{"Röntgen", "Wilhelm Röntgen"}, Grade{true, false, 4. / 5}}, // contained by the first, F1 by the second
		{"the cat the cat", []string{"cat cat dog"}, Grade{F1: 4. / 5}},                                // a word counts as often as it stands on both sides
		{"antimeridians", []string{"antimeridian"}, Grade{Correct: true}},                              // contained, though not as a word
		{"anything", []string{"A"}, Grade{}},
		{"", []string{"Paris"}, Grade{}},
		{"the", []string{"A"}, Grade{Exact: true, F1: 1}},
		{"yes, it was", []string{"yes"}, Grade{true, false, 1. / 2}},
		{"YES", []string{"yes"}, Grade{true, true, 1}},
	} {
		got := Judge(tt.output, tt.answers)
		if got.Correct != tt.want.Correct || got.Exact != tt.want.Exact || math.Abs(got.F1-tt.want.F1) > 1e-12 {
			t.Errorf("%q against %q: got %+v, want %+v", tt.output, tt.answers, got, tt.want)
		}
	}
}
