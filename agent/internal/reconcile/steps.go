package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	// leastReserve stays free at least, for state, journal and spool.
	leastReserve = 32 << 20
	completeTag  = "complete.json"
	// lookTimeout bounds one question to the runtime.
	lookTimeout = time.Minute
)

func (x *Executor) doVerify(ctx context.Context, a *attempt) (string, error) {
	i := &a.install
	c, err := x.read(ctx, i)
	if err != nil {
		return "", err
	}
	if err := x.Agrees(i, c.index, c.manifests); err != nil {
		return "", err
	}
	if c.release.Counter != i.Counter {
		return "", fmt.Errorf("%w: the index says counter %d, the desired state %d", ErrOther, c.release.Counter, i.Counter)
	}
	if want := "releases/" + c.release.Name + "/" + c.release.Version; i.TUFTarget != want {
		return "", fmt.Errorf("%w: the index is of %s, the desired state names %s", ErrOther, want, i.TUFTarget)
	}
	for _, d := range c.blobs {
		if err := x.Blobs.Verify(ctx, d); err != nil {
			// The next try fetches it again.
			return "", errors.Join(fmt.Errorf("verify blob %s: %w", d.Short(), err), x.Blobs.Delete(d))
		}
	}
	raw, err := x.Blobs.ReadAll(ctx, c.golden.Digest, manifest.MaxGolden)
	if err != nil {
		return "", fmt.Errorf("read golden set: %w", err)
	}
	if a.golden, err = manifest.ParseGolden(raw); err != nil {
		return "", err
	}
	if a.params, err = x.Params(i.Params); err != nil {
		return "", fmt.Errorf("%w: parameters: %w", ErrRejected, err)
	}
	i.Name, i.Version, i.Model = c.release.Name, c.release.Version, c.release.Model
	i.ModelVersion = fmt.Sprint(c.release.ModelVersion)
	i.ModelFile, i.Format = c.weights.Title(), c.format
	i.Golden, i.Soak, i.Blobs = c.golden.Digest, c.release.Soak, c.blobs
	if i.Spec, err = x.server(ctx, c); err != nil {
		return "", err
	}
	a.manifest = c.manifest
	if c.os != nil { // in its slot it needs no second place
		i.Blobs = slices.DeleteFunc(slices.Clone(c.blobs), func(d ota.Digest) bool { return d == c.os.Digest })
	}
	if i.Model == "" {
		i.Model = i.Name
	}
	return fmt.Sprintf("%s %s, %d blobs, %d golden cases", i.Name, i.Version, len(c.blobs), len(a.golden.Cases)), nil
}

// staged describes a complete folder.
type staged struct {
	Files map[string]ota.Digest `json:"files"`
}

func (x *Executor) doStage(ctx context.Context, a *attempt) (string, error) {
	c, err := x.read(ctx, &a.install)
	if err != nil {
		return "", err
	}
	if err := x.stage(ctx, &a.install, c); err != nil {
		return "", err
	}
	if err := x.ensureImage(ctx, &a.install, false); err != nil {
		return "", err
	}
	var notes []string
	if d := a.install.Image(); d != "" {
		notes = append(notes, "image "+d.Short()+" is unpacked")
	}
	for _, next := range []func(context.Context, *attempt, *contents) (string, error){x.stageOS, x.stageAgent} {
		note, err := next(ctx, a, c)
		if err != nil {
			return "", err
		}
		if note != "" {
			notes = append(notes, note)
		}
	}
	return strings.Join(notes, ", "), nil
}

// stage lays the named files of a release out. The folder counts only with its
// last file, which is written when all others are durable.
func (x *Executor) stage(ctx context.Context, i *state.Install, c *contents) error {
	want, dir := c.staged(), i.Dir()
	if x.stagedWhole(ctx, dir, want) {
		return nil
	}
	x.Point("stage:before-files")
	if err := x.Files.Remove(dir); err != nil {
		return fmt.Errorf("clear %s: %w", dir, err)
	}
	for title, d := range want.Files {
		if err := x.copyBlob(ctx, d, dir+"/"+title); err != nil {
			return fmt.Errorf("stage %s: %w", title, err)
		}
	}
	// Also what others wrote into the tree since the last sync.
	if err := x.Files.Sync(); err != nil {
		return fmt.Errorf("sync staged files: %w", err)
	}
	tag, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode %s: %w", completeTag, err)
	}
	x.Point("stage:before-complete")
	if err := x.Files.WriteFile(dir+"/"+completeTag, tag); err != nil {
		return fmt.Errorf("complete %s: %w", dir, err)
	}
	return nil
}

// stagedWhole reports whether the folder holds exactly the wanted files: it
// hashes them, because a damaged disk is one of the reasons to ask.
func (x *Executor) stagedWhole(ctx context.Context, dir string, want staged) bool {
	raw, err := x.Files.ReadFile(dir + "/" + completeTag)
	if err != nil {
		return false
	}
	var have staged
	if json.Unmarshal(raw, &have) != nil || len(have.Files) != len(want.Files) {
		return false
	}
	for title, d := range want.Files {
		f, err := x.Files.Open(dir + "/" + title)
		if err != nil {
			return false
		}
		got, err := digestOf(ctx, f)
		f.Close()
		if err != nil || got != d || have.Files[title] != d {
			return false
		}
	}
	return true
}

func (x *Executor) copyBlob(ctx context.Context, d ota.Digest, name string) (err error) {
	in, _, err := x.Blobs.Open(ctx, d)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := x.Files.OpenAppend(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, ctxReader{ctx, in}); err != nil {
		return err
	}
	return out.Sync()
}

func (x *Executor) undoStage(ctx context.Context, u *state.Update) error {
	if err := x.undoAgent(ctx, u); err != nil {
		return err
	}
	if err := x.undoOS(ctx, u); err != nil {
		return err
	}
	s := x.State.Get()
	for _, keep := range []*state.Install{s.Current, s.Previous} {
		if keep.WorkloadID() == u.Install.WorkloadID() {
			return nil
		}
	}
	x.keepImages(ctx)
	return x.Files.Remove(u.Install.Dir())
}

func (x *Executor) doLoad(ctx context.Context, a *attempt) (string, error) {
	w := a.install.Workload(x.Files, a.params)
	if err := x.intact(ctx, &a.install); err != nil {
		return "", errors.Join(err, x.dropDamaged(ctx, &a.install))
	}
	if err := x.expose(&a.install); err != nil {
		return "", err
	}
	swap, note := swapOf(&a.install), ""
	cur := x.State.Get().Current
	other := cur != nil && cur.WorkloadID() != w.ID
	if swap == manifest.SwapUnloadFirst && other {
		note = "the old workload was unloaded first, as the release says: nothing answers until the switch"
		if err := x.makeRoom(ctx, a, cur, "the release says unload-first"); err != nil {
			return "", err
		}
	}
	begun := x.Now()
	err := x.load(ctx, w)
	if errors.Is(err, runtime.ErrNoCapacity) && other && note == "" {
		if swap == manifest.SwapBeside {
			return "", fmt.Errorf("load %s: %w; the release asks for both beside each other (swap in workload.json)", a.install.ModelFile, err)
		}
		note = "memory does not hold both: the old workload was unloaded first, nothing answers until the switch"
		if err := x.makeRoom(ctx, a, cur, oneLine(err)); err != nil {
			return "", err
		}
		begun = x.Now()
		err = x.load(ctx, w)
	}
	if err != nil {
		return "", fmt.Errorf("load %s: %w", a.install.ModelFile, err)
	}
	a.install.LoadTook = x.Now().Sub(begun)
	return note, x.intact(ctx, &a.install)
}

func swapOf(i *state.Install) string {
	if i.Spec == nil || i.Spec.Swap == "" {
		return manifest.SwapAuto
	}
	return i.Spec.Swap
}

// makeRoom unloads what serves, and notes when. That inference stops, why, and
// for how long it is expected to, is in the journal, and told, before it does.
func (x *Executor) makeRoom(ctx context.Context, a *attempt, cur *state.Install, why string) error {
	expect := fmt.Sprintf("for %s at most, the longest that a load may take", x.LoadTimeout)
	if cur.LoadTook > 0 {
		expect = fmt.Sprintf("for about %s, as long as the load of %s %s took", cur.LoadTook.Round(100*time.Millisecond), cur.Name, cur.Version)
	}
	if err := x.journal(a.update, ota.StepLoad, wire.StepStarted, fmt.Sprintf("swap policy %s: %s; %s %s is unloaded first and nothing answers %s", swapOf(&a.install), why, cur.Name, cur.Version, expect)); err != nil {
		return err
	}
	a.stopped = x.Now()
	if err := x.Runtime.Unload(ctx, cur.WorkloadID()); err != nil {
		return fmt.Errorf("unload the old workload to make room: %w", err)
	}
	return nil
}

func (x *Executor) load(ctx context.Context, w runtime.Workload) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.LoadTimeout, fmt.Errorf("not ready after %s", x.LoadTimeout))
	defer cancel()
	if err := x.whole(ctx, &w); err != nil {
		return err
	}
	if err := x.Runtime.Load(ctx, w); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return plain(w.Format, err)
	}
	return nil
}

// undoLoad takes the new workload away and makes sure that the old one serves:
// it was unloaded when memory did not hold both.
func (x *Executor) undoLoad(ctx context.Context, u *state.Update) error {
	if u.Install.WorkloadID() != x.State.Get().Current.WorkloadID() {
		if err := x.Runtime.Unload(ctx, u.Install.WorkloadID()); err != nil {
			return err
		}
	}
	if err := x.restore(ctx); err != nil {
		// The way back does not wait for it: Plan restores until it serves.
		x.Logger.Error("the committed workload does not come back", "error", err)
	}
	return ctx.Err()
}

func (x *Executor) doProve(ctx context.Context, a *attempt) (string, error) {
	err := x.prove(ctx, a.install.WorkloadID(), a.golden)
	x.Proven(&a.install, err == nil)
	if err != nil {
		return "", err
	}
	note := fmt.Sprintf("%d golden cases", len(a.golden.Cases))
	if x.Shadow == nil {
		return note, nil
	}
	compared, err := x.Shadow(ctx, &a.install)
	if compared != "" {
		note += "; " + compared
	}
	return note, err
}

// prove runs the golden set on a workload.
func (x *Executor) prove(ctx context.Context, id string, g *manifest.Golden) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.ProveTimeout, fmt.Errorf("golden set not answered after %s", x.ProveTimeout))
	defer cancel()
	if err := x.takes(ctx, id, g); err != nil {
		return err
	}
	outputs := make([][]float32, len(g.Cases))
	for n := range g.Cases {
		out, err := x.infer(ctx, id, g, n)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("%w (%w)", cause, err)
			}
			return fmt.Errorf("golden case %d: %w", n, err)
		}
		outputs[n] = out
	}
	return g.Judge(outputs)
}

func (x *Executor) infer(ctx context.Context, id string, g *manifest.Golden, n int) ([]float32, error) {
	resp, err := x.Runtime.Infer(ctx, id, runtime.Request{
		ID:     fmt.Sprintf("golden-%d", n),
		Inputs: []runtime.Tensor{{Name: g.Input, Shape: slices.Clone(g.Shape), Data: slices.Clone(g.Cases[n].Input)}},
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Outputs) == 0 {
		return nil, errors.New("the answer has no output")
	}
	return resp.Outputs[0].Data, nil
}

func (x *Executor) doSwitch(ctx context.Context, a *attempt) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("not switched after %s", lookTimeout))
	defer cancel()
	if err := x.Runtime.Switch(ctx, a.install.WorkloadID()); err != nil {
		return "", fmt.Errorf("switch requests: %w", err)
	}
	if !a.stopped.IsZero() {
		return fmt.Sprintf("nothing answered for %s", x.Now().Sub(a.stopped).Round(time.Millisecond)), nil
	}
	return "", nil
}

// undoSwitch sends requests back while both are loaded, so none is lost.
func (x *Executor) undoSwitch(ctx context.Context, _ *state.Update) error {
	cur := x.State.Get().Current
	if cur == nil {
		return nil
	}
	err := x.Runtime.Switch(ctx, cur.WorkloadID())
	if errors.Is(err, runtime.ErrNotLoaded) {
		return nil // the undo of load loads it when the new one made room
	}
	return err
}

// doSoak watches the new workload for the release's soak: it must stay ready
// and serving, and answer its golden cases in turn; at the end all of them.
func (x *Executor) doSoak(ctx context.Context, a *attempt) (string, error) {
	id := a.install.WorkloadID()
	end := time.NewTimer(a.install.Soak)
	defer end.Stop()
	tick := time.NewTicker(x.SoakEvery)
	defer tick.Stop()
	for looks := 0; ; looks++ {
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-end.C:
			if err := x.prove(ctx, id, a.golden); err != nil {
				x.Proven(&a.install, false)
				return "", fmt.Errorf("at the end of soak: %w", err)
			}
			return fmt.Sprintf("%s, %d looks", a.install.Soak, looks), nil
		case <-tick.C:
		}
		if err := x.look(ctx, id, a.golden, looks%len(a.golden.Cases)); err != nil {
			return "", err
		}
	}
}

// look asks once whether a soaking workload serves and answers: one that hangs
// has failed.
func (x *Executor) look(ctx context.Context, id string, g *manifest.Golden, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("no answer after %s", lookTimeout))
	defer cancel()
	if err := x.serving(ctx, id); err != nil {
		return err
	}
	if _, err := x.infer(ctx, id, g, n); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return fmt.Errorf("while soaking: %w", err)
	}
	return nil
}

func (x *Executor) serving(ctx context.Context, id string) error {
	list, err := x.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list workloads: %w", err)
	}
	for _, s := range list {
		switch {
		case s.ID != id:
		case !s.Ready:
			return fmt.Errorf("the new workload is not ready any more: %s", s.Reason)
		case !s.Serving:
			return errors.New("the new workload does not serve any more")
		default:
			return nil
		}
	}
	return errors.New("the new workload is gone")
}

// doCommit is one change of state; what follows only tidies up.
func (x *Executor) doCommit(ctx context.Context, a *attempt) (string, error) {
	old := x.State.Get().Current
	next := a.install
	next.Manifest, next.Target = a.manifest.Digest, a.manifest.Annotations[manifest.AnnTarget]
	u := x.State.Get().Update
	if err := x.commitOS(ctx, u); err != nil {
		return "", err
	}
	x.Point("commit:before-state")
	err := x.State.Change(func(s *state.State) {
		if s.Current.WorkloadID() != next.WorkloadID() {
			s.Previous = s.Current
		}
		s.Current, s.Update, s.Failure = &next, nil, nil
		s.Committed(next.TUFTarget, next.Counter)
		if u.OS != nil {
			s.OS = u.OS.Image
		}
		x.countBytes(s)
	})
	if err != nil {
		return "", err
	}
	x.keepAgent(u)
	if old != nil && old.WorkloadID() != next.WorkloadID() {
		if err := x.Runtime.Unload(ctx, old.WorkloadID()); err != nil {
			return "", fmt.Errorf("unload the old workload: %w", err)
		}
	}
	x.Point("commit:before-collect")
	if err := x.collect(ctx); err != nil {
		x.Logger.Warn("collect what the update left", "error", err)
	}
	return "", nil
}
