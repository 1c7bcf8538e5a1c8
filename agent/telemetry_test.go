package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
	"github.com/skein-fleet/skein/telemetry/spool"
)

// message is a telemetry message of n samples of two series.
func message(t *testing.T, n int) []byte {
	t.Helper()
	var b block.Builder
	for i := range n {
		at := bubbleStart.Add(time.Duration(i) * time.Second)
		rs := []telemetry.Reading{{Series: telemetry.NewSeries(telemetry.Power, "rail", "VDD_IN"), Time: at, Value: float64(i % 7)}}
		if i%15 == 5 { // measured rarely
			rs = append(rs, telemetry.Reading{Series: telemetry.NewSeries(telemetry.FanSpeed), Time: at, Value: 900})
		}
		b.Add(rs)
	}
	blk, ok := b.Take()
	if !ok {
		t.Fatal("empty block")
	}
	data, _, err := block.Encode(blk, true)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := wire.Marshal(&wire.Telemetry{ID: wire.MessageID{Boot: 1, Counter: 7}, Block: data})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

func TestThin(t *testing.T) {
	full := message(t, 60)
	small, ok := thin(wire.UpTelemetry, full)
	if !ok || len(small) >= len(full) {
		t.Fatalf("%v, %d of %d bytes", ok, len(small), len(full))
	}
	var m wire.Telemetry
	if err := wire.Unmarshal(small, &m); err != nil || m.ID.Counter != 7 {
		t.Fatalf("%+v %v", m.ID, err)
	}
	b, err := block.Decode(m.Block, nil)
	if err != nil || len(b.Times) != 6 || len(b.Columns) != 2 {
		t.Fatalf("%+v %v", b, err)
	}
	if b.Samples() < 6+4 { // the rare series keeps all its four values
		t.Errorf("%d samples left", b.Samples())
	}
	for kind, payload := range map[wire.Kind][]byte{wire.UpEvent: full, wire.UpTelemetry: {1, 2, 3}, wire.UpHello: nil} {
		if _, ok := thin(kind, payload); ok {
			t.Errorf("%s %x was thinned", kind, payload)
		}
	}
	if _, ok := thin(wire.UpTelemetry, message(t, 1)); ok {
		t.Error("one sample was thinned")
	}
}

// TestSchemaTravelsOncePerConnection and again from time to time.
func TestSchemaTravelsOncePerConnection(t *testing.T) {
	var s schemas
	f := spool.Frame{Kind: wire.UpTelemetry, Payload: message(t, 60)}
	whole := 0
	for range 2 * (schemaEvery + 1) {
		payload, id, bare := s.strip(f)
		var m wire.Telemetry
		if err := wire.Unmarshal(payload, &m); err != nil {
			t.Fatal(err)
		}
		_, err := block.Decode(m.Block, nil)
		if got := errors.Is(err, block.ErrUnknownSchema); got != bare {
			t.Fatalf("bare %v, decode %v", bare, err)
		}
		if !bare {
			whole++
		}
		s.acknowledged(id, bare)
	}
	if whole != 2 {
		t.Errorf("the schema travelled %d times in %d blocks", whole, 2*(schemaEvery+1))
	}
}

func TestHeat(t *testing.T) {
	f := slot.NewMem()
	w := newWorld(t)
	a, err := New(Options{Identity: w.id, Link: NewMemoryLink(nil), Host: &board{files: f, clock: time.Now}, Runtime: newFakeRuntime(f), Files: f, Blobs: w, Metadata: w.meta})
	if err != nil {
		t.Fatal(err)
	}
	reading := func(name string, v float64, labels ...string) []telemetry.Reading {
		return []telemetry.Reading{{Series: telemetry.NewSeries(name, labels...), Value: v}}
	}
	for _, c := range []struct {
		celsius float64
		hot     bool
	}{{80, false}, {96, true}, {92, true}, {89, false}, {92, false}} {
		a.noteHeat(reading(telemetry.Temperature, c.celsius, "zone", "cpu"))
		if got := a.board.Holds("overheating"); got != c.hot {
			t.Errorf("at %v °C overheating is %v", c.celsius, got)
		}
	}
	for _, on := range []float64{1, 1, 0} {
		a.noteHeat(reading(telemetry.Throttled, on, "reason", "thermal"))
		if a.board.Holds("throttled") != (on > 0) {
			t.Errorf("throttled %v", on)
		}
	}
	if e, ok := a.board.NextEvent(); !ok || e.Kind != "throttle" {
		t.Errorf("event %+v", e)
	}
}
