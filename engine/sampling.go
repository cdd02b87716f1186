package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode/utf8"
)

// Sampling says how the next token is chosen and where an answer ends. The zero value is greedy: always the likeliest token.
type Sampling struct {
	Temperature       float32  // divides the logits before a draw; 0: greedy, the filters below do not matter
	TopK              int      // draw from this many likeliest tokens; 0: from all
	TopP              float32  // draw from the smallest set with at least this probability; 0 or 1: off
	MinP              float32  // leave out what is less likely than this part of the likeliest; 0: off
	RepetitionPenalty float32  // divides positive and multiplies negative logits of recent tokens; 0 or 1: off
	Seed              uint64   // the same seed and logits give the same tokens
	Stop              []string // the answer ends before the first of these texts
}

// A SamplingError names the field that is out of its range.
type SamplingError struct {
	Field           string
	Found, Expected string
}

func (e *SamplingError) Error() string {
	return fmt.Sprintf("sampling: %s is %s; expected %s", e.Field, e.Found, e.Expected)
}

// Validate returns a *SamplingError for the first field out of range.
func (s Sampling) Validate() error {
	within := func(v, low, high float32) bool { return low <= v && v <= high } // false for NaN
	wrong := func(field string, found any, expected string) error {
		return &SamplingError{Field: field, Found: fmt.Sprint(found), Expected: expected}
	}
	switch {
	case !within(s.Temperature, 0, math.MaxFloat32):
		return wrong("temperature", s.Temperature, "0 (greedy) or more")
	case s.TopK < 0:
		return wrong("top-k", s.TopK, "0 (off) or more")
	case !within(s.TopP, 0, 1):
		return wrong("top-p", s.TopP, "0 (off) to 1")
	case !within(s.MinP, 0, 1):
		return wrong("min-p", s.MinP, "0 (off) to 1")
	case !within(s.RepetitionPenalty, 0, math.MaxFloat32):
		return wrong("repetition penalty", s.RepetitionPenalty, "0 (off) or more, 1 changing nothing")
	}
	for _, stop := range s.Stop {
		if stop == "" || !utf8.ValidString(stop) {
			return wrong("a stop string", fmt.Sprintf("%q", stop), "text of at least one character, in UTF-8")
		}
	}
	return nil
}

// A sampler chooses tokens by a valid Sampling. It keeps its buffers, so that after the first token it allocates nothing; not safe for concurrent use.
type sampler struct {
	Sampling
	random     *rand.Rand
	logits     []float32   // the penalized copy
	seen       []bool      // by token, while penalties are applied
	candidates []candidate // reused by each draw
}

// A candidate is a token with its logit and then its weight: its probability relative to the likeliest token's, which is 1.
type candidate struct {
	id            int32
	logit, weight float64
}

// likelier orders candidates; of equals the lowest id is first.
func (c candidate) likelier(d candidate) bool {
	return c.logit > d.logit || c.logit == d.logit && c.id < d.id
}

func newSampler(s Sampling) *sampler {
	return &sampler{Sampling: s, random: rand.New(rand.NewPCG(s.Seed, 0))}
}

// next chooses from logits [vocabulary], which it leaves as they are; recent are the tokens that the repetition penalty concerns.
// In this order: penalty; without a temperature the largest; else top-k, softmax with temperature, top-p, min-p, draw.
// Logits that are not numbers are never chosen.
func (s *sampler) next(logits []float32, recent []int32) (int32, error) {
	logits = s.penalize(logits, recent)
	best := argmax(logits)
	if best < 0 {
		return 0, fmt.Errorf("sampling: none of %d logits is a number above -Inf; the model's weights or its input are broken", len(logits))
	}
	if s.Temperature == 0 {
		return best, nil
	}

	s.candidates = s.candidates[:0]
	for id, logit := range logits {
		if logit == logit && !math.IsInf(float64(logit), -1) {
			s.candidates = append(s.candidates, candidate{id: int32(id), logit: float64(logit)})
		}
	}
	kept := s.candidates
	if 0 < s.TopK && s.TopK < len(kept) {
		kept = likeliest(kept, func(n int, _ candidate) bool { return n == s.TopK })
	}
	total := s.weigh(kept, float64(logits[best]))
	if 0 < s.TopP && s.TopP < 1 {
		mass := 0.0
		kept = likeliest(kept, func(_ int, c candidate) bool {
			mass += c.weight
			return mass >= float64(s.TopP)*total
		})
	}
	if s.MinP > 0 {
		kept = slices.DeleteFunc(kept, func(c candidate) bool { return c.weight < float64(s.MinP) })
	}
	return s.draw(kept), nil
}

// penalize returns logits with those of recent tokens made less likely, each once however often it occurs.
func (s *sampler) penalize(logits []float32, recent []int32) []float32 {
	if s.RepetitionPenalty == 0 || s.RepetitionPenalty == 1 || len(recent) == 0 {
		return logits
	}
	s.logits = append(s.logits[:0], logits...)
	if len(s.seen) != len(logits) {
		s.seen = make([]bool, len(logits))
	}
	for _, id := range recent {
		if id < 0 || int(id) >= len(logits) || s.seen[id] {
			continue
		}
		s.seen[id] = true
		if s.logits[id] > 0 {
			s.logits[id] /= s.RepetitionPenalty
		} else {
			s.logits[id] *= s.RepetitionPenalty
		}
	}
	for _, id := range recent {
		if 0 <= id && int(id) < len(logits) {
			s.seen[id] = false
		}
	}
	return s.logits
}

// argmax returns the lowest index of the largest logit, or -1 where none is above -Inf.
func argmax(logits []float32) int32 {
	best, largest := -1, float32(math.Inf(-1))
	for i, logit := range logits {
		if logit > largest {
			best, largest = i, logit
		}
	}
	return int32(best)
}

// weigh sets the weights by the temperature and returns their sum. The largest is 1 even where its logit is +Inf.
func (s *sampler) weigh(kept []candidate, largest float64) (total float64) {
	for i := range kept {
		c := &kept[i]
		c.weight = 1
		if c.logit != largest {
			c.weight = math.Exp((c.logit - largest) / float64(s.Temperature))
		}
		total += c.weight
	}
	return total
}

func (s *sampler) draw(kept []candidate) int32 {
	total := 0.0
	for _, c := range kept {
		total += c.weight
	}
	rest := s.random.Float64() * total
	for _, c := range kept {
		if rest < c.weight {
			return c.id
		}
		rest -= c.weight
	}
	return kept[len(kept)-1].id // rounding left a crumb of rest
}

// likeliest reorders all and returns its likeliest candidates, up to and with the first at which enough(how many, the candidate) holds.
// A heap, since of a large vocabulary mostly few are wanted: O(len(all)) and a logarithm for each returned.
func likeliest(all []candidate, enough func(n int, c candidate) bool) []candidate {
	for i := len(all)/2 - 1; i >= 0; i-- {
		sink(all, i)
	}
	heap := all
	for n := 1; len(heap) > 0; n++ {
		last := len(heap) - 1
		heap[0], heap[last] = heap[last], heap[0]
		heap = heap[:last]
		sink(heap, 0)
		if enough(n, all[last]) {
			break
		}
	}
	return all[len(heap):]
}

// sink moves heap[i] down until both below it are less likely.
func sink(heap []candidate, i int) {
	for {
		child := 2*i + 1
		if child >= len(heap) {
			return
		}
		if child+1 < len(heap) && heap[child+1].likelier(heap[child]) {
			child++
		}
		if heap[i].likelier(heap[child]) {
			return
		}
		heap[i], heap[child] = heap[child], heap[i]
		i = child
	}
}

// A stopper finds stop strings in text that comes in pieces. It holds back only what may still become a stop string.
// The first one to be complete ends the text, the longest of several that end together; so how the text is cut does not matter.
type stopper struct {
	stops []string // none empty
	held  string   // the longest end of the text so far that begins a stop string
}

// push takes a piece of text and returns what is now certain to be before any stop string, and whether one was found:
// then the text is over, and push must not be called again.
func (s *stopper) push(text string) (emit string, stopped bool) {
	text = s.held + text
	s.held = ""
	if start := s.find(text); start >= 0 {
		return text[:start], true
	}
	s.held = text[len(text)-s.open(text):]
	return text[:len(text)-len(s.held)], false
}

// flush returns what was held back, at the end of a text in which no stop string was found.
func (s *stopper) flush() string {
	text := s.held
	s.held = ""
	return text
}

// find returns where the stop string that ends the text begins, or -1.
func (s *stopper) find(text string) int {
	start, end := -1, len(text)+1
	for _, stop := range s.stops {
		i := strings.Index(text, stop)
		if i < 0 {
			continue
		}
		if e := i + len(stop); e < end || e == end && i < start {
			start, end = i, i+len(stop)
		}
	}
	return start
}

// open returns the length of the longest end of text that begins a stop string.
func (s *stopper) open(text string) int {
	longest := 0
	for _, stop := range s.stops {
		for n := min(len(text), len(stop)-1); n > longest; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				longest = n
			}
		}
	}
	return longest
}
