package fault

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tests := []struct {
		text string
		want Fault
	}{
		{"cut:device=3:at=10s:for=20s", Fault{Kind: Cut, Devices: Devices{Ranges: []Range{{3, 3}}}, At: 10 * time.Second, For: 20 * time.Second}},
		{"lose:rate=0.3:at=0s", Fault{Kind: Lose, Rate: 0.3}},
		{"lose:rate=30%", Fault{Kind: Lose, Rate: 0.3}},
		{"slow:device=1-5,8:bandwidth=64KB/s:latency=300ms", Fault{Kind: Slow, Devices: Devices{Ranges: []Range{{1, 5}, {8, 8}}}, Bandwidth: 64 << 10, Latency: 300 * time.Millisecond}},
		{"kill:device=any3:at=1m:times=5:every=2s:down=1s", Fault{Kind: Kill, Devices: Devices{Any: 3}, At: time.Minute, Times: 5, Every: 2 * time.Second, Down: time.Second}},
		{"kill", Fault{Kind: Kill, Times: 1}},
		{"corrupt:device=10%:rate=1", Fault{Kind: Corrupt, Devices: Devices{Percent: 10}, Rate: 1}},
		{"diskfull:device=4:free=2MB", Fault{Kind: DiskFull, Devices: Devices{Ranges: []Range{{4, 4}}}, Free: 2 << 20}},
		{"heat:device=orin-nano:to=85C", Fault{Kind: Heat, Devices: Devices{Model: "orin-nano"}, Celsius: 85}},
		{"clock1970:device=all:sync=30s", Fault{Kind: Clock1970, Sync: 30 * time.Second}},
		{"hole:for=5s", Fault{Kind: Hole, For: 5 * time.Second}},
	}
	for _, tt := range tests {
		got, err := Parse(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.text, diff)
		}
		again, err := Parse(got.String())
		if err != nil || !cmp.Equal(got, again) {
			t.Errorf("%s prints as %s, which reads as %+v, %v", tt.text, got, again, err)
		}
	}
	if end, over := tests[0].want.End(); end != 30*time.Second || !over {
		t.Errorf("end %v %v", end, over)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "explode", "cut:device", "cut:device=0", "cut:device=5-3", "cut:device=tx9", "cut:at=-1s", "cut:at=10", "cut:rate=0.5",
		"lose", "lose:rate=2", "lose:rate=-1", "lose:rate=NaN", "slow", "slow:bandwidth=1XB", "kill:times=2", "kill:times=0", "heat",
		"heat:to=1000", "cut:at=1s:at=2s", "cut:device=0%", "cut:device=any", "diskfull:free=9999999999999GB", "cut:", "cut:at=1e9h",
	} {
		if f, err := Parse(text); !errors.Is(err, ErrBadFault) {
			t.Errorf("%q read as %+v, %v", text, f, err)
		}
	}
	_, err := Parse("lose:speed=1")
	if err == nil || !strings.Contains(err.Error(), "rate=") {
		t.Errorf("%v does not say what lose takes", err)
	}
}

func TestPick(t *testing.T) {
	models := []string{"nano", "x86", "nano", "thor", "nano", "x86", "x86", "x86", "x86", "x86"}
	tests := []struct {
		devices string
		want    []int
	}{
		{"all", []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
		{"2-3,9,50", []int{2, 3, 9}},
		{"nano", []int{1, 3, 5}},
		{"any20", []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
	}
	for _, tt := range tests {
		d, err := ParseDevices(tt.devices)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, d.Pick(models, 1)); diff != "" {
			t.Errorf("%s: %s", tt.devices, diff)
		}
	}
	drawn := func(text string, seed uint64) []int {
		d, err := ParseDevices(text)
		if err != nil {
			t.Fatal(err)
		}
		return d.Pick(models, seed)
	}
	if n := len(drawn("30%", 1)); n != 3 {
		t.Errorf("30%% of 10 is %d", n)
	}
	if len(drawn("1%", 1)) != 1 {
		t.Error("1% of 10 is nobody")
	}
	if !cmp.Equal(drawn("any3", 5), drawn("any3", 5)) {
		t.Error("a draw does not repeat")
	}
	differ := false
	for seed := range uint64(10) {
		differ = differ || !cmp.Equal(drawn("any3", seed), drawn("any3", 99))
	}
	if !differ {
		t.Error("the seed changes nothing")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"cut:device=3:at=10s:for=20s", "slow:bandwidth=0:latency=0s", "lose:rate=0", "heat:to=0", "kill:times=2:every=1ns", "corrupt:device=33.3%:rate=1e-3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(got.String())
		if err != nil || !cmp.Equal(got, again) {
			t.Fatalf("%q prints as %q, which reads as %+v, %v", text, got.String(), again, err)
		}
	})
}
