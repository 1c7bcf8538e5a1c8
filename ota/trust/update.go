package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// update is one walk from timestamp to targets, and on to delegated roles.
type update struct {
	ctx  context.Context
	src  MetadataSource
	root []byte
	tm   *trustedmetadata.TrustedMetadata
	have trustedSet
	next trustedSet
}

// below brings what timestamp names. After an error next holds what was
// accepted before it.
func (u *update) below() error {
	if err := u.snapshot(); err != nil {
		return err
	}
	return u.targets()
}

// get fetches one file, bounded.
func (u *update) get(name string, limit int64) ([]byte, error) {
	b, err := u.src(u.ctx, name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, &Attack{ClassEndless, fmt.Errorf("%s: %d bytes, limit %d", name, len(b), limit)}
	}
	if err := once(b); err != nil {
		return nil, &Attack{ClassMalformed, fmt.Errorf("%s: %w", name, err)}
	}
	return b, nil
}

func (u *update) timestamp() error {
	latest := u.loadTimestamps(u.have.Seen.Timestamp, u.have.Timestamp)
	b, err := u.get("timestamp.json", maxTimestamp)
	if err != nil {
		return err
	}
	err = guard(func() error { _, err := u.tm.UpdateTimestamp(b); return err })
	if errors.Is(err, &metadata.ErrEqualVersionNumber{}) && !bytes.Equal(latest, u.have.Timestamp) && !bytes.Equal(latest, b) {
		// What was seen of this version never became whole, so it does not stand
		// in the way of another one: it may have been signed with a stolen key.
		tm, terr := newTrusted(u.root, u.tm.RefTime)
		if terr != nil {
			return fmt.Errorf("trust root: %w", terr)
		}
		u.tm = tm
		latest = u.loadTimestamps(u.have.Timestamp)
		err = guard(func() error { _, err := u.tm.UpdateTimestamp(b); return err })
	}
	switch {
	case err == nil:
		u.next.Timestamp = b
	case errors.Is(err, &metadata.ErrEqualVersionNumber{}):
		u.next.Timestamp = latest
	default:
		return u.older(refusal("timestamp.json", err), b)
	}
	if u.tm.Timestamp.Signed.IsExpired(u.tm.RefTime) {
		return refusal("timestamp.json", &metadata.ErrExpiredMetadata{Msg: "expired at " + u.tm.Timestamp.Signed.Expires.UTC().Format(time.RFC3339)})
	}
	return nil
}

// leap is how far ahead no honest repository comes: it signs some times a day.
const leap = 1 << 20

// older tells a timestamp that is merely old from an honest one that looks old
// since the versions were run up with a stolen key.
func (u *update) older(err error, b []byte) error {
	a, ok := errors.AsType[*Attack](err)
	if !ok || a.Class != ClassRollback || u.tm.Timestamp == nil {
		return err
	}
	if m, perr := metadata.Timestamp().FromBytes(b); perr == nil && u.tm.Timestamp.Signed.Version-m.Signed.Version > leap {
		return &Attack{ClassFastForward, fmt.Errorf("%w: somebody has run the versions up with a stolen key: rotate the timestamp and snapshot keys", a.Err)}
	}
	return err
}

// loadTimestamps loads the first that counts, for protection against rollback,
// also when it is expired, and returns it. One that the current root does not
// stand behind is passed over, which is how a device recovers from versions run
// up with a stolen key.
func (u *update) loadTimestamps(newest ...[]byte) []byte {
	for _, b := range newest {
		if len(b) == 0 {
			continue
		}
		_ = guard(func() error { _, err := u.tm.UpdateTimestamp(b); return err })
		if u.tm.Timestamp != nil {
			return b
		}
	}
	return nil
}

// meta returns the entry of a file in the metadata above it, and how long the
// file may be; what is signed but unusable is refused. Length and hashes are
// optional in TUF, the version is not.
func meta(of map[string]*metadata.MetaFiles, role string, limit int64) (*metadata.MetaFiles, int64, error) {
	m := of[role+".json"]
	if m == nil || m.Version < 1 || m.Length < 0 {
		return nil, 0, &Attack{ClassMalformed, fmt.Errorf("no usable version of %s.json is signed", role)}
	}
	if m.Length > 0 {
		limit = min(limit, m.Length)
	}
	return m, limit, nil
}

func (u *update) name(role string, m *metadata.MetaFiles) string {
	if u.tm.Root.Signed.ConsistentSnapshot {
		return fmt.Sprintf("%d.%s.json", m.Version, fileName(role))
	}
	return fileName(role) + ".json"
}

func (u *update) snapshot() error {
	m, limit, err := meta(u.tm.Timestamp.Signed.Meta, metadata.SNAPSHOT, maxSnapshot)
	if err != nil {
		return err
	}
	// Loaded for protection against rollback, as the timestamp was.
	for _, b := range [][]byte{u.have.Seen.Snapshot, u.have.Snapshot} {
		if u.tm.Snapshot != nil || len(b) == 0 {
			continue
		}
		_ = guard(func() error { _, err := u.tm.UpdateSnapshot(b, true); return err })
		if s := u.tm.Snapshot; s != nil && s.Signed.Version == m.Version && m.VerifyLengthHashes(b) == nil && !s.Signed.IsExpired(u.tm.RefTime) {
			u.next.Snapshot = b
			return nil
		}
	}
	name := u.name(metadata.SNAPSHOT, m)
	b, err := u.get(name, limit)
	if err != nil {
		return err
	}
	if err := guard(func() error { _, err := u.tm.UpdateSnapshot(b, false); return err }); err != nil {
		if signed, perr := metadata.Snapshot().FromBytes(b); perr == nil {
			return u.refusal(name, err, u.tm.Root, metadata.SNAPSHOT, signed, signed.Signed.Version != m.Version)
		}
		return refusal(name, err)
	}
	u.next.Snapshot = b
	return nil
}

func (u *update) targets() error {
	m, limit, err := meta(u.tm.Snapshot.Signed.Meta, metadata.TARGETS, maxTargets)
	if err != nil {
		return err
	}
	if len(u.have.Targets) > 0 && m.VerifyLengthHashes(u.have.Targets) == nil {
		if guard(func() error { _, err := u.tm.UpdateTargets(u.have.Targets); return err }) == nil {
			u.next.Targets = u.have.Targets
			return nil
		}
	}
	name := u.name(metadata.TARGETS, m)
	b, err := u.get(name, limit)
	if err != nil {
		return err
	}
	if err := guard(func() error { _, err := u.tm.UpdateTargets(b); return err }); err != nil {
		if signed, perr := metadata.Targets().FromBytes(b); perr == nil {
			return u.refusal(name, err, u.tm.Root, metadata.TARGETS, signed, signed.Signed.Version != m.Version)
		}
		return refusal(name, err)
	}
	u.next.Targets = b
	return nil
}

// learn walks to each path and gathers the delegated roles on the way. What
// keeps the device from knowing about one of the first must is refused; the
// others are kept up to date where that works. lost is of the way to the
// repository, which fails the refresh as it does between any two files.
func (u *update) learn(paths []string, must int) (refused, lost error) {
	u.next.Roles = map[string][]byte{}
	for i, p := range paths {
		if p == "" || len(p) > maxPath {
			continue // nothing usable can be listed under it
		}
		_, visited, err := walk(p, u.role)
		if err != nil || len(visited) > 1 {
			u.next.Paths = append(u.next.Paths, p)
		}
		if err == nil || errors.Is(err, errNotSigned) {
			continue
		}
		err = fmt.Errorf("look for %s: %w", p, err)
		if AttackClass(err) == "" && !errors.Is(err, fs.ErrNotExist) {
			return refused, err
		}
		if i < must && refused == nil {
			refused = err
		}
	}
	return refused, nil
}

// role is the loader of a refresh: from what is held or else from src, checked
// against the snapshot and against this delegator.
func (u *update) role(role, parent string) (*targetsMeta, error) {
	if parent == metadata.ROOT {
		return u.tm.Targets[role], nil
	}
	entry := u.tm.Snapshot.Signed.Meta[role+".json"]
	if entry == nil {
		return nil, fmt.Errorf("%s: %w", role, errNotSigned)
	}
	m, limit, err := meta(u.tm.Snapshot.Signed.Meta, role, maxTargets)
	if err != nil {
		return nil, err
	}
	for _, b := range [][]byte{u.next.Roles[role], u.have.Roles[role]} {
		if len(b) == 0 || m.VerifyLengthHashes(b) != nil {
			continue
		}
		if got, err := u.delegated(b, role, parent); err == nil {
			return got, u.hold(role, b)
		}
	}
	name := u.name(role, m)
	b, err := u.get(name, limit)
	if err != nil {
		return nil, err
	}
	got, err := u.delegated(b, role, parent)
	if err != nil {
		if signed, perr := metadata.Targets().FromBytes(b); perr == nil {
			return nil, u.refusal(name, err, u.tm.Targets[parent], role, signed, signed.Signed.Version != m.Version)
		}
		return nil, refusal(name, err)
	}
	return got, u.hold(role, b)
}

func (u *update) delegated(b []byte, role, parent string) (got *targetsMeta, err error) {
	err = guard(func() error { got, err = u.tm.UpdateDelegatedTargets(b, role, parent); return err })
	return got, err
}

// hold gathers a role, bounded in all.
func (u *update) hold(role string, b []byte) error {
	total := len(b)
	for other, have := range u.next.Roles {
		if other != role {
			total += len(have)
		}
	}
	if total > maxDelegated {
		return &Attack{ClassEndless, fmt.Errorf("delegated metadata of more than %d bytes", maxDelegated)}
	}
	u.next.Roles[role] = b
	return nil
}

type delegator interface {
	VerifyDelegate(role string, signed any) error
}

// refusal tells a file that was rightly signed at another time, which does not
// belong to the set, from one that was changed.
func (u *update) refusal(name string, err error, by delegator, role string, signed any, other bool) error {
	mismatch := errors.Is(err, &metadata.ErrLengthOrHashMismatch{}) || other && errors.Is(err, &metadata.ErrBadVersionNumber{})
	if mismatch && guard(func() error { return by.VerifyDelegate(role, signed) }) == nil {
		return &Attack{ClassMixAndMatch, fmt.Errorf("%s: rightly signed, but not the one listed: %w", name, err)}
	}
	return refusal(name, err)
}

// refusal names the class of an error of the TUF state machine.
func refusal(name string, err error) error {
	class := ClassMalformed
	switch {
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		class = ClassFreeze
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		class = ClassRollback
	case errors.Is(err, &metadata.ErrLengthOrHashMismatch{}):
		class = ClassWrongHash
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		class = ClassArbitrary
	case errors.Is(err, &metadata.ErrRepository{}):
		class = ClassRollback // an entry of the snapshot held is gone
	}
	return &Attack{Class: class, Err: fmt.Errorf("%s: %w", name, err)}
}
