package agent

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/skein-fleet/skein/agent/internal/enroll"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/link"
	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota/slot"
)

// Identity is who a device is: id, keys, certificate, CA, trust root and the
// addresses of the control plane.
type Identity = enroll.Identity

// Errors of enrolment.
var (
	ErrNotEnrolled  = enroll.ErrNotEnrolled
	ErrBadClaim     = enroll.ErrBadClaim
	ErrClaimRefused = enroll.ErrRefused
)

// EnrollOptions say who enrols and where.
type EnrollOptions struct {
	ServerURL string // device port, https://HOST:PORT
	Claim     string // skein1.SECRET.CAHASH
	Name      string
	Serial    string
	Labels    map[string]string
	Target    string
	Hardware  string
	Files     slot.Files
	// HTTPClient, when set, is used as it is; else TLS is verified by the CA
	// that the claim names, over Dial.
	HTTPClient *http.Client
	Dial       Dial
	// Now is the device's clock, Floor a time that has certainly passed.
	Now     func() time.Time
	Floor   time.Time
	Pending func(retryAfter time.Duration) // told when approval is awaited
	// Retrying is told when the server cannot be reached.
	Retrying func(cause error, retryAfter time.Duration)
}

// Enroll trades a claim for an identity, stores it in Files and returns it. It
// waits while approval is pending. A device that is enrolled keeps its identity.
func Enroll(ctx context.Context, o EnrollOptions) (*Identity, error) {
	now := o.Now
	if now == nil {
		now = time.Now
	}
	return enroll.Enroll(ctx, enroll.Options{
		ServerURL: o.ServerURL, Claim: o.Claim, Name: o.Name, Serial: o.Serial, Labels: o.Labels, Target: o.Target,
		Hardware: o.Hardware, Files: o.Files, HTTPClient: o.HTTPClient, Dial: pki.Dial(o.Dial), Pending: o.Pending, Retrying: o.Retrying,
		Now: func() (time.Time, bool) {
			if t := now(); !t.Before(o.Floor) {
				return t, false
			}
			return o.Floor, true
		},
	})
}

// LoadIdentity reads a stored identity, or returns ErrNotEnrolled.
func LoadIdentity(f slot.Files) (*Identity, error) { return enroll.Load(f) }

const (
	renewRetry  = 30 * time.Minute
	renewSpread = time.Hour // most that a due renewal is put off, so that a fleet does not renew at once
)

// renewLoop renews the certificate at two thirds of its life, and when asked.
func (a *Agent) renewLoop(ctx context.Context) error {
	var retry time.Duration
	for round := 0; ; round++ {
		due, err := a.identity.Load().RenewAt()
		if err != nil {
			return err
		}
		wait := max(0, due.Sub(a.now()))
		if wait > 0 {
			wait += rand.N(min(renewSpread, wait/8+1))
		}
		if retry > 0 {
			wait = retry
		} else if round > 0 {
			wait = max(wait, time.Minute) // a server that gives old certificates is not asked in a circle
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-a.wakeRenew:
			timer.Stop()
		}
		if err := a.renew(ctx); err != nil {
			retry = renewRetry/2 + rand.N(renewRetry)
			if ctx.Err() == nil {
				a.log.Warn("renew certificate", "error", err, "again", retry)
				leaf, lerr := a.identity.Load().Leaf()
				if lerr == nil {
					a.board.Set(health.CertificateExpiring, health.Warning, "renewal fails, the certificate ends "+leaf.NotAfter.UTC().Format(time.RFC3339)+": "+err.Error())
				}
			}
			continue
		}
		retry = 0
	}
}

func (a *Agent) renew(ctx context.Context) error {
	fresh, err := enroll.Renew(ctx, a.identity.Load(), a.opts.Files, a.http, a.now())
	if err != nil {
		return err
	}
	a.identity.Store(fresh)
	a.http.CloseIdleConnections()
	if l, ok := a.link.(link.Reconnecter); ok {
		l.Reconnect() // the old certificate would serve the session on, past its end
	}
	a.board.Clear(health.CertificateExpiring)
	a.log.Info("certificate renewed")
	return nil
}
