// Package bench measures the control plane under load, the footprint of the
// agent and the bytes that updates cost, and says of each figure whether it meets its goal. It owns the figures
// of the benchmarks; what it measures are real processes, from the outside. The
// skein-sim program imports it.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Figure is one measured number.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Goal  string  `json:"goal,omitempty"` // as in "<= 80"; empty: none
	OK    bool    `json:"ok"`
}

// figure measures against a most; without a goal it is always ok.
func figure(name string, value float64, unit string) Figure {
	return Figure{Name: name, Value: value, Unit: unit, OK: true}
}

// atMost adds a goal.
func (f Figure) atMost(most float64) Figure {
	f.Goal, f.OK = "<= "+number(most), f.Value <= most
	return f
}

// atLeast adds a goal.
func (f Figure) atLeast(least float64) Figure {
	f.Goal, f.OK = ">= "+number(least), f.Value >= least
	return f
}

// number prints three digits after the point at most.
func number(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(v, 'f', 3, 64), "0"), ".")
}

// String is the line "figure NAME VALUE UNIT GOAL ok|short".
func (f Figure) String() string {
	word, goal := "ok", strings.ReplaceAll(f.Goal, " ", "")
	if !f.OK {
		word = "short"
	}
	if goal == "" {
		goal = "-"
	}
	return fmt.Sprintf("figure %s %s %s %s %s", f.Name, number(f.Value), f.Unit, goal, word)
}

// Write prints a line for each figure.
func Write(w io.Writer, figures []Figure) error {
	for _, f := range figures {
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	return nil
}

// Save writes the figures as JSON and makes the folder.
func Save(path string, figures []Figure) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder for figures: %w", err)
	}
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

// percentile of durations in milliseconds; 0 without any.
func percentile(all []time.Duration, share float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return float64(all[min(len(all)-1, int(share*float64(len(all))))]) / float64(time.Millisecond)
}

// status reads a field of /proc/PID/status in KiB.
func status(pid int, field string) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// cpuSeconds is what a process has computed so far.
func cpuSeconds(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the time of process %d: %w", pid, err)
	}
	_, rest, ok := bytes.Cut(raw, []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("read the time of process %d: %q", pid, raw)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	const ticks = 100 // per second, on every Linux
	return (user + system) / ticks, errors.Join(err, err2)
}

// settle waits until a process's memory has stopped changing, for at most most,
// and returns it in KiB.
func settle(ctx context.Context, pid int, most time.Duration) (float64, error) {
	const every, calm = 2 * time.Second, 5 // looks within 1 % of each other
	end := time.Now().Add(most)
	var last []float64
	for {
		rss, err := status(pid, "VmRSS")
		if err != nil {
			return 0, err
		}
		last = append(last, rss)
		if len(last) > calm {
			last = last[1:]
			if slices.Max(last)-slices.Min(last) < 0.01*rss {
				return rss, nil
			}
		}
		if time.Now().After(end) {
			return rss, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(every):
		}
	}
}

// sample reads a process's memory in KiB once a second, from a delay on until
// ctx ends.
func sample(ctx context.Context, pid int, delay time.Duration) (resident []float64) {
	wait := time.NewTimer(delay)
	defer wait.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	next := wait.C
	for {
		select {
		case <-ctx.Done():
			return resident
		case <-next:
			next = tick.C
		}
		if rss, err := status(pid, "VmRSS"); err == nil {
			resident = append(resident, rss)
		}
	}
}

// metric reads one number of a Prometheus endpoint, summed over its series.
func metric(ctx context.Context, url, token, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("read metrics: %s: %w", resp.Status, err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		fields := strings.Fields(rest)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("read metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}
