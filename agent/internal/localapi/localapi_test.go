package localapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // left by a killed agent
		t.Fatal(err)
	}
	release := ota.DigestOf([]byte("r"))
	src := Source{
		Status: func() Status {
			return Status{DeviceID: "d", Link: "connected", LinkSince: time.Unix(5, 0), Phase: wire.PhaseFailed, Running: string(release), RunningName: "meter@1",
				Held: wire.Generation{Epoch: 1, Counter: 2}, FailureClass: "FAILED", Failure: "cause", Boot: 255, SpoolBytes: 7, SpoolDropped: 8,
				BytesFetched: 9, Sources: []wire.SourceBytes{{Name: "mqtt", Bytes: 9}},
				Conditions: []wire.Condition{{Name: "disk-full", Severity: 3, Message: "m", Since: 1000}},
				Journal:    []wire.StepEntry{{Step: "prove", State: wire.StepFailed, Release: release.Sum(), Message: "m", Time: 2000}},
				Summary:    "Runs meter@1.", Reasons: []string{"because"}}
		},
		Logs: func(limit int) []string { return []string{fmt.Sprint(limit)} },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, path, src) }()
	c := Client(path)
	var st *agentlocalv1.StatusResponse
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		var err error
		if st, err = c.Status(t.Context(), &agentlocalv1.StatusRequest{}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	d := st.GetDevice()
	if d.GetPhase() != "failed" || d.GetRunningReleaseName() != "meter@1" || d.GetBootId() != "ff" || d.GetHeldGeneration().GetCounter() != 2 || st.GetSpoolDropped() != 8 {
		t.Errorf("%v", st)
	}
	if b := d.GetSources(); d.GetBytesFetched() != 9 || len(b) != 1 || b[0].GetName() != "mqtt" || b[0].GetBytes() != 9 {
		t.Errorf("%v", d)
	}
	if c := d.GetConditions(); len(c) != 1 || c[0].GetSeverity() != "critical" || c[0].GetSince().GetSeconds() != 1 {
		t.Errorf("%v", c)
	}
	if j := d.GetJournal(); len(j) != 1 || j[0].GetState() != "failed" || j[0].GetRelease() != string(release) {
		t.Errorf("%v", j)
	}
	if e, err := c.Explain(t.Context(), &agentlocalv1.ExplainRequest{}); err != nil || e.GetSummary() != "Runs meter@1." || !slices.Equal(e.GetReasons(), []string{"because"}) {
		t.Errorf("%v %v", e, err)
	}
	if l, err := c.Logs(t.Context(), &agentlocalv1.LogsRequest{Limit: 3}); err != nil || !slices.Equal(l.GetLines(), []string{"3"}) {
		t.Errorf("%v %v", l, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", fi, err)
	}
	if err := Serve(t.Context(), path, src); !errors.Is(err, ErrInUse) {
		t.Errorf("second agent: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	tail := NewTail(3)
	for i := range 5 {
		fmt.Fprintf(tail, "%d\n", i)
	}
	if got := tail.Lines(2); !slices.Equal(got, []string{"3", "4"}) {
		t.Errorf("%v", got)
	}
	if got := tail.Lines(0); !slices.Equal(got, []string{"2", "3", "4"}) {
		t.Errorf("%v", got)
	}
}
