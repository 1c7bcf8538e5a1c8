package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/ota/trust/signer"
)

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv("SKEIN_SIGNER_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), "SKEIN_SIGNER_MAIN=1")
	return c
}

// TestProcess runs the program as skeind meets it.
func TestProcess(t *testing.T) {
	dir, err := os.MkdirTemp("", "signer") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	state, socket, repo := filepath.Join(dir, "state"), filepath.Join(dir, "s.sock"), filepath.Join(dir, "repo")
	out, err := command(t.Context(), "init", "--state", state).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "timestamp.pub") {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"keys", "public/snapshot.pub", "public/auto.pub"} {
		if _, err := os.Stat(filepath.Join(state, name)); err != nil {
			t.Error(err)
		}
	}
	if out, err := command(t.Context(), "init", "--state", state).CombinedOutput(); err == nil || !strings.Contains(string(out), "already") {
		t.Errorf("keys are made twice: %s", out)
	}
	if out, err := command(t.Context(), "run", "--state", state, "--socket", socket).CombinedOutput(); err == nil || !strings.Contains(string(out), "no root") {
		t.Errorf("runs without a root: %s", out)
	}
	if _, err := trust.InitDev(repo, "skein.local", time.Now()); err != nil {
		t.Fatal(err)
	}
	out, err = command(t.Context(), "anchor", "--state", state, filepath.Join(repo, "metadata", "1.root.json")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "root sha256:") {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := command(t.Context(), "anchor", "--state", state, filepath.Join(repo, "metadata", "1.root.json")).CombinedOutput(); err == nil {
		t.Errorf("anchored twice: %s", out)
	}

	var said bytes.Buffer
	p := command(t.Context(), "run", "--state", state, "--socket", socket)
	p.Stderr = &said
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := signer.NewClient("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	var got trust.OnlineState
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); ; {
		if got, err = c.State(t.Context()); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never ready: %v", err)
		}
	}
	if got.RootVersion != 1 || len(got.Keys) != 3 {
		t.Errorf("%+v", got)
	}
	// Its keys are not those of this root, so it signs nothing, and says so.
	targets, err := os.ReadFile(filepath.Join(repo, "metadata", "1.targets.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), trust.PublishRequest{Targets: targets}); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("published: %v", err)
	}
	if _, err := c.Publish(t.Context(), trust.PublishRequest{Targets: []byte("{}")}); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("garbage: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(state, "log.jsonl"))
	if err != nil || !strings.Contains(string(log), `"what":"refused"`) || strings.Contains(string(log), `"what":"snapshot"`) {
		t.Errorf("log: %v\n%s", err, log)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, said.String())
	}
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestUsage(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), nil, &out, &out); err != nil || !strings.Contains(out.String(), "skein-signer anchor") {
		t.Errorf("%v: %s", err, out.String())
	}
	for _, args := range [][]string{{"sign"}, {"anchor"}, {"init", "more"}, {"run", "--key", "x"}} {
		if err := run(t.Context(), append(args, "--state", t.TempDir()), &out, &out); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
