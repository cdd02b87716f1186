package prompt

import (
	"fmt"
	"strings"
	"time"

	"github.com/ardanlabs/jinja"
)

// maxTemplate bounds a template: the parser recurses with its nesting, in time that grows with the square. The largest in use have some 40 KB.
const maxTemplate = 128 << 10

func compile(source string) (*jinja.Template, error) {
	if len(source) > maxTemplate {
		return nil, &TemplateError{Problem: fmt.Sprintf("it has %d bytes; expected at most %d", len(source), maxTemplate)}
	}
	chat, err := guard(func() (*jinja.Template, error) { return jinja.Compile(source) })
	if err != nil {
		return nil, &TemplateError{Problem: fmt.Sprintf("%v; expected a Jinja template", err)}
	}
	return chat, nil
}

// render gives the template what Python's transformers library gives it: absent tools and documents are none there, not undefined.
func render(chat *jinja.Template, messages, tools []jinja.Value) (string, error) {
	given := jinja.None()
	if len(tools) > 0 {
		given = jinja.NewList(tools)
	}
	return guard(func() (string, error) {
		return chat.RenderValues(map[string]jinja.Value{
			"messages":              jinja.NewList(messages),
			"add_generation_prompt": jinja.NewBool(true),
			"bos_token":             jinja.NewString(placeholder("Bos", 0)),
			"eos_token":             jinja.NewString(placeholder("Eos", 0)),
			"tools":                 given,
			"documents":             jinja.None(),
			"strftime_now":          jinja.NewCallable("strftime_now", strftimeFixed),
		})
	})
}

// guard makes an error of a panic in the template engine: a template comes from a file, and no file may end the process.
func guard[T any](call func() (T, error)) (result T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the template engine failed: %v", r)
		}
	}()
	return call()
}

// today is every day of a template that asks for one. A real date would give the system block another id each morning and make
// evaluation records depend on the day they were made; this is the date that Llama 3 templates themselves fall back to.
var today = time.Date(2024, time.July, 26, 0, 0, 0, 0, time.UTC)

// directives gives Go's layouts for Python's strftime directives.
var directives = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'A': "Monday", 'a': "Mon", 'j': "002",
	'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'z': "-0700", 'Z': "MST", 'F': "2006-01-02", 'T': "15:04:05",
}

// strftimeFixed formats today. It replaces the engine's function, whose text between directives may be taken for one of Go's.
func strftimeFixed(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) {
	if len(args) != 1 || !args[0].IsString() {
		return jinja.Undefined(), fmt.Errorf("strftime_now: expected one argument, a format")
	}
	format := args[0].AsString()
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			out.WriteByte(format[i])
			continue
		}
		i++
		layout, known := directives[format[i]]
		switch {
		case format[i] == '%':
			out.WriteByte('%')
		case known:
			out.WriteString(today.Format(layout))
		default:
			return jinja.Undefined(), fmt.Errorf("strftime_now: format %q: unknown directive %%%c", format, format[i])
		}
	}
	return jinja.NewString(out.String()), nil
}
