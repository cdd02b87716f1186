package train

import "context"

// A Validation is what samples that are held out came to, after so many steps.
type Validation struct {
	Step  int     `json:"step"`
	Full  float64 `json:"full"` // the mean -ln p of a target, in full mode
	Block float64 `json:"block"`
	Kept  float64 `json:"kept"` // KL(base ‖ full) of a token, on samples that are to be kept
}

// validating is a validation under way: At samples have their share in it.
type validating struct {
	Validation
	At int
}

// keptValidated is how many samples validation takes on which the model is to stay as it is.
const keptValidated = 16

// Validate asks the examples of held in both modes, with the weights as they are between two steps, and with keep how far the model is from itself. It
// goes on where a run was ended. progress is told the samples done. What is to be made of it comes next, then Validated.
func (t *Trainer) Validate(ctx context.Context, held *Curriculum, keep bool, progress func(done, total int)) (Validation, error) {
	examples, all := len(held.Examples), len(held.Examples)
	if keep {
		all += keptValidated
	}
	kept := *held
	kept.Keep = 1
	v := &t.validating
	if v.At == 0 {
		v.Step = len(t.steps)
	}
	for v.At < all {
		progress(v.At, all)
		if err := t.validate(held, &kept); err != nil {
			return Validation{}, err
		}
		v.At++
		if total := v.Full + v.Block + v.Kept; total-total != 0 {
			return Validation{}, &DivergedError{v.Step, "a loss of what is held out", total}
		}
		if err := t.pause(ctx); err != nil {
			return Validation{}, err
		}
	}
	result := v.Validation
	result.Full, result.Block, result.Kept = v.Full/float64(examples), v.Block/float64(examples), v.Kept/keptValidated
	return result, nil
}

// Validated notes a validation with the state: it is not made again.
func (t *Trainer) Validated(v Validation) {
	t.validations, t.validating = append(t.validations, v), validating{}
	t.changed = true
}

// Validations are those noted so far.
func (t *Trainer) Validations() []Validation { return t.validations }

// validate adds the next sample's share.
func (t *Trainer) validate(held, kept *Curriculum) error {
	v := &t.validating
	if at := v.At - len(held.Examples); at >= 0 {
		s, err := kept.Sample(at)
		if err != nil {
			return err
		}
		kl, err := t.kept(&s)
		v.Kept += kl
		return err
	}
	s, err := held.Sample(v.At)
	if err != nil {
		return err
	}
	full, err := t.Loss(&s, Full)
	if err != nil {
		return err
	}
	block, err := t.Loss(&s, Block)
	v.Full, v.Block = v.Full+full, v.Block+block
	return err
}

// kept is the mean KL(base ‖ full) of a token in the final block of a sample that is to be kept.
func (t *Trainer) kept(s *Sample) (float64, error) {
	if err := t.check(s); err != nil {
		return 0, err
	}
	if err := t.keep(s, 0); err != nil {
		return 0, err
	}
	return t.pass.divergence / float64(len(t.rows)), nil
}
