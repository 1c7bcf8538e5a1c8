package rpc

import (
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/telemetry"
)

var states = map[fleet.State]fleetv1.DeviceState{
	fleet.Pending: fleetv1.DeviceState_DEVICE_STATE_PENDING,
	fleet.Online:  fleetv1.DeviceState_DEVICE_STATE_ONLINE,
	fleet.Offline: fleetv1.DeviceState_DEVICE_STATE_OFFLINE,
	fleet.Revoked: fleetv1.DeviceState_DEVICE_STATE_REVOKED,
}

// device translates a view; name gives releases their name@version. Journal
// and conditions come with full.
func device(v fleet.View, name func(ota.Digest) string, full bool) *fleetv1.Device {
	d := &fleetv1.Device{
		Id: v.ID, Tenant: v.Tenant, Name: v.Name, Serial: v.Serial, Hardware: v.Hardware, Labels: v.Labels, Capabilities: v.Capabilities, Serves: v.Serves,
		Target: v.Target, State: states[v.State], LastSeen: present.Time(v.LastSeen), Enrolled: present.Time(v.Enrolled), CertificateNotAfter: present.Time(v.CertNotAfter),
		AgentVersion: v.Agent, DesiredRelease: string(v.WantedRelease), DesiredReleaseName: name(v.WantedRelease),
		RunningRelease: string(v.Running), RunningReleaseName: name(v.Running),
		DesiredGeneration: present.Generation(v.Wanted), HeldGeneration: present.Generation(v.Held),
		Step: v.Step, FailureClass: v.FailureClass, Failure: v.Failure,
		DesiredParametersDigest: present.Digest(v.WantedParamsDigest), ReportedParametersDigest: present.Digest(v.ParamsDigest),
		Rollout: conductor.RolloutID(v.Rollout), ClockDoubtful: v.ClockDoubtful, GenerationFromFuture: v.FromFuture,
	}
	if v.Boot != 0 {
		d.BootId = strconv.FormatUint(v.Boot, 16)
	}
	if v.Reported {
		d.Phase = v.Phase.String()
		d.Transfer = present.Transfer(v.Transfer)
	}
	if !full {
		return d
	}
	d.Conditions, d.Journal = present.Conditions(v.Conditions), present.Journal(v.Journal)
	d.Power, d.Servers, d.Tap = present.Power(v.Power), present.Servers(v.Servers), present.Tap(v.Tap)
	d.BootChain, d.AgentSlots = present.BootChain(v.BootChain), present.AgentSlots(v.AgentSlots)
	d.BytesFetched, d.Sources = v.BytesFetched, present.Sources(v.Sources)
	return d
}

func readings(rs []telemetry.Reading) []*fleetv1.Reading {
	out := make([]*fleetv1.Reading, len(rs))
	for i, r := range rs {
		out[i] = &fleetv1.Reading{Series: r.Series.String(), Value: r.Value, Time: timestamppb.New(r.Time)}
	}
	return out
}
