// Package server is a Tessera over HTTP: OpenAI's API, so that its clients work unchanged, what Tessera has beyond it, and a web page.
//
//	/v1/chat/completions  /v1/completions  /v1/responses                          chat.go, completions.go, responses.go
//	/v1/models  /tokenize  /detokenize                                            completions.go
//	/api/collections  /api/store                                                  collections.go, store.go
//	/health  /ready  /metrics  /openapi.json                                      here, metrics.go, openapi.json
//	/                                                                             web/, embedded
//
// A request passes, in this order: the check of where it comes from, its key, the limit of its body, its tenant's rate, its body, the queue,
// its handler.
package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/time/rate"

	"github.com/tessera-llm/tessera"
)

// Options of a Server. The zero value is sensible for one user on one machine.
type Options struct {
	Keys      *Keys                // nil: nobody needs one
	Active    int                  // requests that are computed at a time; 0: 64
	Waiting   int                  // and that may wait for that; 0: 256
	BodyBytes int64                // of a request; 0: 32 MiB
	FileBytes int64                // of a request that brings files; 0: 1 GiB
	Library   string               // folder of the collections; "": there are none
	Cache     string               // folder of what reading documents keeps between runs; ""
	Log       *slog.Logger         // nil: nothing is logged. Prompts never are
	Loopback  bool                 // listens on the machine's own addresses alone: a request for another host name is a web page's trick
	Deadline  time.Duration        // of a request, its waiting included; 0: none
	PerMinute int                  // requests of one tenant that are computed; 0: any number
	Tracer    trace.TracerProvider // nil: nothing is traced
	Warm      bool                 // compute the blocks of collections while nobody asks, even where answers use block attention on demand alone
}

// A Server answers HTTP requests with one Tessera.
type Server struct {
	tessera *tessera.Tessera
	o       Options
	metrics *metrics
	mux     *http.ServeMux
	routes  []string
	active  chan struct{} // holds a token for each request that is computed
	waiting atomic.Int64
	asked   atomic.Int64 // when a request last came or went, in nanoseconds
	warming atomic.Pointer[context.CancelFunc]
	limits  limits
	tracer  trace.Tracer
	library library
	started time.Time

	bodyTime time.Duration // within which the body of a request that is computed has to come, and something of one with files
}

// New makes a Server. The Tessera must be closed after the last request.
func New(t *tessera.Tessera, o Options) *Server {
	if o.Active == 0 {
		o.Active = 64
	}
	if o.Waiting == 0 {
		o.Waiting = 256
	}
	if o.BodyBytes == 0 {
		o.BodyBytes = 32 << 20
	}
	if o.FileBytes == 0 {
		o.FileBytes = 1 << 30
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{tessera: t, o: o, metrics: newMetrics(t), mux: http.NewServeMux(), active: make(chan struct{}, o.Active), started: time.Now(), bodyTime: 30 * time.Second}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider()
	}
	s.tracer = o.Tracer.Tracer("github.com/tessera-llm/tessera/server")
	s.limits = limits{perMinute: o.PerMinute, tenants: map[string]*rate.Limiter{}}
	s.library = library{root: o.Library, open: map[string]*openCollection{}}
	s.handle("POST /v1/chat/completions", s.queued(s.chat))
	s.handle("POST /v1/completions", s.queued(s.complete))
	s.handle("POST /v1/responses", s.queued(s.respond))
	s.handle("GET /v1/models", s.models)
	s.handle("GET /v1/models/{id...}", s.model)
	s.handle("POST /tokenize", s.tokenize)
	s.handle("POST /detokenize", s.detokenize)
	s.handle("GET /api/collections", s.collections)
	s.handle("DELETE /api/collections/{name}", s.removeCollection)
	s.handleBody("POST /api/collections/{name}/files", o.FileBytes, s.addFiles)
	s.handle("GET /api/collections/{name}/search", s.search)
	s.handle("GET /api/store", s.store)
	s.handle("POST /api/store/drop", s.drop)
	s.handle("GET /metrics", s.metrics.serve)
	open := func(w http.ResponseWriter, r *http.Request) { writeJSON(w, map[string]string{"status": "ok"}) }
	s.route("GET /health", open)
	s.route("GET /ready", open) // who connected before the model was loaded has waited until here
	s.route("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI)
	})
	s.mux.Handle("GET /", page())
	return s
}

// Close closes the collections. No request may be under way.
func (s *Server) Close() error { return s.library.close() }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	seen := &recorder{ResponseWriter: w, status: http.StatusOK}
	if err := s.allowed(r); err != nil {
		writeError(seen, err)
	} else {
		s.mux.ServeHTTP(seen, r)
	}
	s.o.Log.Info("request", "method", r.Method, "path", r.URL.Path, "status", seen.status, "ms", time.Since(start).Milliseconds(), "from", r.RemoteAddr)
}

// allowed refuses what a page of another site makes a browser send: to the loopback address under another host name, or with another
// origin than this server's.
func (s *Server) allowed(r *http.Request) error {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if s.o.Loopback && !loopbackName(host) {
		return &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Message: fmt.Sprintf("the host %q is not this machine's own; listen on another address to be reached by it", host)}
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host {
		return &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Message: fmt.Sprintf("requests from the origin %q are not allowed", origin)}
	}
	return nil
}

func loopbackName(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}

// A handler answers, or returns an error for writeError.
type handler func(w http.ResponseWriter, r *http.Request, k *Key) error

// route remembers what is routed, which openapi.json has to tell of.
func (s *Server) route(pattern string, h http.HandlerFunc) {
	s.routes = append(s.routes, pattern)
	s.mux.HandleFunc(pattern, h)
}

// handle routes to a handler what has a key, where keys are needed.
func (s *Server) handle(pattern string, h handler) { s.handleBody(pattern, s.o.BodyBytes, h) }

// handleBody is handle of bodies of so many bytes.
func (s *Server) handleBody(pattern string, limit int64, h handler) {
	s.route(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, span := s.span(r, pattern)
		defer func() { endSpan(span, w.(*recorder).status) }() // ServeHTTP's
		r = r.WithContext(ctx)
		key, err := s.o.Keys.of(r)
		if err == nil {
			r.Body = http.MaxBytesReader(w, r.Body, limit)
			err = h(w, r, key)
		}
		if err != nil {
			writeError(w, err)
		}
	})
}

// queued lets so many requests be computed at a time, and so many wait; others are told to come back. Who sends slowly keeps nobody
// waiting: the body is there before a place is taken.
func (s *Server) queued(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, k *Key) error {
		s.attend()
		defer s.attend()
		if err := s.limits.admit(w, k); err != nil {
			return err
		}
		if err := s.receive(w, r); err != nil {
			return err
		}
		if s.waiting.Add(1) > int64(s.o.Waiting+s.o.Active) {
			s.waiting.Add(-1)
			return comeBack(w, time.Second, &apiError{Status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: "queue_full", Message: fmt.Sprintf("%d requests wait already; try again in a second", s.o.Waiting)})
		}
		defer s.waiting.Add(-1)
		ctx := r.Context()
		if s.o.Deadline > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, s.o.Deadline, errDeadline)
			defer cancel()
		}
		_, queue := s.tracer.Start(ctx, "queue")
		select {
		case s.active <- struct{}{}:
			queue.End()
		case <-ctx.Done():
			queue.End()
			return context.Cause(ctx)
		}
		defer func() { <-s.active }()
		return h(w, r.WithContext(ctx), k)
	}
}

// receive reads the body whole, within bodyTime.
func (s *Server) receive(w http.ResponseWriter, r *http.Request) error {
	connection := http.NewResponseController(w)
	// Where no deadline can be set there is no connection that could be slow.
	_ = connection.SetReadDeadline(time.Now().Add(s.bodyTime))
	body, err := io.ReadAll(r.Body)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return tooSlow(w, "the body did not come within %v", s.bodyTime)
	}
	if err != nil {
		return err
	}
	_ = connection.SetReadDeadline(time.Time{}) // else the answer would end there: it is watched whether the client is still there
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// tooSlow is the error for a body that does not come, after which nothing is read of the connection.
func tooSlow(w http.ResponseWriter, format string, args ...any) error {
	w.Header().Set("Connection", "close")
	return &apiError{Status: http.StatusRequestTimeout, Type: "invalid_request_error", Code: "timeout", Message: fmt.Sprintf(format, args...)}
}

// attend notes that someone asks, or did until now: warming gives way.
func (s *Server) attend() {
	s.asked.Store(time.Now().UnixNano())
	if cancel := s.warming.Load(); cancel != nil {
		(*cancel)()
	}
}

var errDeadline = &apiError{Status: http.StatusServiceUnavailable, Type: "server_error", Code: "deadline", Message: "the request took longer than this server allows"}

// Serve answers on a listener until ctx ends; requests under way then have grace to end.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	web := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 5 * time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	if s.o.Warm || s.tessera.AutoIsBlock() {
		warm, end := context.WithCancel(ctx)
		var warmed sync.WaitGroup
		warmed.Go(func() { s.warmUp(warm) })
		defer warmed.Wait()
		defer end()
	}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := web.Shutdown(patience)
	if errors.Is(err, context.DeadlineExceeded) {
		err = web.Close() // which cancels them
	}
	if serving := <-ended; !errors.Is(serving, http.ErrServerClosed) {
		err = errors.Join(err, serving)
	}
	return err
}

// salt keeps the blocks of a key's tenant from others'; without keys there is none.
func (k *Key) salt() []byte {
	if k == nil {
		return nil
	}
	sum := sha256.Sum256([]byte("tessera tenant " + k.Tenant))
	return sum[:]
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status, r.wrote = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// TLS makes connections of a listener encrypted.
func TLS(l net.Listener, cert, key string) (net.Listener, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", cert, key, err)
	}
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}), nil
}
