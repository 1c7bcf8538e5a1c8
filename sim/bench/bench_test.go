package bench

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/controlplane"
)

// asSkeind makes this test binary the skeind that is measured.
const asSkeind = "SKEIN_TEST_SKEIND"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "bench" && os.Args[2] == "ota-apply" { // as skein-sim does
		line, err := ApplyOTA(context.Background(), os.Args[3])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(line)
		return
	}
	if os.Getenv(asSkeind) != "" {
		if err := skeind(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Setenv(asSkeind, "1") // for the children
	os.Exit(m.Run())
}

// skeind takes the flags that package plane gives.
func skeind(args []string) error {
	cfg := controlplane.DefaultConfig()
	f := flag.NewFlagSet("skeind", flag.ContinueOnError)
	f.StringVar(&cfg.DataDir, "data-dir", "", "")
	f.StringVar(&cfg.HTTPAddr, "http-addr", "", "")
	f.StringVar(&cfg.DeviceAddr, "device-addr", "", "")
	f.StringVar(&cfg.MQTTAddr, "mqtt-addr", "", "")
	f.StringVar(&cfg.DebugAddr, "debug-addr", "", "")
	f.String("log-level", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := controlplane.New(cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// TestLoadSmoke: the whole course with few devices. What is measured is not
// judged, only that it was measured and that nothing failed.
func TestLoadSmoke(t *testing.T) {
	figures, err := Load(t.Context(), LoadOptions{
		Skeind: []string{os.Args[0]}, Devices: 50, Interval: 2 * time.Second, Rounds: 1, Settle: time.Second, Progress: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Figure{}
	for _, f := range figures {
		got[f.Name] = f
	}
	for _, name := range []string{"rss_loaded", "connects_per_second", "messages_per_second_steady", "report_stored_p99"} {
		if got[name].Value <= 0 {
			t.Errorf("%s was not measured: %v", name, got[name])
		}
	}
	for _, name := range []string{"rss_per_device", "rss_per_device_broker"} { // of so few they may be anything
		if _, ok := got[name]; !ok {
			t.Errorf("%s was not measured", name)
		}
	}
	if f, ok := got["errors"]; !ok || f.Value != 0 {
		t.Errorf("errors: %v", f)
	}
}

func TestFigureLines(t *testing.T) {
	figures := []Figure{figure("a", 79.9999, "KiB").atMost(80), figure("b", 81.25, "KiB").atMost(80), figure("c", 3, "1/s")}
	var out strings.Builder
	if err := Write(&out, figures); err != nil {
		t.Fatal(err)
	}
	want := "figure a 80 KiB <=80 ok\nfigure b 81.25 KiB <=80 short\nfigure c 3 1/s - ok\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	path := filepath.Join(t.TempDir(), "new", "figures.json")
	if err := Save(path, figures); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(raw), `"name": "b"`) {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond)
	}
	for share, want := range map[float64]float64{0: 1, 0.5: 51, 0.99: 100, 1: 100} {
		if got := percentile(all, share); got != want {
			t.Errorf("percentile %v is %v, want %v", share, got, want)
		}
	}
	if got := percentile(nil, 0.5); got != 0 {
		t.Errorf("of nothing %v", got)
	}
}
