// Command skein-signer holds the online signing keys of a fleet, as a user of
// its own: it signs snapshot and timestamp for what persons signed, and lists
// releases within policies that persons signed. It serves a unix socket and
// nothing else.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "skein-signer: error:", err)
		os.Exit(1)
	}
}
