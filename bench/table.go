package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	r.Head.write(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	notes := &notes{}
	if len(r.Rows) > 0 && r.Rows[0].Test == TestTTFT {
		r.ttftTable(table, notes)
	} else {
		r.speedTable(table, notes)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return notes.write(w)
}

func (r *Report) ttftTable(w io.Writer, notes *notes) {
	fmt.Fprintln(w, "tokens\tattention\tstored\tTTFT, median\tmin – max\truns\tagainst full\tGFLOP, matrices\twith attention\tagainst full\tpaper, 8B\t")
	for _, row := range r.Rows {
		against, flops, paper := "", "", ""
		if a := row.Against; a != nil {
			against, flops = percent(a.TTFT), percent(a.FLOPs)
		}
		if p := row.Paper; p != nil {
			paper = fmt.Sprintf("%.0f ms, %s", p.TTFT, percent(p.TTFTReduction))
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s ms\t%s – %s\t%d\t%s\t%.2f\t%.2f\t%s\t%s\t\n", lengthName(row.PromptTokens), notes.of(&row), row.Attention, row.Cache,
			digits(*row.TTFT), digits(row.Min), digits(row.Max), row.Runs, against, row.MatrixFLOPs/1e9, row.FLOPs/1e9, flops, paper)
	}
}

func (r *Report) speedTable(w io.Writer, notes *notes) {
	fmt.Fprintln(w, "test\ttokens\ttokens/s, median\tmin – max\truns\tGFLOP/s\t")
	for _, row := range r.Rows {
		flops := row.FLOPs // decode: of one token
		if row.Test == TestPrefill {
			flops /= float64(row.PromptTokens)
		}
		fmt.Fprintf(w, "%s\t%s%s\t%s\t%s – %s\t%d\t%.1f\t\n", row.Test, lengthName(row.PromptTokens), notes.of(&row),
			digits(*row.TokensPerSecond), digits(row.Min), digits(row.Max), row.Runs, flops**row.TokensPerSecond/1e9)
	}
}

// WriteTable writes the limits for people.
func (l *Limits) WriteTable(w io.Writer) error {
	l.Head.write(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range l.Rows {
		value := r.Note
		if r.Value != nil {
			value = fmt.Sprintf("%s %s\t%s – %s\t%s", digits(*r.Value), r.Unit, digits(r.Min), digits(r.Max), r.Note)
		}
		fmt.Fprintf(table, "%s\t%s\n", r.Name, value)
	}
	return table.Flush()
}

func (h *Head) write(w io.Writer) {
	m := &h.Machine
	fmt.Fprintf(w, "%s, %d threads, %s kernels, %.0f GiB", m.CPU, m.Threads, m.Path, float64(m.Memory)/(1<<30))
	if h.Model != "" {
		fmt.Fprintf(w, "; %s", h.Model)
	}
	fmt.Fprint(w, "\n\n")
}

// notes collects what a row has to say beyond its figures, each said once.
type notes struct{ said []string }

func (n *notes) of(r *Row) (marks string) {
	if r.TimingOnly {
		marks += n.mark("timing only: longer than the model's context")
	}
	if r.Note != "" {
		marks += n.mark(r.Note)
	}
	switch {
	case r.Slower != nil:
		marks += n.mark(fmt.Sprintf("with %s, which costs %+.1f %% of the time without it", r.Adapter, *r.Slower))
	case r.Adapter != "":
		marks += n.mark("with " + r.Adapter)
	}
	return marks
}

func (n *notes) mark(text string) string {
	for i, t := range n.said {
		if t == text {
			return strings.Repeat("*", i+1)
		}
	}
	n.said = append(n.said, text)
	return strings.Repeat("*", len(n.said))
}

func (n *notes) write(w io.Writer) error {
	for i, t := range n.said {
		if _, err := fmt.Fprintf(w, "%s %s\n", strings.Repeat("*", i+1), t); err != nil {
			return err
		}
	}
	return nil
}

// percent is a reduction as a change.
func percent(less float64) string { return fmt.Sprintf("%+.1f %%", -less) }

// digits are about four of them.
func digits(x float64) string {
	switch {
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 1000:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}
