package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

const (
	// leastReserve stays free at least, for state, journal and spool.
	leastReserve = 32 << 20
	completeTag  = "complete.json"
	// lookTimeout bounds one question to the runtime.
	lookTimeout = time.Minute
)

// contents is what the index and the manifest say for this device.
type contents struct {
	release manifest.Release
	weights manifest.Descriptor
	format  string
	golden  manifest.Descriptor
	layers  []manifest.Descriptor // of the model server, and what goes with it
	blobs   []ota.Digest          // all that is fetched

	index     *manifest.Index
	manifests []*manifest.Manifest // of this device, now and under the release's operating system
	manifest  manifest.Descriptor
	agent     *manifest.Descriptor // binary of the agent, if the release brings one
	os        *manifest.Descriptor // OS image, if it brings one that does not run yet
	after     ota.Target           // of the device, once it does
}

// bring lists what is fetched beyond index and manifest.
func (c *contents) bring() []manifest.Descriptor {
	out := slices.Clone(c.layers)
	for _, l := range []*manifest.Descriptor{c.agent, c.os} {
		if l != nil {
			out = append(out, *l)
		}
	}
	return out
}

// read parses index and manifest from the local store.
func (x *Executor) read(ctx context.Context, i *state.Install) (*contents, error) {
	ix, desc, err := x.selectManifest(ctx, i)
	if err != nil {
		return nil, err
	}
	c := &contents{index: ix, blobs: []ota.Digest{i.Release, desc.Digest}}
	if c.release, err = ix.Release(); err != nil {
		return nil, err
	}
	m, err := x.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	c.manifests = append(c.manifests, m)
	osImage, after, brings, err := m.OSImage()
	if err != nil {
		return nil, err
	}
	if brings && i.Manifest == "" && x.osWanted(osImage, after) {
		// What serves under the new system is made for the new system.
		c.os, c.after = &osImage, after
		if desc, err = ix.Select(after); err != nil {
			return nil, fmt.Errorf("after the new operating system: %w", err)
		}
		if m, err = x.manifest(ctx, desc); err != nil {
			return nil, err
		}
		c.manifests = append(c.manifests, m)
		c.blobs = append(c.blobs, desc.Digest)
	}
	c.manifest = desc
	if of, is := m.Annotations[manifest.AnnTarget], desc.Annotations[manifest.AnnTarget]; of != is {
		return nil, fmt.Errorf("%w: the index lists for %q a manifest that is made for %q", manifest.ErrNoTarget, is, of)
	}
	if c.weights, c.format, err = m.Weights(); err != nil {
		return nil, err
	}
	g, ok := m.Golden()
	if !ok {
		return nil, fmt.Errorf("%w: it has no golden set, so it cannot be proven on a device", ErrRejected)
	}
	c.golden = g
	agent, brings, err := m.Agent()
	if err != nil {
		return nil, err
	}
	if brings {
		c.agent = &agent
	}
	for _, l := range m.Layers {
		if !l.Machine() {
			c.layers = append(c.layers, l)
		}
	}
	for _, l := range c.bring() {
		c.blobs = append(c.blobs, l.Digest)
		// Its chunk index is kept, when it is here, for the next update.
		if s, err := l.Savings(); err == nil && s.Chunks != nil && x.Blobs.Has(s.Chunks.Digest) {
			c.blobs = append(c.blobs, s.Chunks.Digest)
		}
	}
	return c, nil
}

func (x *Executor) manifest(ctx context.Context, d manifest.Descriptor) (*manifest.Manifest, error) {
	raw, err := x.Blobs.ReadAll(ctx, d.Digest, manifest.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return manifest.ParseManifest(raw)
}

// selectManifest finds the manifest of this device in an index: for what is
// installed the one that it was installed from, whatever the device is now.
func (x *Executor) selectManifest(ctx context.Context, i *state.Install) (*manifest.Index, manifest.Descriptor, error) {
	raw, err := x.Blobs.ReadAll(ctx, i.Release, manifest.MaxIndex)
	if err != nil {
		return nil, manifest.Descriptor{}, fmt.Errorf("read index: %w", err)
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, manifest.Descriptor{}, err
	}
	for _, d := range ix.Manifests {
		if i.Manifest != "" && d.Digest == i.Manifest {
			return ix, d, nil
		}
	}
	desc, err := ix.Select(x.Target())
	return ix, desc, err
}

func (x *Executor) doFetch(ctx context.Context, a *attempt) (string, error) {
	before := x.Fetch.BytesFetched()
	index := manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: a.install.Release, Size: a.install.Length}
	if err := x.fetch(ctx, index); err != nil {
		return "", err
	}
	_, desc, err := x.selectManifest(ctx, &a.install)
	if err != nil {
		return "", err
	}
	if err := x.fetch(ctx, desc); err != nil {
		return "", err
	}
	if err := x.fetchNext(ctx, &a.install, desc); err != nil {
		return "", err
	}
	c, err := x.read(ctx, &a.install)
	if err != nil {
		return "", err
	}
	// Before the first byte of what may not be here.
	if err := x.Agrees(&a.install, c.index, c.manifests); err != nil {
		return "", err
	}
	if err := x.checkBoot(ctx, c); err != nil {
		return "", err
	}
	memory, err := x.memory(c)
	if err != nil {
		return "", err
	}
	err = x.room(c)
	if errors.Is(err, slot.ErrDiskFull) { // what failed updates left may be in the way
		if err := x.collect(c.blobs...); err != nil {
			return "", err
		}
		err = x.room(c)
	}
	if err != nil {
		return "", err
	}
	x.Offer(c.bring())
	b := x.newBringer(ctx, a.install.Release)
	b.predicted = x.Fetch.BytesFetched() - before // index and manifest
	for _, l := range c.bring() {
		x.Point("fetch:before-blob")
		if err := b.layer(ctx, l); err != nil {
			return "", err
		}
	}
	return b.account(x.Fetch.BytesFetched()-before) + memory, nil
}

// room refuses before the first byte what would not fit: the missing blobs,
// the staged copy, and the reserve.
func (x *Executor) room(c *contents) error {
	free, err := x.Free()
	if err != nil || free < 0 {
		return nil // unknown: the writes will tell
	}
	var need int64
	for _, l := range c.bring() {
		if l.MediaType != manifest.MediaOSImage { // which goes to a partition of its own
			need += l.Size
		}
		if !x.Blobs.Has(l.Digest) {
			have, err := x.Blobs.Partial(l.Digest)
			if err != nil {
				return err
			}
			need += l.Size - min(have, l.Size)
		}
	}
	reserve := x.reserve()
	if need+reserve > free && x.Yield(need+reserve-free) {
		if free, err = x.Free(); err != nil {
			return nil
		}
	}
	if need+reserve > free {
		return fmt.Errorf("%w: the release needs %d bytes and %d stay in reserve, %d are free", slot.ErrDiskFull, need, reserve, free)
	}
	return nil
}

// fetchNext brings the manifest that counts once the release's operating system
// runs.
func (x *Executor) fetchNext(ctx context.Context, i *state.Install, here manifest.Descriptor) error {
	m, err := x.manifest(ctx, here)
	if err != nil {
		return err
	}
	osImage, after, brings, err := m.OSImage()
	if err != nil || !brings || i.Manifest != "" || !x.osWanted(osImage, after) {
		return err
	}
	raw, err := x.Blobs.ReadAll(ctx, i.Release, manifest.MaxIndex)
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return err
	}
	next, err := ix.Select(after)
	if err != nil {
		return fmt.Errorf("after the new operating system: %w", err)
	}
	return x.fetch(ctx, next)
}

// fetch brings one blob and goes on trying while the network is what fails.
func (x *Executor) fetch(ctx context.Context, d manifest.Descriptor) error {
	return x.fetchFrom(ctx, d, x.Fetch.Remote())
}

// Its bytes come while the gate is open.
func (x *Executor) fetchFrom(ctx context.Context, d manifest.Descriptor, from fetch.Source) error {
	if size, err := x.Blobs.Size(d.Digest); err == nil && size == d.Size {
		return nil
	}
	return x.bring(ctx, d, from, x.fetchGated)
}

type fetchFunc func(context.Context, manifest.Descriptor, fetch.Source) error

func (x *Executor) bring(ctx context.Context, d manifest.Descriptor, from fetch.Source, fetchIt fetchFunc) error {
	defer x.Waiting(nil)
	if d.Size > roomEvery { // what is small comes before leftovers are collected
		from = roomy{from, x}
	}
	for try := 0; ; try++ {
		err := fetchIt(ctx, d, from)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, final := range []error{fetch.ErrNotFound, fetch.ErrForbidden, fetch.ErrUnusable, blob.ErrDigestMismatch, blob.ErrTooLong, blob.ErrTruncated, slot.ErrDiskFull, slot.ErrBadName, manifest.ErrMalformed} {
			if errors.Is(err, final) {
				return err
			}
		}
		x.Waiting(err)
		x.Logger.Info("download waits for the network", "blob", d.Digest.Short(), "error", err)
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(min(time.Minute, time.Second<<min(try, 8)))) + 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
}

// undoFetch keeps what arrived whole, for the next try, until the next commit
// collects it; a full disk gets it back at once.
func (x *Executor) undoFetch(_ context.Context, u *state.Update) error {
	if strings.Contains(u.Cause, slot.ErrDiskFull.Error()) || !u.Undoing {
		return x.collect()
	}
	return nil
}

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
	first, err := x.stageOS(ctx, a, c)
	if err != nil {
		return "", err
	}
	second, err := x.stageAgent(ctx, a, c)
	return strings.Trim(first+", "+second, ", "), err
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
	return x.Files.Remove(u.Install.Dir())
}

func (x *Executor) doBuild(_ context.Context, a *attempt) (string, error) {
	if a.install.Format == "onnx" {
		return "nothing to build: the runtime loads ONNX", nil
	}
	return "nothing to build: the engine is in the release", nil
}

func (x *Executor) doLoad(ctx context.Context, a *attempt) (string, error) {
	w := a.install.Workload(x.Files, a.params)
	if err := x.intact(ctx, &a.install); err != nil {
		return "", errors.Join(err, x.dropDamaged(ctx, &a.install))
	}
	err := x.load(ctx, w)
	note := ""
	if errors.Is(err, runtime.ErrNoCapacity) {
		cur := x.State.Get().Current
		if cur == nil || cur.WorkloadID() == w.ID {
			return "", err
		}
		note = "memory does not hold both: the old workload was unloaded first"
		if err := x.Runtime.Unload(ctx, cur.WorkloadID()); err != nil {
			return "", fmt.Errorf("unload the old workload to make room: %w", err)
		}
		err = x.load(ctx, w)
	}
	if err != nil {
		return "", fmt.Errorf("load %s: %w", a.install.ModelFile, err)
	}
	return note, x.intact(ctx, &a.install)
}

func (x *Executor) load(ctx context.Context, w runtime.Workload) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.LoadTimeout, fmt.Errorf("not ready after %s", x.LoadTimeout))
	defer cancel()
	if err := x.Runtime.Load(ctx, w); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return err
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
	return fmt.Sprintf("%d golden cases", len(a.golden.Cases)), nil
}

// prove runs the golden set on a workload.
func (x *Executor) prove(ctx context.Context, id string, g *manifest.Golden) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.ProveTimeout, fmt.Errorf("golden set not answered after %s", x.ProveTimeout))
	defer cancel()
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
	if err := x.collect(); err != nil {
		x.Logger.Warn("collect what the update left", "error", err)
	}
	return "", nil
}
