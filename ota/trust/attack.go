package trust

import "errors"

// The classes of what is refused, as they stand in reports.
const (
	ClassReplay       = "replay"                      // older desired state than the one held
	ClassExpired      = "expired"                     // desired state past its expiry
	ClassWrongDevice  = "wrong-device"                // meant for another device or tenant
	ClassRollback     = "rollback"                    // older metadata or older release
	ClassDisagreement = "director-image-disagreement" // director and image repository differ
	ClassFastForward  = "fast-forward"                // older than versions that were run up
	ClassFreeze       = "freeze"                      // metadata past its expiry
	ClassMixAndMatch  = "mix-and-match"               // metadata files of different times
	ClassArbitrary    = "arbitrary-signature"         // not signed by enough trusted keys
	ClassWrongHash    = "wrong-hash"                  // length or hash is not the signed one
	ClassEndless      = "endless-data"                // longer than signed or allowed
	ClassMalformed    = "malformed"                   // not metadata of the expected kind
	ClassRootWalk     = "endless-root-rotation"       // more root rotations than allowed at once

	// ClassUnauthorised is of what an auto role lists and its policy does not allow.
	ClassUnauthorised = "unauthorised-content"

	// Of what a release is made of.
	ClassSlow          = "slow-retrieval"     // bytes came too slowly to be of use
	ClassWithheld      = "withheld"           // what is signed is not given
	ClassWrongHardware = "wrong-hardware"     // nothing in it is for this device
	ClassWrongSoftware = "wrong-software"     // it is another release than the one named
	ClassPath          = "path-traversal"     // a name that is not a plain file name
	ClassTwice         = "duplicate-name"     // one name or key stands for two things
	ClassBomb          = "decompression-bomb" // a patch holds more than it says
	ClassWrongBase     = "wrong-base"         // a patch is for something else
	ClassBadPatch      = "bad-patch"          // a patch that is none, or makes something else
	ClassBadIndex      = "bad-chunk-index"    // an index that does not cover its file
	ClassTampered      = "tampered-files"     // staged files changed after they were checked
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
