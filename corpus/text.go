package corpus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

func parseText(path string, data []byte) ([]Document, error) {
	text, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	return document(path, "", strings.TrimSpace(normalizeLines(text)), nil), nil
}

// decode gives the text of a file: UTF-8, or UTF-16 where a byte order mark says so; the mark is dropped.
func decode(path string, data []byte) (string, error) {
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		data = data[3:]
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		return decodeUTF16(path, data, binary.LittleEndian)
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		return decodeUTF16(path, data, binary.BigEndian)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return "", &Error{Path: path, Line: lineAt(data, i), Detail: fmt.Sprintf("byte %d is zero: this is not text", i)}
	}
	if i := firstInvalid(data); i >= 0 {
		return "", &Error{Path: path, Line: lineAt(data, i), Detail: fmt.Sprintf("byte %d (%#02x) is not UTF-8", i, data[i]),
			Advice: "save the file as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8"}
	}
	return string(data), nil
}

func decodeUTF16(path string, data []byte, order binary.ByteOrder) (string, error) {
	if len(data)%2 != 0 {
		return "", &Error{Path: path, Detail: fmt.Sprintf("UTF-16 by its byte order mark, but %d bytes are no whole number of pairs", len(data))}
	}
	units := make([]uint16, 0, len(data)/2-1)
	for i := 2; i < len(data); i += 2 {
		units = append(units, order.Uint16(data[i:]))
	}
	runes := utf16.Decode(units)
	for i, r := range runes {
		if r == utf8.RuneError || r == 0 {
			return "", &Error{Path: path, Detail: fmt.Sprintf("UTF-16 by its byte order mark, but character %d is no text", i)}
		}
	}
	return string(runes), nil
}

// firstInvalid returns the offset of the first byte that is not UTF-8, or -1.
func firstInvalid(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return -1
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

func normalizeLines(text string) string { return lineEnds.Replace(text) }
