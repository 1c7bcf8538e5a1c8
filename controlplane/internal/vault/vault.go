// Package vault encrypts what must rest encrypted in the store, with AES-256-GCM
// under one key in a file that only the control plane can read. It owns that
// key; values are bound to a name, so that one cannot be moved to another place.
// Any package of the control plane may import it.
package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skein-fleet/skein/ota/slot"
)

// ErrSealed is returned by Open for a value that this key or name did not seal.
var ErrSealed = errors.New("value was not sealed by this vault for this name")

const keySize = 32

// Vault seals and opens values.
type Vault struct{ aead cipher.AEAD }

// OpenFile reads the key from a file, making it with mode 0600 when absent.
func OpenFile(path string) (*Vault, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make vault key: %w", err)
		}
		err = writeKey(path, key)
	}
	if err != nil {
		return nil, fmt.Errorf("vault key %s: %w", path, err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("vault key %s: %d bytes, want %d", path, len(key), keySize)
	}
	return New(key)
}

func writeKey(path string, key []byte) error {
	files, err := slot.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(files.WriteFile(filepath.Base(path), key), files.Close())
}

// New returns a vault with a key of 32 bytes.
func New(key []byte) (*Vault, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("vault key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("vault key: %w", err)
	}
	return &Vault{aead}, nil
}

// Seal encrypts value for name.
func (v *Vault) Seal(name string, value []byte) []byte {
	return v.aead.Seal(nil, nil, value, []byte(name))
}

// Open decrypts what Seal made for name.
func (v *Vault) Open(name string, sealed []byte) ([]byte, error) {
	out, err := v.aead.Open(nil, nil, sealed, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrSealed, name)
	}
	return out, nil
}
