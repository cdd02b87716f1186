package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

// demoFiles are forty passages and ten questions, each over ten of the passages. All were written for Tessera.
//
//go:embed demo/passages.jsonl demo/questions.jsonl
var demoFiles embed.FS

// demoAnswerTokens keeps the demo short: its answers are a few words.
const demoAnswerTokens = 24

type demoQuestion struct {
	Question string   `json:"question"`
	Answers  []string `json:"answers"`
	Passages []string `json:"passages"`
	docs     []corpus.Document
}

func demoCommand() *cobra.Command {
	var (
		asJSON  bool
		restart string
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Fetch the default model and see Block-Attention at work",
		Long: `Fetch the default model if it is not here, and answer ten questions over bundled passages: with full attention, with
block attention from an empty store, again with warm blocks, as 'ask' answers where nothing else is said, and after a
restart in a new process. It ends with a table of the time to the first token. The store is a temporary one; yours is not touched.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	cmd.Flags().StringVar(&restart, "restart", "", "only ask in block mode over the store in this folder")
	cmd.Flags().MarkHidden("restart") //nolint:errcheck // the flag exists
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		questions, err := demoQuestions()
		if err != nil {
			return err
		}
		path, err := demoModel(cmd)
		if err != nil {
			return err
		}
		d := &demo{cmd: cmd, path: path, questions: questions}
		if restart != "" {
			runs, err := d.ask(restart, restartedMode)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), runs[0])
		}
		runs, err := d.runs()
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "model": filepath.Base(path), "runs": runs})
		}
		return d.print(cmd.OutOrStdout(), runs)
	}
	return cmd
}

// demoModel returns the default model's file, fetched if it is not here.
func demoModel(cmd *cobra.Command) (string, error) {
	if path, err := pull.Resolve(defaultModel); err == nil {
		return path, nil
	}
	r, err := fetch(cmd, defaultModel)
	return r.Path, err
}

// demoQuestions reads the bundled questions with their passages.
func demoQuestions() ([]demoQuestion, error) {
	docs := map[string]corpus.Document{}
	err := eachLine("demo/passages.jsonl", func(line []byte) error {
		var d struct{ ID, Title, Text string }
		err := json.Unmarshal(line, &d)
		docs[d.ID] = corpus.Document{ID: d.ID, Title: d.Title, Text: d.Text}
		return err
	})
	if err != nil {
		return nil, err
	}
	var questions []demoQuestion
	err = eachLine("demo/questions.jsonl", func(line []byte) error {
		var q demoQuestion
		if err := json.Unmarshal(line, &q); err != nil {
			return err
		}
		for _, id := range q.Passages {
			q.docs = append(q.docs, docs[id])
		}
		questions = append(questions, q)
		return nil
	})
	return questions, err
}

func eachLine(name string, do func(line []byte) error) error {
	b, err := demoFiles.ReadFile(name)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		if err := do(line); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// A demo asks the same questions in several runs.
type demo struct {
	cmd       *cobra.Command
	path      string // the model
	questions []demoQuestion
	record    *weights.Record
	asked     int // in all runs, for the progress bar
	bar       *progress
}

// A demoRun is one row of the table: the receipts of all questions.
type demoRun struct {
	Name     string             `json:"name"`
	Receipts []*tessera.Receipt `json:"receipts"`
}

// A demoMode is how all questions are asked in one run.
type demoMode struct {
	name      string
	attention tessera.Attention
}

var (
	fullMode      = demoMode{"full attention", tessera.Full}
	coldMode      = demoMode{"block, cold", tessera.Block}
	warmMode      = demoMode{"block, warm", tessera.Block}
	usualMode     = demoMode{"as 'ask' does, warm", tessera.Auto}
	restartedMode = demoMode{"block, after a restart", tessera.Block}
)

// demoRuns is how often each question is asked.
const demoRuns = 5

// runs asks everything: full attention, block attention cold and warm and as evaluated in one process, and block attention in a new one.
func (d *demo) runs() ([]demoRun, error) {
	store, err := os.MkdirTemp("", "tessera-demo-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(store)
	full, err := d.ask("", fullMode)
	if err != nil {
		return nil, err
	}
	block, err := d.ask(store, coldMode, warmMode, usualMode)
	if err != nil {
		return nil, err
	}
	again, err := d.again(store)
	if err != nil {
		return nil, err
	}
	return append(append(full, block...), again), nil
}

// again asks in block mode in a process of its own: a restart.
func (d *demo) again(store string) (run demoRun, err error) {
	self, err := os.Executable()
	if err != nil {
		return run, err
	}
	cmd := exec.CommandContext(d.cmd.Context(), self, "demo", "--restart", store)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return run, fmt.Errorf("the restarted process: %w\n%s", err, strings.TrimSpace(errs.String()))
	}
	return run, json.Unmarshal(out, &run)
}

// ask asks all questions in each mode of one model over one store.
func (d *demo) ask(store string, modes ...demoMode) (runs []demoRun, err error) {
	t, err := openAt(d.cmd, d.path, "", store, limits{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	d.record = t.Record()
	for _, mode := range modes {
		run := demoRun{Name: mode.name}
		for _, q := range d.questions {
			r, err := d.one(d.cmd.Context(), t, mode.attention, q)
			if err != nil {
				return nil, err
			}
			run.Receipts = append(run.Receipts, r)
		}
		runs = append(runs, run)
	}
	return runs, nil
}

func (d *demo) one(ctx context.Context, t *tessera.Tessera, attention tessera.Attention, q demoQuestion) (*tessera.Receipt, error) {
	if d.bar == nil {
		d.bar = newProgress(d.cmd.ErrOrStderr(), "asking", false)
	}
	d.bar.set(int64(d.asked), int64(demoRuns*len(d.questions)))
	d.asked++
	defer d.bar.clear()
	return t.Ask(ctx, tessera.Question{
		Text: q.Question, Documents: q.docs, Passages: len(q.docs), Attention: attention, MaxTokens: demoAnswerTokens,
	})
}

// print shows each question with its answers and the table.
func (d *demo) print(w io.Writer, runs []demoRun) error {
	full, cold, usual := runs[0], runs[1], runs[3]
	for i, q := range d.questions {
		fmt.Fprintf(w, "%s\n  full   %s\n  block  %s\n  ask    %s\n", q.Question,
			oneLine(full.Receipts[i].Answer), oneLine(cold.Receipts[i].Answer), oneLine(usual.Receipts[i].Answer))
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tTTFT, median\tagainst full\ttokens computed\treused\tGFLOP to first token\t")
	for _, run := range runs {
		ttft := median(run, func(r *tessera.Receipt) float64 { return r.Timings.TTFT })
		base := median(full, func(r *tessera.Receipt) float64 { return r.Timings.TTFT })
		cached := sum(run, func(r *tessera.Receipt) float64 { return float64(r.Usage.Cached) })
		computed := sum(run, func(r *tessera.Receipt) float64 { return float64(r.Usage.Prompt) }) - cached
		flops := sum(run, func(r *tessera.Receipt) float64 { return r.FLOPs.Total }) / float64(len(run.Receipts))
		fmt.Fprintf(table, "%s\t%.0f ms\t%+.1f %%\t%.0f\t%.0f\t%.1f\t\n", run.Name, ttft, 100*(ttft-base)/base, computed, cached, flops/1e9)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	same := 0
	for i := range d.questions {
		if cold.Receipts[i].Answer == runs[2].Receipts[i].Answer && cold.Receipts[i].Answer == runs[4].Receipts[i].Answer {
			same++
		}
	}
	_, err := fmt.Fprintf(w, "\n%d of %d answers of block attention are the same cold, warm and after the restart.\n%s\n", same, len(d.questions), measured(d.record))
	return err
}

// measured says how right the two modes are by an evaluation record.
func measured(r *weights.Record) string {
	if r == nil {
		return "How often block attention is right with these weights nobody has measured yet: 'tessera eval --gate' does."
	}
	full, block := r.Accuracy()
	n, parts := 0, ""
	for _, s := range r.Sets {
		n += s.N
	}
	if r.Parts > 1 {
		parts = fmt.Sprintf(" over all passages and %d parts of them", r.Parts)
	}
	return fmt.Sprintf("Of %d questions of benchmarks, full attention is right for %.1f %%, block attention%s for %.1f %%: docs/training.md.", n, full, parts, block)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func sum(run demoRun, of func(*tessera.Receipt) float64) (total float64) {
	for _, r := range run.Receipts {
		total += of(r)
	}
	return total
}

func median(run demoRun, of func(*tessera.Receipt) float64) float64 {
	var values []float64
	for _, r := range run.Receipts {
		values = append(values, of(r))
	}
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}
