package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/proto/wire"
	"github.com/veraison/go-cose"
)

// What Verify returns, wrapped.
var (
	// ErrUnsigned is returned for bytes that are not a COSE_Sign1 message of ours.
	ErrUnsigned = errors.New("not a signed message")
	// ErrSignature is returned when no trusted key signed the message for this use.
	ErrSignature = errors.New("signature does not match any trusted key")
	// ErrKey is returned for keys other than Ed25519 and ECDSA P-256.
	ErrKey = errors.New("want an Ed25519 or ECDSA P-256 key")
)

// Signer signs messages of the device link.
type Signer struct {
	kid  []byte
	pub  crypto.PublicKey
	alg  cose.Algorithm
	cose cose.Signer
}

// NewSigner returns a signer for an Ed25519 or ECDSA P-256 key, which may be
// in a TPM.
func NewSigner(key crypto.Signer) (*Signer, error) {
	alg, err := algorithm(key.Public())
	if err != nil {
		return nil, err
	}
	s, err := cose.NewSigner(alg, key)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	kid, err := KeyID(key.Public())
	if err != nil {
		return nil, err
	}
	return &Signer{kid: kid, pub: key.Public(), alg: alg, cose: s}, nil
}

// KeyID returns the first 8 bytes of the sha256 of the key's SPKI.
func (s *Signer) KeyID() []byte { return bytes.Clone(s.kid) }

// Public returns the public key.
func (s *Signer) Public() crypto.PublicKey { return s.pub }

// KeyID names a public key: the first 8 bytes of the sha256 of its SPKI.
func KeyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	sum := sha256.Sum256(der)
	return sum[:8], nil
}

func algorithm(pub crypto.PublicKey) (cose.Algorithm, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return cose.AlgorithmEdDSA, nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return cose.AlgorithmES256, nil
		}
	}
	return 0, fmt.Errorf("%w, not %T", ErrKey, pub)
}

// Sign returns payload as a COSE_Sign1 message. aad binds it to its use: the
// wire.AAD constants.
func Sign(s *Signer, aad string, payload []byte) ([]byte, error) {
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(s.alg)
	m.Headers.Protected[cose.HeaderLabelKeyID] = s.kid
	m.Payload = payload
	if payload == nil {
		m.Payload = []byte{}
	}
	if err := m.Sign(rand.Reader, []byte(aad), s.cose); err != nil {
		return nil, fmt.Errorf("sign %s: %w", aad, err)
	}
	b, err := m.MarshalCBOR()
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", aad, err)
	}
	return b, nil
}

// Verify returns the payload of msg if one of keys signed it for aad. Nothing
// but the algorithm and the key id may stand in the headers, both protected,
// so that nothing unsigned travels along.
func Verify(keys []crypto.PublicKey, aad string, msg []byte) (payload []byte, err error) {
	if len(msg) > wire.MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrUnsigned, len(msg), wire.MaxMessage)
	}
	var m cose.Sign1Message
	if err := m.UnmarshalCBOR(msg); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsigned, err)
	}
	alg, err := m.Headers.Protected.Algorithm()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsigned, err)
	}
	kid, ok := m.Headers.Protected[cose.HeaderLabelKeyID].([]byte)
	if !ok || len(m.Headers.Protected) != 2 || len(m.Headers.Unprotected) != 0 || m.Payload == nil {
		return nil, fmt.Errorf("%w: want algorithm and key id as the only headers, both protected", ErrUnsigned)
	}
	for _, key := range keys {
		want, err := algorithm(key)
		if err != nil {
			return nil, err
		}
		id, err := KeyID(key)
		if err != nil {
			return nil, err
		}
		if want != alg || !bytes.Equal(id, kid) {
			continue
		}
		v, err := cose.NewVerifier(alg, key)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
		if m.Verify([]byte(aad), v) == nil {
			return m.Payload, nil
		}
	}
	return nil, fmt.Errorf("%w: %s, key id %x", ErrSignature, aad, kid)
}
