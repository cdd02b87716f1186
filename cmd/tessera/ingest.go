package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

// collectionsFolder is where collections are kept.
func collectionsFolder() (string, error) {
	data, err := home.Data()
	return filepath.Join(data, "collections"), err
}

// withCollection runs a command on a collection of the user's.
func withCollection(name string, create bool, do func(*corpus.Collection) error) error {
	root, err := collectionsFolder()
	if err != nil {
		return err
	}
	c, err := corpus.OpenCollection(root, name, create)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

func ingestCommand() *cobra.Command {
	var (
		name               string
		sync, warm, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "ingest -c COLLECTION PATH…",
		Short: "Take documents into a collection",
		Long: `Take documents into a collection: text, Markdown, HTML, PDF, DOCX, CSV and JSON Lines files, or folders of them. They are split into passages
and indexed; files that have not changed since last time cost nothing, changed ones replace their passages. It can be ended at any moment:
the same command goes on.`,
		Example: "  tessera ingest -c notes ~/notes\n  tessera ask -c notes 'Who wrote the report?'",
		Args:    cobra.MinimumNArgs(1),
	}
	model, adapter := modelFlag(cmd), adapterFlag(cmd, "")
	f := cmd.Flags()
	f.StringVarP(&name, "collection", "c", "", "its name; made if it is new")
	f.BoolVar(&sync, "sync", false, "drop the passages of files that are gone")
	f.BoolVar(&warm, "warm", false, "compute the passages' keys and values now, so that no question waits for them")
	f.BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if name == "" {
			return &usageError{errors.New("no collection: want -c NAME")}
		}
		count, err := counter(*model)
		if err != nil {
			return err
		}
		cache, err := home.Cache()
		if err != nil {
			return err
		}
		return withCollection(name, true, func(c *corpus.Collection) error {
			bar := newProgress(cmd.ErrOrStderr(), "reading", false)
			report, err := c.Ingest(cmd.Context(), corpus.Ingestion{
				Paths: args, Sync: sync, Tokens: tessera.PassageTokens, Count: count, CacheDir: cache,
				Progress: func(done int) { bar.set(int64(done), int64(done)) },
			})
			bar.clear()
			if err != nil {
				return err
			}
			if warm {
				if err := warmUp(cmd, *model, *adapter, c); err != nil {
					return err
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), struct {
					Schema int `json:"schema"`
					*corpus.IngestReport
				}{1, report})
			}
			for _, s := range report.Skipped {
				fmt.Fprintf(cmd.ErrOrStderr(), "tessera: skipped %s: %s\n", s.Path, s.Reason)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d passages; of the files %d added, %d changed, %d unchanged, %d dropped, %d skipped\n",
				name, report.Passages, report.Added, report.Changed, report.Unchanged, report.Dropped, len(report.Skipped))
			return err
		})
	}
	return cmd
}

// counter counts tokens as a model does, without loading its weights.
func counter(ref string) (func(string) int, error) {
	path, err := pull.Resolve(ref)
	if err != nil {
		return nil, err
	}
	file, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	vocab, err := file.Vocab()
	if err != nil {
		return nil, err
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return func(text string) int { return len(tok.EncodeContinued(text)) }, nil
}

// warmUp computes and stores the keys and values of all passages.
func warmUp(cmd *cobra.Command, model, adapter string, c *corpus.Collection) error {
	return withTessera(cmd, model, adapter, func(t *tessera.Tessera) error {
		total := int64(c.Stat().Passages)
		bar := newProgress(cmd.ErrOrStderr(), "computing blocks", false)
		defer bar.clear()
		done := int64(0)
		for after := ""; ; {
			passages, err := c.After(after, tessera.WarmAtOnce)
			if err != nil || len(passages) == 0 {
				return err
			}
			documents := make([]prompt.Document, len(passages))
			for i, p := range passages {
				documents[i] = prompt.Document{Title: p.Title, Text: p.Text}
			}
			taken, err := t.Warm(cmd.Context(), documents, nil)
			if err != nil {
				return err
			}
			done, after = done+int64(taken), passages[taken-1].ID
			bar.set(done, total)
		}
	})
}

func searchCommand() *cobra.Command {
	var (
		name   string
		k      int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "search -c COLLECTION QUESTION",
		Short: "Find the passages of a collection that match a question best",
		Args:  cobra.ExactArgs(1),
	}
	cmd.Flags().StringVarP(&name, "collection", "c", "", "its name")
	cmd.Flags().IntVarP(&k, "passages", "k", tessera.DefaultPassages, "passages at most")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if name == "" || k < 1 {
			return &usageError{errors.New("want -c NAME, and -k of at least 1")}
		}
		return withCollection(name, false, func(c *corpus.Collection) error {
			found, err := c.Search(cmd.Context(), args[0], k)
			if err != nil {
				return err
			}
			if asJSON {
				type passage struct {
					ID    string  `json:"id"`
					Title string  `json:"title"`
					Text  string  `json:"text"`
					Path  string  `json:"path"`
					Page  int     `json:"page,omitempty"`
					Score float64 `json:"score"`
				}
				list := []passage{}
				for _, f := range found {
					list = append(list, passage{f.ID, f.Title, f.Text, f.Path, f.Page, f.Score})
				}
				return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "passages": list})
			}
			for i, f := range found {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%d. %s (%s, %.2f)\n%s\n\n", i+1, f.Title, f.Path, f.Score, f.Text); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return cmd
}

func collectionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "collections",
		Short: "List the collections, or remove one",
		Args:  cobra.NoArgs,
	}
	var asJSON bool
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root, err := collectionsFolder()
		if err != nil {
			return err
		}
		names, err := corpus.Collections(root)
		if err != nil {
			return err
		}
		list := []corpus.Listing{}
		for _, name := range names {
			c, err := corpus.OpenCollection(root, name, false)
			list = append(list, corpus.List(name, c, err)) // one that cannot be opened does not hide the others
			if err == nil {
				if err := c.Close(); err != nil {
					return err
				}
			}
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "collections": list})
		}
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "collection\tdocuments\tpassages\tbytes")
		for _, e := range list {
			if e.Error != "" {
				fmt.Fprintf(table, "%s\t%s\n", e.Name, e.Error)
				continue
			}
			fmt.Fprintf(table, "%s\t%d\t%d\t%d\n", e.Name, e.Files, e.Passages, e.Bytes)
		}
		return table.Flush()
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "rm COLLECTION",
		Short: "Remove a collection; the documents stay where they are",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := collectionsFolder()
			if err != nil {
				return err
			}
			return corpus.RemoveCollection(root, args[0])
		},
	})
	return cmd
}

// fromCollection makes the passages of a collection that match a question its documents.
func fromCollection(ctx context.Context, name string, q *tessera.Question) error {
	return withCollection(name, false, func(c *corpus.Collection) error {
		found, err := c.Search(ctx, q.Text, q.Passages)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("%s: no passage shares a word with the question", name)
		}
		q.Ranked = true
		for _, f := range found {
			q.Documents = append(q.Documents, corpus.Document{ID: f.ID, Title: f.Title, Text: f.Text, Path: f.Path})
		}
		return nil
	})
}
