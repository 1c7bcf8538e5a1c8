// Package trust decides what a device may believe: TUF metadata says which
// artifacts exist, the director's COSE_Sign1 says what one device should run,
// and a device installs only what both agree on. It also signs on behalf of
// the repository and the director, and seals secrets to one device.
//
// Invariants: trusted state only moves forward and is replaced as a whole; a
// refused update changes nothing that is acted upon; what a role may list is
// judged anew against who delegates to it, and what an auto role lists against
// the policy that persons signed; every refusal names its class of attack;
// nothing here reads the clock, time is given. It owns go-cose and go-tuf
// (metadata only, never its downloads). agent, controlplane, sim and the
// programs in ota/cmd import it.
package trust
