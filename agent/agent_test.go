package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, soak: time.Minute})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, soak: time.Minute})
	synctest.Test(t, func(t *testing.T) {
		d := w.boot(slot.NewMem())
		w.want(1, "1")
		d.link.SetOnline(true)
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Fatalf("answers %v, %v\n%+v", got, err, d.Status())
		}
		r := w.last()
		if string(r.Running) != string(w.releases["1"].Digest) || r.Phase != wire.PhaseIdle || r.HighestCounter != 1 {
			t.Errorf("report %+v", r)
		}
		var steps []string
		for _, e := range r.Journal {
			steps = append(steps, e.Step+" "+e.State.String())
		}
		var want []string
		for _, s := range ota.Steps {
			want = append(want, string(s)+" started", string(s)+" done")
		}
		if strings.Join(steps, ",") != strings.Join(want, ",") {
			t.Errorf("journal %v", steps)
		}
		w.want(2, "2")
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Fatalf("answers %v, %v", got, err)
		}
		if len(d.runtime.models()) != 1 || len(d.runtime.unproven()) != 0 {
			t.Errorf("loaded %v, served unproven %v", d.runtime.models(), d.runtime.unproven())
		}
		if len(w.got().hellos) != 1 || len(w.got().blocks) == 0 || len(w.got().events) == 0 {
			t.Errorf("%d hellos, %d blocks, %d events", len(w.got().hellos), len(w.got().blocks), len(w.got().events))
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}
