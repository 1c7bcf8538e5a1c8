package fleet

import (
	"runtime"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

// A desired state is durable before the twin has it. A device that says in
// between that it holds it holds nothing from the future, and is not left
// without orders until a person comes.
func TestNoFutureWhileADesiredStateIsStored(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.run(t)()
	w.rel[release(1)] = nil
	id := w.enrol(t, "cam", "")
	w.hello(t, id, wire.Held{})

	w.change.Lock()
	m, err := w.make(t.Context(), tenant, Intent{Device: id, Release: release(1)}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		w.hello(t, id, wire.Held{Generation: m.row.Generation, Digest: m.row.Digest})
	}()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if v, err := w.Get(tenant, id); err != nil || v.Held == m.row.Generation {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the hello never came in")
		}
		runtime.Gosched()
	}
	err = w.keep(t.Context(), []made{*m}, nil)
	w.change.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	<-said
	if v, err := w.Get(tenant, id); err != nil || v.FromFuture || !v.Converged {
		t.Errorf("from the future: %v, converged: %v, %v", v.FromFuture, v.Converged, err)
	}
	if err := w.db.View(t.Context(), func(tx *store.Tx) error {
		events, err := tx.Events(t.Context(), tenant, id, 10)
		if len(events) > 0 {
			t.Errorf("events: %+v", events)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
