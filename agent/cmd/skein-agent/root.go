package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/ota/slot"
)

// Exit codes.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotEnrolled = 3
	exitRefused     = 4
	exitUnreachable = 5
	exitDiskFull    = 6
	exitSick        = 7
	exitHandover    = selfupdate.ExitHandover
)

const exitHelp = `Exit codes:
  0  done
  1  another error
  2  wrong arguments or configuration
  3  this device is not enrolled
  4  the control plane refuses the claim
  5  the agent does not answer on its socket, or nothing runs here
  6  the disk is full
  7  doctor found something to mend
  10 run asks its supervisor to start the agent of another slot`

// errUsage marks wrong arguments.
var errUsage = errors.New("wrong arguments")

// errNoAgent marks a socket on which nobody answers.
var errNoAgent = errors.New("the agent does not answer")

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage), errors.Is(err, agent.ErrBadClaim), strings.HasPrefix(err.Error(), "unknown "):
		return exitUsage
	case errors.Is(err, agent.ErrNotEnrolled):
		return exitNotEnrolled
	case errors.Is(err, agent.ErrClaimRefused):
		return exitRefused
	case errors.Is(err, errNoAgent):
		return exitUnreachable
	case errors.Is(err, agent.ErrHandover):
		return exitHandover
	case errors.Is(err, slot.ErrDiskFull):
		return exitDiskFull
	case errors.Is(err, errSick):
		return exitSick
	}
	return exitError
}

func hintOf(err error) string {
	switch exitCode(err) {
	case exitNotEnrolled:
		return "enrol first: skein-agent enroll --server https://HOST:8443 --claim CLAIM"
	case exitRefused:
		return "make a new claim with: skein token create"
	case exitUnreachable:
		return "is skein-agent run going, with the same --socket, and may this user read it?"
	case exitDiskFull:
		return "free some space where --state is"
	case exitUsage:
		return "skein-agent help"
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "run it as the user whom --state belongs to, root when it is a service"
	case errors.Is(err, syscall.EROFS):
		return "is the disk mounted read-only, or the folder outside what the service may write?"
	}
	return ""
}

// streams are what a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) error {
	if len(args) > 0 && (args[0] == "-check" || args[0] == "--check") { // as other daemons have it
		args = append([]string{"run", "--check"}, args[1:]...)
	}
	root := rootCommand(streams{in, out, errs})
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

func rootCommand(s streams) *cobra.Command {
	var config string
	root := &cobra.Command{
		Use: "skein-agent", Short: "Skein on a device: keeps it on its desired release and tells how it does",
		Example:      "  skein-agent enroll --server https://fleet.example.com:8443 --claim skein1....\n  skein-agent run\n  skein-agent status",
		Long:         "Skein on a device: keeps it on its desired release and tells how it does.\n\n" + exitHelp,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.PersistentFlags().StringVar(&config, "config", "", "JSON file with the same names as the flags; flags win")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return applyConfig(cmd, config) }
	root.AddCommand(runCommand(s), superviseCommand(s), enrollCommand(s), identifyCommand(s), statusCommand(s), explainCommand(s), traceCommand(s), logsCommand(s), holdCommand(s), releaseHoldCommand(s), doctorCommand(s), bundleCommand(s), tegrastatsCommand(s), engineCommand(s), versionCommand(s))
	return root
}

// unreachable tells apart a socket without an agent from other errors.
func unreachable(err error, socket string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w on %s: %w", errNoAgent, socket, err)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok || strings.Contains(err.Error(), "connect: ") {
		return fmt.Errorf("%w on %s: %w", errNoAgent, socket, err)
	}
	return localapi.Refusal(err)
}
