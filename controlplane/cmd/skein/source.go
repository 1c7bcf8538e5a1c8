package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// fetcher is the program that brings files from outside.
const fetcher = "skein-fetch"

// uploadFrom is upload of a file or of what skein-fetch brings from a source.
func (a *app) uploadFrom(ctx context.Context, from string) (string, error) {
	if !strings.Contains(from, "://") {
		return a.upload(ctx, from)
	}
	file, err := a.fetchSource(ctx, from)
	if err != nil {
		return "", err
	}
	digest, err := a.upload(ctx, file)
	if err != nil {
		return "", err // the file stays: the next run does not fetch it again
	}
	return digest, os.RemoveAll(filepath.Dir(file))
}

// fetchSource brings source into a folder of its own beside the configuration,
// where a broken transfer goes on the next time.
func (a *app) fetchSource(ctx context.Context, source string) (string, error) {
	program, err := findFetcher()
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(source))
	file := filepath.Join(filepath.Dir(a.config.path), "fetched", hex.EncodeToString(key[:16]), "file")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("make a folder for what is fetched: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, "--out", file, "--", source)
	var stderr bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &stderr, 5*time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start %s: %w", program, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	bar := newProgress(a.env.stderr, filepath.Base(source), 0)
	defer bar.done()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return "", sourceError{err, strings.TrimSpace(stderr.String())}
			}
			return file, nil
		case now := <-tick.C:
			if st, err := os.Stat(file); err == nil {
				bar.grown(st.Size(), now)
			}
		}
	}
}

// findFetcher looks beside this program, then on the PATH.
func findFetcher() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), fetcher)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	p, err := exec.LookPath(fetcher)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s brings files from outside and is neither beside skein nor on the PATH: put it there, or download the file yourself", fetcher)
	}
	return p, err
}

// sourceError is skein-fetch's word.
type sourceError struct {
	err  error
	text string
}

// Error implements error.
func (e sourceError) Error() string {
	if e.text == "" {
		return e.err.Error()
	}
	return e.text
}

func (e sourceError) exitCode() int {
	if exit, ok := errors.AsType[*exec.ExitError](e.err); ok {
		switch exit.ExitCode() {
		case 2:
			return exitUsage
		case 3:
			return exitNotFound
		}
	}
	return exitError
}
