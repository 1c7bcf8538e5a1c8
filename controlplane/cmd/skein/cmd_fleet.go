package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) fleetCmd() *cobra.Command {
	var selector string
	var watch bool
	status := &cobra.Command{
		Use: "status", Short: "count the fleet by state, release, target and site", Args: args(cobra.NoArgs),
		Example: "  skein fleet status\n  skein fleet status -l site=lyon --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !watch {
				r, err := a.fleet().GetFleetStatus(cmd.Context(), &fleetv1.GetFleetStatusRequest{Selector: selector})
				if err != nil {
					return err
				}
				return a.emit(r, func(w io.Writer) { fleetTable(w, r.GetStatus()) })
			}
			stream, err := a.fleet().WatchFleet(cmd.Context(), &fleetv1.WatchFleetRequest{Selector: selector})
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				s := stream.Msg().GetStatus()
				if a.flags.output == "json" {
					if err := a.emitLine(s); err != nil {
						return err
					}
					continue
				}
				a.clear()
				tw := tabwriter.NewWriter(a.env.stdout, 0, 4, 2, ' ', 0)
				fleetTable(tw, s)
				if err := tw.Flush(); err != nil {
					return err
				}
			}
			if cmd.Context().Err() != nil {
				return nil
			}
			return stream.Err()
		},
	}
	status.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	status.Flags().BoolVarP(&watch, "watch", "w", false, "show again at every change until interrupted")
	return group("fleet", "the fleet as a whole", "  skein fleet status", status)
}

func fleetTable(w io.Writer, s *fleetv1.FleetStatus) {
	row(w, "devices", s.GetDevices())
	row(w, "converging", s.GetConverging())
	row(w, "failed", s.GetFailed())
	for _, g := range []struct {
		name   string
		counts []*fleetv1.Count
	}{
		{"state", s.GetByState()}, {"release", s.GetByRelease()}, {"hardware", s.GetByHardware()},
		{"target", s.GetByTarget()}, {"site", s.GetBySite()}, {"condition", s.GetByCondition()},
	} {
		for _, c := range g.counts {
			key := c.GetKey()
			if key == "" {
				key = "none"
			}
			width := 0
			if s.GetDevices() > 0 {
				width = int(20 * c.GetCount() / s.GetDevices())
			}
			row(w, g.name, fmt.Sprintf("%4d", c.GetCount()), strings.Repeat("█", width), key)
		}
	}
}
