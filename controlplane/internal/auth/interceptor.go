package auth

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"
)

// Interceptor guards every Connect service it is given to.
func (g *Guard) Interceptor() connect.Interceptor { return &interceptor{g: g, rules: Rules()} }

type interceptor struct {
	g     *Guard
	rules map[string]Rule
}

func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		procedure := req.Spec().Procedure
		rule, known := i.rules[procedure]
		ctx, rec, err := i.g.enter(ctx, req.Header(), strings.TrimPrefix(procedure, "/"), rule, known)
		if err != nil {
			return nil, Code(err)
		}
		resp, err := next(ctx, req)
		if err := i.g.leave(ctx, rec, err); err != nil {
			return nil, Code(err)
		}
		return resp, nil
	}
}

func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i *interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		procedure := conn.Spec().Procedure
		rule, known := i.rules[procedure]
		ctx, rec, err := i.g.enter(ctx, conn.RequestHeader(), strings.TrimPrefix(procedure, "/"), rule, known)
		if err != nil {
			return Code(err)
		}
		return i.g.leave(ctx, rec, next(ctx, conn))
	}
}

// Code gives errors of this package their Connect code; others stay.
func Code(err error) error {
	if _, ok := errors.AsType[*connect.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return connect.NewError(connect.CodeUnauthenticated, err)
	case errors.Is(err, ErrDenied):
		return connect.NewError(connect.CodePermissionDenied, err)
	}
	return err
}
