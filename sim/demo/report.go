package demo

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
)

// Report is what the demo writes as JSON.
type Report struct {
	Devices           int            `json:"devices"`
	Seed              uint64         `json:"seed"`
	Accuracy          float64        `json:"test_accuracy"`
	DevicesPerRelease map[string]int `json:"devices_per_release"`
	Rollouts          []Outcome      `json:"rollouts"`
	HarmedByBad       int            `json:"devices_harmed_by_bad_versions"`
	HarmedAfterAbort  int            `json:"devices_harmed_outside_canary"`
	Requests          int64          `json:"inference_requests"`
	RequestErrors     int64          `json:"inference_errors"`
	Seconds           float64        `json:"seconds"`
	Bytes             int64          `json:"bytes_received_by_devices"`
}

// Outcome is what became of one version.
type Outcome struct {
	Version     string  `json:"version"`
	Description string  `json:"description"`
	Phase       string  `json:"phase"`
	Reason      string  `json:"reason"`
	Canary      int     `json:"canary_devices"`
	Reached     int     `json:"devices_reached"` // took part before the end
	Harmed      int     `json:"devices_harmed"`  // served it though it was bad
	Seconds     float64 `json:"seconds"`
	Bytes       int64   `json:"bytes_received_by_devices"`
}

func (r *Report) add(c chapter, x *rolloutv1.Rollout, took time.Duration, bytes int64) {
	o := Outcome{
		Version: c.name, Description: c.description, Phase: x.GetPhase(), Reason: x.GetReason(),
		Harmed: int(x.GetHarmed()), Seconds: took.Seconds(), Bytes: bytes,
	}
	for i, w := range x.GetWaves() {
		if i == 0 {
			o.Canary = int(w.GetDevices())
		}
		if w.GetState() != "waiting" {
			o.Reached += int(w.GetDevices())
		}
	}
	if c.ends != "succeeded" {
		r.HarmedByBad += o.Harmed
		r.HarmedAfterAbort += max(0, o.Reached-o.Canary)
	}
	r.Rollouts = append(r.Rollouts, o)
}

// finish counts, prints the summary and writes the report.
func (s *story) finish(ctx context.Context, url, token string) error {
	r := &s.report
	r.Devices, r.Seed, r.Seconds, r.Bytes = len(s.fleet.Devices()), s.o.Seed, time.Since(s.started).Seconds(), s.bytesReceived()
	r.DevicesPerRelease = map[string]int{}
	devices, err := s.op.Devices(ctx, "")
	if err != nil {
		return err
	}
	for _, d := range devices {
		r.DevicesPerRelease[d.GetRunningReleaseName()]++
	}
	for _, d := range s.fleet.Devices() {
		w := d.Work()
		for _, n := range w.Requests {
			r.Requests += n
		}
		r.RequestErrors += w.Errors
	}
	w := tabwriter.NewWriter(s.o.Out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "\nVERSION\tWHAT\tENDED\tCANARY\tREACHED\tHARMED\tSECONDS\n")
	for _, o := range r.Rollouts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%.1f\n", o.Version, o.Description, o.Phase, o.Canary, o.Reached, o.Harmed, o.Seconds)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(s.o.Out, "\n%s. %d meter readings answered, %d failed. %.0f s in all.\n", serving(r.DevicesPerRelease), r.Requests, r.RequestErrors, r.Seconds)
	if !s.o.Once { // it ends with the story
		fmt.Fprintf(s.o.Out, "Dashboard: %s\nCredential: %s\n", url, token)
		fmt.Fprintf(s.o.Out, "Command line: SKEIN_SERVER=%s SKEIN_TOKEN=%s skein device list\n", url, token)
	}
	if s.o.Report != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.o.Report, append(b, '\n'), 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		fmt.Fprintf(s.o.Out, "Report: %s\n", s.o.Report)
	}
	if r.HarmedAfterAbort > 0 {
		return fmt.Errorf("%d devices outside the canary were reached by a bad version", r.HarmedAfterAbort)
	}
	return nil
}

// serving says how many devices serve which release.
func serving(byRelease map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(byRelease)) {
		parts = append(parts, fmt.Sprintf("%d devices serve %s", byRelease[name], cmp.Or(name, "nothing")))
	}
	return strings.Join(parts, ", ")
}
