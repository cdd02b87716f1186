package eval

import (
	"fmt"
	"image/color"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// datasets are those of the results, each once, in the order of their first.
func (r *Report) datasets() (names []string) {
	for _, result := range r.Results {
		if !slices.Contains(names, result.Dataset) {
			names = append(names, result.Dataset)
		}
	}
	return names
}

// of is the result of a kind of run over a dataset, nil where there is none.
func of(kind []*Result, dataset string) *Result {
	i := slices.IndexFunc(kind, func(r *Result) bool { return r.Dataset == dataset })
	if i < 0 {
		return nil
	}
	return kind[i]
}

// WriteMarkdown writes the tables of a page: accuracy, exact match and F1 by kind of run and dataset, and the comparisons.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	datasets := r.datasets()
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }

	fmt.Fprintf(&b, "Accuracy in %%: how many outputs contain an answer, both normalized; in brackets the 95 %% interval (Wilson; of the mean over sets, bootstrap). Greedy, prompt format `%s`.\n\n", r.Results[0].Prompt)
	head, line := []string{"weights", "attention", "passages"}, []string{"---", "---", "---:"}
	for _, d := range datasets {
		head, line = append(head, d), append(line, "---:")
	}
	row(append(head, "mean")...)
	row(append(line, "---:")...)
	for _, kind := range r.kinds() {
		k := kind[0]
		cells, sum := []string{k.weights(), k.mode(), fmt.Sprint(k.Passages)}, 0.0
		var outcomes [][]float64
		for _, d := range datasets {
			cell := ""
			if x := of(kind, d); x != nil {
				cell = fmt.Sprintf("%s [%s, %s]", percent(x.Accuracy), percent(x.Interval[0]), percent(x.Interval[1]))
				sum += x.Accuracy
				outcomes = append(outcomes, x.outcomes())
			}
			cells = append(cells, cell)
		}
		mean := ""
		if len(kind) == len(datasets) {
			interval := bootstrap(outcomes, 1)
			mean = fmt.Sprintf("%s [%s, %s]", percent(sum/float64(len(kind))), percent(interval[0]), percent(interval[1]))
		}
		row(append(cells, mean)...)
	}

	b.WriteString("\nQuestions, exact match and token F1 in %, and what the run took:\n\n")
	row("weights", "attention", "passages", "dataset", "n", "exact match", "F1", "prompt tokens", "computed", "seconds")
	row("---", "---", "---:", "---", "---:", "---:", "---:", "---:", "---:", "---:")
	for _, kind := range r.kinds() {
		for _, x := range kind {
			row(x.weights(), x.mode(), fmt.Sprint(x.Passages), x.Dataset, fmt.Sprint(x.N), percent(x.EM), percent(x.F1), fmt.Sprint(x.PromptTokens), fmt.Sprint(x.ComputedTokens), fmt.Sprintf("%.0f", x.Seconds))
		}
	}

	if len(r.Comparisons) > 0 {
		b.WriteString("\nPaired, question by question: the difference in points with its 95 % interval (bootstrap), how many questions only one of the two got right, and p by McNemar's exact test. " +
			"Over several datasets, the difference is the mean of theirs.\n\n")
		row("", "against", "datasets", "n", "difference", "only the first", "only the second", "p")
		row("---", "---", "---", "---:", "---:", "---:", "---:", "---:")
		for _, c := range r.Comparisons {
			row(c.Of, c.Against, strings.Join(c.Datasets, ", "), fmt.Sprint(c.N), fmt.Sprintf("%s [%s, %s]", points(c.Difference), points(c.Interval[0]), points(c.Interval[1])),
				fmt.Sprint(c.OnlyOf), fmt.Sprint(c.OnlyAgainst), fmt.Sprintf("%.2g", c.McNemar))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteTable writes the report for a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "dataset\tattention\tpassages\tn\taccuracy, %\t95 %\texact match\tF1\tprompt tokens\tcomputed\tseconds\t")
	for _, x := range r.Results {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%s – %s\t%s\t%s\t%d\t%d\t%.0f\t\n", x.Dataset, x.mode(), x.Passages, x.N, percent(x.Accuracy),
			percent(x.Interval[0]), percent(x.Interval[1]), percent(x.EM), percent(x.F1), x.PromptTokens, x.ComputedTokens, x.Seconds)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, c := range r.Comparisons {
		if _, err := fmt.Fprintf(w, "\n%s\nagainst %s\non %s: %s points [%s, %s], right alone %d and %d, p = %.2g (McNemar)\n", c.Of, c.Against, strings.Join(c.Datasets, ", "),
			points(c.Difference), points(c.Interval[0]), points(c.Interval[1]), c.OnlyOf, c.OnlyAgainst, c.McNemar); err != nil {
			return err
		}
	}
	return nil
}

func percent(share float64) string { return fmt.Sprintf("%.1f", 100*share) }

// points is a difference with its sign; what rounds to nothing has none.
func points(difference float64) string {
	if s := fmt.Sprintf("%+.1f", 100*difference); s != "-0.0" && s != "+0.0" {
		return strings.Replace(s, "-", "−", 1)
	}
	return "0.0"
}

// palette is told apart by eyes that see few colours too; the shapes of the points differ as well.
var palette = []color.RGBA{
	{0x33, 0x33, 0x33, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x72, 0xb2, 0xff}, {0x00, 0x9e, 0x73, 0xff},
	{0xcc, 0x79, 0xa7, 0xff}, {0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0x99, 0x99, 0x99, 0xff},
}

var shapes = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}}

// WriteFigure draws the accuracies, a point with its interval for each kind of run and dataset; format is svg or png.
func (r *Report) WriteFigure(w io.Writer, format string) error {
	p := plot.New()
	p.Y.Label.Text = "accuracy, %"
	p.Legend.Top, p.Legend.YOffs = true, vg.Points(-4)
	p.Add(plotter.NewGrid())
	datasets, kinds := r.datasets(), r.kinds()
	top := 0.0
	for i, kind := range kinds {
		var s series
		for j, d := range datasets {
			if x := of(kind, d); x != nil {
				beside := (float64(i) - float64(len(kinds)-1)/2) * 0.7 / float64(len(kinds))
				s.XYs = append(s.XYs, plotter.XY{X: float64(j) + beside, Y: 100 * x.Accuracy})
				s.YErrors = append(s.YErrors, struct{ Low, High float64 }{100 * (x.Accuracy - x.Interval[0]), 100 * (x.Interval[1] - x.Accuracy)})
				top = max(top, 100*x.Interval[1])
			}
		}
		points, err := plotter.NewScatter(s)
		if err != nil {
			return err
		}
		bars, err := plotter.NewYErrorBars(s)
		if err != nil {
			return err
		}
		points.Color, bars.Color = palette[i%len(palette)], palette[i%len(palette)]
		points.Shape, points.Radius = shapes[i%len(shapes)], vg.Points(3.5)
		p.Add(points, bars)
		p.Legend.Add(r.inLegend(kind[0]), points)
	}
	p.NominalX(datasets...)
	p.X.Min, p.X.Max = -0.5, float64(len(datasets))-0.5
	p.Y.Min, p.Y.Max = 0, top*(1.05+0.08*float64(len(kinds))) // with room for the legend
	return writePlot(p, w, 7*vg.Inch, 4.5*vg.Inch, format)
}

// inLegend is a result's label without what all results have in common: the model, how many passages.
func (r *Report) inLegend(x *Result) string {
	weights, manner := x.weights(), x.manner()
	alike := func(same func(o *Result) bool) bool {
		return !slices.ContainsFunc(r.Results, func(o *Result) bool { return !same(o) })
	}
	if alike(func(o *Result) bool { return o.Model == x.Model }) {
		weights = "no adapter"
		if x.Adapter != nil {
			weights = strings.TrimSuffix(*x.Adapter, ".gguf")
		}
	}
	if alike(func(o *Result) bool { return o.Passages == x.Passages }) {
		manner = x.mode()
	}
	return weights + ", " + manner
}

// WriteSteps draws accuracy against steps of training, the mean over datasets, a line for each training and manner of asking, as the paper's figure 3. Training
// and step are in a result's adapter's name, as `tessera train --snapshots` writes them; the model without an adapter is step 0 of all.
func (r *Report) WriteSteps(w io.Writer, format string) error {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "steps of training", "accuracy, %"
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	type line struct{ training, manner string }
	means := map[line]map[int][]float64{} // by step, of each dataset
	var order []line
	for _, x := range r.Results {
		if x.Adapter == nil {
			continue
		}
		training, step, ok := x.step()
		if !ok {
			return fmt.Errorf("%s on %s: the adapter's name, %s, has no step: want NAME.stepN.gguf, as 'tessera train --snapshots' writes them", x.Label(), x.Dataset, *x.Adapter)
		}
		l := line{training, x.manner()}
		if means[l] == nil {
			means[l] = map[int][]float64{}
			order = append(order, l)
		}
		means[l][step] = append(means[l][step], 100*x.Accuracy)
	}
	for _, x := range r.Results {
		for l, steps := range means {
			if x.Adapter == nil && l.manner == x.manner() {
				steps[0] = append(steps[0], 100*x.Accuracy)
			}
		}
	}
	top := 0.0
	for i, l := range order {
		var xys plotter.XYs
		for _, step := range slices.Sorted(maps.Keys(means[l])) {
			sum, all := 0.0, means[l][step]
			for _, a := range all {
				sum += a
			}
			mean := sum / float64(len(all))
			xys, top = append(xys, plotter.XY{X: float64(step), Y: mean}), max(top, mean)
		}
		line, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		line.Color, points.Color, points.Shape, points.Radius = palette[i%len(palette)], palette[i%len(palette)], shapes[i%len(shapes)], vg.Points(3)
		p.Add(line, points)
		p.Legend.Add(l.training+": "+l.manner, line, points)
	}
	p.Y.Min, p.Y.Max = 0, top*(1.05+0.08*float64(len(order))) // with room for the legend
	return writePlot(p, w, 6*vg.Inch, 4*vg.Inch, format)
}

func writePlot(p *plot.Plot, w io.Writer, width, height vg.Length, format string) error {
	figure, err := p.WriterTo(width, height, format)
	if err != nil {
		return err
	}
	_, err = figure.WriteTo(w)
	return err
}

var stepName = regexp.MustCompile(`^(.*)\.step([0-9]+)(\.gguf)?$`)

// step is what training a result's adapter is of, and which step of it.
func (r *Result) step() (training string, n int, ok bool) {
	found := stepName.FindStringSubmatch(*r.Adapter)
	if found == nil {
		return "", 0, false
	}
	n, err := strconv.Atoi(found[2])
	return found[1], n, err == nil
}

// A series is the points of one kind of run, with their intervals.
type series struct {
	plotter.XYs
	plotter.YErrors
}
