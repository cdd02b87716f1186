package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tessera-llm/tessera/eval"
	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/vfs"
	"github.com/tessera-llm/tessera/prompt"
	"github.com/tessera-llm/tessera/pull"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/train"
	"github.com/tessera-llm/tessera/weights"
)

// trainFlags are what `tessera train` is asked for.
type trainFlags struct {
	model     string
	data      []string
	instruct  []string
	out       string
	full      bool
	rank      int
	alpha     float64
	targets   []string
	passages  string
	questions []int
	cloze     int
	maxTokens int
	keep      float64
	validate  int
	every     int
	patience  int
	snapshots bool
	plot      string
	merge     string
	peft      string
	export    string
	finalOnly bool
	hideSinks int
	links     int
	options   train.Options
	asJSON    bool
}

func trainCommand() *cobra.Command {
	f := trainFlags{options: train.Options{Mode: train.Dual}}
	cmd := &cobra.Command{
		Use:   "train --data FILE… --out ADAPTER.gguf",
		Short: "Block fine-tuning: train an adapter that answers in block mode as in full mode",
		Long: `Train a low-rank adapter (LoRA) for Block-Attention on questions with passages, and write it as GGUF: its loss is that of the answer,
with every passage attending to itself alone (block mode), with ordinary attention (full mode), or both. With --full, train all of the
model's weights, and write a model.

FILE is what 'tessera eval' reads, in its JSON Lines form. Questions that it does not mark as "split":"train" are refused. Any text will do for
one where its "answers" are []: block mode is then drawn to full mode by it (--distill), and nothing else is learnt.

The state is kept in ADAPTER.gguf.state as training goes on, at least once a minute: the same command goes on where it was ended.`,
		Example: "  tessera train --data nq-train.jsonl.gz --data hotpotqa-train.jsonl.gz --distill 1 --steps 600 --out block.gguf",
		Args:    cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.model, "model", "m", defaultModel, "model: a name that was pulled, or a GGUF file")
	flags.StringArrayVar(&f.data, "data", nil, "file of questions; several times for several")
	flags.StringArrayVar(&f.instruct, "instruct", nil, `file of {"instruction","input","output"} lines, on which the model is to stay as it is`)
	flags.StringVarP(&f.out, "out", "o", "", "the adapter's file")
	flags.BoolVar(&f.full, "full", false, "train all weights, in float32, instead of an adapter; --out is the model, --lr 5e-5 and --keep 0 then")
	flags.IntVar(&f.rank, "rank", 16, "rank of the adapter")
	flags.Float64Var(&f.alpha, "alpha", 32, "alpha of the adapter: its changes are scaled by alpha/rank")
	flags.BoolVar(&f.finalOnly, "final-only", false, "an adapter that acts on question and answer alone: blocks of passages stay those of the model without it, and a sample costs about half")
	flags.IntVar(&f.hideSinks, "hide-sinks", 0, "hide so many tokens at the start of each passage from question and answer: computed alone, each begins with an attention sink")
	flags.IntVar(&f.links, "link-tokens", 0, "learned tokens behind each passage in block mode, which see all before them and tell it to question and answer")
	flags.StringSliceVar(&f.targets, "targets", nil, "matrices that are changed (default "+strings.Join(train.Targets, ",")+")")
	flags.StringVarP(&f.passages, "passages", "k", "3-6", "passages of a sample, a number or a range, or several for equal stretches of the run, as 3-6,10; those that support the answer always")
	flags.IntSliceVar(&f.questions, "questions", []int{1}, "questions of a sample, over the passages that support one of the answers and others of theirs; several for equal stretches of the run, as 3,1")
	flags.IntVar(&f.cloze, "cloze", 0, "more questions of a sample, made of its passages: a sentence with a blank for a name or a number")
	flags.IntVar(&f.maxTokens, "max-tokens", 2048, "tokens of a sample at most")
	flags.StringVar((*string)(&f.options.Mode), "mode", string(train.Dual), "what a sample is seen in: full, block, dual (both), or alternate (one of the two, drawn)")
	flags.Float64Var(&f.options.BlockShare, "block-share", 0.5, "share of block mode: of the samples with --mode alternate, of the loss with dual")
	flags.Float64Var(&f.keep, "keep", 0.2, "share of samples on which the model is to stay as it is: text of the passages, and --instruct")
	flags.Float64Var(&f.options.Keep, "keep-weight", 4, "weight of the distance from the model as it was, on these")
	flags.Float64Var(&f.options.Distill, "distill", 1, "weight of the distance of block mode from full mode, over the question; 0: none")
	flags.IntVar(&f.options.Steps, "steps", 600, "steps")
	flags.IntVar(&f.options.Batch, "batch", 4, "samples a step")
	flags.Float64Var(&f.options.LearningRate, "lr", 1e-3, "learning rate at its height")
	flags.Float64Var(&f.options.WarmUp, "warm-up", 0.1, "share of the steps on which it rises")
	flags.Float64Var(&f.options.Decay, "decay", 0, "weight decay")
	flags.Float64Var(&f.options.Clip, "clip", 1, "norm that gradients are scaled down to")
	flags.Uint64Var(&f.options.Seed, "seed", 1, "of all that is drawn")
	flags.IntVar(&f.validate, "validate", 24, "examples held out for validation; 0: none")
	flags.IntVar(&f.every, "validate-every", 50, "steps between validations")
	flags.IntVar(&f.patience, "patience", 0, "end after so many validations without a lower loss in block mode, and keep what had the lowest; 0: never")
	flags.BoolVar(&f.snapshots, "snapshots", false, "write the adapter at every validation, too, as ADAPTER.stepN.gguf")
	flags.StringVar(&f.plot, "plot", "", "draw the losses to this file, .svg or .png")
	flags.StringVar(&f.merge, "merge", "", "write the model with the adapter in its matrices (as Q8_0) to this file, too")
	flags.StringVar(&f.peft, "peft", "", "write the adapter in PEFT's form to this folder, too")
	flags.StringVar(&f.export, "export", "", "train nothing: write the samples of all steps to this file, as JSON Lines of tokens, blocks and targets")
	flags.BoolVar(&f.asJSON, "json", false, "print one JSON document")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.full {
			if !cmd.Flags().Changed("lr") {
				f.options.LearningRate = 5e-5
			}
			if !cmd.Flags().Changed("keep") {
				f.keep = 0
			}
		}
		switch {
		case len(f.data) == 0:
			return &usageError{errors.New("no questions: want --data FILE")}
		case f.out == "" && f.export == "":
			return &usageError{errors.New("no place for the adapter: want --out FILE.gguf")}
		case f.full && (f.merge != "" || f.peft != ""):
			return &usageError{errors.New("--merge and --peft: are of an adapter; with --full there is none")}
		case f.full && f.keep > 0:
			return &usageError{errors.New("--keep: compares with the model without the adapter; with --full there is none: want --keep 0")}
		case f.full && f.finalOnly:
			return &usageError{errors.New("--final-only: is of an adapter; with --full there is none")}
		case (f.finalOnly || f.hideSinks > 0 || f.links > 0) && (f.merge != "" || f.peft != "" || f.export != ""):
			return &usageError{errors.New("--merge, --peft and --export: in a model's matrices and in other programs an adapter acts on every token and hides and links nothing; --final-only, --hide-sinks and --link-tokens go without them")}
		case f.links < 0 || f.links > weights.MaxLinkTokens || f.full && f.links > 0:
			return &usageError{fmt.Errorf("--link-tokens %d: want 0 to %d, and an adapter that holds them, not --full", f.links, weights.MaxLinkTokens)}
		case f.links > 0 && f.options.Mode == train.Full:
			return &usageError{errors.New("--link-tokens: stand in block mode's prompts; with --mode full there are none")}
		case f.hideSinks < 0 || f.hideSinks > weights.MaxHiddenSinks || f.full && f.hideSinks > 0:
			return &usageError{fmt.Errorf("--hide-sinks %d: want 0 to %d, and an adapter that says so, not --full", f.hideSinks, weights.MaxHiddenSinks)}
		case f.patience < 0 || f.patience > 0 && f.validate == 0:
			return &usageError{fmt.Errorf("--patience %d --validate %d: want at least 0, and something to validate on", f.patience, f.validate)}
		case f.keep < 0 || f.keep >= 1:
			return &usageError{fmt.Errorf("--keep %v: want a share from 0 to less than 1", f.keep)}
		case f.keep == 0 && len(f.instruct) > 0:
			return &usageError{errors.New("--instruct: is what --keep makes samples of, and --keep is 0")}
		case len(f.questions) == 0 || slices.Min(f.questions) < 1:
			return &usageError{fmt.Errorf("--questions %d: want at least 1", f.questions)}
		case f.cloze < 0:
			return &usageError{fmt.Errorf("--cloze %d: want at least 0", f.cloze)}
		case f.validate < 0 || f.every < 1:
			return &usageError{fmt.Errorf("--validate %d --validate-every %d: want at least 0 and 1", f.validate, f.every)}
		}
		if _, err := figureFormat("--plot", f.plot); err != nil {
			return err
		}
		if err := errors.Join(folderThere("--out", f.out), folderThere("--plot", f.plot), folderThere("--merge", f.merge), folderThere("--export", f.export)); err != nil {
			return err
		}
		if err := f.options.Check(); err != nil {
			return &usageError{err}
		}
		return runTrain(cmd, &f)
	}
	return cmd
}

// trainReport is what `train --json` prints.
type trainReport struct {
	Schema      int                `json:"schema"`
	Adapter     string             `json:"adapter"`
	Options     train.Options      `json:"options"`
	Examples    int                `json:"examples"`
	Steps       []train.Step       `json:"steps"`
	Validations []train.Validation `json:"validations"`
	Seconds     float64            `json:"seconds"`
}

func runTrain(cmd *cobra.Command, f *trainFlags) (err error) {
	begin := time.Now()
	path, err := pull.Resolve(f.model)
	if err != nil {
		return err
	}
	file, err := weights.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	curriculum, held, err := f.curricula(file)
	if err != nil {
		return err
	}
	if f.export != "" {
		return vfs.WriteFile(f.export, 0o644, func(to io.Writer) error { return exportSamples(cmd, f, curriculum, to) })
	}
	var adapter *weights.Adapter
	if !f.full {
		if adapter, err = train.NewAdapter(file, f.rank, float32(f.alpha), f.targets, f.options.Seed); err != nil {
			return err
		}
		adapter.FinalOnly, adapter.HiddenSinks = f.finalOnly, f.hideSinks
		if f.links > 0 {
			words := curriculum.Tokenizer.EncodeContinued(strings.Repeat(linkWords, f.links))
			if adapter.LinkTokens, err = train.NewLinkTokens(file, words[:f.links]); err != nil {
				return err
			}
		}
	}
	f.options.Threads, f.options.Memory = runtime.GOMAXPROCS(0), freeMemory()/4*3 // there is more than weights and activations
	t, err := train.New(file, adapter, f.options)
	if err != nil {
		return err
	}
	defer t.Close()

	report := &trainReport{Schema: 1, Adapter: f.out, Options: f.options, Examples: len(curriculum.Examples)}
	err = f.run(cmd, t, file, curriculum, held)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("ended after step %d of %d; the same command goes on from there", len(t.Done()), f.options.Steps)
	}
	if err != nil {
		return err
	}
	if f.patience == 0 { // else it is what had the lowest loss
		if err := f.write(t, file, f.out); err != nil {
			return err
		}
	}
	report.Steps, report.Validations, report.Seconds = t.Done(), t.Validations(), time.Since(begin).Seconds()
	if err := f.drawAndMerge(cmd, file, report); err != nil {
		return err
	}
	if f.asJSON {
		return printJSON(cmd.OutOrStdout(), report)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), f.out)
	return err
}

// linkWords are what link tokens begin as.
const linkWords = "The documents so far say that "

// write writes what was trained, as it is now.
func (f *trainFlags) write(t *train.Trainer, file *weights.File, path string) error {
	if f.full {
		return t.WriteModel(path, file)
	}
	return t.Adapter().WriteGGUF(path, kernel.F16)
}

// drawAndMerge writes what --plot, --merge and --peft ask for.
func (f *trainFlags) drawAndMerge(cmd *cobra.Command, file *weights.File, report *trainReport) error {
	if f.merge != "" || f.peft != "" {
		a, err := weights.OpenAdapter(f.out, file)
		if err != nil {
			return err
		}
		if f.peft != "" {
			if err := a.WritePEFT(f.peft, file); err != nil {
				return err
			}
		}
		if f.merge != "" {
			bar := newProgress(cmd.ErrOrStderr(), "writing "+filepath.Base(f.merge), false)
			err = file.Merge(cmd.Context(), f.merge, a, kernel.Q8_0, func(done, total int) { bar.set(int64(done), int64(total)) })
			bar.clear()
			if err != nil {
				return err
			}
		}
	}
	format, err := figureFormat("--plot", f.plot)
	if err != nil || format == "" {
		return err
	}
	return vfs.WriteFile(f.plot, 0o644, func(w io.Writer) error { return train.WriteFigure(w, format, report.Steps, report.Validations) })
}

// exportSamples writes the samples that training would see, for a trainer elsewhere.
func exportSamples(cmd *cobra.Command, f *trainFlags, c *train.Curriculum, to io.Writer) error {
	w := bufio.NewWriter(to)
	lines := json.NewEncoder(w)
	bar := newProgress(cmd.ErrOrStderr(), "writing "+filepath.Base(f.export), false)
	defer bar.clear()
	n := f.options.Steps * f.options.Batch
	for i := range n {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		s, err := c.Sample(i)
		if err != nil {
			return err
		}
		if err := lines.Encode(struct {
			Tokens  []int32 `json:"ids"`
			Blocks  []int   `json:"blocks"`
			Finals  int     `json:"finals,omitempty"`
			Targets []int   `json:"targets"`
			Keep    bool    `json:"keep,omitempty"`
		}{s.Tokens, s.Blocks, s.Finals, append([]int{}, s.Targets...), s.Keep}); err != nil {
			return err
		}
		bar.set(int64(i+1), int64(n))
	}
	return w.Flush()
}

// run trains to the end, and validates before the first step and on the way.
func (f *trainFlags) run(cmd *cobra.Command, t *train.Trainer, file *weights.File, c, held *train.Curriculum) error {
	of, err := c.Hash()
	if err != nil {
		return err
	}
	began, tokens, steps := time.Now(), 0, 0 // without validations
	err = t.Run(cmd.Context(), train.Course{
		Sample: c.Sample, Of: of, Checkpoint: f.out + ".state",
		Progress: func(s train.Step) {
			tokens, steps = tokens+s.Tokens, steps+1
			took := time.Since(began)
			left := took / time.Duration(steps) * time.Duration(f.options.Steps-s.Step)
			fmt.Fprintf(cmd.ErrOrStderr(), "step %d of %d: %s, gradient %.2f, rate %.1e, %.0f tokens/s, %v left\n", s.Step, f.options.Steps, losses(s), s.Norm, s.Rate,
				float64(tokens)/took.Seconds(), left.Round(time.Second))
		},
		Between: func() error {
			paused := time.Now()
			defer func() { began = began.Add(time.Since(paused)) }()
			done, validated := len(t.Done()), t.Validations()
			due := done%f.every == 0 || done == f.options.Steps
			if len(held.Examples) > 0 && due && (len(validated) == 0 || validated[len(validated)-1].Step < done) {
				if err := f.validation(cmd, t, file, held); err != nil {
					return err
				}
			}
			if f.patience > 0 && sinceLowest(t.Validations()) >= f.patience {
				return errEnough
			}
			return nil
		},
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough ends a training that has stopped getting better.
var errEnough = errors.New("the loss in block mode is not getting lower")

// sinceLowest is how many validations there were after the one with the lowest loss in block mode.
func sinceLowest(list []train.Validation) int {
	lowest := 0
	for i, v := range list {
		if v.Block < list[lowest].Block {
			lowest = i
		}
	}
	return len(list) - 1 - lowest
}

// validation validates, and writes what --snapshots and --patience ask for.
func (f *trainFlags) validation(cmd *cobra.Command, t *train.Trainer, file *weights.File, held *train.Curriculum) error {
	bar := newProgress(cmd.ErrOrStderr(), "validating", false)
	v, err := t.Validate(cmd.Context(), held, f.keep > 0, func(done, total int) { bar.set(int64(done), int64(total)) })
	bar.clear()
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "held out: full %.3f, block %.3f, kept %.4f\n", v.Full, v.Block, v.Kept)
	if f.snapshots && v.Step > 0 {
		if err := f.write(t, file, fmt.Sprintf("%s.step%d.gguf", strings.TrimSuffix(f.out, ".gguf"), v.Step)); err != nil {
			return err
		}
	}
	if f.patience > 0 && sinceLowest(append(slices.Clone(t.Validations()), v)) == 0 {
		if err := f.write(t, file, f.out); err != nil {
			return err
		}
	}
	t.Validated(v)
	return nil
}

func losses(s train.Step) string {
	var parts []string
	for _, p := range []struct {
		name string
		mean train.Mean
	}{{"full", s.Full}, {"block", s.Block}, {"divergence", s.Divergence}, {"kept", s.Kept}} {
		if v := p.mean.Value(); !math.IsNaN(v) {
			parts = append(parts, fmt.Sprintf("%s %.3f", p.name, v))
		}
	}
	return strings.Join(parts, ", ")
}

// newCurriculum makes samples as the model in file wants them; what they are made of is still to come.
func newCurriculum(file *weights.File) (*train.Curriculum, error) {
	vocab, err := file.Vocab()
	if err != nil {
		return nil, err
	}
	c := &train.Curriculum{}
	if c.Tokenizer, err = tokenizer.New(vocab); err != nil {
		return nil, err
	}
	source, _ := file.ChatTemplate()
	if c.Template, err = prompt.New(source, c.Tokenizer, vocab.EOS); err != nil {
		return nil, err
	}
	if c.End = vocab.EOT; c.End < 0 {
		c.End = vocab.EOS
	}
	return c, nil
}

// instructionsHeld: one of so many instructions is held out.
const instructionsHeld = 50

// curricula are what is trained on and what is held out.
func (f *trainFlags) curricula(file *weights.File) (c, held *train.Curriculum, err error) {
	if c, err = newCurriculum(file); err != nil {
		return nil, nil, err
	}
	c.Cloze = f.cloze
	c.Questions, c.MaxTokens, c.Samples, c.Keep, c.Seed = f.questions, f.maxTokens, f.options.Steps*f.options.Batch, f.keep, f.options.Seed
	for _, stretch := range strings.Split(f.passages, ",") {
		var r train.Range
		fewest, most, isRange := strings.Cut(stretch, "-")
		if !isRange {
			most = fewest
		}
		var notFewest, notMost error
		r.Fewest, notFewest = strconv.Atoi(fewest)
		if r.Most, notMost = strconv.Atoi(most); notFewest != nil || notMost != nil {
			return nil, nil, &usageError{fmt.Errorf("--passages %q: want a number, or a range as 3-6", stretch)}
		}
		if r.Fewest < 1 || r.Most < r.Fewest {
			return nil, nil, &usageError{fmt.Errorf("--passages %q: want at least 1, and the larger number last", stretch)}
		}
		c.Documents = append(c.Documents, r)
	}
	for _, path := range f.data {
		some, err := readExamples(path)
		if err != nil {
			return nil, nil, err
		}
		if i := slices.IndexFunc(some, func(e train.Example) bool { return len(e.Answers) == 0 }); i >= 0 && f.options.Distill == 0 {
			return nil, nil, fmt.Errorf("%s: question %s has no answers, by which it could be learnt; with --distill it needs none", path, some[i].ID)
		}
		c.Examples = append(c.Examples, some...)
	}
	all := c.Examples
	if f.validate >= len(all) {
		return nil, nil, fmt.Errorf("%d questions, of which %d are to be held out: nothing is left to train on; a lower --validate helps", len(all), f.validate)
	}
	c.Examples = nil
	copied := *c
	held = &copied
	held.Seed++
	held.Keep, held.Samples = 0, f.validate
	held.Cloze, held.Questions = 0, nil // one, as they are asked in use

	for i := range all { // every so manieth is held out, so that each file has its share
		if f.validate > 0 && len(held.Examples) < f.validate && i%(len(all)/f.validate) == 0 && len(all[i].Answers) > 0 {
			held.Examples = append(held.Examples, all[i])
		} else {
			c.Examples = append(c.Examples, all[i])
		}
	}
	for _, path := range f.instruct {
		some, err := readInstructions(path)
		if err != nil {
			return nil, nil, err
		}
		for i, e := range some {
			if f.validate > 0 && i%instructionsHeld == 0 {
				held.Instructions = append(held.Instructions, e)
			} else {
				c.Instructions = append(c.Instructions, e)
			}
		}
	}
	return c, held, nil
}

// readExamples reads questions to train on.
func readExamples(path string) ([]train.Example, error) {
	d, err := eval.ReadDataset(path)
	if err != nil {
		return nil, err
	}
	var examples []train.Example
	for _, q := range d.Questions {
		if q.Split != "train" {
			return nil, fmt.Errorf("%s: question %s: split is %q; training takes only questions marked \"split\":\"train\"", path, q.ID, q.Split)
		}
		e := train.Example{ID: q.ID, Question: q.Text, Answers: q.Answers}
		annotated := slices.ContainsFunc(q.Passages, func(p eval.Passage) bool { return p.Gold })
		found := false
		for _, p := range q.Passages {
			needed := p.Gold
			if !annotated && p.HasAnswer && !found { // one is enough
				needed, found = true, true
			}
			e.Documents, e.Needed = append(e.Documents, prompt.Document{Title: p.Title, Text: p.Text}), append(e.Needed, needed)
		}
		examples = append(examples, e)
	}
	return examples, nil
}

// instructSystem is the system message of instructions: they have no documents.
const instructSystem = "You are a helpful assistant."

// readInstructions reads instructions to mix in.
func readInstructions(path string) (examples []train.Example, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	n := 0
	for lines.Scan() {
		if n++; len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var one struct{ ID, Instruction, Input, Output string }
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if strings.TrimSpace(one.Instruction) == "" || strings.TrimSpace(one.Output) == "" {
			return nil, fmt.Errorf("%s:%d: instruction or output is empty; want both", path, n)
		}
		text := one.Instruction
		if one.Input != "" {
			text += "\n\n" + one.Input
		}
		examples = append(examples, train.Example{ID: filepath.Base(path) + " " + one.ID, Question: text, Answers: []string{one.Output}, System: instructSystem})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
	}
	return examples, nil
}
