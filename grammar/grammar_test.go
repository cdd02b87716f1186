package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// accepts tells whether all of text is allowed, byte by byte, and may end there.
func accepts(g *Grammar, text string) bool {
	m := g.Matcher()
	for i := range len(text) {
		if !m.Allows([]byte(text[i : i+1])) {
			return false
		}
		m.Push([]byte(text[i : i+1]))
	}
	return m.Complete()
}

func TestJSONSchema_AllowsWhatItSays(t *testing.T) {
	for _, tt := range []struct {
		schema   string
		yes, not []string
	}{
		{`{"type":"string"}`, []string{`"a"`, `""`, `"ä€😀"`, `"a\"\\\u00e9"`, ` "x"`, "\n  \"x\""}, []string{`a`, `"`, `"a`, "\"\n\"", `"\x"`, `"\u12"`, "\"\xc3\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", `"a"b`, `"a" `}},
		{`{"type":"integer"}`, []string{`0`, `-1`, `120`}, []string{`01`, `1.0`, `+1`, `-`, `1e3`, ``}},
		{`{"type":"number"}`, []string{`0`, `-1.5`, `1e3`, `2.5E-10`}, []string{`.5`, `1.`, `1e`, `NaN`}},
		{`{"type":["boolean","null"]}`, []string{`true`, `false`, `null`}, []string{`tru`, `"true"`, `0`}},
		{`{"enum":["red","a<b",1,null,{"b":1,"a":[true]}]}`, []string{`"red"`, `"a<b"`, `1`, `null`, `{"b":1,"a":[true]}`}, []string{`"blue"`, `{"a":[true],"b":1}`, `12`}},
		{`{"const":"x"}`, []string{`"x"`}, []string{`"y"`, `x`}},
		{`{"type":"array","items":{"type":"integer"}}`, []string{`[]`, `[1]`, `[1, 2,3]`, "[\n  1\n]"}, []string{`[1,]`, `[,1]`, `["a"]`, `[1 2]`, `[1`}},
		{`{"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":2}`, []string{`[true]`, `[true,false]`}, []string{`[]`, `[true,true,true]`}},
		{`{"type":"array","maxItems":0}`, []string{`[]`}, []string{`[1]`}},
		{`{"type":"array","prefixItems":[{"type":"string"},{"type":"integer"}]}`, []string{`["a",1]`}, []string{`["a"]`, `[1,"a"]`, `["a",1,2]`}},
		{`{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"äöü"`}, []string{`"a"`, `"abcd"`}},
		{`{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name","age"],"additionalProperties":false}`,
			[]string{`{"name":"Ann","age":3}`, `{ "name": "Ann", "age": 3 }`}, []string{`{}`, `{"name":"Ann"}`, `{"age":3,"name":"Ann"}`, `{"name":"Ann","age":3,"x":1}`, `{"name":"Ann","age":3,}`}},
		{`{"properties":{"a":{"type":"integer"},"b":{"type":"integer"},"c":{"type":"integer"}},"required":["b"]}`,
			[]string{`{"b":1}`, `{"a":1,"b":2}`, `{"b":1,"c":2}`, `{"a":1,"b":2,"c":3}`}, []string{`{}`, `{"a":1}`, `{"a":1,"c":1}`, `{,"b":1}`, `{"b":1,}`, `{"a":1 "b":2}`}},
		{`{"properties":{"a":{"type":"integer"},"b":{"type":"integer"}}}`, []string{`{}`, `{"a":1}`, `{"b":1}`, `{"a":1,"b":1}`}, []string{`{,}`, `{"b":1,"a":1}`}},
		{`{"type":"object","additionalProperties":{"type":"integer"}}`, []string{`{}`, `{"x":1,"y":2}`}, []string{`{"x":"y"}`}},
		{`{"type":"object","additionalProperties":false}`, []string{`{}`}, []string{`{"x":1}`}},
		{`{"anyOf":[{"type":"integer"},{"type":"array","items":{"type":"integer"}}]}`, []string{`1`, `[1,2]`}, []string{`"1"`, `[[1]]`}},
		{`{"$ref":"#/$defs/tree","$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/tree"},{"type":"null"}]}},"required":["v","next"]}}}`,
			[]string{`{"v":1,"next":null}`, `{"v":1,"next":{"v":2,"next":null}}`}, []string{`{"v":1}`, `{"v":1,"next":{"v":2}}`}},
		{`{"$defs":{"x":{"type":"null"}},"anyOf":[{"$ref":"#/$defs/x"},{"$id":"a","$defs":{"x":{"type":"array","items":{"$ref":"#/$defs/y"}},"y":{"const":1}},"$ref":"#/$defs/x"},{"type":"array","prefixItems":[{"type":"string"},{"$ref":"#/$defs/x"}]}]}`,
			[]string{`null`, `[1,1]`, `["a",null]`}, []string{`[null]`, `["a",1]`}},
		{`{"allOf":[{"type":"null"}]}`, []string{`null`}, []string{`1`}},
		{`true`, []string{`1`, `{"a":[{}]}`}, []string{`{a:1}`}},
		{`{}`, []string{`[[[]]]`}, []string{`[[[]]`}},
	} {
		g, err := JSONSchema([]byte(tt.schema))
		if err != nil {
			t.Errorf("%s: %v", tt.schema, err)
			continue
		}
		for _, text := range tt.yes {
			if !accepts(g, text) {
				t.Errorf("%s does not allow %s", tt.schema, text)
			}
		}
		for _, text := range tt.not {
			if accepts(g, text) {
				t.Errorf("%s allows %s", tt.schema, text)
			}
		}
	}
}

func TestJSONObject_IsAnyObject(t *testing.T) {
	g := JSONObject()
	for text, want := range map[string]bool{`{}`: true, `{"a": {"b": [1, "x", null, true, -2.5e3]}}`: true, `[]`: false, `1`: false, `{"a"}`: false, `{"a":1}}`: false} {
		if accepts(g, text) != want {
			t.Errorf("%s: allowed %v, want %v", text, !want, want)
		}
	}
}

func TestJSONSchema_WhatCannotBeFollowed_IsSaid(t *testing.T) {
	for schema, want := range map[string]string{
		`{`:                                  "#: is no whole JSON",
		`[1]`:                                "#: found []interface {}, expected an object",
		`{} {}`:                              "something follows",
		`{"a":1,"a":2}`:                      `has "a" twice`,
		`false`:                              "nothing would do",
		`{"type":"string","pattern":"^a"}`:   "#: pattern is not supported; supported are type, enum",
		`{"type":"date"}`:                    `#/type: "date" is no type`,
		`{"properties":{"a":{"minimum":1}}}`: "#/properties/a: minimum is not supported",
		`{"$ref":"#/$defs/x"}`:               `"#/$defs/x" is not in this schema`,
		`{"$ref":"http://example.com"}`:      "outside of this schema",
		`{"properties":{},"required":["a"]}`: `#/required: "a" is not among the properties`,
		`{"type":"array","minItems":3,"maxItems":2}`: "maxItems is below minItems",
		`{"type":"array","minItems":1000000}`:        "from 0 to 1000",
		`{"enum":[]}`:                                "#/enum: expected a list",
		`{"allOf":[{},{}]}`:                          "#/allOf",
		strings.Repeat(`{"items":`, 70) + `{}` + strings.Repeat(`}`, 70): "nested more than 64 deep",
		strings.Repeat(`[`, 5000): "too deep",
		`{"type":"array","minItems":1000,"items":{"type":"array","minItems":1000,"items":{"type":"array","minItems":1000}}}`: "too large",
	} {
		_, err := JSONSchema([]byte(schema))
		var bad *SchemaError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %v, want %q", schema, err, want)
		}
	}
}

// Schemas that refer to themselves without a byte in between, or nest without end, end the text instead of the program.
func TestMatcher_EndlessSchemas_End(t *testing.T) {
	g, err := JSONSchema([]byte(`{"anyOf":[{"$ref":"#"},{"type":"null"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !accepts(g, "null") || accepts(g, "nul") {
		t.Error("a schema that may be itself does not allow what else it may be")
	}
	any := JSONObject()
	m := any.Matcher()
	m.Push([]byte(`{"a":`))
	deep := 0
	for m.Allows([]byte("[")) && deep < 10_000 {
		m.Push([]byte("["))
		deep++
	}
	if deep < 32 || deep > deepest {
		t.Errorf("arrays %d deep are allowed, want some, and an end", deep)
	}
}

// Whatever a random walk through a grammar gives is JSON, and is allowed in pieces of any length.
func TestMatcher_RandomWalk_IsJSON(t *testing.T) {
	const schema = `{"type":"object","properties":{"a":{"type":"array","items":{"anyOf":[{"type":"number"},{"type":"string","maxLength":4},{"$ref":"#/$defs/p"}]},"maxItems":3},"b":{"enum":["x","yy"]},"c":{"type":"boolean"}},"required":["b"],
		"$defs":{"p":{"type":"object","properties":{"q":{"type":"integer"}},"required":["q"],"additionalProperties":false}}}`
	g, err := JSONSchema([]byte(schema))
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m, text := g.Matcher(), []byte{}
		for !m.Over() && len(text) < 2000 {
			var allowed []byte
			for b := range 256 {
				if m.Allows([]byte{byte(b)}) {
					allowed = append(allowed, byte(b))
				}
			}
			if len(allowed) == 0 {
				t.Fatalf("seed %d: nothing may follow %q, which may not end", seed, text)
			}
			b := allowed[rng.IntN(len(allowed))]
			m.Push([]byte{b})
			text = append(text, b)
		}
		var v struct {
			A []any
			B string
			C *bool
		}
		if err := json.Unmarshal(text, &v); err != nil || v.B != "x" && v.B != "yy" || len(v.A) > 3 || !m.Complete() {
			t.Errorf("seed %d: %q: %+v, %v", seed, text, v, err)
		}
		whole := g.Matcher()
		for rest := text; len(rest) > 0; {
			n := 1 + rng.IntN(min(len(rest), 9))
			if !whole.Allows(rest[:n]) {
				t.Fatalf("seed %d: %q is allowed byte by byte, and not as a piece behind %q", seed, rest[:n], text[:len(text)-len(rest)])
			}
			whole.Push(rest[:n])
			rest = rest[n:]
		}
	}
}

// No schema makes the compiler or the matcher fail, and what a schema allows, the grammar of any JSON does too.
func FuzzJSONSchema(f *testing.F) {
	for _, s := range []string{`{"type":"string"}`, `{"properties":{"a":{"$ref":"#"}}}`, `{"anyOf":[{"const":1},{"enum":["x"]}]}`, `{"type":"array","prefixItems":[{}],"minItems":2}`} {
		f.Add(s, uint64(1))
	}
	anything, err := JSONSchema([]byte(`true`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, schema string, seed uint64) {
		g, err := JSONSchema([]byte(schema))
		if err != nil {
			return
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		m, any := g.Matcher(), anything.Matcher()
		for range 200 {
			b := []byte{byte(rng.IntN(256))}
			for try := 0; try < 256 && !m.Allows(b); try++ {
				b[0]++
			}
			if !m.Allows(b) {
				return
			}
			if !any.Allows(b) {
				t.Fatalf("%s allows a byte %q that is not JSON", schema, b)
			}
			m.Push(b)
			any.Push(b)
		}
	})
}

func BenchmarkAllows(b *testing.B) {
	g := JSONObject()
	m := g.Matcher()
	m.Push([]byte(`{"name": "Ann`))
	for _, text := range []string{"a", " the", "\", \"", "}"} {
		b.Run(fmt.Sprintf("%q", text), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Allows([]byte(text))
			}
		})
	}
}
