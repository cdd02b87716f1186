package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/bench"
	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/pull"

	tessera "github.com/tessera-llm/tessera"
)

func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure speed, time to first token and the machine",
		Long: `Measure speed, time to first token and the machine. Every figure is the median of its runs, with the least and the
greatest beside it. --json prints everything, each run included: kept in a file, it can be compared with a later one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		benchModelCommand("prefill", "Tokens a second that a prompt is taken in with",
			`Measure how many tokens a second full attention takes in, up to the logits of the last token.`, "512,2K",
			func(b *bench.Bench, ctx context.Context, lengths []int, _ int) ([]bench.Row, error) {
				return b.Prefill(ctx, lengths)
			}),
		benchModelCommand("decode", "Tokens a second that are generated after a context",
			`Measure how many tokens a second are generated one by one, 64 in each run, after contexts of the given lengths. A context
beyond 512 tokens repeats the keys and values of the first 512.`, "128,4K",
			func(b *bench.Bench, ctx context.Context, lengths []int, _ int) ([]bench.Row, error) {
				return b.Decode(ctx, lengths)
			}),
		benchModelCommand("ttft", "Time to first token: full attention against blocks",
			`Measure the time to the first token for prompts of the given total lengths: passages of about 100 tokens, then a query.
It is the paper's table for this machine and model:

  full    none   full attention over everything
  block   none   block attention, nothing stored
  block   ram    passages stored, in memory
  block   disk   passages stored, in files that the page cache does not hold
  prefix  ram    all but the query stored as one piece: what block attention would cost if positions were free

Lengths beyond the model's context are timed too, and marked. What takes longer than a minute is run once; full attention
over 16K or 32K tokens takes minutes. Blocks go to a folder of their own in the cache directory, removed at the end.`, "50,512,1K,2K,4K,8K",
			(*bench.Bench).TTFT),
		benchMachineCommand())
	return cmd
}

type benchFlags struct {
	runs   int
	asJSON bool
}

func (f *benchFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.runs, "runs", 3, "runs of each figure")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON document")
}

func (f *benchFlags) check() error {
	if f.runs < 1 {
		return &usageError{fmt.Errorf("--runs %d: want at least 1", f.runs)}
	}
	return nil
}

// benchModelCommand is a test of a model.
func benchModelCommand(name, short, long, defaults string, test func(*bench.Bench, context.Context, []int, int) ([]bench.Row, error)) *cobra.Command {
	var (
		flags         benchFlags
		lengths, plot string
		query         int
	)
	cmd := &cobra.Command{Use: name, Short: short, Long: long, Args: cobra.NoArgs}
	model, adapter := modelFlag(cmd), adapterFlag(cmd, tessera.NoAdapter)
	flags.add(cmd)
	cmd.Flags().StringVar(&lengths, "lengths", defaults, "numbers of tokens; 1K is 1,024")
	cmd.Flags().StringVar(&plot, "plot", "", "draw a figure to this file, .svg or .png")
	if name == bench.TestTTFT {
		cmd.Flags().IntVar(&query, "query", 50, "tokens of the query, at the end of each prompt")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := bench.ParseLengths(lengths)
		if err != nil {
			return &usageError{fmt.Errorf("--lengths: %w", err)}
		}
		if name == bench.TestTTFT && query < 1 {
			return &usageError{fmt.Errorf("--query %d: want at least 1", query)}
		}
		format, err := figureFormat("--plot", plot)
		if err != nil {
			return err
		}
		if err := folderThere("--plot", plot); err != nil {
			return err
		}
		if err := flags.check(); err != nil {
			return err
		}
		report, err := measure(cmd, *model, *adapter, flags.runs, func(b *bench.Bench) ([]bench.Row, error) {
			return test(b, cmd.Context(), list, query)
		})
		if err != nil {
			return err
		}
		if plot != "" {
			if err := vfs.WriteFile(plot, 0o644, func(w io.Writer) error { return report.WriteFigure(w, format) }); err != nil {
				return err
			}
		}
		if flags.asJSON {
			return printJSON(cmd.OutOrStdout(), report)
		}
		return report.WriteTable(cmd.OutOrStdout())
	}
	return cmd
}

// measure runs a test on a model, with an adapter beside it.
func measure(cmd *cobra.Command, ref, adapter string, runs int, test func(*bench.Bench) ([]bench.Row, error)) (r *bench.Report, err error) {
	path, err := pull.Resolve(ref)
	if err != nil {
		return nil, err
	}
	m, err := openBare(path, tessera.NoAdapter, "f16")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	folder, err := home.Cache()
	if err != nil {
		return nil, err
	}
	bar := newProgress(cmd.ErrOrStderr(), "measuring, %", false)
	defer bar.clear()
	b := &bench.Bench{
		Model: m.m, Tok: m.tok, Folder: folder, Runs: runs,
		Progress: func(share float64) { bar.set(int64(100*share), 100) },
	}
	adapted := *m
	if err := adapted.adapt(adapter); err != nil {
		return nil, err
	}
	if adapted.adapter != nil {
		b.Adapted, b.Adapter = adapted.m, adapted.name
	}
	rows, err := test(b)
	return &bench.Report{Head: bench.NewHead(filepath.Base(path)), Rows: rows}, err
}

func benchMachineCommand() *cobra.Command {
	var flags benchFlags
	cmd := &cobra.Command{
		Use:   "machine",
		Short: "What this machine can do at most",
		Long: `Measure what this machine can do at most, with all threads: the instructions that matrix products are made of, reading
memory, and reading a file of 256 MiB in the cache directory that the page cache does not hold.`,
		Args: cobra.NoArgs,
	}
	flags.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := flags.check(); err != nil {
			return err
		}
		folder, err := home.Cache()
		if err != nil {
			return err
		}
		bar := newProgress(cmd.ErrOrStderr(), "measuring, %", false)
		rates, err := bench.MeasureMachine(cmd.Context(), folder, flags.runs, func(share float64) { bar.set(int64(100*share), 100) })
		bar.clear()
		if err != nil {
			return err
		}
		limits := &bench.Limits{Head: bench.NewHead(""), Rows: rates}
		if flags.asJSON {
			return printJSON(cmd.OutOrStdout(), limits)
		}
		return limits.WriteTable(cmd.OutOrStdout())
	}
	return cmd
}
