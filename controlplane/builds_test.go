package controlplane

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
)

// TestKillKeepsBuilds kills a control plane with SIGKILL while builds are asked
// for: each that was acknowledged is there, once.
func TestKillKeepsBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process")
	}
	dir := t.TempDir()
	first := start(t, testConfig(dir))
	first.push(t, "a")
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
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
	c := buildv1connect.NewBuildServiceClient(&http.Client{Transport: bearer{token}}, "http://"+addr)
	var mu sync.Mutex
	acked := map[string]string{} // key by build
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for n := 1; ; n++ {
				r, err := c.BuildEngines(t.Context(), &buildv1.BuildEnginesRequest{Model: "meter", Targets: []string{"linux/arm64;sm=8.7;trt=10.3.0"},
					Recipe: fmt.Sprintf(`{"version":1,"precision":"fp16","workspaceMiB":%d}`, 1+n*(g+1))}) // some are asked for twice
				if err != nil {
					return // killed
				}
				mu.Lock()
				acked[r.GetEngines()[0].GetBuild()] = r.GetEngines()[0].GetKey()
				if len(acked) == 40 {
					if err := cmd.Process.Kill(); err != nil {
						t.Error(err)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if _, ok := errors.AsType[*exec.ExitError](cmd.Wait()); !ok {
		t.Fatal("it was not killed")
	}
	r := start(t, testConfig(dir))
	have, err := buildv1connect.NewBuildServiceClient(r.client(), r.url()).ListBuilds(t.Context(), &buildv1.ListBuildsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stored, keys := map[string]bool{}, map[string]bool{}
	for _, b := range have.GetBuilds() {
		stored[b.GetBuild()] = true
		if keys[b.GetKey()] {
			t.Errorf("two builds of %s", b.GetKey())
		}
		keys[b.GetKey()] = true
	}
	for id := range acked {
		if !stored[id] {
			t.Errorf("build %s was acknowledged and is lost", id)
		}
	}
	t.Logf("%d acknowledged, %d stored", len(acked), len(stored))
}
