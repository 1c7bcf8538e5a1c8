package rpc

import (
	"context"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
)

// EnrollDeps is what the service of devices needs.
type EnrollDeps struct {
	Desk *enroll.Desk
	CA   *pki.Authority
	// Peer reads and verifies the device of a call; an expired certificate may
	// pass, as Renew takes it.
	Peer func(context.Context) (pki.Peer, error)
	// MQTTAddress and BlobURL are told to devices at enrolment.
	MQTTAddress func(context.Context) string
	BlobURL     func(context.Context) string
	TrustRoot   func() []byte
	Logger      *slog.Logger
}

// MountEnroll adds the enrolment service to the mux of the device port. It is
// not behind the guard of people: a token or a certificate is what counts.
func MountEnroll(mux *http.ServeMux, d EnrollDeps) {
	mux.Handle(enrollv1connect.NewEnrollServiceHandler(&enrollService{d}, connect.WithInterceptors(coded{d.Logger}), connect.WithReadMaxBytes(64<<10)))
}

type enrollService struct{ EnrollDeps }

func (s *enrollService) Enroll(ctx context.Context, req *enrollv1.EnrollRequest) (*enrollv1.EnrollResponse, error) {
	res, err := s.Desk.Enroll(ctx, enroll.Request{Token: req.GetToken(), CSR: req.GetCsr(), Serial: req.GetSerial(), Hardware: req.GetHardware(),
		Labels: req.GetClaimedLabels(), Target: req.GetTarget(), Name: req.GetName(), SealKey: req.GetSealKey()})
	if err != nil {
		return nil, err
	}
	resp := &enrollv1.EnrollResponse{DeviceId: res.Device.ID, Tenant: res.Device.Tenant, Ca: s.CA.CA()}
	if res.Issued == nil {
		resp.State = enrollv1.EnrollState_ENROLL_STATE_PENDING
		resp.RetryAfterSeconds = int32(enroll.PendingRetry.Seconds())
		return resp, nil
	}
	resp.State = enrollv1.EnrollState_ENROLL_STATE_ENROLLED
	resp.CertificateChain, resp.NotAfter = res.Issued.Chain, timestamppb.New(res.Issued.NotAfter)
	resp.MqttAddress, resp.BlobUrl, resp.TrustRoot = s.MQTTAddress(ctx), s.BlobURL(ctx), s.TrustRoot()
	return resp, nil
}

func (s *enrollService) Renew(ctx context.Context, req *enrollv1.RenewRequest) (*enrollv1.RenewResponse, error) {
	peer, err := s.Peer(ctx)
	if err != nil {
		return nil, err
	}
	is, err := s.Desk.Renew(ctx, peer, req.GetCsr(), req.GetSealKey())
	if err != nil {
		return nil, err
	}
	return &enrollv1.RenewResponse{CertificateChain: is.Chain, Ca: s.CA.CA(), NotAfter: timestamppb.New(is.NotAfter)}, nil
}
