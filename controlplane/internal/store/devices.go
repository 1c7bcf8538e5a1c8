package store

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// The states of a device row; online and offline are the twin's.
const (
	DevicePending = "pending"
	DeviceActive  = "active"
	DeviceRevoked = "revoked"
)

// Device is what the control plane knows of a device by its own records.
type Device struct {
	Tenant       string
	ID           string
	Name         string
	Serial       string
	Hardware     string
	Labels       map[string]string
	Capabilities []string
	Target       string
	State        string
	SPKI         []byte // DER of the device's public key
	SPKIHash     []byte // sha256 of SPKI
	SealKey      []byte
	Token        string // id of the token it enrolled with
	Enrolled     time.Time
	RevokedWhy   string
	ReplacedBy   string
}

const deviceColumns = `tenant, id, name, serial, hardware, labels, capabilities, target, state, spki, spki_hash, seal_key, token, enrolled, revoked_why, replaced_by`

func scanDevice(scan func(...any) error) (Device, error) {
	var d Device
	var enrolled int64
	err := scan(&d.Tenant, &d.ID, &d.Name, &d.Serial, &d.Hardware, jsonText[map[string]string]{&d.Labels}, jsonText[[]string]{&d.Capabilities},
		&d.Target, &d.State, &d.SPKI, &d.SPKIHash, &d.SealKey, &d.Token, &enrolled, &d.RevokedWhy, &d.ReplacedBy)
	d.Enrolled = fromMillis(enrolled)
	return d, err
}

// PutDevice inserts a device row, or changes one; keys and token of an existing
// row stay.
func (tx *Tx) PutDevice(ctx context.Context, d Device) error {
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	if d.Capabilities == nil {
		d.Capabilities = []string{}
	}
	labels, err := toJSON(d.Labels)
	if err != nil {
		return wrap(err, "encode labels")
	}
	caps, err := toJSON(d.Capabilities)
	if err != nil {
		return wrap(err, "encode capabilities")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO devices (`+deviceColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name, serial = excluded.serial, hardware = excluded.hardware,
		labels = excluded.labels, capabilities = excluded.capabilities, target = excluded.target, state = excluded.state,
		revoked_why = excluded.revoked_why, replaced_by = excluded.replaced_by`,
		d.Tenant, d.ID, d.Name, d.Serial, d.Hardware, labels, caps, d.Target, d.State, d.SPKI, d.SPKIHash, notNil(d.SealKey), d.Token,
		millis(d.Enrolled), d.RevokedWhy, d.ReplacedBy)
	return wrap(err, "store device "+d.ID)
}

// SetSealKey replaces the key to which a device's secrets are sealed.
func (tx *Tx) SetSealKey(ctx context.Context, tenant, id string, key []byte) error {
	res, err := tx.ExecContext(ctx, `UPDATE devices SET seal_key = ? WHERE tenant = ? AND id = ?`, key, tenant, id)
	return changed(res, err, "device "+id)
}

// notNil gives an empty blob where a column may not be NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Device returns one device, or ErrNotFound.
func (tx *Tx) Device(ctx context.Context, tenant, id string) (Device, error) {
	d, err := scanDevice(tx.QueryRowContext(ctx, `SELECT `+deviceColumns+` FROM devices WHERE tenant = ? AND id = ?`, tenant, id).Scan)
	return d, oneRow(err, "device "+id)
}

// DeviceByKey returns the device that enrolled with a key, or ErrNotFound.
func (tx *Tx) DeviceByKey(ctx context.Context, tenant string, spkiHash []byte) (Device, error) {
	d, err := scanDevice(tx.QueryRowContext(ctx, `SELECT `+deviceColumns+` FROM devices WHERE tenant = ? AND spki_hash = ?`, tenant, spkiHash).Scan)
	return d, oneRow(err, "device of this key")
}

// Devices returns all devices of a tenant, by id.
func (tx *Tx) Devices(ctx context.Context, tenant string) ([]Device, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+deviceColumns+` FROM devices WHERE tenant = ? ORDER BY id`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Device, error) { return scanDevice(r.Scan) })
	return out, wrap(err, "read devices")
}

// Tenants returns the tenants that have devices, credentials or settings.
func (tx *Tx) Tenants(ctx context.Context) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tenant FROM devices UNION SELECT tenant FROM credentials UNION SELECT tenant FROM settings ORDER BY 1`)
	out, err := collect(rows, err, func(r *sql.Rows) (string, error) {
		var t string
		return t, r.Scan(&t)
	})
	return out, wrap(err, "read tenants")
}

// Certificate is a device certificate that was issued.
type Certificate struct {
	Tenant, Serial, Device string
	NotBefore, NotAfter    time.Time
	DER                    []byte
}

// AddCertificate records an issued certificate.
func (tx *Tx) AddCertificate(ctx context.Context, c Certificate) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO certificates (tenant, serial, device, not_before, not_after, der) VALUES (?, ?, ?, ?, ?, ?)`,
		c.Tenant, c.Serial, c.Device, millis(c.NotBefore), millis(c.NotAfter), c.DER)
	return wrap(err, "store certificate of "+c.Device)
}

// LatestCertificate returns the certificate of a device that expires last, or ErrNotFound.
func (tx *Tx) LatestCertificate(ctx context.Context, tenant, device string) (Certificate, error) {
	c := Certificate{Tenant: tenant, Device: device}
	var nb, na int64
	err := tx.QueryRowContext(ctx, `SELECT serial, not_before, not_after, der FROM certificates WHERE tenant = ? AND device = ?
		ORDER BY not_after DESC LIMIT 1`, tenant, device).Scan(&c.Serial, &nb, &na, &c.DER)
	c.NotBefore, c.NotAfter = fromMillis(nb), fromMillis(na)
	return c, oneRow(err, "certificate of "+device)
}

// CertificateExpiries returns for each device when its newest certificate expires.
func (tx *Tx) CertificateExpiries(ctx context.Context, tenant string) (map[string]time.Time, error) {
	rows, err := tx.QueryContext(ctx, `SELECT device, max(not_after) FROM certificates WHERE tenant = ? GROUP BY device`, tenant)
	out := map[string]time.Time{}
	_, err = collect(rows, err, func(r *sql.Rows) (struct{}, error) {
		var id string
		var na int64
		err := r.Scan(&id, &na)
		out[id] = fromMillis(na)
		return struct{}{}, err
	})
	return out, wrap(err, "read certificates")
}

// IsUnique reports whether err says that a unique value is taken.
func IsUnique(err error) bool {
	return err != nil && strings.Contains(err.Error(), "UNIQUE constraint failed")
}
