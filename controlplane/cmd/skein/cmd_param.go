package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func (a *app) paramCmd() *cobra.Command {
	return group("param", "parameter values: fleet, then site, then device", "  skein param set --site lyon camera_url=rtsp://10.0.0.7/1", a.paramSetCmd(), a.paramListCmd())
}

func (a *app) paramSetCmd() *cobra.Command {
	var site, device string
	var secret bool
	c := &cobra.Command{
		Use: "set KEY=VALUE|KEY-...", Short: "set or remove values at one scope", Args: args(cobra.MinimumNArgs(1)),
		Long:    "Without --site or --device the scope is the whole fleet. KEY- removes a value.\nDevices whose rendered parameters change get a new generation. Secrets are sealed to the device and never shown.",
		Example: "  skein param set threshold=0.8\n  skein param set --device cam-07 camera_url=rtsp://10.0.0.7/1\n  skein param set --secret --site lyon api_key=...",
		RunE: func(cmd *cobra.Command, args []string) error {
			scope, subject := fleetv1.ParameterScope_PARAMETER_SCOPE_FLEET, ""
			switch {
			case site != "" && device != "":
				return usageError{errors.New("give --site or --device, not both")}
			case site != "":
				scope, subject = fleetv1.ParameterScope_PARAMETER_SCOPE_SITE, site
			case device != "":
				scope, subject = fleetv1.ParameterScope_PARAMETER_SCOPE_DEVICE, device
			}
			req := &fleetv1.SetParametersRequest{}
			for _, arg := range args {
				p := &fleetv1.Parameter{Scope: scope, Subject: subject, Secret: secret}
				if key, ok := strings.CutSuffix(arg, "-"); ok && !strings.Contains(arg, "=") {
					p.Key = key
					req.Remove = append(req.Remove, p)
					continue
				}
				key, value, ok := strings.Cut(arg, "=")
				if !ok || key == "" {
					return usageError{fmt.Errorf("%q: want KEY=VALUE or KEY-", arg)}
				}
				p.Key, p.Value = key, value
				req.Set = append(req.Set, p)
			}
			r, err := a.fleet().SetParameters(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "%d devices get a new generation.", r.GetDevices()) })
		},
	}
	c.Flags().StringVar(&site, "site", "", "site (label site) that the values are for")
	c.Flags().StringVar(&device, "device", "", "device that the values are for")
	c.Flags().BoolVar(&secret, "secret", false, "the values are secrets")
	a.offerFlag(c, "device", a.deviceNames)
	noFiles(c, "site")
	return c
}

func (a *app) paramListCmd() *cobra.Command {
	var device string
	c := &cobra.Command{
		Use: "list", Short: "list values, or those in force on one device", Args: args(cobra.NoArgs), Example: "  skein param list --device cam-07",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.fleet().ListParameters(cmd.Context(), &fleetv1.ListParametersRequest{Device: device})
			if err != nil {
				return err
			}
			return a.emitList(r, func(w io.Writer) {
				row(w, "KEY", "SCOPE", "SUBJECT", "VALUE")
				for _, p := range r.GetParameters() {
					value := p.GetValue()
					if p.GetSecret() {
						value = "(secret)"
					}
					row(w, p.GetKey(), strings.ToLower(strings.TrimPrefix(p.GetScope().String(), "PARAMETER_SCOPE_")), cmp.Or(p.GetSubject(), "-"), value)
				}
			})
		},
	}
	c.Flags().StringVar(&device, "device", "", "the values in force on this device")
	a.offerFlag(c, "device", a.deviceNames)
	return c
}
