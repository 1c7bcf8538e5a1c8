package trust

import (
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// TargetInfo is what the image repository says of an artifact.
type TargetInfo struct {
	Path   string
	Length int64
	Digest ota.Digest
	Custom TargetCustom
	// Role is the delegated role that lists it, "" for the top level.
	Role string
	// Policy bounds what it may be, when an auto role stands on the way to Role.
	Policy *AutoPolicy
}

// TargetCustom is the part of a TUF target that is ours; all of it is signed.
type TargetCustom struct {
	// Counter of a release; it grows with every release of a name.
	Counter uint64 `json:"counter,omitzero"`
	// Keys are public keys in SPKI DER, of director.json.
	Keys [][]byte `json:"keys,omitempty"`
	// Policy is what a person signed for a model, of policies/MODEL.json.
	Policy *AutoPolicy `json:"policy,omitempty"`
}

// CheckDesired decides whether device may act on d, whose signature was
// verified. held is the generation that it holds, highest the highest counter
// that it ever committed of the releases of that name, image what the image
// repository says of d.Release.Target (zero when it does not know it or there
// is no release). A desired state of the generation held passes: it is the one
// held, sent again; the caller compares digests. Every error is an *Attack.
func CheckDesired(d wire.Desired, device, tenant string, held wire.Generation, highest uint64, image TargetInfo, now time.Time) error {
	refuse := func(class, format string, args ...any) error {
		return &Attack{Class: class, Err: fmt.Errorf(format, args...)}
	}
	if d.Device != device || d.Tenant != tenant {
		return refuse(ClassWrongDevice, "desired state is for %s of %s, this is %s of %s", d.Device, d.Tenant, device, tenant)
	}
	if d.Generation.Compare(held) < 0 {
		return refuse(ClassReplay, "generation %s, holding %s already", d.Generation, held)
	}
	if now.Unix() >= d.ExpiresAt {
		return refuse(ClassExpired, "desired state %s expired at %s, now is %s", d.Generation,
			time.Unix(d.ExpiresAt, 0).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	r := d.Release
	if r == nil {
		return nil
	}
	if image.Digest == "" || image.Path != r.Target {
		return refuse(ClassDisagreement, "director names %q, the image repository does not list it", r.Target)
	}
	sum := image.Digest.Sum()
	if sum == nil || string(sum) != string(r.Digest) || image.Length != r.Length || image.Custom.Counter != r.Counter {
		return refuse(ClassDisagreement, "%s: director says %x of %d bytes, counter %d; image repository says %s of %d bytes, counter %d",
			r.Target, r.Digest, r.Length, r.Counter, image.Digest.Hex(), image.Length, image.Custom.Counter)
	}
	if r.Counter < highest && !d.RollbackAllowed {
		return refuse(ClassRollback, "%s has counter %d, %d was committed already and no rollback is allowed", r.Target, r.Counter, highest)
	}
	return nil
}
