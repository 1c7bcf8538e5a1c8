package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/trtexec"
)

// trtexecVariable says which board trtexec runs on: MODEL, MODEL/MODE or
// MODEL/MODE/TENSORRT.
const trtexecVariable = "SKEIN_TRTEXEC"

// exitError of a command that has said all itself.
type silentExit int

func (e silentExit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func (a *app) trtexecCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trtexec [OPTIONS OF TRTEXEC]",
		Short: "a trtexec for virtual Jetsons",
		Long: `trtexec builds, loads and times plans as the trtexec of a Jetson does: they load on
the SM and TensorRT that built them and nowhere else, the output has the grammar
of the board's TensorRT, and times are those of the board's model. The board is
told by SKEIN_TRTEXEC, as MODEL, MODEL/MODE or MODEL/MODE/TENSORRT; without a mode
nvpmodel is asked, where there is one. A program of the name trtexec that is a
link to skein-sim does the same.`,
		Example:            "  SKEIN_TRTEXEC=orin-nano/25W skein-sim trtexec --onnx=model.onnx --saveEngine=model.plan --fp16",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "-h" || args[0] == "--help") && os.Getenv(trtexecVariable) == "" {
				return cmd.Help()
			}
			code := runTrtexec(cmd.Context(), args, a.stdout, a.stderr)
			if code == 0 {
				return nil
			}
			return silentExit(code)
		},
	}
	return cmd
}

// refitCmd is what takes the place of Python's TensorRT.
func (a *app) refitCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "refit PLAN ONNX OUT",
		Short:   "put the weights of an ONNX file into a stripped plan of a virtual Jetson",
		Example: "  skein-sim refit stripped.plan model.onnx full.plan",
		Args:    cobra.ExactArgs(3),
		RunE:    func(_ *cobra.Command, args []string) error { return trtexec.Refit(args[0], args[1], args[2]) },
	}
}

func isTrtexec(argv0 string) bool { return filepath.Base(argv0) == "trtexec" }

// runTrtexec runs it on the board of the environment. It dies as the real one
// does when a plan makes it crash.
func runTrtexec(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b, err := trtexecBoard(ctx, os.Getenv(trtexecVariable))
	if err != nil {
		fmt.Fprintf(stderr, "trtexec: %v\n", err)
		return exitUsage
	}
	code := trtexec.Run(ctx, b, args, stdout)
	if code == trtexec.ExitCrash {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV) // else the exit code says it
	}
	return code
}

func trtexecBoard(ctx context.Context, text string) (trtexec.Board, error) {
	parts := append(strings.SplitN(text, "/", 3), "", "")
	m, err := jetson.Lookup(parts[0])
	if err != nil {
		return trtexec.Board{}, fmt.Errorf("%s=%q: %w", trtexecVariable, text, err)
	}
	if !m.Jetson() {
		return trtexec.Board{}, fmt.Errorf("%s has no TensorRT", m.Key)
	}
	b := trtexec.Board{Model: m, Mode: parts[1], TensorRT: parts[2]}
	if b.Mode == "" {
		if out, err := exec.CommandContext(ctx, "nvpmodel", "-q").Output(); err == nil {
			_, rest, _ := strings.Cut(string(out), "NV Power Mode: ")
			b.Mode, _, _ = strings.Cut(rest, "\n")
		}
	}
	if b.Mode != "" {
		if _, err := m.Mode(b.Mode); err != nil {
			return trtexec.Board{}, err
		}
	}
	return b, nil
}
