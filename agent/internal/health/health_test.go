package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

func TestConditions(t *testing.T) {
	now := time.UnixMilli(1000)
	changes := 0
	b := NewBoard(func() time.Time { return now }, func() { changes++ })
	b.Set(LinkOffline, Warning, "no route")
	now = now.Add(time.Minute)
	b.Set(LinkOffline, Warning, "no route")
	b.Set(LinkOffline, Warning, "refused")
	b.Set(DiskFull, Critical, "0 bytes")
	b.Update(false, Throttled, Info, "")
	if changes != 3 {
		t.Errorf("%d changes told, want 3", changes)
	}
	got := b.Conditions()
	if len(got) != 2 || got[0].Name != DiskFull || got[1].Message != "refused" || got[1].Since != 1000 {
		t.Errorf("%+v", got)
	}
	b.Clear(LinkOffline)
	b.Clear(LinkOffline)
	if changes != 4 || b.Holds(LinkOffline) || !b.Holds(DiskFull) {
		t.Errorf("%d changes, %+v", changes, b.Conditions())
	}
}

func TestEventsAreBounded(t *testing.T) {
	b := NewBoard(time.Now, func() {})
	for i := range MaxEvents + 10 {
		b.Event(wire.Event{ID: wire.MessageID{Boot: 1, Counter: uint64(i)}, Kind: "step", Message: fmt.Sprint(i)})
	}
	if n := b.DroppedEvents(); n != 10 {
		t.Errorf("%d dropped, want 10", n)
	}
	for i := 10; i < MaxEvents+10; i++ {
		e, ok := b.NextEvent()
		if !ok || e.Message != fmt.Sprint(i) {
			t.Fatalf("event %d: %+v %v", i, e, ok)
		}
		b.TookEvent(e)
		b.TookEvent(e) // once only
	}
	if _, ok := b.NextEvent(); ok {
		t.Error("events left")
	}
}
