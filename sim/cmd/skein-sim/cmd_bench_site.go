package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/bench"
)

func (a *app) benchSiteCmd() *cobra.Command {
	var out, skeind string
	var mbit float64
	o := bench.SiteOptions{Progress: a.progress}
	cmd := &cobra.Command{
		Use:   "site",
		Short: "one release for all devices of a site behind a thin line, one of them its cache",
		Long: `site enrols real agents with disks in memory at a skeind of its own, all over one line
that they share, makes the first of them the cache of the site, and assigns one release
to all of them at once. It counts the copies of the release that came over the line,
by HTTPS and by the device link, and how long it took until all run it.

Each device holds about four copies of the artifact in memory.`,
		Example: "  skein-sim bench site --devices 100\n  skein-sim bench site --out bench-out/ota-site.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Devices < 2 || o.KiB < 1 || mbit <= 0 {
				return usageError{fmt.Errorf("--devices %d --kib %d --mbit %g: want 2 devices or more, and sizes above 0", o.Devices, o.KiB, mbit)}
			}
			o.Bandwidth = int64(mbit * 1e6 / 8)
			if o.Skeind, err = skeindCommand(skeind); err != nil {
				return err
			}
			figures, err := bench.Site(cmd.Context(), o)
			return a.report(figures, out, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Devices, "devices", 1000, "devices of the site")
	f.IntVar(&o.KiB, "kib", 512, "size of the artifact")
	f.Float64Var(&mbit, "mbit", 10, "rate of the site's line in each direction, in Mbit/s")
	f.StringVar(&o.Dir, "dir", "", "folder for the data; empty: the temporary folder")
	f.StringVar(&skeind, "skeind", "", "skeind binary; empty looks beside this program and in PATH")
	f.StringVar(&out, "out", "", "also write the figures to this file, as JSON")
	return cmd
}
