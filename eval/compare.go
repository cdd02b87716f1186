package eval

import (
	"math"
	"math/rand/v2"
	"slices"
)

// An Interval is a 95 % confidence interval.
type Interval [2]float64

// z is the normal distribution's 97.5 % point.
const z = 1.959963984540054

// Wilson is the interval of a share, k of n, by Wilson's score method.
func Wilson(k, n int) Interval {
	if n == 0 {
		return Interval{0, 1}
	}
	p, m := float64(k)/float64(n), float64(n)
	middle := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return Interval{max(middle-half, 0), min(middle+half, 1)}
}

// McNemar is the exact two-sided p-value of McNemar's test, for pairs of which only the first was right b times and only the second c
// times: how likely a fair coin is to fall at least as unevenly.
func McNemar(b, c int) float64 {
	n, tail := b+c, 0.0
	logN, _ := math.Lgamma(float64(n + 1))
	for k := range min(b, c) + 1 {
		logK, _ := math.Lgamma(float64(k + 1))
		logRest, _ := math.Lgamma(float64(n - k + 1))
		tail += math.Exp(logN - logK - logRest - float64(n)*math.Ln2)
	}
	return min(2*tail, 1)
}

const resamples = 10_000

// bootstrap is the percentile interval of the mean over sets of each set's mean, of resamples drawn within each set: what another
// sample of questions might have given. The same seed gives the same interval.
func bootstrap(sets [][]float64, seed uint64) Interval {
	rng := rand.New(rand.NewPCG(seed, 0))
	means := make([]float64, resamples)
	for i := range means {
		for _, set := range sets {
			sum := 0.0
			for range set {
				sum += set[rng.IntN(len(set))]
			}
			means[i] += sum / float64(len(set)) / float64(len(sets))
		}
	}
	slices.Sort(means)
	return Interval{quantile(means, 0.025), quantile(means, 0.975)}
}

// quantile interpolates between the two nearest of sorted values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// A Comparison is of two runs over the same questions, question by question.
type Comparison struct {
	Datasets []string `json:"datasets"` // more than one: the difference is averaged over them
	Of       string   `json:"of"`
	Against  string   `json:"against"`
	N        int      `json:"n"`

	Difference  float64  `json:"difference"` // in accuracy: above 0 where Of is better
	Interval    Interval `json:"interval"`   // by paired bootstrap
	OnlyOf      int      `json:"only_of"`    // questions that only Of got right
	OnlyAgainst int      `json:"only_against"`
	McNemar     float64  `json:"mcnemar_p"`
}

// compare pairs runs: of[i] and against[i] are of the same questions.
func compare(of, against []*Result) Comparison {
	c := Comparison{Of: of[0].Label(), Against: against[0].Label()}
	sets := make([][]float64, len(of))
	for i := range of {
		c.Datasets = append(c.Datasets, of[i].Dataset)
		c.N += of[i].N
		sets[i] = of[i].outcomes()
		for j, other := range against[i].outcomes() {
			sets[i][j] -= other
			switch sets[i][j] {
			case 1:
				c.OnlyOf++
			case -1:
				c.OnlyAgainst++
			}
		}
		c.Difference += (of[i].Accuracy - against[i].Accuracy) / float64(len(of))
	}
	c.Interval = bootstrap(sets, 1)
	c.McNemar = McNemar(c.OnlyOf, c.OnlyAgainst)
	return c
}
