package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) deviceApproveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "approve DEVICE", Short: "let a pending device in", Args: args(cobra.ExactArgs(1)), Example: "  skein device approve cam-07",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ApproveDevice(cmd.Context(), &fleetv1.ApproveDeviceRequest{Device: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "Approved %s (%s).", r.GetDevice().GetName(), r.GetDevice().GetId())
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
		ValidArgsFunction: a.offer(a.deviceNames),
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
				line(w, "Revoked %s (%s); %s.", r.GetDevice().GetName(), r.GetDevice().GetId(), session)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	noFiles(c, "reason")
	return c
}

// confirm asks on a terminal and refuses elsewhere, unless yes is set.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if _, tty := isTerminal(a.env.stdin); !tty {
		return hinted{usageError{fmt.Errorf("%s Nobody is there to ask", question)}, "give --yes to do it without asking"}
	}
	fmt.Fprintf(a.env.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.env.stdin).ReadString('\n')
	if err != nil || !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return usageError{errors.New("not confirmed; nothing was done")}
	}
	return nil
}

func (a *app) deviceReplaceCmd() *cobra.Command {
	return &cobra.Command{
		Use: "replace OLD NEW", Short: "give name, labels, parameters and release of OLD to NEW and revoke OLD", Args: args(cobra.ExactArgs(2)),
		Example:           "  skein device replace cam-07 k3jx",
		ValidArgsFunction: a.offer(a.deviceNames, a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ReplaceDevice(cmd.Context(), &fleetv1.ReplaceDeviceRequest{OldDevice: args[0], NewDevice: args[1]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "%s is now %s; the old device is revoked.", r.GetDevice().GetId(), r.GetDevice().GetName())
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
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && len(grant)+len(take) == 0 && name == "" {
				return usageError{errors.New("nothing to change: give KEY=VALUE, KEY-, --grant, --take or --name")}
			}
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
	fixed(c, "grant", "builder", "cache")
	fixed(c, "take", "builder", "cache")
	noFiles(c, "name")
	return c
}

func (a *app) deviceAssignCmd() *cobra.Command {
	var none, now bool
	c := &cobra.Command{
		Use: "assign DEVICE RELEASE", Short: "set the wanted release of one device, outside any rollout", Args: args(cobra.RangeArgs(1, 2)),
		Example:           "  skein device assign cam-07 meter@3\n  skein device assign cam-07 meter@3 --now\n  skein device assign cam-07 --none",
		ValidArgsFunction: a.offer(a.deviceNames, a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if none == (len(args) == 2) {
				return usageError{errors.New("give either a release or --none")}
			}
			req := &fleetv1.AssignReleaseRequest{Device: args[0], Now: now}
			if !none {
				req.Release = args[1]
			}
			r, err := a.fleet().AssignRelease(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "%s wants %s (generation %d.%d).", r.GetDevice().GetName(), cmp.Or(r.GetDevice().GetDesiredReleaseName(), "nothing"),
					r.GetDevice().GetDesiredGeneration().GetEpoch(), r.GetDevice().GetDesiredGeneration().GetCounter())
			})
		},
	}
	c.Flags().BoolVar(&none, "none", false, "want nothing")
	c.Flags().BoolVar(&now, "now", false, "wait for no window and no allowance of the policy")
	return c
}

func (a *app) deviceConfirmCmd() *cobra.Command {
	return &cobra.Command{
		Use: "confirm DEVICE", Short: "accept the generation of a device that is ahead of the control plane", Args: args(cobra.ExactArgs(1)),
		Long:              "A device that holds a generation the control plane never gave has seen another one,\nfor example before a restore from backup. Until it is confirmed, nothing destructive is sent to it.",
		Example:           "  skein device confirm cam-07",
		ValidArgsFunction: a.offer(a.deviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.fleet().ConfirmGeneration(cmd.Context(), &fleetv1.ConfirmGenerationRequest{Device: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "Confirmed %s.", r.GetDevice().GetName()) })
		},
	}
}
