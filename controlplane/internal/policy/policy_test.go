package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/proto/wire"
)

func kept(t *testing.T, scope Scope, subject, key, value string) Setting {
	t.Helper()
	s, err := Setting{scope, subject, key, value}.Check()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheck(t *testing.T) {
	for _, c := range []struct{ key, in, want, show string }{
		{Zone, "Europe/Paris", "Europe/Paris", "Europe/Paris"},
		{Zone, "device", "device", "device"},
		{DownloadWindow, "mon-fri 22:00-06:00", "Mon-Fri 22:00-06:00", "Mon-Fri 22:00-06:00"},
		{ApplyWindow, "always", "always", "always"},
		{MeteredLinks, "wwan*, ppp? ,wwan*", "ppp?,wwan*", "ppp?,wwan*"},
		{MeteredLinks, "none", "none", "none"},
		{MeteredDay, "50MB", "50000000", "50MB"},
		{MeteredMonth, "1.5GiB", "1610612736", "1536MiB"},
		{UnmeteredDay, "0", "0", "0B"},
		{UnmeteredMonth, "unlimited", "unlimited", "unlimited"},
		{DeviceRate, "500KB/s", "500000", "500KB/s"},
		{SiteRate, "1MiB/s", "1048576", "1MiB/s"},
		{Reserve, "256MiB", "268435456", "256MiB"},
	} {
		scope, subject := Site, "lyon"
		s := kept(t, scope, subject, c.key, c.in)
		if s.Value != c.want || s.Show() != c.show {
			t.Errorf("%s %q: kept as %q, shown as %q", c.key, c.in, s.Value, s.Show())
		}
		again := kept(t, scope, subject, c.key, s.Show())
		if again != s {
			t.Errorf("%s: %q reads back as %q", c.key, s.Show(), again.Value)
		}
	}
	for _, c := range []struct {
		s    Setting
		want string
	}{
		{Setting{Fleet, "", "colour", "red"}, "is no setting: want one of zone, download-window"},
		{Setting{Fleet, "", "", ""}, "is no setting"},
		{Setting{0, "", Zone, "UTC"}, "scope is missing"},
		{Setting{Fleet, "lyon", Zone, "UTC"}, "only there"},
		{Setting{Site, "", Zone, "UTC"}, "only there"},
		{Setting{Fleet, "", Zone, "Mars"}, "no time zone"},
		{Setting{Fleet, "", DownloadWindow, "Mon"}, "download-window"},
		{Setting{Fleet, "", DownloadWindow, ""}, "or always"},
		{Setting{Fleet, "", MeteredLinks, "wwan[*"}, "no pattern"},
		{Setting{Fleet, "", MeteredLinks, "wwan0 wlan0"}, "no pattern"},
		{Setting{Fleet, "", MeteredDay, "-1"}, "no number of bytes"},
		{Setting{Fleet, "", MeteredDay, "5iB"}, "no number of bytes"},
		{Setting{Fleet, "", MeteredDay, "999999999999999TB"}, "more bytes than"},
		{Setting{Fleet, "", DeviceRate, "1KB/s"}, "at least 4096"},
		{Setting{Fleet, "", FleetRate, "10KB/s"}, "at least 65536"},
		{Setting{Site, "lyon", FleetRate, "1MB/s"}, "is of the fleet"},
		{Setting{Device, "d", SiteRate, "1MB/s"}, "of a site or of the fleet"},
		{Setting{Fleet, "", Reserve, "1MB"}, "32 MiB"},
	} {
		if _, err := c.s.Check(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.s, err, c.want)
		}
	}
}

func TestMerge(t *testing.T) {
	all := []Setting{
		kept(t, Device, "d1", MeteredDay, "unlimited"),
		kept(t, Site, "lyon", DownloadWindow, "22:00-06:00"),
		kept(t, Fleet, "", DownloadWindow, "01:00-02:00"),
		kept(t, Fleet, "", MeteredDay, "50MB"),
		kept(t, Fleet, "", MeteredLinks, "wwan*"),
		kept(t, Fleet, "", Zone, "Europe/Paris"),
		kept(t, Fleet, "", DeviceRate, "1MB/s"),
		kept(t, Site, "turin", ApplyWindow, "02:00-03:00"),
		kept(t, Fleet, "", SiteRate, "10MB/s"),
		kept(t, Site, "lyon", SiteRate, "unlimited"),
		kept(t, Fleet, "", FleetRate, "100MB/s"),
	}
	got := Wire(Merge(all, "lyon", "d1"), Extra{Apply: "Sun 02:00-05:00", Zone: "UTC", Now: true})
	want := &wire.Policy{
		Download: []wire.Schedule{{Windows: "Mon-Sun 22:00-06:00", Zone: "Europe/Paris"}}, Apply: []wire.Schedule{{Windows: "Sun 02:00-05:00", Zone: "UTC"}},
		Zone: "Europe/Paris", Metered: []string{"wwan*"}, Rate: 1e6, Now: true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got = Wire(Merge(all, "turin", "d2"), Extra{})
	want = &wire.Policy{
		Download: []wire.Schedule{{Windows: "Mon-Sun 01:00-02:00", Zone: "Europe/Paris"}}, Apply: []wire.Schedule{{Windows: "Mon-Sun 02:00-03:00", Zone: "Europe/Paris"}},
		Zone: "Europe/Paris", Metered: []string{"wwan*"}, Rate: 1e6, Allowances: []wire.Allowance{{Class: wire.Metered, Period: wire.PerDay, Bytes: 50e6}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if p := Wire(Merge(all[9:], "lyon", "d1"), Extra{Now: true}); p != nil {
		t.Errorf("rates of the server reach the device: %+v", p)
	}
	r := RatesOf(all)
	if r.Fleet != 100e6 || r.Of("lyon") != 0 || r.Of("turin") != 10e6 {
		t.Errorf("rates %+v", r)
	}
}

func TestBytesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<53).Draw(t, "n")
		if got, err := ParseBytes(FormatBytes(n)); err != nil || got != n {
			t.Fatalf("%d: %s reads back as %d, %v", n, FormatBytes(n), got, err)
		}
	})
}
