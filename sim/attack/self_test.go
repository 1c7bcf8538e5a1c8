package attack

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// The suite must be able to say short: these are no attacks that are refused,
// and each verdict on them must be what is said here.
func TestShort(t *testing.T) {
	t.Parallel()
	s := newSuite(t)
	honest := func(ctx context.Context, s *scene) error { return s.bait(ctx) }
	for _, c := range []struct {
		a     Attack
		short []string
	}{
		// An honest update that is called an attack is installed.
		{Attack{Name: "honest", Class: trust.ClassRollback, strike: honest}, []string{Refused, NothingApplied, Named}},
		// A refusal of another name.
		{Attack{Name: "misnamed", Class: trust.ClassFreeze, strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Tenant = "other" })}, []string{Named}},
		// A device on which somebody switched the checks off: the attacker's file
		// is put back after it was looked at, and his model answers.
		{Attack{Name: "file-left-behind", Class: trust.ClassWrongDevice, strike: func(ctx context.Context, s *scene) error {
			return errors.Join(leave(s.d, "evil"), orders(bait, func(_ *scene, d *wire.Desired) { d.Tenant = "other" })(ctx, s))
		}}, []string{NothingApplied}},
		{Attack{Name: "other-model-answers", Class: trust.ClassWrongDevice, strike: func(ctx context.Context, s *scene) error {
			if err := load(ctx, s.d); err != nil {
				return err
			}
			return orders(bait, func(_ *scene, d *wire.Desired) { d.Tenant = "other" })(ctx, s)
		}}, []string{NothingApplied}},
		// An attacker who stays: the next honest update does not come.
		{Attack{Name: "stays", Class: trust.ClassRollback, strike: orders(older, func(*scene, *wire.Desired) {}),
			lift: func(_ context.Context, s *scene) error { s.d.line.Cut(); return nil }}, []string{Recovers}},
		{Attack{Name: "cannot-be-carried-out", Class: trust.ClassRollback, strike: func(context.Context, *scene) error { return errors.New("no") }},
			[]string{Refused, NothingApplied, Named, Recovers}},
		// Denials.
		{Attack{Name: "inference-stops", Class: "trust-refused", Denial: true, jitter: func(*scene) error { return nil }, strike: func(ctx context.Context, s *scene) error {
			return errors.Join(s.d.engine.Unload(ctx, workload(s.d)), says(func(*scene) ([]byte, error) { return []byte("junk"), nil })(ctx, s))
		}}, []string{Unharmed}},
		{Attack{Name: "in-step", Class: "trust-refused", Denial: true, jitter: func(*scene) error {
			now := time.Now()
			return spread([]time.Time{now, now.Add(time.Second), now.Add(2 * time.Second), now.Add(3 * time.Second)}, 1, 10, time.Minute)
		}, strike: says(func(*scene) ([]byte, error) { return []byte("junk"), nil })}, []string{JitterBounded}},
	} {
		t.Run(c.a.Name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && slices.Contains(c.short, Recovers) {
				t.Skip("it takes the patience of the suite")
			}
			r := s.run(t.Context(), &c.a)
			var short []string
			for _, v := range r.Verdicts {
				if !v.OK {
					short = append(short, v.Name)
				}
			}
			slices.Sort(short)
			slices.Sort(c.short)
			if !slices.Equal(short, c.short) {
				t.Errorf("short: %q, want %q\n%s", short, c.short, r.Short())
			}
			if r.OK() || !strings.Contains(r.String(), "=short") {
				t.Errorf("it passes: %s", r)
			}
		})
	}
}

// leave puts a file beside the state folder's own.
func leave(d *device, name string) error { return d.files.WriteFile(name, []byte("evil")) }

// workload is the one that serves.
func workload(d *device) string {
	list, err := d.engine.List(context.Background())
	if err != nil {
		return ""
	}
	for _, w := range list {
		if w.Serving {
			return w.ID
		}
	}
	return ""
}

// load makes the older model answer for a moment, as if the runtime were the
// attacker's.
func load(ctx context.Context, d *device) error {
	was := workload(d)
	s, err := d.take()
	if err != nil {
		return err
	}
	w, err := oldWorkload(d, s.state.Previous.Release)
	if err != nil {
		return err
	}
	if err := errors.Join(d.engine.Load(ctx, w), d.engine.Switch(ctx, w.ID)); err != nil {
		return err
	}
	answered := wait(ctx, patience, func() (bool, error) {
		counts, _, _ := d.app.seen()
		delete(counts, running)
		return len(counts) > 0, nil
	})
	return errors.Join(answered, d.engine.Switch(ctx, was), d.engine.Unload(ctx, w.ID))
}

// oldWorkload is a release that is staged and does not run.
func oldWorkload(d *device, r ota.Digest) (runtime.Workload, error) {
	found, err := filepath.Glob(filepath.Join(d.state(), "staged", r.Hex()[:16]+"*"))
	if err != nil || len(found) != 1 {
		return runtime.Workload{}, fmt.Errorf("the release before: %q, %v", found, err)
	}
	return runtime.Workload{ID: "evil", Dir: found[0], ModelFile: "model.onnx", Format: "onnx"}, nil
}
