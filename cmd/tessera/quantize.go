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

// quantizeTypes are the types by their names.
var quantizeTypes = map[string]kernel.Type{"F32": kernel.F32, "F16": kernel.F16, "BF16": kernel.BF16, "Q4_0": kernel.Q4_0, "Q4_1": kernel.Q4_1, "Q8_0": kernel.Q8_0}

func quantizeCommand() *cobra.Command {
	var force, asJSON bool
	cmd := &cobra.Command{
		Use:   "quantize FROM TO TYPE",
		Short: "Write a model in another number format",
		Long: `Write the model FROM, a name that was pulled or a GGUF file, to the new file TO with its matrices in TYPE: F32, F16, BF16, Q4_0,
Q4_1 or Q8_0. Everything else is copied. What the numbers of FROM have lost already stays lost.`,
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
			before := file.Size()
			bar := newProgress(cmd.ErrOrStderr(), "writing "+filepath.Base(to), true)
			inF16, err := file.Quantize(cmd.Context(), to, t, bar.set)
			bar.clear()
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			info, err := os.Stat(to)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), struct {
					Schema int      `json:"schema"`
					From   string   `json:"from"`
					Path   string   `json:"path"`
					Type   string   `json:"type"`
					Bytes  int64    `json:"bytes"`
					InF16  []string `json:"in_f16"` // matrices that the type cannot hold
				}{1, from, to, t.String(), info.Size(), append([]string{}, inF16...)})
			}
			if len(inF16) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "tessera: %s: in F16, because their rows are no multiple of %d long: %s\n", to, t.BlockLen(), strings.Join(inF16, ", "))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%v, %s (%s was %s)\n", to, t, size(info.Size()), filepath.Base(from), size(before))
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
		return fmt.Errorf("%s: is there and no file; name a new file", to)
	}
	if source, err := os.Stat(from); err == nil && os.SameFile(source, there) {
		return fmt.Errorf("%s: is the model itself; name a new file", to)
	}
	if !force {
		return fmt.Errorf("%s: exists already; --force replaces it", to)
	}
	return nil
}
