package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// conformanceCases is how many cases the TUF conformance suite has.
const conformanceCases = 113

// conformanceCase is a case of the suite, by the name that it has there.
type conformanceCase struct {
	name string
	run  func(c *client)
}

// TestConformance has the cases of the TUF conformance suite by name, against a
// repository of our own. Those listed as expected to fail must fail.
func TestConformance(t *testing.T) {
	b, err := os.ReadFile("testdata/skein-tuf.xfails")
	if err != nil {
		t.Fatal(err)
	}
	expected := strings.Split(string(b), "\n")
	var cases []conformanceCase
	for _, list := range [][]conformanceCase{
		basicCases(), mismatchCases(), contentCases(), expiryCases(), keyCases(), signatureCases(), rotationCases(), rollbackCases(), recoveryCases(),
		graphCases(), searchCases(), delegationCases(), downloadCases(), hashCases(), quotingCases(), shapeCases(), simulatorCases(),
	} {
		cases = append(cases, list...)
	}
	seen := map[string]bool{}
	for _, tc := range cases {
		if seen[tc.name] {
			t.Errorf("%s is there twice", tc.name)
		}
		seen[tc.name] = true
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t)
			tc.run(c)
			switch failed := len(c.problems) > 0; {
			case slices.Contains(expected, tc.name) && !failed:
				t.Error("passes, but is listed in skein-tuf.xfails")
			case slices.Contains(expected, tc.name):
				t.Logf("expected to fail: %s", c.problems[0])
			case failed:
				t.Errorf("%s\nthe client said: %s", strings.Join(c.problems, "\n"), c.said.String())
			}
		})
	}
	if len(cases) != conformanceCases {
		t.Errorf("%d cases, the suite has %d", len(cases), conformanceCases)
	}
}

// client runs the command against a simulator; what a case finds wrong is
// collected.
type client struct {
	*simulator
	dir, out string
	anchor   []byte
	said     bytes.Buffer
	problems []string
}

func newClient(t *testing.T) *client {
	t.Helper()
	s := newSimulator(t)
	return &client{simulator: s, dir: filepath.Join(t.TempDir(), "metadata"), out: filepath.Join(t.TempDir(), "targets"), anchor: s.published["root"][0]}
}

func (c *client) errorf(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

func (c *client) command(args ...string) int {
	c.t.Helper()
	all := append([]string{"--metadata-dir", c.dir, "--metadata-url", c.url + "/metadata/", "--target-base-url", c.url + "/targets/", "--target-dir", c.out}, args...)
	code := run(c.t.Context(), all, &c.said, &c.said)
	fmt.Fprintf(&c.said, "[%v: %d]\n", args, code)
	return code
}

// tryInit begins with the anchor and returns the exit code.
func (c *client) tryInit() int {
	c.t.Helper()
	root := filepath.Join(c.t.TempDir(), "root.json")
	if err := os.WriteFile(root, c.anchor, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.command("init", root)
}

func (c *client) init() {
	c.t.Helper()
	if code := c.tryInit(); code != exitOK {
		c.errorf("init: exit code %d", code)
	}
}

// refresh wants an exit code; after is how much later it is, if given.
func (c *client) refresh(want int, after ...time.Duration) {
	c.t.Helper()
	args := []string{"refresh"}
	for _, d := range after {
		args = []string{"--now", in(d), "refresh"}
	}
	if code := c.command(args...); code != want {
		c.errorf("refresh: exit code %d, want %d", code, want)
	}
}

// tryDownload downloads targets in one run and returns the exit code.
func (c *client) tryDownload(names ...string) int {
	c.t.Helper()
	var args []string
	for _, name := range names {
		args = append(args, "--target-name", name)
	}
	return c.command(append(args, "download")...)
}

func (c *client) download(want int, names ...string) {
	c.t.Helper()
	if code := c.tryDownload(names...); code != want {
		c.errorf("download %q: exit code %d, want %d", names, code, want)
	}
}

// versions lists the metadata on disk: role, version.
func (c *client) versions() map[string]int {
	c.t.Helper()
	out := map[string]int{}
	files, err := filepath.Glob(filepath.Join(c.dir, "*.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		var md struct{ Signed signed }
		if err := json.Unmarshal(b, &md); err != nil {
			c.t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(name), ".json")] = md.Signed.Version
	}
	return out
}

// version wants the version of a role on disk, 0 for none.
func (c *client) version(role string, want int) {
	c.t.Helper()
	if got := c.versions()[role]; got != want {
		c.errorf("%s on disk has version %d, want %d", role, got, want)
	}
}

// trusted wants exactly these on disk; 0 is none.
func (c *client) trusted(root, timestamp, snapshot, targets int) {
	c.t.Helper()
	got, want := c.versions(), map[string]int{}
	for role, v := range map[string]int{"root": root, "timestamp": timestamp, "snapshot": snapshot, "targets": targets} {
		if v > 0 {
			want[role] = v
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.errorf("on disk are %v, want %v", got, want)
	}
}

// holds wants a role on disk byte for byte.
func (c *client) holds(role string, want []byte) {
	c.t.Helper()
	if got, err := os.ReadFile(filepath.Join(c.dir, role+".json")); err != nil || !bytes.Equal(got, want) {
		c.errorf("%s on disk is not what it should be: %v: %s", role, err, got)
	}
}

// holdsLatest wants on disk what the repository published last.
func (c *client) holdsLatest(roles ...string) {
	c.t.Helper()
	for _, role := range roles {
		c.holds(role, c.latest(role))
	}
}

// downloaded wants files of exactly these contents.
func (c *client) downloaded(want ...string) {
	c.t.Helper()
	files, err := os.ReadDir(c.out)
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	var got []string
	for _, e := range files {
		b, err := os.ReadFile(filepath.Join(c.out, e.Name()))
		if err != nil {
			c.t.Fatal(err)
		}
		got = append(got, string(b))
	}
	slices.Sort(got)
	if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		c.errorf("downloaded %q, want %q", got, want)
	}
}

// requests wants exactly these requests for metadata.
func (c *client) requests(got []string, want ...string) {
	c.t.Helper()
	if !slices.Equal(got, want) {
		c.errorf("asked for %q, want %q", got, want)
	}
}

// lastRequest wants this to be the last request for metadata.
func (c *client) lastRequest(want string) {
	c.t.Helper()
	if n := len(c.asked); n == 0 || c.asked[n-1] != want {
		c.errorf("asked for %q, last want %q", c.asked, want)
	}
}
