package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/jetson"
)

func (a *app) tegrastatsCmd() *cobra.Command {
	var (
		board    string
		interval time.Duration
		lines    int
		load     float64
		seed     uint64
		ambient  float64
	)
	cmd := &cobra.Command{
		Use:   "tegrastats",
		Short: "print the tegrastats lines of a modelled board",
		Long:  "tegrastats prints what the program of that name prints on the board, in the grammar of\nits own release, while the board lives under a load.",
		Example: `  skein-sim tegrastats --board orin-nano --interval 100ms --lines 20
  skein-sim tegrastats --board nano --lines 3 | skein-agent tegrastats parse`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			model, err := jetson.Lookup(board)
			if err != nil {
				return usageError{fmt.Errorf("--board: %w", err)}
			}
			if !model.Jetson() {
				return usageError{fmt.Errorf("--board %s is no Jetson and has no tegrastats", board)}
			}
			if interval <= 0 || lines < 0 || load < 0 || load > 1 {
				return usageError{fmt.Errorf("want --interval above 0, --lines from 0 and --load from 0 to 1")}
			}
			b, err := jetson.New(model, jetson.Options{Seed: seed, Start: time.Now(), Ambient: ambient})
			if err != nil {
				return err
			}
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for n := 0; lines == 0 || n < lines; n++ {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
				b.Step(interval, jetson.Load{GPU: load, CPU: load / 2, EMC: load / 2})
				if _, err := fmt.Fprintln(a.stdout, b.Tegrastats()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&board, "board", "orin-nano", fmt.Sprintf("board: one of %v", jetson.Keys()))
	f.DurationVar(&interval, "interval", time.Second, "time between two lines")
	f.IntVar(&lines, "lines", 0, "end after so many lines; 0 means never")
	f.Float64Var(&load, "load", 0.5, "what the board is asked to do, from 0 to 1")
	f.Uint64Var(&seed, "seed", 1, "draws serial number and noise")
	f.Float64Var(&ambient, "ambient", 20, "air around the board, in °C")
	return cmd
}
