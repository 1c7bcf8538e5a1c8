// Command skein-tuf is a TUF client for the command line: it keeps the metadata
// of a repository up to date and downloads what is listed there.
//
// Invariants: it believes what the agent believes, for it is the same code
// (ota/trust, ota/fetch, ota/blob); a file appears under its name when it is
// whole and its hash is the signed one; memory does not grow with a file's
// size. Nobody imports it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/ota/trust"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // refused, not there, or no network: the text says which
	exitUsage  = 2
)

const usage = `skein-tuf keeps the metadata of a TUF repository and downloads what it lists.

Usage:
  skein-tuf [flags] init ROOT     begin with the trusted root metadata in file ROOT
  skein-tuf [flags] refresh       bring the metadata up to date
  skein-tuf [flags] download      bring it up to date, then download each --target-name

Example:
  skein-tuf --metadata-dir state init root.json
  skein-tuf --metadata-dir state --metadata-url https://repo.example/metadata \
    --target-base-url https://repo.example/targets --target-dir . \
    --target-name releases/meter/3 download

What is trusted lies below --metadata-dir: state of its own in trust/, copies for
people in root.json, timestamp.json and so on. A download that was cut off goes on
where it ended. A file is named after its target, with / as %2F; one that is there
with the signed hash is not fetched again.

Exit codes: 0 done, 1 refused, not there or failed (the text says which; a refusal
names its class of attack), 2 wrong usage.

Flags:
`

type options struct {
	metadataDir, metadataURL string
	targetDir, targetURL     string
	targets                  names
	now                      time.Time
	command, root            string
}

// names is a flag that may be given several times.
type names []string

// String implements flag.Value.
func (n *names) String() string { return strings.Join(*n, ",") }

// Set implements flag.Value.
func (n *names) Set(s string) error { *n = append(*n, s); return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "skein-tuf: %v\nsee skein-tuf --help\n", err)
		return exitUsage
	}
	switch o.command {
	case "init":
		err = initialise(o)
	case "refresh":
		err = refresh(ctx, o)
	case "download":
		err = download(ctx, o, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "skein-tuf: %v\n", err)
		if class := trust.AttackClass(err); class != "" {
			fmt.Fprintf(stderr, "skein-tuf: this looks like an attack of class %s; what was trusted before still is\n", class)
		}
		return exitFailed
	}
	return exitOK
}

func parse(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	var now string
	f := flag.NewFlagSet("skein-tuf", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.metadataDir, "metadata-dir", "", "`folder` of what is trusted")
	f.StringVar(&o.metadataURL, "metadata-url", "", "`address` of the repository's metadata")
	f.StringVar(&o.targetDir, "target-dir", "", "`folder` to download to")
	f.StringVar(&o.targetURL, "target-base-url", "", "`address` of the repository's targets")
	f.Var(&o.targets, "target-name", "`path` of a target; may be given several times")
	f.StringVar(&now, "now", "", "judge expiry at this `time` (RFC 3339) instead of the clock's, for archives and tests")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		f.SetOutput(stdout)
		f.PrintDefaults()
		return o, err
	}
	if err != nil {
		return o, err
	}
	o.now = time.Now()
	if now != "" {
		if o.now, err = time.Parse(time.RFC3339, now); err != nil {
			return o, fmt.Errorf("--now %q: want a time such as 2026-11-24T09:00:00Z", now)
		}
	}
	o.command, o.root = f.Arg(0), f.Arg(1)
	return o, o.check(f.NArg())
}

func (o options) check(args int) error {
	want, needs := 1, map[string]string{"--metadata-dir": o.metadataDir}
	switch o.command {
	case "init":
		want = 2
	case "refresh", "download":
		needs["--metadata-url"] = o.metadataURL
	case "":
		return errors.New("no command: want init, refresh or download")
	default:
		return fmt.Errorf("unknown command %q: want init, refresh or download", o.command)
	}
	if o.command == "download" {
		needs["--target-dir"], needs["--target-base-url"], needs["--target-name"] = o.targetDir, o.targetURL, o.targets.String()
	}
	if args != want {
		return fmt.Errorf("%s: %d arguments, want %d", o.command, args-1, want-1)
	}
	for _, name := range []string{"--metadata-dir", "--metadata-url", "--target-dir", "--target-base-url", "--target-name"} {
		if v, needed := needs[name]; needed && v == "" {
			return fmt.Errorf("%s: give %s", o.command, name)
		}
	}
	return nil
}
