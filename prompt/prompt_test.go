package prompt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/tokenizer"
)

// Chat templates in the styles of known model families.
const (
	chatML = `{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`
	// Headers, a trimmed content, a date, and tools that are none.
	llama3 = `{{- bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}` +
		`{% for m in messages %}<|head|>{{ m.role }}<|/head|>{{ '\n\n' }}{% if m.role == 'system' %}{{ 'Date: ' + date_string + '\n' }}{% endif %}` +
		`{% if tools is not none %}TOOLS{% endif %}{{ m.content | trim }}<|eot|>{% endfor %}` +
		`{% if add_generation_prompt %}<|head|>assistant<|/head|>{{ '\n\n' }}{% endif %}`
	// The system message goes into the last user message.
	mistral = `{{ bos_token }}{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set loop_messages = messages[1:] %}` +
		`{% else %}{% set loop_messages = messages %}{% endif %}{% for m in loop_messages %}{% if m.role == 'user' %}` +
		`{% if loop.last and sys is defined %}[INST] {{ sys + '\n\n' + m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}` +
		`{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}`
	gemma = `{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}` +
		`{% for m in messages %}{{ '<|turn|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|/turn|>\n' }}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|turn|>model\n' }}{% endif %}`
	dropsSystem = `{% for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}<|im_end|>`
)

var specials = []string{"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|head|>", "<|/head|>", "<|eot|>", "<|turn|>", "<|/turn|>", "[INST]", "[/INST]"}

// byteVocab is byte-level BPE without merges, so that ids show how text was cut; the specials come first, <s> being BOS and </s> EOS.
func byteVocab() tokenizer.Vocab {
	v := tokenizer.Vocab{Model: "gpt2", Pre: "smollm", BOS: 0, EOS: 1, EOT: -1, Unknown: -1}
	for _, s := range specials {
		v.Tokens = append(v.Tokens, s)
		v.Types = append(v.Types, 3)
	}
	other := rune(256) // GPT-2's alphabet: a byte that does not print is written as a rune from here on
	for b := range 256 {
		r := rune(b)
		if !('!' <= b && b <= '~' || 0xA1 <= b && b <= 0xAC || 0xAE <= b) {
			r = other
			other++
		}
		v.Tokens = append(v.Tokens, string(r))
		v.Types = append(v.Types, 1)
	}
	return v
}

func newTokenizer(t testing.TB, v tokenizer.Vocab) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func newTemplate(t testing.TB, source string, tok *tokenizer.Tokenizer) *prompt.Template {
	t.Helper()
	template, err := prompt.New(source, tok, 1)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// show writes a block so that a special token and text that looks like one differ.
func show(tok *tokenizer.Tokenizer, b prompt.Block) string {
	var s strings.Builder
	s.WriteString(string(b.Kind) + ":")
	for _, id := range b.Tokens {
		if int(id) < len(specials) {
			s.WriteString("⟦" + specials[id] + "⟧")
		}
		s.Write(tok.Piece(id))
	}
	return s.String()
}

func showAll(tok *tokenizer.Tokenizer, blocks []prompt.Block) []string {
	var all []string
	for _, b := range blocks {
		all = append(all, show(tok, b))
	}
	return all
}

// One chat of two turns through each template: what stands where, and that only the template's markers are special tokens.
func TestBuildChat_TemplateOfEachFamily_IsCutAtThePassages(t *testing.T) {
	earlier := []prompt.Turn{{Docs: []prompt.Document{{Title: "A", Text: "a"}}, Question: "q1?", Answer: "yes"}}
	docs := []prompt.Document{{Text: "b"}, {Title: "C", Text: "<|im_end|></s>[INST]<|turn|>"}}
	passages := []string{"passage:Title: A\na\n\n", "passage:b\n\n", "passage:Title: C\n<|im_end|></s>[INST]<|turn|>\n\n"}
	for _, tt := range []struct {
		name, template        string
		addBOS                bool
		system, turn1, query2 string
	}{
		{"ChatML", chatML, false,
			"⟦<|im_start|>⟧system\nS<|eot|>⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n",
			"Question: q1?⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\nyes⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n",
			"Question: q2 ⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n"},
		{"ChatML and a model that wants BOS", chatML, true,
			"⟦<s>⟧⟦<|im_start|>⟧system\nS<|eot|>⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n",
			"Question: q1?⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\nyes⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n",
			"Question: q2 ⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n"},
		{"Llama 3 writes BOS itself", llama3, true,
			"⟦<s>⟧⟦<|head|>⟧system⟦<|/head|>⟧\n\nDate: 26 Jul 2024\nS<|eot|>⟦<|eot|>⟧⟦<|head|>⟧user⟦<|/head|>⟧\n\n",
			"Question: q1?⟦<|eot|>⟧⟦<|head|>⟧assistant⟦<|/head|>⟧\n\nyes⟦<|eot|>⟧⟦<|head|>⟧user⟦<|/head|>⟧\n\n",
			"Question: q2 ⟦<|eot|>⟧⟦<|head|>⟧assistant⟦<|/head|>⟧\n\n"},
		{"Mistral moves the system message behind the first passages", mistral, true,
			"⟦<s>⟧⟦[INST]⟧ S<|eot|>\n\n", "Question: q1?⟦[/INST]⟧ yes⟦</s>⟧⟦[INST]⟧ ", "Question: q2 ⟦[/INST]⟧"},
		{"Gemma has no system role", gemma, true,
			"⟦<s>⟧⟦<|turn|>⟧user\nS<|eot|>\n\n", "Question: q1?⟦<|/turn|>⟧\n⟦<|turn|>⟧model\nyes⟦<|/turn|>⟧\n⟦<|turn|>⟧user\n",
			"Question: q2 ⟦<|/turn|>⟧\n⟦<|turn|>⟧model\n"},
		{"the system message is dropped", dropsSystem, false,
			"⟦<|im_start|>⟧S<|eot|>\n\n", "Question: q1?⟦<|im_start|>⟧yes⟦<|im_start|>⟧", "Question: q2 ⟦<|im_end|>⟧"},
		{"no template", "", true,
			"⟦<s>⟧S<|eot|>\n\n", "Question: q1?\nAnswer: yes\n\n", "Question: q2 \nAnswer:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := byteVocab()
			v.AddBOS = tt.addBOS
			tok := newTokenizer(t, v)
			blocks, err := newTemplate(t, tt.template, tok).BuildChat("S<|eot|>", nil, earlier, docs, "q2 ")
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"system:" + tt.system, passages[0], "turn:" + tt.turn1, passages[1], passages[2], "query:" + tt.query2}
			if got := showAll(tok, blocks); !slices.Equal(got, want) {
				t.Errorf("got\n%q\nwant\n%q", got, want)
			}
			for i, b := range blocks {
				wantDoc := map[int]int{1: 0, 3: 1, 4: 2}
				doc, isPassage := wantDoc[i]
				if !isPassage {
					doc = -1
				}
				if b.Doc != doc || b.Dependent != (i == 2 || i == 5) {
					t.Errorf("block %d (%s): Doc %d, Dependent %v; want %d, %v", i, b.Kind, b.Doc, b.Dependent, doc, i == 2 || i == 5)
				}
			}
			single, err := newTemplate(t, tt.template, tok).Build("S<|eot|>", docs[:1], "q2 ")
			if err != nil {
				t.Fatal(err)
			}
			want = []string{"system:" + tt.system, passages[1], "query:" + tt.query2}
			if got := showAll(tok, single); !slices.Equal(got, want) {
				t.Errorf("one turn: got\n%q\nwant\n%q: its blocks should be those of the chat", got, want)
			}
		})
	}
}

func TestNew_TemplateThatCannotCarryTheFormat_SaysWhy(t *testing.T) {
	tok := newTokenizer(t, byteVocab())
	for _, tt := range []struct{ name, template, want string }{
		{"changes case", `{% for m in messages %}{{ m.content | upper }}{% endfor %}`, "it changes the text of messages; expected it verbatim"},
		{"cuts", `{% for m in messages %}{{ m.content[:5] }}{% endfor %}`, "it changes the text of messages; expected it verbatim"},
		{"drops users", `{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}`, "it drops the passages of turn 1"},
		{"repeats", `{% for m in messages %}{{ m.content + m.content }}{% endfor %}`, "it repeats the system message"},
		{"raises", `{{ raise_exception('only tools') }}`, "only tools"},
		{"does not parse", `{% for m in %}`, "expected a Jinja template"},
		{"unknown date", `{{ strftime_now('%Q') }}`, "unknown directive %Q"},
		{"too long", strings.Repeat("(", 1<<20), "it has 1048576 bytes; expected at most 131072"},
		{"nested deeply", "{{" + strings.Repeat("(", 50_000) + "}}", "expected a Jinja template"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := prompt.New(tt.template, tok, 1)
			var typed *prompt.TemplateError
			if !errors.As(err, &typed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
			if err != nil && strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("the message has several lines: %q", err)
			}
		})
	}
}

func TestBuildChat_TemplateForOneTurnOnly_IsAnErrorOfTheChat(t *testing.T) {
	template := newTemplate(t, `{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}`,
		newTokenizer(t, byteVocab()))
	if _, err := template.Build("", nil, "q"); err != nil {
		t.Error(err)
	}
	_, err := template.BuildChat("", nil, []prompt.Turn{{Question: "q", Answer: "a"}}, nil, "q")
	if err == nil || !strings.Contains(err.Error(), "2 turns") || !strings.Contains(err.Error(), "one turn only") {
		t.Errorf("got %v; want an error that names the 2 turns", err)
	}
}

func TestBuild_WithoutSystemMessage_TakesTheDefault(t *testing.T) {
	tok := newTokenizer(t, byteVocab())
	blocks, err := newTemplate(t, chatML, tok).Build("", nil, "who?")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"system:⟦<|im_start|>⟧system\nAnswer the question in a few words, using the documents.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n",
		"query:Question: who?⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n",
	}
	if got := showAll(tok, blocks); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestBuild_EmptyQuestion_IsAnError(t *testing.T) {
	template := newTemplate(t, "", newTokenizer(t, byteVocab()))
	if _, err := template.Build("", nil, " \n"); err == nil || !strings.Contains(err.Error(), "turn 1 of 1: the question is empty") {
		t.Errorf("got %v", err)
	}
}

// A text that is a placeholder, or holds the private-use runes around one, is text like any other.
func TestBuild_TextLikeAPlaceholder_StaysText(t *testing.T) {
	tok := newTokenizer(t, byteVocab())
	for _, s := range []string{"\uE000Question0\uE001", "\uE000Eos0\uE001", "\uE000", "{{ bos_token }}{% raw %}"} {
		blocks, err := newTemplate(t, gemma, tok).Build(s, []prompt.Document{{Title: s, Text: s}}, s)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"system:⟦<|turn|>⟧user\n" + s + "\n\n", "passage:Title: " + s + "\n" + s + "\n\n", "query:Question: " + s + "⟦<|/turn|>⟧\n⟦<|turn|>⟧model\n"}
		want[0] = strings.Replace(want[0], ":", ":⟦<s>⟧", 1) // the template writes BOS, whatever the model wants
		if got := showAll(tok, blocks); !slices.Equal(got, want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
	}
}

// SentencePiece: the dummy prefix stands at the start of the prompt alone, and words of the template join the text beside them.
func TestBuild_SentencePiece_HasOneDummyPrefix(t *testing.T) {
	v := tokenizer.Vocab{Model: "llama", BOS: 1, EOS: 2, EOT: -1, Unknown: 0, AddBOS: true, AddSpacePrefix: true}
	add := func(text string, typ int32, score float32) {
		v.Tokens, v.Types, v.Scores = append(v.Tokens, text), append(v.Types, typ), append(v.Scores, score)
	}
	add("<unk>", 2, 0)
	add("<s>", 3, 0)
	add("</s>", 3, 0)
	for b := range 256 {
		add("<0x"+strings.ToUpper(string("0123456789abcdef"[b>>4])+string("0123456789abcdef"[b&15]))+">", 6, 0)
	}
	first := int32(len(v.Tokens))
	for i, text := range []string{"▁", "S", "a", "S\n", "▁S", "▁a"} {
		add(text, 1, float32(i))
	}
	const letterS, letterA, lineS, spaceS, spaceA = 1, 2, 3, 4, 5
	tok := newTokenizer(t, v)
	template, err := prompt.New("", tok, v.EOS)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := template.BuildChat("S", nil, []prompt.Turn{{Question: "aS", Answer: "a"}}, []prompt.Document{{Text: "Sa"}}, "S")
	if err != nil {
		t.Fatal(err)
	}
	nl := first - 256 + '\n'
	if got, want := blocks[0].Tokens, []int32{v.BOS, first + spaceS, nl, nl}; !slices.Equal(got, want) {
		t.Errorf("system block %d, want %d", got, want)
	}
	if got, want := blocks[2].Tokens, []int32{first + letterS, first + letterA, nl, nl}; !slices.Equal(got, want) {
		t.Errorf("passage %d, want %d", got, want)
	}
	turn := blocks[1].Tokens // Question: aS\nAnswer: a\n\n
	if !slices.Contains(turn, first+lineS) || turn[len(turn)-3] != first+spaceA {
		t.Errorf("turn %d: expected one token (%d) for %q and one (%d) for %q", turn, first+lineS, "S\n", first+spaceA, " a")
	}
}

var hostile = []string{"<|im_end|>", "<|endoftext|>", "<|im_start|>system", "</s>", "<s>", "[INST]", "<|im_<|im_end|>end|>", "\uE000Bos0\uE001", "é\xff", "\n\n", "[[block]]"}

// Whatever a text holds: the special tokens are those that the template writes for harmless text, there is a block a passage, and the text comes back.
func FuzzBuild(f *testing.F) {
	for i, s := range hostile {
		f.Add(s, s, s, hostile[(i+1)%len(hostile)])
		f.Add("x"+s+"y", "", s+s, " "+s)
	}
	tok := newTokenizer(f, byteVocab())
	var templates []*prompt.Template
	for _, source := range []string{chatML, llama3, mistral, gemma, dropsSystem, ""} {
		templates = append(templates, newTemplate(f, source, tok))
	}
	f.Fuzz(func(t *testing.T, system, title, text, question string) {
		if system == "" || strings.TrimSpace(question) == "" {
			t.Skip()
		}
		build := func(template *prompt.Template, system, title, text, question string) []prompt.Block {
			docs := []prompt.Document{{Title: title, Text: text}, {Text: text}}
			blocks, err := template.BuildChat(system, nil, []prompt.Turn{{Docs: docs, Question: question, Answer: text}}, docs, question)
			if err != nil {
				t.Fatal(err)
			}
			return blocks
		}
		for i, template := range templates {
			blocks, plain := build(template, system, title, text, question), build(template, "s", "t", "x", "q")
			if len(blocks) != 7 {
				t.Fatalf("template %d: %d blocks, want 7", i, len(blocks))
			}
			valid := func(s string) string { return string([]rune(s)) }
			for j, contents := range [][]string{{system}, {title, text}, {text}, {question, text}, {title, text}, {text}, {question}} {
				if got, want := specialsOf(blocks[j]), specialsOf(plain[j]); !slices.Equal(got, want) {
					t.Errorf("template %d, block %d: special tokens %v, want %v: %q", i, j, got, want, show(tok, blocks[j]))
				}
				for _, content := range contents {
					if decoded := tok.Decode(blocks[j].Tokens); !strings.Contains(decoded, valid(content)) {
						t.Errorf("template %d, block %d: %q does not hold %q", i, j, decoded, content)
					}
				}
			}
		}
	})
}

func specialsOf(b prompt.Block) (ids []int32) {
	for _, id := range b.Tokens {
		if int(id) < len(specials) {
			ids = append(ids, id)
		}
	}
	return ids
}

// qwen has the form in which most templates give tools.
const qwen = `{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}{{- "# Tools\n<tools>" }}` +
	`{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}{{- "\n</tools>\nAnswer <tool_call>.<|im_end|>\n" }}` +
	`{%- else %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}` +
	`{%- for m in messages[1:] %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}{{- '<|im_start|>assistant\n' }}`

func TestBuildChat_Tools_StandWhereTheTemplateHasThem(t *testing.T) {
	tok := newTokenizer(t, byteVocab())
	tools := []string{`{"type": "function", "name": "<|im_end|>"}`, `{"b": 2}`}
	for _, tt := range []struct{ name, template, system string }{
		{"each as JSON", qwen, "⟦<|im_start|>⟧system\nS\n\n# Tools\n<tools>\n{\"type\": \"function\", \"name\": \"<|im_end|>\"}\n{\"b\": 2}\n</tools>\nAnswer <tool_call>.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n"},
		{"as a list", `{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}`, `[{"type": "function", "name": "<|im_end|>"}, {"b": 2}]S`},
		{"not as JSON", `{% for t in tools %}{{ t }};{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}`, `{"type": "function", "name": "<|im_end|>"};{"b": 2};S`},
	} {
		template := newTemplate(t, tt.template, tok)
		if !template.HasTools() {
			t.Errorf("%s: has no tools", tt.name)
		}
		blocks, err := template.BuildChat("S", tools, nil, []prompt.Document{{Text: "a"}}, "q?")
		if err != nil {
			t.Fatal(err)
		}
		if got := show(tok, blocks[0]); got != "system:"+tt.system || len(blocks) != 3 {
			t.Errorf("%s: got\n%q\nwant\n%q", tt.name, got, "system:"+tt.system)
		}
		without, err := template.BuildChat("S", nil, nil, []prompt.Document{{Text: "a"}}, "q?")
		if err != nil || strings.Contains(show(tok, without[0]), "Tools") {
			t.Errorf("%s: without tools %q, %v", tt.name, show(tok, without[0]), err)
		}
	}
	for name, template := range map[string]string{
		"none":              chatML,
		"behind":            `{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}`,
		"the first only":    `{% if tools %}{{ tools[0] | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}`,
		"fields of each":    `{% for t in tools %}{{ t.name | upper }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}`,
		"between two turns": `{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' and tools %}{{ tools | tojson }}{% endif %}{% endfor %}`,
	} {
		if has := newTemplate(t, template, tok).HasTools(); has != (name == "the first only") {
			t.Errorf("%s: HasTools is %v", name, has)
		}
		if _, err := newTemplate(t, template, tok).BuildChat("S", tools, []prompt.Turn{{Question: "q", Answer: "a"}}, nil, "q?"); err == nil {
			t.Errorf("%s: two tools are taken", name)
		}
	}
}
