package trust

import "errors"

// The classes of what is refused, as they stand in reports.
const (
	ClassReplay       = "replay"                      // older desired state than the one held
	ClassExpired      = "expired"                     // desired state past its expiry
	ClassWrongDevice  = "wrong-device"                // meant for another device or tenant
	ClassRollback     = "rollback"                    // older metadata or older release
	ClassDisagreement = "director-image-disagreement" // director and image repository differ
	ClassFreeze       = "freeze"                      // metadata past its expiry
	ClassMixAndMatch  = "mix-and-match"               // metadata files of different times
	ClassArbitrary    = "arbitrary-signature"         // not signed by enough trusted keys
	ClassWrongHash    = "wrong-hash"                  // length or hash is not the signed one
	ClassEndless      = "endless-data"                // longer than signed or allowed
	ClassMalformed    = "malformed"                   // not metadata of the expected kind
	ClassRootWalk     = "endless-root-rotation"       // more root rotations than allowed at once
)

// Attack is a refusal. What was refused has changed nothing.
type Attack struct {
	Class string
	Err   error
}

// Error implements error.
func (a *Attack) Error() string { return "refused (" + a.Class + "): " + a.Err.Error() }

// Unwrap returns the reason.
func (a *Attack) Unwrap() error { return a.Err }

// AttackClass returns the class if err is a refusal, or "".
func AttackClass(err error) string {
	if a, ok := errors.AsType[*Attack](err); ok {
		return a.Class
	}
	return ""
}
