package blob

import (
	"fmt"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// uses remembers when blobs were last asked for.
type uses struct {
	now   func() time.Time
	since time.Time // before it nothing is known: all count as used then

	mu    sync.Mutex // guards what follows; held over a deletion
	at    map[ota.Digest]use
	count uint64
}

type use struct {
	at time.Time
	n  uint64 // tells uses apart
}

// TrackUse makes the store remember when each blob was last opened, read or
// asked after, for DeleteUnused. It is called before the store is used. What
// was used before it is not known, so all blobs count as used now.
func (s *Store) TrackUse(now func() time.Time) {
	s.uses = &uses{now: now, since: now(), at: map[ota.Digest]use{}}
}

// touch notes that somebody asks for d, and returns what undoes that.
func (u *uses) touch(d ota.Digest) (undo func()) {
	if u == nil {
		return func() {}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	was, known := u.at[d]
	u.count++
	n := u.count
	u.at[d] = use{u.now(), n}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		switch {
		case u.at[d].n != n: // there was another use
		case known:
			u.at[d] = was
		default:
			delete(u.at, d)
		}
	}
}

// last returns when d was last used. u.mu is held.
func (u *uses) last(i Info) time.Time {
	t := u.since
	for _, o := range []time.Time{i.Modified, u.at[i.Digest].at} {
		if o.After(t) {
			t = o
		}
	}
	return t
}

// LastUse returns when the blob was last written or asked for; TrackUse was
// called.
func (s *Store) LastUse(i Info) time.Time {
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	return s.uses.last(i)
}

// DeleteUnused removes a blob that List gave unless it was used after before,
// and reports whether it did. Whoever asks for a blob either keeps it by that
// or does not find it: so one that was found, and is then referred to, is there.
func (s *Store) DeleteUnused(i Info, before time.Time) (bool, error) {
	s.uses.mu.Lock()
	defer s.uses.mu.Unlock()
	if s.uses.last(i).After(before) {
		return false, nil
	}
	if err := s.files.Remove(blobName(i.Digest)); err != nil {
		return false, fmt.Errorf("delete blob %s: %w", i.Digest.Short(), err)
	}
	delete(s.uses.at, i.Digest)
	return true, nil
}
