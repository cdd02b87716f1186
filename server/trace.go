package server

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tessera-llm/tessera"
)

// Spans of a request: its own, of the route; in it "queue", until it is computed, and "answer" for each choice. They carry no text.

// span begins that of a request, as the child of the one that its traceparent header names.
func (s *Server) span(r *http.Request, route string) (context.Context, trace.Span) {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	return s.tracer.Start(ctx, route, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path)))
}

// endSpan ends it with the status that was answered.
func endSpan(span trace.Span, status int) {
	span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, http.StatusText(status))
	}
	span.End()
}

// measured generates one answer, counts it and traces it.
func (s *Server) measured(ctx context.Context, g tessera.Generation, one generate) (*tessera.Receipt, error) {
	_, span := s.tracer.Start(ctx, "answer")
	defer span.End()
	emit, last := g.Emit, time.Time{}
	g.Emit = func(piece string) error {
		now := time.Now()
		if last.IsZero() {
			span.AddEvent("first token")
		} else {
			s.metrics.between.Observe(now.Sub(last).Seconds())
		}
		last = now
		return emit(piece)
	}
	r, err := one(g)
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
		return nil, err
	}
	s.metrics.answered(r)
	sources := map[string]int{}
	for _, b := range r.Blocks {
		sources[b.Source]++
	}
	for source, n := range sources {
		span.SetAttributes(attribute.Int("tessera.blocks."+source, n))
	}
	span.SetAttributes(
		attribute.String("gen_ai.request.model", r.Model), attribute.String("tessera.attention", r.Attention),
		attribute.Int("gen_ai.usage.input_tokens", r.Usage.Prompt), attribute.Int("gen_ai.usage.output_tokens", r.Usage.Completion),
		attribute.Int("tessera.cached_tokens", r.Usage.Cached), attribute.Float64("tessera.ttft_ms", r.Timings.TTFT),
		attribute.StringSlice("gen_ai.response.finish_reasons", []string{string(r.Finish)}))
	return r, nil
}
