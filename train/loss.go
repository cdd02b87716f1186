package train

import (
	"math"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// An objective is what is wanted of the logits of a pass's rows, and what it came to. A row may have a token it should predict, a teacher
// it should agree with, or both.
type objective struct {
	targets []int32   // of each row; noTarget: none
	teacher []float32 // [N × V], logits; nil: none
	weight  float32   // of a target's -ln p in the gradient
	distill float32   // of a row's KL(teacher ‖ pass) in the gradient

	losses      []float64 // of each row with a target: -ln p of it
	divergences []float64 // of each row, with a teacher: KL(teacher ‖ pass)

	vocabulary int
	logits     []float32
	scratch    []lossScratch // of each worker
}

const noTarget = -1

// lossPiece is how many logits are worked on at a time, so that a sum of them in float32 stays exact enough.
const lossPiece = 1024

type lossScratch struct{ own, teacher [lossPiece]float32 }

// loss replaces the logits by their gradient and sums the rows' losses and divergences.
func (p *pass) loss() {
	o, rows := &p.objective, len(p.rows)
	o.logits, o.vocabulary = p.logits, p.net.Vocabulary
	if len(o.losses) < rows {
		o.losses, o.divergences = make([]float64, rows), make([]float64, rows)
	}
	if len(o.scratch) < p.pool.Threads() {
		o.scratch = make([]lossScratch, p.pool.Threads())
	}
	p.pool.Run(rows, o)
	p.sum, p.divergence = 0, 0
	for i := range rows {
		p.sum += o.losses[i]
		p.divergence += o.divergences[i]
	}
}

// Do works on row i.
func (o *objective) Do(worker, i int) {
	row, s := o.logits[i*o.vocabulary:][:o.vocabulary], &o.scratch[worker]
	o.losses[i], o.divergences[i] = 0, 0
	logSum := s.logSumExp(row)
	target, weight := o.targets[i], float32(0)
	if target != noTarget {
		o.losses[i], weight = logSum-float64(row[target]), o.weight
	}
	var teacher []float32
	var teacherLogSum float64
	if o.teacher != nil {
		teacher = o.teacher[i*o.vocabulary:][:o.vocabulary]
		teacherLogSum = s.logSumExp(teacher)
	}
	for at := 0; at < len(row); at += lossPiece {
		piece := row[at:min(at+lossPiece, len(row))]
		own := s.own[:copy(s.own[:], piece)]
		kernel.Exponentials(own, 1, float32(logSum))
		if teacher == nil {
			for j, p := range own {
				piece[j] = weight * p
			}
			continue
		}
		logits := teacher[at:][:len(piece)]
		theirs := s.teacher[:copy(s.teacher[:], logits)]
		kernel.Exponentials(theirs, 1, float32(teacherLogSum))
		var sum float64
		for j, q := range theirs {
			sum += float64(q) * (float64(logits[j]-piece[j]) - teacherLogSum + logSum)
			piece[j] = weight*own[j] + o.distill*(own[j]-q)
		}
		o.divergences[i] += sum
	}
	if target != noTarget {
		row[target] -= weight
	}
}

// logSumExp is log Σ e^x[i].
func (s *lossScratch) logSumExp(x []float32) float64 {
	top, sum := kernel.Max(x), 0.0
	for at := 0; at < len(x); at += lossPiece {
		piece := s.own[:copy(s.own[:], x[at:min(at+lossPiece, len(x))])]
		sum += float64(kernel.Exponentials(piece, 1, top))
	}
	return float64(top) + math.Log(sum)
}
