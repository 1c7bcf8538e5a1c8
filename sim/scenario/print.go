package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/fault"
)

// String prints the script in the language that Parse reads, without comments.
func (s *Script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "devices %d mix %s seed %d\n", s.Devices, s.Mix, s.Seed)
	if s.Length > 0 {
		fmt.Fprintf(&b, "length %v\n", s.Length)
	}
	for _, n := range s.Networks {
		fmt.Fprintln(&b, n)
	}
	for _, st := range s.Steps {
		fmt.Fprintln(&b, st)
	}
	for _, e := range s.Expects {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// String prints the line.
func (n Network) String() string {
	w := words{"network"}
	w.devices("device", n.Devices)
	w.duration("latency", n.Profile.Latency)
	w.duration("jitter", n.Profile.Jitter)
	w.duration("stall", n.Profile.Stall)
	w.number("loss", n.Profile.Loss)
	w.number("bandwidth", float64(n.Profile.Bandwidth))
	return w.String()
}

// String prints the line.
func (st Step) String() string { return "at " + st.At.String() + " " + st.Action.text() }

// String prints the line.
func (e Expect) String() string {
	w := words{"expect"}
	switch e.When {
	case Always:
		w.add("always")
	case Within:
		w.add("within", e.By.String())
	}
	if e.Not {
		w.add("not")
	}
	w.add(e.Cond.text())
	return w.String()
}

type words []string

func (w words) String() string { return strings.Join(w, " ") }

func (w *words) add(s ...string) { *w = append(*w, s...) }

func (w *words) duration(key string, d time.Duration) {
	if d != 0 {
		w.add(key + "=" + d.String())
	}
}

func (w *words) number(key string, v float64) {
	if v != 0 {
		w.add(key + "=" + strconv.FormatFloat(v, 'f', -1, 64))
	}
}

func (w *words) devices(key string, d fault.Devices) {
	if s := d.String(); s != "all" {
		w.add(key + "=" + s)
	}
}

func (f Fault) text() string {
	at := f.Fault
	at.At = 0
	return strings.Join(append([]string{"fault", string(f.Kind)}, at.Fields()...), " ")
}

func (r Release) text() string {
	w := words{"release", r.Name}
	if r.Defect != Good {
		w = append(w, "defect="+string(r.Defect))
	}
	if r.OS != "" {
		text := "os=" + r.OS
		if r.DeadOS {
			text += ",dead"
		}
		w = append(w, text)
	}
	return strings.Join(w, " ")
}

func (r Rollout) text() string {
	w := words{"rollout", r.Release}
	var sizes []string
	for _, s := range r.Waves {
		if s.Percent > 0 {
			sizes = append(sizes, strconv.FormatFloat(s.Percent, 'g', -1, 64)+"%")
			continue
		}
		sizes = append(sizes, strconv.Itoa(s.Count))
	}
	if len(sizes) > 0 {
		w.add("waves=" + strings.Join(sizes, ","))
	}
	w.duration("soak", r.Soak)
	w.duration("timeout", r.Timeout)
	w.number("abort", r.Abort)
	w.devices("to", r.To)
	return w.String()
}

func (c Control) text() string { return c.Verb + " " + c.Release }

func (p Policy) text() string {
	w := words{"policy"}
	if p.Site != "" {
		w.add("site=" + p.Site)
	}
	w.add(p.Settings...)
	return w.String()
}

func (r Route) text() string {
	w := words{"route", r.Interface}
	w.devices("device", r.To)
	return w.String()
}

func (c Cache) text() string {
	w := words{"cache"}
	w.devices("device", c.Of)
	return w.String()
}

func (b Bundle) text() string {
	w := words{"bundle", b.Release}
	w.devices("device", b.To)
	return w.String()
}

func (r Restart) text() string {
	w := words{"restart", r.What}
	w.duration("down", r.Down)
	return w.String()
}

func (c ReleaseOn) text() string {
	switch {
	case c.All:
		return "release " + c.Release + " on all"
	case c.Named:
		return "release " + c.Release + " on device " + c.Devices.String()
	}
	return fmt.Sprintf("release %s on %s %d", c.Release, c.Op, c.Count)
}

func (c Count) text() string {
	return fmt.Sprintf("%s %s %s", c.Quantity, c.Op, strconv.FormatFloat(c.N, 'f', -1, 64))
}

func (h Health) text() string {
	if s := h.Devices.String(); s != "all" {
		return "condition " + h.Condition + " on device " + s
	}
	return "condition " + h.Condition + " on all"
}

func (r RolloutState) text() string { return "rollout " + r.Release + " " + r.State }
