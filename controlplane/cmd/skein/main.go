// Command skein is the command line of the control plane: devices, tokens,
// models, releases, rollouts, parameters, audit and credentials. It talks to
// skeind over Connect and holds no state but its login.
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
	code := run(ctx, os.Args[1:], environment{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, configDir: os.UserConfigDir,
	})
	stop()
	os.Exit(code)
}
