package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

// machineFlags are what a release brings for the machine beside the model.
type machineFlags struct{ agents, images []string }

// machineLayers uploads agents and images.
func (a *app) machineLayers(ctx context.Context, f machineFlags) (out []*releasev1.MachineLayer, err error) {
	for _, text := range f.agents {
		file, target, _ := strings.Cut(text, ":")
		if file == "" {
			return nil, usageError{fmt.Errorf("--agent-binary %q: want FILE or FILE:TARGET", text)}
		}
		l := &releasev1.MachineLayer{Target: target}
		if l.AgentDigest, err = a.upload(ctx, file); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	for _, text := range f.images {
		part := strings.Split(text, ":")
		if len(part) != 3 || part[0] == "" || part[2] == "" {
			return nil, usageError{fmt.Errorf("--os-image %q: want FILE:TARGET:TARGET-AFTER, as in os.img:linux/arm64;l4t=36.4.3:linux/arm64;l4t=39.2.0", text)}
		}
		l := &releasev1.MachineLayer{Target: part[1], OsTarget: part[2]}
		if l.OsImageDigest, err = a.upload(ctx, part[0]); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// brings says what a target gets beside the model.
func brings(r *releasev1.Release, target string) string {
	text := ""
	if slices.Contains(r.GetAgentTargets(), target) {
		text += "  with an agent"
	}
	if slices.Contains(r.GetOsTargets(), target) {
		text += "  with an operating system"
	}
	return text
}

// machineRows shows boot chain and agent slots of a device.
func machineRows(w io.Writer, d *fleetv1.Device) {
	if s := d.GetAgentSlots(); s.GetActive() != "" {
		text := "slot " + s.GetActive()
		if s.GetPrevious() != "" {
			text += ", before " + s.GetPrevious()
		}
		if s.GetTrial() != "" {
			text += fmt.Sprintf(", on trial in slot %s with %d tries left", s.GetTrial(), s.GetTriesLeft())
		}
		if s.GetDigest() != "" {
			text += ", " + short(s.GetDigest())
		}
		row(w, "agent slots", text)
		if s.GetFailure() != "" {
			row(w, "agent trial", "did not hold: "+s.GetFailure())
		}
	}
	b := d.GetBootChain()
	if b == nil {
		return
	}
	row(w, "boot chain", fmt.Sprintf("%s %s, redundancy %s, capsule %s", b.GetDriver(), b.GetVersion(), b.GetRedundancy(), b.GetCapsule()))
	for _, s := range b.GetRootfs() {
		row(w, "rootfs slot", slotText(s))
	}
	for _, s := range b.GetFirmware() {
		row(w, "firmware slot", slotText(s))
	}
	for _, f := range b.GetEsrt() {
		row(w, "firmware", fmt.Sprintf("%s version %#x, lowest %#x, last attempt %#x status %d", f.GetClass(), f.GetVersion(), f.GetLowestSupported(), f.GetLastAttemptVersion(), f.GetLastAttemptStatus()))
	}
	for _, t := range b.GetTraps() {
		row(w, "boot trap", t.GetName()+": "+t.GetProblem())
		row(w, "repair", t.GetRepair())
	}
}

func slotText(s *fleetv1.BootSlot) string {
	text := fmt.Sprintf("%c %s", 'A'+s.GetNumber(), s.GetStatus())
	if s.GetRetries() >= 0 {
		text += fmt.Sprintf(", %d retries left", s.GetRetries())
	}
	if s.GetCurrent() {
		text += ", runs"
	}
	if s.GetActive() {
		text += ", starts next"
	}
	return text
}
