package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
)

// buildFetcher builds the real skein-fetch and puts it on the script's PATH.
func buildFetcher(ts *testscript.TestScript, _ bool, _ []string) {
	dir, err := filepath.Abs(filepath.Join("..", "..", "..", "ota", "cmd", "skein-fetch"))
	ts.Check(err)
	bin := ts.MkAbs("bin")
	cmd := exec.Command("go", "build", "-o", filepath.Join(bin, fetcher), ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("build %s: %v\n%s", fetcher, err, out)
	}
	ts.Setenv("PATH", bin+string(filepath.ListSeparator)+ts.Getenv("PATH"))
}

// serveFolder serves the script's folder over HTTP at $WEB.
func serveFolder(ts *testscript.TestScript, _ bool, _ []string) {
	s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs("."))))
	ts.Defer(s.Close)
	ts.Setenv("WEB", s.URL)
}
