package rpc

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// stamp leaves out times that are not known.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func milli(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(ms))
}

func generation(g wire.Generation) *fleetv1.Generation {
	return &fleetv1.Generation{Epoch: g.Epoch, Counter: g.Counter}
}

var states = map[fleet.State]fleetv1.DeviceState{
	fleet.Pending: fleetv1.DeviceState_DEVICE_STATE_PENDING,
	fleet.Online:  fleetv1.DeviceState_DEVICE_STATE_ONLINE,
	fleet.Offline: fleetv1.DeviceState_DEVICE_STATE_OFFLINE,
	fleet.Revoked: fleetv1.DeviceState_DEVICE_STATE_REVOKED,
}

func severity(s uint8) string {
	switch s {
	case 1:
		return "info"
	case 2:
		return "warning"
	case 3:
		return "critical"
	}
	return fmt.Sprintf("severity %d", s)
}

func sumText(sum []byte) string {
	if len(sum) != 32 {
		return hex.EncodeToString(sum)
	}
	return string(ota.DigestFromSum([32]byte(sum)))
}

// device translates a view; name gives releases their name@version. Journal
// and conditions come with full.
func device(v fleet.View, name func(ota.Digest) string, full bool) *fleetv1.Device {
	d := &fleetv1.Device{
		Id: v.ID, Tenant: v.Tenant, Name: v.Name, Serial: v.Serial, Hardware: v.Hardware, Labels: v.Labels, Capabilities: v.Capabilities, Serves: v.Serves,
		Target: v.Target, State: states[v.State], LastSeen: stamp(v.LastSeen), Enrolled: stamp(v.Enrolled), CertificateNotAfter: stamp(v.CertNotAfter),
		AgentVersion: v.Agent, DesiredRelease: string(v.WantedRelease), DesiredReleaseName: name(v.WantedRelease),
		RunningRelease: string(v.Running), RunningReleaseName: name(v.Running),
		DesiredGeneration: generation(v.Wanted), HeldGeneration: generation(v.Held),
		Step: v.Step, FailureClass: v.FailureClass, Failure: v.Failure,
		DesiredParametersDigest: sumText(v.WantedParamsDigest), ReportedParametersDigest: sumText(v.ParamsDigest),
		Rollout: conductor.RolloutID(v.Rollout), ClockDoubtful: v.ClockDoubtful, GenerationFromFuture: v.FromFuture,
	}
	if v.Boot != 0 {
		d.BootId = strconv.FormatUint(v.Boot, 16)
	}
	if v.Reported {
		d.Phase = v.Phase.String()
		d.Transfer = transfer(v.Transfer)
	}
	if !full {
		return d
	}
	for _, c := range v.Conditions {
		d.Conditions = append(d.Conditions, &fleetv1.Condition{Name: c.Name, Severity: severity(c.Severity), Message: c.Message, Since: milli(c.Since)})
	}
	d.BootChain, d.AgentSlots = bootChain(v.BootChain), agentSlots(v.AgentSlots)
	d.BytesFetched = v.BytesFetched
	for _, s := range v.Sources {
		d.Sources = append(d.Sources, &fleetv1.SourceBytes{Name: s.Name, Bytes: s.Bytes})
	}
	for _, s := range v.Journal {
		d.Journal = append(d.Journal, &fleetv1.StepEntry{Step: s.Step, State: s.State.String(), Release: sumText(s.Release), Message: s.Message, Time: milli(s.Time)})
	}
	return d
}

func bootChain(b *wire.BootChain) *fleetv1.BootChain {
	if b == nil {
		return nil
	}
	slots := func(in []wire.BootSlot) []*fleetv1.BootSlot {
		out := make([]*fleetv1.BootSlot, len(in))
		for i, s := range in {
			out[i] = &fleetv1.BootSlot{Number: int32(s.Number), Status: s.Status, Retries: int32(s.Retries), Current: s.Current, Active: s.Active}
		}
		return out
	}
	out := &fleetv1.BootChain{Driver: b.Driver, Version: b.Version, Redundancy: b.Redundancy, Capsule: b.Capsule, Firmware: slots(b.Firmware), Rootfs: slots(b.Rootfs)}
	for _, f := range b.ESRT {
		out.Esrt = append(out.Esrt, &fleetv1.BootFirmware{Class: f.Class, Version: f.Version, LowestSupported: f.Lowest, LastAttemptVersion: f.Attempted, LastAttemptStatus: f.Status})
	}
	for _, t := range b.Traps {
		out.Traps = append(out.Traps, &fleetv1.BootTrap{Name: t.Name, Problem: t.Problem, Repair: t.Repair})
	}
	return out
}

func agentSlots(a *wire.AgentSlots) *fleetv1.AgentSlots {
	if a == nil {
		return nil
	}
	return &fleetv1.AgentSlots{Active: a.Active, Previous: a.Previous, Digest: sumText(a.Digest), Trial: a.Trial, TriesLeft: int32(a.TriesLeft), CheckedIn: a.CheckedIn, Failure: a.Failure}
}

func readings(rs []telemetry.Reading) []*fleetv1.Reading {
	out := make([]*fleetv1.Reading, len(rs))
	for i, r := range rs {
		out[i] = &fleetv1.Reading{Series: r.Series.String(), Value: r.Value, Time: timestamppb.New(r.Time)}
	}
	return out
}
