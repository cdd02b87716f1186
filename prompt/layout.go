package prompt

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ardanlabs/jinja"

	"github.com/tessera-llm/tessera/tokenizer"
)

// plainTemplate lays out the prompt of a model whose file carries no chat template.
const plainTemplate = `{% for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\n\n' }}
{%- elif message.role == 'user' %}{{ message.content + '\nAnswer:' }}
{%- else %}{{ ' ' + message.content + '\n\n' }}
{%- endif %}{% endfor %}`

// A slot says what stands at one place of a layout.
type slot int

const (
	words   slot = iota // text of the template
	special             // a special token that the template wrote
	bosToken
	eosToken
	systemText
	passages
	questionText
	answerText
	toolText
)

// A part is one slot, with what it needs: words their text, a special token its id, the texts from outside their turn.
type part struct {
	slot slot
	text string
	id   int32
	turn int
}

// A TemplateError says why a model's chat template cannot carry this format.
type TemplateError struct {
	Turns   int    // of the chat that was rendered; 0: none was
	Problem string // what was found and what was expected
}

func (e *TemplateError) Error() string {
	chat := ""
	if e.Turns > 1 {
		chat = fmt.Sprintf(" with %d turns", e.Turns)
	}
	return fmt.Sprintf("prompt: chat template (tokenizer.chat_template)%s: %s", chat, e.Problem)
}

// layOut renders the template for a chat with so many earlier turns and tools, and cuts it at its placeholders.
// Where a system message of its own does not come out before the first passages, it moves into the first user message.
func layOut(chat *jinja.Template, earlier, tools int) ([]part, error) {
	parts, err := layOutMessages(chat, earlier, tools, false)
	if err == nil {
		return parts, nil
	}
	parts, again := layOutMessages(chat, earlier, tools, true)
	if again == nil {
		return parts, nil
	}
	problem := again.Error()
	if err.Error() != problem {
		problem = fmt.Sprintf("with a system message: %v; with its text in the first user message instead: %v", err, again)
	}
	return nil, &TemplateError{Turns: earlier + 1, Problem: problem}
}

func layOutMessages(chat *jinja.Template, earlier, tools int, systemInUser bool) ([]part, error) {
	messages, want := placeholders(earlier, systemInUser)
	list := make([]jinja.Value, tools)
	for i := range list {
		list[i] = jinja.NewString(placeholder("Tool", i))
	}
	rendered, err := render(chat, messages, list)
	if err != nil {
		return nil, fmt.Errorf("rendering it failed: %w", err)
	}
	return cut(rendered, want, tools)
}

// Placeholders stand between two private-use runes; the mixed case of their names shows a template that changes the case of messages.
const (
	opening = "\uE000"
	closing = "\uE001"
)

func placeholder(name string, turn int) string { return opening + name + strconv.Itoa(turn) + closing }

// placeholders gives the messages to render, and the parts in the order in which they have to come out, by their placeholder in text.
func placeholders(earlier int, systemInUser bool) (messages []jinja.Value, want []part) {
	slotOf := func(s slot, name string, turn int) string {
		text := placeholder(name, turn)
		want = append(want, part{slot: s, text: text, turn: turn})
		return text
	}
	prefix := ""
	if system := slotOf(systemText, "System", 0); systemInUser {
		prefix = system + "\n\n"
	} else {
		messages = append(messages, message("system", system))
	}
	for turn := range earlier + 1 {
		content := prefix + slotOf(passages, "Passages", turn) + slotOf(questionText, "Question", turn)
		messages = append(messages, message("user", content))
		if turn < earlier {
			messages = append(messages, message("assistant", slotOf(answerText, "Answer", turn)))
		}
		prefix = ""
	}
	return messages, want
}

// message is a dict that keeps its order, as a template that prints it whole expects.
func message(role, content string) jinja.Value {
	v := jinja.NewDict()
	v.AsDict().Set("role", jinja.NewString(role))
	v.AsDict().Set("content", jinja.NewString(content))
	return v
}

// cut splits rendered text at its placeholders, which have to be those of want, in that order, and before the first passages those of tools, each of
// them a string that the template wrote as JSON: its quotes go.
func cut(rendered string, want []part, tools int) ([]part, error) {
	var parts []part
	all, tool := want, 0
	for {
		text, rest, found := strings.Cut(rendered, opening)
		if text != "" {
			parts = append(parts, part{slot: words, text: text})
		}
		if !found {
			break
		}
		name, rest, _ := strings.Cut(rest, closing)
		name = opening + name + closing
		known := func(p part) bool { return p.text == name }
		switch {
		case tool < tools && name == placeholder("Tool", tool) && len(want) > 0 && want[0].slot <= passages && want[0].turn == 0:
			if last := len(parts) - 1; last >= 0 && parts[last].slot == words && strings.HasSuffix(parts[last].text, `"`) && strings.HasPrefix(rest, `"`) {
				parts[last].text, rest = strings.TrimSuffix(parts[last].text, `"`), rest[1:]
			}
			parts = append(parts, part{slot: toolText, turn: tool})
			tool++
		case name == placeholder("Bos", 0):
			parts = append(parts, part{slot: bosToken})
		case name == placeholder("Eos", 0):
			parts = append(parts, part{slot: eosToken})
		case len(want) > 0 && known(want[0]):
			parts = append(parts, want[0])
			want = want[1:]
		case slices.ContainsFunc(want, known):
			return nil, fmt.Errorf("it gives the %s before the %s; expected the messages in order", nameOf(name), nameOf(want[0].text))
		case slices.ContainsFunc(all, known):
			return nil, fmt.Errorf("it repeats the %s; expected every message once", nameOf(name))
		default:
			return nil, fmt.Errorf("it changes the text of messages; expected it verbatim")
		}
		rendered = rest
	}
	if tool < tools {
		return nil, fmt.Errorf("it tells of %d of %d tools before the passages; expected all, in order", tool, tools)
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("it drops the %s; expected every message", nameOf(want[0].text))
	}
	return parts, nil
}

// nameOf makes "question of turn 1" of a placeholder.
func nameOf(placeholder string) string {
	name := strings.Trim(placeholder, opening+closing)
	letters := strings.TrimRight(name, "0123456789")
	if letters == "System" {
		return "system message"
	}
	turn, _ := strconv.Atoi(name[len(letters):])
	return fmt.Sprintf("%s of turn %d", strings.ToLower(letters), turn+1)
}

// resolve puts ids for the special tokens that the template wrote or asked for, and the beginning-of-sequence token
// before everything if the model wants one and the template has not written it.
func resolve(parts []part, tok *tokenizer.Tokenizer, eos int32) []part {
	var out []part
	for _, p := range parts {
		switch p.slot {
		case words:
			out = append(out, splitSpecial(p.text, tok)...)
		case bosToken:
			if id, ok := tok.BOS(); ok {
				out = append(out, part{slot: special, id: id})
			}
		case eosToken:
			if eos >= 0 {
				out = append(out, part{slot: special, id: eos})
			}
		default:
			out = append(out, p)
		}
	}
	bos, ok := tok.BOS()
	if ok && tok.AddBOS() && (len(out) == 0 || out[0].slot != special || out[0].id != bos) {
		out = append([]part{{slot: special, id: bos}}, out...)
	}
	return out
}

// splitSpecial finds the special tokens in text of the template.
func splitSpecial(text string, tok *tokenizer.Tokenizer) []part {
	var parts []part
	for text != "" {
		at, n, id := tok.NextSpecial(text)
		if at > 0 {
			parts = append(parts, part{slot: words, text: text[:at]})
		}
		if n > 0 {
			parts = append(parts, part{slot: special, id: id})
		}
		text = text[at+n:]
	}
	return parts
}
