package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	policyv1 "github.com/skein-fleet/skein/proto/gen/skein/policy/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/policy/v1/policyv1connect"
)

func (a *app) policies() policyv1connect.PolicyServiceClient {
	return policyv1connect.NewPolicyServiceClient(a.http(), a.config.server)
}

func (a *app) policyCmd() *cobra.Command {
	return group("policy", "when and how fast devices may download and apply: fleet, then site, then device",
		"  skein policy set --site lyon download-window=\"Mon-Fri 22:00-06:00\" metered='wwan*' metered-day=50MB",
		a.policySetCmd(), a.policyUnsetCmd(), a.policyShowCmd(), a.policyExplainCmd())
}

// place is where a setting stands.
type place struct {
	site, device string
	fleet        bool
}

func (a *app) placeFlags(c *cobra.Command) *place {
	p := &place{}
	c.Flags().BoolVar(&p.fleet, "fleet", false, "for all devices (the default)")
	c.Flags().StringVar(&p.site, "site", "", "for the devices of a site (label site)")
	c.Flags().StringVar(&p.device, "device", "", "for one device")
	a.offerFlag(c, "device", a.deviceNames)
	noFiles(c, "site")
	return p
}

func (p *place) setting(key, value string) (*policyv1.PolicySetting, error) {
	s := &policyv1.PolicySetting{Scope: policyv1.PolicyScope_POLICY_SCOPE_FLEET, Key: key, Value: value}
	n := 0
	for _, given := range []bool{p.fleet, p.site != "", p.device != ""} {
		if given {
			n++
		}
	}
	switch {
	case n > 1:
		return nil, usageError{errors.New("give one of --fleet, --site and --device")}
	case p.site != "":
		s.Scope, s.Subject = policyv1.PolicyScope_POLICY_SCOPE_SITE, p.site
	case p.device != "":
		s.Scope, s.Subject = policyv1.PolicyScope_POLICY_SCOPE_DEVICE, p.device
	}
	return s, nil
}

func policyKeys() string {
	var b strings.Builder
	for _, k := range policy.Help() {
		fmt.Fprintf(&b, "\n  %-16s %s", k[0], k[1])
	}
	return b.String()
}

func (a *app) policySetCmd() *cobra.Command {
	var at *place
	c := &cobra.Command{
		Use: "set KEY=VALUE...", Short: "set windows, allowances and rates at one scope", Args: args(cobra.MinimumNArgs(1)),
		Long: `Without --site or --device the settings are for the whole fleet. What a device
gets is, for each key, the value of the last scope that has one: fleet, site,
device. Devices whose policy changes get a new generation. What is on its way
obeys at once; what has begun to be put to work, and a way back, wait for
nothing. Windows end at the time that they name: a window that is over ends a
download, which goes on in the next.

Keys:` + policyKeys(),
		Example: "  skein policy set --site lyon download-window=\"Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00\" apply-window=\"Sun 02:00-05:00\" zone=Europe/Paris\n" +
			"  skein policy set metered='wwan*,ppp*' metered-day=50MB metered-month=1GB\n  skein policy set site-rate=5MB/s fleet-rate=100MB/s\n  skein policy set --device cam-07 metered-day=unlimited",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &policyv1.SetPolicyRequest{}
			for _, arg := range args {
				key, value, ok := strings.Cut(arg, "=")
				if !ok || key == "" {
					return usageError{fmt.Errorf("%q: want KEY=VALUE; skein policy unset removes", arg)}
				}
				s, err := at.setting(key, value)
				if err != nil {
					return err
				}
				req.Set = append(req.Set, s)
			}
			return a.changePolicy(cmd, req)
		},
	}
	at = a.placeFlags(c)
	return c
}

func (a *app) changePolicy(cmd *cobra.Command, req *policyv1.SetPolicyRequest) error {
	r, err := a.policies().SetPolicy(cmd.Context(), req)
	if err != nil {
		return err
	}
	return a.emit(r, func(w io.Writer) { line(w, "%d devices get a new generation.", r.GetDevices()) })
}

func (a *app) policyUnsetCmd() *cobra.Command {
	var at *place
	var all bool
	c := &cobra.Command{
		Use: "unset KEY...", Short: "remove settings at one scope", Args: args(cobra.ArbitraryArgs),
		Long:    "What an earlier scope says counts again. --all removes everything that is set at the scope.",
		Example: "  skein policy unset --site lyon download-window\n  skein policy unset --device cam-07 --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return usageError{errors.New("give either keys or --all")}
			}
			req := &policyv1.SetPolicyRequest{}
			if all {
				args = []string{""}
			}
			for _, key := range args {
				s, err := at.setting(key, "")
				if err != nil {
					return err
				}
				req.Remove = append(req.Remove, s)
			}
			return a.changePolicy(cmd, req)
		},
	}
	at = a.placeFlags(c)
	c.Flags().BoolVar(&all, "all", false, "everything that is set at the scope")
	return c
}

func scopeName(s policyv1.PolicyScope) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "POLICY_SCOPE_"))
}

func (a *app) policyShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "show all settings", Args: args(cobra.NoArgs), Example: "  skein policy show",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.policies().ListPolicy(cmd.Context(), &policyv1.ListPolicyRequest{})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) { policyTable(w, r.GetSettings()) })
		},
	}
}

func policyTable(w io.Writer, settings []*policyv1.PolicySetting) {
	row(w, "KEY", "VALUE", "SCOPE", "SUBJECT")
	for _, s := range settings {
		row(w, s.GetKey(), s.GetValue(), scopeName(s.GetScope()), cmp.Or(s.GetSubject(), "-"))
	}
}

func (a *app) policyExplainCmd() *cobra.Command {
	var device string
	c := &cobra.Command{
		Use: "explain --device DEVICE", Short: "show what is in force on a device, where it comes from and what it holds up now", Args: args(cobra.NoArgs),
		Example: "  skein policy explain --device cam-07",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if device == "" {
				return usageError{errors.New("name a device with --device")}
			}
			r, err := a.policies().ExplainPolicy(cmd.Context(), &policyv1.ExplainPolicyRequest{Device: device})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				for _, s := range r.GetSettings() {
					from := scopeName(s.GetScope())
					if s.GetSubject() != "" {
						from += " " + s.GetSubject()
					}
					row(w, s.GetKey(), s.GetValue(), "from "+from)
				}
				for _, reason := range r.GetReasons() {
					line(w, "- %s", reason)
				}
			})
		},
	}
	c.Flags().StringVar(&device, "device", "", "device to explain")
	a.offerFlag(c, "device", a.deviceNames)
	return c
}

// transferRows shows what a device's policy makes of its update.
func transferRows(w io.Writer, t *fleetv1.TransferState) {
	if t == nil {
		return
	}
	row(w, "link", fmt.Sprintf("%s, %s", cmp.Or(t.GetInterface(), "unknown"), t.GetLinkClass()))
	for _, u := range t.GetUsed() {
		row(w, "allowance", fmt.Sprintf("%s of %s over %s links in %s", policy.FormatBytes(u.GetBytes()), policy.FormatBytes(u.GetLimit()), u.GetLinkClass(), u.GetName()))
	}
	if t.GetWaits() != "" {
		until := "; an end is not in sight"
		if u := t.GetUntil(); u != nil {
			until = " until " + u.AsTime().UTC().Format(time.RFC3339)
		}
		row(w, "waits", "for the "+t.GetWaits()+until)
	}
	for _, h := range t.GetHolds() {
		row(w, "held off", fmt.Sprintf("by %s until %s: %s", h.GetOwner(), h.GetUntil().AsTime().UTC().Format(time.RFC3339), h.GetReason()))
	}
}
