package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/kv"
)

func kvCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Look after the stored blocks",
		Args:  cobra.NoArgs, // of a command that runs, so that an unknown one is an error
		RunE:  func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	cmd.AddCommand(kvListCommand(), kvStatCommand(), kvDropCommand())
	return cmd
}

// withStore runs a command on the user's block store.
func withStore(cmd *cobra.Command, do func(*kv.Store) error) error {
	dir, err := home.KV()
	if err != nil {
		return err
	}
	store, err := kv.Open(dir, kv.Options{Warn: func(err error) { say(cmd.ErrOrStderr(), err) }})
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

func kvListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the stored blocks, most recently used first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, func(s *kv.Store) error {
				infos, err := s.List()
				if err != nil {
					return err
				}
				type block struct {
					ID       string    `json:"id"`
					Tokens   int       `json:"tokens"`
					Type     string    `json:"type"`
					Bytes    int64     `json:"bytes"`
					Kernel   string    `json:"kernel"`
					LastUsed time.Time `json:"last_used"`
				}
				blocks := []block{}
				for _, i := range infos {
					blocks = append(blocks, block{i.ID.String(), i.Shape.Tokens, i.Shape.Type.String(), i.Bytes, i.KernelPath, i.LastUsed})
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "blocks": blocks})
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tTOKENS\tTYPE\tSIZE\tKERNEL\tLAST USED")
				for _, b := range blocks {
					fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", b.ID, b.Tokens, b.Type, size(b.Bytes), b.Kernel, b.LastUsed.Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

func kvStatCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stat",
		Short: "Say how much is stored, and where",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, func(s *kv.Store) error {
				st, err := s.Stat()
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "dir": st.Dir, "blocks": st.Blocks, "bytes": st.DiskBytes, "limit_bytes": st.DiskLimit})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%d blocks, %s of at most %s\n", st.Dir, st.Blocks, size(st.DiskBytes), size(st.DiskLimit))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

func kvDropCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "drop ID… | --all",
		Short: "Remove stored blocks; they are computed again when they are asked for",
		RunE: func(cmd *cobra.Command, args []string) error {
			var ids []kv.ID
			for _, arg := range args {
				id, ok := kv.ParseID(arg)
				if !ok {
					return &usageError{fmt.Errorf("%q is no block id: want 64 hexadecimal digits, as 'tessera kv ls' prints them", arg)}
				}
				ids = append(ids, id)
			}
			if all == (len(ids) > 0) {
				return &usageError{errors.New("want either block ids or --all")}
			}
			return withStore(cmd, func(s *kv.Store) error {
				drop := func() (int, int64, error) { return s.Drop(ids...) }
				if all {
					drop = s.DropAll
				}
				n, bytes, err := drop()
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "blocks": n, "bytes": bytes})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "dropped %d blocks, %s\n", n, size(bytes))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove all of them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return cmd
}

// size is a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	value, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for value >= unit && len(units) > 1 {
		value, units = value/unit, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}
