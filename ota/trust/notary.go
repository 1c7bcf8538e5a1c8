package trust

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// ErrRefused is returned by a Notary for what it does not sign.
var ErrRefused = errors.New("refused")

const notaryFile = "state.json"

// Notary is the Online that checks for itself: it trusts a root that a person
// gave it and nothing that it is asked by. It signs snapshot and timestamp for
// targets that enough persons signed, versions only growing, and lists in auto
// roles what the policy in those targets allows. There is no way to have it
// sign anything else. Its state is durable before a signature leaves it.
type Notary struct {
	files slot.Files
	log   func(NotaryEntry) error
	now   func() time.Time

	mu    sync.Mutex // guards all below
	keys  keyring
	state notaryState
	root  *metadata.Metadata[metadata.RootType]
}

// notaryState is all that a Notary remembers, one file.
type notaryState struct {
	Root      []byte            `json:"root"`
	Targets   []byte            `json:"targets,omitempty"`
	Snapshot  []byte            `json:"snapshot,omitempty"`
	Timestamp []byte            `json:"timestamp,omitempty"`
	Autos     map[string][]byte `json:"autos,omitempty"`
}

// NotaryEntry is one signature, or one refusal, for the log of the signer.
type NotaryEntry struct {
	Time    time.Time  `json:"time"`
	What    string     `json:"what"` // snapshot, timestamp, auto/MODEL, root (trusted) or refused
	Version int64      `json:"version,omitempty"`
	Digest  ota.Digest `json:"digest,omitempty"` // of the file signed
	Detail  string     `json:"detail,omitempty"`
}

// NotaryRoles are the kinds of keys that a Notary makes.
var NotaryRoles = []string{metadata.SNAPSHOT, metadata.TIMESTAMP, autoKind}

// InitNotary makes keys of a notary in f that has none, and returns the public
// halves as PEM by kind.
func InitNotary(f slot.Files) (map[string][]byte, error) {
	have, err := loadKeys(f)
	if err != nil {
		return nil, err
	}
	if len(have) > 0 {
		return nil, fmt.Errorf("make the signer's keys: %w: there are some already", fs.ErrExist)
	}
	out := map[string][]byte{}
	for _, kind := range NotaryRoles {
		key, err := have.generate(f, kind)
		if err != nil {
			return nil, err
		}
		if out[kind], err = publicPEM(key.Public(), "signer "+kind); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// AnchorNotary gives a notary the root that it starts from. One that has a
// root keeps it: ErrExist.
func AnchorNotary(f slot.Files, root []byte) error {
	if _, err := newTrusted(root, time.Time{}); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	_, err := f.ReadFile(notaryFile)
	if err == nil {
		return fmt.Errorf("anchor: %w: the signer follows root changes by itself", fs.ErrExist)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := json.Marshal(notaryState{Root: root})
	if err != nil {
		return err
	}
	return f.WriteFile(notaryFile, b)
}

// OpenNotary opens the notary in f. log is called for each signature before it
// is handed out, and for each refusal; where it fails nothing is handed out.
func OpenNotary(f slot.Files, now func() time.Time, log func(NotaryEntry) error) (*Notary, error) {
	n := &Notary{files: f, log: log, now: now}
	var err error
	if n.keys, err = loadKeys(f); err != nil {
		return nil, err
	}
	if len(n.keys) == 0 {
		return nil, fmt.Errorf("open signer: %w: make keys first", ErrNoKey)
	}
	b, err := f.ReadFile(notaryFile)
	if err != nil {
		return nil, fmt.Errorf("open signer: it has no root yet: %w", err)
	}
	if err := json.Unmarshal(b, &n.state); err != nil {
		return nil, fmt.Errorf("open signer: read %s: %w", notaryFile, err)
	}
	tm, err := newTrusted(n.state.Root, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("open signer: root: %w", err)
	}
	n.root = tm.Root
	if n.state.Autos == nil {
		n.state.Autos = map[string][]byte{}
	}
	return n, nil
}

// State implements Online.
func (n *Notary) State(context.Context) (OnlineState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := OnlineState{RootVersion: n.root.Signed.Version, Keys: slices.Sorted(maps.Keys(n.keys))}
	key, err := keyOf(n.files, autoKind)
	if errors.Is(err, ErrNoKey) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Auto, err = x509.MarshalPKIXPublicKey(key.Public())
	return out, err
}

// refuse logs a refusal and returns it.
func (n *Notary) refuse(format string, args ...any) error {
	err := fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
	return errors.Join(err, n.log(NotaryEntry{Time: n.now().UTC(), What: "refused", Detail: err.Error()}))
}

// Roots implements Online: it walks root rotations one by one, as a device does.
func (n *Notary) Roots(_ context.Context, roots [][]byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(roots) > maxRootRotations {
		return n.refuse("%d roots at once, at most %d", len(roots), maxRootRotations)
	}
	tm, err := newTrusted(n.state.Root, time.Time{})
	if err != nil {
		return err
	}
	for _, b := range roots {
		if len(b) > maxRoot {
			return n.refuse("root of %d bytes, at most %d", len(b), maxRoot)
		}
		if err := once(b); err != nil {
			return n.refuse("root after %d: %w", tm.Root.Signed.Version, err)
		}
		if err := guard(func() error { _, err := tm.UpdateRoot(b); return err }); err != nil {
			return n.refuse("root after %d: %w", tm.Root.Signed.Version, err)
		}
		next := n.state
		next.Root = b
		if err := n.keep(next); err != nil {
			return err
		}
		n.root = tm.Root
		if err := n.log(NotaryEntry{Time: n.now().UTC(), What: "root", Version: tm.Root.Signed.Version, Digest: ota.DigestOf(b), Detail: "trusted from now on"}); err != nil {
			return fmt.Errorf("write the signer's log: %w", err)
		}
	}
	return nil
}

func (n *Notary) keep(next notaryState) error {
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := n.files.WriteFile(notaryFile, b); err != nil {
		return fmt.Errorf("keep the signer's state: %w", err)
	}
	n.state = next
	return nil
}

// Publish implements Online.
func (n *Notary) Publish(_ context.Context, r PublishRequest) (Published, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next := n.state
	next.Autos = maps.Clone(n.state.Autos)
	targets, err := n.checkTargets(r.Targets)
	if err != nil {
		return Published{}, err
	}
	next.Targets = r.Targets
	n.remember(&next, targets, r)
	return n.issue(next, targets)
}

// checkTargets refuses targets that not enough persons signed, that are older
// than those known, or other ones of the same version.
func (n *Notary) checkTargets(b []byte) (*metadata.Metadata[metadata.TargetsType], error) {
	if len(b) > maxTargets {
		return nil, n.refuse("targets of %d bytes, at most %d", len(b), maxTargets)
	}
	var m *metadata.Metadata[metadata.TargetsType]
	err := guard(func() (err error) {
		if err := once(b); err != nil {
			return err
		}
		if m, err = metadata.Targets().FromBytes(b); err != nil {
			return err
		}
		return n.root.VerifyDelegate(metadata.TARGETS, m)
	})
	if err != nil {
		return nil, n.refuse("targets: %w", err)
	}
	if m.Signed.IsExpired(n.now()) {
		return nil, n.refuse("targets %d expired at %s", m.Signed.Version, m.Signed.Expires.UTC().Format(time.RFC3339))
	}
	if len(n.state.Targets) == 0 {
		return m, nil
	}
	held, err := metadata.Targets().FromBytes(n.state.Targets)
	if err != nil {
		return nil, err
	}
	if m.Signed.Version < held.Signed.Version {
		return nil, n.refuse("targets %d, %d were signed for already", m.Signed.Version, held.Signed.Version)
	}
	if m.Signed.Version == held.Signed.Version {
		a, errA := signedBytes(m)
		b, errB := signedBytes(held)
		if errA != nil || errB != nil || string(a) != string(b) {
			return nil, n.refuse("other targets of version %d than those signed for", m.Signed.Version)
		}
	}
	return m, nil
}

// remember takes versions from what its own keys have signed, in case its own
// state is older.
func (n *Notary) remember(next *notaryState, targets *metadata.Metadata[metadata.TargetsType], r PublishRequest) {
	if s, ok := parsed(r.Snapshot, metadata.Snapshot(), func(m any) error { return n.root.VerifyDelegate(metadata.SNAPSHOT, m) }); ok {
		if held, ok := parsed(next.Snapshot, metadata.Snapshot(), nil); !ok || s.Signed.Version > held.Signed.Version {
			next.Snapshot = r.Snapshot
		}
	}
	if s, ok := parsed(r.Timestamp, metadata.Timestamp(), func(m any) error { return n.root.VerifyDelegate(metadata.TIMESTAMP, m) }); ok {
		if held, ok := parsed(next.Timestamp, metadata.Timestamp(), nil); !ok || s.Signed.Version > held.Signed.Version {
			next.Timestamp = r.Timestamp
		}
	}
	for role, b := range r.Autos {
		if _, known := next.Autos[role]; known {
			continue // its own memory is the better one: a stolen key signs too
		}
		if _, ok := parsed(b, metadata.Targets(), func(m any) error { return targets.VerifyDelegate(role, m) }); ok {
			next.Autos[role] = b
		}
	}
}

// parsed reads metadata that verify accepts.
func parsed[T metadata.Roles](b []byte, into *metadata.Metadata[T], verify func(any) error) (*metadata.Metadata[T], bool) {
	if len(b) == 0 || len(b) > maxTargets {
		return nil, false
	}
	var m *metadata.Metadata[T]
	err := guard(func() (err error) {
		if m, err = into.FromBytes(b); err != nil || verify == nil {
			return err
		}
		return verify(m)
	})
	return m, err == nil
}

// issue signs what of auto roles, snapshot and timestamp is new for next, makes
// it durable, logs it and hands it out.
func (n *Notary) issue(next notaryState, targets *metadata.Metadata[metadata.TargetsType]) (Published, error) {
	now := n.now()
	var log []NotaryEntry
	signed := func(what string, version int64, b []byte, detail string) {
		log = append(log, NotaryEntry{Time: now.UTC(), What: what, Version: version, Digest: ota.DigestOf(b), Detail: detail})
	}
	autos, err := readAutos(next.Autos)
	if err != nil {
		return Published{}, err
	}
	p := Published{Autos: map[string][]byte{}}
	if p.Autos, err = tendAutos(targets, autos, n.keys, now); err != nil {
		return Published{}, err
	}
	for role, b := range p.Autos {
		next.Autos[role] = b
		signed(role, autos[role].Signed.Version, b, fmt.Sprintf("%d releases", len(autos[role].Signed.Targets)))
	}
	for role, b := range next.Autos {
		if string(n.state.Autos[role]) != string(b) && p.Autos[role] == nil {
			signed(role, autos[role].Signed.Version, b, fmt.Sprintf("%d releases", len(autos[role].Signed.Targets)))
		}
		p.Autos[role] = b
	}
	snapshot, err := n.nextSnapshot(next, targets, autos, now)
	if err != nil {
		return Published{}, err
	}
	if snapshot != nil {
		if next.Snapshot, err = n.sign(metadata.SNAPSHOT, snapshot); err != nil {
			return Published{}, err
		}
		signed(metadata.SNAPSHOT, snapshot.Signed.Version, next.Snapshot, fmt.Sprintf("targets %d", targets.Signed.Version))
	} else if snapshot, err = metadata.Snapshot().FromBytes(next.Snapshot); err != nil {
		return Published{}, err
	}
	timestamp := metadata.Timestamp()
	timestamp.Signed.Version = 0
	if held, ok := parsed(next.Timestamp, metadata.Timestamp(), nil); ok {
		timestamp.Signed.Version = held.Signed.Version
	}
	timestamp.Signed.Meta["snapshot.json"] = metaFile(snapshot.Signed.Version, next.Snapshot)
	stampTime(&timestamp.Signed, now)
	keys, err := n.keys.forRole(n.root, metadata.TIMESTAMP)
	if err != nil {
		return Published{}, err
	}
	if next.Timestamp, err = sign(timestamp, keys...); err != nil {
		return Published{}, err
	}
	signed(metadata.TIMESTAMP, timestamp.Signed.Version, next.Timestamp, fmt.Sprintf("snapshot %d", snapshot.Signed.Version))
	if err := n.keep(next); err != nil {
		return Published{}, err
	}
	for _, e := range log {
		if err := n.log(e); err != nil {
			return Published{}, fmt.Errorf("write the signer's log: %w", err)
		}
	}
	p.Snapshot, p.Timestamp = next.Snapshot, next.Timestamp
	return p, nil
}

func (n *Notary) sign(role string, m *metadata.Metadata[metadata.SnapshotType]) ([]byte, error) {
	keys, err := n.keys.forRole(n.root, role)
	if err != nil {
		return nil, err
	}
	return sign(m, keys...)
}

// nextSnapshot returns the next snapshot, or nil when the held one still says
// what is to be said and lives long enough.
func (n *Notary) nextSnapshot(next notaryState, targets *metadata.Metadata[metadata.TargetsType], autos autoSet, now time.Time) (*metadata.Metadata[metadata.SnapshotType], error) {
	s := metadata.Snapshot(expiry(now, SnapshotLife))
	s.Signed.Version = 1
	s.Signed.Meta = map[string]*metadata.MetaFiles{"targets.json": metaFile(targets.Signed.Version, next.Targets)}
	for role, m := range autos {
		s.Signed.Meta[role+".json"] = metaFile(m.Signed.Version, next.Autos[role])
	}
	held, ok := parsed(next.Snapshot, metadata.Snapshot(), nil)
	if !ok {
		return s, nil
	}
	// What a snapshot named once it names for ever, or devices take it for an
	// attack.
	for file, mf := range held.Signed.Meta {
		if s.Signed.Meta[file] == nil {
			s.Signed.Meta[file] = mf
		}
	}
	s.Signed.Version = held.Signed.Version + 1
	if s.Signed.Version > maxCounter {
		return nil, fmt.Errorf("snapshot %d: no versions left: rotate the snapshot key", held.Signed.Version)
	}
	same := maps.EqualFunc(s.Signed.Meta, held.Signed.Meta, func(a, b *metadata.MetaFiles) bool {
		return a.Version == b.Version && a.Length == b.Length && a.Hashes.Equal(b.Hashes)
	})
	if same && !due(held.Signed.Expires, SnapshotLife, now) && n.root.VerifyDelegate(metadata.SNAPSHOT, held) == nil {
		return nil, nil
	}
	return s, nil
}

// List implements Online.
func (n *Notary) List(_ context.Context, r ListRequest) (Published, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.state.Targets) == 0 {
		return Published{}, n.refuse("no targets are known yet: publish first")
	}
	targets, err := n.checkTargets(n.state.Targets)
	if err != nil {
		return Published{}, err
	}
	autos, err := readAutos(n.state.Autos)
	if err != nil {
		return Published{}, err
	}
	now := n.now()
	changed, err := listAuto(targets, autos, r)
	if err != nil {
		return Published{}, n.refuse("list in %.80q: %w", r.Role, err)
	}
	next := n.state
	next.Autos = maps.Clone(n.state.Autos)
	if changed {
		if next.Autos[r.Role], err = signAuto(targets, autos[r.Role], r.Role, n.keys, now); err != nil {
			return Published{}, err
		}
	}
	return n.issue(next, targets)
}
