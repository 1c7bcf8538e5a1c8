package state

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

func full() State {
	i := &Install{Generation: wire.Generation{Epoch: 1, Counter: 2}, Release: ota.DigestOf([]byte("r")), Length: 5, TUFTarget: "releases/m/1", Counter: 3,
		Params: []wire.Param{{Key: "k", Value: []byte("v"), Secret: true}}, ParamsDigest: make([]byte, 32), Rollout: "r1", Name: "m", Version: "1",
		Model: "m", ModelVersion: "1", ModelFile: "model.onnx", Format: "onnx", Golden: ota.DigestOf([]byte("g")), Soak: time.Minute, Blobs: []ota.Digest{ota.DigestOf([]byte("b"))}}
	return State{Version: version, Starts: 1, Updates: 2, Held: i.Generation, HeldDigest: []byte{1}, Desired: []byte{2}, Current: i, Previous: i,
		Update:       &Update{ID: "u", Install: *i, Attempts: 1, Undoing: true, Class: ota.Failed, Cause: "c", Step: ota.StepLoad},
		Failure:      &Failure{Generation: i.Generation, Release: i.Release, Class: ota.Rejected, Step: ota.StepProve, Cause: "c", Time: time.Unix(5, 0).UTC()},
		BytesFetched: 9, Sources: map[string]int64{"mqtt": 9}, HighestCounter: 4, Highest: map[string]uint64{"releases/m": 4}, ReportCounter: 5, CmdCounter: 6}
}

func TestChangeIsDurableOrNothing(t *testing.T) {
	f := slot.NewMem()
	st, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	want := full()
	if err := st.Change(func(s *State) { *s = want }); err != nil {
		t.Fatal(err)
	}
	again, err := Open(f.Crash(1))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, again.Get()); d != "" {
		t.Error(d)
	}
	f.SetFree(0)
	if err := st.Change(func(s *State) { s.CmdCounter = 99 }); !errors.Is(err, slot.ErrDiskFull) {
		t.Fatalf("full disk: %v", err)
	}
	if got := st.Get().CmdCounter; got != 6 {
		t.Errorf("counter %d after a change that was not written", got)
	}
}

// TestCountersAreOfAName: a release of another name is no rollback, however
// small its counter.
func TestCountersAreOfAName(t *testing.T) {
	var s State
	s.Committed("releases/a/9", 9)
	before := s
	s.Committed("releases/b/1", 1)
	s.Committed("releases/a/4", 4)
	for target, want := range map[string]uint64{"releases/a/10": 9, "releases/b/2": 1, "releases/c/1": 0} {
		if got := s.HighestOf(target); got != want {
			t.Errorf("%s: %d, want %d", target, got, want)
		}
	}
	if before.Highest["releases/b"] != 0 || s.HighestCounter != 9 {
		t.Errorf("an earlier copy changed to %v; highest of all %d", before.Highest, s.HighestCounter)
	}
}

func TestDamagedIsSetAside(t *testing.T) {
	f := slot.NewMem()
	if err := f.WriteFile(fileName, []byte("{")); err != nil {
		t.Fatal(err)
	}
	st, err := Open(f)
	if err != nil || !st.Damaged() || st.Get().Current != nil {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := f.ReadFile(fileName + ".damaged"); err != nil {
		t.Error(err)
	}
	if err := f.WriteFile(fileName, []byte(`{"version": 2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f); err == nil {
		t.Error("a state of a newer agent was taken")
	}
}

// TestCounterNeverGoesBack over power cuts, at one write for many counters.
func TestCounterNeverGoesBack(t *testing.T) {
	f := slot.NewMem()
	var last uint64
	for boot := range 5 {
		st, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		c := NewCounter(st, time.Now)
		ops := f.Ops()
		for range 700 {
			n, err := c.Next()
			if err != nil || n <= last {
				t.Fatalf("boot %d: %d after %d, %v", boot, n, last, err)
			}
			last = n
		}
		if used := f.Ops() - ops; used > 12 {
			t.Errorf("%d disk operations for 700 counters", used)
		}
		f = f.Crash(uint64(boot))
	}
}

func TestWorkloadID(t *testing.T) {
	a, b := *full().Current, *full().Current
	b.ParamsDigest = append([]byte{1}, b.ParamsDigest[1:]...)
	if a.WorkloadID() == b.WorkloadID() || (*Install)(nil).WorkloadID() != "" {
		t.Error("a change of parameters is another workload")
	}
}
