// Package wire is the device link: MQTT topics and the CBOR messages that
// travel on them. Payloads are deterministic CBOR (RFC 8949 section 4.2.1)
// with integer keys; skein.cddl beside this file is the schema and testdata
// holds golden vectors. Decoding is strict about types, duplicate keys, depth
// and size, and ignores unknown keys, so that an older side can read a newer
// one. It owns fxamacker/cbor; agent, controlplane, ota and sim import it.
package wire

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// CapabilityVersion is what this side of the link can do. History:
//
//	1 (2026-11-24): first version.
//	2 (2026-11-24): blobs and trust metadata by up/get and down/chunk; policies
//	in desired states are kept to; releases may carry an agent and an operating
//	system, reports say how both stand; peers of a site serve blobs.
//	3 (2026-11-24): power modes and longest holds in policies; power, holds and
//	crashes are told; engines are built; releases may hold a workload.
const CapabilityVersion = 3

// Limits of a message; a larger one is refused by both sides and by the broker.
const (
	MaxMessage  = 256 << 10 // bytes of one payload
	maxElements = 1 << 16
	maxDepth    = 16
)

// ErrMalformed is returned for payloads that are not what the schema says.
var ErrMalformed = errors.New("malformed message")

// Codec modes are values without state; building them can fail only on wrong
// options, which the tests of this package exclude.
var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsAllowed,
		MaxNestedLevels:  maxDepth,
		MaxArrayElements: maxElements,
		MaxMapPairs:      maxElements,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal returns the deterministic encoding of v.
func Marshal(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return b, nil
}

// Unmarshal decodes b into v. It returns ErrMalformed for anything over
// MaxMessage, trailing bytes, duplicate keys, wrong types, null or invalid UTF-8.
func Unmarshal(b []byte, v any) error {
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrMalformed, len(b), MaxMessage)
	}
	if len(b) > 0 && b[0] >= 0xf6 && b[0] <= 0xf7 { // null and undefined would leave v as it was
		return fmt.Errorf("%w: %T is null", ErrMalformed, v)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %T: %w", ErrMalformed, v, err)
	}
	return nil
}

// UnmarshalCanonical is Unmarshal for bytes whose digest matters: it also
// refuses an encoding that is not the deterministic one, which includes
// unknown keys.
func UnmarshalCanonical(b []byte, v any) error {
	if err := Unmarshal(b, v); err != nil {
		return err
	}
	again, err := Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return fmt.Errorf("%w: %T is not in its deterministic encoding", ErrMalformed, v)
	}
	return nil
}
