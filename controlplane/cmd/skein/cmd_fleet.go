package main

import (
	"cmp"
	"fmt"
	"io"

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
			s, err := a.fleet().WatchFleet(cmd.Context(), &fleetv1.WatchFleetRequest{Selector: selector})
			if err != nil {
				return err
			}
			screen := a.screen()
			return followOn(cmd.Context(), s, func(m *fleetv1.WatchFleetResponse) error {
				if !a.table() {
					return a.emitEach(m.GetStatus())
				}
				return screen.draw(func(w io.Writer) { fleetTable(w, m.GetStatus()) })
			})
		},
	}
	status.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	status.Flags().BoolVarP(&watch, "watch", "w", false, "show again at every change until interrupted")
	noFiles(status, "selector")
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
			row(w, g.name, cmp.Or(c.GetKey(), "none"), fmt.Sprintf("%5d", c.GetCount()), bar(int64(c.GetCount()), int64(s.GetDevices()), 20))
		}
	}
}
