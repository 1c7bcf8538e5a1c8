package rpc

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

func (s *fleetService) ListDeviceCrashes(ctx context.Context, req *fleetv1.ListDeviceCrashesRequest) (*fleetv1.ListDeviceCrashesResponse, error) {
	all, err := s.crashes(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		c.Panic, c.Log, c.Tegrastats, c.Journal, c.Exits = "", nil, nil, nil, nil
	}
	return &fleetv1.ListDeviceCrashesResponse{Crashes: all}, nil
}

func (s *fleetService) GetDeviceCrash(ctx context.Context, req *fleetv1.GetDeviceCrashRequest) (*fleetv1.GetDeviceCrashResponse, error) {
	all, err := s.crashes(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.GetNumber() == req.GetNumber() {
			return &fleetv1.GetDeviceCrashResponse{Crash: c}, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("crash %d of %s: not known, or older than those that are kept", req.GetNumber(), req.GetDevice()))
}

func (s *fleetService) crashes(ctx context.Context, device string) (out []*fleetv1.Crash, err error) {
	v, err := s.lookup(ctx, device)
	if err != nil {
		return nil, err
	}
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.Crashes(ctx, v.Tenant, v.ID)
		for _, r := range rows {
			var c wire.Crash
			if err := wire.Unmarshal(r.Body, &c); err != nil {
				return fmt.Errorf("read crash %d of %s: %w", r.Number, v.ID, err)
			}
			p := present.Crash(&c)
			p.Received = present.Time(r.Received)
			out = append(out, p)
		}
		return err
	})
	return out, err
}
