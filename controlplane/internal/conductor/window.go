package conductor

import (
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/ota/rollout"
	"github.com/skein-fleet/skein/ota/window"
)

// added is what a rollout adds to the policy of each device.
func added(s rollout.Schedule) policy.Extra {
	return policy.Extra{Download: s.DownloadWindow, Apply: s.ApplyWindow, Zone: s.Zone(), Now: s.Now}
}

// outside returns what says, of each device, that the windows in which it may
// download are closed now; empty when they are open or not known, since their
// zone may be the device's own.
func (c *Conductor) outside(tenant string, s rollout.Schedule) func(*fleet.View) string {
	settings, x, now := c.cfg.Fleet.Policy(tenant), added(s), c.cfg.Now()
	if s.Now || len(settings) == 0 && x.Download == "" {
		return func(*fleet.View) string { return "" }
	}
	known := map[string]string{} // many devices have the same windows
	return func(v *fleet.View) string {
		p := policy.Wire(policy.Merge(settings, v.Site(), v.ID), x)
		if p == nil || len(p.Download) == 0 {
			return ""
		}
		var sets []window.Local
		var text strings.Builder
		for _, w := range p.Download {
			zone := w.Zone
			if zone == "" && v.Transfer != nil {
				zone = v.Transfer.Zone
			}
			set, err := window.Parse(w.Windows)
			loc, zerr := window.Zone(zone)
			if err != nil || zerr != nil {
				continue
			}
			sets = append(sets, window.Local{Set: set, Zone: loc})
			text.WriteString(" (" + set.String() + " " + zone + ")")
		}
		said, have := known[text.String()]
		if !have {
			said = closed(sets, text.String(), now)
			known[text.String()] = said
		}
		return said
	}
}

// closed says until when the windows are not all open, empty when they are.
func closed(sets []window.Local, text string, now time.Time) string {
	open, changes := window.All(sets, now)
	switch {
	case open:
		return ""
	case changes.IsZero():
		return "the windows in which it may download," + text + ", are never open together"
	}
	return "outside the window in which it may download," + text + ", until " + changes.In(sets[0].Zone).Format(policy.TimeForm)
}
