package play

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/sim/scenario"
)

// asSkeind makes this test binary the skeind that scenarios kill.
const asSkeind = "SKEIN_TEST_SKEIND"

func TestMain(m *testing.M) {
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
	f.StringVar(&cfg.PublicHost, "public-host", "", "")
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

var workshop = sync.OnceValues(func() (*Workshop, error) { return NewWorkshop(context.Background(), "") })

// TestScenarios plays every file of testdata: a fault of the product shows as
// an expectation that does not hold.
func TestScenarios(t *testing.T) {
	if testing.Short() {
		t.Skip("plays real agents in real time")
	}
	files, err := filepath.Glob("../testdata/*.scn")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	archives, err := filepath.Glob("../testdata/ota-*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("%d archives, %v", len(archives), err)
	}
	for _, file := range append(files, archives...) {
		name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, events := playFile(t, file)
			if err := r.Err(); err != nil {
				t.Errorf("%v\n%s", err, events)
			}
		})
	}
}

func playFile(t *testing.T, file string) (*Result, string) {
	t.Helper()
	script, err := scenario.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return playScript(t, script)
}

func playText(t *testing.T, text string) (*Result, string) {
	t.Helper()
	script, err := scenario.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return playScript(t, script)
}

func playScript(t *testing.T, script *scenario.Script) (*Result, string) {
	t.Helper()
	shop, err := workshop()
	if err != nil {
		t.Fatal(err)
	}
	var events bytes.Buffer
	r, err := Run(t.Context(), script, Options{
		Dir: t.TempDir(), Workshop: shop, Events: &events, Skeind: func() ([]string, error) { return []string{os.Args[0]}, nil },
		Stretch: 1.5, // other packages' tests run beside this one
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, events.String())
	}
	return r, events.String()
}

// TestFailedExpectationIsNamed: what does not hold is said, by line, and the
// rest is still judged.
func TestFailedExpectationIsNamed(t *testing.T) {
	t.Parallel()
	r, events := playText(t, `devices 2 mix x86=2 seed 1
at 0s release v1
expect within 500ms release v1 on all
expect always offline = 0
expect not release v1 on 0
expect served >= 1000000
expect offline = 0
`)
	got := map[int]bool{}
	for _, v := range r.Verdicts {
		got[v.Line] = v.Held
	}
	if diff := cmp.Diff(map[int]bool{3: false, 4: true, 5: false, 6: false, 7: true}, got); diff != "" {
		t.Errorf("%s\n%s", diff, events)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "line 3: expect within 500ms release v1 on all: v1 is on 0 of 2") {
		t.Errorf("the error is %v", err)
	}
}

// TestSameEndState: real agents do not repeat to the microsecond, but equal
// seeds end alike.
func TestSameEndState(t *testing.T) {
	if testing.Short() {
		t.Skip("plays a scenario twice")
	}
	t.Parallel()
	type end struct {
		Releases map[string]int
		Rollouts map[string]string
		Harmed   float64
	}
	var ends []end
	for range 2 {
		r, events := playFile(t, "../testdata/kills.scn")
		if err := r.Err(); err != nil {
			t.Fatalf("%v\n%s", err, events)
		}
		ends = append(ends, end{r.Releases, r.Rollouts, r.Measured["harmed"]})
	}
	if diff := cmp.Diff(ends[0], ends[1]); diff != "" {
		t.Error(diff)
	}
}
