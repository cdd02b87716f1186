package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A SchemaError says what in a schema cannot be followed.
type SchemaError struct {
	Path string // as in #/properties/name
	What string
}

func (e *SchemaError) Error() string { return fmt.Sprintf("JSON schema: %s: %s", e.Path, e.What) }

// Bounds of a schema.
const (
	maxInstructions = 200_000
	maxRepeats      = 1_000 // of minItems, maxLength and their like
	maxSchemaDepth  = 64
)

// JSONObject is any JSON object.
func JSONObject() *Grammar {
	c := newCompiler()
	c.top(c.object)
	return &Grammar{c.code}
}

// JSONSchema is JSON by a schema of JSON Schema's common part: type, enum, const, properties, required, items, prefixItems, minItems,
// maxItems, minLength, maxLength, anyOf, oneOf, allOf of one, $ref into the schema itself or the innermost one with an $id, and booleans. Properties come in the schema's order, and others than those
// listed do not come. A keyword that would narrow what is allowed and is not among these is an error: text would break it.
func JSONSchema(schema []byte) (*Grammar, error) {
	root, err := parse(schema)
	if err != nil {
		return nil, &SchemaError{"#", err.Error()}
	}
	c := newCompiler()
	c.root, _ = root.(*object)
	c.top(func() { c.schema(root, "#", 0) })
	for len(c.pending) > 0 && c.err == nil { // schemas that others refer to, each once
		ref := c.pending[0]
		c.pending = c.pending[1:]
		c.called[ref.place] = len(c.code)
		c.root = ref.root
		c.schema(ref.schema, ref.path, 0)
		c.emit(instruction{op: opReturn})
	}
	for _, call := range c.calls {
		c.code[call.at].x = c.called[call.of]
	}
	if c.err != nil {
		return nil, c.err
	}
	return &Grammar{c.code}, nil
}

// A compiler writes the program of a schema.
type compiler struct {
	code    []instruction
	root    *object // what $ref is within: the innermost schema with an $id, or the whole; nil: that is no object
	err     error
	pending []reference
	calls   []call
	called  map[place]int // where the program of a schema that others refer to begins

	values int // where that of any value begins; 0: not written
}

// A place is what $ref names.
type place struct {
	root *object
	path string
}

type reference struct {
	place
	schema any
}

type call struct {
	at int
	of place
}

func newCompiler() *compiler { return &compiler{called: map[place]int{}} }

// top writes the program of a whole text.
func (c *compiler) top(body func()) {
	c.space()
	body()
	c.emit(instruction{op: opEnd}) // no white space before it: the text is over at once
}

func (c *compiler) fail(path, format string, args ...any) {
	if c.err == nil {
		c.err = &SchemaError{path, fmt.Sprintf(format, args...)}
	}
}

func (c *compiler) emit(i instruction) int {
	if len(c.code) >= maxInstructions {
		c.fail("#", "is too large")
		return len(c.code) - 1
	}
	c.code = append(c.code, i)
	return len(c.code) - 1
}

// ---- the pieces of programs ----

func (c *compiler) literal(text string) {
	for i := range len(text) {
		var s set
		s.add(text[i], text[i])
		c.emit(instruction{op: opByte, set: s})
	}
}

// class is one byte of some ranges, each two bytes of the text.
func (c *compiler) class(ranges string) {
	var s set
	for i := 0; i+1 < len(ranges); i += 2 {
		s.add(ranges[i], ranges[i+1])
	}
	c.emit(instruction{op: opByte, set: s})
}

// either writes one of some pieces.
func (c *compiler) either(pieces ...func()) {
	var ends []int
	for i, piece := range pieces {
		if i == len(pieces)-1 {
			piece()
			break
		}
		split := c.emit(instruction{op: opSplit})
		c.code[split].x = len(c.code)
		piece()
		ends = append(ends, c.emit(instruction{op: opJump}))
		c.code[split].y = len(c.code)
	}
	for _, end := range ends {
		c.code[end].x = len(c.code)
	}
}

func (c *compiler) maybe(piece func()) { c.either(piece, func() {}) }

// many writes a piece as often as one likes.
func (c *compiler) many(piece func()) {
	split := c.emit(instruction{op: opSplit})
	c.code[split].x = len(c.code)
	piece()
	c.emit(instruction{op: opJump, x: split})
	c.code[split].y = len(c.code)
}

// times writes a piece from least to most times; most below 0: as often as one likes.
func (c *compiler) times(least, most int, piece func()) {
	for range least {
		piece()
	}
	if most < 0 {
		c.many(piece)
		return
	}
	var ends []int
	for range most - least {
		split := c.emit(instruction{op: opSplit})
		c.code[split].x = len(c.code)
		piece()
		ends = append(ends, split)
	}
	for _, end := range ends {
		c.code[end].y = len(c.code)
	}
}

// space is what may stand between tokens of JSON: nothing, a space, or a new line with some indentation. More would let a model go on
// with white space for ever.
func (c *compiler) space() {
	c.maybe(func() {
		c.either(
			func() { c.literal(" ") },
			func() { c.literal("\n"); c.times(0, 16, func() { c.class("  \t\t") }) },
		)
	})
}

// character is one of a string's, in UTF-8 or escaped.
func (c *compiler) character() {
	tail := func() { c.class("\x80\xbf") }
	c.either(
		func() { c.class("\x20\x21\x23\x5b\x5d\x7f") },
		func() {
			c.literal(`\`)
			c.either(
				func() { c.class(`""\\//bbffnnrrtt`) },
				func() { c.literal("u"); c.times(4, 4, func() { c.class("09AFaf") }) },
			)
		},
		func() { c.class("\xc2\xdf"); tail() },
		func() { c.literal("\xe0"); c.class("\xa0\xbf"); tail() },
		func() { c.class("\xe1\xec\xee\xef"); tail(); tail() },
		func() { c.literal("\xed"); c.class("\x80\x9f"); tail() },
		func() { c.literal("\xf0"); c.class("\x90\xbf"); tail(); tail() },
		func() { c.class("\xf1\xf3"); tail(); tail(); tail() },
		func() { c.literal("\xf4"); c.class("\x80\x8f"); tail(); tail() },
	)
}

func (c *compiler) text(least, most int) {
	c.literal(`"`)
	c.times(least, most, c.character)
	c.literal(`"`)
}

func (c *compiler) integer() {
	c.maybe(func() { c.literal("-") })
	c.either(
		func() { c.literal("0") },
		func() { c.class("19"); c.times(0, 17, func() { c.class("09") }) },
	)
}

func (c *compiler) number() {
	c.integer()
	c.maybe(func() { c.literal("."); c.times(1, 17, func() { c.class("09") }) })
	c.maybe(func() {
		c.class("EEee")
		c.maybe(func() { c.class("++--") })
		c.times(1, 2, func() { c.class("09") }) // so that a float64 can hold it
	})
}

func (c *compiler) boolean() {
	c.either(func() { c.literal("true") }, func() { c.literal("false") })
}

// list writes items between brackets, with commas.
func (c *compiler) list(open, end string, least, most int, item func()) {
	c.literal(open)
	c.space()
	rest := func() {
		item()
		c.space()
		further := -1
		if most >= 0 {
			further = most - 1
		}
		c.times(max(least-1, 0), further, func() { c.literal(","); c.space(); item(); c.space() })
	}
	switch {
	case most == 0:
	case least == 0:
		c.maybe(rest)
	default:
		rest()
	}
	c.literal(end)
}

// object is any object, value anything.
func (c *compiler) object() {
	c.list("{", "}", 0, -1, func() { c.text(0, -1); c.space(); c.literal(":"); c.space(); c.value() })
}

// value calls the program of any value, which is written once.
func (c *compiler) value() {
	if c.values == 0 {
		over := c.emit(instruction{op: opJump})
		c.values = len(c.code)
		c.either(
			func() { c.text(0, -1) },
			c.number,
			c.boolean,
			func() { c.literal("null") },
			func() { c.list("[", "]", 0, -1, func() { c.emit(instruction{op: opCall, x: c.values}) }) },
			c.object,
		)
		c.emit(instruction{op: opReturn})
		c.code[over].x = len(c.code)
	}
	c.emit(instruction{op: opCall, x: c.values})
}

// ---- schemas ----

// schema writes what a schema allows.
func (c *compiler) schema(s any, path string, depth int) {
	if c.err != nil {
		return
	}
	if depth > maxSchemaDepth {
		c.fail(path, "is nested more than %d deep", maxSchemaDepth)
		return
	}
	if allowed, ok := s.(bool); ok {
		if !allowed {
			c.fail(path, "is false: nothing would do")
		}
		c.value()
		return
	}
	o, ok := s.(*object)
	if !ok {
		c.fail(path, "found %T, expected an object", s)
		return
	}
	for _, key := range o.keys {
		if !slices.Contains(understood, key) && !slices.Contains(described, key) {
			c.fail(path, "%s is not supported; supported are %s", key, strings.Join(understood, ", "))
			return
		}
	}
	if o.has("$id") {
		defer func(outer *object) { c.root = outer }(c.root)
		c.root = o
	}
	switch {
	case o.has("$ref"):
		c.reference(o, path)
	case o.has("const"):
		c.literal(plain(o.fields["const"]))
	case o.has("enum"):
		list, ok := o.fields["enum"].([]any)
		if !ok || len(list) == 0 {
			c.fail(path+"/enum", "expected a list of values")
			return
		}
		var pieces []func()
		for _, v := range list {
			pieces = append(pieces, func() { c.literal(plain(v)) })
		}
		c.either(pieces...)
	case o.has("anyOf"):
		c.anyOf(o, "anyOf", path, depth)
	case o.has("oneOf"):
		c.anyOf(o, "oneOf", path, depth)
	case o.has("allOf"):
		list, ok := o.fields["allOf"].([]any)
		if !ok || len(list) != 1 {
			c.fail(path+"/allOf", "is supported with one schema in it")
			return
		}
		c.schema(list[0], path+"/allOf/0", depth+1)
	default:
		c.types(o, path, depth)
	}
}

// understood are the keywords that decide what is allowed, described those that do not.
var (
	understood = []string{"type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "$ref"}
	described  = []string{"$schema", "$id", "$defs", "definitions", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format", "strict", "name"}
)

func (c *compiler) anyOf(o *object, key, path string, depth int) {
	list, ok := o.fields[key].([]any)
	if !ok || len(list) == 0 {
		c.fail(path+"/"+key, "expected a list of schemas")
		return
	}
	var pieces []func()
	for i, s := range list {
		pieces = append(pieces, func() { c.schema(s, fmt.Sprintf("%s/%s/%d", path, key, i), depth+1) })
	}
	c.either(pieces...)
}

// reference calls the program of another part of the schema.
func (c *compiler) reference(o *object, path string) {
	ref, _ := o.fields["$ref"].(string)
	if !strings.HasPrefix(ref, "#") {
		c.fail(path+"/$ref", "%q is outside of this schema", ref)
		return
	}
	to := place{c.root, ref}
	if _, known := c.called[to]; !known {
		var at any = c.root
		for _, step := range strings.Split(strings.Trim(ref[1:], "/"), "/") {
			if step == "" {
				continue
			}
			step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
			inner, ok := at.(*object)
			if !ok || !inner.has(step) {
				c.fail(path+"/$ref", "%q is not in this schema", ref)
				return
			}
			at = inner.fields[step]
		}
		c.called[to] = -1
		c.pending = append(c.pending, reference{to, at})
	}
	c.calls = append(c.calls, call{c.emit(instruction{op: opCall}), to})
}

// types writes what the type, or the types, of a schema allow.
func (c *compiler) types(o *object, path string, depth int) {
	var names []string
	switch t := o.fields["type"].(type) {
	case string:
		names = []string{t}
	case []any:
		for _, name := range t {
			text, _ := name.(string)
			names = append(names, text)
		}
	case nil:
		switch {
		case o.has("properties"):
			names = []string{"object"}
		case o.has("items") || o.has("prefixItems"):
			names = []string{"array"}
		default:
			c.value()
			return
		}
	}
	if len(names) == 0 {
		c.fail(path+"/type", "expected a type or a list of them")
		return
	}
	var pieces []func()
	for _, name := range names {
		piece := map[string]func(){
			"string":  func() { least, most := c.bounds(o, "minLength", "maxLength", path); c.text(least, most) },
			"integer": c.integer,
			"number":  c.number,
			"boolean": c.boolean,
			"null":    func() { c.literal("null") },
			"array":   func() { c.array(o, path, depth) },
			"object":  func() { c.properties(o, path, depth) },
		}[name]
		if piece == nil {
			c.fail(path+"/type", "%q is no type of JSON", name)
			return
		}
		pieces = append(pieces, piece)
	}
	c.either(pieces...)
}

// bounds are two keywords' numbers, 0 and -1 where they are missing.
func (c *compiler) bounds(o *object, low, high, path string) (least, most int) {
	number := func(key string, missing int) int {
		v, ok := o.fields[key]
		if !ok {
			return missing
		}
		n, err := v.(json.Number)
		i, bad := n.Int64()
		if !err || bad != nil || i < 0 || i > maxRepeats {
			c.fail(path+"/"+key, "found %v, expected a number from 0 to %d", v, maxRepeats)
			return max(missing, 0)
		}
		return int(i)
	}
	least, most = number(low, 0), number(high, -1)
	if most >= 0 && most < least {
		c.fail(path, "%s is below %s", high, low)
		most = least
	}
	return least, most
}

func (c *compiler) array(o *object, path string, depth int) {
	if prefix, ok := o.fields["prefixItems"].([]any); ok { // as many as there are, and no more
		c.literal("[")
		c.space()
		for i, s := range prefix {
			if i > 0 {
				c.literal(",")
				c.space()
			}
			c.schema(s, fmt.Sprintf("%s/prefixItems/%d", path, i), depth+1)
			c.space()
		}
		c.literal("]")
		return
	}
	least, most := c.bounds(o, "minItems", "maxItems", path)
	var items any = true
	if o.has("items") {
		items = o.fields["items"]
	}
	c.list("[", "]", least, most, func() { c.schema(items, path+"/items", depth+1) })
}

// properties writes an object: those required, and perhaps the others, in the schema's order.
func (c *compiler) properties(o *object, path string, depth int) {
	listed, _ := o.fields["properties"].(*object)
	if o.has("properties") && listed == nil {
		c.fail(path+"/properties", "expected an object")
		return
	}
	required := map[string]bool{}
	if list, ok := o.fields["required"].([]any); ok {
		for _, name := range list {
			text, _ := name.(string)
			if listed == nil || !listed.has(text) {
				c.fail(path+"/required", "%q is not among the properties", text)
				return
			}
			required[text] = true
		}
	} else if o.has("required") {
		c.fail(path+"/required", "expected a list of names")
		return
	}
	if listed == nil || len(listed.keys) == 0 {
		if extra, ok := o.fields["additionalProperties"].(bool); ok && !extra {
			c.literal("{")
			c.space()
			c.literal("}")
			return
		}
		var values any = true
		if o.has("additionalProperties") {
			values = o.fields["additionalProperties"]
		}
		c.list("{", "}", 0, -1, func() {
			c.text(0, -1)
			c.space()
			c.literal(":")
			c.space()
			c.schema(values, path+"/additionalProperties", depth+1)
		})
		return
	}
	// The parts: each property's name and value, once; then, from the last to the first, what comes when the properties before it are behind,
	// with none of them written, and with some, so that a comma is due.
	n := len(listed.keys)
	begin := c.emit(instruction{op: opJump})
	parts := make([]int, n)
	for i, name := range listed.keys {
		parts[i] = len(c.code)
		c.literal(plain(name))
		c.space()
		c.literal(":")
		c.space()
		c.schema(listed.fields[name], path+"/properties/"+name, depth+1)
		c.space()
		c.emit(instruction{op: opReturn})
	}
	end := len(c.code)
	c.literal("}")
	done := c.emit(instruction{op: opJump})
	none, some := end, end
	for i := n - 1; i >= 0; i-- {
		write := func(skipTo int, comma bool) int {
			at := len(c.code)
			if !required[listed.keys[i]] {
				c.emit(instruction{op: opSplit, x: at + 1, y: skipTo})
			}
			if comma {
				c.literal(",")
				c.space()
			}
			c.emit(instruction{op: opCall, x: parts[i]})
			c.emit(instruction{op: opJump, x: some})
			return at
		}
		none, some = write(none, false), write(some, true)
	}
	c.code[begin].x = len(c.code)
	c.literal("{")
	c.space()
	c.emit(instruction{op: opJump, x: none})
	c.code[done].x = len(c.code)
}

// An object is a JSON object that remembers the order of its keys.
type object struct {
	keys   []string
	fields map[string]any
}

func (o *object) has(key string) bool { _, ok := o.fields[key]; return ok }

// MarshalJSON writes the fields in their order.
func (o *object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(plain(key) + ":" + plain(o.fields[key]))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// plain is a value as JSON, without what browsers want escaped.
func plain(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // it was parsed from JSON
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// parse reads one JSON document: objects as *object, numbers as json.Number.
func parse(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if errors.Is(err, io.EOF) {
		err = errors.New("is no whole JSON document")
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the schema")
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	if depth > 4*maxSchemaDepth {
		return nil, fmt.Errorf("is nested too deep")
	}
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	delimiter, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if delimiter == '[' {
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	o := &object{fields: map[string]any{}}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("is no JSON: %w", err)
		}
		name := key.(string) // which the decoder sees to
		if o.has(name) {
			return nil, fmt.Errorf("has %q twice", name)
		}
		v, err := parseValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		o.keys, o.fields[name] = append(o.keys, name), v
	}
	_, err = d.Token()
	return o, err
}
