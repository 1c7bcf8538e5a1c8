// Command skein-fetch brings one file from a source outside Skein's own blob
// server: http and https, S3, Google Cloud Storage, a file of a Git repository.
// It is a program of its own, so that go-getter and the clouds' libraries are
// in no agent, and so that the code that reads from strangers can reach
// nothing but the folder it writes to.
//
// Invariants: nothing is written outside the folder of --out; archives are not
// unpacked; the file never grows beyond --limit; what it says of the content
// is what it hashed. It belongs to a Go module of its own and imports nothing
// of Skein; agent and CLI run it as a child.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1 // network, server or disk: a later try may do
	exitUsage   = 2
	exitRefused = 3 // the source is not there, or is not given to us
	exitContent = 4 // longer than --limit, or not what --sha256 says
)

const usage = `skein-fetch brings one file from http, https, S3, Google Cloud Storage or Git.

Usage:
  skein-fetch --out FILE [flags] SOURCE

Sources:
  https://host/model.onnx
  s3::https://s3.eu-west-1.amazonaws.com/bucket/model.onnx     (credentials from the environment)
  gcs::https://www.googleapis.com/storage/v1/bucket/model.onnx
  git::https://host/team/models.git//meter/model.onnx?ref=v3

Example:
  skein-fetch --out /var/lib/fetch/model.onnx --limit 4000000000 \
    --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 https://host/model.onnx

A file that is there already is taken for the beginning of the same one: http
sources that serve ranges are resumed, others start anew. Where the kernel has
Landlock the program shuts itself into the folder of --out.

On success it prints {"bytes":N,"sha256":"HEX","confined":true}.
Exit codes: 0 done, 1 failed and may work later, 2 wrong usage, 3 not there or
not allowed, 4 too long or wrong content.

Flags:
`

type options struct {
	source string
	out    string
	limit  int64
	sha256 string
	idle   time.Duration
	ca     string
}

// result is what is printed on success.
type result struct {
	Bytes    int64  `json:"bytes"`
	SHA256   string `json:"sha256"`
	Confined bool   `json:"confined"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "skein-fetch: %v (see skein-fetch --help)\n", err)
		return exitUsage
	}
	r, err := fetch(ctx, o)
	if err != nil {
		fmt.Fprintf(stderr, "skein-fetch: %v\n", err)
		return exitCode(err)
	}
	if err := json.NewEncoder(stdout).Encode(r); err != nil {
		return exitFailed
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("skein-fetch", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, usage)
		fs.PrintDefaults()
	}
	fs.StringVar(&o.out, "out", "", "file to write; its folder is all that can be written to")
	fs.Int64Var(&o.limit, "limit", 64<<30, "most bytes to write")
	fs.StringVar(&o.sha256, "sha256", "", "64 hex digits that the content must have")
	fs.DurationVar(&o.idle, "idle", 2*time.Minute, "give up when nothing arrives for this long")
	fs.StringVar(&o.ca, "ca", "", "PEM file of certificate authorities, in place of the system's")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() != 1:
		return o, fmt.Errorf("want one source, got %d", fs.NArg())
	case o.out == "":
		return o, errors.New("--out is missing")
	case o.limit <= 0 || o.idle <= 0:
		return o, errors.New("--limit and --idle must be above zero")
	case o.sha256 != "" && len(strings.Trim(o.sha256, "0123456789abcdef")) != 0 || o.sha256 != "" && len(o.sha256) != 64:
		return o, errors.New("--sha256 wants 64 lower-case hex digits")
	}
	abs, err := filepath.Abs(o.out)
	if err != nil {
		return o, fmt.Errorf("--out: %w", err)
	}
	o.source, o.out = fs.Arg(0), abs
	return o, nil
}

func exitCode(err error) int {
	switch {
	case errors.Is(err, errSource):
		return exitUsage
	case errors.Is(err, errRefused):
		return exitRefused
	case errors.Is(err, errTooLong), errors.Is(err, errWrongContent):
		return exitContent
	}
	return exitFailed
}
