package rollout

import (
	"math"
	"testing"
	"time"
)

// A clock that somebody sets back between two pauses takes nothing off twice.
func TestPausesNeverOverlap(t *testing.T) {
	at := func(s int) time.Time { return epoch.Add(time.Duration(s) * time.Second) }
	s := New("r1")
	for _, d := range []Decision{
		{Kind: Assign, Waves: 1, At: at(0)}, {Kind: Pause, At: at(60)}, {Kind: Resume, At: at(120)},
		{Kind: Pause, At: at(90)}, {Kind: Resume, At: at(180)}, {Kind: Outage, At: at(190), Wait: time.Hour},
	} {
		if !s.Apply(d) {
			t.Fatalf("%s was not taken", d.Kind)
		}
	}
	if got := s.Clock(at(200)); got != 70*time.Second {
		t.Errorf("the clock shows %s at 200 s with pauses from 60 to 190 s", got)
	}
	for last, i := Elapsed(0), 0; i < 250; i++ {
		if c := s.Clock(at(i)); c < last {
			t.Fatalf("the clock goes from %s to %s", last, c)
		} else {
			last = c
		}
	}
}

func TestNoPercentageIsNobody(t *testing.T) {
	for _, a := range []Amount{Percent(minPct), Percent(0.5), Percent(100), Devices(1)} {
		if a.Up(1) != 1 || a.Down(1) != 1 {
			t.Errorf("%s of one device: %d up, %d down", a, a.Up(1), a.Down(1))
		}
	}
	for _, a := range []Amount{Percent(1e-9), Percent(math.NaN()), Percent(-1), Percent(101)} {
		spec := simple()
		spec.Waves[0].Limit = a
		if spec.Validate() == nil {
			t.Errorf("a limit of %s is valid", a)
		}
	}
}
