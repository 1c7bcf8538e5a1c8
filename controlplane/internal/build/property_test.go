package build

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// model is what the test knows of the fleet: which device holds which lease.
type model struct {
	*world
	ids    []string
	leases map[string]wire.BuildLease // the newest of each device, also when it has ended
	built  map[string]string          // plan by key
	from   map[string]map[string]bool // devices that a job was leased to, by job
}

// TestQueueProperties lets devices of many targets ask, work, fail, fall silent
// and come back while the server restarts, and holds what the package promises.
func TestQueueProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "skein-build")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		m := &model{world: newWorld(rt, context.Background(), dir), leases: map[string]wire.BuildLease{}, built: map[string]string{}, from: map[string]map[string]bool{}}
		defer m.close(rt)
		for i, target := range []string{orin, orin, orin2, thor, h100, cpu} {
			m.ids = append(m.ids, m.add(rt, fmt.Sprintf("b%d", i), target))
		}
		m.ids = append(m.ids, m.add(rt, "plain", orin))
		device := rapid.SampledFrom(m.ids)
		rt.Repeat(map[string]func(*rapid.T){
			"want": func(rt *rapid.T) {
				m.want(rt, rapid.SampledFrom([]string{"fp16", "int8", `{"version":1,"precision":"fp16","fit":"optimal"}`}).Draw(rt, "recipe"))
			},
			"ask": func(rt *rapid.T) {
				id := device.Draw(rt, "device")
				m.took(rt, id, m.ask(rt, id))
			},
			"beat": func(rt *rapid.T) {
				id := device.Draw(rt, "device")
				if l, ok := m.leases[id]; ok {
					m.took(rt, id, m.send(rt, id, wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: l.Attempt, Step: "build"}))
				}
			},
			"fail": func(rt *rapid.T) {
				id := device.Draw(rt, "device")
				if l, ok := m.leases[id]; ok {
					class := rapid.SampledFrom([]string{wire.BuildMemory, wire.BuildBusy, wire.BuildGolden, wire.BuildTool}).Draw(rt, "class")
					m.send(rt, id, wire.Build{Kind: wire.BuildFailed, Job: l.Job, Attempt: l.Attempt, Class: class, Message: "m"})
				}
			},
			"finish": func(rt *rapid.T) {
				id := device.Draw(rt, "device")
				if l, ok := m.leases[id]; ok {
					m.finish(rt, id, l)
				}
			},
			"time": func(rt *rapid.T) {
				m.pass(time.Duration(rapid.IntRange(1, 600).Draw(rt, "seconds")) * time.Second)
				if err := m.q.Tick(m.ctx); err != nil {
					rt.Fatal(err)
				}
			},
			"take away": func(rt *rapid.T) {
				v := m.devices[device.Draw(rt, "device")]
				if v.Capabilities = nil; v.Name != "plain" && rapid.Bool().Draw(rt, "grant") {
					v.Capabilities = []string{Capability}
				}
			},
			"offline": func(rt *rapid.T) {
				v := m.devices[device.Draw(rt, "device")]
				v.Online = !v.Online
				if v.State = fleet.Offline; v.Online {
					v.State = fleet.Online
				}
			},
			"restart": func(rt *rapid.T) {
				m.close(rt)
				m.open(rt)
			},
			"": m.holds,
		})
	})
}

// took keeps a lease and checks that the device may have it.
func (m *model) took(t *rapid.T, id string, l wire.BuildLease) {
	if l.State != wire.LeaseBuild {
		return
	}
	before, had := m.leases[id]
	m.leases[id] = l
	if had && before.Job == l.Job && before.Attempt == l.Attempt {
		return // it may have lost the capability meanwhile, and ends what it began
	}
	v := m.devices[id]
	if !isBuilder(*v) {
		t.Fatalf("%s is no builder and got %s", v.Name, l.Job)
	}
	j := m.q.jobs[jobID{store.DefaultTenant, l.Job}]
	own, err := j.recipe.TargetFor(mustTarget(t, v.Target))
	if err != nil || own.String() != l.Work.Target {
		t.Fatalf("%s (%s) got a lease for %s", v.Name, v.Target, l.Work.Target)
	}
	if m.from[l.Job] == nil {
		m.from[l.Job] = map[string]bool{}
	}
	if m.from[l.Job][id] && len(j.Tried) > 0 && tried(j, id) && m.q.other(j, id) {
		t.Fatalf("%s tries %s again while another one can", v.Name, l.Job)
	}
	m.from[l.Job][id] = true
}

// holds is what must be so at any time, by what is stored.
func (m *model) holds(t *rapid.T) {
	var open []store.Build
	var es []store.Engine
	if err := m.db.View(m.ctx, func(tx *store.Tx) (err error) {
		if open, err = tx.OpenBuilds(m.ctx); err != nil {
			return err
		}
		es, err = tx.Engines(m.ctx, store.DefaultTenant)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	keys, devices := map[string]bool{}, map[string]bool{}
	for _, b := range open {
		if keys[b.Key] {
			t.Fatalf("two open builds of %s", b.Key)
		}
		keys[b.Key] = true
		if b.State == store.BuildLeased && devices[b.Device] {
			t.Fatalf("%s has two leases", b.Device)
		}
		devices[b.Device] = b.State == store.BuildLeased || devices[b.Device]
		if len(b.Tried) >= m.q.cfg.Attempts {
			t.Fatalf("%s goes on after %d attempts", b.ID, len(b.Tried))
		}
	}
	if len(open) != len(m.q.jobs) {
		t.Fatalf("%d open builds stored, %d in memory", len(open), len(m.q.jobs))
	}
	for _, e := range es {
		if e.Scope != "" {
			continue
		}
		if keys[e.Key] {
			t.Fatalf("%s is built and built again", e.Key)
		}
		if was, ok := m.built[e.Key]; ok && was != e.Plan {
			t.Fatalf("%s has other bytes than before", e.Key)
		}
		m.built[e.Key] = e.Plan
		if !m.blobs.Has(ota.Digest(e.Plan)) || !m.blobs.Has(ota.Digest(e.Seal)) || !m.blobs.Has(ota.Digest(e.Provenance)) {
			t.Fatalf("%s is kept without its bytes", e.Key)
		}
	}
}
