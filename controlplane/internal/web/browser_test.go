package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// TestBrowser walks the built dashboard in Chromium over a control plane of
// memory with 2,000 devices (SKEIN_FAKE_DEVICES). SKEIN_SLOW=1 runs it;
// SKEIN_FAKE=SECONDS serves the fake for that long instead, to look at while
// working on the dashboard, and writes its address to the file SKEIN_FAKE_URL.
func TestBrowser(t *testing.T) {
	serve := os.Getenv("SKEIN_FAKE")
	if serve == "" && os.Getenv("SKEIN_SLOW") == "" {
		t.Skip("needs Chromium; set SKEIN_SLOW=1")
	}
	if err := Built(); err != nil {
		t.Skip(err)
	}
	pages, err := New()
	if err != nil {
		t.Fatal(err)
	}
	n := 2000
	if v := os.Getenv("SKEIN_FAKE_DEVICES"); v != "" {
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	f := newFake(n)
	srv := httptest.NewUnstartedServer(f.handler(pages))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Start()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				f.step()
			}
		}
	}()
	defer func() {
		cancel()
		<-done
		srv.CloseClientConnections()
		srv.Close()
	}()
	if serve != "" {
		seconds, err := strconv.Atoi(serve)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s with token %s", srv.URL, fakeToken)
		if file := os.Getenv("SKEIN_FAKE_URL"); file != "" {
			if err := os.WriteFile(file, []byte(srv.URL), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds) * time.Second):
		}
		return
	}
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skip("chromium is not installed")
	}
	cmd := exec.CommandContext(ctx, "node", "test/walk.mjs")
	cmd.Dir = "../../dashboard"
	cmd.Env = append(os.Environ(), "SKEIN_URL="+srv.URL, "SKEIN_TOKEN="+fakeToken)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("walk through the dashboard: %v", err)
	}
}
