package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane"
)

// childDir in the environment makes the test binary a skeind on that folder.
const childDir = "SKEIN_E2E_CHILD"

// proxyHost is a name that only the test's proxy can resolve.
const proxyHost = "skein.test"

// proxied counts the tunnels that the proxy opened.
var proxied atomic.Int64

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve-model" {
		if err := serveModel(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitOf(err))
		}
		return
	}
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// The environment's proxy is read once per process, so it is there from
	// the beginning; addresses of this host go straight.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	proxy := &http.Server{Handler: http.HandlerFunc(tunnel), ReadHeaderTimeout: 10 * time.Second}
	go proxy.Serve(ln)
	for _, name := range []string{"NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"} {
		os.Unsetenv(name)
	}
	os.Setenv("HTTPS_PROXY", "http://"+ln.Addr().String())
	// The tests wait more than they compute: more of them than cores.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set("8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	proxy.Close()
	os.Exit(code)
}

// tunnel is an HTTP CONNECT proxy that knows proxyHost as this host.
func tunnel(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || err != nil || host != proxyHost {
		http.Error(w, "only CONNECT to "+proxyHost, http.StatusForbidden)
		return
	}
	up, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	if _, err := io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	proxied.Add(1)
	go func() {
		_, _ = io.Copy(up, rw) // ends with either side
		up.Close()
	}()
	_, _ = io.Copy(down, up)
}

// child runs one skeind until it is told to stop, or is killed. It writes its
// addresses as one line to standard output.
func child(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := controlplane.New(controlplane.Config{DataDir: dir, Domain: "skein.local", HTTPAddr: os.Getenv("SKEIN_E2E_HTTP"),
		DeviceAddr: os.Getenv("SKEIN_E2E_DEVICE"), MQTTAddr: os.Getenv("SKEIN_E2E_MQTT"), Resend: testResend}, logger())
	if err != nil {
		return err
	}
	go func() {
		<-s.Ready()
		a := s.Addrs()
		fmt.Printf("%s %s %s\n", a.HTTP, a.Device, a.MQTT)
	}()
	if err := s.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// logger is silent unless SKEIN_LOG is set.
func logger() *slog.Logger {
	if os.Getenv("SKEIN_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
