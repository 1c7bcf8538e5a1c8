package trust

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Refresh signs anew what has lived half its time, or what the current root
// does not stand behind, and publishes drafts that have their signatures. Call
// it at start and at least daily. What only a person can sign becomes a draft.
func (r *Repo) Refresh(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.advance(now); err != nil && !errors.Is(err, ErrPending) {
		return r.settle(err)
	}
	if r.root.Signed.Version == 0 || r.targets.Signed.Version == 0 {
		return r.waiting()
	}
	if due(r.root.Signed.Expires, RootLife, now) && r.draft.root == nil {
		if err := r.signRoot(now, nil); errors.Is(err, ErrNoKey) {
			err = r.changeRoot(now, nil)
			if err != nil && !errors.Is(err, ErrPending) {
				return r.settle(err)
			}
		} else if err != nil {
			return r.settle(err)
		}
	}
	if (due(r.targets.Signed.Expires, TargetsLife, now) || !r.stands(metadata.TARGETS, r.targets)) && r.draft.targets == nil {
		err := r.changeTargets(now, func(*metadata.TargetsType) error { return nil })
		if !errors.Is(err, ErrPending) {
			return err
		}
	}
	return r.settle(r.freshen(now))
}

// freshen signs snapshot and timestamp anew where that is due.
func (r *Repo) freshen(now time.Time) error {
	switch {
	case due(r.snapshot.Signed.Expires, SnapshotLife, now), !r.stands(metadata.SNAPSHOT, r.snapshot), autoDue(r.targets, r.autos, now):
		return r.signSnapshot(now)
	case due(r.timestamp.Signed.Expires, TimestampLife, now), !r.stands(metadata.TIMESTAMP, r.timestamp):
		return r.signTimestamp(now)
	}
	return nil
}

func due(expires time.Time, life time.Duration, now time.Time) bool { return expires.Sub(now) < life/2 }

// stands reports whether the current root stands behind m.
func (r *Repo) stands(role string, m any) bool { return r.root.VerifyDelegate(role, m) == nil }

func expiry(now time.Time, life time.Duration) time.Time {
	return now.UTC().Add(life).Truncate(time.Second)
}

// fits refuses targets that devices would not read.
func fits(targets []byte) error {
	if len(targets) > maxTargets {
		return fmt.Errorf("%w: targets.json would have %d bytes, devices read %d: remove old targets", ErrFull, len(targets), maxTargets)
	}
	return nil
}

func metaFile(version int64, b []byte) *metadata.MetaFiles {
	return &metadata.MetaFiles{Version: version, Length: int64(len(b)), Hashes: metadata.Hashes{"sha256": ota.DigestOf(b).Sum()}}
}

// signTargets, signSnapshot and signTimestamp each write the next version of
// their file and then what must follow; timestamp.json comes last and makes
// all of it current.
func (r *Repo) signTargets(now time.Time) error {
	keys, err := r.keys.forRole(r.root, metadata.TARGETS)
	if err != nil {
		return err
	}
	r.targets.Signed.Version++
	r.targets.Signed.Expires = expiry(now, TargetsLife)
	b, err := sign(r.targets, keys...)
	if err != nil {
		return err
	}
	if err := fits(b); err != nil {
		return err
	}
	if err := r.files.WriteFile(metaName(r.targets.Signed.Version, metadata.TARGETS), b); err != nil {
		return err
	}
	r.snapshot.Signed.Meta["targets.json"] = metaFile(r.targets.Signed.Version, b)
	return r.signSnapshot(now)
}

func (r *Repo) signSnapshot(now time.Time) error {
	if r.online != nil {
		return r.publishOnline()
	}
	if err := r.signAutos(now); err != nil {
		return err
	}
	keys, err := r.keys.forRole(r.root, metadata.SNAPSHOT)
	if err != nil {
		return err
	}
	r.snapshot.Signed.Version++
	r.snapshot.Signed.Expires = expiry(now, SnapshotLife)
	b, err := sign(r.snapshot, keys...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(metaName(r.snapshot.Signed.Version, metadata.SNAPSHOT), b); err != nil {
		return err
	}
	r.timestamp.Signed.Meta["snapshot.json"] = metaFile(r.snapshot.Signed.Version, b)
	return r.signTimestamp(now)
}

func (r *Repo) signTimestamp(now time.Time) error {
	if r.online != nil {
		return r.publishOnline()
	}
	keys, err := r.keys.forRole(r.root, metadata.TIMESTAMP)
	if err != nil {
		return err
	}
	stampTime(&r.timestamp.Signed, now)
	b, err := sign(r.timestamp, keys...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(timestampName, b); err != nil {
		return err
	}
	return r.prune()
}

// stampTime makes t the next timestamp, signed at now.
func stampTime(t *metadata.TimestampType, now time.Time) {
	t.Version++
	t.Expires = expiry(now, TimestampLife)
	if t.UnrecognizedFields == nil {
		t.UnrecognizedFields = map[string]any{}
	}
	t.UnrecognizedFields[signedAt] = now.UTC().Format(time.RFC3339)
}

// signRoot writes the next root, changed by change, signed by the keys of the
// root before it and by its own.
func (r *Repo) signRoot(now time.Time, change func(*metadata.RootType) error) error {
	old, err := r.keys.forRole(r.root, metadata.ROOT)
	if err != nil {
		return err
	}
	if change != nil {
		if err := change(&r.root.Signed); err != nil {
			return err
		}
	}
	own, err := r.keys.forRole(r.root, metadata.ROOT)
	if err != nil {
		return err
	}
	r.root.Signed.Version++
	r.root.Signed.Expires = expiry(now, RootLife)
	b, err := sign(r.root, append(slices.Clone(old), own...)...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(metaName(r.root.Signed.Version, metadata.ROOT), b); err != nil {
		return err
	}
	r.rootBytes = b
	return nil
}

// prune removes snapshot and targets files that no reader can still want;
// roots stay, for devices walk them one by one.
func (r *Repo) prune() error {
	files, err := r.files.ReadDir(metaDir)
	if err != nil {
		return err
	}
	current := r.versions()
	delete(current, metadata.ROOT)
	for _, e := range files {
		role, v := splitName(e.Name())
		if now, ok := current[role]; ok && v > 0 && v < now-keepVersions {
			if err := r.files.Remove(metaDir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}
