// Command skein-sim runs virtual Jetsons with the real agent, fleet scenarios,
// the demo, the model's training and server, and the benchmarks. It holds
// wiring only; the packages of sim do the work.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/skein-fleet/skein/sim/hil/board"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var code int
	switch {
	case board.IsTool(os.Args[0]): // an executable of a modelled board
		code = board.Main(ctx, os.Args, os.Stdout, os.Stderr)
	case isTrtexec(os.Args[0]):
		code = runTrtexec(ctx, os.Args[1:], os.Stdout, os.Stderr)
	default:
		code = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	stop()
	os.Exit(code)
}
