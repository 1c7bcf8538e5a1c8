package bench

import (
	"os"
	"testing"
)

// TestSite: few devices behind a line; one copy comes over it.
func TestSite(t *testing.T) {
	figures, err := Site(t.Context(), SiteOptions{Devices: 20, KiB: 256, Bandwidth: 2 << 20, Skeind: []string{os.Args[0]}, Dir: t.TempDir(), Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Figure{}
	for _, f := range figures {
		got[f.Name] = f
	}
	if f := got["site.uplink_copies"]; !f.OK || f.Value < 1 {
		t.Errorf("%v", f)
	}
	if f := got["site.by_peer"]; f.Value < 19*0.25 {
		t.Errorf("%v", f)
	}
}
