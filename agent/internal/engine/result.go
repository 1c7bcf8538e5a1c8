package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Verdict is how a run of trtexec ended by its own word.
type Verdict string

// The verdicts; none is there when the run was cut off.
const (
	Passed Verdict = "PASSED"
	Failed Verdict = "FAILED"
	Waived Verdict = "WAIVED"
)

// Stats are a distribution of times, in milliseconds.
type Stats struct {
	Min         float64      `json:"min_ms,omitempty"`
	Max         float64      `json:"max_ms,omitempty"`
	Mean        float64      `json:"mean_ms,omitempty"`
	Median      float64      `json:"median_ms,omitempty"`
	Percentiles []Percentile `json:"percentiles,omitempty"` // ascending
}

// Percentile is one of them.
type Percentile struct {
	Percent float64 `json:"percent"`
	Ms      float64 `json:"ms"`
}

// P returns a percentile, 0 when it was not printed.
func (s *Stats) P(percent float64) float64 {
	if s == nil {
		return 0
	}
	for _, p := range s.Percentiles {
		if p.Percent == percent {
			return p.Ms
		}
	}
	return 0
}

func (s *Stats) setPercentile(percent, ms float64) {
	i, found := slices.BinarySearchFunc(s.Percentiles, percent, func(p Percentile, want float64) int {
		switch {
		case p.Percent < want:
			return -1
		case p.Percent > want:
			return 1
		}
		return 0
	})
	if found {
		s.Percentiles[i].Ms = ms
	} else if len(s.Percentiles) < maxListed {
		s.Percentiles = slices.Insert(s.Percentiles, i, Percentile{percent, ms})
	}
}

// Placement is what of a network runs on which part of the chip.
type Placement struct {
	Candidates int      `json:"candidates,omitempty"` // parts of the network that could go to the DLA
	Offloaded  int      `json:"offloaded,omitempty"`  // and those that did
	DLA        []string `json:"dla,omitempty"`
	GPU        []string `json:"gpu,omitempty"`
	Refused    []string `json:"refused,omitempty"` // why layers did not go to the DLA
}

// Result is what one run of trtexec said.
type Result struct {
	Verdict  Verdict `json:"verdict,omitempty"`
	TensorRT string  `json:"tensorrt,omitempty"` // version, to the patch level
	Command  string  `json:"command,omitempty"`
	Device   string  `json:"device,omitempty"`
	SM       string  `json:"sm,omitempty"`

	Throughput float64 `json:"throughput_per_second,omitempty"` // queries, each of one batch
	Latency    *Stats  `json:"latency,omitempty"`               // as seen by the host: copies and computing
	EndToEnd   *Stats  `json:"end_to_end,omitempty"`
	Enqueue    *Stats  `json:"enqueue,omitempty"`
	H2D        *Stats  `json:"host_to_device,omitempty"`
	GPU        *Stats  `json:"gpu_compute,omitempty"`
	D2H        *Stats  `json:"device_to_host,omitempty"`

	WalltimeSeconds float64 `json:"walltime_seconds,omitempty"`
	BuildSeconds    float64 `json:"build_seconds,omitempty"`
	LoadSeconds     float64 `json:"load_seconds,omitempty"`
	EngineMiB       float64 `json:"engine_mib,omitempty"`
	PeakGPUMiB      float64 `json:"peak_gpu_mib,omitempty"`

	Placement *Placement `json:"placement,omitempty"`
	// Variance is the coefficient of variance, in percent, that made trtexec call
	// its own times unstable: clocks were not locked.
	Variance float64  `json:"unstable_percent,omitempty"`
	Bound    []string `json:"bound,omitempty"`    // what else than the GPU held the throughput
	Warnings []string `json:"warnings,omitempty"` // each once
	Errors   []string `json:"errors,omitempty"`
}

const (
	maxLine   = 16 << 10 // of a line; verbose logs have longer ones, whose rest is dropped
	maxListed = 64       // of each list
	maxShown  = 400      // bytes of one listed line
)

// Parse reads the output of trtexec of any release from 5 to 10. It fails only
// when reading does; what it does not know it passes over.
func Parse(r io.Reader) (Result, error) {
	p := NewParser()
	err := eachLine(r, p.Line)
	return p.Result(), err
}

// eachLine calls f for every line, clipped.
func eachLine(r io.Reader, f func(string)) error {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		text := string(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = in.ReadSlice('\n')
		}
		if text != "" {
			f(strings.TrimRight(text, "\r\n"))
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the output of trtexec: %w", err)
		}
	}
}

// number reads a finite number that is not negative.
func number(s string) (float64, bool) {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return 0, false
	}
	return v, true
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxShown)], "?") }

func keep(list []string, line string) []string {
	line = clip(line)
	if line == "" || len(list) >= maxListed || slices.Contains(list, line) {
		return list
	}
	return append(list, line)
}
