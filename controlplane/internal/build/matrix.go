package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
)

// State of a cell of the matrix.
type State string

// The states.
const (
	Built    State = "built"
	Building State = "building"
	Queued   State = "queued"
	Missing  State = "missing"
	Refused  State = "refused"  // it failed, was cancelled, or the recipe does not suit the target
	Unneeded State = "unneeded" // the target serves the ONNX file
)

// Cell is how one engine stands: of a version by a recipe for a target.
type Cell struct {
	Model   string
	Version int64
	Recipe  Recipe
	Target  string
	Key     ota.Digest // empty where no engine can be
	State   State
	Reason  string // why it is refused or missing, or what holds it up
	Devices int    // of the fleet that it is for
	Engine  *store.Engine
	Build   *store.Build // the newest, or the open one
	// Of an open build, from its device's last word.
	Step    string
	Percent uint8
	Said    string
}

// survey is what a tenant has, at one moment.
type survey struct {
	engines map[string]store.Engine // by key, for all devices of the target
	builds  map[string]store.Build  // the newest by key
	live    map[string]*job         // open ones by key; a copy of what changes
	devices []fleet.View
	q       *Queue
	now     time.Time
}

// survey reads all; mu is held.
func (q *Queue) survey(ctx context.Context, tenant string) (*survey, error) {
	s := &survey{engines: map[string]store.Engine{}, builds: map[string]store.Build{}, live: map[string]*job{}, devices: q.cfg.Fleet.Snapshot(tenant), q: q, now: q.cfg.Now()}
	err := q.cfg.Store.View(ctx, func(tx *store.Tx) error {
		es, err := tx.Engines(ctx, tenant)
		if err != nil {
			return err
		}
		for _, e := range es {
			if e.Scope == "" {
				s.engines[e.Key] = e
			}
		}
		bs, err := tx.LastBuilds(ctx, tenant)
		for _, b := range bs {
			s.builds[b.Key] = b
		}
		return err
	})
	for _, j := range q.jobs {
		if j.Tenant == tenant {
			c := *j
			c.log = tail{}
			s.live[j.Key] = &c
		}
	}
	return s, err
}

// cell says how one engine stands; mu is held.
func (s *survey) cell(m store.ModelVersion, r Recipe, t ota.Target) Cell {
	key := keyOf(m, r, t)
	c := Cell{Model: m.Name, Version: m.Version, Recipe: r, Target: t.String(), Key: key, State: Missing}
	for _, v := range s.devices {
		if own, err := ota.ParseTarget(v.Target); err == nil && v.State != fleet.Revoked {
			if mine, err := r.Parsed.TargetFor(own); err == nil && mine.String() == c.Target {
				c.Devices++
			}
		}
	}
	if b, ok := s.builds[string(key)]; ok {
		c.Build = &b
	}
	e, built := s.engines[string(key)]
	j := s.live[string(key)]
	switch {
	case built:
		c.State, c.Engine = Built, &e
	case j != nil && j.State == store.BuildLeased:
		c.State, c.Build, c.Step, c.Percent, c.Said = Building, &j.Build, j.step, j.percent, j.said
		c.Reason = "on " + s.name(j.Device)
	case j != nil:
		c.State, c.Build, c.Reason = Queued, &j.Build, s.waits(j)
	case c.Build != nil && c.Build.State == store.BuildFailed:
		c.State, c.Reason = Refused, cmp.Or(c.Build.Message, "it failed")
	case c.Build != nil && c.Build.State == store.BuildCancelled:
		c.State, c.Reason = Refused, "cancelled: "+c.Build.Message
	default:
		c.Reason = s.builderFor(r.Parsed, t)
	}
	return c
}

// name is how people call a device.
func (s *survey) name(id string) string {
	for _, v := range s.devices {
		if v.ID == id {
			return cmp.Or(v.Name, v.ID)
		}
	}
	return id
}

// waits says what holds a queued build up.
func (s *survey) waits(j *job) string {
	var last string
	if n := len(j.Tried); n > 0 {
		a := j.Tried[n-1]
		last = fmt.Sprintf("attempt %d on %s: %s: %s; ", a.Attempt, s.name(a.Device), a.Class, a.Message)
	}
	var fits, online int
	for _, v := range s.devices {
		if _, ok := canBuild(v, "", j.recipe, j.target); ok {
			fits++
			if v.Online {
				online++
			}
		}
	}
	switch {
	case fits == 0:
		return last + noBuilder(j.target)
	case online == 0:
		return last + fmt.Sprintf("none of %d builders for this target is online", fits)
	}
	return last + "it waits for a free builder"
}

func noBuilder(t ota.Target) string {
	return fmt.Sprintf("no builder for %s: grant a device of this target the capability, skein device label NAME --grant %s", t, Capability)
}

// builderFor says who could build what nobody asked for yet.
func (s *survey) builderFor(r engine.Recipe, t ota.Target) string {
	for _, v := range s.devices {
		if _, ok := canBuild(v, "", r, t); ok {
			return "nobody asked for it; " + cmp.Or(v.Name, v.ID) + " can build it"
		}
	}
	return noBuilder(t)
}

// Matrix returns versions × recipes × targets of a tenant: of one model or
// NAME@VERSION, or of all; of one recipe, or of those that were ever used.
func (q *Queue) Matrix(ctx context.Context, tenant, model, recipe string) ([]Cell, error) {
	name, version, _ := strings.Cut(model, "@")
	vs, err := q.cfg.Models.Versions(ctx, tenant, name)
	if err != nil {
		return nil, err
	}
	if version != "" {
		one, err := q.cfg.Models.Version(ctx, tenant, model)
		if err != nil {
			return nil, err
		}
		vs = []store.ModelVersion{one}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, tenant)
	if err != nil {
		return nil, err
	}
	var out []Cell
	for _, m := range vs {
		recipes, err := q.recipesOf(ctx, s, tenant, m.Name, recipe)
		if err != nil {
			return nil, err
		}
		for _, r := range recipes {
			out = append(out, s.row(m, r)...)
		}
	}
	return out, nil
}

// row is one version by one recipe, for all targets.
func (s *survey) row(m store.ModelVersion, r Recipe) []Cell {
	cells := map[string]Cell{}
	for _, v := range s.devices {
		own, err := ota.ParseTarget(v.Target)
		if err != nil || v.State == fleet.Revoked {
			continue
		}
		t, err := r.Parsed.TargetFor(own)
		if err != nil { // shown under the device's own target
			c := cells[own.String()]
			c.Model, c.Version, c.Recipe, c.Target, c.State, c.Reason = m.Name, m.Version, r, own.String(), Refused, err.Error()
			if errors.Is(err, engine.ErrNoEngine) {
				c.State = Unneeded
			}
			c.Devices++
			cells[own.String()] = c
			continue
		}
		if _, ok := cells[t.String()]; !ok {
			cells[t.String()] = s.cell(m, r, t)
		}
	}
	others := func(model string, version int64, recipe, target string) {
		if model != m.Name || version != m.Version || recipe != r.Digest {
			return
		}
		if t, err := ota.ParseTarget(target); err == nil && cells[target].Target == "" {
			cells[target] = s.cell(m, r, t)
		}
	}
	for _, e := range s.engines {
		others(e.Model, e.ModelVersion, e.Recipe, e.Target)
	}
	for _, b := range s.builds {
		others(b.Model, b.ModelVersion, b.Recipe, b.Target)
	}
	var out []Cell
	for _, c := range cells {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Cell) int { return strings.Compare(a.Target, b.Target) })
	return out
}

// recipesOf are the recipes that were used for a model, fp16 when none was.
func (q *Queue) recipesOf(ctx context.Context, s *survey, tenant, model, recipe string) ([]Recipe, error) {
	if recipe != "" {
		r, err := q.Recipe(ctx, tenant, recipe)
		return []Recipe{r}, err
	}
	used := map[string]bool{}
	for _, e := range s.engines {
		used[e.Recipe] = used[e.Recipe] || e.Model == model
	}
	for _, b := range s.builds {
		used[b.Recipe] = used[b.Recipe] || b.Model == model
	}
	known, err := q.Recipes(ctx, tenant)
	if err != nil {
		return nil, err
	}
	var out []Recipe
	for d, of := range used {
		if !of {
			continue
		}
		if i := slices.IndexFunc(known, func(r Recipe) bool { return r.Digest == d }); i >= 0 {
			out = append(out, known[i])
			continue
		}
		r, err := q.recipeAt(ctx, d)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		r, err := preset(engine.FP16)
		return []Recipe{r}, err
	}
	slices.SortFunc(out, func(a, b Recipe) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Digest, b.Digest))
	})
	return out, nil
}
