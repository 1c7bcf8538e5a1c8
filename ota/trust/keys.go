package trust

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// ErrNoKey is returned when the private key for a signature is not in the
// repository's folder, as with offline keys.
var ErrNoKey = errors.New("private key is not here")

const keyDir = "keys"

// keyring is the private keys found in keys/, by TUF key id. Which role a key
// has is said by the metadata, not by its file name.
type keyring map[string]ed25519.PrivateKey

func loadKeys(f slot.Files) (keyring, error) {
	ring := keyring{}
	files, err := f.ReadDir(keyDir)
	if errors.Is(err, fs.ErrNotExist) {
		return ring, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load keys: %w", err)
	}
	for _, e := range files {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".pem") {
			continue
		}
		b, err := f.ReadFile(keyDir + "/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("load keys: %w", err)
		}
		key, err := parseKey(b)
		if err != nil {
			return nil, fmt.Errorf("load key %s: %w", e.Name(), err)
		}
		id, err := ring.add(key)
		if err != nil {
			return nil, fmt.Errorf("load key %s: %w", id, err)
		}
	}
	return ring, nil
}

func parseKey(b []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("want one PEM block PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("want an Ed25519 key, not %T", key)
	}
	return ed, nil
}

func (k keyring) add(key ed25519.PrivateKey) (id string, err error) {
	id, err = tufKeyID(key.Public())
	if err == nil {
		k[id] = key
	}
	return id, err
}

func tufKeyID(pub crypto.PublicKey) (string, error) {
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		return "", err
	}
	return key.ID()
}

// generate makes a key, writes it to keys/ROLE-ID.pem (0600, PKCS #8) and
// adds it to the ring. The file is there before anything names the key.
func (k keyring) generate(f slot.Files, role string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", role, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", role, err)
	}
	id, err := k.add(key)
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", role, err)
	}
	name := fmt.Sprintf("%s/%s-%s.pem", keyDir, role, id[:12])
	if err := f.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, fmt.Errorf("write %s key: %w", role, err)
	}
	return key, nil
}

// keyOf returns the key in a file of that kind, ErrNoKey when there is none.
func keyOf(f slot.Files, kind string) (ed25519.PrivateKey, error) {
	files, err := f.ReadDir(keyDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("load keys: %w", err)
	}
	for _, e := range files {
		if !strings.HasPrefix(e.Name(), kind+"-") || !strings.HasSuffix(e.Name(), ".pem") {
			continue
		}
		b, err := f.ReadFile(keyDir + "/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("load key: %w", err)
		}
		return parseKey(b)
	}
	return nil, fmt.Errorf("%w: no %s key", ErrNoKey, kind)
}

// forRole returns the private keys that root names for a role, as many as its
// threshold asks for.
func (k keyring) forRole(root *metadata.Metadata[metadata.RootType], role string) ([]ed25519.PrivateKey, error) {
	r := root.Signed.Roles[role]
	if r == nil {
		return nil, fmt.Errorf("%w: root names no role %s", ErrNoKey, role)
	}
	var keys []ed25519.PrivateKey
	for _, id := range r.KeyIDs {
		if key, ok := k[id]; ok {
			keys = append(keys, key)
		}
	}
	if len(keys) < r.Threshold {
		return nil, fmt.Errorf("%w: %d of the %d keys that role %s needs", ErrNoKey, len(keys), r.Threshold, role)
	}
	return keys, nil
}

// sign replaces the signatures of m and returns its bytes.
func sign[T metadata.Roles](m *metadata.Metadata[T], keys ...ed25519.PrivateKey) ([]byte, error) {
	m.ClearSignatures()
	seen := map[string]bool{}
	for _, key := range keys {
		if seen[string(key)] {
			continue
		}
		seen[string(key)] = true
		s, err := signature.LoadED25519Signer(key)
		if err != nil {
			return nil, fmt.Errorf("sign metadata: %w", err)
		}
		if _, err := m.Sign(s); err != nil {
			return nil, fmt.Errorf("sign metadata: %w", err)
		}
	}
	return m.ToBytes(false)
}
