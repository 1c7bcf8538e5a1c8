package nvml

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/telemetry"
)

func TestReadings(t *testing.T) {
	r, err := Parse([]byte(`{"driver":"580.1","gpus":[{"index":0,"name":"Thor","utilisation":0.5,"clock_mhz":1386,"celsius":51,"throttle":["power"],"throttles":true},{"index":1,"memory_used":1048576}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, x := range r.Readings(time.Unix(1, 0)) {
		got[x.Series.String()] = x.Value
	}
	want := map[string]float64{}
	for _, x := range []struct {
		v float64
		s telemetry.Series
	}{
		{0.5, telemetry.NewSeries(telemetry.GPUUtilization)}, {1386e6, telemetry.NewSeries(telemetry.GPUFrequency, "gpc", "0")},
		{51, telemetry.NewSeries(telemetry.Temperature, "zone", "gpu")}, {1, telemetry.NewSeries(telemetry.Throttled, "reason", "power")},
		{1 << 20, telemetry.NewSeries(telemetry.GPUMemoryUsed, "gpu", "1")},
	} {
		want[x.s.String()] = x.v
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, m := range []string{telemetry.GPUMemoryUsed, telemetry.GPUMemoryTotal, telemetry.GPUMemoryFrequency} {
		if _, ok := telemetry.Lookup(m); !ok {
			t.Errorf("%s is not described", m)
		}
	}
}

func TestBadLines(t *testing.T) {
	for _, line := range []string{"", "x", `{"gpus":[{"index":"a"}]}`, `{"gpus":[` + strings.Repeat("{},", 80) + `{}]}`, strings.Repeat(" ", maxLine+1)} {
		if _, err := Parse([]byte(line)); !errors.Is(err, ErrLine) {
			t.Errorf("%.40q: %v", line, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"gpus":[{"index":0,"power_watts":12.5}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err == nil {
			r.Readings(time.Unix(0, 0))
		}
	})
}
