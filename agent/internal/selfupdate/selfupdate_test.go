package selfupdate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
)

// program is an ELF header of a machine, with something after it.
func program(t testing.TB, arch string, body string) []byte {
	t.Helper()
	machine, ok := machines[arch]
	if !ok {
		t.Skipf("no machine for %s", arch)
	}
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(h[16:], 2) // a program
	binary.LittleEndian.PutUint16(h[18:], uint16(machine))
	binary.LittleEndian.PutUint32(h[20:], 1)
	binary.LittleEndian.PutUint64(h[24:], 0x400000) // entry
	binary.LittleEndian.PutUint16(h[52:], 64)
	binary.LittleEndian.PutUint16(h[54:], 56)
	binary.LittleEndian.PutUint16(h[58:], 64)
	return append(h, body...)
}

func put(t testing.TB, s *Slots, b []byte) (string, error) {
	t.Helper()
	return s.Put(t.Context(), ota.DigestOf(b), int64(len(b)), bytes.NewReader(b))
}

func TestPutRefusesWhatCannotRun(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	object := program(t, runtime.GOARCH, "")
	binary.LittleEndian.PutUint16(object[16:], 1) // a relocatable object
	for name, b := range map[string][]byte{
		"a script": []byte("#!/bin/sh\n"), "nothing": {}, "cut short": program(t, runtime.GOARCH, "")[:20], "another machine": program(t, other, "x"), "an object": object,
	} {
		s, err := Open(slot.NewMem())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := put(t, s, b); !errors.Is(err, ErrWrongBinary) {
			t.Errorf("%s: %v", name, err)
		}
		if r := s.Record(); len(r.Slots) != 0 || r.Trial != nil || r.Active != Factory {
			t.Errorf("%s: record %+v", name, r)
		}
	}
	s, err := Open(slot.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	b := program(t, runtime.GOARCH, "x")
	if _, err := s.Put(t.Context(), ota.DigestOf(b), int64(len(b)), strings.NewReader("something else")); err == nil || len(s.Record().Slots) != 0 {
		t.Errorf("other bytes than named: %v, %+v", err, s.Record())
	}
}

func TestSlotsTakeTurns(t *testing.T) {
	s, err := Open(slot.NewMem())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{slotA, slotB, slotA, slotB}
	for n, w := range want {
		got, err := put(t, s, program(t, runtime.GOARCH, fmt.Sprint(n)))
		if err != nil || got != w {
			t.Fatalf("update %d goes to %q (%v), want %q", n, got, err, w)
		}
		if err := errors.Join(s.Try(got, fmt.Sprint(n), ""), s.Keep()); err != nil {
			t.Fatal(err)
		}
		if r := s.Record(); r.Active != w || r.Trial != nil || n > 0 && r.Previous != want[n-1] {
			t.Fatalf("after update %d: %+v", n, r)
		}
	}
}

// TestSlotsPowerCut cuts the power at any operation of an update of the agent:
// whatever the record names afterwards is whole.
func TestSlotsPowerCut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		files := slot.NewMem()
		s, err := Open(files)
		if err != nil {
			rt.Fatal(err)
		}
		old := program(t, runtime.GOARCH, "old")
		name, err := put(t, s, old)
		if err = errors.Join(err, s.Try(name, "1", "r1"), s.Keep()); err != nil {
			rt.Fatal(err)
		}
		files = files.Crash(0)
		files.FailAfter(rapid.IntRange(0, 40).Draw(rt, "cut"))
		if s, err = Open(files); err == nil {
			if name, err = put(t, s, program(t, runtime.GOARCH, "new")); err == nil {
				err = errors.Join(s.Try(name, "2", "r2"), s.CheckIn(), s.Keep())
			}
		}
		left := files.Crash(rapid.Uint64().Draw(rt, "power"))
		if s, err = Open(left); err != nil {
			rt.Fatal(err)
		}
		r := s.Record()
		if r.Note != "" {
			rt.Fatalf("the record: %s", r.Note)
		}
		for name, b := range r.Slots {
			if err := s.holds(context.Background(), name, b.Digest); err != nil {
				rt.Fatalf("slot %s: %v", name, err)
			}
		}
		for _, name := range []string{r.Active, r.Previous} {
			if name != Factory && name != "" && r.Slots[name].Digest == "" {
				rt.Fatalf("slot %q is named and holds nothing: %+v", name, r)
			}
		}
		if r.Trial != nil && r.Slots[r.Trial.Slot].Digest == "" {
			rt.Fatalf("on trial is nothing: %+v", r)
		}
	})
}

func TestSettle(t *testing.T) {
	for name, c := range map[string]struct {
		slot, update string
		current      ota.Digest
		restart      bool
		active       string
		trial        bool
	}{
		"under way":                   {slotA, "u", "old", false, Factory, true},
		"committed, not yet kept":     {slotA, "", "new", false, slotA, false},
		"given up, the new one runs":  {slotA, "", "old", true, Factory, false},
		"given up, the old one runs":  {Factory, "", "old", false, Factory, false},
		"another update is under way": {slotA, "v", "old", true, Factory, false},
	} {
		s, err := Open(slot.NewMem())
		if err != nil {
			t.Fatal(err)
		}
		in, err := put(t, s, program(t, runtime.GOARCH, "new"))
		if err = errors.Join(err, s.Try(in, "u", "new")); err != nil {
			t.Fatal(err)
		}
		restart, err := (&Self{Slots: s, Slot: c.slot}).Settle(c.update, c.current)
		r := s.Record()
		if err != nil || restart != c.restart || r.Active != c.active || (r.Trial != nil) != c.trial {
			t.Errorf("%s: restart %v, %v, record %+v", name, restart, err, r)
		}
	}
}

// TestMain is, in a child, an agent that behaves as its slot's file says.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SELFUPDATE_TEST_AGENT"); dir != "" {
		os.Exit(pretend(dir, os.Getenv(SlotVariable)))
	}
	os.Exit(m.Run())
}

// pretend is the agent: it notes its start and does as it is told.
func pretend(dir, name string) int {
	log, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	fmt.Fprintln(log, name)
	log.Close()
	do, _ := os.ReadFile(filepath.Join(dir, "do-"+name))
	files, err := slot.OpenDir(filepath.Join(dir, "state"))
	if err != nil {
		return 1
	}
	s, err := Open(files)
	if err != nil {
		return 1
	}
	switch string(do) {
	case "crash":
		fmt.Fprintln(os.Stderr, "panic: boom\n\ngoroutine 1 [running]:")
		return 2
	case "hang":
		<-time.After(time.Hour)
	case "check in and stay":
		if err := s.CheckIn(); err != nil {
			return 1
		}
		stay(dir)
	case "keep and stay":
		if err := errors.Join(s.CheckIn(), s.Keep()); err != nil {
			return 1
		}
		stay(dir)
	case "hand over":
		_ = os.WriteFile(filepath.Join(dir, "do-"+name), []byte("stay"), 0o600)
		return ExitHandover
	case "stay":
		stay(dir)
	}
	return 0
}

// stay says that it is there, and stays.
func stay(dir string) {
	_ = os.WriteFile(filepath.Join(dir, "there"), nil, 0o600)
	<-time.After(time.Hour)
}

type bench struct {
	t   *testing.T
	dir string
	// pause is the first pause of the supervisor, a millisecond when 0.
	pause time.Duration
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir()}
	b.do(Factory, "stay")
	return b
}

func (b *bench) do(slot, what string) {
	if err := os.WriteFile(filepath.Join(b.dir, "do-"+slot), []byte(what), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) files() slot.Files {
	f, err := slot.OpenDir(filepath.Join(b.dir, "state"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return f
}

// trial puts the test binary into a slot and on trial.
func (b *bench) trial(what string) {
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := Open(b.files())
	if err != nil {
		b.t.Fatal(err)
	}
	in, err := s.Put(b.t.Context(), ota.DigestOf(raw), int64(len(raw)), bytes.NewReader(raw))
	if err == nil {
		err = s.Try(in, "u", "r")
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.do(in, what)
}

// supervise runs a supervisor until done says so of the record and the starts.
func (b *bench) supervise(done func(r Record, starts []string, there bool) bool) (Record, []string) {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Setenv("SELFUPDATE_TEST_AGENT", b.dir)
	os.Remove(filepath.Join(b.dir, "there"))
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	v := &Supervisor{Files: b.files(), Factory: self, Deadline: 300 * time.Millisecond, StopTimeout: time.Millisecond, RestartMin: cmp.Or(b.pause, time.Millisecond)}
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	}()
	reader := b.files()
	for {
		raw, _ := os.ReadFile(filepath.Join(b.dir, "starts"))
		starts := strings.Fields(string(raw))
		_, err := os.Stat(filepath.Join(b.dir, "there"))
		s, oerr := Open(reader)
		if oerr != nil {
			b.t.Fatal(oerr)
		}
		if done(s.Record(), starts, err == nil) {
			return s.Record(), starts
		}
		if ctx.Err() != nil {
			b.t.Fatalf("after 30 s: record %+v, starts %v", s.Record(), starts)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func last(starts []string) string {
	if len(starts) == 0 {
		return ""
	}
	return starts[len(starts)-1]
}

func TestSupervisorFirstStart(t *testing.T) {
	b := newBench(t)
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if r.Active != Factory || last(starts) != Factory {
		t.Errorf("record %+v, starts %v", r, starts)
	}
}

func TestSupervisorKeepsGoodAgent(t *testing.T) {
	b := newBench(t)
	b.trial("keep and stay")
	r, starts := b.supervise(func(r Record, _ []string, there bool) bool { return there })
	if r.Active != slotA || r.Previous != Factory || r.Trial != nil || r.Failed != nil || last(starts) != slotA {
		t.Errorf("record %+v, starts %v", r, starts)
	}
	// It is what starts from then on.
	_, starts = b.supervise(func(_ Record, s []string, there bool) bool { return there })
	if last(starts) != slotA {
		t.Errorf("starts %v", starts)
	}
}

func TestSupervisorGivesUpCrashingAgent(t *testing.T) {
	b := newBench(t)
	b.trial("crash")
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if r.Active != Factory || r.Trial != nil || r.Failed == nil || last(starts) != Factory || len(starts) != Tries+1 {
		t.Fatalf("record %+v, starts %v", r, starts)
	}
	if !strings.Contains(r.Failed.Cause, "panic: boom") || r.Failed.Update != "u" {
		t.Errorf("failed %+v", r.Failed)
	}
}

// TestSupervisorGoesBackAtOnce: nothing is served while no agent runs, so what
// was before waits for no pause after the last try.
func TestSupervisorGoesBackAtOnce(t *testing.T) {
	b := newBench(t)
	b.pause = time.Hour
	b.trial("crash")
	s, err := Open(b.files())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.change(func(r *Record) { r.Trial.TriesLeft = 1 }); err != nil {
		t.Fatal(err)
	}
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if r.Trial != nil || r.Failed == nil || last(starts) != Factory || len(starts) != 2 {
		t.Errorf("record %+v, starts %v", r, starts)
	}
}

func TestSupervisorGivesUpHangingAgent(t *testing.T) {
	b := newBench(t)
	b.trial("hang")
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if r.Trial != nil || r.Failed == nil || !strings.Contains(r.Failed.Cause, "did not check in within") || last(starts) != Factory || len(starts) != 2 {
		t.Errorf("record %+v, starts %v", r, starts)
	}
}

func TestSupervisorHandOver(t *testing.T) {
	b := newBench(t)
	b.do(Factory, "hand over")
	_, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if len(starts) != 2 {
		t.Errorf("starts %v", starts)
	}
}

// TestSupervisorKilled kills everything at once, as a power cut does, again and
// again: the tries of a binary that never becomes final are counted over it.
func TestSupervisorKilled(t *testing.T) {
	b := newBench(t)
	b.trial("check in and stay")
	for n := range Tries {
		r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
		if last(starts) != slotA || r.Trial == nil || r.Trial.TriesLeft != Tries-1-n {
			t.Fatalf("start %d: record %+v, starts %v", n, r, starts)
		}
	}
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if last(starts) != Factory || r.Failed == nil {
		t.Errorf("record %+v, starts %v", r, starts)
	}
}

func TestSupervisorDamagedSlot(t *testing.T) {
	b := newBench(t)
	b.trial("keep and stay")
	b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	path := filepath.Join(b.dir, "state", "agent", slotA, binaryName)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o700); err != nil {
		t.Fatal(err)
	}
	r, starts := b.supervise(func(_ Record, _ []string, there bool) bool { return there })
	if last(starts) != Factory || !strings.Contains(r.Note, "damaged") {
		t.Errorf("record %+v, starts %v", r, starts)
	}
}

func FuzzCheckBinary(f *testing.F) {
	f.Add(program(f, "amd64", "x"))
	f.Add(program(f, "arm64", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkBinary(bytes.NewReader(b), "amd64"); err != nil && !errors.Is(err, ErrWrongBinary) {
			t.Errorf("%v", err)
		}
	})
}
