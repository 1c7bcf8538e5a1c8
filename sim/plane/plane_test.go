package plane

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func TestInProcess(t *testing.T) {
	p, err := InProcess(t.Context(), t.TempDir(), "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.Operator().Fleet.GetFleetStatus(t.Context(), &fleetv1.GetFleetStatusRequest{}); err != nil || r.GetStatus().GetDevices() != 0 {
		t.Errorf("%v, %v", r, err)
	}
	if err := p.Restart(t.Context(), 0); !errors.Is(err, ErrNoProcess) || p.PID() != 0 {
		t.Errorf("restart in this process: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if resp, err := http.Get(p.URL + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("it still answers")
	}
}

// TestChildThatEnds: what it said last is in the error.
func TestChildThatEnds(t *testing.T) {
	_, err := Child(t.Context(), []string{"/bin/sh", "-c", "echo no such luck >&2; exit 3"}, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("%v", err)
	}
	if _, err := Child(t.Context(), []string{"/no/such/skeind"}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "/no/such/skeind") {
		t.Errorf("%v", err)
	}
}
