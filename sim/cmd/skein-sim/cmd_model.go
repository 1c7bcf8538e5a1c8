package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/model"
)

// modelResult is a run and the digest of its log.
type modelResult struct {
	model.Result
	Log     string  `json:"log_sha256"`
	Seconds float64 `json:"seconds"`
}

func (a *app) modelCmd() *cobra.Command {
	var (
		o     model.Options
		mix   string
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "model",
		Short: "a week of a modelled fleet under the real rollout planner, in seconds",
		Long: `model runs modelled devices (no agents) under the real rollout planner in fake time:
a release a day, some of them bad, lines that fail, heat, an outage of the control
plane. The log goes to standard output, the summary to standard error. Equal seeds
write equal bytes.`,
		Example: "  skein-sim model --devices 1000 --days 7 --seed 1 > week.log\n  skein-sim model --quiet --devices 200 --seed 2",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) (err error) {
			if o.Mix, err = jetson.ParseMix(mix); err != nil {
				return usageError{fmt.Errorf("--mix: %w", err)}
			}
			sum := sha256.New()
			log := io.Writer(sum)
			out := bufio.NewWriter(a.stdout)
			if !quiet && a.output != "json" {
				log = io.MultiWriter(sum, out)
			}
			o.Log = log
			start := time.Now()
			r, err := model.Run(o)
			if err = errors.Join(err, out.Flush()); err != nil {
				return err
			}
			m := modelResult{r, hex.EncodeToString(sum.Sum(nil)), time.Since(start).Seconds()}
			return a.emit(m, func(io.Writer) error { return modelText(a.stderr, m) })
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Devices, "devices", 1000, "how many")
	f.IntVar(&o.Days, "days", 7, "how long")
	f.StringVar(&mix, "mix", "default", "boards: default, or as in nano=10,orin-nano=20")
	f.Uint64Var(&o.Seed, "seed", 1, "equal seeds give equal logs")
	f.BoolVar(&quiet, "quiet", false, "no log, only the summary")
	return cmd
}

func modelText(w io.Writer, m modelResult) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "RELEASE\tDEFECT\tENDED\tCANARY\tHARMED\tOUTSIDE\tHOURS")
	for _, o := range m.Rollouts {
		defect := string(o.Defect)
		if defect == "" {
			defect = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%d\t%.2f\n", o.Release, defect, o.Phase, o.Canary, o.Harmed, o.Outside, o.Hours)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d devices, %d days, seed %d: %d events in %.1f s, on %v\nlog sha256 %s\n", m.Devices, m.Days, m.Seed, m.Events, m.Seconds, m.Releases, m.Log)
	return err
}
