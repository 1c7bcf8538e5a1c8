package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Exit codes, documented in the help of the root command.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitExpectation = 3
	exitInterrupted = 130
)

// usageError is a wrong call: the help of the command is the hint.
type usageError struct{ error }

// expectationError says that a scenario did not go as its file says.
type expectationError struct{ error }

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	output         string
	verbose        bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	code := exitError
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	default:
		if said, ok := errors.AsType[silentExit](err); ok {
			return int(said)
		}
		if _, ok := errors.AsType[usageError](err); ok {
			code = exitUsage
		} else if _, ok := errors.AsType[loadError](err); ok && errors.Is(err, runtime.ErrIncompatible) {
			code = exitIncompatible
		} else if ok && errors.Is(err, runtime.ErrNoCapacity) {
			code = exitNoCapacity
		} else if _, ok := errors.AsType[expectationError](err); ok {
			code = exitExpectation
		}
	}
	fmt.Fprintf(stderr, "skein-sim: error: %s\n", err)
	return code
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "skein-sim",
		Short: "virtual Jetsons, fleet scenarios, benchmarks and the demo's model",
		Long: `skein-sim runs fleets of virtual Jetsons: the real agent on modelled boards, in
one process, with faults. It also trains and serves the demo's model and
measures the control plane and the agent.

Exit codes:
  0    done, and all went as it should
  1    other error
  2    wrong usage
  3    an expectation of a scenario failed, or an attack was short
  130  interrupted`,
		Example: `  skein-sim run --devices 60
  skein-sim run --scenario sim/scenario/testdata/bad-version.scn
  skein-sim train --out model
  skein-sim bench load --devices 1000`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usageError{fmt.Errorf("--output %q: want text or json", a.output)}
			}
			return nil
		},
	}
	f := cmd.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "text", "text or json")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log what the parts do, on standard error")
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see: %s --help)", err, c.CommandPath())}
	})
	cmd.AddCommand(
		a.runCmd(),
		a.hilCmd(),
		a.demoCmd(),
		a.trainCmd(),
		a.serveModelCmd(),
		a.trtexecCmd(),
		a.refitCmd(),
		a.tegrastatsCmd(),
		a.loadCmd(),
		a.benchCmd(),
		a.modelCmd(),
		a.attackCmd(),
	)
	return cmd
}

// logger is silent unless --verbose is given.
func (a *app) logger() *slog.Logger {
	if !a.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.stderr, nil))
}

// emit prints v as JSON, or calls text.
func (a *app) emit(v any, text func(io.Writer) error) error {
	if a.output == "json" {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "%s\n", b)
		return err
	}
	return text(a.stdout)
}

// noArgs is cobra.NoArgs with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q (see: %s --help)", cmd.Name(), args, cmd.CommandPath())}
	}
	return nil
}
