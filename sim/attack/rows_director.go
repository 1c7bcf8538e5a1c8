package attack

import (
	"bytes"
	"context"
	"errors"

	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// orders lets a thief of the director's key sign a changed desired state of the
// release n.
func orders(n int, change func(*scene, *wire.Desired)) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		by, err := s.thief.director()
		if err != nil {
			return err
		}
		return s.order(by, s.desired(n, func(d *wire.Desired) { change(s, d) }))
	}
}

// says lets the attacker say bytes as a desired state.
func says(make func(s *scene) ([]byte, error)) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		raw, err := make(s)
		if err != nil {
			return err
		}
		s.d.man.say(wire.DownDesired, raw)
		return nil
	}
}

// directorAttacks are those on what the director says: with its key, or
// without.
func directorAttacks() []Attack {
	const agree = "director and image repository must agree on path, length, digest and counter"
	none := func(*scene, *wire.Desired) {}
	return []Attack{
		{Name: "director-unknown-image", Row: "director compromise", Class: trust.ClassDisagreement, Refuser: agree,
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Release.Target += "-evil" })},
		{Name: "director-other-content", Row: "director compromise", Class: trust.ClassDisagreement, Refuser: agree,
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Release.Digest = make([]byte, 32) })},
		{Name: "director-other-length", Row: "director compromise", Class: trust.ClassDisagreement, Refuser: agree,
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Release.Length++ })},
		{Name: "director-other-counter", Row: "director compromise", Class: trust.ClassDisagreement, Refuser: agree,
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Release.Counter += 100 })},
		{Name: "director-older-release", Row: "rollback (image)", Class: trust.ClassRollback, Refuser: "release counters of a name grow, unless a rollback is signed for",
			strike: orders(older, none)},
		{Name: "foreign-director-key", Row: "director compromise", Class: trust.ClassArbitrary, Refuser: "the targets list the director's keys",
			strike: func(_ context.Context, s *scene) error {
				by, err := stranger()
				if err != nil {
					return err
				}
				return s.order(by, s.desired(bait, nil))
			}},
		{Name: "changed-desired", Row: "director compromise", Class: trust.ClassArbitrary, Refuser: "the signature covers every byte", strike: changedDesired},
		{Name: "command-as-desired", Row: "director compromise", Class: trust.ClassArbitrary, Refuser: "a signature is bound to its use",
			strike: says(func(s *scene) ([]byte, error) {
				by, err := s.thief.director()
				if err != nil {
					return nil, err
				}
				return sealed(by, wire.AADCmd, s.desired(bait, nil))
			})},
		{Name: "unsigned-desired", Row: "arbitrary software", Class: "unsigned", Refuser: "a desired state without a signature is none",
			strike: says(func(s *scene) ([]byte, error) { return wire.Marshal(s.desired(bait, nil)) })},
		{Name: "junk-desired", Row: "bad input", Class: "unsigned", Refuser: "strict parsers",
			strike: says(func(*scene) ([]byte, error) { return bytes.Repeat([]byte{0x9f}, 4096), nil })},
		{Name: "replayed-desired", Row: "replay", Class: trust.ClassReplay, Refuser: "generations grow",
			strike: orders(older, func(_ *scene, d *wire.Desired) {
				d.Generation, d.RollbackAllowed = wire.Generation{Epoch: 1, Counter: 1}, true
			})},
		{Name: "second-desired", Row: "replay", Class: trust.ClassReplay, Refuser: "one generation has one content",
			strike: orders(bait, func(s *scene, d *wire.Desired) { d.Generation = s.d.status().Held })},
		{Name: "desired-of-another-device", Row: "wrong hardware", Class: trust.ClassWrongDevice, Refuser: "a desired state names its device",
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Device = wire.FormatDeviceID([16]byte{1}) })},
		{Name: "desired-of-another-tenant", Row: "wrong hardware", Class: trust.ClassWrongDevice, Refuser: "a desired state names its tenant",
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Tenant = "other" })},
		{Name: "expired-desired", Row: "freeze", Class: trust.ClassExpired, Refuser: "a desired state has an end, after which no install starts",
			strike: orders(bait, func(s *scene, d *wire.Desired) { d.ExpiresAt = s.w.now().Unix() })},
		{Name: "replayed-command", Row: "replay", Class: trust.ClassReplay, Refuser: "commands are counted", strike: replayedCommand},
	}
}

// changedDesired flips a bit of what the control plane says.
func changedDesired(ctx context.Context, s *scene) error {
	s.d.man.setDown(func(kind wire.Kind, payload []byte) ([]byte, bool) {
		if kind != wire.DownDesired {
			return payload, true
		}
		changed := bytes.Clone(payload)
		changed[len(changed)/2] ^= 1
		return changed, true
	})
	return s.bait(ctx)
}

// replayedCommand says a rightful command twice.
func replayedCommand(_ context.Context, s *scene) error {
	by, err := s.thief.director()
	if err != nil {
		return err
	}
	now := s.w.now()
	raw, err := sealed(by, wire.AADCmd, wire.Cmd{Device: s.d.id, Counter: uint64(now.UnixMicro()), ExpiresAt: now.Add(minutes).Unix(), Kind: wire.CmdReport})
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return errors.New("no command")
	}
	s.d.man.say(wire.DownCmd, raw)
	s.d.man.say(wire.DownCmd, raw)
	return nil
}
