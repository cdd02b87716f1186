//go:build ignore

// Writes a copy of a model with a chat template that has a place for tools: go run withtools.go FROM TO
package main

import (
	"log"
	"os"

	"github.com/tessera-llm/tessera/weights"
)

const template = `{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}`

func main() {
	if err := write(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func write(from, to string) error {
	file, err := weights.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	m := file.Metadata()
	m.Set("tokenizer.chat_template", template)
	w, err := weights.Create(to, m, file.Tensors())
	if err != nil {
		return err
	}
	for _, t := range file.Tensors() {
		if _, err := w.Write(t.Data); err != nil {
			return err
		}
	}
	return w.Commit()
}
