package rpc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/telemetry"
)

// Releases finds releases by text and names them.
type Releases interface {
	// Resolve takes a digest or name@version.
	Resolve(ctx context.Context, tenant, text string) (ota.Digest, error)
	// Name returns name@version, or "" for a digest that is not known.
	Name(tenant string, d ota.Digest) string
}

// Readings knows the latest readings of a device.
type Readings interface {
	Latest(device string) []telemetry.Reading
}

// Rollouts says what running rollouts do with a device.
type Rollouts interface {
	ExplainDevice(ctx context.Context, tenant, device string) []string
}

// Limits of lists.
const (
	defaultPage = 100
	maxPage     = 1000
	maxEvents   = 1000
)

type fleetService struct{ Deps }

func (s *fleetService) namer(tenant string) func(ota.Digest) string {
	return func(d ota.Digest) string {
		if d == "" {
			return ""
		}
		return s.Releases.Name(tenant, d)
	}
}

func (s *fleetService) device(v fleet.View) *fleetv1.Device {
	return device(v, s.namer(v.Tenant), true)
}

func (s *fleetService) lookup(ctx context.Context, text string) (fleet.View, error) {
	return s.Fleet.Lookup(auth.Tenant(ctx), text)
}

// selected returns the devices that a selector and a search choose, by name.
func (s *fleetService) selected(ctx context.Context, selector, search string) ([]fleet.View, error) {
	tenant := auth.Tenant(ctx)
	sel, err := s.selector(tenant, selector)
	if err != nil {
		return nil, err
	}
	search = strings.ToLower(strings.TrimSpace(search))
	return slices.DeleteFunc(s.Fleet.Snapshot(tenant), func(v fleet.View) bool {
		return !sel.Match(v) || search != "" && !strings.Contains(strings.ToLower(v.Name+"\n"+v.ID+"\n"+v.Serial+"\n"+v.Hardware), search)
	}), nil
}

func (s *fleetService) selector(tenant, text string) (*fleet.Selector, error) {
	sel, err := fleet.ParseSelector(text)
	if err != nil {
		return nil, err
	}
	name := s.namer(tenant)
	sel.ReleaseName = func(v fleet.View) string { return name(v.Running) }
	return sel, nil
}

func (s *fleetService) ListDevices(ctx context.Context, req *fleetv1.ListDevicesRequest) (*fleetv1.ListDevicesResponse, error) {
	all, err := s.selected(ctx, req.GetSelector(), req.GetSearch())
	if err != nil {
		return nil, err
	}
	size := min(cmp.Or(int(req.GetPageSize()), defaultPage), maxPage)
	if size < 0 {
		return nil, fmt.Errorf("%w: page size is negative", fleet.ErrInvalid)
	}
	// A page token is the id of the last device of the page before; a device
	// that went since makes the next page start where it was by name.
	start := 0
	if last := req.GetPageToken(); last != "" {
		at := slices.IndexFunc(all, func(v fleet.View) bool { return v.ID == last })
		if at < 0 {
			return nil, fmt.Errorf("%w: page token: the list changed, start again", fleet.ErrInvalid)
		}
		start = at + 1
	}
	end := min(start+size, len(all))
	resp := &fleetv1.ListDevicesResponse{Total: int32(len(all))}
	tenant := auth.Tenant(ctx)
	for _, v := range all[start:end] {
		resp.Devices = append(resp.Devices, device(v, s.namer(tenant), req.GetFull()))
	}
	if end < len(all) {
		resp.NextPageToken = all[end-1].ID
	}
	return resp, nil
}

func (s *fleetService) GetDevice(ctx context.Context, req *fleetv1.GetDeviceRequest) (*fleetv1.GetDeviceResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	return &fleetv1.GetDeviceResponse{Device: s.device(v), Readings: s.latest(v.ID)}, nil
}

func (s *fleetService) latest(id string) []*fleetv1.Reading {
	if s.Readings == nil {
		return nil
	}
	return readings(s.Readings.Latest(id))
}

func (s *fleetService) GetFleetStatus(ctx context.Context, req *fleetv1.GetFleetStatusRequest) (*fleetv1.GetFleetStatusResponse, error) {
	all, err := s.selected(ctx, req.GetSelector(), "")
	if err != nil {
		return nil, err
	}
	return &fleetv1.GetFleetStatusResponse{Status: s.status(auth.Tenant(ctx), all)}, nil
}

// status counts devices; revoked ones are in by_state alone.
func (s *fleetService) status(tenant string, all []fleet.View) *fleetv1.FleetStatus {
	name := s.namer(tenant)
	st := &fleetv1.FleetStatus{Time: timestamppb.Now()}
	state, target, site, release, hardware, condition := counter{}, counter{}, counter{}, counter{}, counter{}, counter{}
	for _, v := range all {
		state[string(v.State)]++
		if v.State == fleet.Revoked {
			continue
		}
		st.Devices++
		target[cmp.Or(v.Target, "unknown")]++
		site[cmp.Or(v.Site(), "none")]++
		hardware[cmp.Or(v.Hardware, "unknown")]++
		release[cmp.Or(name(v.Running), string(v.Running), "none")]++
		for _, c := range v.Conditions {
			condition[c.Name]++
		}
		if !v.Converged && v.State != fleet.Pending {
			st.Converging++
		}
		if v.FailureClass != "" {
			st.Failed++
		}
	}
	st.ByState, st.ByTarget, st.BySite = state.list(), target.list(), site.list()
	st.ByRelease, st.ByHardware, st.ByCondition = release.list(), hardware.list(), condition.list()
	return st
}

type counter map[string]int32

// list gives the counts, largest first.
func (c counter) list() []*fleetv1.Count {
	out := make([]*fleetv1.Count, 0, len(c))
	for k, n := range c {
		out = append(out, &fleetv1.Count{Key: k, Count: n})
	}
	slices.SortFunc(out, func(a, b *fleetv1.Count) int {
		return cmp.Or(cmp.Compare(b.GetCount(), a.GetCount()), cmp.Compare(a.GetKey(), b.GetKey()))
	})
	return out
}

func (s *fleetService) ListDeviceEvents(ctx context.Context, req *fleetv1.ListDeviceEventsRequest) (*fleetv1.ListDeviceEventsResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	limit := cmp.Or(int(req.GetLimit()), 50)
	if limit < 0 || limit > maxEvents {
		return nil, fmt.Errorf("%w: limit: want 1 to %d", fleet.ErrInvalid, maxEvents)
	}
	resp := &fleetv1.ListDeviceEventsResponse{}
	err = s.Store.View(ctx, func(tx *store.Tx) error {
		events, err := tx.Events(ctx, v.Tenant, v.ID, limit)
		for _, e := range events {
			resp.Events = append(resp.Events, &fleetv1.DeviceEvent{Time: present.Time(e.Time), Received: present.Time(e.Received), Kind: e.Kind, Message: e.Message,
				Release: e.Release, Step: e.Step, Attack: e.Attack})
		}
		return err
	})
	return resp, err
}
