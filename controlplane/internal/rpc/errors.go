package rpc

import (
	"context"
	"errors"
	"log/slog"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/build"
	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/trust"
)

// codes gives domain errors their codes; the first that matches wins.
func codes() []struct {
	err  error
	code connect.Code
} {
	return []struct {
		err  error
		code connect.Code
	}{
		{auth.ErrUnauthenticated, connect.CodeUnauthenticated},
		{auth.ErrDenied, connect.CodePermissionDenied},
		{auth.ErrInvalid, connect.CodeInvalidArgument},

		{fleet.ErrUnknownDevice, connect.CodeNotFound},
		{fleet.ErrAmbiguous, connect.CodeInvalidArgument},
		{fleet.ErrInvalid, connect.CodeInvalidArgument},
		{fleet.ErrParameter, connect.CodeInvalidArgument},
		{fleet.ErrRevoked, connect.CodeFailedPrecondition},
		{fleet.ErrPending, connect.CodeFailedPrecondition},
		{fleet.ErrFromFuture, connect.CodeFailedPrecondition},

		{enroll.ErrToken, connect.CodePermissionDenied},
		{enroll.ErrUsed, connect.CodeResourceExhausted},
		{enroll.ErrExpired, connect.CodePermissionDenied},
		{enroll.ErrSerial, connect.CodePermissionDenied},
		{enroll.ErrRevoked, connect.CodePermissionDenied},
		{enroll.ErrRequest, connect.CodeInvalidArgument},

		{pki.ErrNoCertificate, connect.CodeUnauthenticated},
		{pki.ErrCertificate, connect.CodeUnauthenticated},
		{pki.ErrExpired, connect.CodeUnauthenticated},
		{pki.ErrKey, connect.CodeInvalidArgument},

		{release.ErrUnknown, connect.CodeNotFound},
		{release.ErrInvalid, connect.CodeInvalidArgument},
		{release.ErrExists, connect.CodeAlreadyExists},
		{release.ErrUnsigned, connect.CodeFailedPrecondition},

		{build.ErrUnknown, connect.CodeNotFound},
		{build.ErrInvalid, connect.CodeInvalidArgument},
		{build.ErrExists, connect.CodeAlreadyExists},
		{build.ErrState, connect.CodeFailedPrecondition},

		{trust.ErrDraftChanged, connect.CodeAborted},
		{trust.ErrBadDraft, connect.CodeInvalidArgument},
		{trust.ErrBadSignature, connect.CodeInvalidArgument},
		{trust.ErrRefused, connect.CodeFailedPrecondition},
		{trust.ErrSigner, connect.CodeFailedPrecondition},
		{trust.ErrNoKey, connect.CodeFailedPrecondition},
		{trust.ErrFull, connect.CodeFailedPrecondition},

		{policy.ErrInvalid, connect.CodeInvalidArgument},
		{blobs.ErrGrace, connect.CodeInvalidArgument},

		{conductor.ErrUnknown, connect.CodeNotFound},
		{conductor.ErrAmbiguous, connect.CodeInvalidArgument},
		{conductor.ErrInvalid, connect.CodeInvalidArgument},
		{conductor.ErrExists, connect.CodeAlreadyExists},
		{conductor.ErrState, connect.CodeFailedPrecondition},

		{store.ErrNotFound, connect.CodeNotFound},
		{store.ErrConflict, connect.CodeAborted},

		{context.Canceled, connect.CodeCanceled},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	}
}

// internal is what the caller is told of an error that no table entry covers;
// the cause is in the log.
var errInternal = errors.New("internal error; the log of skeind says more")

// coded is the interceptor that gives every error its code.
type coded struct{ logger *slog.Logger }

func (c coded) code(procedure string, err error) error {
	if err == nil {
		return nil
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce
	}
	for _, e := range codes() {
		if errors.Is(err, e.err) {
			return connect.NewError(e.code, err)
		}
	}
	c.logger.Error("call", "procedure", procedure, "error", err)
	return connect.NewError(connect.CodeInternal, errInternal)
}

func (c coded) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, c.code(req.Spec().Procedure, err)
	}
}

func (c coded) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (c coded) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return c.code(conn.Spec().Procedure, next(ctx, conn))
	}
}
