package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchOTACmd() *cobra.Command {
	var out string
	o := bench.OTAOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "ota",
		Short: "bytes that an update costs, against other ways on the same files",
		Long: `ota generates pairs of files (weights of which 5 % moved, one layer of twenty
replaced, a new bias, a container layer built again) and measures what each update
costs: whole, by zstd, by compressed chunks, by zstd --patch-from, and in the way
that a device's plan chooses. A process of its own applies that; its peak memory
above what it takes idle is the last figure. The zstd program gives its figures
where it is installed.`,
		Example: "  skein-sim bench ota --mib 16\n  skein-sim bench ota --out bench-out/ota.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.MiB < 1 || o.MiB > 1024 {
				return usageError{fmt.Errorf("--mib %d: want 1 to 1024", o.MiB)}
			}
			var err error
			if o.Self, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			figures, err := bench.OTA(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.MiB, "mib", 32, "size of each file")
	f.StringVar(&o.Dir, "dir", "", "folder for the files; default is a temporary one")
	f.StringVar(&out, "out", "", "file for the figures as JSON")
	return cmd
}

// benchOTAApplyCmd is what bench ota runs to measure memory.
func (a *app) benchOTAApplyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ota-apply DIR", Short: "apply what bench ota prepared", Hidden: true, Args: cobra.ExactArgs(1),
		Example: "  skein-sim bench ota-apply /tmp/prepared",
		RunE: func(cmd *cobra.Command, args []string) error {
			line, err := bench.ApplyOTA(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, line)
			return err
		},
	}
}

func (a *app) benchLargeCmd() *cobra.Command {
	var out, skeind string
	var gigabytes float64
	o := bench.LargeOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "large",
		Short: "memory of the shipped agent while it installs one large artifact",
		Long: `large enrols the skein-agent binary at a skeind of its own, assigns it a release with one
large file, and measures the highest memory of both until it runs. It needs free disk
of four times the size.`,
		Example: "  skein-sim bench large --gb 1\n  skein-sim bench large --out bench-out/large.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if gigabytes <= 0 {
				return usageError{errors.New("want --gb above 0")}
			}
			o.Bytes = int64(gigabytes * 1e9)
			if o.Agent == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find this program: %w", err)
				}
				o.Agent = filepath.Join(filepath.Dir(self), "skein-agent")
			}
			if o.Skeind, err = skeindCommand(skeind); err != nil {
				return err
			}
			figures, err := bench.Large(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&gigabytes, "gb", 10, "size of the file, in 10^9 bytes")
	f.StringVar(&o.Agent, "agent", "", "skein-agent binary; empty looks beside this program")
	f.StringVar(&o.Dir, "dir", "", "folder for the data; empty: the temporary folder")
	f.StringVar(&skeind, "skeind", "", "skeind binary; empty looks beside this program and in PATH")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}
