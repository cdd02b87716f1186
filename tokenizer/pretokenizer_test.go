package tokenizer

import (
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// The expressions as published with the models. They apply in sequence, each to what the one before cut.
var published = map[string][]*regexp2.Regexp{
	"gpt-2":     {regex(`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`)},
	"smollm":    {regex(`\p{N}`), regex(`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`)},
	"llama-bpe": {regex(`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`)},
	"qwen2":     {regex(`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`)},
}

func FuzzScanGPT2_AgreesWithThePublishedRegex(f *testing.F)   { fuzzScan(f, "gpt-2") }
func FuzzScanSmolLM_AgreesWithThePublishedRegex(f *testing.F) { fuzzScan(f, "smollm") }
func FuzzScanLlama3_AgreesWithThePublishedRegex(f *testing.F) { fuzzScan(f, "llama-bpe") }
func FuzzScanQwen2_AgreesWithThePublishedRegex(f *testing.F)  { fuzzScan(f, "qwen2") }

func fuzzScan(f *testing.F, name string) {
	for _, text := range texts {
		f.Add(text)
	}
	scan := preTokenizers[name].scan
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		var got []string
		for rest := text; rest != ""; {
			n := scan(rest)
			got = append(got, rest[:n])
			rest = rest[n:]
		}
		want := []string{text}
		if text == "" {
			want = nil
		}
		for _, re := range published[name] {
			want = cut(t, re, want)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q:\n got %q\nwant %q", text, got, want)
		}
	})
}

// Every pair and triple of what the expressions tell apart.
func TestScan_AllShortMixesOfClasses_AgreeWithThePublishedRegexes(t *testing.T) {
	units := []string{"a", "é", "1", "½", " ", "\t", "\u00a0", "\n", "\r", "'", "'s", "'LL", "-", "語", "😶\u200d", "\u0301"}
	for name, pre := range preTokenizers {
		t.Run(name, func(t *testing.T) {
			for _, a := range units {
				for _, b := range units {
					for _, c := range units {
						text := a + b + c + b + a
						var got []string
						for rest := text; rest != ""; {
							n := pre.scan(rest)
							got = append(got, rest[:n])
							rest = rest[n:]
						}
						want := []string{text}
						for _, re := range published[name] {
							want = cut(t, re, want)
						}
						if !slices.Equal(got, want) {
							t.Fatalf("%q:\n got %q\nwant %q", text, got, want)
						}
					}
				}
			}
		})
	}
}

// cut splits each part at the matches of re; what lies between matches stays a part of its own.
func cut(t *testing.T, re *regexp2.Regexp, parts []string) []string {
	t.Helper()
	var out []string
	for _, part := range parts {
		runes := []rune(part)
		at := 0
		match, err := re.FindRunesMatch(runes)
		for ; match != nil; match, err = re.FindNextMatch(match) {
			if match.Index > at {
				out = append(out, string(runes[at:match.Index]))
			}
			at = match.Index + match.Length
			out = append(out, match.String())
		}
		if err != nil {
			t.Fatal(err)
		}
		if at < len(runes) {
			out = append(out, string(runes[at:]))
		}
	}
	return out
}

func regex(s string) *regexp2.Regexp { return regexp2.MustCompile(s, regexp2.None) }

// texts are the seeds of all fuzz tests here.
var texts = []string{
	"", " ", "  ", "\n", "\r\n", " \n ", "a", "Hello, World!", "we'll they'LL I'm 'S 'tis ''s",
	"12345 and 3.14159, ½ of ١٢٣", "  two\tand\n\n three   ", "x = [1,2];\r\n\r\n", "日本語のテキスト", "e\u0301 und ﬁ",
	"🦙🚀😶‍🌫️ emoji", "<|im_end|>\n<|im_start|>system", "<s>[INST] </s> <unk> <0x0A>", "▁under▁", "a\u00a0b\u2003c\u0085d", "\x00\x04\x7f",
	"\xff\xfebad\xe2\x82", "aaaaaaaaaaaaaaaaaaaaaaaaa", "-- ''''\n\n\n  \t x",
}
