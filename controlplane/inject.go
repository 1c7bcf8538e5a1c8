package controlplane

import (
	"context"
	"net"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

// Inject brings a message of a device in without a connection, as if the
// broker had received it: for modelled devices.
func (s *Server) Inject(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	v, err := s.fleet.Any(device)
	if err != nil {
		return err
	}
	return link{s.fleet, s.streams, s.builds}.Message(ctx, v.Tenant, device, kind, payload)
}

// Attach serves MQTT to a device over a connection in memory, without TLS. It
// blocks until the connection ends.
func (s *Server) Attach(c net.Conn, device string) error {
	v, err := s.fleet.Any(device)
	if err != nil {
		return err
	}
	s.broker.Attach(c, id{Tenant: v.Tenant, Device: device})
	return nil
}

// LocalDevice is a device that this process vouches for.
type LocalDevice struct {
	CSR      []byte // PKCS#10
	Name     string
	Serial   string
	Hardware string
	Target   string
	Labels   map[string]string
	SealKey  []byte
}

// LocalIdentity is what it gets.
type LocalIdentity struct {
	Device, Tenant string
	Chain, CA      [][]byte // DER
	TrustRoot      []byte
	NotAfter       time.Time
}

// EnrollLocal enrols devices without a token, in few transactions: for modelled
// fleets.
func (s *Server) EnrollLocal(ctx context.Context, devices []LocalDevice) ([]LocalIdentity, error) {
	reqs := make([]enroll.Request, len(devices))
	for i, d := range devices {
		reqs[i] = enroll.Request{CSR: d.CSR, Name: d.Name, Serial: d.Serial, Hardware: d.Hardware, Target: d.Target, Labels: d.Labels, SealKey: d.SealKey}
	}
	results, err := s.desk.EnrollLocal(ctx, store.DefaultTenant, reqs)
	if err != nil {
		return nil, err
	}
	out := make([]LocalIdentity, len(results))
	for i, r := range results {
		out[i] = LocalIdentity{Device: r.Device.ID, Tenant: r.Device.Tenant, Chain: r.Issued.Chain, CA: s.ca.CA(), TrustRoot: s.trust.Root(), NotAfter: r.Issued.NotAfter}
	}
	return out, nil
}
