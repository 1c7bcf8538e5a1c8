package trust

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// What persons are told of drafts, wrapped.
var (
	// ErrPending is returned for a change that waits for signatures of persons.
	ErrPending = errors.New("waits for signatures")
	// ErrDraftChanged is returned for a signature or a proposal that was made
	// for another draft than the one that is here now.
	ErrDraftChanged = errors.New("the draft is another one now: look at it again")
	// ErrBadDraft is returned for a proposal that could never be published.
	ErrBadDraft = errors.New("unusable draft")
	// ErrBadSignature is returned for a signature that does not count.
	ErrBadSignature = errors.New("signature does not count")
)

const draftDir = "pending"

// drafts are the next root and targets while they gather signatures. Their
// files lie in pending/ and are removed only once what they became is current,
// so that a power cut at any moment leaves a draft or its result.
type drafts struct {
	root    *metadata.Metadata[metadata.RootType]
	targets *metadata.Metadata[metadata.TargetsType]
}

func draftName(role string) string { return draftDir + "/" + role + ".json" }

func readDrafts(f slot.Files) (d drafts, err error) {
	_, d.root, err = readMeta(f, draftName(metadata.ROOT), metadata.Root())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	_, d.targets, err = readMeta(f, draftName(metadata.TARGETS), metadata.Targets())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	return d, nil
}

// dropStale forgets drafts that a power cut left beside what they became, and
// signatures in the others that do not count.
func (r *Repo) dropStale() error {
	if d := r.draft.root; d != nil && d.Signed.Version <= r.root.Signed.Version {
		r.draft.root = nil
	}
	if d := r.draft.targets; d != nil && d.Signed.Version <= r.targets.Signed.Version {
		r.draft.targets = nil
	}
	if d := r.draft.root; d != nil {
		if err := keepCounting(r, metadata.ROOT, d, d.Signatures); err != nil {
			return err
		}
	}
	if d := r.draft.targets; d != nil {
		return keepCounting(r, metadata.TARGETS, d, d.Signatures)
	}
	return nil
}

// signedBytes is what a signature covers.
func signedBytes[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	b, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return b, nil
}

func clone[T metadata.Roles](m *metadata.Metadata[T]) (*metadata.Metadata[T], error) {
	b, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	return new(metadata.Metadata[T]).FromBytes(b)
}

// changeRoot makes or changes the draft of the next root. Signatures that the
// draft had are void, for it says something else now.
func (r *Repo) changeRoot(now time.Time, change func(*metadata.RootType) error) error {
	if err := r.publishable(now); err != nil {
		return err
	}
	from := r.root
	if r.draft.root != nil {
		from = r.draft.root
	}
	next, err := clone(from)
	if err != nil {
		return err
	}
	next.Signed.Version = r.root.Signed.Version + 1
	next.Signed.Expires = expiry(now, RootLife)
	if change != nil {
		if err := change(&next.Signed); err != nil {
			return err
		}
	}
	next.ClearSignatures()
	return r.settle(r.putRootDraft(next, now))
}

// changeTargets changes the list: at once where enough targets keys are here,
// otherwise in the draft of the next targets, and then it returns ErrPending.
// change must leave its argument as it was when it fails.
func (r *Repo) changeTargets(now time.Time, change func(*metadata.TargetsType) error) error {
	if _, err := r.keys.forRole(r.root, metadata.TARGETS); err == nil && r.draft.targets == nil && r.draft.root == nil {
		if err := change(&r.targets.Signed); err != nil {
			return err
		}
		return r.settle(r.signTargets(now))
	}
	if err := r.publishable(now); err != nil {
		return err
	}
	from := r.targets
	if r.draft.targets != nil {
		from = r.draft.targets
	}
	next, err := clone(from)
	if err != nil {
		return err
	}
	next.Signed.Version = r.targets.Signed.Version + 1
	next.Signed.Expires = expiry(now, TargetsLife)
	if err := change(&next.Signed); err != nil {
		return err
	}
	next.ClearSignatures()
	return r.settle(r.putTargetsDraft(next, now))
}

// publishable publishes drafts that have all their signatures: these are never
// edited, since who signs snapshots may have seen them already.
func (r *Repo) publishable(now time.Time) error {
	if !r.rootReady() && !r.targetsReady() {
		return nil
	}
	if err := r.settle(r.advance(now)); err != nil && !errors.Is(err, ErrPending) {
		return fmt.Errorf("publish what is signed already: %w", err)
	}
	return nil
}

// putRootDraft keeps a draft of the next root with the signatures that it has
// and those of keys that are here.
func (r *Repo) putRootDraft(next *metadata.Metadata[metadata.RootType], now time.Time) error {
	was := r.draft.root
	r.draft.root = next
	if err := r.keepDraft(metadata.ROOT); err != nil {
		r.draft.root = was
		return err
	}
	if r.draft.targets != nil {
		if err := r.keepDraft(metadata.TARGETS); err != nil {
			return err
		}
	}
	return r.advance(now)
}

func (r *Repo) putTargetsDraft(next *metadata.Metadata[metadata.TargetsType], now time.Time) error {
	r.draft.targets = next
	if err := r.keepDraft(metadata.TARGETS); err != nil {
		return err
	}
	return r.advance(now)
}

// keepDraft signs a draft with the keys that are here and writes it.
func (r *Repo) keepDraft(role string) error {
	var b []byte
	var err error
	if role == metadata.ROOT {
		b, err = signWith(r.draft.root, r.localSigners(role))
		if err == nil && len(b) > maxRoot {
			err = fmt.Errorf("%w: root of %d bytes, devices read %d", ErrBadDraft, len(b), maxRoot)
		}
	} else {
		b, err = signWith(r.draft.targets, r.localSigners(role))
		if err == nil {
			err = fits(b)
		}
	}
	if err != nil {
		return err
	}
	return r.files.WriteFile(draftName(role), b)
}

// signWith adds the signatures of keys that have not signed m yet.
func signWith[T metadata.Roles](m *metadata.Metadata[T], keys []ed25519.PrivateKey) ([]byte, error) {
	payload, err := signedBytes(m)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		id, err := tufKeyID(k.Public())
		if err != nil {
			return nil, err
		}
		addSignature(m, id, ed25519.Sign(k, payload))
	}
	return m.ToBytes(false)
}

// addSignature reports whether the key had not signed yet.
func addSignature[T metadata.Roles](m *metadata.Metadata[T], id string, sig []byte) bool {
	if slices.ContainsFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id }) {
		return false
	}
	m.Signatures = append(m.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	return true
}

func (r *Repo) localSigners(role string) []ed25519.PrivateKey {
	var keys []ed25519.PrivateKey
	for id := range r.signers(role) {
		if k, ok := r.keys[id]; ok {
			keys = append(keys, k)
		}
	}
	return keys
}

// signers are the keys whose signature on the draft of a role can count: those
// of the current root and those of the next.
func (r *Repo) signers(role string) map[string]*metadata.Key {
	keys := map[string]*metadata.Key{}
	for _, root := range []*metadata.Metadata[metadata.RootType]{r.root, r.draft.root} {
		if root == nil || root.Signed.Roles[role] == nil {
			continue
		}
		for _, id := range root.Signed.Roles[role].KeyIDs {
			if k := root.Signed.Keys[id]; k != nil {
				keys[id] = k
			}
		}
	}
	return keys
}

// checkSignature says why a signature on the draft of a role does not count.
func (r *Repo) checkSignature(role, id string, payload, sig []byte) error {
	key := r.signers(role)[id]
	if key == nil {
		return fmt.Errorf("%w: key %s does not sign for %s", ErrBadSignature, shortID(id), role)
	}
	pub, err := key.ToPublicKey()
	if err != nil {
		return fmt.Errorf("%w: key %s: %w", ErrBadSignature, shortID(id), err)
	}
	ed, ok := pub.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(ed, payload, sig) {
		return fmt.Errorf("%w: it is not of key %s over this %s", ErrBadSignature, shortID(id), role)
	}
	return nil
}

func shortID(id string) string { return id[:min(12, len(id))] }

// AddSignature adds the signature of one key to the draft of root or targets;
// digest says which draft it was made for. With the last one that is needed
// the draft is published, otherwise ErrPending says what is missing. A
// signature given again changes nothing.
func (r *Repo) AddSignature(ctx context.Context, role string, digest ota.Digest, keyID string, sig []byte, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sign %s: %w", role, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	payload, err := r.draftPayload(role)
	if err != nil {
		return fmt.Errorf("sign %s: %w", role, err)
	}
	if ota.DigestOf(payload) != digest {
		return fmt.Errorf("sign %s: %w", role, ErrDraftChanged)
	}
	if err := r.checkSignature(role, keyID, payload, sig); err != nil {
		return fmt.Errorf("sign %s: %w", role, err)
	}
	if role == metadata.ROOT {
		addSignature(r.draft.root, keyID, sig)
	} else {
		addSignature(r.draft.targets, keyID, sig)
	}
	if err := r.keepDraft(role); err != nil {
		return r.settle(err)
	}
	return r.settle(r.advance(now))
}

func (r *Repo) draftPayload(role string) ([]byte, error) {
	switch {
	case role == metadata.ROOT && r.draft.root != nil:
		return signedBytes(r.draft.root)
	case role == metadata.TARGETS && r.draft.targets != nil:
		return signedBytes(r.draft.targets)
	case role != metadata.ROOT && role != metadata.TARGETS:
		return nil, fmt.Errorf("%w: persons sign root and targets", ErrBadSignature)
	}
	return nil, fmt.Errorf("%w: nothing waits for signatures", ErrDraftChanged)
}

// rootReady reports whether the draft of the root can be published: signed by
// enough keys of the root before it and of its own, and targets that it stands
// behind are there, so that devices never meet one without the other.
func (r *Repo) rootReady() bool {
	d := r.draft.root
	if d == nil || checkRoot(&d.Signed) != nil || d.VerifyDelegate(metadata.ROOT, d) != nil {
		return false
	}
	if r.root.Signed.Version > 0 && !r.stands(metadata.ROOT, d) {
		return false
	}
	return d.VerifyDelegate(metadata.TARGETS, r.targets) == nil ||
		r.draft.targets != nil && d.VerifyDelegate(metadata.TARGETS, r.draft.targets) == nil
}

func (r *Repo) targetsReady() bool {
	return r.draft.targets != nil && r.stands(metadata.TARGETS, r.draft.targets)
}

// checkRoot says why a root could not serve.
func checkRoot(root *metadata.RootType) error {
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		entry := root.Roles[role]
		if entry == nil || entry.Threshold < 1 || len(entry.KeyIDs) < entry.Threshold {
			have, want := 0, 1
			if entry != nil {
				have, want = len(entry.KeyIDs), max(1, entry.Threshold)
			}
			return fmt.Errorf("%w: role %s has %d of the %d keys that it needs: add keys with skein trust add-key", ErrBadDraft, role, have, want)
		}
		for _, id := range entry.KeyIDs {
			if root.Keys[id] == nil {
				return fmt.Errorf("%w: role %s names key %s, which is not there", ErrBadDraft, role, shortID(id))
			}
		}
	}
	if err := checkKeys(root.Keys); err != nil {
		return err
	}
	if !root.ConsistentSnapshot {
		return fmt.Errorf("%w: root without consistent snapshots", ErrBadDraft)
	}
	return nil
}

// checkKeys refuses a key under the id of another: persons are shown ids.
func checkKeys(keys map[string]*metadata.Key) error {
	for id, k := range keys {
		if k == nil {
			return fmt.Errorf("%w: key %s is empty", ErrBadDraft, shortID(id))
		}
		fresh := metadata.Key{Type: k.Type, Scheme: k.Scheme, Value: k.Value, UnrecognizedFields: k.UnrecognizedFields}
		if is, err := fresh.ID(); err != nil || is != id {
			return fmt.Errorf("%w: key %s is not the one of that id", ErrBadDraft, shortID(id))
		}
	}
	return nil
}

// advance publishes the drafts that have their signatures: the root first,
// then targets with snapshot and timestamp. It returns ErrPending while one
// waits.
func (r *Repo) advance(now time.Time) error {
	if r.draft.root == nil && r.draft.targets == nil {
		return nil
	}
	if err := r.draftBoth(now); err != nil {
		return err
	}
	rooted := r.rootReady()
	if rooted {
		b, err := r.draft.root.ToBytes(false)
		if err != nil {
			return err
		}
		if err := r.files.WriteFile(metaName(r.draft.root.Signed.Version, metadata.ROOT), b); err != nil {
			return err
		}
		r.root, r.rootBytes, r.draft.root = r.draft.root, b, nil
		if err := r.files.Remove(draftName(metadata.ROOT)); err != nil {
			return err
		}
	}
	switch {
	case r.targetsReady() && !r.signsOnline():
		return fmt.Errorf("%w: targets %d is signed; skeind with the online keys, or its signer, publishes it", ErrPending, r.draft.targets.Signed.Version)
	case r.targetsReady():
		if err := r.publishTargets(now); err != nil {
			return err
		}
	case rooted && r.targets.Signed.Version > 0 && r.signsOnline():
		if err := r.freshen(now); err != nil {
			return err
		}
	}
	return r.waiting()
}

// signsOnline reports whether snapshot and timestamp can be signed from here.
func (r *Repo) signsOnline() bool {
	if r.online != nil {
		return true
	}
	_, errS := r.keys.forRole(r.root, metadata.SNAPSHOT)
	_, errT := r.keys.forRole(r.root, metadata.TIMESTAMP)
	return errS == nil && errT == nil
}

// draftBoth makes a draft of targets beside that of a root by which other keys
// sign them.
func (r *Repo) draftBoth(now time.Time) error {
	if r.draft.root == nil || r.draft.targets != nil || r.draft.root.VerifyDelegate(metadata.TARGETS, r.targets) == nil {
		return nil
	}
	again, err := clone(r.targets)
	if err != nil {
		return err
	}
	again.Signed.Version++
	again.Signed.Expires = expiry(now, TargetsLife)
	again.ClearSignatures()
	r.draft.targets = again
	return r.keepDraft(metadata.TARGETS)
}

// publishTargets makes the signed draft of targets current.
func (r *Repo) publishTargets(now time.Time) error {
	b, err := r.draft.targets.ToBytes(false)
	if err != nil {
		return err
	}
	r.targets = r.draft.targets
	if err := r.files.WriteFile(metaName(r.targets.Signed.Version, metadata.TARGETS), b); err != nil {
		return err
	}
	r.snapshot.Signed.Meta["targets.json"] = metaFile(r.targets.Signed.Version, b)
	if err := r.signSnapshot(now); err != nil {
		return fmt.Errorf("targets are signed, snapshot and timestamp are not: %w", err)
	}
	r.draft.targets = nil
	return r.files.Remove(draftName(metadata.TARGETS))
}

// waiting is ErrPending with what is missing, or nil.
func (r *Repo) waiting() error {
	var say []string
	for _, d := range r.draftStatus() {
		say = append(say, d.String())
	}
	if len(say) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrPending, strings.Join(say, "; "))
}

// Propose makes doc the draft of root or targets. base is the digest of the
// draft that it was made from, empty when there was none: a draft that changed
// since is not overwritten. Signatures in doc that do not count are left out.
func (r *Repo) Propose(ctx context.Context, role string, doc []byte, base ota.Digest, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("propose %s: %w", role, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.propose(role, doc, base, now); err != nil {
		return fmt.Errorf("propose %s: %w", role, r.settle(err))
	}
	return nil
}

func (r *Repo) propose(role string, doc []byte, base ota.Digest, now time.Time) error {
	if err := r.publishable(now); err != nil {
		return err
	}
	have := ota.Digest("")
	if payload, err := r.draftPayload(role); err == nil {
		have = ota.DigestOf(payload)
	}
	if have != base {
		return ErrDraftChanged
	}
	if err := once(doc); err != nil {
		return fmt.Errorf("%w: %w", ErrBadDraft, err)
	}
	switch role {
	case metadata.ROOT:
		next, err := metadata.Root().FromBytes(doc)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadDraft, err)
		}
		if err := r.checkNextRoot(&next.Signed); err != nil {
			return err
		}
		given := next.Signatures
		was := r.draft.root
		r.draft.root = next
		err = keepCounting(r, role, next, given)
		if r.draft.root = was; err != nil {
			return err
		}
		return r.putRootDraft(next, now)
	case metadata.TARGETS:
		next, err := metadata.Targets().FromBytes(doc)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadDraft, err)
		}
		if next.Signed.Version != r.targets.Signed.Version+1 {
			return fmt.Errorf("%w: targets version %d, the next one is %d: fetch again", ErrBadDraft, next.Signed.Version, r.targets.Signed.Version+1)
		}
		if next.Signed.Delegations != nil {
			if err := checkKeys(next.Signed.Delegations.Keys); err != nil {
				return err
			}
		}
		if err := keepCounting(r, role, next, next.Signatures); err != nil {
			return err
		}
		return r.putTargetsDraft(next, now)
	}
	return fmt.Errorf("%w: persons sign root and targets", ErrBadDraft)
}

// keepCounting leaves those signatures of next that count.
func keepCounting[T metadata.Roles](r *Repo, role string, next *metadata.Metadata[T], given []metadata.Signature) error {
	payload, err := signedBytes(next)
	if err != nil {
		return err
	}
	next.ClearSignatures()
	for _, s := range given {
		if r.checkSignature(role, s.KeyID, payload, s.Signature) == nil {
			addSignature(next, s.KeyID, s.Signature)
		}
	}
	return nil
}

func (r *Repo) checkNextRoot(next *metadata.RootType) error {
	if next.Version != r.root.Signed.Version+1 {
		return fmt.Errorf("%w: root version %d, the next one is %d: fetch again", ErrBadDraft, next.Version, r.root.Signed.Version+1)
	}
	if was := domainOf(&r.root.Signed); was != "" && domainOf(next) != was {
		return fmt.Errorf("%w: root of %q, this repository is of %q", ErrBadDraft, domainOf(next), was)
	}
	return checkRoot(next)
}

func domainOf(root *metadata.RootType) string {
	d, _ := root.UnrecognizedFields[domainField].(string)
	return d
}

// Discard drops the draft of root or targets. Absent is no error.
func (r *Repo) Discard(role string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if role != metadata.ROOT && role != metadata.TARGETS {
		return fmt.Errorf("discard %s: %w: persons sign root and targets", role, ErrBadDraft)
	}
	if r.root.Signed.Version == 0 || role == metadata.TARGETS && r.targets.Signed.Version == 0 {
		return fmt.Errorf("discard %s: %w: it is the first one; begin a new folder instead", role, ErrBadDraft)
	}
	if err := r.files.Remove(draftName(role)); err != nil {
		return r.settle(fmt.Errorf("discard %s: %w", role, err))
	}
	return r.load()
}
