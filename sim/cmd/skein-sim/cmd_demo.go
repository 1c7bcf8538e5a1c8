package main

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/demo"
	"github.com/skein-fleet/skein/sim/jetson"
)

func (a *app) demoCmd() *cobra.Command {
	var o demo.Options
	var mix, runtime string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "the main job as a story: train, roll out, catch two bad versions",
		Long: `demo starts a control plane and virtual Jetsons with the real agent, trains the
meter reader, rolls v1 out, and pushes v2, which answers wrongly, and v2b, which is
slow. Both are caught in the canary and taken back. It prints a summary and the
dashboard's address and runs until interrupted.

With --runtime containerd, as root, the models of 3 devices run in real containers:
of a containerd that the demo starts for itself, in an image of this very program,
without a registry. Nothing of them is left at the end.`,
		Example: `  skein-sim demo
  skein-sim demo --once --devices 20 --report demo-report.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Mix, err = jetson.ParseMix(mix); err != nil {
				return usageError{err}
			}
			switch runtime {
			case "modelled":
			case "containerd":
				o.Containers = 3
			default:
				return usageError{fmt.Errorf("--runtime %q: want modelled or containerd", runtime)}
			}
			o.Out = a.stdout
			level := slog.LevelError
			if a.verbose {
				level = slog.LevelInfo
			}
			o.Logger = slog.New(slog.NewTextHandler(io.Writer(a.stderr), &slog.HandlerOptions{Level: level}))
			if o.Once && o.Report == "" {
				o.Report = "demo-report.json"
			}
			if o.DataDir != "" {
				if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
					return err
				}
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Once, "once", false, "end when the story is told, and write the report")
	f.IntVar(&o.Devices, "devices", 60, "how many virtual Jetsons")
	f.StringVar(&mix, "mix", "default", "boards: default, or as in nano=10,orin-nano=20")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of training, fleet and draws")
	f.StringVar(&o.HTTPAddr, "http", "127.0.0.1:8080", "address of API and dashboard")
	f.StringVar(&o.DataDir, "data", "", "folder for all data; empty: a temporary one, removed at the end")
	f.StringVar(&o.Digits, "digits", "", "folder of the MNIST files; empty looks in the module cache")
	f.StringVar(&runtime, "runtime", "modelled", "modelled, or containerd: 3 devices run their models in real containers")
	f.StringVar(&o.Report, "report", "", "file for the report; with --once the default is demo-report.json")
	return cmd
}
