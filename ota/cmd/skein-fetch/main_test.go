package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The program confines itself, so each case runs it as a process of its own.
func TestMain(m *testing.M) {
	switch os.Getenv("SKEIN_FETCH_TEST") {
	case "run":
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	case "escape":
		os.Exit(escape(os.Args[1], os.Args[2]))
	}
	os.Exit(m.Run())
}

// outcome is how the program ended.
type outcome struct {
	code   int
	result result
	stderr string
}

func start(t *testing.T, env []string, args ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), "SKEIN_FETCH_TEST=run"), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	o := outcome{stderr: errs.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		o.code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if o.code == exitOK && out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &o.result); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
	}
	return o
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestHTTP(t *testing.T) {
	want := content(3 << 20)
	var sent atomic.Int64
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(counting{w, &sent}, r, "model.onnx", time.Time{}, bytes.NewReader(want))
	})
	out := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(out, want[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	o := start(t, nil, "--out", out, "--sha256", hexSum(want), base+"/model.onnx")
	if o.code != exitOK || o.result.Bytes != int64(len(want)) || o.result.SHA256 != hexSum(want) {
		t.Fatalf("got %+v", o)
	}
	if n := sent.Load(); n != 2<<20 {
		t.Errorf("%d bytes came for the %d that were missing", n, 2<<20)
	}
}

// counting counts the bytes of bodies.
type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func TestHTTPS(t *testing.T) {
	want := content(1000)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(want) }))
	defer s.Close()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "f")
	if o := start(t, nil, "--out", out, "--ca", ca, s.URL); o.code != exitOK || o.result.SHA256 != hexSum(want) {
		t.Fatalf("got %+v", o)
	}
	if o := start(t, nil, "--out", out+"2", s.URL); o.code != exitFailed || !strings.Contains(o.stderr, "certificate") {
		t.Fatalf("without the authority: %+v", o)
	}
}

func TestRefuses(t *testing.T) {
	endless := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Method == http.MethodGet && r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	small := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone":
			http.NotFound(w, r)
		case "/forbidden":
			http.Error(w, "no", http.StatusForbidden)
		case "/broken":
			http.Error(w, "no", http.StatusBadGateway)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/inside":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case "/stall":
			w.Header().Set("Content-Length", "100")
			if r.Method == http.MethodGet {
				_, _ = w.Write([]byte("begun"))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		case "/bomb.tar.gz":
			_, _ = w.Write([]byte("not unpacked"))
		default:
			_, _ = w.Write([]byte("small"))
		}
	})
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no source":            {[]string{}, exitUsage, "want one source"},
		"endless body":         {[]string{"--limit", "100000", endless}, exitContent, "longer than the limit"},
		"wrong content":        {[]string{"--sha256", hexSum([]byte("other")), small}, exitContent, "not the wanted one"},
		"not there":            {[]string{small + "/gone"}, exitRefused, "404"},
		"forbidden":            {[]string{small + "/forbidden"}, exitRefused, "403"},
		"server broken":        {[]string{small + "/broken"}, exitFailed, "502"},
		"redirects for ever":   {[]string{small + "/loop"}, exitRefused, "5 redirects"},
		"redirect to metadata": {[]string{small + "/inside"}, exitRefused, "link-local"},
		"stalls":               {[]string{"--idle", "300ms", small + "/stall"}, exitFailed, "nothing arrived"},
		"file scheme":          {[]string{"file:///etc/passwd"}, exitUsage, "want http"},
		"forced file":          {[]string{"file::/etc/passwd"}, exitUsage, "want http, https"},
		"ssh":                  {[]string{"git::ssh://git@host/r.git//m.onnx"}, exitUsage, "want http"},
		"git without a file":   {[]string{"git::" + small + "/r.git"}, exitUsage, "name a file"},
		"git out of the tree":  {[]string{"git::" + small + "/r.git//../../etc/passwd"}, exitUsage, "name a file"},
		"archive wanted":       {[]string{small + "/bomb.tar.gz?archive=tar.gz"}, exitUsage, "archive"},
		"bad digest":           {[]string{"--sha256", "ab", small}, exitUsage, "64 lower-case"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := start(t, nil, append([]string{"--out", filepath.Join(dir, "in", "f")}, c.args...)...)
			if o.code != c.code || !strings.Contains(o.stderr, c.says) {
				t.Errorf("got code %d, %q; want %d, %q", o.code, o.stderr, c.code, c.says)
			}
			if st, err := os.Stat(filepath.Join(dir, "in", "f")); err == nil && st.Size() > 200000 {
				t.Errorf("%d bytes lie there", st.Size())
			}
		})
	}
	t.Run("archives stay packed", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "f")
		if o := start(t, nil, "--out", out, small+"/bomb.tar.gz"); o.code != exitOK || o.result.SHA256 != hexSum([]byte("not unpacked")) {
			t.Errorf("got %+v", o)
		}
	})
}

func TestSecretsStayOut(t *testing.T) {
	o := start(t, nil, "--out", filepath.Join(t.TempDir(), "f"), "--idle", "1s",
		"s3::http://user:hunter2@127.0.0.1:1/bucket/key?aws_access_key_id=AKIA&aws_access_key_secret=hunter2")
	if o.code == exitOK || strings.Contains(o.stderr, "hunter2") {
		t.Errorf("got %+v", o)
	}
}

// escape confines itself to dir and then tries to write and to connect.
func escape(dir, address string) int {
	ok, err := confine(dir, "", &url.URL{Scheme: "http", Host: "127.0.0.1:80"}, 1<<20)
	if err != nil || !ok {
		fmt.Println("not confined:", ok, err)
		return 2
	}
	fmt.Println("outside:", os.WriteFile(filepath.Join(filepath.Dir(dir), "outside"), []byte("x"), 0o600))
	fmt.Println("inside:", os.WriteFile(filepath.Join(dir, "inside"), []byte("x"), 0o600))
	fmt.Println("large:", os.WriteFile(filepath.Join(dir, "large"), make([]byte, 4<<20), 0o600))
	_, err = os.ReadFile("/proc/1/environ")
	fmt.Println("read:", err)
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(address)
	if err == nil {
		resp.Body.Close()
	}
	fmt.Println("connect:", err)
	return 0
}

func TestConfined(t *testing.T) {
	if _, err := landlockABI(); err != nil {
		t.Skip("this kernel has no Landlock:", err)
	}
	dir := filepath.Join(t.TempDir(), "scratch")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	address := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("reached")) })
	cmd := exec.CommandContext(t.Context(), os.Args[0], dir, address)
	cmd.Env = append(os.Environ(), "SKEIN_FETCH_TEST=escape")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wants := []string{"outside: open", "permission denied", "inside: <nil>", "large: write", "file too large", "read: open /proc/1/environ: permission denied"}
	if abi, _ := landlockABI(); abi >= 4 {
		wants = append(wants, "connect: permission denied")
	}
	text := string(out)
	if i := strings.LastIndex(text, "connect:"); strings.Contains(text[max(i, 0):], "permission denied") {
		text += "\nconnect: permission denied"
	}
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
}

// gitServer serves a repository through git's own HTTP backend.
func gitServer(t *testing.T) (base string, want []byte) {
	t.Helper()
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("git is not installed")
	}
	backend := filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend")
	root, work := t.TempDir(), t.TempDir()
	want = content(100 << 10)
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t", "GIT_CONFIG_GLOBAL=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q", "-b", "main")
	if err := os.MkdirAll(filepath.Join(work, "meter"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "meter", "model.onnx"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(work, "meter", "link")); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "-qm", "model")
	git("tag", "v3")
	git("clone", "-q", "--bare", work, filepath.Join(root, "models.git"))
	h := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard}
	return serve(t, h.ServeHTTP) + "/models.git", want
}

func TestGit(t *testing.T) {
	base, want := gitServer(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "model.onnx")
	o := start(t, nil, "--out", out, "git::"+base+"//meter/model.onnx?ref=v3")
	if o.code != exitOK || o.result.SHA256 != hexSum(want) {
		t.Fatalf("got %+v", o)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
	for says, src := range map[string]string{
		"not a plain file": "git::" + base + "//meter/link?ref=v3", "no such file": "git::" + base + "//meter/none?ref=v3",
		"longer than the limit": "git::" + base + "//meter/model.onnx?ref=v3",
	} {
		limit := strconv.Itoa(1 << 20)
		if strings.HasPrefix(says, "longer") {
			limit = "1000"
		}
		if o := start(t, nil, "--out", out+"2", "--limit", limit, src); o.code == exitOK || !strings.Contains(o.stderr, says) {
			t.Errorf("%s: got %+v", src, o)
		}
	}
}

func FuzzSource(f *testing.F) {
	for _, s := range []string{"https://h/f", "s3::https://s3.amazonaws.com/b/k", "git::https://h/r.git//a/b?ref=v1", "gcs::https://www.googleapis.com/storage/v1/b/k", "file::/x", "git::https://h//../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSource(text)
		if err != nil {
			if !errors.Is(err, errSource) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if s.url.Host == "" || s.url.Scheme != "http" && s.url.Scheme != "https" {
			t.Fatalf("%q: taken as %v", text, s.url)
		}
		if s.kind == "git" && !filepath.IsLocal(s.file) {
			t.Fatalf("%q: file %q", text, s.file)
		}
	})
}
