package trust

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
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

// DirectorSigner returns the signer for desired states and commands: the key
// of director.json that is here.
func (r *Repo) DirectorSigner() (*Signer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := targetInfo(r.targets, DirectorTarget)
	if err != nil {
		return nil, err
	}
	for _, der := range info.Custom.Keys {
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("director key: %w", err)
		}
		id, err := tufKeyID(pub)
		if err != nil {
			return nil, fmt.Errorf("director key: %w", err)
		}
		if key, ok := r.keys[id]; ok {
			return NewSigner(key)
		}
	}
	return nil, fmt.Errorf("director: %w", ErrNoKey)
}

// putDirector lists keys as the director's.
func (r *Repo) putDirector(keys ...ed25519.PrivateKey) error {
	pubs := make([]ed25519.PublicKey, len(keys))
	for i, k := range keys {
		pub, ok := k.Public().(ed25519.PublicKey)
		if !ok {
			return ErrKey
		}
		pubs[i] = pub
	}
	return putDirector(&r.targets.Signed, pubs...)
}

// Summary says what InitDev made.
type Summary struct {
	Dir        string
	Domain     string
	RootDigest ota.Digest
	Keys       []string // files of private keys below Dir
	Expires    time.Time
}

// InitDev makes a repository in dir for development: all keys in one folder,
// each needed once. It refuses a folder that has a repository (fs.ErrExist).
func InitDev(dir, domain string, now time.Time) (*Summary, error) {
	f, err := slot.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := initDev(f, domain, now)
	if err != nil {
		return nil, fmt.Errorf("make trust repository in %s: %w", dir, err)
	}
	s.Dir = dir
	return s, nil
}

func initDev(f slot.Files, domain string, now time.Time) (*Summary, error) {
	if _, err := f.ReadFile(timestampName); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%w: there is one already; move it away if you mean to start over, every device must then enrol anew", fs.ErrExist)
		}
		return nil, err
	}
	r := unborn(f)
	r.root.Signed.ConsistentSnapshot = true
	r.root.Signed.UnrecognizedFields = map[string]any{domainField: domain}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		key, err := r.keys.generate(f, role)
		if err != nil {
			return nil, err
		}
		if err := addKey(&r.root.Signed, key, role); err != nil {
			return nil, err
		}
	}
	director, err := r.keys.generate(f, "director")
	if err != nil {
		return nil, err
	}
	if err := r.putDirector(director); err != nil {
		return nil, err
	}
	if err := r.signRoot(now, nil); err != nil {
		return nil, err
	}
	if err := r.signTargets(now); err != nil {
		return nil, err
	}
	s := &Summary{Domain: domain, RootDigest: ota.DigestOf(r.rootBytes), Expires: r.root.Signed.Expires}
	files, err := f.ReadDir(keyDir)
	for _, e := range files {
		s.Keys = append(s.Keys, keyDir+"/"+e.Name())
	}
	return s, err
}

func addKey(root *metadata.RootType, key ed25519.PrivateKey, role string) error {
	k, err := metadata.KeyFromPublicKey(key.Public())
	if err != nil {
		return err
	}
	return root.AddKey(k, role)
}

// Rotate replaces the key of a role: root, targets, snapshot, timestamp or
// "director". Devices follow at their next refresh; what the old key signed is
// refused from then on.
func (r *Repo) Rotate(ctx context.Context, role string, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("rotate %s key: %w", role, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.rotate(role, now); err != nil {
		return r.settle(fmt.Errorf("rotate %s key: %w", role, err))
	}
	return nil
}

func (r *Repo) rotate(role string, now time.Time) error {
	if role == "director" {
		key, err := r.keys.generate(r.files, role)
		if err != nil {
			return err
		}
		if err := r.putDirector(key); err != nil {
			return err
		}
		return r.signTargets(now)
	}
	if !slices.Contains(metadata.TOP_LEVEL_ROLE_NAMES[:], role) {
		return fmt.Errorf("no such role; want %s or director", strings.Join(metadata.TOP_LEVEL_ROLE_NAMES[:], ", "))
	}
	key, err := r.keys.generate(r.files, role)
	if err != nil {
		return err
	}
	err = r.signRoot(now, func(root *metadata.RootType) error {
		for _, id := range slices.Clone(root.Roles[role].KeyIDs) {
			if err := root.RevokeKey(id, role); err != nil {
				return err
			}
		}
		return addKey(root, key, role)
	})
	if err != nil || role == metadata.ROOT {
		return err
	}
	// Everything below the role is signed anew by the keys that count now.
	switch role {
	case metadata.TARGETS:
		return r.signTargets(now)
	case metadata.SNAPSHOT:
		return r.signSnapshot(now)
	}
	return r.signTimestamp(now)
}
