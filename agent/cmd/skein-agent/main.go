// Command skein-agent is the program on a device.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the build.
var version = "dev"

// memoryLimit keeps the idle agent small; GOMEMLIMIT overrides it.
const memoryLimit = 24 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
		debug.SetGCPercent(50)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if exitCode(err) == exitHandover { // no error: the supervisor goes on with it
		fmt.Fprintln(os.Stderr, "skein-agent:", err)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "skein-agent: error:", err)
		if hint := hintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "skein-agent: hint:", hint)
		}
	}
	stop()
	os.Exit(exitCode(err))
}
