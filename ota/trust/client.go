package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// What Target returns, wrapped.
var (
	// ErrUnknownTarget is returned for a path that the image repository does not list.
	ErrUnknownTarget = errors.New("image repository does not list it")
	// ErrNotHeld is returned where a delegated role may list the path and its
	// metadata is not on the device: Refresh for that path.
	ErrNotHeld = errors.New("its delegation is not on this device")
)

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
	maxDelegated     = 8 << 20 // all delegated roles that are held
	maxPaths         = 8       // for which they are held
	maxPath          = 1024    // bytes of one of them
)

// Client is a device's view of the image repository. Its state moves forward
// only: roots one by one as each is verified, the set of timestamp, snapshot,
// targets and delegated roles as a whole, in one file.
type Client struct {
	files slot.Files

	// seen is what TrustedTime answers. It needs no lock, since Refresh holds mu
	// while it reads from src, whose TLS asks for the time.
	seen atomic.Pointer[time.Time]

	mu       sync.Mutex // guards all below
	root     []byte
	set      trustedSet
	targets  *targetsMeta                              // of set, nil before the first refresh
	snapshot *metadata.Metadata[metadata.SnapshotType] // of set, nil when root does not stand behind it
	ends     time.Time                                 // when timestamp of set expires
	time     trustedTime
}

// trustedSet is the metadata below root that was accepted together.
type trustedSet struct {
	Timestamp []byte `json:"timestamp,omitempty"`
	Snapshot  []byte `json:"snapshot,omitempty"`
	Targets   []byte `json:"targets,omitempty"`
	// Roles is delegated metadata by role, Paths what it is held for, newest first.
	Roles map[string][]byte `json:"roles,omitempty"`
	Paths []string          `json:"paths,omitempty"`
	// Seen is newer than the set, and not part of it.
	Seen seenSet `json:"seen,omitzero"`
}

// seenSet is what was rightly signed while the rest was withheld or refused.
// Nothing is looked up in it; older ones are refused from then on.
type seenSet struct {
	Timestamp []byte `json:"timestamp,omitempty"`
	Snapshot  []byte `json:"snapshot,omitempty"`
}

func (s seenSet) equal(o seenSet) bool {
	return bytes.Equal(s.Timestamp, o.Timestamp) && bytes.Equal(s.Snapshot, o.Snapshot)
}

func (s trustedSet) equal(o trustedSet) bool {
	return bytes.Equal(s.Timestamp, o.Timestamp) && bytes.Equal(s.Snapshot, o.Snapshot) && bytes.Equal(s.Targets, o.Targets) &&
		maps.EqualFunc(s.Roles, o.Roles, bytes.Equal) && slices.Equal(s.Paths, o.Paths) && s.Seen.equal(o.Seen)
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
	c.targets, c.snapshot, c.ends = nil, nil, time.Time{}
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
	c.set, c.targets, c.snapshot, c.ends = set, tm.Targets[metadata.TARGETS], tm.Snapshot, tm.Timestamp.Signed.Expires
}

// Refresh brings the trusted state up to date from src, and learns what Target
// needs to answer for paths without a network: the delegated roles on the way
// to each. Roles for a few paths asked for before are kept up to date.
//
// An *Attack says what was refused. What Target answers then stays as it was,
// unless it was the way to one of paths that was refused: the top level is kept.
// Roots that were rightly signed are kept, and so is the knowledge of a newer
// timestamp or snapshot, against older ones. Other errors are those of src and
// of the disk. Expiry is judged at now or at TrustedTime, whichever is later.
func (c *Client) Refresh(ctx context.Context, src MetadataSource, now time.Time, paths ...string) error {
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
	u := update{ctx: ctx, src: src, root: c.root, tm: trusted, have: c.set}
	if err = u.timestamp(); err == nil {
		if c.current(u, paths) {
			return nil
		}
		err = u.below()
	}
	if err != nil {
		return errors.Join(err, c.remember(u.next))
	}
	wanted := slices.Concat(paths, slices.DeleteFunc(slices.Clone(c.set.Paths), func(p string) bool { return slices.Contains(paths, p) }))
	refused, lost := u.learn(wanted[:min(len(wanted), max(len(paths), maxPaths))], len(paths))
	if lost != nil {
		return errors.Join(lost, c.remember(u.next))
	}
	return errors.Join(refused, c.keep(u))
}

// current reports whether the set held is the one that u found, still good, and
// the top level is all it takes for paths.
func (c *Client) current(u update, paths []string) bool {
	at := u.tm.RefTime
	if c.snapshot == nil || !bytes.Equal(u.next.Timestamp, c.set.Timestamp) || c.snapshot.Signed.IsExpired(at) || c.targets.Signed.IsExpired(at) {
		return false
	}
	return c.targets.Signed.Delegations == nil || !slices.ContainsFunc(paths, func(p string) bool { return c.targets.Signed.Targets[p] == nil })
}

// keep makes an accepted set the trusted one, on disk and then in memory.
func (c *Client) keep(u update) error {
	if !u.next.equal(c.set) {
		if err := c.write(u.next); err != nil {
			return err
		}
	}
	c.hold(u.next, u.tm)
	return c.advance(signingTime(u.tm), timestampKeys(u.tm))
}

func (c *Client) write(set trustedSet) error {
	b, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("keep metadata: %w", err)
	}
	if err := c.files.WriteFile(setFile, b); err != nil {
		return fmt.Errorf("keep metadata: %w", err)
	}
	return nil
}

// remember keeps what was rightly signed of a set that was not accepted as a
// whole, beside the set that holds.
func (c *Client) remember(part trustedSet) error {
	next := c.set
	if len(part.Timestamp) > 0 && !bytes.Equal(part.Timestamp, c.set.Timestamp) {
		next.Seen.Timestamp = part.Timestamp
	}
	if len(part.Snapshot) > 0 && !bytes.Equal(part.Snapshot, c.set.Snapshot) {
		next.Seen.Snapshot = part.Snapshot
	}
	if next.Seen.equal(c.set.Seen) {
		return nil
	}
	if err := c.write(next); err != nil {
		return err
	}
	c.set.Seen = next.Seen
	return nil
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
			if err := once(b); err != nil {
				return &Attack{ClassMalformed, fmt.Errorf("%s: %w", name, err)}
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

// Trusted returns the metadata that is trusted now, by name without a version,
// as TUF clients lay it out: for people and tools to look at. Of timestamp and
// snapshot it is the newest seen.
func (c *Client) Trusted() map[string][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string][]byte{"root.json": bytes.Clone(c.root)}
	put := func(role string, b []byte) {
		if len(b) > 0 {
			out[fileName(role)+".json"] = bytes.Clone(b)
		}
	}
	for role, b := range c.set.Roles {
		put(role, b)
	}
	for _, set := range []struct{ timestamp, snapshot []byte }{{c.set.Timestamp, c.set.Snapshot}, {c.set.Seen.Timestamp, c.set.Seen.Snapshot}} {
		put(metadata.TIMESTAMP, set.timestamp)
		put(metadata.SNAPSHOT, set.snapshot)
	}
	put(metadata.TARGETS, c.set.Targets)
	return out
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
// under path: at the top level, or in a delegated role that was learned.
// ErrUnknownTarget says that it does not, ErrNotHeld that this device cannot
// tell. What an auto role lists comes with its policy; where there is none, or
// it is not for this path, the error is an *Attack.
func (c *Client) Target(path string) (TargetInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.targets == nil {
		return TargetInfo{}, fmt.Errorf("target %q: %w", path, ErrUnknownTarget)
	}
	found, _, err := walk(path, c.heldRoles())
	switch {
	case errors.Is(err, errNotSigned):
		return TargetInfo{}, fmt.Errorf("target %q: %w: %w", path, ErrUnknownTarget, err)
	case err != nil:
		return TargetInfo{}, fmt.Errorf("target %q: %w", path, err)
	case found == nil:
		return TargetInfo{}, fmt.Errorf("target %q: %w", path, ErrUnknownTarget)
	}
	info, err := targetInfo(found.by, path)
	if err != nil || found.role == metadata.TARGETS {
		return info, err
	}
	info.Role = found.role
	if found.auto == "" {
		return info, nil
	}
	info.Policy, err = c.policy(found.auto, path)
	return info, err
}

// heldRoles is the loader of what is on the device: verified against each
// delegator anew, whatever its age, as the top level is.
func (c *Client) heldRoles() loader {
	parsed := map[string]*targetsMeta{metadata.TARGETS: c.targets}
	return func(role, parent string) (*targetsMeta, error) {
		if parent == metadata.ROOT {
			return c.targets, nil
		}
		b := c.set.Roles[role]
		if b == nil && c.snapshot != nil && c.snapshot.Signed.Meta[role+".json"] == nil {
			return nil, fmt.Errorf("%s: %w", role, errNotSigned)
		}
		if b == nil {
			return nil, fmt.Errorf("%s: %w", role, ErrNotHeld)
		}
		m, err := metadata.Targets().FromBytes(b)
		if err != nil {
			return nil, refusal(role, err)
		}
		if err := guard(func() error { return parsed[parent].VerifyDelegate(role, m) }); err != nil {
			return nil, refusal(role, err)
		}
		parsed[role] = m
		return m, nil
	}
}

// policy returns what a person signed for the model of an auto role.
func (c *Client) policy(role, path string) (*AutoPolicy, error) {
	model := strings.TrimPrefix(role, autoPrefix)
	refuse := func(why error) error {
		return &Attack{ClassUnauthorised, fmt.Errorf("%s is listed by %s: %w", path, role, why)}
	}
	info, err := targetInfo(c.targets, policyOf(model))
	if err != nil {
		return nil, refuse(err)
	}
	p := info.Custom.Policy
	if p == nil {
		return nil, refuse(fmt.Errorf("%s holds no policy", info.Path))
	}
	if err := p.Validate(); err != nil {
		return nil, refuse(err)
	}
	if p.Model != model || !p.lists(path) {
		return nil, refuse(fmt.Errorf("the policy signed is for model %s and paths %s", p.Model, strings.Join(p.Paths, ", ")))
	}
	return p, nil
}

// Targets returns the paths listed at the top level, sorted.
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
