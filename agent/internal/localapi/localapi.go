// Package localapi is the agent's unix socket for people and scripts on the
// device: skein-agent status, explain and logs. It owns the socket file (0660,
// made anew at each start) and the mapping to agentlocal.v1. The root of the
// agent module serves it, cmd/skein-agent calls it.
package localapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"connectrpc.com/connect"

	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1/agentlocalv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

// Source is what the socket shows.
type Source struct {
	Status func() Status
	Logs   func(limit int) []string // nil: no log is kept
	// Apply installs from a bundle file, Receipt is a signed report.
	Apply   func(ctx context.Context, path string, noWait bool) (Applied, error)
	Receipt func() (device string, report []byte, err error)
	// HoldOff keeps releases from being put to work for a while, ReleaseHold ends
	// that; Traces are the newest updates, newest first. They may be nil.
	HoldOff     func(owner, reason string, d time.Duration) (h wire.Hold, capped bool, err error)
	ReleaseHold func(owner string) (int, error)
	Traces      func() []Trace
	// Observe takes what an application that asks its model itself tells of one
	// inference; Sample gives a share of the requests of the next while, with their
	// answers, until the writer or ctx ends. They may be nil.
	Observe func(ctx context.Context, raw []byte) error
	Sample  func(ctx context.Context, share float64, w io.Writer) error
	// Listening, when set, is called once the socket answers.
	Listening func()
}

// Applied is what a bundle brings.
type Applied struct {
	Device, Release, Digest string
	Generation              wire.Generation
	Outcome, Failure        string
}

// ErrInUse is returned by Serve when another agent answers on the socket.
var ErrInUse = errors.New("another agent uses this socket")

// Serve answers on the unix socket at path until ctx ends.
func Serve(ctx context.Context, path string, src Source) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder of the local socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("%w: %s", ErrInUse, path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 && (!st.Mode().IsRegular() || st.Size() > 0) {
		return fmt.Errorf("listen on the local socket: %s is something else: give another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old local socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen on the local socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return fmt.Errorf("listen on the local socket: %w", err)
	}
	if src.Listening != nil {
		src.Listening()
	}
	mux := http.NewServeMux()
	mux.Handle(agentlocalv1connect.NewLocalServiceHandler(&service{src}))
	plainRoutes(mux, src)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the local socket: %w", err)
	}
	return nil
}

// Client returns a client of the agent on the socket at path.
func Client(path string) agentlocalv1connect.LocalServiceClient { return client(path, 10*time.Second) }

// PatientClient is Client for calls that take their time.
func PatientClient(path string) agentlocalv1connect.LocalServiceClient { return client(path, 0) }

func client(path string, timeout time.Duration) agentlocalv1connect.LocalServiceClient {
	h := &http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	return agentlocalv1connect.NewLocalServiceClient(h, "http://skein-agent")
}

type service struct{ src Source }

func (s *service) Status(context.Context, *agentlocalv1.StatusRequest) (*agentlocalv1.StatusResponse, error) {
	st := s.src.Status()
	return &agentlocalv1.StatusResponse{
		Device: device(st), Link: st.Link, LinkError: st.LinkError, LinkSince: present.Time(st.LinkSince),
		SpoolBytes: st.SpoolBytes, SpoolDropped: st.SpoolDropped, UptimeSeconds: int64(st.Uptime.Seconds()), TrustedTime: present.Time(st.TrustedTime),
	}, nil
}

func (s *service) Explain(context.Context, *agentlocalv1.ExplainRequest) (*agentlocalv1.ExplainResponse, error) {
	st := s.src.Status()
	return &agentlocalv1.ExplainResponse{Summary: st.Summary, Reasons: st.Reasons}, nil
}

func (s *service) ApplyBundle(ctx context.Context, req *agentlocalv1.ApplyBundleRequest) (*agentlocalv1.ApplyBundleResponse, error) {
	got, err := s.src.Apply(ctx, req.GetPath(), req.GetNoWait())
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return &agentlocalv1.ApplyBundleResponse{Device: got.Device, Release: got.Release, Digest: got.Digest,
		Generation: present.Generation(got.Generation),
		Outcome:    got.Outcome, Failure: got.Failure}, nil
}

func (s *service) Receipt(context.Context, *agentlocalv1.ReceiptRequest) (*agentlocalv1.ReceiptResponse, error) {
	device, report, err := s.src.Receipt()
	if err != nil {
		return nil, err
	}
	return &agentlocalv1.ReceiptResponse{Device: device, Report: report}, nil
}

func (s *service) Logs(_ context.Context, req *agentlocalv1.LogsRequest) (*agentlocalv1.LogsResponse, error) {
	if s.src.Logs == nil {
		return &agentlocalv1.LogsResponse{}, nil
	}
	return &agentlocalv1.LogsResponse{Lines: s.src.Logs(int(req.GetLimit()))}, nil
}

// device maps Status to the fleet's description of a device. What only the
// control plane knows stays empty.
func device(st Status) *fleetv1.Device {
	d := &fleetv1.Device{
		Id: st.DeviceID, Tenant: st.Tenant, Name: st.Name, Serial: st.Serial, Hardware: st.Hardware, Labels: st.Labels,
		Target: st.Target, LastSeen: present.Time(st.LastSeen), CertificateNotAfter: present.Time(st.CertificateNotAfter), AgentVersion: st.Agent,
		DesiredRelease: st.Desired, DesiredReleaseName: st.DesiredName, RunningRelease: st.Running, RunningReleaseName: st.RunningName,
		HeldGeneration: present.Generation(st.Held), Phase: st.Phase.String(), Step: st.Step,
		FailureClass: st.FailureClass, Failure: st.Failure, Rollout: st.Rollout, BootId: strconv.FormatUint(st.Boot, 16), ClockDoubtful: st.ClockDoubtful,
		DesiredParametersDigest: present.Digest(st.DesiredParams), ReportedParametersDigest: present.Digest(st.ParamsDigest),
		State: fleetv1.DeviceState_DEVICE_STATE_OFFLINE,
	}
	d.Transfer, d.Power, d.Servers, d.Tap = present.Transfer(st.Policy), present.Power(st.Power), present.Servers(st.Servers), present.Tap(st.Tap)
	if st.Link == "connected" {
		d.State = fleetv1.DeviceState_DEVICE_STATE_ONLINE
	}
	d.BytesFetched, d.Sources = st.BytesFetched, present.Sources(st.Sources)
	d.Conditions, d.Journal = present.Conditions(st.Conditions), present.Journal(st.Journal)
	return d
}

// Refusal returns an error of a call for people: where the agent refused, its
// own words.
func Refusal(err error) error {
	if e, ok := errors.AsType[*connect.Error](err); ok && e.Code() == connect.CodeFailedPrecondition {
		return errors.New(e.Message())
	}
	return err
}
