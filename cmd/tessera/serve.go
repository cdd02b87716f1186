package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/tessera-llm/tessera/internal/home"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/server"

	tessera "github.com/tessera-llm/tessera"
)

func serveCommand() *cobra.Command {
	var (
		addr, keysFile, cert, key string
		config                    string
		public, quiet             bool
		memory, ram, disk         float64
		o                         server.Options
		grace                     time.Duration
	)
	cmd := &cobra.Command{
		Use:   "serve [--addr HOST:PORT]",
		Short: "Answer over HTTP: OpenAI's API, and a web page",
		Long: `Answer over HTTP, by OpenAI's API, so that its clients work unchanged, and by a web page at the same address.

API keys come from --keys, a file with a line TENANT SECRET for each (and "admin" behind who may see the store and the metrics), or from
TESSERA_API_KEYS, the same with commas between. Blocks of one tenant are never found by another. SIGHUP reads the file again; SIGTERM ends
the server once the requests under way are answered.

Each flag can be given by the environment instead, as TESSERA_SERVE_ADDR, or by a line of --config, as "addr: 0.0.0.0:8080"; the command line comes
first, then the environment. Traces go where OTEL_EXPORTER_OTLP_ENDPOINT says.`,
		Example: "  tessera serve\n  tessera serve --addr 0.0.0.0:8080 --keys keys.txt --tls-cert cert.pem --tls-key key.pem",
		Args:    cobra.NoArgs,
	}
	model, adapter := modelFlag(cmd), adapterFlag(cmd, "")
	f := cmd.Flags()
	f.StringVar(&addr, "addr", "127.0.0.1:8080", "address to listen on")
	f.StringVar(&keysFile, "keys", "", "file of API keys")
	f.BoolVar(&public, "without-keys", false, "listen on a public address even without API keys")
	f.StringVar(&cert, "tls-cert", "", "certificate, PEM")
	f.StringVar(&key, "tls-key", "", "its key, PEM")
	f.IntVar(&o.Active, "active", 64, "requests that are computed at a time")
	f.IntVar(&o.Waiting, "waiting", 256, "requests that may wait for that; further ones are told to come back")
	f.IntVar(&o.PerMinute, "rate", 0, "requests a minute of one tenant that are computed; further ones are told to come back. 0: any number")
	f.Float64Var(&memory, "memory", 0, "GiB for the keys and values of all answers under way; further ones wait. 0: half of what is free")
	f.Float64Var(&ram, "store-ram", kv.DefaultRAMBytes/(1<<30), "GiB of blocks kept in memory")
	f.Float64Var(&disk, "store-disk", kv.DefaultDiskBytes/(1<<30), "GiB of blocks kept on disk; those used longest ago go first")
	f.DurationVar(&o.Deadline, "deadline", 0, "how long a request may take; 0: as long as it wants")
	f.BoolVar(&o.Warm, "warm", false, "compute the blocks of collections while nobody asks; always, where answers use block attention unless told otherwise")
	f.DurationVar(&grace, "grace", 30*time.Second, "how long requests under way may take when the server is told to end")
	f.BoolVar(&quiet, "quiet", false, "log no requests")
	f.StringVar(&config, "config", "", "YAML file of these flags")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := configure(cmd, cmp.Or(config, os.Getenv("TESSERA_SERVE_CONFIG"))); err != nil {
			return err
		}
		if (cert == "") != (key == "") {
			return &usageError{errors.New("--tls-cert and --tls-key: want both or neither")}
		}
		if o.Active < 1 || o.Waiting < 0 || o.PerMinute < 0 || memory < 0 || ram < 0 || disk < 0 {
			return &usageError{fmt.Errorf("--active %d --waiting %d --rate %d --memory %v --store-ram %v --store-disk %v: want at least 1, and 0 for the others", o.Active, o.Waiting, o.PerMinute, memory, ram, disk)}
		}
		if o.Library, err = collectionsFolder(); err != nil {
			return err
		}
		if o.Cache, err = home.Cache(); err != nil {
			return err
		}
		if o.Keys, err = server.ReadKeys(keysFile, os.Getenv("TESSERA_API_KEYS")); err != nil {
			return err
		}
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer listener.Close()
		at := listener.Addr().(*net.TCPAddr)
		o.Loopback = at.AddrPort().Addr().Unmap().IsLoopback()
		if !o.Loopback && o.Keys == nil && !public {
			return &usageError{fmt.Errorf("--addr %s: anyone who reaches it could use it; want --keys FILE, or --without-keys if that is meant", addr)}
		}
		scheme := "http"
		if cert != "" {
			scheme = "https"
			if listener, err = server.TLS(listener, cert, key); err != nil {
				return err
			}
		}
		if !quiet {
			o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		}
		traces, err := tracing(cmd.Context())
		if err != nil {
			return err
		}
		if traces != nil {
			o.Tracer = traces
			defer func() { err = errors.Join(err, traces.Shutdown(context.WithoutCancel(cmd.Context()))) }()
		}
		gib := func(n float64) int64 { return int64(n * (1 << 30)) }
		l := limits{gib(memory), gib(ram), gib(disk)}
		if memory == 0 {
			l.answers = freeMemory() / 2
		}
		return withLimits(cmd, *model, *adapter, l, func(t *tessera.Tessera) error {
			defer reloadOnHangup(o.Keys, cmd)()
			s := server.New(t, o)
			fmt.Fprintf(cmd.OutOrStdout(), "%s://%s\n", scheme, reachable(at))
			return errors.Join(s.Serve(cmd.Context(), listener, grace), s.Close())
		})
	}
	return cmd
}

// tracing sends traces where OpenTelemetry's variables say, nil where they say nothing.
func tracing(ctx context.Context) (*trace.TracerProvider, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return nil, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "tessera")), resource.WithFromEnv(), resource.WithProcessPID(), resource.WithHost())
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	return trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(about)), nil
}

// reachable is an address to open in a browser: all of the machine's are reached by its own.
func reachable(at *net.TCPAddr) netip.AddrPort {
	a := at.AddrPort()
	if a.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// reloadOnHangup reads keys again at each SIGHUP, until the function it returns is called.
func reloadOnHangup(keys *server.Keys, cmd *cobra.Command) (stop func()) {
	if keys == nil {
		return func() {}
	}
	hangups, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for range hangups {
			if err := keys.Reload(); err != nil {
				say(cmd.ErrOrStderr(), fmt.Errorf("the API keys stay as they were: %w", err))
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-ended
	}
}
