package bench

import (
	"cmp"
	"fmt"
	"image/color"
	"io"

	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// FigureFormat is what a file's name says a figure in it should be: svg or png.
func FigureFormat(path string) (string, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".svg", ".png":
		return ext[1:], nil
	}
	return "", fmt.Errorf("figure %q: want a file name that ends in .svg or .png", path)
}

// WriteFigure draws the report: what was measured over the prompt's length, both in powers, with the runs' spread.
func (r *Report) WriteFigure(w io.Writer, format string) error {
	p := plot.New()
	p.Title.Text = r.Model + ", " + r.Machine.CPU
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text = "tokens of the prompt"
	p.Y.Label.Text = "tokens a second"
	if len(r.Rows) > 0 && r.Rows[0].TTFT != nil {
		p.Y.Label.Text = "time to first token, ms"
	}
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.ConstantTicks(r.lengthTicks()), plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for i, s := range r.series() {
		if err := s.draw(p, i); err != nil {
			return err
		}
	}
	widen(&p.X, 1.1)
	widen(&p.Y, 1.3)
	figure, err := p.WriterTo(7*vg.Inch, 4.5*vg.Inch, format)
	if err != nil {
		return err
	}
	_, err = figure.WriteTo(w)
	return err
}

func (r *Report) lengthTicks() (ticks []plot.Tick) {
	for _, row := range r.Rows {
		t := plot.Tick{Value: float64(row.PromptTokens), Label: lengthName(row.PromptTokens)}
		if !slices.Contains(ticks, t) {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// widen makes room at both ends of a logarithmic axis; without it a single value would leave none.
func widen(a *plot.Axis, factor float64) { a.Min, a.Max = a.Min/factor, a.Max*factor }

// A series is the rows that differ in length only.
type series struct {
	name string
	xy   plotter.XYs
	plotter.YErrors
}

// Len and XY make it, with YErrors' YError, what error bars are drawn from.
func (s *series) Len() int                { return len(s.xy) }
func (s *series) XY(i int) (x, y float64) { return s.xy.XY(i) }

func (r *Report) series() (all []*series) {
	for _, row := range r.Rows {
		name, y := row.Test, row.TokensPerSecond
		if row.TTFT != nil {
			name, y = row.Attention, row.TTFT
			if row.Attention != "full" {
				name += map[string]string{"none": ", nothing stored", "ram": ", stored in RAM", "disk": ", stored on disk"}[row.Cache]
			}
		}
		if row.Adapter != "" {
			name += ", " + row.Adapter
		}
		at := slices.IndexFunc(all, func(s *series) bool { return s.name == name })
		if at < 0 {
			at, all = len(all), append(all, &series{name: name})
		}
		s := all[at]
		s.xy = append(s.xy, plotter.XY{X: float64(row.PromptTokens), Y: *y})
		s.YErrors = append(s.YErrors, struct{ Low, High float64 }{*y - row.Min, row.Max - *y})
	}
	for _, s := range all {
		s.sort()
	}
	return all
}

// sort orders the points by length, whatever order they were asked for in.
func (s *series) sort() {
	order := make([]int, len(s.xy))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(s.xy[i].X, s.xy[j].X) })
	xy, spread := slices.Clone(s.xy), slices.Clone(s.YErrors)
	for to, from := range order {
		s.xy[to], s.YErrors[to] = xy[from], spread[from]
	}
}

// palette is told apart by eyes that see few colours too; the shapes of the points differ as well.
var palette = []color.RGBA{{0x33, 0x33, 0x33, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x72, 0xb2, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff}}

var shapes = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}}

func (s *series) draw(p *plot.Plot, i int) error {
	line, points, err := plotter.NewLinePoints(s.xy)
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(s)
	if err != nil {
		return err
	}
	c := palette[i%len(palette)]
	line.Color, points.Color, bars.Color = c, c, c
	points.Shape, points.Radius = shapes[i%len(shapes)], vg.Points(3)
	p.Add(line, points, bars)
	p.Legend.Add(s.name, line, points)
	return nil
}
