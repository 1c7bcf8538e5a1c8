package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
)

// panicOutput lets the run-time write the words of a panic to a file below the
// state folder, and returns what the process before this one left there.
func panicOutput(state string, log *slog.Logger) func() string {
	path := filepath.Join(state, "panic.txt")
	before, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		log.Warn("read the last panic", "error", err)
	}
	f, err := os.Create(path)
	if err == nil {
		err = debug.SetCrashOutput(f, debug.CrashOptions{})
		f.Close() // it keeps its own
	}
	if err != nil {
		log.Info("a panic of this process would not be kept", "error", err)
	}
	return func() string { return string(before) }
}
