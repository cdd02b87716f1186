package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/bench"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/eval"
	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/weights"

	tessera "github.com/tessera-llm/tessera"
)

// evalFlags are what `tessera eval` is asked for.
type evalFlags struct {
	model     string
	adapters  []string
	data      []string
	attention []string
	parts     []int
	unmoved   bool
	shuffle   uint64
	passages  int
	maxTokens int
	limit     int
	out       string
	gate      bool
	margin    float64
	asJSON    bool
}

func evalCommand() *cobra.Command {
	var f evalFlags
	cmd := &cobra.Command{
		Use:   "eval --data FILE…",
		Short: "Accuracy on questions with passages",
		Long: `Answer questions over the passages that come with them, greedily, with the prompts that 'ask' makes, and print how many
outputs contain a right answer, with 95 % intervals. Two attention modes over the same questions are compared in pairs.

FILE is JSON Lines or a JSON array, plain or gzip: {"id","question","answers","passages":[{"title","text","gold","has_answer"}]}, or
as DPR, Lost in the Middle, FlashRAG, HotpotQA and 2WikiMultiHopQA publish them; 'tessera eval fetch' gets some of those.

With --out, answers are kept as they come: the same command goes on where it was ended.`,
		Example: "  tessera eval --data nq-test.jsonl.gz --attention full,block --limit 100\n" +
			"  tessera eval --data nq.jsonl --data hotpotqa.json --gate --out answers",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&f.model, "model", "m", defaultModel, "model: a name that was pulled, or a GGUF file")
	cmd.Flags().StringArrayVar(&f.adapters, "adapter", []string{""}, "adapter of the model, a file or none; several times for several; without this flag the one that ships for the model")
	cmd.Flags().StringArrayVar(&f.data, "data", nil, "file of questions; several times for several")
	cmd.Flags().StringSliceVar(&f.attention, "attention", []string{string(engine.Full)}, "full, block, or full,block for both")
	cmd.Flags().IntSliceVar(&f.parts, "parts", []int{1}, "block attention sees the passages in so many parts, too, each by itself; several numbers for several runs; with --gate the record says so, and auto follows it")
	cmd.Flags().BoolVar(&f.unmoved, "no-reencode", false, "block attention without position re-encoding, too, in one part: the paper's ablation")
	cmd.Flags().Uint64Var(&f.shuffle, "shuffle", 0, "put each question's passages in another order, by this seed")
	cmd.Flags().IntVarP(&f.passages, "passages", "k", 10, "passages a question at most; of more, those that support an answer are kept")
	cmd.Flags().IntVar(&f.maxTokens, "max-tokens", 64, "tokens of an answer at most")
	cmd.Flags().IntVar(&f.limit, "limit", 0, "answer only the first so many questions of each file; 0: all")
	cmd.Flags().StringVar(&f.out, "out", "", "folder that keeps the answers, so that an ended run goes on")
	cmd.Flags().BoolVar(&f.gate, "gate", false, "answer in both modes and write the evaluation record that decides on block attention")
	cmd.Flags().Float64Var(&f.margin, "margin", weights.Margin, "with --gate: how many points block mode may be below full mode; the record says so, and auto follows it")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		settings, err := f.settings(cmd.Flags().Changed("shuffle"))
		if err != nil {
			return &usageError{err}
		}
		return runEval(cmd, &f, settings)
	}
	cmd.AddCommand(evalReportCommand(), evalFetchCommand())
	return cmd
}

// settings checks the flags and makes a setting for each mode.
func (f *evalFlags) settings(shuffled bool) (settings []eval.Setting, err error) {
	if f.gate {
		f.attention = []string{string(engine.Full), string(engine.Block)}
	}
	hasBlock := slices.Contains(f.attention, string(engine.Block))
	switch {
	case len(f.data) == 0:
		return nil, errors.New("no questions: want --data FILE")
	case !hasBlock && !slices.Equal(f.parts, []int{1}):
		return nil, fmt.Errorf("--parts %d: is of block attention; want --attention block", f.parts)
	case f.unmoved && !hasBlock:
		return nil, errors.New("--no-reencode: is of block attention; want --attention block")
	case f.gate && (f.unmoved || shuffled || len(f.adapters) > 1):
		return nil, errors.New("--gate: judges what 'ask' does; want it with one --adapter, and without --no-reencode and --shuffle")
	case f.gate && len(f.parts) > 1:
		return nil, fmt.Errorf("--gate --parts %d: want one number: a record is of what auto is to do", f.parts)
	case f.passages < 1:
		return nil, fmt.Errorf("--passages %d: want at least 1", f.passages)
	case f.maxTokens < 1:
		return nil, fmt.Errorf("--max-tokens %d: want at least 1", f.maxTokens)
	case f.limit < 0:
		return nil, fmt.Errorf("--limit %d: want at least 0", f.limit)
	}
	for i, n := range f.parts {
		if n < 1 || slices.Contains(f.parts[:i], n) {
			return nil, fmt.Errorf("--parts %d: want numbers of at least 1, each once", f.parts)
		}
	}
	for i, a := range f.attention {
		if a != string(engine.Full) && a != string(engine.Block) || slices.Contains(f.attention[:i], a) {
			return nil, fmt.Errorf("--attention %q: want full, block or full,block", strings.Join(f.attention, ","))
		}
		s := eval.Setting{Attention: engine.Attention(a), Passages: f.passages, MaxTokens: f.maxTokens}
		if shuffled {
			s.Shuffle = &f.shuffle
		}
		if s.Attention == engine.Full {
			settings = append(settings, s)
			continue
		}
		for _, s.Parts = range f.parts {
			settings = append(settings, s)
		}
		if f.unmoved {
			s.Parts, s.Unmoved = 1, true
			settings = append(settings, s)
		}
	}
	return settings, nil
}

func runEval(cmd *cobra.Command, f *evalFlags, settings []eval.Setting) (err error) {
	var sets []*eval.Dataset
	for _, path := range f.data {
		d, err := eval.ReadDataset(path)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(sets, func(o *eval.Dataset) bool { return o.Name == d.Name }) {
			return fmt.Errorf("%s: another file is called %s too; results go by that name", path, d.Name)
		}
		sets = append(sets, d)
	}
	b, err := openBare(f.model, tessera.NoAdapter, kv.F16.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r, err := b.runner()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Blocks.Close()) }()
	var runs []eval.Run
	names := map[string]bool{}
	for _, ref := range f.adapters {
		t, err := b.tested(ref)
		if err != nil {
			return err
		}
		defer t.Work.Close()
		name := tessera.NoAdapter
		if t.Weights.Adapter != nil {
			name = *t.Weights.Adapter
		}
		if names[name] {
			return fmt.Errorf("--adapter %s: another is called %s too; results go by that name", ref, name)
		}
		names[name] = true
		for _, s := range settings {
			runs = append(runs, eval.Run{Tested: t, Setting: s})
		}
	}

	var results []*eval.Result
	for _, d := range sets {
		bar := newProgress(cmd.ErrOrStderr(), d.Name, false)
		some, err := r.Evaluate(cmd.Context(), d, runs, f.out, f.limit, func(done, total int) { bar.set(int64(done), int64(total)) })
		bar.clear()
		if err != nil {
			return err
		}
		results = append(results, some...)
	}
	return f.print(cmd, results)
}

// tested is b's model with an adapter beside it.
func (b *bare) tested(ref string) (*eval.Tested, error) {
	adapted := *b
	if err := adapted.adapt(ref); err != nil {
		return nil, err
	}
	w := eval.Weights{Model: filepath.Base(b.file.Path()), Fingerprint: b.hash}
	if adapted.adapter != nil {
		hash := weights.Hash(adapted.adapter.Fingerprint())
		w.Adapter, w.AdapterHash = &adapted.name, &hash
	}
	return &eval.Tested{Model: adapted.m, Work: adapted.m.NewWorkspace(runtime.GOMAXPROCS(0)), Weights: w}, nil
}

// runner answers questions with b's tokens and prompts.
func (b *bare) runner() (*eval.Runner, error) {
	vocab, err := b.file.Vocab()
	if err != nil {
		return nil, err
	}
	source, _ := b.file.ChatTemplate()
	template, err := prompt.New(source, b.tok, vocab.EOS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.file.Path(), err)
	}
	store, err := kv.Open("", kv.Options{KernelPath: kernel.Path()})
	if err != nil {
		return nil, err
	}
	return &eval.Runner{Tok: b.tok, Template: template, Type: b.kv, Blocks: store, RAMBytes: kv.DefaultRAMBytes}, nil
}

// gateJSON is what --gate adds to a report.
type gateJSON struct {
	*eval.Report
	Gate struct {
		Pass   bool    `json:"pass"`
		Gap    float64 `json:"gap"`    // points, full above block
		Margin float64 `json:"margin"` // points
		Record string  `json:"record"`
	} `json:"gate"`
}

func (f *evalFlags) print(cmd *cobra.Command, results []*eval.Result) error {
	out := cmd.OutOrStdout()
	report := eval.NewReport(results)
	if !f.gate {
		switch {
		case f.asJSON && len(results) == 1:
			return printJSON(out, results[0])
		case f.asJSON:
			return printJSON(out, report)
		}
		return report.WriteTable(out)
	}
	record, err := eval.NewRecord(results, time.Now())
	if err != nil {
		return err
	}
	record.Margin = &f.margin
	folder, err := recordsFolder()
	if err != nil {
		return err
	}
	path := weights.RecordPath(folder, record.Model, (*[32]byte)(record.Adapter))
	if err := record.Write(path); err != nil {
		return err
	}
	g := gateJSON{Report: report}
	g.Gate.Pass, g.Gate.Gap, g.Gate.Margin, g.Gate.Record = record.Passes(), record.Gap(), f.margin, path
	if f.asJSON {
		return printJSON(out, g)
	}
	if err := report.WriteTable(out); err != nil {
		return err
	}
	verdict := "FAILS: 'ask' answers with full attention"
	if g.Gate.Pass {
		verdict = "PASSES"
	}
	side := "below"
	if g.Gate.Gap < 0 {
		side = "above"
	}
	_, err = fmt.Fprintf(out, "\nblock mode is %.1f points %s full mode, averaged over %d sets; at most %.1f below are allowed: the model %s\nrecord: %s\n",
		math.Abs(g.Gate.Gap), side, len(record.Sets), f.margin, verdict, path)
	return err
}

func evalReportCommand() *cobra.Command {
	var markdown, figure, steps string
	cmd := &cobra.Command{
		Use:   "report FILE.json…",
		Short: "A Markdown table and a figure of results",
		Long: `Make a Markdown table, on stdout or in a file, and a figure of what 'tessera eval --json' printed, one or several files.
Kinds of runs come in the order of the files; each is compared with the first of as many passages, and block attention with full attention too.`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVar(&markdown, "markdown", "", "write the table to this file")
	cmd.Flags().StringVar(&figure, "plot", "", "draw a figure to this file, .svg or .png")
	cmd.Flags().StringVar(&steps, "steps", "", "draw accuracy against steps of training, too: of adapters that 'tessera train --snapshots' wrote")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := figureFormat("--plot", figure)
		if err != nil {
			return err
		}
		stepsFormat, err := figureFormat("--steps", steps)
		if err != nil {
			return err
		}
		results, err := eval.ReadResults(args...)
		if err != nil {
			return err
		}
		report := eval.NewReport(results)
		if figure != "" {
			if err := vfs.WriteFile(figure, 0o644, func(w io.Writer) error { return report.WriteFigure(w, format) }); err != nil {
				return err
			}
		}
		if steps != "" {
			if err := vfs.WriteFile(steps, 0o644, func(w io.Writer) error { return report.WriteSteps(w, stepsFormat) }); err != nil {
				return err
			}
		}
		if markdown == "" {
			return report.WriteMarkdown(cmd.OutOrStdout())
		}
		return vfs.WriteFile(markdown, 0o644, report.WriteMarkdown)
	}
	return cmd
}

// figureFormat is that of the file a flag names, "" for none.
func figureFormat(flag, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	format, err := bench.FigureFormat(path)
	if err != nil {
		return "", &usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	return format, nil
}

// folderThere says whether the folder of the file that a flag names is missing, so that it is known before the work; "" names none.
func folderThere(flag, path string) error {
	if path == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	return nil
}

func evalFetchCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "fetch NAME",
		Short: "Fetch a benchmark's questions with their passages, and check them",
		Long: `Fetch the questions of a benchmark with their passages, check them, and write them to NAME.jsonl.gz. A fetch that was cut resumes.

NAME is
  nq         Natural Questions open, test (3,610), with the ten best of the passages that DPR retrieves (CC BY-SA 3.0)
  triviaqa   TriviaQA, test (11,313), the same way
  hotpotqa   HotpotQA distractor, validation (7,405), from the Hugging Face Hub (CC BY-SA 4.0)
  2wiki      2WikiMultiHopQA, validation (12,576), from the Hub (Apache-2.0)
  hf:datasets/OWNER/REPO:FILE, https://HOST/PATH   any other file that 'tessera eval --data' can read (HF_TOKEN, HF_ENDPOINT)`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&out, "out", ".", "folder of the file")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cache, err := home.Cache()
		if err != nil {
			return err
		}
		bar := newProgress(cmd.ErrOrStderr(), "fetching "+args[0], true)
		path, n, err := eval.Fetch(cmd.Context(), args[0], out, pull.Options{
			Dir:      filepath.Join(cache, "questions"),
			Progress: bar.set,
			Note: func(text string) {
				bar.clear()
				fmt.Fprintln(cmd.ErrOrStderr(), text)
			},
		})
		bar.clear()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%d questions\n", path, n)
		return err
	}
	return cmd
}
