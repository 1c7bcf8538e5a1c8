package trust

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
)

// ErrSealed is returned by Open for what was not sealed to this key for this
// use, or was changed.
var ErrSealed = errors.New("not sealed to this key for this use")

// Secrets are sealed with HPKE (RFC 9180) in base mode: X25519, HKDF-SHA256,
// AES-256-GCM. aad goes into the key schedule as info. Sealed bytes are the
// encapsulated key (32), then the ciphertext.

// NewSealKey makes the key pair of a device, raw X25519 keys of 32 bytes.
func NewSealKey() (priv, pub []byte, err error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make seal key: %w", err)
	}
	return k.Bytes(), k.PublicKey().Bytes(), nil
}

// SealAAD binds a secret parameter to its device and key.
func SealAAD(device, key string) string { return "skein/1/param/" + device + "/" + key }

// Seal encrypts plaintext to pub for the use aad. Two calls give different bytes.
func Seal(pub []byte, aad string, plaintext []byte) ([]byte, error) {
	k, err := ecdh.X25519().NewPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	pk, err := hpke.NewDHKEMPublicKey(k)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	b, err := hpke.Seal(pk, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(aad), plaintext)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return b, nil
}

// Open decrypts what Seal gave for the same aad.
func Open(priv []byte, aad string, sealed []byte) ([]byte, error) {
	k, err := ecdh.X25519().NewPrivateKey(priv)
	if err != nil {
		return nil, fmt.Errorf("open sealed: %w", err)
	}
	sk, err := hpke.NewDHKEMPrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("open sealed: %w", err)
	}
	b, err := hpke.Open(sk, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(aad), sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	return b, nil
}
