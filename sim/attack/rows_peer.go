package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

// peerAttacks are those of a device of the same site that an operator made a
// cache, and that an attacker has taken over: its certificate is a good one.
func peerAttacks() []Attack {
	const row = "malicious mirror"
	return []Attack{
		{Name: "junk-peer", Row: row, Class: trust.ClassWrongHash, Heals: true, Refuser: "sha256 of the signed release; a peer that gave wrong bytes is avoided, and HTTPS brings them",
			strike: peer(func(w http.ResponseWriter, r *http.Request, size int64) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bytes.Repeat([]byte("junk"), int(size/4)+1)[:size]))
			})},
		{Name: "stalling-peer", Row: row, Class: "https", where: "bytes by source in the transfer report", Heals: true, Refuser: "a peer that brings nothing is avoided, and HTTPS brings the bytes",
			device: func(o *deviceOptions) { o.patience = time.Second },
			strike: peer(func(w http.ResponseWriter, r *http.Request, size int64) {
				w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush() // the client may be gone
				<-r.Context().Done()
			}),
			named: func(ctx context.Context, s *scene) (bool, error) {
				if peer, err := s.broughtBy(ctx, "peer"); peer || err != nil {
					return false, err
				}
				return s.broughtBy(ctx, s.a.Class)
			}},
	}
}

// broughtBy reports whether the control plane knows of bytes that came that way.
func (s *scene) broughtBy(ctx context.Context, way string) (bool, error) {
	v, err := s.w.device(ctx, s.d.id)
	for _, b := range v.GetSources() {
		if b.GetName() == way && b.GetBytes() > 0 {
			return true, nil
		}
	}
	return false, err
}

// peer takes over a cache at the victim's site, which answers so for the layers
// of the bait.
func peer(how func(w http.ResponseWriter, r *http.Request, size int64)) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		layers, savings, err := s.parts()
		if err != nil {
			return err
		}
		sizes := map[ota.Digest]int64{}
		for _, d := range append(layers, savings...) {
			sizes[d.Digest] = d.Size
		}
		cache, err := newDevice(ctx, s.w, deviceOptions{})
		if err != nil {
			return fmt.Errorf("enrol the cache: %w", err)
		}
		s.leave(func() error { return cache.files.Close() })
		site := map[string]string{"site": "of-" + s.d.id}
		for _, req := range []*fleetv1.LabelDeviceRequest{{Device: cache.id, Set: site, Grant: []string{"cache"}}, {Device: s.d.id, Set: site}} {
			if _, err := s.w.op().Fleet.LabelDevice(ctx, req); err != nil {
				return fmt.Errorf("label a device: %w", err)
			}
		}
		address, asked, err := s.serveAs(cache, func(w http.ResponseWriter, r *http.Request) {
			size, ok := sizes[ota.Digest(path.Base(r.URL.Path))]
			if !ok {
				http.NotFound(w, r)
				return
			}
			how(w, r, size)
		})
		if err != nil {
			return err
		}
		if err := s.helloAs(cache, address); err != nil {
			return err
		}
		err = s.until(ctx, func() (bool, error) {
			v, err := s.w.device(ctx, cache.id)
			return len(v.GetServes()) > 0, err
		})
		if err != nil {
			return fmt.Errorf("the control plane does not take the cache: %w", err)
		}
		if err := s.bait(ctx); err != nil {
			return err
		}
		err = s.until(ctx, func() (bool, error) { return asked.Load() > 0, nil })
		if err != nil {
			return fmt.Errorf("the victim does not ask the cache: %w", err)
		}
		return nil
	}
}

// serveAs answers HTTPS with a device's certificate and counts what is asked.
func (s *scene) serveAs(d *device, answer http.HandlerFunc) (address string, asked *atomic.Int64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	asked = &atomic.Int64{}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			answer(w, r)
		}),
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.identity.TLSCertificate(), nil }},
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.ServeTLS(l, "", "") }) // until it is closed
	s.leave(func() error {
		err := srv.Close()
		wg.Wait()
		return err
	})
	return l.Addr().String(), asked, nil
}

// helloAs says hello as a device that serves its site, and stays connected.
func (s *scene) helloAs(d *device, address string) error {
	link, err := agent.NewMQTTLink(agent.MQTTOptions{Identity: d.identity, Now: d.now})
	if err != nil {
		return err
	}
	hello, err := wire.Marshal(&wire.Hello{ID: wire.MessageID{Boot: 1, Counter: 1}, Target: targetText, Capability: wire.CapabilityVersion,
		Clock: wire.Clock{UnixMilli: d.now().UnixMilli()}, Peer: []string{address}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var count atomic.Uint64
	count.Store(1)
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = link.Run(ctx, agent.LinkHandler{ // it ends with ctx
			Boot: 1, NextID: func() wire.MessageID { return wire.MessageID{Boot: 1, Counter: count.Add(1)} },
			Connected:    func(ctx context.Context) { _ = link.Publish(ctx, wire.UpHello, hello) }, // the control plane tells whether it came
			Disconnected: func(error) {}, Message: func(wire.Kind, []byte) {},
		})
	})
	s.leave(func() error {
		cancel()
		wg.Wait()
		return nil
	})
	return nil
}
