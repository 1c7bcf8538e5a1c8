package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchPowerCmd() *cobra.Command {
	var out string
	o := bench.PowerOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "power",
		Short: "power cuts and kills through one update of the real agent",
		Long: `power runs one update of the real agent on the twin of its disk, and cuts the power at
sampled disk operations (what was not synced is lost, torn or there before its name
is), then ends the agent at every named point. Each must end in a proven state: a
release answers without the network, and in the end the new one is committed, answers
and is reported. Bytes that came twice are counted at the source.`,
		Example: "  skein-sim bench power --cuts 50\n  skein-sim bench power --out bench-out/ota-power.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Cuts < 1 || o.Parallel < 1 {
				return usageError{fmt.Errorf("--cuts %d, --parallel %d: want 1 or more", o.Cuts, o.Parallel)}
			}
			figures, err := bench.Power(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Cuts, "cuts", 500, "power cuts to sample")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the samples")
	f.IntVar(&o.Parallel, "parallel", 16, "devices at once")
	f.StringVar(&out, "out", "", "file for the figures as JSON")
	return cmd
}
