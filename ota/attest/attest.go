// Package attest writes and reads what is said about a release: in-toto
// statements with SLSA provenance in signed DSSE envelopes, and a CycloneDX
// bill of materials of its model.
//
// Invariants: a statement counts only after a key that the image repository
// lists for it has signed it, and only for the subjects it names by sha256;
// readers are bounded and refuse a key given twice; the same facts give the
// same bytes. It reads no clock and knows no service. controlplane and sim
// import it; the agent does not, for what a device runs is decided by package
// trust alone. The documents are described in FORMAT.md.
package attest

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
)

// Types of documents and of what carries them.
const (
	PayloadType = "application/vnd.in-toto+json"
	// MediaEnvelope is the artifact type of a referrer that holds a signed
	// statement, and the media type of its only layer.
	MediaEnvelope = "application/vnd.dsse.envelope.v1+json"
	// MediaBOM is the same for a bill of materials.
	MediaBOM = "application/vnd.cyclonedx+json"
	// AnnPredicate says on a referrer what kind of statement it holds.
	AnnPredicate = "in-toto.io/predicate-type"
	// AnnBuild says what a provenance is of: one of the build types.
	AnnBuild = "dev.skein.build-type"

	StatementType      = "https://in-toto.io/Statement/v1"
	PredicateSLSA      = "https://slsa.dev/provenance/v1"
	BuildRelease       = "https://github.com/skein-fleet/skein/attest/release/v1"
	BuildModelImport   = "https://github.com/skein-fleet/skein/attest/model-import/v1"
	BuildReleaseImport = "https://github.com/skein-fleet/skein/attest/release-import/v1"
	BuildEngine        = "https://github.com/skein-fleet/skein/attest/engine-build/v1"
)

// MaxDocument bounds one envelope or bill of materials.
const MaxDocument = 4 << 20

// What readers return, wrapped.
var (
	ErrMalformed = errors.New("malformed attestation")
	// ErrSubject is returned when a statement is about something else.
	ErrSubject = errors.New("attestation is about something else")
)

// Signer signs for the control plane: trust.Signer.
type Signer interface {
	KeyID() []byte
	SignDSSE(payloadType string, payload []byte) ([]byte, error)
}

// Envelope is DSSE.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"` // base64
	Signatures  []Signature `json:"signatures"`
}

// Signature of an Envelope. The key id is a hint and nothing more.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"` // base64
}

// Sign returns a statement in a signed envelope.
func Sign(s Signer, st Statement) ([]byte, error) {
	payload, err := encode(st)
	if err != nil {
		return nil, fmt.Errorf("write statement: %w", err)
	}
	sig, err := s.SignDSSE(PayloadType, payload)
	if err != nil {
		return nil, err
	}
	return encode(Envelope{PayloadType: PayloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []Signature{{KeyID: hex.EncodeToString(s.KeyID()), Sig: base64.StdEncoding.EncodeToString(sig)}}})
}

// encode is JSON with the characters of markup as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// Verify returns the statement of an envelope if one of keys signed it and it
// names subject.
func Verify(keys []crypto.PublicKey, raw []byte, subject ota.Digest) (*Statement, error) {
	var e Envelope
	if err := manifest.Decode(raw, MaxDocument, &e); err != nil {
		return nil, fmt.Errorf("%w: envelope: %w", ErrMalformed, err)
	}
	if e.PayloadType != PayloadType {
		return nil, fmt.Errorf("%w: payload type %.80q, want %s", ErrMalformed, e.PayloadType, PayloadType)
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrMalformed, err)
	}
	if len(e.Signatures) == 0 || len(e.Signatures) > 16 {
		return nil, fmt.Errorf("%w: %d signatures, want 1 to 16", ErrMalformed, len(e.Signatures))
	}
	err = nil
	for _, s := range e.Signatures {
		sig, derr := base64.StdEncoding.Strict().DecodeString(s.Sig)
		if derr != nil {
			return nil, fmt.Errorf("%w: signature: %w", ErrMalformed, derr)
		}
		if err = trust.VerifyDSSE(keys, e.PayloadType, payload, sig); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	st, err := ParseStatement(payload)
	if err != nil {
		return nil, err
	}
	if !st.About(subject) {
		return nil, fmt.Errorf("%w: it does not name %s", ErrSubject, subject)
	}
	return st, nil
}
