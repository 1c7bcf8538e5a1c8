package attack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	patience = 30 * time.Second       // of every wait
	look     = 50 * time.Millisecond  // between two looks
	quiet    = 600 * time.Millisecond // without a change: what comes later comes not
)

// scene is one attack on one device.
type scene struct {
	suite *Suite
	w     *world
	a     *Attack
	d     *device
	thief *thief
	begun time.Time
	known map[string]bool // events from before

	outside string         // a folder to which a link leads
	others  []func() error // end what else the attacker runs, the last one first
}

// newScene boots a victim and brings it to the running release.
func newScene(ctx context.Context, s *Suite, w *world, a *Attack) (sc *scene, err error) {
	var o deviceOptions
	if a.device != nil {
		a.device(&o)
	}
	sc = &scene{suite: s, w: w, a: a, known: map[string]bool{}}
	if sc.d, err = newDevice(ctx, w, o); err != nil {
		return nil, fmt.Errorf("enrol a device: %w", err)
	}
	if err := sc.prepare(ctx); err != nil {
		return nil, errors.Join(err, sc.close())
	}
	return sc, nil
}

func (s *scene) prepare(ctx context.Context) (err error) {
	if err := s.d.boot(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, n := range []int{older, running} {
		if err := s.settle(ctx, n); err != nil {
			return err
		}
	}
	if s.thief, err = newThief(s.w, s.suite.next()); err != nil {
		return fmt.Errorf("steal keys: %w", err)
	}
	s.begun = time.Now()
	return s.forget(ctx)
}

// forget makes the events that are known now those from before.
func (s *scene) forget(ctx context.Context) error {
	events, err := s.w.events(ctx, s.d.id)
	for _, e := range events {
		s.known[eventKey(e)] = true
	}
	return err
}

// leave ends something with the scene.
func (s *scene) leave(end func() error) { s.others = append(s.others, end) }

func (s *scene) close() error {
	err := errors.Join(s.d.halt(), s.d.files.Close())
	for _, end := range slices.Backward(s.others) {
		err = errors.Join(err, end())
	}
	return err
}

// settle assigns a release and waits until the device runs it, answers by it,
// and the control plane knows.
func (s *scene) settle(ctx context.Context, n int) error {
	if err := s.w.assign(ctx, s.d.id, n); err != nil {
		return fmt.Errorf("assign release %d: %w", n, err)
	}
	var last *fleetv1.Device
	err := s.until(ctx, func() (bool, error) {
		v, err := s.w.device(ctx, s.d.id)
		last = v
		return err == nil && v.GetRunningRelease() == string(s.w.releases[n].digest) && v.GetPhase() == "idle" && s.d.answers() == n, err
	})
	if err != nil {
		return fmt.Errorf("release %d is not running: %w: phase %s, %s %s, device: %s %q", n, err, last.GetPhase(), last.GetFailureClass(), last.GetFailure(),
			s.d.status().Summary, s.d.status().Reasons)
	}
	return nil
}

// answers is the number of the model that answered last.
func (d *device) answers() int {
	d.app.mu.Lock()
	defer d.app.mu.Unlock()
	return d.app.last
}

var errPatience = errors.New("not in time")

// until looks until cond holds.
func (s *scene) until(ctx context.Context, cond func() (bool, error)) error {
	return wait(ctx, patience, cond)
}

func wait(ctx context.Context, limit time.Duration, cond func() (bool, error)) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return fmt.Errorf("%w: waited %s", errPatience, limit)
		case <-tick.C:
		}
	}
}

// pause lets time pass.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func eventKey(e *fleetv1.DeviceEvent) string {
	return fmt.Sprint(e.GetKind(), e.GetAttack(), e.GetStep(), e.GetMessage(), e.GetTime().AsTime().UnixMilli())
}

// fresh are the events of which the control plane learned since the attack began.
func (s *scene) fresh(ctx context.Context) (out []*fleetv1.DeviceEvent, err error) {
	events, err := s.w.events(ctx, s.d.id)
	for _, e := range events {
		if !s.known[eventKey(e)] {
			out = append(out, e)
		}
	}
	return out, err
}

// classes are the classes of attack that the control plane was told of, each
// with its first message.
func (s *scene) classes(ctx context.Context) (classes, messages []string, err error) {
	events, err := s.fresh(ctx)
	for _, e := range events {
		if e.GetKind() == "refused" && !slices.Contains(classes, e.GetAttack()) {
			classes, messages = append(classes, e.GetAttack()), append(messages, e.GetMessage())
		}
	}
	return classes, messages, err
}

// bait lets the operator assign an honest release while the attacker is there.
func (s *scene) bait(ctx context.Context) error { return s.w.assign(ctx, s.d.id, bait) }

// desired is a desired state as the director would make it for the victim next,
// changed.
func (s *scene) desired(n int, change func(*wire.Desired)) wire.Desired {
	held, r, now := s.d.status().Held, s.w.releases[n], s.w.now()
	d := wire.Desired{
		Device: s.d.id, Tenant: s.d.identity.Tenant, Generation: wire.Generation{Epoch: held.Epoch, Counter: held.Counter + 1},
		IssuedAt: now.Unix(), ExpiresAt: now.Add(time.Hour).Unix(),
		Release: &wire.ReleaseRef{Target: r.path(), Digest: r.digest.Sum(), Length: r.length, Counter: r.counter},
	}
	if change != nil {
		change(&d)
	}
	return d
}

// order signs a desired state and says it to the device.
func (s *scene) order(by *trust.Signer, d wire.Desired) error {
	raw, err := sealed(by, wire.AADDesired, d)
	if err != nil {
		return err
	}
	s.d.man.say(wire.DownDesired, raw)
	return nil
}

func sealed(by *trust.Signer, aad string, v any) ([]byte, error) {
	payload, err := wire.Marshal(v)
	if err != nil {
		return nil, err
	}
	return trust.Sign(by, aad, payload)
}

// recover is what operator and device do when the attacker is gone: the next
// honest release is assigned.
func (s *scene) recover(ctx context.Context) error {
	s.d.man.gone()
	if s.a.lift != nil {
		if err := s.a.lift(ctx, s); err != nil {
			return err
		}
	}
	var v *fleetv1.Device
	err := s.until(ctx, func() (ok bool, err error) { // what the device holds must be known
		v, err = s.w.device(ctx, s.d.id)
		g, held := v.GetHeldGeneration(), s.d.status().Held
		return err == nil && g.GetEpoch() == held.Epoch && g.GetCounter() == held.Counter, err
	})
	if err != nil {
		return fmt.Errorf("learn what the device holds: %w", err)
	}
	if v.GetGenerationFromFuture() { // a thief of the director's key gave it: a person looks and confirms
		if _, err := s.w.op().Fleet.ConfirmGeneration(ctx, &fleetv1.ConfirmGenerationRequest{Device: s.d.id}); err != nil {
			return fmt.Errorf("confirm the generation: %w", err)
		}
	}
	if err := s.settle(ctx, next); err != nil {
		return err
	}
	return s.until(ctx, func() (bool, error) {
		v, err := s.w.device(ctx, s.d.id)
		if err != nil {
			return false, err
		}
		for _, c := range v.GetConditions() {
			if strings.HasPrefix(c.GetName(), "trust-") || strings.HasPrefix(c.GetName(), "update-") {
				return false, nil
			}
		}
		return v.GetFailureClass() == "", nil
	})
}

// dial opens a connection over the device's line and keeps when.
func (d *device) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.dials = append(d.dials, time.Now())
	d.mu.Unlock()
	var base net.Dialer
	return d.line.Dial(base.DialContext)(ctx, network, address)
}

// dialled are the tries to connect since a time.
func (d *device) dialled(since time.Time) (out []time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.dials {
		if !t.Before(since) {
			out = append(out, t)
		}
	}
	return out
}
