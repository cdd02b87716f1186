package server

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tessera-llm/tessera"
)

// metrics are what /metrics tells, of one server.
type metrics struct {
	ttft, between prometheus.Histogram
	tokens        *prometheus.CounterVec // by kind
	blocks        *prometheus.CounterVec // by where they came from
	answers       *prometheus.CounterVec // by how they ended
	handler       http.Handler
}

func newMetrics(t *tessera.Tessera) *metrics {
	registry := prometheus.NewRegistry()
	m := &metrics{
		ttft:    prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tessera_ttft_seconds", Help: "Time from a request's turn to its first token.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 14)}),
		between: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tessera_inter_token_seconds", Help: "Time between two tokens of an answer.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 12)}),
		tokens:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tessera_tokens_total", Help: "Tokens of prompts (computed or cached) and of answers."}, []string{"kind"}),
		blocks:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tessera_blocks_total", Help: "Blocks of prompts by where their keys and values came from."}, []string{"source"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tessera_answers_total", Help: "Answers by how they ended."}, []string{"finish"}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	registry.MustRegister(m.ttft, m.between, m.tokens, m.blocks, m.answers, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("tessera_answers_running", "Answers being generated: the size of the batch.", func() float64 { n, _ := t.Load(); return float64(n) }),
		gauge("tessera_prompts_waiting", "Prompts being computed or waiting for that.", func() float64 { _, n := t.Load(); return float64(n) }))
	m.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return m
}

func (m *metrics) serve(w http.ResponseWriter, r *http.Request, k *Key) error {
	if err := k.admin(); err != nil {
		return err
	}
	m.handler.ServeHTTP(w, r)
	return nil
}

// answered counts an answer.
func (m *metrics) answered(r *tessera.Receipt) {
	m.ttft.Observe(r.Timings.TTFT / 1000)
	m.tokens.WithLabelValues("computed").Add(float64(r.Usage.Prompt - r.Usage.Cached))
	m.tokens.WithLabelValues("cached").Add(float64(r.Usage.Cached))
	m.tokens.WithLabelValues("answer").Add(float64(r.Usage.Completion))
	for _, b := range r.Blocks {
		m.blocks.WithLabelValues(b.Source).Inc()
	}
	m.answers.WithLabelValues(string(r.Finish)).Inc()
}
