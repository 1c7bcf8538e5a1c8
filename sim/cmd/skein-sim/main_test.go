package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// TestWrongUsage: each wrong call has exit code 2 and says what is wrong.
func TestWrongUsage(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.scn")
	if err := os.WriteFile(bad, []byte("devices 3\nat 1s rollout v1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"--fault cut:speed=1":   {"run", "--fault", "cut:speed=1"},
		"--mix":                 {"run", "--mix", "tx9=1"},
		"belong together":       {"run", "--server", "https://127.0.0.1:1"},
		"line 2":                {"run", "--scenario", bad},
		"--devices 0":           {"run", "--devices", "0"},
		"--variant \"good\"":    {"train", "--variant", "good"},
		"is no Jetson":          {"tegrastats", "--board", "x86"},
		"--output \"xml\"":      {"model", "-o", "xml"},
		"takes no arguments":    {"model", "now"},
		"unknown flag: --speed": {"model", "--speed", "3"},
		"--server and --token":  {"load"},
		"--interval above 0":    {"bench", "load", "--interval", "0s"},
		"no-such-file":          {"run", "--scenario", "no-such-file.scn"},
		"want one of":           {"tegrastats", "--board", "tx9"},
		"--rounds from 1":       {"bench", "load", "--rounds", "0"},
	} {
		code, _, stderr := call(t, args...)
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit code %d, %q does not say %q", args, code, stderr, want)
		}
	}
}

// TestEveryCommandHasHelp with an example.
func TestEveryCommandHasHelp(t *testing.T) {
	a := &app{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no short text or no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.root())
}

func TestTegrastats(t *testing.T) {
	code, out, stderr := call(t, "tegrastats", "--board", "orin-nano", "--interval", "1ms", "--lines", "3")
	if code != exitOK || strings.Count(out, "\n") != 3 || !strings.Contains(out, "GR3D_FREQ") {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
}

// TestModelRepeats: the log on standard output is the same twice, and the
// summary names its digest.
func TestModelRepeats(t *testing.T) {
	args := []string{"model", "--devices", "20", "--days", "1", "--seed", "3"}
	code, first, summary := call(t, args...)
	if code != exitOK || !strings.Contains(summary, "log sha256") {
		t.Fatalf("exit code %d, %s", code, summary)
	}
	if _, again, _ := call(t, args...); again != first || len(first) == 0 {
		t.Error("the log differs")
	}
	code, out, stderr := call(t, append(args, "-o", "json")...)
	var r modelResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitOK || !strings.Contains(summary, r.Log) {
		t.Errorf("exit code %d, %v, %s%s", code, err, out, stderr)
	}
}

// TestTrain writes a model of each variant that loads, and the golden set.
func TestTrain(t *testing.T) {
	if testing.Short() {
		t.Skip("trains")
	}
	dir := t.TempDir()
	code, out, stderr := call(t, "train", "--steps", "700", "--out", dir, "-o", "json", "--variant", "slow")
	var r trained
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v, %s", code, err, stderr)
	}
	for _, f := range []string{r.Model, r.Golden} {
		if st, err := os.Stat(f); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
	if r.Accuracy < 0.9 || r.Steps != 700 {
		t.Errorf("%+v", r)
	}
}

// TestFailedExpectation: a scenario that does not hold has an exit code of its
// own and names the line.
func TestFailedExpectation(t *testing.T) {
	if testing.Short() {
		t.Skip("plays a scenario")
	}
	file := filepath.Join(t.TempDir(), "never.scn")
	if err := os.WriteFile(file, []byte("devices 1 mix x86=1 seed 1\nlength 1s\nexpect served >= 1000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := call(t, "run", "--scenario", file)
	if code != exitExpectation || !strings.Contains(stderr, "line 3: expect served >= 1000: served is 0") || !strings.HasPrefix(out, "FAILED") {
		t.Errorf("exit code %d\n%s%s", code, out, stderr)
	}
}
