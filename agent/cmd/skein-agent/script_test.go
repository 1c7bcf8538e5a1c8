package main

import (
	"context"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skein-fleet/skein/agent/internal/enroll/enrolltest"
	"github.com/skein-fleet/skein/ota/trust"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"skein-agent": main, "skein-agent-code": code})
}

// code runs skein-agent and prints its exit code, for the scripts.
func code() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Stdout.WriteString(map[int]string{0: "ok", 1: "error", 2: "usage", 3: "not enrolled", 4: "refused", 5: "unreachable", 6: "disk full", 7: "sick"}[exitCode(run(ctx, os.Args[1:], os.Stdin, os.Stderr, os.Stderr))])
}

// TestScripts runs testdata/*.txtar: the specification of the command line.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			tb := env.T().(testing.TB)
			dir := tb.TempDir()
			if _, err := trust.InitDev(dir, "skein.local", time.Now()); err != nil {
				return err
			}
			repo, err := trust.OpenRepo(dir)
			if err != nil {
				return err
			}
			s := enrolltest.New(tb, time.Now())
			s.Set(func(s *enrolltest.Server) {
				s.TrustRoot = repo.Root()
				s.MQTTAddress = "127.0.0.1:1" // nobody there
			})
			env.Setenv("SERVER", s.URL)
			env.Setenv("CLAIM", s.Claim)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// listening SOCKET waits until somebody answers there.
			"listening": func(ts *testscript.TestScript, _ bool, args []string) {
				deadline := time.Now().Add(20 * time.Second)
				for time.Now().Before(deadline) {
					if c, err := net.Dial("unix", ts.MkAbs(args[0])); err == nil {
						c.Close()
						return
					}
					<-time.After(10 * time.Millisecond)
				}
				ts.Fatalf("nobody listens on %s", args[0])
			},
		},
	})
}
