package load

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Options of a Fleet of wire-level devices.
type Options struct {
	ServerURL string // device port of skeind
	Claim     string // claim token with enough uses
	Devices   int
	Parallel  int // enrolments and connects under way at a time; 32 when 0
	Target    string
}

// member is one device: who it is and, once connected, its session.
type member struct {
	id     *agent.Identity
	signer *trust.Signer
	boot   uint64
	ids    atomic.Uint64
	report atomic.Uint64
	dev    atomic.Pointer[Device]
}

// Fleet is many wire-level devices.
type Fleet struct {
	o       Options
	members []*member
	config  *tls.Config
	stats   Stats
	readers sync.WaitGroup
	closing atomic.Bool
}

// Stats count what happened. Its fields are safe for concurrent use.
type Stats struct {
	Enrolled, Connected, Published, Acked, Received atomic.Int64
	Failed                                          atomic.Int64 // enrolments, connects and publishes that failed
	Lost                                            atomic.Int64 // sessions that ended before Close

	mu    sync.Mutex // guards what follows
	first error
	acks  []time.Duration
}

// fail keeps the first error and counts all.
func (s *Stats) fail(err error) {
	s.Failed.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = err
	}
}

// FirstError is the first thing that failed, nil when nothing did.
func (s *Stats) FirstError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// TakeAcks returns the times from publish to acknowledgement since the last call.
func (s *Stats) TakeAcks() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	acks := s.acks
	s.acks = nil
	return acks
}

func (s *Stats) acked(d time.Duration) {
	s.Acked.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks = append(s.acks, d)
}

// New returns a fleet of devices that are not enrolled yet.
func New(o Options) *Fleet {
	if o.Parallel == 0 {
		o.Parallel = 32
	}
	if o.Target == "" {
		o.Target = "linux/arm64;sm=8.7;trt=10.3.0"
	}
	return &Fleet{o: o}
}

// Stats are the fleet's counts.
func (f *Fleet) Stats() *Stats { return &f.stats }

// Enroll enrols all devices. The first one authenticates the server by the
// claim, the others by the CA that it was given.
func (f *Fleet) Enroll(ctx context.Context) error {
	f.members = make([]*member, f.o.Devices)
	first, err := f.enroll(ctx, 0, nil)
	if err != nil {
		return err
	}
	f.members[0] = first
	roots := x509.NewCertPool()
	for _, der := range first.id.CA {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read the CA: %w", err)
		}
		roots.AddCert(ca)
	}
	host, _, err := net.SplitHostPort(first.id.MQTTAddress)
	if err != nil {
		return fmt.Errorf("MQTT address: %w", err)
	}
	f.config = &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: f.o.Parallel, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	f.each(ctx, 1, func(ctx context.Context, i int) error {
		m, err := f.enroll(ctx, i, client)
		if err == nil {
			f.members[i] = m
		}
		return err
	})
	return f.complete(ctx, "enrolled", f.stats.Enrolled.Load())
}

func (f *Fleet) complete(ctx context.Context, what string, n int64) error {
	if n == int64(f.o.Devices) {
		return nil
	}
	return fmt.Errorf("%s %d of %d devices: %w", what, n, f.o.Devices, errors.Join(context.Cause(ctx), f.stats.FirstError()))
}

// each runs do for the members from index from on, some at a time.
func (f *Fleet) each(ctx context.Context, from int, do func(context.Context, int) error) {
	work := make(chan int)
	var wg sync.WaitGroup
	for range f.o.Parallel {
		wg.Go(func() {
			for i := range work {
				if err := do(ctx, i); err != nil {
					f.stats.fail(err)
				}
			}
		})
	}
	for i := from; i < f.o.Devices && ctx.Err() == nil; i++ {
		work <- i
	}
	close(work)
	wg.Wait()
}

func (f *Fleet) enroll(ctx context.Context, i int, client *http.Client) (*member, error) {
	id, err := agent.Enroll(ctx, agent.EnrollOptions{
		ServerURL: f.o.ServerURL, Claim: f.o.Claim, Name: fmt.Sprintf("load-%05d", i), Serial: fmt.Sprintf("L%08d", i),
		Target: f.o.Target, Hardware: "wire-level load", Files: slot.NewMem(), HTTPClient: client,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol device %d: %w", i, err)
	}
	signer, err := trust.NewSigner(id.Key)
	if err != nil {
		return nil, err
	}
	var boot [8]byte
	if _, err := rand.Read(boot[:]); err != nil {
		return nil, err
	}
	f.stats.Enrolled.Add(1)
	return &member{id: id, signer: signer, boot: binary.BigEndian.Uint64(boot[:])}, nil
}

// Connect opens all sessions, with mutual TLS. They are silent: nobody has said
// hello yet.
func (f *Fleet) Connect(ctx context.Context) error {
	f.each(ctx, 0, func(ctx context.Context, i int) error { return f.connect(ctx, f.members[i]) })
	return f.complete(ctx, "connected", f.stats.Connected.Load())
}

const connectTimeout = 60 * time.Second

func (f *Fleet) connect(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", m.id.MQTTAddress)
	if err != nil {
		return fmt.Errorf("connect %s: %w", m.id.Name, err)
	}
	config := f.config.Clone()
	config.Certificates = []tls.Certificate{{Certificate: m.id.Certificate, PrivateKey: m.id.Key}}
	conn := tls.Client(raw, config)
	will, err := wire.Marshal(&wire.Presence{ID: wire.MessageID{Boot: m.boot}, Connection: 1})
	if err != nil {
		return err
	}
	d, err := Dial(ctx, conn, m.id.DeviceID, will)
	if err != nil {
		return errors.Join(fmt.Errorf("connect %s: %w", m.id.Name, err), raw.Close())
	}
	m.dev.Store(d)
	f.stats.Connected.Add(1)
	f.readers.Go(func() {
		err := d.Receive(f.stats.acked, func(wire.Kind, []byte) { f.stats.Received.Add(1) })
		if !f.closing.Load() {
			f.stats.Lost.Add(1)
			f.stats.fail(fmt.Errorf("session of %s: %w", m.id.Name, err))
		}
	})
	return nil
}

// Close ends all sessions without a word.
func (f *Fleet) Close() {
	f.closing.Store(true)
	for _, m := range f.members {
		if m == nil {
			continue
		}
		if d := m.dev.Load(); d != nil {
			_ = d.Close() // the process ends with it
		}
	}
	f.readers.Wait()
}
