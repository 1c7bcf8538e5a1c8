package trust

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Names of what lets releases be made with no hand.
const (
	autoPrefix   = "auto/"     // roles: auto/{model}
	autoKind     = "auto"      // of keys for these roles
	policyPrefix = "policies/" // targets whose custom part is an AutoPolicy
	// AutoVersion begins the version of a release that an auto role lists.
	AutoVersion = "auto-"
	// AutoLife is how long the metadata of an auto role lives.
	AutoLife = SnapshotLife
	// MaxAuto is how many releases an auto role lists.
	MaxAuto = 1000
)

// AutoRole is the delegated role that lists what the closed loop of a model
// releases with no hand.
func AutoRole(model string) string { return autoPrefix + model }

// PolicyTarget is the target, in top-level targets alone, whose custom part
// holds the AutoPolicy of a model.
func PolicyTarget(model string) string { return policyPrefix + model + ".json" }

// autoSet is the metadata of auto roles by role.
type autoSet map[string]*metadata.Metadata[metadata.TargetsType]

func readAutos(raw map[string][]byte) (autoSet, error) {
	out := autoSet{}
	for role, b := range raw {
		m, err := metadata.Targets().FromBytes(b)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", role, err)
		}
		out[role] = m
	}
	return out, nil
}

// delegatedRoles are the auto roles that targets delegate to.
func delegatedRoles(targets *metadata.Metadata[metadata.TargetsType]) []metadata.DelegatedRole {
	if targets == nil || targets.Signed.Delegations == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(targets.Signed.Delegations.Roles), func(r metadata.DelegatedRole) bool {
		return !strings.HasPrefix(r.Name, autoPrefix)
	})
}

func delegated(targets *metadata.Metadata[metadata.TargetsType], role string) (metadata.DelegatedRole, bool) {
	roles := delegatedRoles(targets)
	i := slices.IndexFunc(roles, func(r metadata.DelegatedRole) bool { return r.Name == role })
	if i < 0 {
		return metadata.DelegatedRole{}, false
	}
	return roles[i], true
}

// autoOf returns the delegated role that lists path.
func (r *Repo) autoOf(path string) (string, bool) {
	for _, role := range delegatedRoles(r.targets) {
		m := r.autos[role.Name]
		if m == nil || m.Signed.Targets[path] == nil || r.targets.VerifyDelegate(role.Name, m) != nil {
			continue
		}
		if in, err := role.IsDelegatedPath(path); err == nil && in {
			return role.Name, true
		}
	}
	return "", false
}

// autoDue reports whether the metadata of an auto role must be signed anew.
func autoDue(targets *metadata.Metadata[metadata.TargetsType], autos autoSet, now time.Time) bool {
	return slices.ContainsFunc(delegatedRoles(targets), func(r metadata.DelegatedRole) bool { return roleDue(targets, autos[r.Name], r.Name, now) })
}

func roleDue(targets, m *metadata.Metadata[metadata.TargetsType], role string, now time.Time) bool {
	return m == nil || due(m.Signed.Expires, AutoLife, now) || targets.VerifyDelegate(role, m) != nil
}

// tendAutos signs the metadata of each delegated role that has none yet, expires
// soon or is signed by a key that counts no more. Roles whose keys are not here
// are passed over. It returns the new files and puts them into autos.
func tendAutos(targets *metadata.Metadata[metadata.TargetsType], autos autoSet, ring keyring, now time.Time) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, role := range delegatedRoles(targets) {
		m := autos[role.Name]
		if !roleDue(targets, m, role.Name, now) {
			continue
		}
		if m == nil {
			m = metadata.Targets()
			m.Signed.Version = 0
		}
		b, err := signAuto(targets, m, role.Name, ring, now)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return nil, err
		}
		autos[role.Name], out[role.Name] = m, b
	}
	return out, nil
}

// signAuto makes m the next version of a role.
func signAuto(targets, m *metadata.Metadata[metadata.TargetsType], role string, ring keyring, now time.Time) ([]byte, error) {
	d, ok := delegated(targets, role)
	if !ok {
		return nil, fmt.Errorf("%w: targets delegate nothing to %s", ErrNoKey, role)
	}
	var keys []ed25519.PrivateKey
	for _, id := range d.KeyIDs {
		if k, ok := ring[id]; ok {
			keys = append(keys, k)
		}
	}
	if len(keys) < d.Threshold {
		return nil, fmt.Errorf("%w: %d of the %d keys that role %s needs", ErrNoKey, len(keys), d.Threshold, role)
	}
	m.Signed.Version++
	m.Signed.Expires = expiry(now, AutoLife)
	b, err := sign(m, keys...)
	if err != nil {
		return nil, err
	}
	return b, fits(b)
}

// signAutos is tendAutos for keys in the repository's folder.
func (r *Repo) signAutos(now time.Time) error {
	files, err := tendAutos(r.targets, r.autos, r.keys, now)
	if err != nil {
		return err
	}
	for role, b := range files {
		if err := r.writeAuto(role, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) writeAuto(role string, b []byte) error {
	v := r.autos[role].Signed.Version
	if err := r.files.WriteFile(metaName(v, role), b); err != nil {
		return err
	}
	r.snapshot.Signed.Meta[role+".json"] = metaFile(v, b)
	return nil
}

func publicPEM(pub crypto.PublicKey, name string) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Headers: map[string]string{"Name": name}, Bytes: der}), nil
}

// listAuto lists a release in its role if the policy that persons signed allows
// it, judged by the very bytes of the release, and reports whether it was new.
func listAuto(targets *metadata.Metadata[metadata.TargetsType], autos autoSet, r ListRequest) (changed bool, err error) {
	model := strings.TrimPrefix(r.Role, autoPrefix)
	role, ok := delegated(targets, r.Role)
	if !ok {
		return false, fmt.Errorf("%w: targets delegate nothing to %s", ErrNoKey, r.Role)
	}
	m := autos[r.Role]
	if m == nil || targets.VerifyDelegate(r.Role, m) != nil {
		return false, fmt.Errorf("%w: role %s has no metadata yet", ErrNoKey, r.Role)
	}
	if len(r.Index) > manifest.MaxIndex {
		return false, fmt.Errorf("index of %d bytes, at most %d", len(r.Index), manifest.MaxIndex)
	}
	index, err := manifest.ParseIndex(r.Index)
	if err != nil {
		return false, err
	}
	rel, err := index.Release()
	if err != nil {
		return false, err
	}
	path := "releases/" + rel.Name + "/" + rel.Version
	if in, err := role.IsDelegatedPath(path); err != nil || !in || !strings.HasPrefix(rel.Version, AutoVersion) {
		return false, fmt.Errorf("%s is not in the paths of %s: %s", path, r.Role, strings.Join(role.Paths, ", "))
	}
	if rel.Model != model {
		return false, fmt.Errorf("it is a release of model %q", rel.Model)
	}
	if err := checkAuto(targets, model, path, index, r.Manifests); err != nil {
		return false, err
	}
	info := TargetInfo{Path: path, Length: int64(len(r.Index)), Digest: ota.DigestOf(r.Index), Custom: TargetCustom{Counter: rel.Counter}}
	if have, err := targetInfo(m, path); err == nil {
		if have.Length == info.Length && have.Digest == info.Digest && have.Custom.equal(info.Custom) {
			return false, nil
		}
		return false, fmt.Errorf("%w: %s", ErrTargetExists, path)
	}
	if last := highest(targets, autos, rel.Name); rel.Counter <= last {
		return false, fmt.Errorf("counter %d, %d is listed already", rel.Counter, last)
	}
	if len(m.Signed.Targets) >= MaxAuto {
		return false, fmt.Errorf("%w: %s lists %d", ErrFull, r.Role, MaxAuto)
	}
	return true, putTarget(&m.Signed, path, info.Length, info.Digest, info.Custom)
}

// highest is the highest counter listed of the releases of a name.
func highest(targets *metadata.Metadata[metadata.TargetsType], autos autoSet, name string) uint64 {
	last := uint64(0)
	for m := range sequence(targets, autos) {
		for path := range m.Signed.Targets {
			if !strings.HasPrefix(path, "releases/"+name+"/") {
				continue
			}
			if info, err := targetInfo(m, path); err == nil {
				last = max(last, info.Custom.Counter)
			}
		}
	}
	return last
}

func sequence(targets *metadata.Metadata[metadata.TargetsType], autos autoSet) func(func(*metadata.Metadata[metadata.TargetsType]) bool) {
	return func(yield func(*metadata.Metadata[metadata.TargetsType]) bool) {
		if !yield(targets) {
			return
		}
		for m := range maps.Values(autos) {
			if !yield(m) {
				return
			}
		}
	}
}
