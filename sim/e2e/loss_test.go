package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/load"
)

const lossRate = 0.3

// TestLostMessages: real agents of which each loses three messages of ten from
// the control plane arrive where they should be.
func TestLostMessages(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	var lost atomic.Int64
	var devices []*device
	for n := range 6 {
		d := s.enroll()
		rng := mrand.New(mrand.NewPCG(1, uint64(n)))
		d.tap.drop = func(wire.Kind) bool {
			if rng.Float64() >= lossRate {
				return false
			}
			lost.Add(1)
			return true
		}
		devices = append(devices, d.run())
	}
	for _, name := range []string{"v1", "v2", "v1", "v2"} {
		for _, d := range devices {
			s.assign(d.id, name)
		}
		for _, d := range devices {
			s.settled(d, name)
			d.serves()
		}
	}
	if lost.Load() == 0 {
		t.Error("nothing was lost")
	}
}

// lossy is a modelled device: it holds what it is sent, when it arrives.
type lossy struct {
	id     string
	signer *trust.Signer
	rng    *mrand.Rand
	held   wire.Held
	n      uint64
	link   *load.Device
}

// TestLostMessagesFleet: a fleet whose lines lose three messages of ten
// converges on two generations in a row.
func TestLostMessagesFleet(t *testing.T) {
	t.Parallel()
	size := 1000
	if testing.Short() {
		size = 100
	}
	s := start(t)
	s.release("v1", version{bias: 1})
	fleet := s.modelled(size)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, d := range fleet {
			if d.link != nil {
				d.link.Close()
			}
		}
	}()
	will, err := wire.Marshal(&wire.Presence{ID: wire.MessageID{Boot: 9}})
	if err != nil {
		t.Fatal(err)
	}
	var lost atomic.Int64
	for _, d := range fleet {
		near, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.plane.Attach(far, d.id); err != nil {
				t.Error(err)
			}
		})
		if d.link, err = load.Dial(t.Context(), near, d.id, will); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := d.run(&lost); err != nil {
				t.Error(err)
			}
		})
	}
	for _, d := range fleet {
		s.assign(d.id, "v1")
	}
	converged := func(counter uint64) func() bool {
		return func() bool {
			status, err := s.op.Fleet.GetFleetStatus(t.Context(), &fleetv1.GetFleetStatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if status.GetStatus().GetConverging() != 0 {
				return false
			}
			all, err := s.op.Devices(t.Context(), "state=online")
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range all {
				if d.GetHeldGeneration().GetCounter() < counter {
					return false
				}
			}
			return len(all) == size
		}
	}
	began := time.Now()
	untilFor(t, 60*time.Second, "the first generation", converged(1))
	first := time.Since(began)
	resp, err := s.op.Fleet.SetParameters(t.Context(), &fleetv1.SetParametersRequest{
		Set: []*fleetv1.Parameter{{Scope: fleetv1.ParameterScope_PARAMETER_SCOPE_FLEET, Key: "note", Value: "again"}}})
	if err != nil || int(resp.GetDevices()) != size {
		t.Fatalf("a new generation for %d devices, %v", resp.GetDevices(), err)
	}
	began = time.Now()
	untilFor(t, 60*time.Second, "the second generation", converged(2))
	t.Logf("%d devices, %d messages lost: converged %s after the last assignment, then in %s", size, lost.Load(), first.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if lost.Load() < int64(size)/4 {
		t.Errorf("%d messages were lost: too few for a test", lost.Load())
	}
}

// modelled enrols n devices without a network.
func (s *server) modelled(n int) []*lossy {
	s.t.Helper()
	reqs, fleet := make([]controlplane.LocalDevice, n), make([]*lossy, n)
	for i := range reqs {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
		if err != nil {
			s.t.Fatal(err)
		}
		signer, err := trust.NewSigner(key)
		if err != nil {
			s.t.Fatal(err)
		}
		reqs[i] = controlplane.LocalDevice{CSR: csr, Name: fmt.Sprintf("lossy-%04d", i), Target: testTarget}
		fleet[i] = &lossy{signer: signer, rng: mrand.New(mrand.NewPCG(7, uint64(i)))}
	}
	ids, err := s.plane.EnrollLocal(s.t.Context(), reqs)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, id := range ids {
		fleet[i].id = id.Device
	}
	return fleet
}

// run says hello and takes what arrives until the connection ends.
func (d *lossy) run(lost *atomic.Int64) error {
	d.n++
	hello, err := wire.Marshal(&wire.Hello{ID: wire.MessageID{Boot: 9, Counter: d.n}, Target: testTarget, Capability: wire.CapabilityVersion})
	if err != nil {
		return err
	}
	if err := d.link.Publish(wire.UpHello, hello, time.Now()); err != nil {
		return err
	}
	var fault error
	_ = d.link.Receive(func(time.Duration) {}, func(kind wire.Kind, msg []byte) { // ends with the connection
		switch {
		case d.rng.Float64() < lossRate:
			lost.Add(1)
		case kind == wire.DownDesired:
			fault = errors.Join(fault, d.take(msg))
		}
	})
	return fault
}

// take holds a desired state and reports it.
func (d *lossy) take(msg []byte) error {
	var m cborMessage
	var w wire.Desired
	if err := errors.Join(wire.Unmarshal(msg[1:], &m), wire.Unmarshal(m.Payload, &w)); err != nil {
		return err
	}
	if w.Device != d.id || w.Generation.Compare(d.held.Generation) < 0 {
		return fmt.Errorf("device %s holds %s and is sent %s of %s", d.id, d.held.Generation, w.Generation, w.Device)
	}
	sum := sha256.Sum256(m.Payload)
	d.held = wire.Held{Generation: w.Generation, Digest: sum[:]}
	d.n++
	b, err := wire.Marshal(&wire.Report{ID: wire.MessageID{Boot: 9, Counter: d.n}, Counter: d.n, Held: d.held, Full: &wire.Reported{Phase: wire.PhaseIdle, Target: testTarget}})
	if err != nil {
		return err
	}
	signed, err := trust.Sign(d.signer, wire.AADReport, b)
	if err != nil {
		return err
	}
	if err := d.link.Publish(wire.UpReport, signed, time.Now()); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
