// Command tessera answers questions over documents with Block-Attention. One file a command; what is worth testing lives in
// the packages below.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// Exit statuses.
const (
	done       = 0
	failed     = 1
	wrongUsage = 2
)

// run is the whole program: it returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	started := false // a command's own code runs: flags and arguments were right
	root := &cobra.Command{
		Use:               "tessera",
		Short:             "Answer questions over documents with Block-Attention",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			started = true
			return kernel.Check()
		},
	}
	root.AddCommand(demoCommand(), pullCommand(), askCommand(), ingestCommand(), searchCommand(), collectionsCommand(), scoreCommand(), perplexityCommand(), quantizeCommand(), benchCommand(), evalCommand(), trainCommand(), serveCommand(), kvCommand())
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return done
	case !started || errors.As(err, &usage):
		fmt.Fprintf(errs, "tessera: %v\nhint: '%s --help' tells how it is used\n", err, cmd.CommandPath())
		return wrongUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(errs, "tessera: interrupted")
		return failed
	}
	say(errs, err)
	return failed
}

// usageError is a flag or argument that the command cannot take.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// say prints an error or a warning, and what to do about it where that is known.
func say(w io.Writer, err error) {
	fmt.Fprintf(w, "tessera: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
}

func hint(err error) string {
	var (
		hinted  interface{ Hint() string }
		context *engine.ContextError
		untuned *tessera.UntunedError
		broken  *weights.Error
	)
	switch {
	case errors.As(err, &hinted):
		return hinted.Hint()
	case errors.As(err, &context):
		return "ask with fewer passages (-k) or a shorter question"
	case errors.As(err, &untuned):
		return "--attention block uses Block-Attention with this model anyway; its answers may be worse than with full attention. --attention full says that this is what you want"
	case errors.As(err, &broken):
		return "if the file was downloaded, 'tessera pull' fetches it again and checks it"
	}
	return ""
}

// printJSON prints one JSON document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
