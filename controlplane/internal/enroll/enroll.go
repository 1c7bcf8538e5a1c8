// Package enroll lets devices in: claim tokens, device records with an id of
// our own making, certificates and their renewal.
//
// Invariants: a token's secret is stored only hashed and its uses are counted
// in the transaction that makes the device; the same key always is the same
// device, so a lost answer costs nothing; approval is automatic only for tokens
// that say so; what a device claims of itself grants nothing. Package rpc and
// the façade import it.
package enroll

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Why a device is not let in.
var (
	ErrToken   = errors.New("claim token is not valid")
	ErrUsed    = errors.New("claim token is used up")
	ErrExpired = errors.New("claim token is expired")
	ErrSerial  = errors.New("claim token is not for this serial number")
	ErrRevoked = errors.New("device is revoked")
	ErrRequest = errors.New("enrolment request is not valid")
)

// Limits of what a device says of itself.
const (
	maxText    = 255
	maxLabels  = 32
	sealKeyLen = 32
)

// PendingRetry is how long a device waits before it asks again for approval.
const PendingRetry = 15 * time.Second

// Fleet takes records that were made here.
type Fleet interface {
	Enrolled(d store.Device, certNotAfter time.Time) error
	Renewed(ctx context.Context, tenant, device string, sealKey []byte, certNotAfter time.Time) error
	Noticed(ctx context.Context, tenant, device, kind, message, attack string) error
}

// Desk lets devices in.
type Desk struct {
	DB     *store.DB
	CA     *pki.Authority
	Fleet  Fleet
	Logger *slog.Logger
	Now    func() time.Time
}

// Request is what a device asks with.
type Request struct {
	Token    string // claim text, or its secret part alone
	CSR      []byte
	Serial   string
	Hardware string
	Labels   map[string]string
	Target   string
	Name     string
	SealKey  []byte
}

// Result is what it gets: Issued is nil while approval is awaited.
type Result struct {
	Device store.Device
	Issued *pki.Issued
}

// claimPrefix starts a claim text: skein1.SECRET.CAHASH.
const claimPrefix = "skein1."

// Claim is the text of a token for people: the secret and the hash of the CA's
// key, by which a device knows the server before it trusts it.
func (k *Desk) Claim(secret []byte) string {
	hash := k.CA.SPKIHash()
	enc := base64.RawURLEncoding
	return claimPrefix + enc.EncodeToString(secret) + "." + enc.EncodeToString(hash[:])
}

// tokenHash is what is stored of a token.
func tokenHash(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	if rest, ok := strings.CutPrefix(text, claimPrefix); ok {
		text, _, _ = strings.Cut(rest, ".")
	}
	secret, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(secret) != 32 {
		return nil, fmt.Errorf("%w: want the text that was printed when it was made", ErrToken)
	}
	sum := sha256.Sum256(secret)
	return sum[:], nil
}

func (r *Request) check() error {
	for _, f := range []struct{ name, text string }{{"serial", r.Serial}, {"hardware", r.Hardware}, {"target", r.Target}, {"name", r.Name}} {
		if len(f.text) > maxText {
			return fmt.Errorf("%w: %s is %d bytes, limit %d", ErrRequest, f.name, len(f.text), maxText)
		}
	}
	if len(r.Labels) > maxLabels {
		return fmt.Errorf("%w: %d labels, limit %d", ErrRequest, len(r.Labels), maxLabels)
	}
	if err := fleet.CheckLabels(r.Labels); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := checkSealKey(r.SealKey); err != nil {
		return err
	}
	if r.Target != "" {
		if _, err := ota.ParseTarget(r.Target); err != nil {
			return fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	return nil
}

// checkSealKey tries a seal key, if there is one: not every 32 bytes are a key
// that something can be sealed to, and every later desired state would fail.
func checkSealKey(key []byte) error {
	if len(key) == 0 {
		return nil
	}
	if len(key) != sealKeyLen {
		return fmt.Errorf("%w: seal key is %d bytes, want an X25519 key of %d", ErrRequest, len(key), sealKeyLen)
	}
	if _, err := trust.Seal(key, "", nil); err != nil {
		return fmt.Errorf("%w: seal key: %w", ErrRequest, err)
	}
	return nil
}

// Enroll trades a token and a certificate request for a certificate.
func (k *Desk) Enroll(ctx context.Context, r Request) (Result, error) {
	if err := r.check(); err != nil {
		return Result{}, err
	}
	hash, err := tokenHash(r.Token)
	if err != nil {
		return Result{}, err
	}
	pub, spki, err := pki.RequestKey(r.CSR)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	keyHash := sha256.Sum256(spki)
	var res Result
	var tok store.Token
	err = k.DB.Update(ctx, func(tx *store.Tx) error {
		tok, err = tx.TokenByHash(ctx, hash)
		if errors.Is(err, store.ErrNotFound) {
			return ErrToken
		}
		if err != nil {
			return err
		}
		d, err := tx.DeviceByKey(ctx, tok.Tenant, keyHash[:])
		switch {
		case errors.Is(err, store.ErrNotFound):
			d, err = k.admit(ctx, tx, tok, r, spki, keyHash[:])
		case err == nil && d.Token != tok.ID:
			err = fmt.Errorf("%w: this key enrolled with another token", ErrToken)
		}
		if err != nil {
			return err
		}
		res.Device = d
		switch d.State {
		case store.DeviceRevoked:
			return fmt.Errorf("%w: %s", ErrRevoked, d.ID)
		case store.DevicePending:
			return nil
		}
		is, err := k.CA.IssueDevice(pub, d.Tenant, d.ID, k.Now())
		if err != nil {
			return err
		}
		res.Issued = &is
		return tx.AddCertificate(ctx, store.Certificate{Tenant: d.Tenant, Serial: is.Serial, Device: d.ID, NotBefore: is.NotBefore, NotAfter: is.NotAfter, DER: is.Chain[0]})
	})
	if err != nil {
		k.refused(ctx, tok, r, err)
		return Result{}, err
	}
	var notAfter time.Time
	if res.Issued != nil {
		notAfter = res.Issued.NotAfter
	}
	return res, k.Fleet.Enrolled(res.Device, notAfter)
}

// admit makes the record of a new device and counts the token's use.
func (k *Desk) admit(ctx context.Context, tx *store.Tx, tok store.Token, r Request, spki, keyHash []byte) (store.Device, error) {
	now := k.Now()
	switch {
	case tok.Revoked:
		return store.Device{}, fmt.Errorf("%w: it was revoked", ErrToken)
	case now.After(tok.Expires):
		return store.Device{}, fmt.Errorf("%w since %s: ask for a new one", ErrExpired, tok.Expires.Format(time.RFC3339))
	case len(tok.Serials) > 0 && !slices.Contains(tok.Serials, r.Serial):
		return store.Device{}, fmt.Errorf("%w: %q", ErrSerial, r.Serial)
	}
	if err := tx.UseToken(ctx, tok.Tenant, tok.ID); errors.Is(err, store.ErrConflict) {
		return store.Device{}, fmt.Errorf("%w: %d of %d uses: ask for a new one", ErrUsed, tok.Used, tok.Uses)
	} else if err != nil {
		return store.Device{}, err
	}
	d, err := k.record(tok, r, spki, keyHash)
	if err != nil {
		return store.Device{}, err
	}
	if err := tx.PutDevice(ctx, d); err != nil {
		return store.Device{}, err
	}
	return d, tx.AddAudit(ctx, k.entry(tok, d.ID, "allowed", fmt.Sprintf(`{"name":%q,"serial":%q,"state":%q}`, d.Name, d.Serial, d.State), ""))
}

// record is a new device record with an id of our own making.
func (k *Desk) record(tok store.Token, r Request, spki, keyHash []byte) (store.Device, error) {
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return store.Device{}, fmt.Errorf("make device id: %w", err)
	}
	d := store.Device{Tenant: tok.Tenant, ID: wire.FormatDeviceID(raw), Name: r.Name, Serial: r.Serial, Hardware: r.Hardware,
		Labels: maps.Clone(r.Labels), Target: r.Target, State: store.DevicePending, SPKI: spki, SPKIHash: keyHash, SealKey: r.SealKey,
		Token: tok.ID, Enrolled: k.Now()}
	if d.Name == "" {
		d.Name = d.ID[:8]
	}
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	maps.Copy(d.Labels, tok.Labels) // the operator's win over the device's own
	if tok.AutoApprove {
		d.State = store.DeviceActive
	}
	return d, nil
}

func (k *Desk) entry(tok store.Token, subject, decision, after, fault string) store.AuditEntry {
	return store.AuditEntry{Tenant: tok.Tenant, Time: k.Now(), Actor: "token:" + tok.ID, Action: "skein.enroll.v1.EnrollService/Enroll",
		Subject: subject, Decision: decision, Rule: "claim token", After: after, Error: fault}
}

// refused leaves a trace of a token that was tried and did not let in.
func (k *Desk) refused(ctx context.Context, tok store.Token, r Request, cause error) {
	k.Logger.Warn("enrolment refused", "serial", r.Serial, "token", tok.ID, "error", cause)
	if tok.ID == "" { // an unknown token belongs to no tenant
		return
	}
	err := k.DB.Update(ctx, func(tx *store.Tx) error {
		return tx.AddAudit(ctx, k.entry(tok, "serial:"+r.Serial, "denied", "", cause.Error()))
	})
	if err != nil {
		k.Logger.Error("write audit entry", "error", err)
	}
}

// Renew issues a new certificate for the calling device. It keeps its key: a
// lost answer then costs nothing, and a stolen certificate cannot be turned
// into one for another key.
func (k *Desk) Renew(ctx context.Context, peer pki.Peer, csr, sealKey []byte) (pki.Issued, error) {
	pub, spki, err := pki.RequestKey(csr)
	if err != nil {
		return pki.Issued{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := checkSealKey(sealKey); err != nil {
		return pki.Issued{}, err
	}
	if !bytes.Equal(spki, peer.Leaf.RawSubjectPublicKeyInfo) {
		return pki.Issued{}, fmt.Errorf("%w: renewal keeps the key of the certificate; enrol again to change it", ErrRequest)
	}
	var is pki.Issued
	err = k.DB.Update(ctx, func(tx *store.Tx) error {
		d, err := tx.Device(ctx, peer.Tenant, peer.Device)
		if err != nil {
			return err
		}
		if d.State != store.DeviceActive || !bytes.Equal(d.SPKI, spki) {
			return fmt.Errorf("%w: %s", ErrRevoked, d.ID)
		}
		if len(sealKey) > 0 {
			if err := tx.SetSealKey(ctx, d.Tenant, d.ID, sealKey); err != nil {
				return err
			}
		}
		if is, err = k.CA.IssueDevice(pub, d.Tenant, d.ID, k.Now()); err != nil {
			return err
		}
		if err := tx.AddCertificate(ctx, store.Certificate{Tenant: d.Tenant, Serial: is.Serial, Device: d.ID, NotBefore: is.NotBefore, NotAfter: is.NotAfter, DER: is.Chain[0]}); err != nil {
			return err
		}
		return tx.AddAudit(ctx, store.AuditEntry{Tenant: d.Tenant, Time: k.Now(), Actor: "device:" + d.ID, Action: "skein.enroll.v1.EnrollService/Renew",
			Subject: d.ID, Decision: "allowed", Rule: "device certificate", After: fmt.Sprintf(`{"serial":%q,"expired_before":%v}`, is.Serial, peer.Expired)})
	})
	if err != nil {
		return pki.Issued{}, err
	}
	return is, k.Fleet.Renewed(ctx, peer.Tenant, peer.Device, sealKey, is.NotAfter)
}

// localBatch bounds one transaction of EnrollLocal.
const localBatch = 500

// EnrollLocal makes devices without a token, for a process that owns both sides.
func (k *Desk) EnrollLocal(ctx context.Context, tenant string, reqs []Request) ([]Result, error) {
	out := make([]Result, 0, len(reqs))
	for chunk := range slices.Chunk(reqs, localBatch) {
		start := len(out)
		err := k.DB.Update(ctx, func(tx *store.Tx) error {
			for _, r := range chunk {
				res, err := k.local(ctx, tx, tenant, r)
				if err != nil {
					return err
				}
				out = append(out, res)
			}
			return tx.AddAudit(ctx, store.AuditEntry{Tenant: tenant, Time: k.Now(), Actor: "system:local", Action: "enroll", Subject: fmt.Sprintf("%d devices", len(chunk)),
				Decision: "allowed", Rule: "same process"})
		})
		if err != nil {
			return nil, err
		}
		for _, r := range out[start:] {
			if err := k.Fleet.Enrolled(r.Device, r.Issued.NotAfter); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (k *Desk) local(ctx context.Context, tx *store.Tx, tenant string, r Request) (Result, error) {
	if err := r.check(); err != nil {
		return Result{}, err
	}
	pub, spki, err := pki.RequestKey(r.CSR)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	keyHash := sha256.Sum256(spki)
	d, err := k.record(store.Token{Tenant: tenant, AutoApprove: true}, r, spki, keyHash[:])
	if err != nil {
		return Result{}, err
	}
	is, err := k.CA.IssueDevice(pub, tenant, d.ID, k.Now())
	if err != nil {
		return Result{}, err
	}
	if err := tx.PutDevice(ctx, d); err != nil {
		return Result{}, err
	}
	return Result{d, &is}, tx.AddCertificate(ctx, store.Certificate{Tenant: tenant, Serial: is.Serial, Device: d.ID, NotBefore: is.NotBefore, NotAfter: is.NotAfter, DER: is.Chain[0]})
}
