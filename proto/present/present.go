// Package present puts what travels on the device link into the messages of the
// API: the control plane and the agent's own socket show the same things. It
// decides nothing and holds no state; agent and controlplane import it.
package present

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

// Time leaves out times that are not known.
func Time(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Milli is Time of milliseconds since 1970, 0 for unknown.
func Milli(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(ms))
}

// Digest is the text of a sha256 sum; other lengths are shown as hex.
func Digest(sum []byte) string {
	text := hex.EncodeToString(sum)
	if len(sum) == sha256.Size {
		text = "sha256:" + text
	}
	return text
}

// Generation of a desired state.
func Generation(g wire.Generation) *fleetv1.Generation {
	return &fleetv1.Generation{Epoch: g.Epoch, Counter: g.Counter}
}

// Severity of a condition.
func Severity(s uint8) string {
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

// Conditions of a device's health.
func Conditions(in []wire.Condition) (out []*fleetv1.Condition) {
	for _, c := range in {
		out = append(out, &fleetv1.Condition{Name: c.Name, Severity: Severity(c.Severity), Message: c.Message, Since: Milli(c.Since)})
	}
	return out
}

// Journal of an update.
func Journal(in []wire.StepEntry) (out []*fleetv1.StepEntry) {
	for _, e := range in {
		out = append(out, &fleetv1.StepEntry{Step: e.Step, State: e.State.String(), Release: Digest(e.Release), Message: e.Message, Time: Milli(e.Time)})
	}
	return out
}

// Sources are bytes by way.
func Sources(in []wire.SourceBytes) (out []*fleetv1.SourceBytes) {
	for _, s := range in {
		out = append(out, &fleetv1.SourceBytes{Name: s.Name, Bytes: s.Bytes})
	}
	return out
}

// Transfer is what a device's policy makes of its update, nil for nothing.
func Transfer(p *wire.PolicyState) *fleetv1.TransferState {
	if p == nil {
		return nil
	}
	out := &fleetv1.TransferState{Interface: p.Interface, LinkClass: p.Class.String(), Zone: p.Zone}
	for _, u := range p.Used {
		out.Used = append(out.Used, &fleetv1.AllowanceUse{LinkClass: u.Class.String(), Period: u.Period.String(), Name: u.Name, Bytes: u.Bytes, Limit: u.Limit})
	}
	if p.Waits != 0 {
		out.Waits = p.Waits.String()
		if p.Until != 0 {
			out.Until = timestamppb.New(time.Unix(p.Until, 0))
		}
	}
	for _, h := range p.Holds {
		out.Holds = append(out.Holds, Hold(h))
	}
	return out
}

// Hold is what one application holds off.
func Hold(h wire.Hold) *fleetv1.Hold {
	return &fleetv1.Hold{Owner: h.Owner, Reason: h.Reason, Since: timestamppb.New(time.Unix(h.Since, 0)), Until: timestamppb.New(time.Unix(h.Until, 0))}
}

// Crash is what is known of a start that ended by itself.
func Crash(c *wire.Crash) *fleetv1.Crash {
	return &fleetv1.Crash{Number: c.Number, Kind: c.Kind, Time: Milli(c.Time), Found: Milli(c.Found), AgentVersion: c.Agent, Panic: c.Panic,
		Log: c.Log, Tegrastats: c.Tegrastats, Journal: Journal(c.Journal), Exits: c.Exits}
}

// Power is how a board runs, nil where it does not tell.
func Power(p *wire.Power) *fleetv1.PowerState {
	if p == nil {
		return nil
	}
	out := &fleetv1.PowerState{Mode: p.Mode, Modes: p.Modes, Wanted: p.Wanted, NeedsReboot: p.NeedsReboot, Fan: p.Fan, Headroom: float64(p.Headroom) / 1000, Zone: p.Zone}
	if p.Clocks != 0 {
		out.Clocks = p.Clocks.String()
	}
	for _, t := range p.Throttle {
		out.Throttle = append(out.Throttle, &fleetv1.Throttle{Name: t.Name, Detail: t.Detail})
	}
	for _, c := range p.OverCurrent {
		out.OverCurrent = append(out.OverCurrent, &fleetv1.OverCurrent{Name: c.Name, Count: c.Count, PerHour: c.PerHour})
	}
	return out
}

// Servers are what serves models.
func Servers(list []wire.Server) []*fleetv1.ModelServer {
	out := make([]*fleetv1.ModelServer, 0, len(list))
	for _, s := range list {
		m := &fleetv1.ModelServer{Workload: s.Workload, Kind: s.Kind, Server: s.Server, State: s.State, Reason: s.Reason, Restarts: s.Restarts,
			LastExit: s.LastExit, MemoryBytes: s.Memory, Requests: s.Requests, Failed: s.Failed, QueueMicroseconds: s.Queue,
			ComputeMicroseconds: s.Compute, Pending: s.Pending, GpuMemoryBytes: s.GPUMemory}
		if s.Started != 0 {
			m.Started = Milli(s.Started)
		}
		if len(s.Image) > 0 {
			m.Image = "sha256:" + hex.EncodeToString(s.Image)
		}
		out = append(out, m)
	}
	return out
}

// Tap is what applications asked of a device's models, nil without a tap.
func Tap(t *wire.Tap) *fleetv1.TapState {
	if t == nil {
		return nil
	}
	out := &fleetv1.TapState{Address: t.Address, Refused: t.Refused}
	for _, a := range t.Asked {
		out.Asked = append(out.Asked, &fleetv1.Asked{Model: a.Model, Version: a.Version, Ok: a.OK, Invalid: a.Invalid, Failed: a.Failed, Shed: a.Shed, P50Microseconds: a.P50, P99Microseconds: a.P99})
	}
	return out
}

// AskedLine says on one line what applications asked of a model version.
func AskedLine(a *fleetv1.Asked) string {
	who := "no server"
	if a.GetModel() != "" {
		who = a.GetModel() + " " + a.GetVersion()
	}
	s := fmt.Sprintf("%s: %d answered, %d invalid, %d failed, %d turned away", who, a.GetOk(), a.GetInvalid(), a.GetFailed(), a.GetShed())
	if a.GetOk() > 0 {
		s += fmt.Sprintf(", median %d µs, p99 %d µs", a.GetP50Microseconds(), a.GetP99Microseconds())
	}
	return s
}

// ServerLine says on one line what is known of a model server.
func ServerLine(m *fleetv1.ModelServer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", orElse(m.GetServer(), "unknown"), orElse(m.GetKind(), "server"), m.GetState())
	add := func(format string, args ...any) { fmt.Fprintf(&b, ", "+format, args...) }
	if m.GetMemoryBytes() > 0 {
		add("%d MiB", m.GetMemoryBytes()>>20)
	}
	if m.GetGpuMemoryBytes() > 0 {
		add("%d MiB on GPUs", m.GetGpuMemoryBytes()>>20)
	}
	if m.GetRequests()+m.GetFailed() > 0 {
		add("%d requests, %d failed, %d µs computing, %d µs waiting", m.GetRequests(), m.GetFailed(), m.GetComputeMicroseconds(), m.GetQueueMicroseconds())
	}
	if m.GetImage() != "" {
		add("image %.19s", m.GetImage())
	}
	if m.GetRestarts() > 0 {
		add("%d restarts", m.GetRestarts())
	}
	if m.GetLastExit() != "" {
		add("last ended: %s", m.GetLastExit())
	}
	if m.GetReason() != "" {
		add("%s", m.GetReason())
	}
	return b.String()
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// BootChain is the inventory of a machine's boot chain, nil for none.
func BootChain(b *wire.BootChain) *fleetv1.BootChain {
	if b == nil {
		return nil
	}
	out := &fleetv1.BootChain{Driver: b.Driver, Version: b.Version, Redundancy: b.Redundancy, Capsule: b.Capsule, Firmware: bootSlots(b.Firmware), Rootfs: bootSlots(b.Rootfs)}
	for _, f := range b.ESRT {
		out.Esrt = append(out.Esrt, &fleetv1.BootFirmware{Class: f.Class, Version: f.Version, LowestSupported: f.Lowest, LastAttemptVersion: f.Attempted, LastAttemptStatus: f.Status})
	}
	for _, t := range b.Traps {
		out.Traps = append(out.Traps, &fleetv1.BootTrap{Name: t.Name, Problem: t.Problem, Repair: t.Repair})
	}
	return out
}

func bootSlots(in []wire.BootSlot) []*fleetv1.BootSlot {
	out := make([]*fleetv1.BootSlot, len(in))
	for i, s := range in {
		out[i] = &fleetv1.BootSlot{Number: int32(s.Number), Status: s.Status, Retries: int32(s.Retries), Current: s.Current, Active: s.Active}
	}
	return out
}

// AgentSlots are the slots of the agent's own binary, nil where there are none.
func AgentSlots(a *wire.AgentSlots) *fleetv1.AgentSlots {
	if a == nil {
		return nil
	}
	return &fleetv1.AgentSlots{Active: a.Active, Previous: a.Previous, Digest: Digest(a.Digest), Trial: a.Trial, TriesLeft: int32(a.TriesLeft), CheckedIn: a.CheckedIn, Failure: a.Failure}
}
