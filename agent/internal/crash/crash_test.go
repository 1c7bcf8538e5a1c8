package crash

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

func config(files slot.Files, boot uint64) Config {
	return Config{Files: files, Now: time.Now, BootID: func() uint64 { return boot }, Version: fmt.Sprint("v", boot),
		Line:    func() string { return "RAM 1/2MB " + time.Now().Format("150405") },
		Log:     func(int) []string { return []string{"log of boot " + fmt.Sprint(boot)} },
		Journal: func() []wire.StepEntry { return []wire.StepEntry{{Step: "load", State: wire.StepStarted}} },
		Failed:  func(err error) { panic(err) }}
}

func open(t *testing.T, c Config) *Recorder {
	t.Helper()
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// live lets a start run for a while.
func live(t *testing.T, r *Recorder, d time.Duration) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	time.Sleep(d)
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStopIsNoCrash(t *testing.T) {
	files := slot.NewMem()
	for boot := range uint64(3) {
		r := open(t, config(files, boot+1))
		if c := r.Pending(); c != nil {
			t.Errorf("%+v", c)
		}
		if err := r.End(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCrashIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := slot.NewMem()
		r := open(t, config(files, 1))
		live(t, r, 3*time.Minute+time.Second)
		r.Exit("meter: signal: killed (out of memory)")
		live(t, r, 10*time.Second)
		ended := time.Now()

		time.Sleep(time.Hour) // nobody saw it end
		c := config(files, 2)
		c.Panic = func() string { return "panic: boom\n" + strings.Repeat("é", maxPanic) }
		r = open(t, c)
		got := r.Pending()
		if got == nil || got.Number != 1 || got.Kind != OfMachine || got.Agent != "v1" || !strings.HasPrefix(got.Panic, "panic: boom") || len(got.Panic) > maxPanic {
			t.Fatalf("%+v", got)
		}
		if d := ended.Sub(time.UnixMilli(got.Time)); d < 0 || d > time.Minute {
			t.Errorf("last seen %s before the end", d)
		}
		if len(got.Tegrastats) < 30 || !slices.Contains(got.Log, "log of boot 1") || len(got.Journal) != 1 || len(got.Exits) != 1 || !strings.Contains(got.Exits[0], "out of memory") {
			t.Errorf("%+v", got)
		}
		// It waits for the link over a restart, and is not made anew.
		if err := r.End(); err != nil {
			t.Fatal(err)
		}
		r = open(t, config(files, 2))
		if got := r.Pending(); got == nil || got.Number != 1 {
			t.Fatalf("%+v", got)
		}
		if err := r.Sent(1); err != nil || r.Pending() != nil {
			t.Error(err)
		}
		if err := r.End(); err != nil {
			t.Fatal(err)
		}
		if c := open(t, config(files, 2)).Pending(); c != nil {
			t.Errorf("told again: %+v", c)
		}
		if got := open(t, config(files, 2)).Pending(); got == nil || got.Number != 2 || got.Kind != OfAgent {
			t.Errorf("%+v", got)
		}
	})
}

// Flash bears the ring: few files, bounded, and no more writes than one a minute.
func TestRingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := &counting{Files: slot.NewMem()}
		c := config(files, 1)
		c.Line = func() string { return strings.Repeat("x", 4096) }
		c.Log = func(n int) []string { return slices.Repeat([]string{strings.Repeat("y", 4096)}, n) }
		r := open(t, c)
		before := files.writes
		live(t, r, 6*time.Hour)
		if n := files.writes - before; n > 361 {
			t.Errorf("%d writes in 6 hours", n)
		}
		if files.most > 64<<10 {
			t.Errorf("a file of %d bytes", files.most)
		}
		got := open(t, config(files, 2)).Pending()
		b, err := wire.Marshal(got)
		if err != nil || len(b) > 80<<10 {
			t.Errorf("a bundle of %d bytes: %v", len(b), err)
		}
	})
}

type counting struct {
	slot.Files
	writes, most int
}

func (c *counting) WriteFile(name string, b []byte) error {
	c.writes++
	c.most = max(c.most, len(b))
	return c.Files.WriteFile(name, b)
}

// What a power cut left of the ring is used, and what is damaged is not in the way.
func TestDamagedRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := slot.NewMem()
		live(t, open(t, config(files, 1)), 5*time.Minute)
		for _, name := range []string{ringName(1), markFile} {
			if err := files.WriteFile(name, []byte("{half")); err != nil {
				t.Fatal(err)
			}
		}
		r := open(t, config(files, 2))
		if r.Pending() != nil {
			t.Error("a damaged mark is taken for a crash")
		}
		if got := open(t, config(files, 3)).Pending(); got == nil || len(got.Tegrastats) == 0 {
			t.Errorf("%+v", got)
		}
	})
}
