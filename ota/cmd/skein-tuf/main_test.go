package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
)

// site is a repository with its targets, served over HTTP.
type site struct {
	t     *testing.T
	repo  *trust.Repo
	url   string
	state string
	out   string
	files map[string][]byte // by path below /targets/
	asked []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	if _, err := trust.InitDev(dir, "skein.local", time.Now()); err != nil {
		t.Fatal(err)
	}
	repo, err := trust.OpenRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, repo: repo, state: filepath.Join(t.TempDir(), "state"), out: filepath.Join(t.TempDir(), "out"), files: map[string][]byte{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	root := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(root, repo.Root(), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text := s.run("init", root); code != exitOK {
		t.Fatalf("init: %d: %s", code, text)
	}
	return s
}

// ServeHTTP serves metadata and targets.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name, ok := strings.CutPrefix(r.URL.EscapedPath(), "/metadata/"); ok {
		b, err := s.repo.Metadata(name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(b)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/targets/")
	s.asked = append(s.asked, name+" "+r.Header.Get("Range"))
	b, ok := s.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// list lists content under path, and serves what is served there.
func (s *site) list(path string, content, served []byte) {
	s.t.Helper()
	d := ota.DigestOf(content)
	if err := s.repo.AddTarget(s.t.Context(), path, int64(len(content)), d, trust.TargetCustom{}, time.Now()); err != nil {
		s.t.Fatal(err)
	}
	dir, name := filepath.Split(path)
	s.files[dir+d.Hex()+"."+name] = served
}

func (s *site) run(args ...string) (int, string) {
	s.t.Helper()
	var out bytes.Buffer
	all := append([]string{"--metadata-dir", s.state, "--metadata-url", s.url + "/metadata/", "--target-base-url", s.url + "/targets/", "--target-dir", s.out}, args...)
	code := run(s.t.Context(), all, &out, &out)
	return code, out.String()
}

// have lists the files that were downloaded.
func (s *site) have() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	files, err := os.ReadDir(s.out)
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	for _, e := range files {
		b, err := os.ReadFile(filepath.Join(s.out, e.Name()))
		if err != nil {
			s.t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func TestDownload(t *testing.T) {
	s := newSite(t)
	s.list("releases/meter/1", []byte("one"), []byte("one"))
	s.list("empty", nil, nil)
	code, text := s.run("--target-name", "releases/meter/1", "--target-name", "empty", "download")
	if code != exitOK {
		t.Fatalf("%d: %s", code, text)
	}
	if got := fmt.Sprint(s.have()); got != "map[empty: releases%2Fmeter%2F1:one]" {
		t.Error(got)
	}
	// Once more: it is there. Spoilt: it comes again.
	asked := len(s.asked)
	if code, text := s.run("--target-name", "releases/meter/1", "download"); code != exitOK || len(s.asked) != asked || !strings.Contains(text, "there already") {
		t.Errorf("%d: %s, asked %v", code, text, s.asked[asked:])
	}
	if err := os.WriteFile(filepath.Join(s.out, "releases%2Fmeter%2F1"), []byte("tw0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text := s.run("--target-name", "releases/meter/1", "download"); code != exitOK || s.have()["releases%2Fmeter%2F1"] != "one" {
		t.Errorf("%d: %s", code, text)
	}
	for _, name := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"} {
		want, err := s.repo.Metadata(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(s.state, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what is trusted: %v", name, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	s := newSite(t)
	s.list("a", []byte("honest"), []byte("danger"))
	s.list("b", []byte("honest"), []byte("honest and more"))
	s.list("c", []byte("honest"), []byte("hon"))
	for name, want := range map[string]string{"a": "digest", "c": "no progress", "d": "image repository does not list it"} {
		code, text := s.run("--target-name", name, "download")
		if code != exitFailed || !strings.Contains(text, want) {
			t.Errorf("%s: %d: %s", name, code, text)
		}
		if have := s.have(); len(have) != 0 {
			t.Errorf("%s: %v", name, have)
		}
	}
	// Reading ends at the signed length.
	if code, text := s.run("--target-name", "b", "download"); code != exitOK || s.have()["b"] != "honest" {
		t.Errorf("%d: %s", code, text)
	}
	// Expired by the time that is given.
	code, text := s.run("--now", time.Now().AddDate(0, 1, 0).Format(time.RFC3339), "refresh")
	if code != exitFailed || !strings.Contains(text, "class "+trust.ClassFreeze) {
		t.Errorf("%d: %s", code, text)
	}
	if code, text := s.run("refresh"); code != exitOK {
		t.Errorf("%d: %s", code, text)
	}
}

// TestResume: what came before a cut is not asked for again.
func TestResume(t *testing.T) {
	s := newSite(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	s.list("big", big, big[:700_000])
	if code, text := s.run("--target-name", "big", "download"); code != exitFailed {
		t.Fatalf("%d: %s", code, text)
	}
	s.files[ota.DigestOf(big).Hex()+".big"], s.asked = big, nil
	if code, text := s.run("--target-name", "big", "download"); code != exitOK || s.have()["big"] != string(big) {
		t.Fatalf("%d: %s", code, text)
	}
	if want := ota.DigestOf(big).Hex() + ".big bytes=700000-1048575"; len(s.asked) != 1 || s.asked[0] != want {
		t.Errorf("asked for %v, want %s", s.asked, want)
	}
}

// TestMemory: a file costs no memory of its size.
func TestMemory(t *testing.T) {
	s := newSite(t)
	const size = 64 << 20
	big := make([]byte, size)
	s.list("big", big, big)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if code, text := s.run("--target-name", "big", "download"); code != exitOK {
		t.Fatalf("%d: %s", code, text)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > size/4 { // server and client together
		t.Errorf("%d bytes allocated for a file of %d", got, size)
	}
}

func TestUsage(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(root, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]int{
		"--help":                       exitOK,
		"":                             exitUsage,
		"fly":                          exitUsage,
		"init":                         exitUsage,
		"init a":                       exitUsage, // no --metadata-dir
		"--metadata-dir DIR init":      exitUsage,
		"--metadata-dir DIR init a b":  exitUsage,
		"--metadata-dir DIR refresh":   exitUsage,
		"--nonsense refresh":           exitUsage,
		"--now yesterday refresh":      exitUsage,
		"--metadata-dir DIR init none": exitFailed,
		"--metadata-dir DIR init ROOT": exitFailed, // not a root
		"--metadata-dir DIR --metadata-url http://127.0.0.1:1 refresh":                                                      exitFailed, // not begun
		"--metadata-dir DIR --metadata-url http://127.0.0.1:1 download":                                                     exitUsage,
		"--metadata-dir DIR --metadata-url http://127.0.0.1:1 --target-dir x --target-base-url http://127.0.0.1:1 download": exitUsage,
	} {
		args = strings.NewReplacer("DIR", filepath.Join(t.TempDir(), "state"), "ROOT", root).Replace(args)
		var out bytes.Buffer
		if got := run(context.Background(), strings.Fields(args), &out, &out); got != want || out.Len() == 0 {
			t.Errorf("%q: exit code %d, want %d: %s", args, got, want, out.String())
		}
	}
	s := newSite(t)
	if code, text := s.run("init", filepath.Join(s.state, "root.json")); code != exitFailed || !strings.Contains(text, "already") {
		t.Errorf("a second init: %d: %s", code, text)
	}
}
