package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/weights"
)

// quantizeTypes are the types by the names that people give.
var quantizeTypes = map[string]kernel.Type{"F32": kernel.F32, "F16": kernel.F16, "BF16": kernel.BF16, "Q4_0": kernel.Q4_0, "Q4_1": kernel.Q4_1, "Q8_0": kernel.Q8_0}

func quantizeCommand() *cobra.Command {
	var force, asJSON bool
	cmd := &cobra.Command{
		Use:   "quantize FROM TO TYPE",
		Short: "Write a model in another number format",
		Long: `Write the model FROM, a name that was pulled or a GGUF file, to the new file TO with its matrices in TYPE: F32, F16, BF16, Q4_0,
Q4_1 or Q8_0. Coming from a quantized file, what its numbers lost already stays lost.`,
		Example: "  tessera quantize smollm2 smollm2-q8.gguf Q8_0",
		Args:    cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, ok := quantizeTypes[strings.ToUpper(args[2])]
			if !ok {
				return &usageError{fmt.Errorf("TYPE %q: want F32, F16, BF16, Q4_0, Q4_1 or Q8_0", args[2])}
			}
			from, err := pull.Resolve(args[0])
			if err != nil {
				return err
			}
			to := args[1]
			if err := mayWrite(from, to, force); err != nil {
				return err
			}
			file, err := weights.Open(from)
			if err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "writing "+filepath.Base(to), true)
			kept, err := file.Quantize(cmd.Context(), to, t, bar.set)
			bar.clear()
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			info, err := os.Stat(to)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "path": to, "type": t.String(), "bytes": info.Size(), "kept_f16": len(kept)})
			}
			if len(kept) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "tessera: %d matrices are F16: their rows are no multiple of %d, such as %s\n", len(kept), t.BlockLen(), kept[0])
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%v, %s\n", to, t, size(info.Size()))
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace TO where it exists")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

// mayWrite says why to cannot be written.
func mayWrite(from, to string, force bool) error {
	there, err := os.Stat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !there.Mode().IsRegular():
		return fmt.Errorf("%s: is no file; name a new file", to)
	}
	if source, err := os.Stat(from); err == nil && os.SameFile(source, there) {
		return fmt.Errorf("%s: is the model itself; name a new file", to)
	}
	if !force {
		return fmt.Errorf("%s: exists already; --force replaces it", to)
	}
	return nil
}
