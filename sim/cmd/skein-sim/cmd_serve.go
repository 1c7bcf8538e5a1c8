package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Exit codes of serve-model by which it tells skein-agent why a model does not
// load, from sysexits.
const (
	exitIncompatible = 65
	exitNoCapacity   = 71
	exitCrash        = 139 // as a shell shows a segmentation fault
)

// loadError is a model that could not be loaded.
type loadError struct{ error }

func (e loadError) Unwrap() error { return e.error }

func (a *app) serveModelCmd() *cobra.Command {
	var (
		addr string
		w    = runtime.Workload{Format: "onnx"}
	)
	cmd := &cobra.Command{
		Use:   "serve-model",
		Short: "serve an ONNX model over KServe v2",
		Long: `serve-model serves one ONNX model on the interpreter over the KServe v2 protocol
(HTTP). It is what skein-agent's process runtime starts on hosts without
containers.

Exit codes besides those of skein-sim:
  65   the model cannot run here
  71   not enough memory for it`,
		Example: `  skein-sim serve-model --addr 127.0.0.1:8000 --dir model --model-file model.onnx --model meter --version 1
  skein-agent run --model-command "skein-sim serve-model --addr {addr} --dir {dir} --model-file {model-file} --model {model} --version {version}"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			w.ID = w.Model + "@" + w.Version
			e := engine.New(engine.Options{})
			if err := e.Load(ctx, w); err != nil {
				return loadError{err}
			}
			if err := e.Switch(ctx, w.ID); err != nil {
				return err
			}
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			var answers runtime.Inferer = e
			if answers, err = virtual.Mortal(e, filepath.Join(w.Dir, w.ModelFile), func() { os.Exit(exitCrash) }); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "serving %s on http://%s/v2\n", w.ID, ln.Addr())
			handler := kserve.NewHandler(kserve.Options{Inferer: answers, Models: e.Served, Name: "skein-sim", Version: version})
			return serve(ctx, ln, handler)
		},
	}
	f := cmd.Flags()
	f.StringVar(&addr, "addr", "127.0.0.1:8000", "address to listen on")
	f.StringVar(&w.Dir, "dir", ".", "folder of the model")
	f.StringVar(&w.ModelFile, "model-file", "model.onnx", "file in it")
	f.StringVar(&w.Model, "model", "meter", "name to serve it under")
	f.StringVar(&w.Version, "version", "1", "version to serve it under")
	return cmd
}

// serve serves until ctx ends and lets requests end.
func serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := s.Shutdown(grace)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
