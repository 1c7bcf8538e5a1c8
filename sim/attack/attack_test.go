package attack

import (
	"flag"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"testing"
)

func TestMain(m *testing.M) {
	// Attacks wait more than they compute: more of them than cores.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set("12"); err != nil {
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func logger() *slog.Logger {
	if os.Getenv("SKEIN_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newSuite is a suite whose control planes end with the test.
func newSuite(t *testing.T) *Suite {
	t.Helper()
	s := New(t.TempDir(), logger())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestAttacks carries out every attack; none may be short of a verdict. With
// -short those that need no control plane of their own.
func TestAttacks(t *testing.T) {
	t.Parallel()
	s := newSuite(t)
	for _, a := range List() {
		t.Run(a.Name, func(t *testing.T) {
			t.Parallel()
			if a.place != shared && testing.Short() {
				t.Skip("it has a control plane of its own")
			}
			if a.Slow && (testing.Short() || os.Getenv("SKEIN_SLOW") == "") {
				t.Skip("set SKEIN_SLOW=1")
			}
			r, err := s.Run(t.Context(), a.Name)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s in %.1f s", r, r.Seconds)
			if !r.OK() {
				t.Errorf("%s\n%s", r, r.Short())
			}
		})
	}
}
