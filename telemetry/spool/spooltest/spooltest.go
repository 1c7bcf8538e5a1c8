// Package spooltest is the conformance suite of the spool port: every driver
// passes it. Tests import it.
package spooltest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry/spool"
)

// Open makes an empty spool; the suite closes it.
type Open func(t testing.TB, o spool.Options) spool.Spool

// Run checks every promise of the port.
func Run(t *testing.T, open Open) {
	t.Run("order", func(t *testing.T) { order(t, open) })
	t.Run("bound", func(t *testing.T) { bound(t, open) })
	t.Run("thin", func(t *testing.T) { thin(t, open) })
	t.Run("model", func(t *testing.T) { model(t, open) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, open) })
	t.Run("closed", func(t *testing.T) { closed(t, open) })
}

func payload(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%04d", i), 50) }

func order(t *testing.T, open Open) {
	s := open(t, spool.Options{})
	defer shut(t, s)
	if _, err := s.Next(); !errors.Is(err, spool.ErrEmpty) {
		t.Fatalf("Next of an empty spool: %v", err)
	}
	buf := make([]byte, 200)
	for i := range 20 {
		copy(buf, payload(i))
		if err := s.Append(wire.UpTelemetry, buf); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		f, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := s.Next(); err != nil || again.Seq != f.Seq {
			t.Fatalf("Next took the message: %d then %d, %v", f.Seq, again.Seq, err)
		}
		if d := cmp.Diff(payload(i), f.Payload); d != "" || f.Kind != wire.UpTelemetry {
			t.Fatalf("message %d: kind %s\n%s", i, f.Kind, d)
		}
		for range 2 { // the second is an unknown seq
			if err := s.Ack(f.Seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	if st := s.Stats(); st != (spool.Stats{}) {
		t.Errorf("after all: %+v", st)
	}
}

func bound(t *testing.T, open Open) {
	const limit = 2200
	s := open(t, spool.Options{MaxBytes: limit})
	defer shut(t, s)
	for i := range 30 {
		if err := s.Append(wire.UpEvent, payload(i)); err != nil {
			t.Fatal(err)
		}
		if st := s.Stats(); st.Bytes > limit || st.Frames+int64(st.Dropped) != int64(i+1) {
			t.Fatalf("after %d: %+v", i+1, st)
		}
	}
	if f, err := s.Next(); err != nil || !bytes.Equal(f.Payload, payload(30-int(s.Stats().Frames))) {
		t.Errorf("the newest are not those kept: %q %v", f.Payload, err)
	}
	if err := s.Append(wire.UpEvent, make([]byte, limit)); !errors.Is(err, spool.ErrTooLarge) {
		t.Errorf("message over the bound: %v", err)
	}
}

func thin(t *testing.T, open Open) {
	s := open(t, spool.Options{MaxBytes: 2200, Thin: func(k wire.Kind, p []byte) ([]byte, bool) {
		return p[:len(p)/2], k == wire.UpTelemetry
	}})
	defer shut(t, s)
	for i := range 16 {
		if err := s.Append(wire.UpTelemetry, payload(i)); err != nil {
			t.Fatal(err)
		}
	}
	st := s.Stats()
	if st.Thinned == 0 || st.Dropped != 0 || st.Frames != 16 {
		t.Fatalf("thinning comes before dropping: %+v", st)
	}
	if f, err := s.Next(); err != nil || len(f.Payload) != 100 {
		t.Errorf("the oldest is thinned first: %d bytes, %v", len(f.Payload), err)
	}
	for i := range 16 {
		if err := s.Append(wire.UpTelemetry, payload(i)); err != nil {
			t.Fatal(err)
		}
	}
	if st := s.Stats(); st.Dropped == 0 || st.Bytes > 2200 || st.Frames+int64(st.Dropped) != 32 {
		t.Errorf("when all are thin the oldest goes: %+v", st)
	}
}

// model compares the spool with a slice.
func model(t *testing.T, open Open) {
	rapid.Check(t, func(rt *rapid.T) {
		s := open(t, spool.Options{})
		defer shut(t, s)
		var want [][]byte
		for range rapid.IntRange(0, 40).Draw(rt, "ops") {
			if rapid.Bool().Draw(rt, "append") {
				p := rapid.SliceOfN(rapid.Byte(), 0, 700).Draw(rt, "payload")
				if err := s.Append(wire.UpTelemetry, p); err != nil {
					rt.Fatal(err)
				}
				want = append(want, p)
				continue
			}
			f, err := s.Next()
			if len(want) == 0 {
				if !errors.Is(err, spool.ErrEmpty) {
					rt.Fatal(err)
				}
				continue
			}
			if err != nil || !bytes.Equal(f.Payload, want[0]) {
				rt.Fatalf("got %x %v, want %x", f.Payload, err, want[0])
			}
			if err := s.Ack(f.Seq); err != nil {
				rt.Fatal(err)
			}
			want = want[1:]
		}
		if got := s.Stats().Frames; got != int64(len(want)) {
			rt.Fatalf("%d frames, want %d", got, len(want))
		}
	})
}

func concurrent(t *testing.T, open Open) {
	s := open(t, spool.Options{})
	defer shut(t, s)
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.Append(wire.UpTelemetry, payload(w*each+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]bool{}
	wg.Go(func() {
		for len(seen) < writers*each && !t.Failed() {
			f, err := s.Next()
			if errors.Is(err, spool.ErrEmpty) {
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			seen[string(f.Payload)] = true
			if err := s.Ack(f.Seq); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if st := s.Stats(); st != (spool.Stats{}) || len(seen) != writers*each {
		t.Errorf("%d messages seen, left %+v", len(seen), st)
	}
}

func closed(t *testing.T, open Open) {
	s := open(t, spool.Options{})
	shut(t, s)
	if err := s.Append(wire.UpEvent, nil); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Append: %v", err)
	}
	if _, err := s.Next(); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Next: %v", err)
	}
	if err := s.Ack(1); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("Ack: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func shut(t testing.TB, s spool.Spool) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
