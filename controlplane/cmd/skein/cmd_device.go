package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
)

func (a *app) deviceCmd() *cobra.Command {
	return group("device", "devices of the fleet", "  skein device list -l site=lyon\n  skein device explain cam-07",
		a.deviceListCmd(), a.deviceShowCmd(), a.deviceExplainCmd(), a.deviceEventsCmd(), a.deviceCrashesCmd(), a.deviceApproveCmd(),
		a.deviceRevokeCmd(), a.deviceReplaceCmd(), a.deviceLabelCmd(), a.deviceAssignCmd(), a.deviceConfirmCmd())
}

// stateName turns DEVICE_STATE_ONLINE into online.
func stateName(s fleetv1.DeviceState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "DEVICE_STATE_"))
}

// converging says in one word where a device stands with its desired state.
func converging(d *fleetv1.Device) string {
	if d.GetPhase() == "updating" && d.GetStep() != "" {
		return "updating: " + d.GetStep()
	}
	if d.GetFailureClass() != "" && d.GetPhase() == "failed" {
		return "failed: " + d.GetFailureClass()
	}
	return d.GetPhase()
}

func deviceTable(w io.Writer, devices []*fleetv1.Device) {
	row(w, "NAME", "ID", "STATE", "TARGET", "RELEASE", "WANTED", "PHASE", "SEEN")
	for _, d := range devices {
		row(w, d.GetName(), short(d.GetId()), stateName(d.GetState()), d.GetTarget(),
			d.GetRunningReleaseName(), d.GetDesiredReleaseName(), converging(d), ago(d.GetLastSeen()))
	}
}

func (a *app) deviceListCmd() *cobra.Command {
	var selector, search string
	var watch bool
	c := &cobra.Command{
		Use: "list", Short: "list devices", Args: args(cobra.NoArgs),
		Long:    "A selector is a list of a=b, a!=b, \"a in (b,c)\", a, !a, joined by commas, over labels and\nid, name, state, target, release, hardware, serial.",
		Example: "  skein device list\n  skein device list -l 'site=lyon,state=online' -o json\n  skein device list --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.allDevices(cmd.Context(), selector, search)
			if err != nil {
				return err
			}
			if watch {
				return a.watchDevices(cmd.Context(), selector, all.GetDevices())
			}
			if all.GetTotal() == 0 && a.table() {
				a.note("no devices; skein token create makes a token that lets one in")
			}
			return a.emitList(all, func(w io.Writer) { deviceTable(w, all.GetDevices()) })
		},
	}
	c.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	c.Flags().StringVar(&search, "search", "", "text in name, id, serial or hardware")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show changes until interrupted")
	c.MarkFlagsMutuallyExclusive("search", "watch")
	noFiles(c, "selector", "search")
	return c
}

// allDevices gathers the pages of a list.
func (a *app) allDevices(ctx context.Context, selector, search string) (*fleetv1.ListDevicesResponse, error) {
	all := &fleetv1.ListDevicesResponse{}
	req := &fleetv1.ListDevicesRequest{Selector: selector, Search: search, PageSize: 500}
	for {
		r, err := a.fleet().ListDevices(ctx, req)
		if err != nil {
			return nil, err
		}
		all.Devices = append(all.Devices, r.GetDevices()...)
		all.Total = r.GetTotal()
		if req.PageToken = r.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// watchDevices shows the list again after each change on a terminal; elsewhere
// it prints the list and then each device that changed, as a line of its own.
func (a *app) watchDevices(ctx context.Context, selector string, devices []*fleetv1.Device) error {
	s, err := a.fleet().WatchFleet(ctx, &fleetv1.WatchFleetRequest{Selector: selector})
	if err != nil {
		return err
	}
	screen := a.screen()
	changed := devices
	show := func(m *fleetv1.WatchFleetResponse) error {
		if m != nil {
			changed = m.GetChanged()
		}
		if !a.table() || screen.size == nil {
			for _, d := range changed {
				if err := a.deviceLine(d); err != nil {
					return err
				}
			}
			return nil
		}
		for _, d := range changed {
			if i := slices.IndexFunc(devices, func(x *fleetv1.Device) bool { return x.GetId() == d.GetId() }); i >= 0 {
				devices[i] = d
			} else {
				devices = append(devices, d)
			}
		}
		return screen.draw(func(w io.Writer) { deviceTable(w, devices) })
	}
	if err := show(nil); err != nil {
		return err
	}
	return followOn(ctx, s, show)
}

func (a *app) deviceLine(d *fleetv1.Device) error {
	if !a.table() {
		return a.emitEach(d)
	}
	_, err := fmt.Fprintf(a.env.stdout, "%-20s  %-8s  %-16s  wants %-16s  %s\n", clean(d.GetName()), stateName(d.GetState()),
		cmp.Or(d.GetRunningReleaseName(), "-"), cmp.Or(d.GetDesiredReleaseName(), "-"), clean(converging(d)))
	return err
}

func (a *app) deviceShowCmd() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "show DEVICE", Short: "show one device: desired, reported, journal, readings", Args: args(cobra.ExactArgs(1)),
		Long:              "DEVICE is an id, a unique prefix of one, or a name.",
		Example:           "  skein device show cam-07\n  skein device show cam-07 --watch",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !watch {
				r, err := a.fleet().GetDevice(cmd.Context(), &fleetv1.GetDeviceRequest{Device: args[0]})
				if err != nil {
					return err
				}
				return a.emit(r, func(w io.Writer) { deviceDetails(w, r.GetDevice(), r.GetReadings()) })
			}
			s, err := a.fleet().WatchDevice(cmd.Context(), &fleetv1.WatchDeviceRequest{Device: args[0]})
			if err != nil {
				return err
			}
			screen := a.screen()
			return followOn(cmd.Context(), s, func(m *fleetv1.WatchDeviceResponse) error {
				if !a.table() {
					return a.emitEach(m)
				}
				return screen.draw(func(w io.Writer) { deviceDetails(w, m.GetDevice(), m.GetReadings()) })
			})
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show again at every change until interrupted")
	return c
}

func deviceDetails(w io.Writer, d *fleetv1.Device, readings []*fleetv1.Reading) {
	row(w, "id", d.GetId())
	row(w, "name", d.GetName())
	row(w, "state", stateName(d.GetState())+", seen "+ago(d.GetLastSeen()))
	row(w, "hardware", d.GetHardware())
	row(w, "serial", d.GetSerial())
	row(w, "target", d.GetTarget())
	row(w, "labels", labels(d.GetLabels()))
	row(w, "capabilities", strings.Join(d.GetCapabilities(), ","))
	if len(d.GetServes()) > 0 {
		row(w, "serves its site at", strings.Join(d.GetServes(), ", "))
	}
	row(w, "agent", d.GetAgentVersion())
	if t := d.GetCertificateNotAfter(); t != nil {
		row(w, "certificate", "until "+stamp(t))
	}
	row(w, "desired", fmt.Sprintf("%s %s, generation %d.%d", cmp.Or(d.GetDesiredReleaseName(), "nothing"), short(d.GetDesiredRelease()),
		d.GetDesiredGeneration().GetEpoch(), d.GetDesiredGeneration().GetCounter()))
	row(w, "reported", fmt.Sprintf("%s %s, generation %d.%d", cmp.Or(d.GetRunningReleaseName(), "nothing"), short(d.GetRunningRelease()),
		d.GetHeldGeneration().GetEpoch(), d.GetHeldGeneration().GetCounter()))
	row(w, "phase", converging(d))
	if d.GetGenerationFromFuture() {
		row(w, "warning", "it holds a generation that was never given; see: skein device explain "+d.GetName())
	}
	if d.GetClockDoubtful() {
		row(w, "warning", "its clock is doubtful")
	}
	if d.GetFailure() != "" {
		row(w, "last failure", d.GetFailureClass()+": "+d.GetFailure())
	}
	if d.GetRollout() != "" {
		row(w, "rollout", d.GetRollout())
	}
	machineRows(w, d)
	powerRows(w, d.GetPower())
	for _, m := range d.GetServers() {
		row(w, "server", present.ServerLine(m))
	}
	for _, a := range d.GetTap().GetAsked() {
		row(w, "asked", present.AskedLine(a))
	}
	transferRows(w, d.GetTransfer())
	if n := d.GetBytesFetched(); n > 0 {
		row(w, "fetched", fmt.Sprintf("%s for the last update%s", size(n), bySource(d.GetSources())))
	}
	for _, c := range d.GetConditions() {
		row(w, "condition", fmt.Sprintf("%s (%s) since %s: %s", c.GetName(), c.GetSeverity(), stamp(c.GetSince()), c.GetMessage()))
	}
	for _, s := range d.GetJournal() {
		row(w, "journal", strings.TrimRight(fmt.Sprintf("%s  %-8s %-8s %s", stamp(s.GetTime()), s.GetStep(), s.GetState(), s.GetMessage()), " "))
	}
	for _, r := range readings {
		row(w, "reading", fmt.Sprintf("%s = %g", r.GetSeries(), r.GetValue()))
	}
}

// bySource says by which ways bytes came.
func bySource(sources []*fleetv1.SourceBytes) string {
	if len(sources) == 0 {
		return ""
	}
	parts := make([]string, len(sources))
	for i, s := range sources {
		parts[i] = size(s.GetBytes()) + " by " + s.GetName()
	}
	return ": " + strings.Join(parts, ", ")
}

func (a *app) deviceExplainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "explain DEVICE", Short: "say what holds a device up, now", Args: args(cobra.ExactArgs(1)), Example: "  skein device explain cam-07",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ExplainDevice(cmd.Context(), &fleetv1.ExplainDeviceRequest{Device: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { explanation(w, r.GetSummary(), r.GetReasons()) })
		},
	}
}

func explanation(w io.Writer, summary string, reasons []string) {
	line(w, "%s", summary)
	for _, r := range reasons {
		line(w, "  - %s", r)
	}
}

func (a *app) deviceEventsCmd() *cobra.Command {
	var limit int32
	c := &cobra.Command{
		Use: "events DEVICE", Short: "list what a device told, newest first", Args: args(cobra.ExactArgs(1)), Example: "  skein device events cam-07 --limit 20",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ListDeviceEvents(cmd.Context(), &fleetv1.ListDeviceEventsRequest{Device: args[0], Limit: limit})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "TIME", "KIND", "STEP", "ATTACK", "MESSAGE")
				for _, e := range r.GetEvents() {
					row(w, stamp(e.GetTime()), e.GetKind(), e.GetStep(), e.GetAttack(), e.GetMessage())
				}
			})
		},
	}
	c.Flags().Int32Var(&limit, "limit", 50, "how many")
	return c
}
