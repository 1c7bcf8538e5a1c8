package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
	"github.com/skein-fleet/skein/sim/plane"
)

func (a *app) benchCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "measure the control plane under load, or the agent's footprint",
		Long: `bench measures real processes from the outside and prints each figure on a line:

  figure NAME VALUE UNIT GOAL ok|short

A figure that misses its goal does not change the exit code.`,
		Example: "  skein-sim bench load --out bench-out/load.json\n  skein-sim bench agent --agent .bin/skein-agent",
	}
	cmd.AddCommand(a.benchLoadCmd(), a.benchAgentCmd(), a.benchOTACmd(), a.benchOTAApplyCmd(), a.benchLargeCmd(), a.benchStreamCmd(), a.benchPowerCmd(), a.benchSiteCmd(), a.benchBoardsCmd(), a.benchTapCmd(), a.benchTapServerCmd(), a.benchTapProxyCmd())
	return cmd
}

func (a *app) progress(format string, args ...any) {
	fmt.Fprintf(a.stderr, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// report prints figures and saves them; it is called with an error too, for
// what was measured before.
func (a *app) report(figures []bench.Figure, out string, err error) error {
	if out != "" && len(figures) > 0 {
		err = errors.Join(err, bench.Save(out, figures))
	}
	if a.output == "json" {
		return errors.Join(err, a.emit(figures, nil))
	}
	return errors.Join(err, bench.Write(a.stdout, figures))
}

func (a *app) benchLoadCmd() *cobra.Command {
	var out, skeind string
	o := bench.LoadOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "load",
		Short: "many wire-level devices with mutual TLS on one skeind",
		Long: `load starts skeind as a child process with everything embedded, enrols devices, and
connects them with mutual TLS. They report once per interval. It measures memory
per device and the broker's share of it, the rates of enrolling, connecting and
publishing, and how long a report takes until it is acknowledged and stored.

10,000 devices need about 11,000 open files in each process (ulimit -n).`,
		Example: "  skein-sim bench load --devices 1000 --rounds 1\n  skein-sim bench load --out bench-out/load.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Devices < 1 || o.Interval <= 0 || o.Rounds < 1 {
				return usageError{errors.New("want --devices and --rounds from 1, and --interval above 0")}
			}
			if o.Skeind, err = skeindCommand(skeind); err != nil {
				return err
			}
			figures, err := bench.Load(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Devices, "devices", 10_000, "how many")
	f.DurationVar(&o.Interval, "interval", time.Minute, "time between two reports of a device")
	f.IntVar(&o.Rounds, "rounds", 2, "reports of each device")
	f.DurationVar(&o.Settle, "settle", 45*time.Second, "longest wait for memory to settle")
	f.StringVar(&skeind, "skeind", "", "skeind binary; empty looks beside this program and in PATH")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}

func skeindCommand(path string) ([]string, error) {
	if path != "" {
		return []string{path}, nil
	}
	path, err := plane.FindSkeind()
	return []string{path}, err
}

func (a *app) benchAgentCmd() *cobra.Command {
	var out, skeind string
	o := bench.AgentOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "footprint of the shipped agent, and of many in one process",
		Long: `agent enrols the skein-agent binary at a skeind of its own and watches it do nothing
but its telemetry at 1 Hz, with the spool on disk. Then it runs many real agents on
modelled boards in one process.`,
		Example: "  skein-sim bench agent --agent .bin/skein-agent --many 0\n  skein-sim bench agent --agent .bin/skein-agent --out bench-out/agent.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if o.Agent == "" {
				o.Agent = filepath.Join(filepath.Dir(self), "skein-agent")
			}
			o.Sim = []string{self}
			if o.Skeind, err = skeindCommand(skeind); err != nil {
				return err
			}
			figures, err := bench.Agent(cmd.Context(), o)
			figures, err = a.withBoards(cmd, figures, err)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Agent, "agent", "", "skein-agent binary; empty looks beside this program")
	f.IntVar(&o.Many, "many", 1000, "real agents in one process; 0 leaves that out")
	f.DurationVar(&o.Watch, "watch", time.Minute, "how long the idle agent is watched")
	f.DurationVar(&o.Settle, "settle", 45*time.Second, "longest wait for memory to settle")
	f.StringVar(&skeind, "skeind", "", "skeind binary; empty looks beside this program and in PATH")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}
