package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/proto/wire"
)

// ErrPeer is returned for a device that is not the one that is expected.
var ErrPeer = errors.New("not the expected device")

// Device returns who the other side of a connection between devices is.
func Device(cs tls.ConnectionState) (tenant, device string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return "", "", errors.New("it shows no certificate")
	}
	uris := cs.PeerCertificates[0].URIs
	if len(uris) != 1 {
		return "", "", fmt.Errorf("%w: its certificate has %d URI names, want one", ErrPeer, len(uris))
	}
	_, tenant, device, err = wire.ParseSpiffeID(uris[0].String())
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrPeer, err)
	}
	return tenant, device, nil
}

// PeerServer is the configuration of a device that serves others: it shows its
// device certificate and takes those that chain to roots and that accept takes.
func PeerServer(roots Roots, now Now, cert func() *tls.Certificate, accept func(tenant, device string) error) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		ClientAuth:       tls.RequireAnyClientCert, // VerifyConnection verifies, on resumption too
		VerifyConnection: verifyDevice(roots, now, accept),
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert(), nil },
	}
}

// PeerClient is the configuration for connections to a device. Not its host
// name counts, but the device that its certificate names.
func PeerClient(roots Roots, now Now, cert func() *tls.Certificate, accept func(tenant, device string) error) *tls.Config {
	return config("", verifyDevice(roots, now, accept), cert)
}

func verifyDevice(roots Roots, now Now, accept func(tenant, device string) error) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		pool, err := roots()
		if err != nil {
			return err
		}
		// A device has one certificate, made for a client.
		if err := verifyChain(cs.PeerCertificates, pool, "", now, x509.ExtKeyUsageClientAuth); err != nil {
			return err
		}
		tenant, device, err := Device(cs)
		if err != nil {
			return err
		}
		return accept(tenant, device)
	}
}
