package trust

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// ErrUnknownTarget is returned for a path that the image repository does not list.
var ErrUnknownTarget = errors.New("image repository does not list it")

// MetadataSource returns one file of the repository, fs.ErrNotExist when it
// does not have it. It reads no more than it must to show that a file is too
// long.
type MetadataSource func(ctx context.Context, name string) ([]byte, error)

// Files of the client, and limits of what it reads.
const (
	rootFile = "trust/root.json"
	setFile  = "trust/set.json"
	timeFile = "trust/time.json"

	maxRootRotations = 256
	maxRoot          = 512_000
	maxTimestamp     = 16_384
	maxSnapshot      = 2_000_000
	maxTargets       = 5_000_000
)

// Client is a device's view of the image repository. Its state moves forward
// only: roots one by one as each is verified, the set of timestamp, snapshot
// and targets as a whole, in one file.
type Client struct {
	files slot.Files

	// seen is what TrustedTime answers. It needs no lock, since Refresh holds mu
	// while it reads from src, whose TLS asks for the time.
	seen atomic.Pointer[time.Time]

	mu      sync.Mutex // guards all below
	root    []byte
	set     trustedSet
	targets *metadata.Metadata[metadata.TargetsType] // of set, nil before the first refresh
	ends    time.Time                                // when timestamp of set expires
	setEnds time.Time                                // when the first of snapshot and targets expires
	checked bool                                     // set was verified under root
	time    trustedTime
}

// trustedSet is the metadata below root that was accepted together.
type trustedSet struct {
	Timestamp []byte `json:"timestamp,omitempty"`
	Snapshot  []byte `json:"snapshot,omitempty"`
	Targets   []byte `json:"targets,omitempty"`
}

// trustedTime is the latest time that somebody trusted has signed. It holds
// only as long as the timestamp keys do: whoever stole one may have signed a
// time far ahead, and rotating the keys must cure that too.
type trustedTime struct {
	Time time.Time `json:"time,omitzero"`
	Keys []string  `json:"keys,omitempty"` // ids of the timestamp keys of the root it was learned under
}

// NewClient opens the state in f. root is what the device was given at
// enrolment; a newer one on disk is preferred. Damaged state is taken for
// absent, the next refresh replaces it.
func NewClient(f slot.Files, root []byte) (*Client, error) {
	anchor, err := newTrusted(root, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("trust root: %w", err)
	}
	c := &Client{files: f, root: root}
	trusted := anchor
	if b, err := f.ReadFile(rootFile); err == nil {
		stored, err := newTrusted(b, time.Time{})
		if err == nil && stored.Root.Signed.Version >= anchor.Root.Signed.Version {
			c.root, trusted = b, stored
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := readJSON(f, setFile, &c.set); err != nil {
		return nil, err
	}
	if err := readJSON(f, timeFile, &c.time); err != nil {
		return nil, err
	}
	c.setTime(c.time)
	c.forgetTime(trusted)
	c.adopt(c.set)
	return c, nil
}

// readJSON leaves v zero when the file is absent or damaged.
func readJSON[T any](f slot.Files, name string, v *T) error {
	b, err := f.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var got T
	if json.Unmarshal(b, &got) == nil {
		*v = got
	}
	return nil
}

// newTrusted starts the TUF state machine at root, judging expiry at now. The
// zero time is before all expiries.
func newTrusted(root []byte, now time.Time) (tm *trustedmetadata.TrustedMetadata, err error) {
	err = guard(func() error {
		tm, err = trustedmetadata.New(root)
		return err
	})
	if err == nil {
		tm.RefTime = now
	}
	return tm, err
}

// guard turns a panic of the metadata library over hostile input into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &metadata.ErrValue{Msg: fmt.Sprint("unusable metadata: ", p)}
		}
	}()
	return f()
}

// adopt judges a set that was accepted before under the current root, expired
// or not. What was listed stays known as long as root stands behind the key
// that listed it, also when timestamp or snapshot keys were replaced since;
// whether the list is fresh is for Refresh to say.
func (c *Client) adopt(set trustedSet) {
	c.targets, c.checked, c.ends, c.setEnds = nil, false, time.Time{}, time.Time{}
	tm, err := newTrusted(c.root, time.Time{})
	if err != nil || len(set.Targets) == 0 {
		return
	}
	err = guard(func() error {
		if _, err := tm.UpdateTimestamp(set.Timestamp); err != nil {
			return err
		}
		if _, err := tm.UpdateSnapshot(set.Snapshot, true); err != nil {
			return err
		}
		_, err := tm.UpdateTargets(set.Targets)
		return err
	})
	if err == nil {
		c.hold(set, tm)
		return
	}
	m, err := metadata.Targets().FromBytes(set.Targets)
	if err == nil && guard(func() error { return tm.Root.VerifyDelegate(metadata.TARGETS, m) }) == nil {
		c.targets = m
	}
}

// hold remembers a verified set.
func (c *Client) hold(set trustedSet, tm *trustedmetadata.TrustedMetadata) {
	c.set, c.targets, c.checked = set, tm.Targets[metadata.TARGETS], true
	c.ends = tm.Timestamp.Signed.Expires
	c.setEnds = tm.Snapshot.Signed.Expires
	if e := c.targets.Signed.Expires; e.Before(c.setEnds) {
		c.setEnds = e
	}
}

// Refresh brings the trusted state up to date from src. An *Attack says what
// was refused; then the set on disk is byte for byte what it was, and roots
// that were rightly signed are kept. Other errors are those of src and of the
// disk. Expiry is judged at now or at TrustedTime, whichever is later.
func (c *Client) Refresh(ctx context.Context, src MetadataSource, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.walkRoots(ctx, src); err != nil {
		return err
	}
	trusted, err := newTrusted(c.root, time.Time{})
	if err != nil {
		return fmt.Errorf("trust root: %w", err)
	}
	c.forgetTime(trusted)
	trusted.RefTime = latest(now, c.time.Time).UTC()
	u := update{ctx: ctx, src: src, tm: trusted, have: c.set}
	if err := u.timestamp(); err != nil {
		return err
	}
	if c.checked && string(u.next.Timestamp) == string(c.set.Timestamp) && !trusted.RefTime.After(c.setEnds) {
		return nil // nothing new, and what is held is still good
	}
	if err := u.snapshot(); err != nil {
		return err
	}
	if err := u.targets(); err != nil {
		return err
	}
	return c.keep(u)
}

// keep makes an accepted set the trusted one, on disk and then in memory.
func (c *Client) keep(u update) error {
	if !equalSets(u.next, c.set) {
		b, err := json.Marshal(u.next)
		if err != nil {
			return fmt.Errorf("keep metadata: %w", err)
		}
		if err := c.files.WriteFile(setFile, b); err != nil {
			return fmt.Errorf("keep metadata: %w", err)
		}
	}
	c.hold(u.next, u.tm)
	return c.advance(signingTime(u.tm), timestampKeys(u.tm))
}

func equalSets(a, b trustedSet) bool {
	return string(a.Timestamp) == string(b.Timestamp) && string(a.Snapshot) == string(b.Snapshot) && string(a.Targets) == string(b.Targets)
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// walkRoots follows root rotations one by one and keeps each verified root.
func (c *Client) walkRoots(ctx context.Context, src MetadataSource) error {
	tm, err := newTrusted(c.root, time.Time{})
	if err != nil {
		return fmt.Errorf("trust root: %w", err)
	}
	newest := c.root
	walk := func() error {
		for range maxRootRotations {
			name := fmt.Sprintf("%d.root.json", tm.Root.Signed.Version+1)
			b, err := src(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("get %s: %w", name, err)
			}
			if len(b) > maxRoot {
				return &Attack{ClassEndless, fmt.Errorf("%s: %d bytes, limit %d", name, len(b), maxRoot)}
			}
			if err := guard(func() error { _, err := tm.UpdateRoot(b); return err }); err != nil {
				return refusal(name, err)
			}
			newest = b
		}
		return &Attack{ClassRootWalk, fmt.Errorf("more than %d root rotations at once; going on from root %d next time", maxRootRotations, tm.Root.Signed.Version)}
	}
	walked := walk()
	if string(newest) != string(c.root) {
		if err := c.files.WriteFile(rootFile, newest); err != nil {
			return errors.Join(walked, fmt.Errorf("keep root: %w", err))
		}
		c.root = newest
		c.adopt(c.set)
	}
	return walked
}

func timestampKeys(tm *trustedmetadata.TrustedMetadata) []string {
	role := tm.Root.Signed.Roles[metadata.TIMESTAMP]
	if role == nil {
		return nil
	}
	return slices.Sorted(slices.Values(role.KeyIDs))
}

// forgetTime drops a trusted time that was learned under other timestamp keys.
func (c *Client) forgetTime(tm *trustedmetadata.TrustedMetadata) {
	if !slices.Equal(c.time.Keys, timestampKeys(tm)) {
		c.setTime(trustedTime{})
	}
}

func (c *Client) setTime(t trustedTime) {
	c.time = t
	c.seen.Store(&t.Time)
}

// signingTime is when timestamp was signed, as its signer says.
func signingTime(tm *trustedmetadata.TrustedMetadata) time.Time {
	text, ok := tm.Timestamp.Signed.UnrecognizedFields[signedAt].(string)
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.After(tm.Timestamp.Signed.Expires) {
		return time.Time{}
	}
	return t
}

func (c *Client) advance(t time.Time, keys []string) error {
	if !t.After(c.time.Time) {
		return nil
	}
	next := trustedTime{Time: t.UTC(), Keys: keys}
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("keep trusted time: %w", err)
	}
	if err := c.files.WriteFile(timeFile, b); err != nil {
		return fmt.Errorf("keep trusted time: %w", err)
	}
	c.setTime(next)
	return nil
}

// TrustedTime is the latest signing time that was verified, zero before the
// first: the clock of the device is wrong if it is before that.
func (c *Client) TrustedTime() time.Time {
	return *c.seen.Load()
}

// Observe advances TrustedTime to a verified signing time from elsewhere, such
// as the issue time of a desired state. It goes at most to an hour before the
// held timestamp expires, so that a director with a wrong clock cannot make a
// device refuse honest metadata. Steps under a minute are not written.
func (c *Client) Observe(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.targets == nil {
		return nil
	}
	if most := c.ends.Add(-time.Hour); t.After(most) {
		t = most
	}
	if t.Sub(c.time.Time) < time.Minute {
		return nil
	}
	tm, err := newTrusted(c.root, time.Time{})
	if err != nil {
		return fmt.Errorf("trust root: %w", err)
	}
	return c.advance(t, timestampKeys(tm))
}

// RootVersion returns the version of the root that is trusted now.
func (c *Client) RootVersion() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	tm, err := newTrusted(c.root, time.Time{})
	if err != nil {
		return 0
	}
	return tm.Root.Signed.Version
}

// Expires returns when the held timestamp expires, zero before the first refresh.
func (c *Client) Expires() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ends
}

// Target returns what the image repository, as of the last refresh, lists
// under path, or ErrUnknownTarget.
func (c *Client) Target(path string) (TargetInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return targetInfo(c.targets, path)
}

// Targets returns the listed paths, sorted.
func (c *Client) Targets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.targets == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(c.targets.Signed.Targets))
}

// DirectorKeys returns the keys that may sign desired states and commands.
func (c *Client) DirectorKeys() ([]crypto.PublicKey, error) {
	info, err := c.Target(DirectorTarget)
	if err != nil {
		return nil, err
	}
	keys := make([]crypto.PublicKey, 0, len(info.Custom.Keys))
	for _, der := range info.Custom.Keys {
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("director key: %w", err)
		}
		if _, err := algorithm(pub); err != nil {
			return nil, fmt.Errorf("director key: %w", err)
		}
		keys = append(keys, pub)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: lists no keys", DirectorTarget)
	}
	return keys, nil
}

// update is one walk from timestamp to targets.
type update struct {
	ctx  context.Context
	src  MetadataSource
	tm   *trustedmetadata.TrustedMetadata
	have trustedSet
	next trustedSet
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
	return b, nil
}

func (u *update) timestamp() error {
	if len(u.have.Timestamp) > 0 {
		// Loaded for protection against rollback even when expired; one that
		// the current root does not stand behind is passed over, which is how
		// a device recovers from versions run up with a stolen key.
		_ = guard(func() error { _, err := u.tm.UpdateTimestamp(u.have.Timestamp); return err })
	}
	b, err := u.get("timestamp.json", maxTimestamp)
	if err != nil {
		return err
	}
	err = guard(func() error { _, err := u.tm.UpdateTimestamp(b); return err })
	switch {
	case err == nil:
		u.next.Timestamp = b
	case errors.Is(err, &metadata.ErrEqualVersionNumber{}):
		u.next.Timestamp = u.have.Timestamp
	default:
		return refusal("timestamp.json", err)
	}
	if u.tm.Timestamp.Signed.IsExpired(u.tm.RefTime) {
		return refusal("timestamp.json", &metadata.ErrExpiredMetadata{Msg: "expired at " + u.tm.Timestamp.Signed.Expires.UTC().Format(time.RFC3339)})
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
		return fmt.Sprintf("%d.%s.json", m.Version, role)
	}
	return role + ".json"
}

func (u *update) snapshot() error {
	m, limit, err := meta(u.tm.Timestamp.Signed.Meta, metadata.SNAPSHOT, maxSnapshot)
	if err != nil {
		return err
	}
	if len(u.have.Snapshot) > 0 {
		// Loaded for protection against rollback, as the timestamp was.
		_ = guard(func() error { _, err := u.tm.UpdateSnapshot(u.have.Snapshot, true); return err })
		if s := u.tm.Snapshot; s != nil && s.Signed.Version == m.Version && m.VerifyLengthHashes(u.have.Snapshot) == nil && !s.Signed.IsExpired(u.tm.RefTime) {
			u.next.Snapshot = u.have.Snapshot
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
			return u.refusal(name, err, metadata.SNAPSHOT, signed, signed.Signed.Version != m.Version)
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
			return u.refusal(name, err, metadata.TARGETS, signed, signed.Signed.Version != m.Version)
		}
		return refusal(name, err)
	}
	u.next.Targets = b
	return nil
}

// refusal tells a file that was rightly signed at another time, which does not
// belong to the set, from one that was changed.
func (u *update) refusal(name string, err error, role string, signed any, other bool) error {
	mismatch := errors.Is(err, &metadata.ErrLengthOrHashMismatch{}) || other && errors.Is(err, &metadata.ErrBadVersionNumber{})
	if mismatch && guard(func() error { return u.tm.Root.VerifyDelegate(role, signed) }) == nil {
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
