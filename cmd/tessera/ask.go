package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/internal/home"

	tessera "github.com/tessera-llm/tessera"
)

func askCommand() *cobra.Command {
	var (
		q         tessera.Question
		paths     []string
		from      string
		attention string
		asJSON    bool
	)
	cmd := &cobra.Command{
		Use:   "ask [flags] QUESTION",
		Short: "Answer a question, over documents where they are given",
		Long: `Answer a question, over documents where they are given.

Documents are .jsonl files with {"id","title","text"} a line, text, Markdown, HTML, PDF, DOCX and CSV files, or folders of them. Long
ones are split into passages; where there are more than -k, the best by BM25 are taken. The best one stands nearest to
the question. Each passage is a block whose keys and values are computed once and kept: asking again over the same
passages, in any order, computes the question alone.

Without -d, lines that are exactly [[block]] cut QUESTION into passages and the question, which comes last.
QUESTION - is read from standard input.`,
		Example: "  tessera ask -d notes/ 'Who wrote the report?'\n  tessera ask -d passages.jsonl --attention block --json 'Who wrote it?'",
		Args:    cobra.ExactArgs(1),
	}
	model, adapter := modelFlag(cmd), adapterFlag(cmd, "")
	f := cmd.Flags()
	f.StringArrayVarP(&paths, "documents", "d", nil, "a file or folder of documents; may be repeated")
	f.StringVarP(&from, "collection", "c", "", "a collection that 'tessera ingest' made, whose best passages are the documents")
	f.IntVarP(&q.Passages, "passages", "k", tessera.DefaultPassages, "passages in the prompt at most")
	f.StringVar(&attention, "attention", string(tessera.Auto), "auto, block or full; auto is block where the model was evaluated for it, else full")
	f.IntVar(&q.Parts, "parts", 0, "with --attention block: see the passages in so many parts, too, each by itself, and give half of the say to those that make the question likely (default 1: together alone, which is quickest; auto does as the model was evaluated)")
	f.StringVar(&q.System, "system", "", "system message (default: to answer in a few words, using the documents)")
	f.IntVar(&q.MaxTokens, "max-tokens", tessera.DefaultMaxTokens, "tokens of the answer at most")
	f.Float32Var(&q.Temperature, "temperature", 0, "0 takes the likeliest token always; higher draws more freely")
	f.IntVar(&q.TopK, "top-k", 0, "draw from this many likeliest tokens; 0: all")
	f.Float32Var(&q.TopP, "top-p", 0, "draw from the likeliest tokens that make up this probability; 0: all")
	f.Float32Var(&q.MinP, "min-p", 0, "leave out tokens less likely than this part of the likeliest")
	f.Float32Var(&q.RepetitionPenalty, "repetition-penalty", 0, "above 1 makes recent tokens less likely")
	f.Uint64Var(&q.Seed, "seed", 0, "the same seed draws the same answer")
	f.StringArrayVar(&q.Stop, "stop", nil, "end the answer before this text; may be repeated")
	f.BoolVar(&asJSON, "json", false, "print one JSON document: the answer, where each block came from, times")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch q.Attention = tessera.Attention(attention); q.Attention {
		case tessera.Auto, tessera.Block, tessera.Full:
		default:
			return &usageError{fmt.Errorf("--attention %q: want auto, block or full", attention)}
		}
		if q.Attention.CheckParts(q.Parts) != nil {
			return &usageError{fmt.Errorf("--parts %d: want at least 1, and --attention block", q.Parts)}
		}
		if q.Passages < 1 || q.MaxTokens < 1 {
			return &usageError{fmt.Errorf("-k %d and --max-tokens %d: want at least 1 of each", q.Passages, q.MaxTokens)}
		}
		if err := q.Sampling.Validate(); err != nil {
			return &usageError{err}
		}
		if q.Text = args[0]; q.Text == "-" {
			text, err := io.ReadAll(cmd.InOrStdin())
			if err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
			q.Text = string(text)
		}
		if strings.TrimSpace(q.Text) == "" {
			return &usageError{tessera.ErrNoQuestion}
		}
		if from != "" && len(paths) > 0 {
			return &usageError{errors.New("-c and -d: want one of them")}
		}
		if err := readDocuments(cmd, paths, &q); err != nil {
			return err
		}
		if from != "" {
			if err := fromCollection(cmd.Context(), from, &q); err != nil {
				return err
			}
		}
		return withTessera(cmd, *model, *adapter, func(t *tessera.Tessera) error { return ask(cmd, t, q, asJSON) })
	}
	return cmd
}

// ask asks and prints.
func ask(cmd *cobra.Command, t *tessera.Tessera, q tessera.Question, asJSON bool) error {
	bar := newProgress(cmd.ErrOrStderr(), "computing blocks", false)
	q.Progress = func(done, total int) { bar.set(int64(done), int64(total)) }
	answer := &answerWriter{w: cmd.OutOrStdout()}
	q.Emit = func(text string) error {
		bar.clear()
		if asJSON {
			return nil
		}
		return answer.write(text)
	}
	receipt, err := t.Ask(cmd.Context(), q)
	bar.clear()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), receipt)
	}
	if err := answer.end(); err != nil {
		return err
	}
	summarize(cmd.ErrOrStderr(), receipt)
	return nil
}

// readDocuments reads what -d names into the question, and tells what was skipped.
func readDocuments(cmd *cobra.Command, paths []string, q *tessera.Question) error {
	if len(paths) == 0 {
		return nil
	}
	cache, err := home.Cache()
	if err != nil {
		return err
	}
	docs, skipped, err := corpus.Read(cmd.Context(), paths, cache)
	for _, s := range skipped {
		fmt.Fprintf(cmd.ErrOrStderr(), "tessera: skipped %s: %s\n", s.Path, s.Reason)
	}
	q.Documents = docs
	return err
}

// answerWriter prints a streamed answer without the white space around it.
type answerWriter struct {
	w       io.Writer
	started bool
	space   string // may be at the end
}

func (a *answerWriter) write(text string) error {
	if !a.started {
		text = strings.TrimLeft(text, " \t\r\n")
		a.started = text != ""
	}
	trimmed := strings.TrimRight(text, " \t\r\n")
	if trimmed != "" {
		trimmed, a.space = a.space+trimmed, ""
	}
	a.space += text[len(strings.TrimRight(text, " \t\r\n")):]
	_, err := io.WriteString(a.w, trimmed)
	return err
}

func (a *answerWriter) end() error {
	_, err := io.WriteString(a.w, "\n")
	return err
}

// summarize prints one line about the answer where somebody watches.
func summarize(w io.Writer, r *tessera.Receipt) {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	fmt.Fprintf(w, "%s attention: %d of %d prompt tokens computed, %d reused; first token after %.0f ms\n",
		r.Attention, r.Usage.Prompt-r.Usage.Cached, r.Usage.Prompt, r.Usage.Cached, r.Timings.TTFT)
}
