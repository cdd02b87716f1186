package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/eval"

	tessera "github.com/tessera-llm/tessera"
)

func perplexityCommand() *cobra.Command {
	var (
		path     string
		instruct string
		window   int
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "perplexity -f FILE | --instruct FILE",
		Short: "Perplexity of a text over consecutive windows, or of answers to instructions",
		Long: `Print the perplexity of a text over consecutive windows, scoring the second half of each, as llama.cpp's tool does; or that of the
answers to instructions, each after its own, in the model's chat format.`,
		Args: cobra.NoArgs,
	}
	model, adapter, kvType := modelFlag(cmd), adapterFlag(cmd, tessera.NoAdapter), kvFlag(cmd)
	cmd.Flags().StringVarP(&path, "file", "f", "", "the text, in UTF-8")
	cmd.Flags().StringVar(&instruct, "instruct", "", `file of {"instruction","input","output"} lines`)
	cmd.Flags().IntVar(&window, "window", 512, "tokens a window")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		switch {
		case (path == "") == (instruct == ""):
			return &usageError{errors.New("want a text, -f FILE, or instructions, --instruct FILE")}
		case window < 4:
			return &usageError{fmt.Errorf("--window %d: want at least 4", window)}
		}
		b, err := openBare(*model, *adapter, *kvType)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.close()) }()
		bar := newProgress(cmd.ErrOrStderr(), "scoring", false)
		defer bar.clear()
		progress := func(done, total int) { bar.set(int64(done), int64(total)) }
		var p eval.Perplexity
		if path != "" {
			p, err = textPerplexity(cmd.Context(), b, path, window, progress)
		} else {
			p, err = answerPerplexity(cmd.Context(), b, instruct, progress)
		}
		bar.clear()
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), p)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "perplexity %.4f (mean negative log-likelihood %.5f over %d tokens)\n", p.PPL, p.NLL, p.Tokens)
		return err
	}
	return cmd
}

func textPerplexity(ctx context.Context, b *bare, path string, window int, progress func(done, total int)) (p eval.Perplexity, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	if !utf8.Valid(text) {
		return p, fmt.Errorf("%s: not a text in UTF-8", path)
	}
	if p, err = eval.MeasurePerplexity(ctx, b.m, b.workspace(), b.tok, b.kv, string(text), window, progress); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return p, err
}

func answerPerplexity(ctx context.Context, b *bare, path string, progress func(done, total int)) (p eval.Perplexity, err error) {
	c, err := newCurriculum(b.file)
	if err != nil {
		return p, err
	}
	examples, err := readInstructions(path)
	if err != nil {
		return p, err
	}
	var list []eval.Answered
	for i := range examples {
		s, err := c.Build(&examples[i])
		if err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		list = append(list, eval.Answered{Tokens: s.Tokens, Final: len(s.Tokens) - s.Blocks[len(s.Blocks)-1], From: s.Targets[0]})
	}
	if len(list) == 0 {
		return p, fmt.Errorf("%s: no instructions", path)
	}
	if p, err = eval.MeasureAnswers(ctx, b.m, b.workspace(), b.kv, list, progress); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return p, err
}
