package prompt

import "strings"

// Marker is the line that separates blocks in a plain prompt.
const Marker = "[[block]]"

// Split reads a plain prompt in which a user marked the blocks: a line that is exactly Marker ends one, and what follows the last
// marker is the question. Line breaks around a block do not count, nor does an empty block. A first line "Title: …" is the block's
// title; either way the passage is the same text, so marked prompts and documents share their blocks.
func Split(text string) (docs []Document, question string) {
	var block strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimRight(line, "\r\n") != Marker {
			block.WriteString(line)
			continue
		}
		if text := strings.Trim(block.String(), "\r\n"); text != "" {
			docs = append(docs, parseBlock(text))
		}
		block.Reset()
	}
	return docs, strings.TrimSpace(block.String())
}

func parseBlock(text string) Document {
	first, rest, more := strings.Cut(text, "\n")
	if title, ok := strings.CutPrefix(first, "Title: "); ok && more && title != "" {
		return Document{Title: title, Text: rest}
	}
	return Document{Text: text}
}
