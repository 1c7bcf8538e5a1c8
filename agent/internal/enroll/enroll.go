// Package enroll brings the device into the fleet and keeps its certificate
// fresh. It owns the identity files, the claim text and the calls to the
// enrolment service. Keys are durable before they are used, so a lost answer
// costs nothing: the same key asks again and gets the same device. Only the
// root of the agent module imports it.
package enroll

import (
	"context"
	"crypto"
	"crypto/ecdh"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota/slot"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
)

// Errors of enrolment.
var (
	// ErrBadClaim is returned for text that is not a claim.
	ErrBadClaim = errors.New("not a claim")
	// ErrRefused is returned when the server does not take the claim: used up,
	// expired, for another serial. Asking again is useless.
	ErrRefused = errors.New("the control plane refuses this claim")
)

// Claim is what `skein token create` prints.
type Claim struct {
	Secret string // base64url; the server keeps only its hash
	CAHash [sha256.Size]byte
}

// ParseClaim reads skein1.SECRET.CAHASH.
func ParseClaim(text string) (Claim, error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[0] != "skein1" {
		return Claim{}, fmt.Errorf("%w: want skein1.SECRET.CAHASH as printed by skein token create", ErrBadClaim)
	}
	secret, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || len(secret) != 32 {
		return Claim{}, fmt.Errorf("%w: the second part is not 32 bytes of base64url; was the text cut?", ErrBadClaim)
	}
	hash, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(hash) != sha256.Size {
		return Claim{}, fmt.Errorf("%w: the third part is not 32 bytes of base64url; was the text cut?", ErrBadClaim)
	}
	return Claim{Secret: parts[1], CAHash: [sha256.Size]byte(hash)}, nil
}

// Options say who enrols and where.
type Options struct {
	ServerURL string // device port, for example https://skein.example:8443
	Claim     string
	Name      string
	Serial    string
	Labels    map[string]string
	Target    string
	Hardware  string

	Files slot.Files
	Now   pki.Now
	// Dial opens connections; nil goes straight or through the proxy that the
	// environment names.
	Dial pki.Dial
	// HTTPClient, when set, is used as it is: the caller authenticates the server.
	HTTPClient *http.Client
	// Pending is told each time the server says that approval is awaited,
	// Retrying each time it cannot be reached.
	Pending  func(retryAfter time.Duration)
	Retrying func(cause error, retryAfter time.Duration)
}

const (
	callTimeout = 60 * time.Second
	maxRetry    = 5 * time.Minute
)

// Enroll trades the claim for an identity and stores it. It waits while
// approval is pending and retries while the server cannot be reached, until
// ctx ends. A device that is enrolled already keeps its identity.
func Enroll(ctx context.Context, o Options) (*Identity, error) {
	if id, err := Load(o.Files); err == nil || !errors.Is(err, ErrNotEnrolled) {
		return id, err
	}
	claim, err := ParseClaim(o.Claim)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(o.ServerURL)
	if err != nil || base.Scheme != "https" && o.HTTPClient == nil || base.Host == "" {
		return nil, fmt.Errorf("server address %q: want https://HOST:PORT", o.ServerURL)
	}
	key, seal, err := keys(o.Files)
	if err != nil {
		return nil, err
	}
	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	client := o.HTTPClient
	if client == nil {
		dial := o.Dial
		if dial == nil {
			dial = pki.ProxyDial(nil)
		}
		client = pki.HTTPClient(pki.PinnedConfig(claim.CAHash, base.Hostname(), o.Now), dial)
		defer client.CloseIdleConnections()
	}
	service := enrollv1connect.NewEnrollServiceClient(client, strings.TrimSuffix(o.ServerURL, "/"))
	req := &enrollv1.EnrollRequest{
		Token: claim.Secret, Csr: csr, Serial: o.Serial, Hardware: o.Hardware, ClaimedLabels: o.Labels,
		Target: o.Target, Name: o.Name, SealKey: seal.PublicKey().Bytes(),
	}
	resp, err := o.ask(ctx, service, req)
	if err != nil {
		return nil, err
	}
	id := &Identity{
		DeviceID: resp.GetDeviceId(), Tenant: resp.GetTenant(), Name: o.Name, Serial: o.Serial, Labels: maps.Clone(o.Labels),
		Key: key, Certificate: resp.GetCertificateChain(), CA: resp.GetCa(), TrustRoot: resp.GetTrustRoot(), SealKey: seal.Bytes(),
		ServerURL: o.ServerURL, MQTTAddress: resp.GetMqttAddress(), BlobURL: resp.GetBlobUrl(),
	}
	if err := id.save(o.Files); err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", o.ServerURL, err)
	}
	return id, nil
}

func (o Options) ask(ctx context.Context, service enrollv1connect.EnrollServiceClient, req *enrollv1.EnrollRequest) (*enrollv1.EnrollResponse, error) {
	for attempt := 0; ; attempt++ {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		resp, err := service.Enroll(call, req)
		cancel()
		delay := rand.N(min(time.Second<<min(attempt, 10), maxRetry)) + time.Millisecond // full jitter: many boxes are switched on at once
		switch {
		case err != nil && final(err):
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		case err != nil && ctx.Err() != nil:
			return nil, fmt.Errorf("enrol: %w (last answer: %w)", ctx.Err(), err)
		case err != nil && (errors.Is(err, pki.ErrNoCA) || unknownCA(err)):
			return nil, fmt.Errorf("enrol: the server is not the one that the claim names: %w", err)
		case err == nil && resp.GetState() == enrollv1.EnrollState_ENROLL_STATE_ENROLLED:
			return resp, nil
		case err == nil && resp.GetState() != enrollv1.EnrollState_ENROLL_STATE_PENDING:
			return nil, fmt.Errorf("enrol: the server answers with state %s", resp.GetState())
		case err == nil:
			delay = time.Duration(min(max(resp.GetRetryAfterSeconds(), 1), 3600)) * time.Second
			if o.Pending != nil {
				o.Pending(delay)
			}
		case o.Retrying != nil:
			o.Retrying(err, delay)
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("enrol: %w", ctx.Err())
		}
	}
}

// final reports whether the server has decided.
func final(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodePermissionDenied, connect.CodeUnauthenticated,
		connect.CodeAlreadyExists, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodeUnimplemented,
		connect.CodeResourceExhausted: // the claim is used up
		return true
	}
	return false
}

func unknownCA(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	return authority || name
}

// Renew asks for a new certificate for the same key with the present one,
// stores it and returns the new identity. An answer with which the device could
// not connect at now is refused, and the old identity stays.
func Renew(ctx context.Context, id *Identity, f slot.Files, client *http.Client, now time.Time) (*Identity, error) {
	csr, err := request(id.Key)
	if err != nil {
		return nil, err
	}
	seal, err := ecdh.X25519().NewPrivateKey(id.SealKey)
	if err != nil {
		return nil, fmt.Errorf("read seal key: %w", err)
	}
	service := enrollv1connect.NewEnrollServiceClient(client, strings.TrimSuffix(id.BlobURL, "/"))
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := service.Renew(ctx, &enrollv1.RenewRequest{Csr: csr, SealKey: seal.PublicKey().Bytes()})
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	fresh := *id
	fresh.Certificate = resp.GetCertificateChain()
	if ca := resp.GetCa(); len(ca) > 0 {
		fresh.CA = ca
	}
	if err := fresh.usable(now); err != nil {
		return nil, fmt.Errorf("renew certificate: the answer is refused: %w", err)
	}
	if err := fresh.save(f); err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return &fresh, nil
}

// usable refuses a certificate that has ended, and a CA that does not stand
// behind it: with either the device would be locked out.
func (id *Identity) usable(now time.Time) error {
	leaf, err := id.Leaf()
	if err != nil {
		return err
	}
	if !now.Before(leaf.NotAfter) {
		return fmt.Errorf("the certificate ended at %s already", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	roots, err := id.Roots()
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, der := range id.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parse certificate chain: %w", err)
		}
		between.AddCert(c)
	}
	middle := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2) // the device's clock may be wrong
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: middle, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("the CA does not stand behind the certificate: %w", err)
	}
	return nil
}

// request returns a certificate request for key. The server takes only the
// key from it.
func request(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(crand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}
