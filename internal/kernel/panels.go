package kernel

// Weights that are floating-point numbers in the file (F32, F16, BF16) are packed as panels of tileRows rows, transposed: for each column the weights of all
// rows, in the file's own format. A product makes float32 of a stretch of a panel, in the first cache, and multiplies all tokens with it by the micro
// kernel of Gemm. So an output is the sum that Gemm defines, of stretches of at most gemmDepth columns, whoever computes beside it.

// floatBytes is the size of a weight that is a floating-point number, 0 for other types.
func (t Type) floatBytes() int {
	switch t {
	case F32:
		return 4
	case F16, BF16:
		return 2
	}
	return 0
}

// panelPacking is the task of packing one panel an item.
type panelPacking struct {
	m      *Matrix
	panels []byte
}

func (t *panelPacking) Do(_, tile int) {
	m, size := t.m, t.m.Type.floatBytes()
	rows := min(tileRows, m.Rows-tile*tileRows)
	data := m.Data[tile*tileRows*m.Cols*size:][:rows*m.Cols*size]
	panel := t.panels[tile*tileRows*m.Cols*size:][:tileRows*m.Cols*size]
	if size == 4 {
		interleave(Floats(panel), Floats(data), m.Cols)
	} else {
		interleave(Halves(panel), Halves(data), m.Cols)
	}
}

// interleave transposes rows of cols values; rows that are missing of tileRows stay as they are.
func interleave[E float32 | uint16](dst, src []E, cols int) {
	for r := 0; r*cols < len(src); r++ {
		for k, v := range src[r*cols : (r+1)*cols] {
			dst[k*tileRows+r] = v
		}
	}
}

// stretch is columns from … to-1 of a panel, as they are packed.
func (m *Matrix) stretch(tile, from, to int) []byte {
	size := m.Type.floatBytes()
	return m.panels[(tile*m.Cols+from)*tileRows*size:][:(to-from)*tileRows*size]
}

// widen makes a stretch float32 [columns × tileRows].
func (m *Matrix) widen(s *scratch, data []byte) []float32 {
	values := s.values[:len(data)/m.Type.floatBytes()]
	switch m.Type {
	case F32:
		return Floats(data)
	case F16:
		F16ToF32s(values, Halves(data))
	case BF16:
		BF16ToF32s(values, Halves(data))
	}
	return values
}

// panelRow writes the products of one row of x with a stretch: weights are read from memory at its speed, and used once.
func (m *Matrix) panelRow(sums *[gemmRows * gemmCols]float32, x []float32, data []byte) {
	switch m.Type {
	case F32:
		panelRowF32(&sums[0], &x[0], &Floats(data)[0], len(x))
	case F16:
		panelRowF16(&sums[0], &x[0], &Halves(data)[0], len(x))
	case BF16:
		panelRowBF16(&sums[0], &x[0], &Halves(data)[0], len(x))
	}
}

// panel computes the outputs of one panel of weights, for every row of x.
func (mm *MatMul) panel(s *scratch, pr *Product, tile int) {
	w, x, k := pr.W, pr.X.x, pr.W.Cols
	whole, rest := pr.X.rows/gemmRows, pr.X.rows%gemmRows
	rows := min(tileRows, w.Rows-tile*tileRows)
	dst := pr.Dst[tile*tileRows:]
	stretches := (k + gemmDepth - 1) / gemmDepth
	for n := range stretches {
		from, to := k*n/stretches, k*(n+1)/stretches
		data, depth, add := w.stretch(tile, from, to), to-from, pr.Add || n > 0
		if pr.X.rows == 1 {
			w.panelRow(&s.gemm.tile, x[from:to], data)
			put(dst, s.gemm.tile[:rows], add)
			continue
		}
		weights := w.widen(s, data)
		left := gemmLeft{data: x[from:], tile: gemmRows * k, row: k, col: 1}
		if rows == tileRows && whole > 0 {
			gemmTiles(dst, pr.Stride, left, weights, depth, whole, add)
		} else {
			for t := range whole {
				s.gemm.ragged(dst[t*gemmRows*pr.Stride:], pr.Stride, left.from(t), weights, depth, gemmRows, rows, add)
			}
		}
		if rest == 0 {
			continue
		}
		last := left.from(whole)
		if rest == 1 {
			last.row = 0 // all rows of the tile are the one
			s.gemm.ragged(dst[whole*gemmRows*pr.Stride:], pr.Stride, last, weights, depth, 1, rows, add)
		} else {
			s.gemm.copyLast(0, last, rest, depth)
			s.gemm.ragged(dst[whole*gemmRows*pr.Stride:], pr.Stride, gemmLeft{data: s.gemm.left, row: 1, col: gemmRows}, weights, depth, rest, rows, add)
		}
	}
}
