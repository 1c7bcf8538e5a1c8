package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchStreamCmd() *cobra.Command {
	var out, skeind string
	var mbit float64
	o := bench.StreamOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "stream",
		Short: "one artifact over the device link alone, against HTTPS on the same line",
		Long: `stream lets two real agents install one artifact over the same bad line: the first by HTTPS,
the second with HTTPS blocked, so that everything, trust metadata included, comes over MQTT,
of whose messages with blocks a share is lost. It measures the goodput of both while they
fetch, and how much was sent again.`,
		Example: "  skein-sim bench stream --mib 32\n  skein-sim bench stream --mbit 20 --delay 200ms --lose 0.1",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.MiB < 1 || mbit <= 0 || o.Delay < 0 || o.Lose < 0 || o.Lose >= 1 {
				return usageError{fmt.Errorf("--mib %d --mbit %g --delay %s --lose %g: want sizes above 0, a delay, and a share below 1", o.MiB, mbit, o.Delay, o.Lose)}
			}
			o.Bandwidth = int64(mbit * 1e6 / 8)
			if o.Skeind, err = skeindCommand(skeind); err != nil {
				return err
			}
			figures, err := bench.Stream(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.MiB, "mib", 256, "size of the artifact")
	f.Float64Var(&mbit, "mbit", 40, "rate of the line, in Mbit/s")
	f.DurationVar(&o.Delay, "delay", 100*time.Millisecond, "one way")
	f.Float64Var(&o.Lose, "lose", 0.05, "share of the messages with blocks that are lost")
	f.StringVar(&o.Dir, "dir", "", "folder for the data; empty: the temporary folder")
	f.StringVar(&skeind, "skeind", "", "skeind binary; empty looks beside this program and in PATH")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}
