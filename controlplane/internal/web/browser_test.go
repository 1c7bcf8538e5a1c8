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
// memory with 2,000 devices. SKEIN_SLOW=1 runs it; SKEIN_FAKE=SECONDS serves the
// fake for that long instead, to look at while working on the dashboard.
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
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
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
		if err := os.WriteFile(os.Getenv("SKEIN_FAKE_URL"), []byte(srv.URL), 0o644); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds) * time.Second):
		}
		return
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
