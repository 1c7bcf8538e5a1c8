// Package gate judges a wave of a rollout from measurements. It owns the rule
// "own past plus a stated floor": each device is compared with itself before
// the change, every device weighs the same, and the verdict has three values.
// It is pure: no clock, no I/O, no order effects; the same input gives the
// same verdict and the same printable evidence. Everything above ota may
// import it.
package gate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Verdict is the outcome of a gate.
type Verdict string

// The three verdicts. No data is Inconclusive, never Pass.
const (
	Pass         Verdict = "pass"
	Fail         Verdict = "fail"
	Inconclusive Verdict = "inconclusive"
)

// Stats summarises one metric on one device over one period.
type Stats struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
}

// Pair is one metric on one device before and after the change.
type Pair struct {
	Before Stats `json:"before"`
	After  Stats `json:"after"`
}

// Sample is the Pair of one named device.
type Sample struct {
	Device string `json:"device"`
	Pair
}

// Stat names the figure of Stats that is compared.
type Stat string

// The figures that can be compared.
const (
	Median Stat = "median"
	P99    Stat = "p99"
)

func (s Stat) of(x Stats) float64 {
	if s == P99 {
		return x.P99
	}
	return x.Median
}

// OwnPast is the rule: a device regressed when its figure after the change is
// more than MaxRatio times its own figure before it and has grown by more than
// Floor, in the metric's unit. The gate fails when more than MaxRegressedPct
// per cent of the devices that could be judged regressed.
type OwnPast struct {
	Stat            Stat    // Median when empty
	MaxRatio        float64 // 1.2 allows 20 % more
	Floor           float64 // growth up to here is never a regression
	MaxRegressedPct float64 // 0 means that one device is enough
	MinSamples      int     // on each side of each device; at least 1
	MinDevices      int     // that could be judged; half of the devices when 0
	Unit            string  // of the metric, for people: seconds, bytes, celsius …; may be empty
}

// DeviceResult is the evidence of one device.
type DeviceResult struct {
	Device    string  `json:"device"`
	Before    float64 `json:"before"`
	After     float64 `json:"after"`
	Ratio     float64 `json:"ratio"`
	Judged    bool    `json:"judged"`
	Regressed bool    `json:"regressed"`
	Note      string  `json:"note,omitempty"` // why it could not be judged
}

// Result is a verdict with the evidence it rests on.
type Result struct {
	Verdict   Verdict        `json:"verdict"`
	Reason    string         `json:"reason"`
	Devices   int            `json:"devices"`
	Judged    int            `json:"judged"`
	Regressed int            `json:"regressed"`
	Evidence  []DeviceResult `json:"evidence,omitempty"`
}

// Judge applies the rule. The order of the samples does not matter.
func (r OwnPast) Judge(samples []Sample) Result {
	stat, need := cmp.Or(r.Stat, Median), max(1, r.MinSamples)
	res := Result{Devices: len(samples), Evidence: make([]DeviceResult, 0, len(samples))}
	for _, s := range samples {
		d := r.device(stat, need, s)
		if d.Judged {
			res.Judged++
		}
		if d.Regressed {
			res.Regressed++
		}
		res.Evidence = append(res.Evidence, d)
	}
	slices.SortFunc(res.Evidence, func(a, b DeviceResult) int { return cmp.Compare(a.Device, b.Device) })
	minDevices := max(1, r.MinDevices)
	if r.MinDevices == 0 {
		minDevices = max(1, (len(samples)+1)/2)
	}
	switch {
	case res.Judged < minDevices:
		res.Verdict = Inconclusive
		res.Reason = fmt.Sprintf("%d of %d devices can be compared with their own past, want %d with %d samples on each side",
			res.Judged, res.Devices, minDevices, need)
	case 100*float64(res.Regressed) > r.MaxRegressedPct*float64(res.Judged):
		res.Verdict = Fail
		res.Reason = r.text(stat, res) + r.worst(res.Evidence)
	default:
		res.Verdict = Pass
		res.Reason = r.text(stat, res)
	}
	return res
}

func (r OwnPast) text(stat Stat, res Result) string {
	more := fmt.Sprintf("more than %g times its own past", r.MaxRatio)
	if r.Floor > 0 {
		more += " and over " + Figure(r.Floor, r.Unit) + " above it"
	}
	return fmt.Sprintf("%d of %d devices regressed: the %s is %s (allowed: %g %% of devices)", res.Regressed, res.Judged, stat, more, r.MaxRegressedPct)
}

func (r OwnPast) device(stat Stat, need int, s Sample) DeviceResult {
	d := DeviceResult{Device: s.Device}
	before, after := stat.of(s.Before), stat.of(s.After)
	switch {
	case s.Before.N < need:
		d.Note = fmt.Sprintf("%d samples before the change, want %d", max(0, s.Before.N), need)
	case s.After.N < need:
		d.Note = fmt.Sprintf("%d samples after the change, want %d", max(0, s.After.N), need)
	case !usable(before) || !usable(after):
		d.Note = "the figures are not finite numbers of at least 0"
	default:
		d.Judged, d.Before, d.After = true, before, after
		if before > 0 {
			d.Ratio = min(after/before, math.MaxFloat64)
		}
		d.Regressed = after > before*r.MaxRatio && after-before > r.Floor
	}
	return d
}

func usable(x float64) bool { return x >= 0 && !math.IsInf(x, 0) && !math.IsNaN(x) }

// worst names the device that grew most, for the reason of a failed gate.
func (r OwnPast) worst(ev []DeviceResult) string {
	var w *DeviceResult
	for i := range ev {
		if d := &ev[i]; d.Regressed && (w == nil || d.After-d.Before > w.After-w.Before) {
			w = d
		}
	}
	if w == nil {
		return ""
	}
	return fmt.Sprintf("; worst: %s, %s before and %s now", w.Device, Figure(w.Before, r.Unit), Figure(w.After, r.Unit))
}

// Figure writes a value in its unit for people, a unit as metric names end
// with: 0.00907 seconds is 9.07 ms. An unknown unit stays as it is.
func Figure(x float64, unit string) string {
	switch unit {
	case "":
		return fmt.Sprintf("%.4g", x)
	case "seconds":
		return scaled(x, []scale{{1, "s"}, {1e-3, "ms"}, {1e-6, "µs"}})
	case "bytes":
		return scaled(x, []scale{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}, {1, "bytes"}})
	case "celsius":
		return fmt.Sprintf("%.3g °C", x)
	case "watts":
		return scaled(x, []scale{{1, "W"}, {1e-3, "mW"}})
	case "percent":
		return fmt.Sprintf("%.3g %%", x)
	}
	return fmt.Sprintf("%.4g %s", x, unit)
}

type scale struct {
	one  float64
	unit string
}

// scaled takes the largest unit of which there is at least one, or the last.
func scaled(x float64, scales []scale) string {
	last := scales[len(scales)-1]
	for _, s := range scales {
		if math.Abs(x) >= s.one {
			last = s
			break
		}
	}
	if x == 0 {
		last = scales[0]
	}
	return strconv.FormatFloat(round3(x/last.one), 'f', -1, 64) + " " + last.unit
}

// round3 keeps three digits.
func round3(x float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 3, 64), 64)
	if err != nil {
		return x
	}
	return r
}

// String prints the verdict and one line for each device.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", r.Verdict, r.Reason)
	for _, d := range r.Evidence {
		switch {
		case !d.Judged:
			fmt.Fprintf(&b, "  %s  not judged: %s\n", d.Device, d.Note)
		case d.Regressed:
			fmt.Fprintf(&b, "  %s  %.4g -> %.4g  (x%.3g)  regressed\n", d.Device, d.Before, d.After, d.Ratio)
		default:
			fmt.Fprintf(&b, "  %s  %.4g -> %.4g  (x%.3g)\n", d.Device, d.Before, d.After, d.Ratio)
		}
	}
	return b.String()
}
