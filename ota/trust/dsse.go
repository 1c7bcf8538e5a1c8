package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// preAuth is what a DSSE signature covers. It begins with a text, and what a
// COSE signature covers with the byte 0x84, so that no signature of one kind
// can ever be taken for one of the other.
func preAuth(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// SignDSSE returns the signature of a DSSE envelope: Ed25519, or ECDSA in ASN.1.
func (s *Signer) SignDSSE(payloadType string, payload []byte) ([]byte, error) {
	sig, err := s.cose.Sign(rand.Reader, preAuth(payloadType, payload))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", payloadType, err)
	}
	if _, ok := s.pub.(*ecdsa.PublicKey); !ok {
		return sig, nil
	}
	n := len(sig) / 2 // COSE puts both numbers one after the other
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])})
}

// VerifyDSSE returns nil if one of keys signed the payload under its type, or
// ErrSignature.
func VerifyDSSE(keys []crypto.PublicKey, payloadType string, payload, sig []byte) error {
	pae := preAuth(payloadType, payload)
	for _, key := range keys {
		if _, err := algorithm(key); err != nil {
			return err
		}
		switch k := key.(type) {
		case ed25519.PublicKey:
			if ed25519.Verify(k, pae, sig) {
				return nil
			}
		case *ecdsa.PublicKey:
			sum := sha256.Sum256(pae)
			if ecdsa.VerifyASN1(k, sum[:], sig) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: %s", ErrSignature, payloadType)
}
