package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

// One device cannot fill what all share: its texts are cut, a target that is
// none is ignored, and it cannot become another one without end.
func TestOneDeviceCannotFlood(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.run(t)()
	id := w.enrol(t, "cam", "")
	long := strings.Repeat("ü", 50_000)
	send := func(target, hardware string) View {
		t.Helper()
		w.count[id]++
		b, err := wire.Marshal(&wire.Hello{ID: wire.MessageID{Boot: 1, Counter: w.count[id]}, Target: target, Hardware: hardware, Agent: long[:200_000/4]})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Message(t.Context(), tenant, id, wire.UpHello, b); err != nil {
			t.Fatal(err)
		}
		v, err := w.Get(tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := send("linux/arm64;sm=8.7", long[:100_000])
	if v.Target != "linux/arm64;sm=8.7" || len(v.Hardware) > maxName || len(v.Agent) > maxName || !v.Online {
		t.Errorf("%q, %d bytes of hardware, %d of agent", v.Target, len(v.Hardware), len(v.Agent))
	}
	for _, target := range []string{"no target", long, "linux/arm64;sm=8.7;" + strings.Repeat("a", 300) + "=1"} {
		if v := send(target, ""); v.Target != "linux/arm64;sm=8.7" {
			t.Errorf("target became %.40q", v.Target)
		}
	}
	seen := map[string]bool{}
	for i := range 100 {
		seen[send([]string{"linux/arm64;sm=8.7", "linux/arm64;sm=7.2"}[i%2], "").Target] = true
	}
	if v := send("linux/arm64;sm=5.3", ""); v.Target == "linux/arm64;sm=5.3" {
		t.Error("the target changed more than 100 times")
	}
	r := wire.Reported{Failure: long, Conditions: make([]wire.Condition, 1000), Journal: make([]wire.StepEntry, 1000),
		Sources: slices.Repeat([]wire.SourceBytes{{Name: long}}, 1000)}
	r.Journal[999].Step = "switch"
	if tidyReport(&r); len(r.Sources) != maxSources || len(r.Sources[0].Name) > maxWord {
		t.Errorf("%d sources", len(r.Sources))
	}
	if len(r.Failure) > maxNote || len(r.Conditions) != maxConditions || len(r.Journal) != maxJournal || r.Journal[maxJournal-1].Step != "switch" {
		t.Errorf("%d bytes, %d conditions, %d steps", len(r.Failure), len(r.Conditions), len(r.Journal))
	}
}

// A secret that cannot be sealed to one device is that device's trouble, which
// callers can tell from a fault of the control plane.
func TestSecretThatCannotBeSealed(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.run(t)()
	w.rel[release(1)] = []manifest.ParamDecl{{Key: "pass", Type: "secret"}}
	id := w.enrol(t, "cam", "")
	tw := w.find(tenant, id)
	tw.mu.Lock()
	tw.dev.SealKey = make([]byte, 32)
	tw.mu.Unlock()
	if _, err := w.SetParameters(t.Context(), tenant, []Param{{Scope: ScopeFleet, Key: "pass", Value: "x", Secret: true}}, nil); err != nil {
		t.Fatal(err)
	}
	r := release(1)
	if err := w.SetDesired(t.Context(), tenant, id, &r, false, ""); !errors.Is(err, ErrParameter) {
		t.Errorf("got %v, want ErrParameter", err)
	}
}
