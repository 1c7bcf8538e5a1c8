package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) deviceCrashesCmd() *cobra.Command {
	return &cobra.Command{
		Use: "crashes DEVICE [NUMBER]", Short: "list crashes and unclean restarts of a device, or show one", Args: args(cobra.RangeArgs(1, 2)),
		Example:           "  skein device crashes cam-07\n  skein device crashes cam-07 3",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r, err := a.fleet().ListDeviceCrashes(cmd.Context(), &fleetv1.ListDeviceCrashesRequest{Device: args[0]})
				if err != nil {
					return err
				}
				return a.emitList(r, func(w io.Writer) {
					row(w, "NUMBER", "WHAT", "LAST SEEN", "FOUND", "AGENT")
					for _, c := range r.GetCrashes() {
						row(w, strconv.FormatUint(c.GetNumber(), 10), c.GetKind(), stamp(c.GetTime()), stamp(c.GetFound()), c.GetAgentVersion())
					}
				})
			}
			n, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("%q is no number of a crash: skein device crashes %s lists them", args[1], args[0])}
			}
			r, err := a.fleet().GetDeviceCrash(cmd.Context(), &fleetv1.GetDeviceCrashRequest{Device: args[0], Number: n})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { crashText(w, r.GetCrash()) })
		},
	}
}

func crashText(w io.Writer, c *fleetv1.Crash) {
	what := "the agent ended without having been stopped"
	if c.GetKind() == "machine" {
		what = "the machine ended without having been shut down"
	}
	line(w, "%s; last seen %s, found %s, agent %s", what, stamp(c.GetTime()), stamp(c.GetFound()), c.GetAgentVersion())
	part := func(title string, lines []string) {
		if len(lines) == 0 {
			return
		}
		line(w, "\n%s", title)
		for _, l := range lines {
			line(w, "  %s", l)
		}
	}
	if c.GetPanic() != "" {
		part("panic", strings.Split(strings.TrimRight(c.GetPanic(), "\n"), "\n"))
	}
	part("model servers that ended", c.GetExits())
	var steps []string
	for _, s := range c.GetJournal() {
		steps = append(steps, strings.TrimRight(fmt.Sprintf("%s  %-8s %-8s %s", stamp(s.GetTime()), s.GetStep(), s.GetState(), s.GetMessage()), " "))
	}
	part("update journal", steps)
	part("log", c.GetLog())
	part("board", c.GetTegrastats())
}

// powerRows show how the board runs.
func powerRows(w io.Writer, p *fleetv1.PowerState) {
	if p == nil {
		return
	}
	text := p.GetMode()
	if p.GetClocks() != "" {
		text += ", clocks " + p.GetClocks()
	}
	if p.GetFan() != "" {
		text += ", fan " + p.GetFan()
	}
	if p.GetWanted() != "" && p.GetWanted() != p.GetMode() {
		text += "; wanted is " + p.GetWanted()
		if p.GetNeedsReboot() {
			text += ", which needs a restart of the machine"
		}
	}
	row(w, "power mode", text)
	for _, t := range p.GetThrottle() {
		row(w, "throttled", t.GetName()+": "+t.GetDetail())
	}
	if p.GetZone() != "" {
		row(w, "headroom", fmt.Sprintf("%.1f K below the trip of %s", p.GetHeadroom(), p.GetZone()))
	}
	for _, c := range p.GetOverCurrent() {
		if c.GetCount() > 0 {
			row(w, "over-current", fmt.Sprintf("%s: %d events since the start, %d an hour of late", c.GetName(), c.GetCount(), c.GetPerHour()))
		}
	}
}
