package main

import (
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/eval"
)

func perplexityCommand() *cobra.Command {
	var (
		path   string
		window int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "perplexity -f FILE",
		Short: "Perplexity of a text over consecutive windows",
		Long:  "Print the perplexity of a text over consecutive windows, scoring the second half of each, as llama.cpp's tool does.",
		Args:  cobra.NoArgs,
	}
	model, adapter, kvType := modelFlag(cmd), adapterFlag(cmd), kvFlag(cmd)
	cmd.Flags().StringVarP(&path, "file", "f", "", "the text, in UTF-8")
	cmd.Flags().IntVar(&window, "window", 512, "tokens a window")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if path == "" {
			return &usageError{errors.New("no text: want -f FILE")}
		}
		if window < 4 {
			return &usageError{fmt.Errorf("--window %d: want at least 4", window)}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !utf8.Valid(text) {
			return fmt.Errorf("%s: not a text in UTF-8", path)
		}
		b, err := openBare(*model, *adapter, *kvType)
		if err != nil {
			return err
		}
		defer b.close()
		bar := newProgress(cmd.ErrOrStderr(), "scoring", false)
		p, err := eval.MeasurePerplexity(cmd.Context(), b.m, b.work, b.tok, b.kv, string(text), window,
			func(done, total int) { bar.set(int64(done), int64(total)) })
		bar.clear()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), p)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "perplexity %.4f (mean negative log-likelihood %.5f over %d tokens)\n", p.PPL, p.NLL, p.Tokens)
		return err
	}
	return cmd
}
