package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

// Paces of streams.
const (
	fleetPace  = time.Second            // WatchFleet sends at most this often
	devicePace = 250 * time.Millisecond // WatchDevice too
	watchIdle  = 15 * time.Second       // and both send something after this long
)

// changes gathers the ids that arrive on ch and calls send with them, at most
// once per pace and at least once per watchIdle, until ctx ends or send fails.
func changes(ctx context.Context, ch <-chan string, pace time.Duration, send func(ids map[string]struct{}) error) error {
	ids := map[string]struct{}{}
	idle := time.NewTimer(watchIdle)
	defer idle.Stop()
	next := time.NewTimer(pace)
	defer next.Stop()
	ready, dirty := false, false
	for {
		select {
		case <-ctx.Done():
			return nil // the caller has gone, or the server stops
		case id, ok := <-ch:
			if !ok {
				return nil
			}
			ids[id] = struct{}{}
			dirty = true
		case <-next.C:
			ready = true
		case <-idle.C:
			dirty = true
		}
		if !ready || !dirty {
			continue
		}
		if err := send(ids); err != nil {
			return err
		}
		clear(ids)
		ready, dirty = false, false
		next.Reset(pace)
		idle.Reset(watchIdle)
	}
}

func (s *fleetService) WatchDevice(ctx context.Context, req *fleetv1.WatchDeviceRequest, stream *connect.ServerStream[fleetv1.WatchDeviceResponse]) error {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all := s.Fleet.Subscribe(ctx)
	one := make(chan string)
	go func() {
		defer close(one)
		for id := range all {
			if id != v.ID {
				continue
			}
			select {
			case one <- id:
			case <-ctx.Done():
			}
		}
	}()
	var lease time.Time
	send := func(map[string]struct{}) error {
		if time.Since(lease) > fleet.WatchLease*4/5 {
			s.Fleet.Watch(v.Tenant, v.ID)
			lease = time.Now()
		}
		now, err := s.Fleet.Get(v.Tenant, v.ID)
		if err != nil {
			return err
		}
		return stream.Send(&fleetv1.WatchDeviceResponse{Device: s.device(now), Readings: s.latest(v.ID)})
	}
	if err := send(nil); err != nil {
		return err
	}
	return changes(ctx, one, devicePace, send)
}

func (s *fleetService) WatchFleet(ctx context.Context, req *fleetv1.WatchFleetRequest, stream *connect.ServerStream[fleetv1.WatchFleetResponse]) error {
	tenant := auth.Tenant(ctx)
	sel, err := s.selector(tenant, req.GetSelector())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := s.Fleet.Subscribe(ctx)
	name := s.namer(tenant)
	was := map[string]bool{} // devices that the selector chose at the last sending
	send := func(ids map[string]struct{}) error {
		resp := &fleetv1.WatchFleetResponse{}
		var all []fleet.View
		for _, v := range s.Fleet.Snapshot(tenant) {
			chosen := sel.Match(v)
			if chosen {
				all = append(all, v)
			}
			// One that left the selection is sent once more, so that the
			// watcher can see it go.
			if _, changed := ids[v.ID]; changed && (chosen || was[v.ID]) {
				resp.Changed = append(resp.Changed, device(v, name, false))
			}
			was[v.ID] = chosen
		}
		resp.Status = s.status(tenant, all)
		return stream.Send(resp)
	}
	if err := send(nil); err != nil {
		return err
	}
	return changes(ctx, ch, fleetPace, send)
}
