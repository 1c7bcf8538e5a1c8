package conductor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
)

// Snapshot is a rollout at one moment, without its devices.
type Snapshot struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	Tenant      string         `json:"tenant"`
	Release     ota.Digest     `json:"release"`
	ReleaseName string         `json:"-"`
	Spec        string         `json:"-"` // JSON
	Phase       string         `json:"phase"`
	Reason      string         `json:"reason,omitempty"`
	Wave        int            `json:"wave"`
	Waves       []WaveSnapshot `json:"waves"`
	Created     time.Time      `json:"created"`
	CreatedBy   string         `json:"createdBy"`
	Ended       time.Time      `json:"ended,omitzero"`
	Devices     int            `json:"devices"`
	Healthy     int            `json:"healthy"`
	Failed      int            `json:"failed"`
	RolledBack  int            `json:"rolledBack"`
	// Harmed devices switched to the release, and then it failed on them, or a
	// gate found by measurement that it serves badly.
	Harmed int `json:"harmed"`
}

// WaveSnapshot is one wave of a Snapshot.
type WaveSnapshot struct {
	Name       string    `json:"name"`
	State      string    `json:"state"` // waiting, running, soaking, passed, failed, inconclusive
	Devices    int       `json:"devices"`
	Queued     int       `json:"queued"`
	InProgress int       `json:"inProgress"`
	Healthy    int       `json:"healthy"`
	Failed     int       `json:"failed"`
	RolledBack int       `json:"rolledBack"`
	Verdict    string    `json:"verdict,omitempty"`
	Evidence   []string  `json:"evidence,omitempty"`
	Started    time.Time `json:"started,omitzero"`
	Ended      time.Time `json:"ended,omitzero"`
}

// Execution is one device in a rollout.
type Execution struct {
	Device   string
	Wave     string
	State    string // queued, offered, in-progress, healthy, failed, skipped, rolling-back, rolled-back, withdrawn
	Step     ota.Step
	Class    ota.FailureClass
	Message  string
	Previous ota.Digest
	Attempts int
	Updated  time.Time
}

func summarise(r *run, st rollout.State, x extra) Snapshot {
	s := Snapshot{ID: r.row.ID, Name: r.row.Name, Tenant: r.row.Tenant, Release: ota.Digest(r.row.Release), Phase: string(st.Phase), Reason: st.Reason,
		Wave: st.Wave, Created: r.row.Created, CreatedBy: r.row.CreatedBy, Ended: st.EndedAt, Waves: make([]WaveSnapshot, len(r.spec.Waves))}
	bad := judgedBad(st)
	for i := range r.spec.Waves {
		s.Waves[i].Name, s.Waves[i].State = r.spec.Waves[i].Name, "waiting"
	}
	for i := range min(len(st.Waves), len(s.Waves)) {
		w := &s.Waves[i]
		w.fill(st.Waves[i])
		if i < len(x.Waves) {
			w.Started, w.Ended = x.Waves[i].Started, x.Waves[i].Ended
		}
		for _, id := range st.Waves[i].Members {
			e := st.Exec[id]
			if e.Wave != i {
				continue
			}
			w.count(e)
			if harmed(e, bad) {
				s.Harmed++
			}
		}
		s.Devices, s.Healthy, s.Failed, s.RolledBack = s.Devices+w.Devices, s.Healthy+w.Healthy, s.Failed+w.Failed, s.RolledBack+w.RolledBack
	}
	return s
}

// judgedBad says that a gate found, by measurement, that the release serves
// badly.
func judgedBad(st rollout.State) bool {
	return slices.ContainsFunc(st.Waves, func(w rollout.WaveState) bool {
		return w.Verdict == gate.Fail && len(w.Reasons) > 0 && strings.HasPrefix(w.Reasons[0], "metric ")
	})
}

// harmed says that a device switched to the release and suffered from it: it
// failed afterwards, or bad says that the release serves badly.
func harmed(e rollout.Exec, bad bool) bool {
	if !e.Switched || e.Class == ota.Superseded {
		return false
	}
	return e.Status == rollout.FailedState || bad && (e.Succeeded() || e.Status == rollout.RollingBack || e.Status == rollout.Restored)
}

func (w *WaveSnapshot) fill(st rollout.WaveState) {
	w.Verdict, w.Evidence = string(st.Verdict), st.Reasons
	switch {
	case !st.Started:
	case st.Verdict == gate.Pass:
		w.State = "passed"
	case st.Verdict == gate.Fail:
		w.State = "failed"
	case st.Verdict == gate.Inconclusive:
		w.State = "inconclusive"
	case st.Soaking:
		w.State = "soaking"
	default:
		w.State = "running"
	}
}

func (w *WaveSnapshot) count(e rollout.Exec) {
	w.Devices++
	switch stateOf(e) {
	case "queued":
		w.Queued++
	case "offered", "in-progress":
		w.InProgress++
	case "healthy":
		w.Healthy++
	case "failed":
		w.Failed++
	case "rolling-back", "rolled-back":
		w.RolledBack++
	}
}

func stateOf(e rollout.Exec) string {
	switch e.Status {
	case rollout.Accepted:
		return "in-progress"
	case rollout.Healthy, rollout.Done:
		return "healthy"
	case rollout.Cancelled:
		return "withdrawn"
	case rollout.FailedState:
		if e.Class == ota.Superseded {
			return "withdrawn"
		}
	}
	return string(e.Status)
}

func (r *run) execution(id string, e rollout.Exec) Execution {
	x := Execution{Device: id, State: stateOf(e), Step: e.Step, Class: e.Class, Message: e.Detail, Previous: e.Previous, Attempts: e.Attempts, Updated: r.notes[id].Changed}
	if e.Wave < len(r.spec.Waves) {
		x.Wave = r.spec.Waves[e.Wave].Name
	}
	switch {
	case x.Message != "":
	case e.Status == rollout.Done && e.Attempts == 0:
		x.Message = "ran the release before"
	case e.Status == rollout.Accepted && e.Step != "":
		x.Message = "in step " + string(e.Step)
	case e.Status == rollout.Healthy:
		x.Message = "serves the release, the device still watches it"
	}
	return x
}

func (r *run) executions() []Execution {
	out := make([]Execution, 0, len(r.state.Exec))
	for i := range r.state.Waves {
		for _, id := range r.state.Waves[i].Members {
			if e := r.state.Exec[id]; e.Wave == i {
				out = append(out, r.execution(id, e))
			}
		}
	}
	return out
}

// snapshot of a rollout that is not over. The caller holds mu.
func (c *Conductor) snapshot(r *run) Snapshot {
	return c.dress(summarise(r, r.state, r.extra), r.row)
}

func (c *Conductor) dress(s Snapshot, row store.Rollout) Snapshot {
	s.Spec = row.Spec
	s.ReleaseName = c.cfg.Releases.Name(row.Tenant, s.Release)
	return s
}

// lookup finds a rollout by id, unique prefix of at least 4 characters, or name.
func (c *Conductor) lookup(ctx context.Context, tenant, ref string) (store.Rollout, error) {
	if ref == "" {
		return store.Rollout{}, fmt.Errorf("%w: name a rollout", ErrInvalid)
	}
	var rows []store.Rollout
	err := c.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.FindRollouts(ctx, tenant, ref)
		return err
	})
	if err != nil {
		return store.Rollout{}, err
	}
	var found []store.Rollout
	for _, row := range rows {
		switch {
		case row.ID == ref || row.Name == ref:
			return row, nil
		case len(ref) >= 4 && strings.HasPrefix(row.ID, ref):
			found = append(found, row)
		}
	}
	switch len(found) {
	case 0:
		return store.Rollout{}, fmt.Errorf("%w: %q", ErrUnknown, ref)
	case 1:
		return found[0], nil
	}
	return store.Rollout{}, fmt.Errorf("%w: %d begin with %s", ErrAmbiguous, len(found), ref)
}

// List returns the rollouts of a tenant, newest first.
func (c *Conductor) List(ctx context.Context, tenant string) ([]Snapshot, error) {
	var rows []store.Rollout
	err := c.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Rollouts(ctx, tenant)
		return err
	})
	out := make([]Snapshot, 0, len(rows))
	for _, row := range rows {
		s, derr := c.decode(row)
		if derr != nil {
			return nil, derr
		}
		out = append(out, s)
	}
	return out, err
}

func (c *Conductor) decode(row store.Rollout) (Snapshot, error) {
	var s Snapshot
	if err := json.Unmarshal([]byte(row.Summary), &s); err != nil {
		return s, fmt.Errorf("read rollout %s: %w", row.Name, err)
	}
	return c.dress(s, row), nil
}

// Get returns a rollout and its devices in the order of offers.
func (c *Conductor) Get(ctx context.Context, tenant, ref string) (Snapshot, []Execution, error) {
	row, err := c.lookup(ctx, tenant, ref)
	if err != nil {
		return Snapshot{}, nil, err
	}
	c.mu.Lock()
	if r := c.find(row.ID); r != nil {
		defer c.mu.Unlock()
		return c.snapshot(r), r.executions(), nil
	}
	c.mu.Unlock()
	var r *run
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		whole, err := tx.Rollout(ctx, tenant, row.ID)
		if err != nil {
			return err
		}
		r, err = loadRun(ctx, tx, whole)
		return err
	})
	if err != nil {
		return Snapshot{}, nil, err
	}
	return c.snapshot(r), r.executions(), nil
}

// Decisions returns the newest decisions of a rollout, oldest first.
func (c *Conductor) Decisions(ctx context.Context, tenant, id string, limit int) (out []store.Decision, err error) {
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		out, err = tx.Decisions(ctx, tenant, id, limit)
		return err
	})
	return out, err
}

// hub tells watchers which devices of a rollout changed.
type hub struct {
	mu       sync.Mutex // guards watchers
	watchers map[*watcher]struct{}
}

type watcher struct {
	rollout string
	wake    chan struct{}

	mu      sync.Mutex // guards changed
	changed map[string]bool
}

func (h *hub) watch(rollout string) (w *watcher, leave func()) {
	w = &watcher{rollout: rollout, wake: make(chan struct{}, 1), changed: map[string]bool{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	return w, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, w)
	}
}

func (h *hub) publish(rollout string, devices []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.rollout != rollout {
			continue
		}
		w.mu.Lock()
		for _, d := range devices {
			w.changed[d] = true
		}
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) take() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.changed
	w.changed = map[string]bool{}
	return out
}

// Watch calls send with the rollout and all its devices now, and then with the
// devices that changed, until the rollout is over or ctx ends. Changes that
// come faster than WatchEvery come together; none is lost. Without changes it
// sends the rollout alone from time to time.
func (c *Conductor) Watch(ctx context.Context, tenant, ref string, send func(Snapshot, []Execution) error) error {
	row, err := c.lookup(ctx, tenant, ref)
	if err != nil {
		return err
	}
	w, leave := c.hub.watch(row.ID)
	defer leave()
	all := true
	for {
		changed := w.take()
		s, execs, err := c.Get(ctx, tenant, row.ID)
		if err != nil {
			return err
		}
		if !all {
			execs = slices.DeleteFunc(execs, func(x Execution) bool { return !changed[x.Device] })
		}
		all = false
		slices.SortStableFunc(execs, func(a, b Execution) int { return cmp.Compare(a.Device, b.Device) })
		if err := send(s, execs); err != nil {
			return err
		}
		if rollout.Phase(s.Phase).Final() {
			return nil
		}
		if !wait(ctx, w.wake, c.cfg.WatchEvery) {
			return context.Cause(ctx)
		}
	}
}

// watchIdle is how long a watcher may hear nothing: proxies end silent streams.
const watchIdle = 15 * time.Second

// wait returns after the next change or watchIdle, and not before the pause is
// over; false means that ctx ended.
func wait(ctx context.Context, wake <-chan struct{}, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	idle := time.NewTimer(watchIdle)
	defer idle.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-idle.C:
	}
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
