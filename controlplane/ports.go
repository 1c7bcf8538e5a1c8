package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/rpc"
	"github.com/skein-fleet/skein/controlplane/internal/store"
)

// graceful is how long calls may still run when the server stops.
const graceful = 5 * time.Second

type listeners struct{ http, device, mqtt, debug net.Listener }

func (s *Server) listen() (ls listeners, err error) {
	for _, l := range []struct {
		addr string
		at   *net.Listener
		say  *net.Addr
	}{{s.cfg.HTTPAddr, &ls.http, &s.addrs.HTTP}, {s.cfg.DeviceAddr, &ls.device, &s.addrs.Device},
		{s.cfg.MQTTAddr, &ls.mqtt, &s.addrs.MQTT}, {s.cfg.DebugAddr, &ls.debug, &s.addrs.Debug}} {
		if l.addr == "" {
			continue
		}
		if *l.at, err = net.Listen("tcp", l.addr); err != nil {
			for _, open := range []net.Listener{ls.http, ls.device, ls.mqtt, ls.debug} {
				if open != nil {
					err = errors.Join(err, open.Close())
				}
			}
			return ls, fmt.Errorf("listen: %w", err)
		}
		*l.say = (*l.at).Addr()
	}
	return ls, nil
}

// serve runs one HTTP server until ctx ends. Streams end with ctx; other calls
// have a little time.
func (s *Server) serve(ctx context.Context, ln net.Listener, h http.Handler, tc *tls.Config) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(tc != nil)
	protocols.SetUnencryptedHTTP2(tc == nil)
	srv := &http.Server{Handler: h, TLSConfig: tc, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog:  slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug), // strangers may write there as much as they like
		Protocols: protocols, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceful)
		defer cancel()
		err := srv.Shutdown(sctx)
		if err != nil {
			err = srv.Close()
		}
		done <- err
	})
	defer stop()
	var err error
	if tc != nil {
		err = srv.ServeTLS(ln, "", "")
	} else {
		err = srv.Serve(ln)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return <-done
}

// people is the port of people and programs.
func (s *Server) people() http.Handler {
	mux := http.NewServeMux()
	rpc.MountCore(mux, rpc.Deps{Store: s.db, Fleet: s.fleet, Desk: s.desk, Guard: s.guard, Releases: s.catalog, Readings: s.series, Rollouts: s.rollout,
		Version: s.cfg.Version, Logger: s.logger})
	s.mountApps(mux)
	mux.HandleFunc("POST /login", s.guard.Login)
	mux.HandleFunc("POST /logout", s.guard.Logout)
	s.health(mux)
	mux.Handle("GET /metrics", s.localOr(s.guard, s.metrics()))
	mux.Handle("/", s.web)
	return http.NewCrossOriginProtection().Handler(mux)
}

// mountApps adds what stands above the fleet: artifacts, releases, rollouts, series.
func (s *Server) mountApps(mux *http.ServeMux) {
	rpc.MountApps(mux, rpc.AppDeps{Store: s.db, Collect: s.collect, Catalog: s.catalog, Conductor: s.rollout, Fleet: s.fleet, Builds: s.builds, Guard: s.guard, Logger: s.logger,
		Trust: s.trust, Signer: s.cfg.Signer, Now: s.now})
	mux.Handle("/v2/", s.guard.Protect(auth.Viewer, auth.Operator, defaultTenant(s.images)))
	mux.Handle("GET /tuf/", s.guard.Protect(auth.Viewer, auth.Viewer, s.catalog.TUF()))
	mux.Handle("/api/v1/", s.guard.Protect(auth.Viewer, auth.Viewer, defaultTenant(s.series.Handler())))
}

// defaultTenant keeps other tenants away from what is not kept apart by
// tenant: blobs by digest, and series.
func defaultTenant(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if auth.Tenant(r.Context()) != store.DefaultTenant {
			http.Error(w, "not allowed: blobs and series are served to the default tenant only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// localOr lets programs on this host in, others with a credential.
func (s *Server) localOr(g *auth.Guard, next http.Handler) http.Handler {
	guarded := g.Protect(auth.Viewer, auth.Viewer, defaultTenant(next))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err == nil && net.ParseIP(host).IsLoopback() && r.Header.Get("X-Forwarded-For") == "" {
			next.ServeHTTP(w, r)
			return
		}
		guarded.ServeHTTP(w, r)
	})
}

func (s *Server) metrics() http.Handler {
	return promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{})
}

// health says whether the process lives, and whether it can do its work.
func (s *Server) health(mux *http.ServeMux) {
	ok := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // the client may be gone
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { ok(w) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := s.db.Ping(ctx); err != nil {
			http.Error(w, "store: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		ok(w)
	})
}

// debug is the port for operators on this host.
func (s *Server) debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /metrics", s.metrics())
	s.health(mux)
	return mux
}

// devices is the HTTPS port of devices: enrolment needs no certificate,
// everything else does.
func (s *Server) devices() http.Handler {
	mux := http.NewServeMux()
	door := http.NewServeMux()
	mux.Handle("/skein.enroll.v1.EnrollService/", inTime(enrolWithin, door))
	rpc.MountEnroll(door, rpc.EnrollDeps{Desk: s.desk, CA: s.ca, Peer: s.peerOf, MQTTAddress: s.mqttAddress, BlobURL: s.blobURL,
		TrustRoot: s.trust.Root, Logger: s.logger})
	identify := func(r *http.Request) (string, error) {
		p, err := s.admitted(r)
		return p.Device, err
	}
	mux.Handle("/v2/skein/blobs/", s.blobs.Devices(identify, grants{s}))
	mux.Handle("/build/", s.builds.Uploads(func(r *http.Request) (tenant, device string, err error) {
		p, err := s.admitted(r)
		return p.Tenant, p.Device, err
	}, s.blobs))
	mux.Handle("/tuf/", s.withCertificate(s.catalog.TUF()))
	mux.Handle("GET /mqtt", s.withCertificate(http.HandlerFunc(s.broker.ServeWebSocket)))
	s.health(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), deviceCallKey{}, deviceCall{r.TLS, r.Host})))
	})
}

// enrolWithin bounds one call of somebody who may have no certificate.
const enrolWithin = 30 * time.Second

// inTime ends calls that send their few bytes too slowly: anybody may make
// them.
func inTime(limit time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(limit)); err != nil {
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}

type deviceCallKey struct{}

// deviceCall is what the services of devices need of the request below them.
type deviceCall struct {
	tls  *tls.ConnectionState
	host string
}

func callOf(ctx context.Context) deviceCall {
	c, _ := ctx.Value(deviceCallKey{}).(deviceCall)
	return c
}

// peerOf verifies who calls; an expired certificate passes, marked, as only
// Renew asks here.
func (s *Server) peerOf(ctx context.Context) (pki.Peer, error) {
	c := callOf(ctx)
	if c.tls == nil {
		return pki.Peer{}, pki.ErrNoCertificate
	}
	return s.ca.Verify(c.tls.PeerCertificates, s.now(), true)
}

// admitted verifies who calls and that the device is not revoked.
func (s *Server) admitted(r *http.Request) (pki.Peer, error) {
	if r.TLS == nil {
		return pki.Peer{}, pki.ErrNoCertificate
	}
	p, err := s.ca.Verify(r.TLS.PeerCertificates, s.now(), false)
	if err != nil {
		return p, err
	}
	return p, s.fleet.Admit(p.Tenant, p.Device)
}

func (s *Server) withCertificate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.admitted(r); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// host is the name under which the calling device reaches this server.
func (s *Server) host(ctx context.Context) string {
	if s.cfg.PublicHost != "" {
		return s.cfg.PublicHost
	}
	h := callOf(ctx).host
	if name, _, err := net.SplitHostPort(h); err == nil {
		return name
	}
	return h
}

func portOf(a net.Addr) string {
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return ""
	}
	return port
}

func (s *Server) mqttAddress(ctx context.Context) string {
	return net.JoinHostPort(s.host(ctx), portOf(s.addrs.MQTT))
}

func (s *Server) blobURL(ctx context.Context) string {
	return "https://" + net.JoinHostPort(s.host(ctx), portOf(s.addrs.Device))
}

func (s *Server) baseTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.ca.Server(s.cfg.serverNames(), s.now).GetCertificate,
		ClientCAs: s.ca.Pool(), Time: s.now}
}

func (s *Server) mqttTLS() *tls.Config {
	c := s.baseTLS()
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c
}

// deviceTLS asks for a certificate and leaves its verification to the
// handlers, as Enroll needs none and Renew takes an expired one.
func (s *Server) deviceTLS() *tls.Config {
	c := s.baseTLS()
	c.ClientAuth = tls.RequestClientCert
	return c
}

func (s *Server) identify(cs tls.ConnectionState) (id, error) {
	p, err := s.ca.Verify(cs.PeerCertificates, s.now(), false)
	if err != nil {
		return id{}, err
	}
	return id{Tenant: p.Tenant, Device: p.Device, NotAfter: p.Leaf.NotAfter}, nil
}
