package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) deviceCmd() *cobra.Command {
	return group("device", "devices of the fleet", "  skein device list -l site=lyon\n  skein device explain cam-07",
		a.deviceListCmd(), a.deviceShowCmd(), a.deviceExplainCmd(), a.deviceEventsCmd(), a.deviceApproveCmd(),
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
			if watch {
				return a.watchDevices(cmd.Context(), selector)
			}
			all := &fleetv1.ListDevicesResponse{}
			for token := ""; ; {
				r, err := a.fleet().ListDevices(cmd.Context(), &fleetv1.ListDevicesRequest{Selector: selector, Search: search, PageSize: 500, PageToken: token})
				if err != nil {
					return err
				}
				all.Devices = append(all.Devices, r.GetDevices()...)
				all.Total = r.GetTotal()
				if token = r.GetNextPageToken(); token == "" {
					break
				}
			}
			return a.emit(all, func(w io.Writer) { deviceTable(w, all.GetDevices()) })
		},
	}
	c.Flags().StringVarP(&selector, "selector", "l", "", "label selector")
	c.Flags().StringVar(&search, "search", "", "text in name, id, serial or hardware")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "print every change until interrupted")
	return c
}

// watchDevices prints changed devices as they come.
func (a *app) watchDevices(ctx context.Context, selector string) error {
	stream, err := a.fleet().WatchFleet(ctx, &fleetv1.WatchFleetRequest{Selector: selector})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		for _, d := range stream.Msg().GetChanged() {
			if a.flags.output == "json" {
				if err := a.emitLine(d); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(a.env.stdout, "%-20s %-8s %-16s wants %-16s %s\n", d.GetName(), stateName(d.GetState()),
				cmp.Or(d.GetRunningReleaseName(), "-"), cmp.Or(d.GetDesiredReleaseName(), "-"), converging(d))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return stream.Err()
}

func (a *app) deviceShowCmd() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "show DEVICE", Short: "show one device: desired, reported, journal, readings", Args: args(cobra.ExactArgs(1)),
		Long:              "DEVICE is an id, a unique prefix of one, or a name.",
		Example:           "  skein device show cam-07\n  skein device show cam-07 --watch",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !watch {
				r, err := a.fleet().GetDevice(cmd.Context(), &fleetv1.GetDeviceRequest{Device: args[0]})
				if err != nil {
					return err
				}
				return a.emit(r, func(w io.Writer) { deviceDetails(w, r.GetDevice(), r.GetReadings()) })
			}
			stream, err := a.fleet().WatchDevice(cmd.Context(), &fleetv1.WatchDeviceRequest{Device: args[0]})
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				m := stream.Msg()
				if a.flags.output == "json" {
					if err := a.emitLine(m); err != nil {
						return err
					}
					continue
				}
				a.clear()
				tw := tabwriter.NewWriter(a.env.stdout, 0, 4, 2, ' ', 0)
				deviceDetails(tw, m.GetDevice(), m.GetReadings())
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
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show again at every change until interrupted")
	return c
}

// clear empties a terminal; elsewhere it prints an empty line.
func (a *app) clear() {
	if _, tty := isTerminal(a.env.stdout); tty {
		fmt.Fprint(a.env.stdout, "\x1b[H\x1b[2J")
		return
	}
	fmt.Fprintln(a.env.stdout)
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
	row(w, "agent", d.GetAgentVersion())
	row(w, "certificate", "until "+stamp(d.GetCertificateNotAfter()))
	row(w, "desired", fmt.Sprintf("%s %s, generation %d.%d", cmp.Or(d.GetDesiredReleaseName(), "nothing"), short(d.GetDesiredRelease()),
		d.GetDesiredGeneration().GetEpoch(), d.GetDesiredGeneration().GetCounter()))
	row(w, "reported", fmt.Sprintf("%s %s, generation %d.%d", cmp.Or(d.GetRunningReleaseName(), "nothing"), short(d.GetRunningRelease()),
		d.GetHeldGeneration().GetEpoch(), d.GetHeldGeneration().GetCounter()))
	row(w, "phase", converging(d))
	if d.GetFailure() != "" {
		row(w, "last failure", d.GetFailureClass()+": "+d.GetFailure())
	}
	if d.GetRollout() != "" {
		row(w, "rollout", d.GetRollout())
	}
	for _, c := range d.GetConditions() {
		row(w, "condition", fmt.Sprintf("%s (%s) since %s: %s", c.GetName(), c.GetSeverity(), stamp(c.GetSince()), c.GetMessage()))
	}
	for _, s := range d.GetJournal() {
		row(w, "journal", fmt.Sprintf("%s  %-8s %-8s %s", stamp(s.GetTime()), s.GetStep(), s.GetState(), s.GetMessage()))
	}
	for _, r := range readings {
		row(w, "reading", fmt.Sprintf("%s = %g", r.GetSeries(), r.GetValue()))
	}
}

func (a *app) deviceExplainCmd() *cobra.Command {
	return &cobra.Command{
		Use: "explain DEVICE", Short: "say what holds a device up, now", Args: args(cobra.ExactArgs(1)), Example: "  skein device explain cam-07",
		ValidArgsFunction: a.completeDevices,
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
	fmt.Fprintln(w, summary)
	for _, r := range reasons {
		fmt.Fprintln(w, "  - "+r)
	}
}

func (a *app) deviceEventsCmd() *cobra.Command {
	var limit int32
	c := &cobra.Command{
		Use: "events DEVICE", Short: "list what a device told, newest first", Args: args(cobra.ExactArgs(1)), Example: "  skein device events cam-07 --limit 20",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ListDeviceEvents(cmd.Context(), &fleetv1.ListDeviceEventsRequest{Device: args[0], Limit: limit})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
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

func (a *app) deviceApproveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "approve DEVICE", Short: "let a pending device in", Args: args(cobra.ExactArgs(1)), Example: "  skein device approve cam-07",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ApproveDevice(cmd.Context(), &fleetv1.ApproveDeviceRequest{Device: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				fmt.Fprintf(w, "Approved %s (%s).\n", r.GetDevice().GetName(), r.GetDevice().GetId())
			})
		},
	}
}

func (a *app) deviceRevokeCmd() *cobra.Command {
	var reason string
	var yes bool
	c := &cobra.Command{
		Use: "revoke DEVICE", Short: "refuse a device's certificates and end its session", Args: args(cobra.ExactArgs(1)),
		Long: "The device keeps running what it runs, but can no longer talk to the control plane.\nIt has to be enrolled anew to come back.", Example: "  skein device revoke cam-07 --reason stolen --yes",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.confirm(yes, fmt.Sprintf("Revoke device %s?", args[0])); err != nil {
				return err
			}
			r, err := a.fleet().RevokeDevice(cmd.Context(), &fleetv1.RevokeDeviceRequest{Device: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				session := "it was not connected"
				if r.GetSessionEnded() {
					session = "its session was ended"
				}
				fmt.Fprintf(w, "Revoked %s (%s); %s.\n", r.GetDevice().GetName(), r.GetDevice().GetId(), session)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// confirm asks on a terminal and refuses elsewhere, unless yes is set.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if _, tty := isTerminal(a.env.stdout); !tty {
		return usageError{fmt.Errorf("%s give --yes to do it without asking", question)}
	}
	fmt.Fprintf(a.env.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.env.stdin).ReadString('\n')
	if err != nil || !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return usageError{fmt.Errorf("not confirmed; nothing was done")}
	}
	return nil
}

func (a *app) deviceReplaceCmd() *cobra.Command {
	return &cobra.Command{
		Use: "replace OLD NEW", Short: "give name, labels, parameters and release of OLD to NEW and revoke OLD", Args: args(cobra.ExactArgs(2)),
		Example:           "  skein device replace cam-07 k3jx",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ReplaceDevice(cmd.Context(), &fleetv1.ReplaceDeviceRequest{OldDevice: args[0], NewDevice: args[1]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s is now %s; the old device is revoked.\n", r.GetDevice().GetId(), r.GetDevice().GetName())
			})
		},
	}
}

func (a *app) deviceLabelCmd() *cobra.Command {
	var grant, take []string
	var name string
	c := &cobra.Command{
		Use: "label DEVICE [KEY=VALUE|KEY-]...", Short: "set and remove labels, grant capabilities, rename", Args: args(cobra.MinimumNArgs(1)),
		Example:           "  skein device label cam-07 site=lyon ring=early old-\n  skein device label lab-1 --grant builder\n  skein device label k3jx --name cam-07",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &fleetv1.LabelDeviceRequest{Device: args[0], Grant: grant, Take: take, Name: name}
			var set []string
			for _, arg := range args[1:] {
				if key, ok := strings.CutSuffix(arg, "-"); ok && !strings.Contains(arg, "=") {
					req.Remove = append(req.Remove, key)
				} else {
					set = append(set, arg)
				}
			}
			var err error
			if req.Set, err = pairs(set); err != nil {
				return err
			}
			r, err := a.fleet().LabelDevice(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, r.GetDevice().GetName(), labels(r.GetDevice().GetLabels()), strings.Join(r.GetDevice().GetCapabilities(), ","))
			})
		},
	}
	c.Flags().StringSliceVar(&grant, "grant", nil, "capabilities to grant: builder, cache")
	c.Flags().StringSliceVar(&take, "take", nil, "capabilities to take away")
	c.Flags().StringVar(&name, "name", "", "new name")
	return c
}

func (a *app) deviceAssignCmd() *cobra.Command {
	var none bool
	c := &cobra.Command{
		Use: "assign DEVICE RELEASE", Short: "set the wanted release of one device, outside any rollout", Args: args(cobra.RangeArgs(1, 2)),
		Example:           "  skein device assign cam-07 meter@3\n  skein device assign cam-07 --none",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if none == (len(args) == 2) {
				return usageError{fmt.Errorf("give either a release or --none")}
			}
			req := &fleetv1.AssignReleaseRequest{Device: args[0]}
			if !none {
				req.Release = args[1]
			}
			r, err := a.fleet().AssignRelease(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s wants %s (generation %d.%d).\n", r.GetDevice().GetName(), cmp.Or(r.GetDevice().GetDesiredReleaseName(), "nothing"),
					r.GetDevice().GetDesiredGeneration().GetEpoch(), r.GetDevice().GetDesiredGeneration().GetCounter())
			})
		},
	}
	c.Flags().BoolVar(&none, "none", false, "want nothing")
	return c
}

func (a *app) deviceConfirmCmd() *cobra.Command {
	return &cobra.Command{
		Use: "confirm DEVICE", Short: "accept the generation of a device that is ahead of the control plane", Args: args(cobra.ExactArgs(1)),
		Long:              "A device that holds a generation the control plane never gave has seen another one,\nfor example before a restore from backup. Until it is confirmed, nothing destructive is sent to it.",
		Example:           "  skein device confirm cam-07",
		ValidArgsFunction: a.completeDevices,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ConfirmGeneration(cmd.Context(), &fleetv1.ConfirmGenerationRequest{Device: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { fmt.Fprintf(w, "Confirmed %s.\n", r.GetDevice().GetName()) })
		},
	}
}

func (a *app) completeDevices(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if a.loadConfig() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	r, err := a.fleet().ListDevices(cmd.Context(), &fleetv1.ListDevicesRequest{Search: prefix, PageSize: 50})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, d := range r.GetDevices() {
		names = append(names, cmp.Or(d.GetName(), d.GetId()))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
