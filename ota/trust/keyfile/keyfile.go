// Package keyfile is the private keys that persons keep: an Ed25519 key in
// PKCS #8, encrypted with a passphrase (scrypt and NaCl secretbox, as cosign
// and other TUF tools do) in a PEM block, and its public half beside it.
//
// Invariants: a private key is never written unencrypted, and no file is
// overwritten. The command line alone imports it.
package keyfile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// What callers tell apart.
var (
	// ErrPassphrase is returned for a passphrase that does not open the file,
	// and for one that is too short to make one.
	ErrPassphrase = errors.New("wrong passphrase")
	// ErrFormat is returned for a file of another kind.
	ErrFormat = errors.New("not a key file of skein")
)

// MinPassphrase is the fewest characters of a passphrase.
const MinPassphrase = 8

const (
	privateType = "ENCRYPTED SKEIN PRIVATE KEY"
	publicType  = "PUBLIC KEY"
	nameHeader  = "Name"
	maxFile     = 64 << 10
)

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$`)

// Public is a public key with the name that its owner gave it.
type Public struct {
	Key  ed25519.PublicKey
	Name string
}

// Create makes a key and writes path (mode 0600) and path.pub. Both must not
// exist.
func Create(path, name string, passphrase []byte) (Public, error) {
	if !nameRE.MatchString(name) {
		return Public{}, fmt.Errorf("make key: name %q: want up to 64 letters, digits, spaces and . _ @ -", name)
	}
	if len(passphrase) < MinPassphrase {
		return Public{}, fmt.Errorf("make key: %w: it has %d characters, want %d or more", ErrPassphrase, len(passphrase), MinPassphrase)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Public{}, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Public{}, fmt.Errorf("make key: %w", err)
	}
	sealed, err := encrypted.EncryptWithCustomKDFParameters(der, passphrase, encrypted.OWASP)
	if err != nil {
		return Public{}, fmt.Errorf("make key: %w", err)
	}
	p := Public{Key: pub, Name: name}
	half, err := p.Marshal()
	if err != nil {
		return Public{}, err
	}
	whole := pem.EncodeToMemory(&pem.Block{Type: privateType, Headers: map[string]string{nameHeader: name}, Bytes: sealed})
	if err := writeNew(path, whole, 0o600); err != nil {
		return Public{}, fmt.Errorf("write key: %w", err)
	}
	if err := writeNew(path+".pub", half, 0o644); err != nil {
		return Public{}, errors.Join(fmt.Errorf("write public key: %w", err), os.Remove(path))
	}
	return p, nil
}

func writeNew(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// Marshal returns the PEM of a public key.
func (p Public) Marshal() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	b := &pem.Block{Type: publicType, Bytes: der}
	if p.Name != "" {
		b.Headers = map[string]string{nameHeader: p.Name}
	}
	return pem.EncodeToMemory(b), nil
}

// Open reads a private key file.
func Open(path string, passphrase []byte) (ed25519.PrivateKey, error) {
	block, err := read(path, privateType)
	if err != nil {
		return nil, err
	}
	der, err := encrypted.Decrypt(block.Bytes, passphrase)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", path, ErrPassphrase)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w: %w", path, ErrFormat, err)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("open key %s: %w: want an Ed25519 key, not %T", path, ErrFormat, key)
	}
	return ed, nil
}

// ReadPublic reads a public key file.
func ReadPublic(path string) (Public, error) {
	block, err := read(path, publicType)
	if err != nil {
		return Public{}, err
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Public{}, fmt.Errorf("read key %s: %w: %w", path, ErrFormat, err)
	}
	ed, ok := key.(ed25519.PublicKey)
	if !ok {
		return Public{}, fmt.Errorf("read key %s: %w: want an Ed25519 key, not %T", path, ErrFormat, key)
	}
	name := block.Headers[nameHeader]
	if name != "" && !nameRE.MatchString(name) {
		return Public{}, fmt.Errorf("read key %s: %w: name %.80q", path, ErrFormat, name)
	}
	return Public{Key: ed, Name: name}, nil
}

func read(path, kind string) (*pem.Block, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("read key %s: %w: %d bytes", path, ErrFormat, info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, rest := pem.Decode(b)
	switch {
	case block == nil || len(bytes.TrimSpace(rest)) != 0:
		return nil, fmt.Errorf("read key %s: %w: want one PEM block", path, ErrFormat)
	case block.Type == privateType && kind == publicType:
		return nil, fmt.Errorf("read key %s: %w: this is the private half; give the .pub file beside it", path, ErrFormat)
	case block.Type != kind:
		return nil, fmt.Errorf("read key %s: %w: it holds a %.60q, want %s", path, ErrFormat, block.Type, kind)
	}
	return block, nil
}
