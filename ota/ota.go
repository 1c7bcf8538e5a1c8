// Package ota is the vocabulary of over-the-air updates: digests, generations,
// targets and the names of the steps that bring a release onto a device. It
// holds values and their text forms only; the packages below it do the work.
// Everything above ota may import it.
package ota

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/skein-fleet/skein/proto/wire"
)

// Digest is the content address of a blob in its OCI text form,
// "sha256:" followed by 64 lower-case hex digits.
type Digest string

// ErrBadDigest is returned for text that is not a sha256 digest.
var ErrBadDigest = errors.New("not a sha256 digest")

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest { return DigestFromSum(sha256.Sum256(b)) }

// DigestFromSum returns the text form of a raw sha256 sum.
func DigestFromSum(sum [sha256.Size]byte) Digest {
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ParseDigest checks s and returns it as a Digest.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*sha256.Size || strings.ToLower(h) != h {
		return "", fmt.Errorf("%w: %q: want sha256: and 64 lower-case hex digits", ErrBadDigest, s)
	}
	if _, err := hex.DecodeString(h); err != nil {
		return "", fmt.Errorf("%w: %q: %v", ErrBadDigest, s, err)
	}
	return Digest(s), nil
}

// Hex returns the 64 hex digits of d.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Sum returns the raw 32 bytes of d, or nil when d is not a valid digest.
func (d Digest) Sum() []byte {
	b, err := hex.DecodeString(d.Hex())
	if err != nil || len(b) != sha256.Size {
		return nil
	}
	return b
}

// Short returns the first 12 hex digits, for people.
func (d Digest) Short() string {
	h := d.Hex()
	return h[:min(12, len(h))]
}

// Generation orders the desired states of one device; see wire.Generation.
type Generation = wire.Generation

// Step names one step of the update journal. The steps run in the order of
// Steps; each is written to the journal before it runs and has an undo.
type Step string

// The steps of an update, in order.
const (
	StepFetch  Step = "fetch"  // blobs of the release arrive in the local store
	StepVerify Step = "verify" // trust, digests, target and compatibility agree
	StepStage  Step = "stage"  // files are laid out and synced
	StepBuild  Step = "build"  // engine built on the device, when the release asks for it
	StepLoad   Step = "load"   // workload loaded beside the one that serves
	StepProve  Step = "prove"  // golden set answered within tolerance on this device
	StepSwitch Step = "switch" // requests go to the new workload
	StepSoak   Step = "soak"   // watched for a while, ready to go back
	StepCommit Step = "commit" // the new release is final, the old one may be collected
)

// Steps lists the steps in the order in which they run.
var Steps = []Step{StepFetch, StepVerify, StepStage, StepBuild, StepLoad, StepProve, StepSwitch, StepSoak, StepCommit}

// FailureClass says why a device did not reach the wanted release.
type FailureClass string

// The failure classes of a rollout; they are counted apart.
const (
	Rejected   FailureClass = "REJECTED"   // incompatible or refused by trust; never retried
	Failed     FailureClass = "FAILED"     // tried and undone
	TimedOut   FailureClass = "TIMED_OUT"  // in progress for longer than allowed
	Silent     FailureClass = "SILENT"     // no word after the switch for longer than allowed
	Superseded FailureClass = "SUPERSEDED" // a newer desired state replaced it
)
