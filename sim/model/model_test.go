package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"testing"

	"github.com/skein-fleet/skein/ota/rollout"
)

func runOnce(t *testing.T, o Options) (Result, []byte) {
	t.Helper()
	var log bytes.Buffer
	o.Log = &log
	r, err := Run(o)
	if err != nil {
		t.Fatal(err)
	}
	return r, log.Bytes()
}

// TestEqualSeedsEqualLogs: ten runs give the same bytes, another seed others.
func TestEqualSeedsEqualLogs(t *testing.T) {
	o := Options{Devices: 60, Days: 3, Seed: 7}
	first, log := runOnce(t, o)
	if first.Lines < 100 || len(log) == 0 {
		t.Fatalf("a log of %d lines, %d bytes", first.Lines, len(log))
	}
	want := sha256.Sum256(log)
	runs := 10
	if testing.Short() {
		runs = 3
	}
	for i := 1; i < runs; i++ {
		if _, again := runOnce(t, o); sha256.Sum256(again) != want {
			t.Fatalf("run %d wrote another log", i+1)
		}
	}
	o.Seed = 8
	if _, other := runOnce(t, o); sha256.Sum256(other) == want {
		t.Error("the seed changes nothing")
	}
}

// TestBadReleasesStayInTheCanary over some weeks of releases.
func TestBadReleasesStayInTheCanary(t *testing.T) {
	bad, good := 0, 0
	seeds := uint64(4)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		r, _ := runOnce(t, Options{Devices: 150, Days: 7, Seed: seed})
		for _, o := range r.Rollouts {
			switch {
			case o.Defect == Good && o.Phase == rollout.Succeeded:
				good++
			case o.Defect == Good:
				t.Errorf("seed %d: good release %s ended %s: %s", seed, o.Release, o.Phase, o.Reason)
			case o.Phase != rollout.RolledBack && o.Phase != rollout.Aborted:
				t.Errorf("seed %d: release %s (%s) ended %s", seed, o.Release, o.Defect, o.Phase)
			default:
				bad++
			}
			if o.Outside > 0 {
				t.Errorf("seed %d: release %s (%s) harmed %d devices outside the canary", seed, o.Release, o.Defect, o.Outside)
			}
			if (o.Defect == Wrong || o.Defect == Refused) && o.Harmed > 0 {
				t.Errorf("seed %d: release %s (%s) served on %d devices", seed, o.Release, o.Defect, o.Harmed)
			}
		}
		if t.Failed() {
			text, err := json.MarshalIndent(r, "", "  ")
			t.Logf("%s %v", text, err)
		}
	}
	if bad < 2 || good < 2 {
		t.Errorf("%d bad and %d good releases: that proves little", bad, good)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{}, {Devices: 1}, {Days: 1}, {Devices: 1, Days: 1000}} {
		if _, err := Run(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}
