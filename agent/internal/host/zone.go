package host

import (
	"os"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/window"
)

// Zone is where the machine stands, by name where it has one: what
// /etc/localtime points to, else what /etc/timezone says, else the zone of the
// process.
func (m *Machine) Zone() *time.Location {
	var names []string
	if target, err := os.Readlink(m.path("etc/localtime")); err == nil {
		if _, name, ok := strings.Cut(target, "zoneinfo/"); ok {
			names = append(names, name)
		}
	}
	names = append(names, strings.TrimSpace(m.text("etc/timezone")))
	for _, n := range names {
		if loc, err := window.Zone(n); err == nil {
			return loc
		}
	}
	return time.Local
}
