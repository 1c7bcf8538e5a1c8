package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/ota/trust/signer"
)

const usage = `skein-signer holds the online signing keys of a fleet.

  skein-signer init --state DIR           make its keys; the public halves go to DIR/public
  skein-signer anchor --state DIR ROOT    give it the first root, a file made by skein trust init and signed
  skein-signer run --state DIR --socket PATH
                                          answer skeind --signer unix://PATH

Keys lie in DIR/keys (mode 0600): give DIR to a user of its own, and let skeind's
user into the group of the socket. What it signs and refuses is in DIR/log.jsonl.
`

// run does one command.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	f := flag.NewFlagSet("skein-signer "+args[0], flag.ContinueOnError)
	f.SetOutput(stderr)
	state := f.String("state", "/var/lib/skein-signer", "folder of keys, state and log")
	socket := f.String("socket", "/run/skein-signer/signer.sock", "unix socket")
	if err := f.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if _, err := os.Stat(*state); args[0] != "init" && err != nil {
		return fmt.Errorf("no signer there: %w: make one with skein-signer init, or give another --state", err)
	}
	dir, err := slot.OpenDir(*state)
	if err != nil {
		return err
	}
	defer dir.Close()
	switch {
	case args[0] == "init" && f.NArg() == 0:
		return initKeys(dir, *state, stdout)
	case args[0] == "anchor" && f.NArg() == 1:
		return anchor(dir, f.Arg(0), stdout)
	case args[0] == "run" && f.NArg() == 0:
		return serve(ctx, dir, *socket, stderr)
	}
	return fmt.Errorf("unknown command or arguments; see skein-signer help")
}

func initKeys(dir slot.Files, state string, stdout io.Writer) error {
	keys, err := trust.InitNotary(dir)
	if err != nil {
		return err
	}
	for _, kind := range trust.NotaryRoles {
		name := "public/" + kind + ".pub"
		if err := dir.WriteFile(name, keys[kind]); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(stdout, "%-10s %s\n", kind, filepath.Join(state, name)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdout, "give these to: skein trust init --snapshot-key snapshot.pub --timestamp-key timestamp.pub\n")
	return err
}

func anchor(dir slot.Files, path string, stdout io.Writer) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := trust.AnchorNotary(dir, b); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "root %s: compare with skein trust status\n", ota.DigestOf(b))
	return err
}

func serve(ctx context.Context, dir slot.Files, socket string, stderr io.Writer) (err error) {
	logger := slog.New(slog.NewTextHandler(stderr, nil))
	file, err := dir.OpenAppend("log.jsonl")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	l := &journal{file: file, logger: logger}
	n, err := trust.OpenNotary(dir, time.Now, l.write)
	if err != nil {
		return err
	}
	ln, err := signer.Listen(socket)
	if err != nil {
		return err
	}
	logger.Info("ready", "socket", socket)
	return signer.Serve(ctx, ln, n)
}

// journal is the append-only log: a line is durable before a signature leaves.
type journal struct {
	logger *slog.Logger

	mu   sync.Mutex // guards file
	file slot.AppendFile
}

func (j *journal) write(e trust.NotaryEntry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(b, '\n')); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.logger.Info("signer", "what", e.What, "version", e.Version, "digest", string(e.Digest), "detail", e.Detail)
	return nil
}
