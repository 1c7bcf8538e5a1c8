package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/budget"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/link"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// inbox takes messages from the link without ever blocking it: of desired
// states the newest counts, of commands a few may wait.
type inbox struct {
	wake signal

	mu       sync.Mutex // guards what follows
	desired  []byte
	commands [][]byte
	leases   [][]byte // of builds
}

const maxCommands = 16

func (i *inbox) put(kind wire.Kind, payload []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch kind {
	case wire.DownDesired:
		i.desired = bytes.Clone(payload)
	case wire.DownCmd:
		if len(i.commands) < maxCommands {
			i.commands = append(i.commands, bytes.Clone(payload))
		}
	case wire.DownBuild:
		if len(i.leases) < maxCommands {
			i.leases = append(i.leases, bytes.Clone(payload))
		}
	default:
		return
	}
	i.wake.set()
}

// takeLeases returns what came on down/build.
func (i *inbox) takeLeases() [][]byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.leases
	i.leases = nil
	return out
}

func (i *inbox) take() (desired []byte, commands [][]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	desired, commands = i.desired, i.commands
	i.desired, i.commands = nil, nil
	return desired, commands
}

// errLater marks what may work a little later: the network is needed.
var errLater = errors.New("later")

const (
	laterMin = 2 * time.Second
	laterMax = 2 * time.Minute
)

// acceptLoop verifies what comes down. What needs the network and cannot have
// it is tried again with jitter, until something newer comes.
func (a *Agent) acceptLoop(ctx context.Context) error {
	var pending []byte
	var refused string // digest and class of the last refusal, told once
	tries := 0
	for {
		var again <-chan time.Time
		if pending != nil {
			timer := time.NewTimer(rand.N(min(laterMax, laterMin<<min(tries, 6))) + time.Millisecond)
			again = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.inbox.wake:
		case job := <-a.stick.jobs:
			job(ctx)
		case <-again:
		}
		fresh, commands := a.inbox.take()
		for _, raw := range a.inbox.takeLeases() {
			a.lease(ctx, raw)
		}
		for _, raw := range commands {
			a.command(ctx, raw)
		}
		if fresh != nil {
			pending, tries = fresh, 0
		}
		if pending == nil {
			continue
		}
		err := a.accept(ctx, pending)
		switch {
		case errors.Is(err, errLater):
			tries++
			a.noteDisk(err)
			a.held.set("trust", "a desired state waits, because it cannot be verified yet: "+err.Error())
			a.board.Set(health.TrustStale, health.Info, err.Error())
			continue
		case err != nil:
			key := fmt.Sprintf("%x %s", sha256.Sum256(pending), attackClass(err))
			if key != refused {
				refused = key
				a.refuse(err)
			}
		default:
			refused = ""
			a.board.Clear(health.TrustRefused)
		}
		a.held.set("trust", "")
		a.board.Clear(health.TrustStale)
		pending, tries = nil, 0
	}
}

func attackClass(err error) string {
	switch {
	case trust.AttackClass(err) != "":
		return trust.AttackClass(err)
	case errors.Is(err, trust.ErrUnsigned):
		return "unsigned"
	case errors.Is(err, trust.ErrSignature):
		return trust.ClassArbitrary
	}
	return trust.ClassMalformed
}

// refuse tells what was refused and why. Nothing else has changed.
func (a *Agent) refuse(err error) {
	class := attackClass(err)
	a.log.Warn("desired state refused", "attack", class, "error", err)
	a.tellRefusal(class, err.Error())
	a.board.Set(health.TrustRefused, health.Critical, class+": "+err.Error())
}

const (
	refusalsPer  = time.Minute
	maxRefusals  = 20 // told in that time
	refusalsOver = "; more of them are not told for a minute"
)

// strangers bounds what the accept loop does for messages that it refuses:
// whoever can send them must not fill the queue of events, in which older ones
// give way, nor make traffic.
type strangers struct {
	asked time.Time // when unknown keys last made the metadata be refreshed
	since time.Time // when told began to count
	told  int
}

// tellRefusal queues the event of a refusal, unless there were many.
func (a *Agent) tellRefusal(class, message string) {
	s, now := &a.strangers, a.opts.Now()
	if since := now.Sub(s.since); since < 0 || since >= refusalsPer {
		s.since, s.told = now, 0
	}
	if s.told++; s.told > maxRefusals {
		return
	}
	if s.told == maxRefusals {
		message += refusalsOver
	}
	a.board.Event(wire.Event{ID: a.ids.next(), Kind: "refused", Message: message, Attack: class})
}

// refusedRelease is refused for a reason that does not put the director's
// signature in doubt: the device can say which release it refuses.
type refusedRelease struct {
	d   wire.Desired
	err error
}

func (r *refusedRelease) Error() string { return r.err.Error() }
func (r *refusedRelease) Unwrap() error { return r.err }

// accept verifies one desired state and makes it durable.
func (a *Agent) accept(ctx context.Context, raw []byte) error {
	payload, err := a.verify(ctx, wire.AADDesired, raw)
	if err != nil {
		return err
	}
	var d wire.Desired
	if err := wire.UnmarshalCanonical(payload, &d); err != nil {
		return &trust.Attack{Class: trust.ClassMalformed, Err: err}
	}
	s := a.state.Get()
	digest := sha256.Sum256(payload)
	if d.Generation == s.Held && bytes.Equal(digest[:], s.HeldDigest) {
		a.wakeReconcile.set()
		return nil
	}
	if d.Generation == s.Held {
		return &trust.Attack{Class: trust.ClassReplay, Err: fmt.Errorf("a second desired state under generation %s", d.Generation)}
	}
	if err := a.checkDesired(ctx, d, s); err != nil {
		if r, ok := errors.AsType[*refusedRelease](err); ok {
			a.noteRejected(r)
		}
		return err
	}
	err = a.state.Change(func(s *state.State) {
		s.Held, s.HeldDigest, s.Desired = d.Generation, digest[:], payload
		if s.Failure != nil && s.Failure.Generation == d.Generation {
			s.Failure = nil // it was refused before and is taken now
		}
	})
	if err != nil {
		a.noteDisk(err)
		return fmt.Errorf("%w: %w", errLater, err)
	}
	a.noteDisk(nil)
	if err := a.trust.Observe(time.Unix(d.IssuedAt, 0)); err != nil {
		a.log.Warn("store trusted time", "error", err)
	}
	a.log.Info("desired state accepted", "generation", d.Generation.String())
	a.usePolicy(&d)
	a.siblings.wake.set()
	wanted := ""
	if i, err := a.install(&d); err == nil {
		wanted = i.WorkloadID()
	}
	a.exec.Supersede(wanted, d.Generation)
	a.wakeReconcile.set()
	a.wakeReport.set()
	return nil
}

// checkDesired asks the cheap questions first, then refreshes the image
// repository's metadata and asks whether it agrees.
func (a *Agent) checkDesired(ctx context.Context, d wire.Desired, s state.State) error {
	id := a.identity.Load()
	bare := d
	bare.Release = nil
	if err := trust.CheckDesired(bare, id.DeviceID, id.Tenant, s.Held, 0, trust.TargetInfo{}, a.now()); err != nil {
		return err
	}
	if _, err := a.install(&d); err != nil {
		return &refusedRelease{d, &trust.Attack{Class: trust.ClassMalformed, Err: err}}
	}
	if err := budget.Check(d.Policy); err != nil {
		return &refusedRelease{d, &trust.Attack{Class: trust.ClassMalformed, Err: err}}
	}
	if d.Release == nil {
		return nil
	}
	if err := a.refreshTrust(ctx, d.Release.Target); err != nil {
		if errors.Is(err, errLater) {
			return err
		}
		return &refusedRelease{d, err}
	}
	info, err := a.trust.Target(d.Release.Target)
	if trust.AttackClass(err) != "" {
		return &refusedRelease{d, err}
	}
	if err != nil && !errors.Is(err, trust.ErrUnknownTarget) {
		return fmt.Errorf("look up %s: %w", d.Release.Target, err)
	}
	if err := trust.CheckDesired(d, id.DeviceID, id.Tenant, s.Held, s.HighestOf(d.Release.Target), info, a.now()); err != nil {
		return &refusedRelease{d, err}
	}
	return nil
}

// noteRejected records that this device will not run a release, so that the
// control plane counts it as rejected. What runs is left alone.
func (a *Agent) noteRejected(r *refusedRelease) {
	f := &state.Failure{Generation: r.d.Generation, Class: ota.Rejected, Step: ota.StepVerify, Cause: r.err.Error(), Time: a.opts.Now()}
	if r.d.Release != nil {
		if rel, err := releaseDigest(r.d.Release); err == nil {
			f.Release = rel
		}
	}
	old := a.state.Get().Failure
	if old != nil && old.Generation == f.Generation && old.Cause == f.Cause {
		return
	}
	if err := a.state.Change(func(s *state.State) { s.Failure = f }); err != nil {
		a.noteDisk(err)
	}
	a.wakeReport.set()
}

// refreshTrust brings the metadata up to date, and what is delegated on the way
// to paths. Anything but an attack is errLater.
func (a *Agent) refreshTrust(ctx context.Context, paths ...string) error {
	src := a.opts.Metadata
	if a.carrying != nil {
		src = a.carrying
	}
	err := a.trust.Refresh(ctx, src, a.now(), paths...)
	if err != nil && trust.AttackClass(err) == "" {
		return fmt.Errorf("%w: %w", errLater, err)
	}
	return err
}

// askKeysEvery is the least time between two refreshes for the sake of a
// message that no known key has signed: anybody at the broker can send those.
const askKeysEvery = time.Minute

// verify returns the payload of a message of the director. When no known key
// fits, the keys are refreshed, but not for each message.
func (a *Agent) verify(ctx context.Context, aad string, raw []byte) ([]byte, error) {
	keys, err := a.trust.DirectorKeys()
	if err == nil {
		payload, err := trust.Verify(keys, aad, raw)
		if !errors.Is(err, trust.ErrSignature) {
			return payload, err
		}
		now := a.opts.Now()
		if since := now.Sub(a.strangers.asked); since >= 0 && since < askKeysEvery {
			return nil, err // an honest one under keys that are newer still is sent again
		}
		a.strangers.asked = now
	}
	if err := a.refreshTrust(ctx); err != nil {
		return nil, err
	}
	if keys, err = a.trust.DirectorKeys(); err != nil {
		return nil, fmt.Errorf("learn the director's keys: %w", err)
	}
	return trust.Verify(keys, aad, raw)
}

func releaseDigest(r *wire.ReleaseRef) (ota.Digest, error) {
	if len(r.Digest) != sha256.Size {
		return "", fmt.Errorf("release digest of %d bytes", len(r.Digest))
	}
	return ota.DigestFromSum([sha256.Size]byte(r.Digest)), nil
}

// install returns what d asks to be installed, nil for nothing.
func (a *Agent) install(d *wire.Desired) (*state.Install, error) {
	if d.Release == nil {
		return nil, nil
	}
	digest, err := releaseDigest(d.Release)
	if err != nil {
		return nil, err
	}
	open, err := a.openSealed(d.Params)
	if err != nil {
		return nil, err
	}
	return &state.Install{
		Generation: d.Generation, Release: digest, Length: d.Release.Length, TUFTarget: d.Release.Target, Counter: d.Release.Counter,
		Params: slices.Clone(d.Params), ParamsDigest: manifest.ParamsDigest(open), Rollout: d.Rollout,
	}, nil
}

// openSealed returns the parameters in clear.
func (a *Agent) openSealed(params []wire.Param) ([]wire.Param, error) {
	id := a.identity.Load()
	out := slices.Clone(params)
	for i, p := range out {
		if !p.Secret {
			continue
		}
		value, err := trust.Open(id.SealKey, trust.SealAAD(id.DeviceID, p.Key), p.Value)
		if err != nil {
			return nil, fmt.Errorf("open secret parameter %s: %w", p.Key, err)
		}
		out[i].Value = value
	}
	return out, nil
}

// openParams returns the parameters as the runtime gets them.
func (a *Agent) openParams(params []wire.Param) (map[string]string, error) {
	open, err := a.openSealed(params)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(open))
	for _, p := range open {
		out[p.Key] = string(p.Value)
	}
	return out, nil
}

// agrees asks the metadata on the device whether it lists the release as the
// director named it. What an auto role lists must be within its policy too.
func (a *Agent) agrees(i *state.Install, ix *manifest.Index, ms []*manifest.Manifest) error {
	info, err := a.trust.Target(i.TUFTarget)
	if err != nil {
		return fmt.Errorf("look up %s: %w", i.TUFTarget, err)
	}
	if info.Digest != i.Release || info.Length != i.Length || info.Custom.Counter != i.Counter {
		return &trust.Attack{Class: trust.ClassDisagreement, Err: fmt.Errorf("%s: the image repository lists %s of %d bytes, counter %d, the desired state says %s of %d bytes, counter %d",
			i.TUFTarget, info.Digest.Short(), info.Length, info.Custom.Counter, i.Release.Short(), i.Length, i.Counter)}
	}
	if info.Policy == nil {
		return nil
	}
	for _, m := range ms {
		if err := info.Policy.Check(i.TUFTarget, ix, m); err != nil {
			return err
		}
	}
	return nil
}

// desired returns the accepted desired state, nil when there is none.
func (a *Agent) desired() (*reconcile.Desired, error) {
	s := a.state.Get()
	if len(s.Desired) == 0 {
		return nil, nil
	}
	var d wire.Desired
	if err := wire.Unmarshal(s.Desired, &d); err != nil {
		return nil, fmt.Errorf("read accepted desired state: %w", err)
	}
	i, err := a.install(&d)
	if err != nil {
		return nil, fmt.Errorf("read accepted desired state: %w", err)
	}
	return &reconcile.Desired{Generation: d.Generation, Install: i, ExpiresAt: time.Unix(d.ExpiresAt, 0)}, nil
}

// command verifies and carries out one command of the closed list.
func (a *Agent) command(ctx context.Context, raw []byte) {
	cmd, err := a.verifyCommand(ctx, raw)
	if err != nil {
		a.log.Warn("command refused", "error", err)
		if !errors.Is(err, errLater) {
			a.tellRefusal(attackClass(err), "command: "+err.Error())
		}
		return
	}
	span := time.Duration(min(max(cmd.Seconds, 0), 3600)) * time.Second
	switch cmd.Kind {
	case wire.CmdReport:
		a.wakeReport.set()
	case wire.CmdSlowDown:
		a.held.slow(span, a.opts.Now().Add(slowFor))
		if s, ok := a.link.(link.Slower); ok {
			s.SlowDown(span)
		}
	case wire.CmdWatch:
		a.watching.extend(a.opts.Now().Add(min(span, maxWatch)))
	case wire.CmdRenew:
		a.wakeRenew.set()
	default:
		a.log.Warn("unknown command", "kind", int(cmd.Kind))
	}
}

func (a *Agent) verifyCommand(ctx context.Context, raw []byte) (*wire.Cmd, error) {
	payload, err := a.verify(ctx, wire.AADCmd, raw)
	if err != nil {
		return nil, err
	}
	var cmd wire.Cmd
	if err := wire.UnmarshalCanonical(payload, &cmd); err != nil {
		return nil, &trust.Attack{Class: trust.ClassMalformed, Err: err}
	}
	switch held := a.state.Get().CmdCounter; {
	case cmd.Device != a.identity.Load().DeviceID:
		return nil, &trust.Attack{Class: trust.ClassWrongDevice, Err: fmt.Errorf("it is for device %s", cmd.Device)}
	case cmd.Counter <= held:
		return nil, &trust.Attack{Class: trust.ClassReplay, Err: fmt.Errorf("counter %d, %d was seen already", cmd.Counter, held)}
	case a.now().Unix() >= cmd.ExpiresAt:
		return nil, &trust.Attack{Class: trust.ClassExpired, Err: fmt.Errorf("it expired at %s", time.Unix(cmd.ExpiresAt, 0).UTC().Format(time.RFC3339))}
	}
	if err := a.state.Change(func(s *state.State) { s.CmdCounter = cmd.Counter }); err != nil {
		a.noteDisk(err)
		return nil, fmt.Errorf("%w: %w", errLater, err)
	}
	return &cmd, nil
}

// slowFor is how long the control plane is spared after it asked for it.
const slowFor = time.Hour

// holdReason keeps what holds something up, for explain, and how long the
// control plane asked to be slow.
type holdReason struct {
	mu      sync.Mutex // guards what follows
	reasons map[string]string
	stretch time.Duration
	until   time.Time // when stretch ends
}

func (h *holdReason) set(key, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reasons == nil {
		h.reasons = map[string]string{}
	}
	if reason == "" {
		delete(h.reasons, key)
		return
	}
	h.reasons[key] = reason
}

func (h *holdReason) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, r := range h.reasons {
		out = append(out, r)
	}
	slices.SortFunc(out, strings.Compare)
	return out
}

func (h *holdReason) slow(d time.Duration, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stretch, h.until = d, until
}

func (h *holdReason) slowness(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !now.Before(h.until) {
		return 0
	}
	return h.stretch
}
