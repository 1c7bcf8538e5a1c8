package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/load"
)

// loadResult is what a load came to.
type loadResult struct {
	Devices   int64 `json:"devices"`
	Published int64 `json:"published"`
	Acked     int64 `json:"acknowledged"`
	Received  int64 `json:"received"`
	Lost      int64 `json:"sessions_lost"`
	Failed    int64 `json:"failed"`
}

func (a *app) loadCmd() *cobra.Command {
	var (
		o        load.Options
		interval time.Duration
		length   time.Duration
	)
	cmd := &cobra.Command{
		Use:   "load",
		Short: "put wire-level devices onto a running skeind",
		Long: `load enrols wire-level devices at a running skeind, connects them with mutual TLS,
and lets each one report once per interval, until interrupted. Each device is one
TLS connection and one goroutine; they run no agent.`,
		Example: "  skein-sim load --server https://127.0.0.1:8443 --token skein1.… --devices 1000",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.ServerURL == "" || o.Claim == "" || o.Devices < 1 || interval <= 0 {
				return usageError{errors.New("want --server and --token, --devices from 1, and --interval above 0")}
			}
			return a.load(cmd.Context(), o, interval, length)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ServerURL, "server", "", "device address of skeind, https://HOST:PORT")
	f.StringVar(&o.Claim, "token", "", "claim token with enough uses, as printed by skein token create")
	f.IntVar(&o.Devices, "devices", 10_000, "how many")
	f.IntVar(&o.Parallel, "parallel", 32, "enrolments and connects under way at a time")
	f.StringVar(&o.Target, "target", "", "target that the devices report")
	f.DurationVar(&interval, "interval", time.Minute, "time between two reports of a device")
	f.DurationVar(&length, "duration", 0, "end after so long; 0 means until interrupted")
	return cmd
}

func (a *app) load(ctx context.Context, o load.Options, interval, length time.Duration) error {
	fleet := load.New(o)
	defer fleet.Close()
	for _, step := range []func(context.Context) error{fleet.Enroll, fleet.Connect} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	a.progress("%d devices are connected", o.Devices)
	fleet.Greet(ctx, 400)
	cruise := ctx
	if length > 0 {
		var stop context.CancelFunc
		cruise, stop = context.WithTimeout(ctx, length)
		defer stop()
	}
	fleet.Cruise(cruise, interval)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	s := fleet.Stats()
	err := errors.Join(fleet.Settled(grace), s.FirstError())
	r := loadResult{int64(o.Devices), s.Published.Load(), s.Acked.Load(), s.Received.Load(), s.Lost.Load(), s.Failed.Load()}
	return errors.Join(err, a.emit(r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "devices %d, published %d, acknowledged %d, received %d, sessions lost %d, failed %d\n", r.Devices, r.Published, r.Acked, r.Received, r.Lost, r.Failed)
		return err
	}))
}
