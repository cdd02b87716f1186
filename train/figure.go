package train

import (
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// WriteFigure draws the losses of a run in format "svg" or "png": steps as lines, smoothed, and validations as points.
func WriteFigure(w io.Writer, format string, steps []Step, validations []Validation) error {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = "step", "−ln p of a token of the answer"
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	for _, mode := range []struct {
		name  string
		color color.Color
		of    func(Step) Mean
		held  func(Validation) float64
	}{
		{"full", color.RGBA{R: 0x20, G: 0x60, B: 0xa0, A: 0xff}, func(s Step) Mean { return s.Full }, func(v Validation) float64 { return v.Full }},
		{"block", color.RGBA{R: 0xc0, G: 0x50, B: 0x10, A: 0xff}, func(s Step) Mean { return s.Block }, func(v Validation) float64 { return v.Block }},
	} {
		if xy := smooth(steps, mode.of); len(xy) > 0 {
			line, err := plotter.NewLine(xy)
			if err != nil {
				return err
			}
			line.Color = mode.color
			p.Add(line)
			p.Legend.Add(mode.name, line)
		}
		var held plotter.XYs
		for _, v := range validations {
			held = append(held, plotter.XY{X: float64(v.Step), Y: mode.held(v)})
		}
		if len(held) > 0 {
			points, err := plotter.NewScatter(held)
			if err != nil {
				return err
			}
			points.Color, points.Shape = mode.color, draw.CircleGlyph{}
			p.Add(points)
			p.Legend.Add(mode.name+", held out", points)
		}
	}
	figure, err := p.WriterTo(7*vg.Inch, 4*vg.Inch, format)
	if err != nil {
		return err
	}
	_, err = figure.WriteTo(w)
	return err
}

// smooth is a running mean that forgets half of a step in some seven.
func smooth(steps []Step, of func(Step) Mean) (xy plotter.XYs) {
	mean := math.NaN()
	for _, s := range steps {
		v := of(s).Value()
		switch {
		case math.IsNaN(v): // no sample of this step was in this mode
			continue
		case math.IsNaN(mean):
			mean = v
		}
		mean += (v - mean) / 10
		xy = append(xy, plotter.XY{X: float64(s.Step), Y: mean})
	}
	return xy
}
