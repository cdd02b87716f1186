package tokenizer

import (
	"bytes"
	"unicode/utf8"
)

// A Decoder turns a stream of ids into text. What Push and Flush return is whole runes, and concatenated it equals Decode of all ids.
// It is not safe for concurrent use.
type Decoder struct {
	t       *Tokenizer
	pending []byte // the start of a rune that is not whole yet: at most 3 bytes between calls
	prefix  bool   // no text so far, and a leading space is the dummy prefix
}

// Decoder returns a decoder at the start of a text.
func (t *Tokenizer) Decoder() *Decoder { return &Decoder{t: t, prefix: t.prefix} }

// Push returns the text that id completes, possibly none.
func (d *Decoder) Push(id int32) string {
	piece := d.t.Piece(id)
	if d.prefix && len(piece) > 0 {
		piece = bytes.TrimPrefix(piece, []byte(" "))
		d.prefix = false
	}
	d.pending = append(d.pending, piece...)
	return d.take(wholeRunes(d.pending))
}

// Flush returns what is pending, as U+FFFD for each byte of an unfinished rune. The decoder then goes on behind it.
func (d *Decoder) Flush() string { return d.take(len(d.pending)) }

func (d *Decoder) take(n int) string {
	text := string(d.pending[:n])
	d.pending = d.pending[:copy(d.pending, d.pending[n:])]
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	return text
}

// wholeRunes returns how many bytes of b come before a rune that more bytes could complete.
func wholeRunes(b []byte) int {
	for i := len(b) - 1; i >= 0 && i > len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if utf8.FullRune(b[i:]) {
				break
			}
			return i
		}
	}
	return len(b)
}
