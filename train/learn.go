package train

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
)

// learn adds the gradient of sample i of the run, weighted, in the modes that are its, and what it came to.
func (t *Trainer) learn(s *Sample, i int, weight float64, sum *Step) error {
	if err := t.check(s); err != nil {
		return err
	}
	if s.Keep {
		if err := t.keep(s, weight*t.Keep); err != nil {
			return err
		}
		sum.Kept.add(t.pass.divergence / float64(len(t.rows)))
		t.pass.backward(len(t.rows))
		sum.Tokens += len(s.Tokens)
		return nil
	}
	mode := t.Mode
	if mode == Alternate {
		mode = Full
		if rand.New(rand.NewPCG(t.Seed, uint64(i))).Float64() < t.blockShare() {
			mode = Block
		}
	}
	full, block := weight, weight
	if mode == Dual {
		block *= t.blockShare()
		full -= block
	}
	distill := 0.0
	if mode != Full {
		distill = weight * t.Distill
	}
	t.wanted(s, distill > 0)
	t.pass.objective.teacher = nil
	if mode != Block || distill > 0 {
		if err := t.forwardFull(s); err != nil {
			return err
		}
		if distill > 0 {
			t.keepTeacher()
		}
	}
	if mode != Block && len(s.Targets) > 0 {
		sum.Full.add(t.loss(s, full))
		t.pass.backward(len(s.Targets))
		sum.Tokens += len(s.Tokens)
	}
	if mode != Full {
		if err := t.forwardBlock(s); err != nil {
			return err
		}
		if distill > 0 {
			t.pass.objective.teacher, t.pass.objective.distill = t.teacher, float32(distill/float64(len(t.rows)))
		}
		loss := t.loss(s, block)
		if len(s.Targets) > 0 {
			sum.Block.add(loss)
		}
		if distill > 0 {
			sum.Divergence.add(t.pass.divergence / float64(len(t.rows)))
		}
		t.pass.backward(len(t.rows))
		sum.Tokens += len(s.Tokens)
	}
	return nil
}

func (o *Options) blockShare() float64 {
	if o.BlockShare == 0 {
		return 0.5
	}
	return o.BlockShare
}

// keep goes forward in full mode, after the base did, and has the loss from what it said.
func (t *Trainer) keep(s *Sample, weight float64) error {
	t.wanted(s, true)
	t.pass.base = true
	err := t.forwardFull(s)
	t.pass.base = false
	if err != nil {
		return err
	}
	t.keepTeacher()
	if err := t.forwardFull(s); err != nil {
		return err
	}
	t.pass.objective.teacher, t.pass.objective.distill = t.teacher, float32(weight/float64(len(t.rows)))
	t.loss(s, 0)
	return nil
}

// finals is how many final blocks there are.
func (s *Sample) finals() int { return max(s.Finals, 1) }

// forwardFull goes forward with every token attending to all before it, those of final blocks before its own excepted.
func (t *Trainer) forwardFull(s *Sample) error {
	before := s.Blocks[:len(s.Blocks)-s.finals()]
	if len(before) == 0 || s.finals() == 1 && t.pass.frozen == nil {
		t.whole = append(t.whole[:0], len(s.Tokens))
		return t.pass.forward(s.Tokens, layout{blocks: t.whole, finals: 1}, t.rows)
	}
	t.whole = append(t.whole[:0], 0)
	for _, n := range before {
		t.whole[0] += n
	}
	t.whole = append(t.whole, s.Blocks[len(before):]...)
	return t.pass.forward(s.Tokens, layout{blocks: t.whole, finals: s.finals()}, t.rows)
}

// forwardBlock goes forward in block mode, with the adapter's link tokens. t.rows become those of the pass.
func (t *Trainer) forwardBlock(s *Sample) error {
	l := layout{blocks: s.Blocks, finals: s.finals(), link: t.net.link}
	passages := len(s.Blocks) - s.finals() - 1
	if l.link == 0 || passages < 1 {
		l.link = 0
		return t.pass.forward(s.Tokens, l, t.rows)
	}
	links := passages * l.link
	first := s.final()
	t.linked = append(t.linked[:0], s.Tokens[:first]...)
	for i := range links {
		t.linked = append(t.linked, int32(t.net.Vocabulary+i%l.link))
	}
	t.linked = append(t.linked, s.Tokens[first:]...)
	t.whole = append(append(append(t.whole[:0], s.Blocks[:1+passages]...), links), s.Blocks[1+passages:]...)
	l.blocks = t.whole
	for i, row := range t.rows {
		if row >= first {
			t.rows[i] = row + links
		}
	}
	return t.pass.forward(t.linked, l, t.rows)
}

// keepTeacher makes the logits of the pass the teacher's.
func (t *Trainer) keepTeacher() {
	t.teacher = append(t.teacher[:0], t.pass.logits[:len(t.rows)*t.net.Vocabulary]...)
}

// wanted lists the rows whose logits are needed: those that predict targets and, for distillation, all others of final blocks that
// have a successor in theirs.
func (t *Trainer) wanted(s *Sample, distill bool) {
	t.rows, t.targets = t.rows[:0], t.targets[:0]
	for _, i := range s.Targets {
		t.rows, t.targets = append(t.rows, i-1), append(t.targets, s.Tokens[i])
	}
	if distill {
		for first, next := range s.finalBlocks() {
			for row := first; row < next-1; row++ {
				if _, is := slices.BinarySearch(s.Targets, row+1); !is {
					t.rows, t.targets = append(t.rows, row), append(t.targets, noTarget)
				}
			}
		}
	}
}

// finalBlocks are the first token of each final block and that behind its last, from the first of them on.
func (s *Sample) finalBlocks() iter.Seq2[int, int] {
	return func(yield func(first, next int) bool) {
		first := s.final()
		for _, n := range s.Blocks[len(s.Blocks)-s.finals():] {
			if !yield(first, first+n) {
				return
			}
			first += n
		}
	}
}

// final is the first token of the first final block.
func (s *Sample) final() int {
	first := 0
	for _, n := range s.Blocks[:len(s.Blocks)-s.finals()] {
		first += n
	}
	return first
}

// loss replaces the pass's logits by their gradient and returns the mean loss of the sample's targets.
func (t *Trainer) loss(s *Sample, weight float64) float64 {
	n := math.Max(float64(len(s.Targets)), 1)
	t.pass.objective.targets, t.pass.objective.weight = t.targets, float32(weight/n)
	t.pass.loss()
	return t.pass.sum / n
}

// Loss is the mean -ln p of a sample's targets in mode Full or Block, for validation.
func (t *Trainer) Loss(s *Sample, mode Mode) (float64, error) {
	if err := t.check(s); err != nil {
		return 0, err
	}
	t.wanted(s, false)
	t.pass.objective.teacher = nil
	var err error
	if mode == Block {
		err = t.forwardBlock(s)
	} else {
		err = t.forwardFull(s)
	}
	if err != nil {
		return 0, err
	}
	return t.loss(s, 0), nil
}

// check says what is wrong with a sample.
func (t *Trainer) check(s *Sample) error {
	total := 0
	for i, n := range s.Blocks {
		if n < 1 {
			return fmt.Errorf("block %d has %d tokens; expected at least one", i, n)
		}
		total += n
	}
	if total != len(s.Tokens) || total == 0 {
		return fmt.Errorf("blocks of %d tokens altogether for %d tokens; expected as many, and some", total, len(s.Tokens))
	}
	for i, id := range s.Tokens {
		if id < 0 || int(id) >= t.net.Vocabulary {
			return fmt.Errorf("token %d is %d; the vocabulary has 0 to %d", i, id, t.net.Vocabulary-1)
		}
	}
	if limit := t.pass.limit; limit > 0 {
		links := t.net.link * max(len(s.Blocks)-s.finals()-1, 0)
		if need := t.net.activationBytes(total+links, true); need > limit {
			return fmt.Errorf("%d tokens take %d MiB of memory, even with each layer computed twice, and there are %d; shorter samples take less", total, need>>20, limit>>20)
		}
	}
	before := 0
	for _, i := range s.Targets {
		if i <= before || i >= len(s.Tokens) {
			return fmt.Errorf("targets %d; expected ascending ones from 1 to %d", s.Targets, len(s.Tokens)-1)
		}
		before = i
	}
	if s.Keep {
		if t.net.adapter == nil || len(s.Targets) > 0 || s.Finals > 1 || s.Blocks[len(s.Blocks)-1] < 2 {
			return errors.New("is to be kept, which takes an adapter, no targets, and one final block of two tokens or more")
		}
		return nil
	}
	if s.Finals < 0 || s.Finals > 1 && s.Finals >= len(s.Blocks) {
		return fmt.Errorf("%d final blocks of %d blocks; expected an independent one before them", s.Finals, len(s.Blocks))
	}
	if s.Finals > 1 {
		at := 0
		for first, next := range s.finalBlocks() {
			if at < len(s.Targets) && s.Targets[at] <= first {
				return fmt.Errorf("target %d; expected those of the final block of tokens %d to %d behind its first", s.Targets[at], first, next-1)
			}
			for at < len(s.Targets) && s.Targets[at] < next {
				at++
			}
		}
	}
	if len(s.Targets) == 0 && t.Distill == 0 {
		return errors.New("no targets; expected some, or a distill weight, which needs none")
	}
	return nil
}
