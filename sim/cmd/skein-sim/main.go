// Command skein-sim runs virtual Jetsons with the real agent, fleet scenarios,
// the demo, the model's training and server, and the benchmarks. It holds
// wiring only; the packages of sim do the work.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
