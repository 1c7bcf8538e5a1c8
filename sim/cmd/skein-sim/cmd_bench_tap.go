package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchTapCmd() *cobra.Command {
	var out, nginx string
	o := bench.TapOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "what the agent's tap costs beside direct calls, with nginx as a peer; versions switched under load",
		Long: `tap starts a model server, the tap in front of it and nginx in front of it, each in a
process of its own, and asks all three in turn for requests of 12 KiB at a fixed
rate, over HTTP and gRPC. Then it switches the version that serves again and again
under load, and counts requests that fail or get the answer of a version that did
not serve.`,
		Example: "  skein-sim bench tap --rounds 2\n  skein-sim bench tap --out bench-out/agent-tap.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rate < 1 || o.Rounds < 1 || o.Slice <= 0 || o.SwitchRate < 1 || o.Switches < 0 || o.SwitchEvery < time.Second/time.Duration(o.SwitchRate) {
				return usageError{errors.New("want --rate, --rounds and --switch-rate from 1, --slice above 0, and time between switches for a request")}
			}
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			o.Self = []string{self}
			if nginx != "none" {
				if o.Nginx, err = exec.LookPath(nginx); err != nil {
					a.progress("no peer is measured: %v", err)
				}
			}
			figures, err := bench.Tap(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rate, "rate", 500, "requests per second")
	f.IntVar(&o.Rounds, "rounds", 8, "slices of each way, in turn")
	f.DurationVar(&o.Slice, "slice", time.Second, "length of a slice")
	f.IntVar(&o.Switches, "switches", 200, "of the version under load")
	f.IntVar(&o.SwitchRate, "switch-rate", 1000, "requests per second meanwhile")
	f.DurationVar(&o.SwitchEvery, "switch-every", 50*time.Millisecond, "time between two switches")
	f.StringVar(&nginx, "nginx", "nginx", "nginx binary, or none")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}

// benchTapServerCmd and benchTapProxyCmd are children of benchTapCmd.
func (a *app) benchTapServerCmd() *cobra.Command {
	return &cobra.Command{Use: "tap-server", Short: "the model server of bench tap", Hidden: true, Args: noArgs, Example: "  skein-sim bench tap-server",
		RunE: func(cmd *cobra.Command, _ []string) error { return bench.TapServer(cmd.Context(), a.stdout) }}
}

func (a *app) benchTapProxyCmd() *cobra.Command {
	var listen, to string
	cmd := &cobra.Command{Use: "tap-proxy", Short: "the tap of bench tap", Hidden: true, Args: noArgs, Example: "  skein-sim bench tap-proxy --listen unix:/tmp/tap.sock --to 127.0.0.1:8000",
		RunE: func(cmd *cobra.Command, _ []string) error { return bench.TapProxy(cmd.Context(), a.stdout, listen, to) }}
	cmd.Flags().StringVar(&listen, "listen", "", "where the tap listens")
	cmd.Flags().StringVar(&to, "to", "", "HOST:PORT of the model server")
	return cmd
}
