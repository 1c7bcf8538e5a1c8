package enroll

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// ErrNotEnrolled is returned by Load when there is no identity yet.
var ErrNotEnrolled = errors.New("this device is not enrolled")

// Identity is who a device is. Values of it are never changed: renewal makes a
// new one.
type Identity struct {
	DeviceID string
	Tenant   string
	Name     string
	Serial   string
	Labels   map[string]string // as claimed by the device at enrolment

	Key         crypto.Signer // ECDSA P-256
	Certificate [][]byte      // leaf first, DER
	CA          [][]byte      // DER
	TrustRoot   []byte        // first TUF root metadata
	SealKey     []byte        // X25519 private key, 32 bytes

	ServerURL   string // where it enrolled
	MQTTAddress string // host:port
	BlobURL     string // device port: blobs, TUF metadata, renewal
}

// Leaf returns the parsed device certificate.
func (id *Identity) Leaf() (*x509.Certificate, error) {
	if len(id.Certificate) == 0 {
		return nil, errors.New("identity has no certificate")
	}
	leaf, err := x509.ParseCertificate(id.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse device certificate: %w", err)
	}
	return leaf, nil
}

// TLSCertificate returns what the device shows in TLS.
func (id *Identity) TLSCertificate() *tls.Certificate {
	return &tls.Certificate{Certificate: id.Certificate, PrivateKey: id.Key}
}

// Roots returns the CA certificates of the control plane.
func (id *Identity) Roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, der := range id.CA {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse CA certificate: %w", err)
		}
		pool.AddCert(c)
	}
	return pool, nil
}

// RenewAt returns when the certificate should be renewed: at two thirds of its life.
func (id *Identity) RenewAt() (time.Time, error) {
	leaf, err := id.Leaf()
	if err != nil {
		return time.Time{}, err
	}
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3), nil
}

// check refuses an identity that cannot work, so that a bad answer of a server
// never replaces a good identity.
func (id *Identity) check() error {
	if !wire.ValidDeviceID(id.DeviceID) || id.Tenant == "" {
		return fmt.Errorf("device id %q or tenant %q is not valid", id.DeviceID, id.Tenant)
	}
	leaf, err := id.Leaf()
	if err != nil {
		return err
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(id.Key.Public()) {
		return errors.New("certificate is for another key")
	}
	if len(leaf.URIs) != 1 {
		return errors.New("certificate has no device name")
	}
	if _, tenant, device, err := wire.ParseSpiffeID(leaf.URIs[0].String()); err != nil || device != id.DeviceID || tenant != id.Tenant {
		return fmt.Errorf("certificate is for %s, not for device %s of tenant %s", leaf.URIs[0], id.DeviceID, id.Tenant)
	}
	if len(id.CA) == 0 || len(id.TrustRoot) == 0 || id.MQTTAddress == "" || id.BlobURL == "" {
		return errors.New("CA, trust root or addresses are missing")
	}
	_, err = id.Roots()
	return err
}

// Names of the identity's files.
const (
	keyFile      = "identity/key.pem"
	sealFile     = "identity/seal.pem"
	identityFile = "identity/identity.json"
)

// stored is the form of identityFile: all that came from the server, in one
// file, so that it changes in one step.
type stored struct {
	DeviceID    string            `json:"device_id"`
	Tenant      string            `json:"tenant"`
	Name        string            `json:"name,omitzero"`
	Serial      string            `json:"serial,omitzero"`
	Labels      map[string]string `json:"labels,omitzero"`
	Certificate [][]byte          `json:"certificate"`
	CA          [][]byte          `json:"ca"`
	TrustRoot   []byte            `json:"trust_root"`
	ServerURL   string            `json:"server_url"`
	MQTTAddress string            `json:"mqtt_address"`
	BlobURL     string            `json:"blob_url"`
}

// Load reads the identity from the state folder, or returns ErrNotEnrolled.
func Load(f slot.Files) (*Identity, error) {
	var s stored
	_, err := durable.Read(f, identityFile, &s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotEnrolled
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	key, seal, err := loadKeys(f)
	if err != nil {
		return nil, err
	}
	id := &Identity{
		DeviceID: s.DeviceID, Tenant: s.Tenant, Name: s.Name, Serial: s.Serial, Labels: s.Labels,
		Key: key, Certificate: s.Certificate, CA: s.CA, TrustRoot: s.TrustRoot, SealKey: seal.Bytes(),
		ServerURL: s.ServerURL, MQTTAddress: s.MQTTAddress, BlobURL: s.BlobURL,
	}
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	return id, nil
}

// save writes all but the keys, which are on disk since before the request.
func (id *Identity) save(f slot.Files) error {
	if err := id.check(); err != nil {
		return err
	}
	v := stored{
		DeviceID: id.DeviceID, Tenant: id.Tenant, Name: id.Name, Serial: id.Serial, Labels: id.Labels,
		Certificate: id.Certificate, CA: id.CA, TrustRoot: id.TrustRoot,
		ServerURL: id.ServerURL, MQTTAddress: id.MQTTAddress, BlobURL: id.BlobURL,
	}
	if err := durable.Write(f, identityFile, v); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := durable.WriteCopy(f, identityFile, v); err != nil {
		return fmt.Errorf("write the copy of the identity: %w", err)
	}
	return nil
}

// keys returns the device's keys and makes those that are missing. They are
// durable before they are used: the same key in a repeated request is what
// makes enrolment idempotent.
func keys(f slot.Files) (*ecdsa.PrivateKey, *ecdh.PrivateKey, error) {
	key, seal, err := loadKeys(f)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, seal, err
	}
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, fmt.Errorf("make device key: %w", err)
		}
		if err := writeKey(f, keyFile, key); err != nil {
			return nil, nil, err
		}
	}
	if seal, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make seal key: %w", err)
	}
	if err := writeKey(f, sealFile, seal); err != nil {
		return nil, nil, err
	}
	return key, seal, nil
}

// loadKeys returns the device key also when only the seal key is missing.
func loadKeys(f slot.Files) (*ecdsa.PrivateKey, *ecdh.PrivateKey, error) {
	k, err := readKey(f, keyFile)
	if err != nil {
		return nil, nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil, fmt.Errorf("%s holds no ECDSA P-256 key", keyFile)
	}
	s, err := readKey(f, sealFile)
	if err != nil {
		return key, nil, err
	}
	seal, ok := s.(*ecdh.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s holds no X25519 key", sealFile)
	}
	return key, seal, nil
}

// keyCopy is the second copy of a key: the device is nobody without it.
const keyCopy = ".copy"

// readKey reads a key, or its copy when the disk has damaged it.
func readKey(f slot.Files, name string) (any, error) {
	k, err := parseKey(f, name)
	if err == nil {
		return k, nil
	}
	if k, cerr := parseKey(f, name+keyCopy); cerr == nil {
		return k, nil
	}
	return nil, err
}

func parseKey(f slot.Files, name string) (any, error) {
	raw, err := f.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is not a PEM private key", name)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", name, err)
	}
	return k, nil
}

func writeKey(f slot.Files, name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, n := range []string{name, name + keyCopy} {
		if err := f.WriteFile(n, text); err != nil {
			return fmt.Errorf("write key: %w", err)
		}
	}
	return nil
}
