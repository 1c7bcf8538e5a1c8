package controlplane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
)

// crashDir in the environment makes the test binary a control plane that runs
// until it is killed.
const crashDir = "SKEIN_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := runUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runUntilKilled(dir string) error {
	s, err := New(testConfig(dir), testLogger(nil))
	if err != nil {
		return err
	}
	go func() {
		<-s.Ready()
		fmt.Println(s.Addrs().HTTP, s.AdminToken())
	}()
	return s.Run(context.Background())
}

// TestKillLosesNothingAcknowledged kills a control plane with SIGKILL while
// calls run, several times, and looks for everything that was acknowledged,
// and for the audit entry of each.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	var mu sync.Mutex
	acked := map[string]bool{} // token ids
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		addr, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		c := fleetv1connect.NewFleetServiceClient(&http.Client{Transport: bearer{token}}, "http://"+addr)
		want := 40 * (round + 1)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					resp, err := c.CreateTokens(t.Context(), &fleetv1.CreateTokensRequest{})
					if err != nil {
						return // killed
					}
					mu.Lock()
					acked[resp.GetTokens()[0].GetToken().GetId()] = true
					n := len(acked)
					mu.Unlock()
					if n == want { // in the middle of the others' calls
						if err := cmd.Process.Kill(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if err := cmd.Wait(); err == nil {
			t.Fatal("it was not killed")
		} else if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}

	r := start(t, testConfig(dir))
	have, err := r.fleetClient().ListTokens(t.Context(), &fleetv1.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]bool{}
	for _, tok := range have.GetTokens() {
		stored[tok.GetId()] = true
	}
	trail, err := auditv1connect.NewAuditServiceClient(r.client(), r.url()).ListEntries(t.Context(), &auditv1.ListEntriesRequest{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for id := range acked {
		if !stored[id] {
			t.Errorf("token %s was acknowledged and is lost", id)
		}
		if !slices.ContainsFunc(trail.GetEntries(), func(e *auditv1.Entry) bool { return e.GetSubject() == id }) {
			t.Errorf("token %s has no audit entry", id)
		}
	}
	t.Logf("%d acknowledged, %d stored", len(acked), len(stored))
}
