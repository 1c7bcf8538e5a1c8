package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

// environment is what the program takes from its surroundings.
type environment struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	configDir      func() (string, error)
}

// Exit codes, documented in the help of the root command.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitConflict    = 5
	exitUnreachable = 6
	exitRollout     = 7
	exitBuild       = 8
	exitInterrupted = 130
)

// usageError is a wrong call: the help of the command is the hint.
type usageError struct{ error }

// rolloutError says that a watched rollout ended without success.
type rolloutError struct{ phase, reason string }

func (e rolloutError) Error() string {
	if strings.HasPrefix(e.reason, e.phase) {
		return "rollout " + e.reason
	}
	return "rollout " + e.phase + ": " + e.reason
}

// hinted carries what to do next beside the error.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// app is what all commands share.
type app struct {
	env    environment
	flags  globalFlags
	config config
}

type globalFlags struct {
	server, token, context, output string
}

func run(ctx context.Context, args []string, env environment) int {
	a := &app{env: env}
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetIn(env.stdin)
	cmd.SetOut(env.stdout)
	cmd.SetErr(env.stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code, text, hint := a.classify(ctx, err)
	fmt.Fprintf(env.stderr, "skein: error: %s\n", cleanLines(text))
	if hint != "" {
		fmt.Fprintf(env.stderr, "skein: hint: %s\n", hint)
	}
	return code
}

// cleanLines is clean for text of several lines, indented below the first.
func cleanLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n  ")
}

func (a *app) root() *cobra.Command {
	cmd := group("skein", "manage a fleet of NVIDIA Jetson inference devices",
		`  skein login --server http://127.0.0.1:8080 --token skp_...
  skein device list
  skein model push meter --onnx model.onnx --golden golden.json
  skein release create meter --model meter@1
  skein rollout start --release meter@1 --watch`,
		a.loginCmd(), a.contextCmd(), a.whoamiCmd(), a.deviceCmd(), a.fleetCmd(), a.tokenCmd(), a.paramCmd(), a.policyCmd(),
		a.modelCmd(), a.recipeCmd(), a.engineCmd(), a.releaseCmd(), a.imageCmd(), a.artifactCmd(), a.rolloutCmd(), a.auditCmd(), a.credentialCmd(), a.trustCmd())
	cmd.Long = `skein ships models to a fleet of NVIDIA Jetsons, watches how they do, and
takes them back when they go wrong.

Exit codes:
  0    done
  1    other error
  2    wrong usage
  3    not found
  4    not logged in, or not allowed
  5    conflict: the state of the thing forbids it
  6    the server cannot be reached, or is not skeind
  7    a watched rollout ended without success
  8    an engine that was waited for was not built
  130  interrupted`
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.Version = version
	cmd.SetVersionTemplate("skein {{.Version}}\n")
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(formats(), a.flags.output) {
			return usageError{fmt.Errorf("--output %q: want %s", a.flags.output, strings.Join(formats(), ", "))}
		}
		if err := cmp.Or(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
			return usageError{fmt.Errorf("%w (see: %s --help)", err, cmd.CommandPath())}
		}
		if offline(cmd) {
			return nil
		}
		return a.loadConfig()
	}
	f := cmd.PersistentFlags()
	f.StringVar(&a.flags.server, "server", "", "address of skeind, for example http://127.0.0.1:8080 (env SKEIN_SERVER)")
	f.StringVar(&a.flags.token, "token", "", "credential (env SKEIN_TOKEN)")
	f.StringVar(&a.flags.context, "context", "", "saved login to use (env SKEIN_CONTEXT)")
	f.StringVarP(&a.flags.output, "output", "o", "table", "table, json or yaml")
	fixed(cmd, "output", formats()...)
	a.offerFlag(cmd, "context", a.contextNames)
	noFiles(cmd, "server", "token")
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see: %s --help)", err, c.CommandPath())}
	})
	return cmd
}

// offline reports whether a command does its work without a login.
func offline(c *cobra.Command) bool {
	if c.HasSubCommands() {
		return true // it only shows its help
	}
	if c.HasParent() && c.Parent().Name() == "trust" {
		f := c.Flag(dirFlag)
		return c.Name() == "init" || c.Name() == "new-key" || c.Name() != "send" && f != nil && f.Value.String() != ""
	}
	for ; c.HasParent(); c = c.Parent() {
		switch c.Name() {
		case "help", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
			return true
		}
	}
	return false
}

// group is a command that only holds others.
func group(use, short, example string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2, RunE: func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		err := usageError{fmt.Errorf("unknown command %q for %q (see: %s --help)", args[0], c.CommandPath(), c.CommandPath())}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return hinted{err, "did you mean: " + c.CommandPath() + " " + strings.Join(near, ", ") + "?"}
		}
		return err
	}}
	c.AddCommand(children...)
	return c
}

// args wraps a cobra check so that its error counts as wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		err := check(c, a)
		if err == nil {
			return nil
		}
		if strings.HasPrefix(err.Error(), "unknown command") { // said of a command that takes no arguments
			err = fmt.Errorf("unexpected argument %q", a[0])
		}
		return usageError{fmt.Errorf("%w (usage: %s)", err, c.UseLine())}
	}
}

// classify maps an error to exit code, text and hint.
func (a *app) classify(ctx context.Context, err error) (code int, text, hint string) {
	text = err.Error()
	if h, ok := errors.AsType[hinted](err); ok {
		hint = h.hint
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage, text, hint
	}
	if _, ok := errors.AsType[rolloutError](err); ok {
		return exitRollout, text, hint
	}
	if _, ok := errors.AsType[buildError](err); ok {
		return exitBuild, text, "skein engine explain says why"
	}
	if ctx.Err() != nil {
		return exitInterrupted, "interrupted", ""
	}
	if s, ok := errors.AsType[strangerError](err); ok {
		return exitUnreachable, s.Error(), hint
	}
	if isUnreachable(err) {
		return exitUnreachable, fmt.Sprintf("reach skeind at %s: %s", a.config.server, rootCause(err)),
			"is skeind running there? set --server or SKEIN_SERVER"
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return classifyConnect(ce, hint)
	}
	if se, ok := errors.AsType[statusError](err); ok {
		return se.exitCode(), text, cmp.Or(hint, se.hint())
	}
	if se, ok := errors.AsType[sourceError](err); ok {
		return se.exitCode(), text, hint
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound, text, hint
	case errors.Is(err, fs.ErrExist):
		return exitConflict, text, hint
	}
	return exitError, text, hint
}

const loginHint = "log in with: skein login --server URL --token TOKEN"

func classifyConnect(ce *connect.Error, hint string) (int, string, string) {
	text := ce.Message()
	switch ce.Code() {
	case connect.CodeNotFound:
		if hint == "" && strings.HasPrefix(text, "no such device") {
			hint = "skein device list shows the devices"
		}
		return exitNotFound, text, hint
	case connect.CodeUnauthenticated:
		return exitDenied, text, loginHint
	case connect.CodePermissionDenied:
		return exitDenied, text, "skein whoami shows your role"
	case connect.CodeFailedPrecondition, connect.CodeAlreadyExists, connect.CodeAborted:
		return exitConflict, text, hint
	case connect.CodeInvalidArgument:
		return exitUsage, strings.TrimPrefix(text, "invalid: "), hint
	}
	return exitError, text, hint
}

func isUnreachable(err error) bool {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	return connect.CodeOf(err) == connect.CodeUnavailable
}

func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}
