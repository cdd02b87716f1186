package kv

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
)

func base() Inputs {
	return Inputs{Model: [32]byte{1}, Adapter: [32]byte{2}, Type: F16, RoPE: []byte("rope"), Salt: []byte("salt"), Parent: ID{3}, Tokens: []int32{7, -1, 1 << 20}}
}

func TestID_IsTheHashThatTheDocumentDescribes(t *testing.T) {
	var b []byte
	field := func(f []byte) {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(f)))
		b = append(b, f...)
	}
	in := base()
	field(u32(1)) // format version
	field(u32(NumericsVersion))
	field(in.Model[:])
	field(in.Adapter[:])
	field(u32(1)) // f16
	field([]byte("rope"))
	field([]byte("salt"))
	field(in.Parent[:])
	field(slices.Concat(u32(7), u32(0xffffffff), u32(1<<20)))
	if got, want := in.ID(), ID(blake3.Sum256(b)); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A version that is raised is raised in the document, too.
func TestID_VersionsAreThoseOfTheDocument(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "docs", "block-format.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{fmt.Sprintf("| format version | 4 | %d, ", formatVersion), fmt.Sprintf("| numerics version | 4 | %d, ", NumericsVersion)} {
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/block-format.md has no row %q", row)
		}
	}
}

// An id that changes makes every stored block unreachable: this may only happen together with formatVersion or NumericsVersion.
func TestID_StaysWhatItWas(t *testing.T) {
	want(t, "id of base()", base().ID(), "9f1e7d0698e0cf1c54bd5a0f4d6c9e17c7855d22c7c14a7e56689f3bdbf76dc9")
	want(t, "parent", Parent([]ID{{1}, {2}}), "0db4ef37cac3f6cfaa59eafcaa852f6e3882ff6c96a30def3434ccc2aa0031c5")
}

func TestID_DependsOnEveryInput(t *testing.T) {
	seen := map[ID]string{base().ID(): "base"}
	for name, change := range map[string]func(*Inputs){
		"model":                  func(in *Inputs) { in.Model[31] ^= 1 },
		"adapter":                func(in *Inputs) { in.Adapter[31] ^= 1 },
		"type":                   func(in *Inputs) { in.Type = F32 },
		"rope":                   func(in *Inputs) { in.RoPE = []byte("Rope") },
		"salt":                   func(in *Inputs) { in.Salt = nil },
		"salt moved into rope":   func(in *Inputs) { in.RoPE, in.Salt = []byte("ropes"), []byte("alt") },
		"parent":                 func(in *Inputs) { in.Parent = ID{4} },
		"independent":            func(in *Inputs) { in.Parent = ID{} },
		"token":                  func(in *Inputs) { in.Tokens = []int32{7, -1, 1<<20 + 1} },
		"token less":             func(in *Inputs) { in.Tokens = in.Tokens[:2] },
		"tokens in other order":  func(in *Inputs) { in.Tokens = []int32{-1, 7, 1 << 20} },
		"no tokens":              func(in *Inputs) { in.Tokens = nil },
		"more than one buffer":   func(in *Inputs) { in.Tokens = make([]int32, 300) },
		"more, the last differs": func(in *Inputs) { in.Tokens = append(make([]int32, 299), 1) },
	} {
		in := base()
		change(&in)
		if other, ok := seen[in.ID()]; ok {
			t.Errorf("%s: same id as %s", name, other)
		}
		seen[in.ID()] = name
	}
}

func TestParent_DependsOnOrderAndIsZeroForNone(t *testing.T) {
	a, b := ID{1}, ID{2}
	if Parent(nil) != (ID{}) {
		t.Errorf("no blocks before: got %v, want zero", Parent(nil))
	}
	if Parent([]ID{a, b}) == Parent([]ID{b, a}) || Parent([]ID{a}) == a {
		t.Error("another order, or one block alone, gives the same parent")
	}
}

func TestParseID_TakesOneSpellingOnly(t *testing.T) {
	id := base().ID()
	if got, ok := ParseID(id.String()); !ok || got != id {
		t.Errorf("round trip: got %v, %v, want %v", got, ok, id)
	}
	for _, s := range []string{"", id.String()[1:], id.String() + "0", "A" + id.String()[1:], "g" + id.String()[1:]} {
		if _, ok := ParseID(s); ok {
			t.Errorf("%q: accepted", s)
		}
	}
}
