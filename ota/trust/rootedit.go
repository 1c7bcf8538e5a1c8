package trust

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// NamedKey is a public key with what persons call it.
type NamedKey struct {
	Key  ed25519.PublicKey
	Name string
}

// InitOptions say what a first root names.
type InitOptions struct {
	Domain string
	// Keys and Thresholds by role: root, targets, snapshot, timestamp. A role
	// without a threshold needs one key. More keys can be added while nothing is
	// signed. Where snapshot and timestamp have no key, keys are made in keys/,
	// as for a control plane that signs them itself.
	Keys       map[string][]NamedKey
	Thresholds map[string]int
	// Director is the key of the director; nil: one is made in keys/.
	Director ed25519.PublicKey
}

// Init begins the repository of a new domain in f: the drafts of the first root
// and targets, which wait for signatures (ErrPending).
func Init(f slot.Files, o InitOptions, now time.Time) error {
	if err := initOffline(f, o, now); err != nil && !errors.Is(err, ErrPending) {
		return fmt.Errorf("make trust repository: %w", err)
	}
	return ErrPending
}

func initOffline(f slot.Files, o InitOptions, now time.Time) error {
	for _, name := range []string{metaDir, draftDir, keyDir} {
		if files, err := f.ReadDir(name); err == nil && len(files) > 0 {
			return fmt.Errorf("%w: the folder has a %s already", fs.ErrExist, name)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if o.Domain == "" {
		return fmt.Errorf("%w: no domain", ErrBadDraft)
	}
	r := unborn(f)
	root := metadata.Root(expiry(now, RootLife))
	root.Signed.UnrecognizedFields = map[string]any{domainField: o.Domain}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		root.Signed.Roles[role].Threshold = max(1, o.Thresholds[role])
		keys := o.Keys[role]
		if len(keys) == 0 && (role == metadata.SNAPSHOT || role == metadata.TIMESTAMP) {
			key, err := r.keys.generate(f, role)
			if err != nil {
				return err
			}
			keys = []NamedKey{{Key: key.Public().(ed25519.PublicKey), Name: "online " + role}}
		}
		for _, k := range keys {
			if err := addNamed(&root.Signed, role, k); err != nil {
				return err
			}
		}
	}
	targets := metadata.Targets(expiry(now, TargetsLife))
	director := o.Director
	if director == nil {
		key, err := r.keys.generate(f, "director")
		if err != nil {
			return err
		}
		director = key.Public().(ed25519.PublicKey)
	}
	if err := putDirector(&targets.Signed, director); err != nil {
		return err
	}
	r.draft.targets = targets
	return r.putRootDraft(root, now)
}

func addNamed(root *metadata.RootType, role string, k NamedKey) error {
	key, err := metadata.KeyFromPublicKey(k.Key)
	if err != nil {
		return err
	}
	id, err := key.ID()
	if err != nil {
		return err
	}
	if slices.Contains(root.Roles[role].KeyIDs, id) {
		return fmt.Errorf("%w: key %s has role %s already", ErrBadDraft, shortID(id), role)
	}
	if err := root.AddKey(key, role); err != nil {
		return err
	}
	if k.Name != "" {
		setName(root, id, k.Name)
	}
	return nil
}

// RootEdit is a change of who may sign for a role.
type RootEdit struct {
	Role      string
	Add       []NamedKey
	Remove    []string // key ids, or unique beginnings of 8 or more digits, or names
	Threshold int      // 0: as it is
}

// EditRoot changes the draft of the next root, and makes it where there is
// none. It waits for the signatures of both roots (ErrPending). No edit at all
// prepares a root that lives longer and changes nothing else.
func (r *Repo) EditRoot(ctx context.Context, edits []RootEdit, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("change root: %w", context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.changeRoot(now, func(root *metadata.RootType) error {
		for _, e := range edits {
			if err := e.apply(root); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return nil
}

func (e RootEdit) apply(root *metadata.RootType) error {
	entry := root.Roles[e.Role]
	if entry == nil || !slices.Contains(metadata.TOP_LEVEL_ROLE_NAMES[:], e.Role) {
		return fmt.Errorf("%w: no role %q: want %s", ErrBadDraft, e.Role, strings.Join(metadata.TOP_LEVEL_ROLE_NAMES[:], ", "))
	}
	for _, k := range e.Add {
		if err := addNamed(root, e.Role, k); err != nil {
			return err
		}
	}
	for _, which := range e.Remove {
		id, err := findKey(root, e.Role, which)
		if err != nil {
			return err
		}
		if err := root.RevokeKey(id, e.Role); err != nil {
			return err
		}
		if root.Keys[id] == nil {
			setName(root, id, "")
		}
	}
	if e.Threshold != 0 {
		entry.Threshold = e.Threshold
	}
	if entry.Threshold < 1 || entry.Threshold > len(entry.KeyIDs) && root.Version > 1 {
		return fmt.Errorf("%w: role %s would need %d of %d keys", ErrBadDraft, e.Role, entry.Threshold, len(entry.KeyIDs))
	}
	return nil
}

func findKey(root *metadata.RootType, role, which string) (string, error) {
	var found []string
	for _, id := range root.Roles[role].KeyIDs {
		if id == which || len(which) >= 8 && strings.HasPrefix(id, which) || nameOf(root, id) == which && which != "" {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("%w: role %s has no key %q: skein trust status lists them", ErrBadDraft, role, which)
	}
	return "", fmt.Errorf("%w: %d keys of role %s are called %q: give the id", ErrBadDraft, len(found), role, which)
}

// NewDirector makes a key of the director in the folder and lists it in place of
// those before, with the signatures that targets need (ErrPending). Until then
// the old one is used.
func (r *Repo) NewDirector(ctx context.Context, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("change director: %w", context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key, err := r.keys.generate(r.files, "director")
	if err != nil {
		return fmt.Errorf("change director: %w", err)
	}
	return r.changeTargets(now, func(m *metadata.TargetsType) error { return putDirector(m, key.Public().(ed25519.PublicKey)) })
}

// KeyOf returns the TUF key id of a public key.
func KeyOf(pub ed25519.PublicKey) (string, error) { return tufKeyID(pub) }

// SignDraft returns the signature of key over the draft of a role, as
// AddSignature takes it: for keys that are never where the repository is.
func (r *Repo) SignDraft(role string, key ed25519.PrivateKey) (digest ota.Digest, keyID string, sig []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	payload, err := r.draftPayload(role)
	if err != nil {
		return "", "", nil, err
	}
	if keyID, err = tufKeyID(key.Public()); err != nil {
		return "", "", nil, err
	}
	sig = ed25519.Sign(key, payload)
	if err := r.checkSignature(role, keyID, payload, sig); err != nil {
		return "", "", nil, err
	}
	return ota.DigestOf(payload), keyID, sig, nil
}

// Signs reports whether a key can sign the draft of a role, and has not yet.
func (r *Repo) Signs(role, keyID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.draftPayload(role); err != nil || r.signers(role)[keyID] == nil {
		return false
	}
	sigs := []metadata.Signature{}
	if role == metadata.ROOT {
		sigs = r.draft.root.Signatures
	} else {
		sigs = r.draft.targets.Signatures
	}
	return !slices.ContainsFunc(sigs, func(s metadata.Signature) bool { return s.KeyID == keyID })
}

// Files returns what a person needs to look at drafts and to sign them
// elsewhere: the roots, current targets, snapshot and timestamp, and the
// drafts. OpenFiles opens a copy of them. Nothing in it is secret.
func (r *Repo) Files() (map[string][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := []string{}
	for v := int64(1); v <= r.root.Signed.Version; v++ {
		names = append(names, metaName(v, metadata.ROOT))
	}
	if r.timestamp.Signed.Version > 0 {
		names = append(names, timestampName)
		for role, v := range r.versions() {
			if role != metadata.ROOT {
				names = append(names, metaName(v, role))
			}
		}
	}
	if r.draft.root != nil {
		names = append(names, draftName(metadata.ROOT))
	}
	if r.draft.targets != nil {
		names = append(names, draftName(metadata.TARGETS))
	}
	out := map[string][]byte{}
	for _, name := range names {
		b, err := r.files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read trust repository: %w", err)
		}
		out[name] = b
	}
	return out, nil
}

// Anchored checks a copy of a repository against a root that a person trusts:
// from there to the newest root, one by one, and the current targets under
// that. What a draft changes is shown against these, so without this check
// whoever gave the copy could hide a change. It returns the newest root.
func (r *Repo) Anchored(root []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tm, err := newTrusted(root, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	newest := root
	for v := tm.Root.Signed.Version + 1; v <= r.root.Signed.Version; v++ {
		b, err := r.files.ReadFile(metaName(v, metadata.ROOT))
		if err != nil {
			return nil, fmt.Errorf("root %d of the copy: %w", v, err)
		}
		if err := guard(func() error { _, err := tm.UpdateRoot(b); return err }); err != nil {
			return nil, fmt.Errorf("root %d of the copy does not follow from the root that you trust: %w", v, refusal("root", err))
		}
		newest = b
	}
	if tm.Root.Signed.Version != r.root.Signed.Version || ota.DigestOf(newest) != ota.DigestOf(r.rootBytes) {
		return nil, fmt.Errorf("the copy's root %d (%s) is not the one that you trust, root %d (%s)", r.root.Signed.Version, ota.DigestOf(r.rootBytes).Short(),
			tm.Root.Signed.Version, ota.DigestOf(newest).Short())
	}
	if r.targets.Signed.Version > 0 && !r.stands(metadata.TARGETS, r.targets) {
		return nil, errors.New("the copy's targets are not signed by the keys in the root that you trust")
	}
	return newest, nil
}

// AnchoredAt is Anchored for somebody who was shown the draft of the first root,
// by the digest of what was signed, before it was published.
func (r *Repo) AnchoredAt(first ota.Digest) ([]byte, error) {
	b, m, err := readMeta(r.files, metaName(1, metadata.ROOT), metadata.Root())
	if err != nil {
		return nil, fmt.Errorf("root 1 of the copy: %w", err)
	}
	payload, err := signedBytes(m)
	if err != nil {
		return nil, err
	}
	if ota.DigestOf(payload) != first {
		return nil, fmt.Errorf("the copy's root 1 is not the one that was shown at the ceremony, %s", first.Short())
	}
	return r.Anchored(b)
}

func putDirector(m *metadata.TargetsType, keys ...ed25519.PublicKey) error {
	var custom TargetCustom
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			return fmt.Errorf("director key: %w", err)
		}
		custom.Keys = append(custom.Keys, der)
	}
	content, err := json.Marshal(custom)
	if err != nil {
		return err
	}
	return putTarget(m, DirectorTarget, int64(len(content)), ota.DigestOf(content), custom)
}
