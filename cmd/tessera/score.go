package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/eval"

	tessera "github.com/tessera-llm/tessera"
)

func scoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "score FILE.json",
		Short: "Log-probabilities of given token ids, for parity checks",
		Long: `Print log-probabilities of given token ids as a JSON list of {"name","first","next_logprob","last_top"}.

FILE holds a list of {"name","ids","blocks"}: blocks are block lengths, the last one the final block, or null for full
attention. Optional: "dependent", indices of the other blocks that attend to all before them, and "first", from which id on.`,
		Args: cobra.ExactArgs(1),
	}
	model, adapter, kvType := modelFlag(cmd), adapterFlag(cmd, tessera.NoAdapter), kvFlag(cmd)
	asJSON := cmd.Flags().Bool("json", true, "print JSON; there is no other form")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !*asJSON {
			return &usageError{errors.New("--json=false: want JSON; there is no other form")}
		}
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		cases, err := eval.ReadCases(f, args[0])
		if err != nil {
			return err
		}
		b, err := openBare(*model, *adapter, *kvType)
		if err != nil {
			return err
		}
		defer b.close()
		total, before := 0, 0
		for i := range cases {
			total += len(cases[i].IDs)
		}
		bar := newProgress(cmd.ErrOrStderr(), "scoring", false)
		scores := make([]eval.Score, len(cases))
		for i := range cases {
			scores[i], err = eval.ScoreCase(cmd.Context(), b.m, b.workspace(), b.kv, &cases[i], func(done int) { bar.set(int64(before+done), int64(total)) })
			if err != nil {
				bar.clear()
				return err
			}
			before += len(cases[i].IDs)
		}
		bar.clear()
		return printJSON(cmd.OutOrStdout(), scores)
	}
	return cmd
}
