package kernel

import (
	"fmt"
	"unsafe"
)

// A Matrix is M rows of K weights in one of the stored types, used in place.
type Matrix struct {
	Type Type
	Rows int // M, outputs
	Cols int // K, inputs; a multiple of Type.BlockLen
	Data []byte
}

// NewMatrix checks that data holds rows × cols weights of type t.
func NewMatrix(t Type, rows, cols int, data []byte) (Matrix, error) {
	if !t.Known() {
		return Matrix{}, fmt.Errorf("weights of type %v cannot be multiplied", t)
	}
	if cols%t.BlockLen() != 0 {
		return Matrix{}, fmt.Errorf("rows of %d weights, but %v comes in blocks of %d", cols, t, t.BlockLen())
	}
	if want := rows * t.RowBytes(cols); len(data) != want {
		return Matrix{}, fmt.Errorf("%d × %d weights of %v take %d bytes, found %d", rows, cols, t, want, len(data))
	}
	return Matrix{t, rows, cols, data}, nil
}

// Row writes row i, dequantized, to dst [K].
func (m *Matrix) Row(dst []float32, i int) {
	n := m.Type.RowBytes(m.Cols)
	Dequantize(m.Type, dst[:m.Cols], m.Data[i*n:(i+1)*n])
}

// panelRows is how many rows of weights are dequantized together: enough independent sums to keep the adders busy, few
// enough for the registers. itemPanels of them make one item of work.
const (
	panelRows  = 4
	itemPanels = 4
)

// A MatMul is the task dst [T × M] = x [T × K] · wᵀ, or dst += with Add. The zero value is ready; it keeps its scratch
// from call to call, so one MatMul serves one caller at a time. dst must not alias x.
//
// Each output is Σ_k x[k]·w[k] in float32, w dequantized to float32, summed in the path's own fixed order of k.
type MatMul struct {
	Add bool

	dst, x []float32
	rows   int
	w      *Matrix
	panels [][]float32 // one a worker: [panelRows × K]
}

// Run computes the product of the first rows rows of x on the pool.
func (mm *MatMul) Run(p *Pool, dst, x []float32, rows int, w *Matrix) {
	mm.dst, mm.x, mm.rows, mm.w = dst[:rows*w.Rows], x[:rows*w.Cols], rows, w
	if len(mm.panels) < p.Threads() {
		mm.panels = make([][]float32, p.Threads())
	}
	for i := range mm.panels {
		if cap(mm.panels[i]) < panelRows*w.Cols {
			mm.panels[i] = make([]float32, panelRows*w.Cols)
		}
	}
	const item = panelRows * itemPanels
	p.Run((w.Rows+item-1)/item, mm)
}

// Do computes the outputs of one item's weight rows for every row of x.
func (mm *MatMul) Do(worker, i int) {
	const item = panelRows * itemPanels
	w, k := mm.w, mm.w.Cols
	for m := i * item; m < min((i+1)*item, w.Rows); m += panelRows {
		n := min(panelRows, w.Rows-m)
		panel := mm.panel(worker, m, n)
		w0 := panel[:k]
		w1, w2, w3 := w0, w0, w0 // rows past the end repeat the first one, and are not stored
		if n > 1 {
			w1 = panel[k : 2*k]
		}
		if n > 2 {
			w2 = panel[2*k : 3*k]
		}
		if n > 3 {
			w3 = panel[3*k : 4*k]
		}
		t := 0
		for ; t+1 < mm.rows; t += 2 {
			sums := dot4x2(w0, w1, w2, w3, mm.x[t*k:(t+1)*k], mm.x[(t+1)*k:(t+2)*k])
			mm.store(t, m, sums[:n])
			mm.store(t+1, m, sums[panelRows:][:n])
		}
		if t < mm.rows {
			sums := dot4(w0, w1, w2, w3, mm.x[t*k:(t+1)*k])
			mm.store(t, m, sums[:n])
		}
	}
}

// panel returns rows m … m+n-1 of the weights as float32, in place where they are stored so.
func (mm *MatMul) panel(worker, m, n int) []float32 {
	w, row := mm.w, mm.w.Type.RowBytes(mm.w.Cols)
	data := w.Data[m*row : (m+n)*row]
	if w.Type == F32 {
		return Floats(data)
	}
	panel := mm.panels[worker][:n*w.Cols]
	Dequantize(w.Type, panel, data)
	return panel
}

func (mm *MatMul) store(t, m int, sums []float32) {
	out := mm.dst[t*mm.w.Rows+m:][:len(sums)]
	if !mm.Add {
		copy(out, sums)
		return
	}
	for j, s := range sums {
		out[j] += s
	}
}

// Floats views stored little-endian float32 values in place. len(b) must be a multiple of 4 and b aligned to 4 bytes.
func Floats(b []byte) []float32 { return view[float32](b) }

// Halves views stored little-endian 16-bit values in place. len(b) must be a multiple of 2 and b aligned to 2 bytes.
func Halves(b []byte) []uint16 { return view[uint16](b) }

func view[E float32 | uint16](b []byte) []E {
	var e E
	size := unsafe.Sizeof(e)
	if len(b) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(len(b))%size != 0 || uintptr(p)%size != 0 {
		panic(fmt.Sprintf("kernel: %d bytes at %p are no whole aligned %d-byte values", len(b), p, size))
	}
	return unsafe.Slice((*E)(p), uintptr(len(b))/size)
}
