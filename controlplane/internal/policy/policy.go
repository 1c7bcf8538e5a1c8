// Package policy is what operators set about when and how fast devices may
// download and apply: settings at fleet, site and device, checked and merged
// into what a device gets with its desired state, and into the rates that this
// server keeps to itself. It is pure. fleet, rpc and the façade import it.
package policy

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/window"
	"github.com/skein-fleet/skein/proto/wire"
)

// ErrInvalid is what Check returns, wrapped.
var ErrInvalid = errors.New("policy")

// Scope says for whom a setting is; a later one wins.
type Scope int

// The scopes.
const (
	Fleet  Scope = 1
	Site   Scope = 2
	Device Scope = 3
)

// String returns the scope's name.
func (s Scope) String() string {
	switch s {
	case Fleet:
		return "fleet"
	case Site:
		return "site"
	case Device:
		return "device"
	}
	return fmt.Sprintf("scope %d", int(s))
}

// Setting is one value at one scope.
type Setting struct {
	Scope   Scope
	Subject string // site or device id, empty for the fleet
	Key     string
	Value   string // as Check returns it
}

// At reports whether both are the same key in the same place.
func (s Setting) At(o Setting) bool {
	return s.Scope == o.Scope && s.Subject == o.Subject && s.Key == o.Key
}

// The keys.
const (
	Zone           = "zone"
	DownloadWindow = "download-window"
	ApplyWindow    = "apply-window"
	MeteredLinks   = "metered"
	MeteredDay     = "metered-day"
	MeteredMonth   = "metered-month"
	UnmeteredDay   = "unmetered-day"
	UnmeteredMonth = "unmetered-month"
	DeviceRate     = "device-rate"
	SiteRate       = "site-rate"
	FleetRate      = "fleet-rate"
	Reserve        = "reserve"
	PowerMode      = "power-mode"
	PowerClocks    = "power-clocks"
	FanProfile     = "fan-profile"
	PowerReboot    = "power-reboot"
	LongestHold    = "longest-hold"
)

// Least rates: with less, transfers would be given up as stalled.
const (
	leastDeviceRate = 4 << 10
	leastSharedRate = 64 << 10
	leastReserve    = 32 << 20 // of every agent
)

// key is how the values of one key are read.
type key struct {
	name string
	help string
	read func(string) (string, error) // returns the value as it is kept
	last Scope                        // the last scope at which it may stand
}

// keys are all of them, in the order in which they are shown.
func keys() []key {
	return []key{
		{Zone, "time zone of windows, days and months: a name as Europe/Paris, or device", readZone, Device},
		{DownloadWindow, `when bytes may come, as "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00", or always`, readWindow, Device},
		{ApplyWindow, "when a release may be put to work, in the same form", readWindow, Device},
		{MeteredLinks, "network interfaces behind which bytes cost, as wwan*,ppp*, or none", readPatterns, Device},
		{MeteredDay, "bytes a day over metered links, as 50MB, or unlimited", readBytes, Device},
		{MeteredMonth, "bytes a month over metered links", readBytes, Device},
		{UnmeteredDay, "bytes a day over other links", readBytes, Device},
		{UnmeteredMonth, "bytes a month over other links", readBytes, Device},
		{DeviceRate, "bytes a second of one device, as 500KB/s, or unlimited", readRate(leastDeviceRate), Device},
		{SiteRate, "bytes a second of all devices of a site together", readRate(leastSharedRate), Site},
		{FleetRate, "bytes a second of all devices together", readRate(leastSharedRate), Fleet},
		{Reserve, "bytes of a device's disk that a release leaves free, as 256MiB", readReserve, Device},
		{PowerMode, "power mode of the board by name, as MAXN or 15W, or any", readName, Device},
		{PowerClocks, "locked (jetson_clocks), dynamic, or any", oneOf("locked", "dynamic", "any"), Device},
		{FanProfile, "profile of the fan, as quiet or cool, or any", readName, Device},
		{PowerReboot, "yes: the machine may be restarted in an apply window for a power mode that needs it; no", oneOf("yes", "no"), Device},
		{LongestHold, "how long applications may hold an update off, as 30m, or none", readHold, Device},
	}
}

// Help returns the keys with a line about each.
func Help() [][2]string {
	var out [][2]string
	for _, k := range keys() {
		out = append(out, [2]string{k.name, k.help})
	}
	return out
}

// CheckPlace reports what is wrong with scope, subject and key; an empty key is
// all keys.
func (s Setting) CheckPlace() error {
	if s.Scope < Fleet || s.Scope > Device {
		return fmt.Errorf("%w: %s: scope is missing: want fleet, site or device", ErrInvalid, s.Key)
	}
	if (s.Scope == Fleet) != (s.Subject == "") {
		return fmt.Errorf("%w: %s: a site or device is named for the scopes site and device, and only there", ErrInvalid, s.Key)
	}
	if s.Key == "" {
		return nil
	}
	k, err := find(s.Key)
	if err == nil && s.Scope > k.last {
		err = fmt.Errorf("%w: %s is of the %s, not of a %s", ErrInvalid, s.Key, k.last, s.Scope)
		if k.last == Site {
			err = fmt.Errorf("%w: %s is of a site or of the fleet, where it holds for each site", ErrInvalid, s.Key)
		}
	}
	return err
}

// Check returns the setting as it is kept.
func (s Setting) Check() (Setting, error) {
	k, err := find(s.Key)
	if err == nil {
		err = s.CheckPlace()
	}
	if err != nil {
		return s, err
	}
	value, err := k.read(strings.TrimSpace(s.Value))
	if err != nil {
		return s, fmt.Errorf("%w: %s: %w", ErrInvalid, s.Key, err)
	}
	s.Value = value
	return s, nil
}

func find(name string) (key, error) {
	var names []string
	for _, k := range keys() {
		if k.name == name {
			return k, nil
		}
		names = append(names, k.name)
	}
	return key{}, fmt.Errorf("%w: %q is no setting: want one of %s", ErrInvalid, name, strings.Join(names, ", "))
}

func readZone(text string) (string, error) {
	if text == "device" {
		return text, nil
	}
	loc, err := window.Zone(text)
	if err != nil {
		return "", fmt.Errorf("%w; or device, for the zone that each device is set to", err)
	}
	return loc.String(), nil
}

func readWindow(text string) (string, error) {
	if text == "" {
		return "", errors.New(`want windows as "Mon-Fri 22:00-06:00", or always`)
	}
	set, err := window.Parse(text)
	return set.String(), err
}

var patternRE = regexp.MustCompile(`^[A-Za-z0-9_.:@?*\[\]-]{1,32}$`)

func readPatterns(text string) (string, error) {
	if text == "none" || text == "" {
		return "none", nil
	}
	var out []string
	for p := range strings.SplitSeq(text, ",") {
		p = strings.TrimSpace(p)
		if _, err := path.Match(p, ""); err != nil || !patternRE.MatchString(p) {
			return "", fmt.Errorf("%q is no pattern of interfaces: want names with * and ?, as wwan*", p)
		}
		out = append(out, p)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ","), nil
}

const unlimited = "unlimited"

func readBytes(text string) (string, error) {
	if text == unlimited {
		return text, nil
	}
	n, err := ParseBytes(text)
	return strconv.FormatInt(n, 10), err
}

func readRate(least int64) func(string) (string, error) {
	return func(text string) (string, error) {
		if text == unlimited {
			return text, nil
		}
		n, err := ParseBytes(strings.TrimSuffix(text, "/s"))
		if err == nil && n < least {
			err = fmt.Errorf("%s is too slow to be kept to: want at least %d bytes a second, or unlimited", text, least)
		}
		return strconv.FormatInt(n, 10), err
	}
}

func readReserve(text string) (string, error) {
	n, err := ParseBytes(text)
	if err == nil && n < leastReserve {
		err = fmt.Errorf("%s is less than the 32 MiB that every agent keeps free", text)
	}
	return strconv.FormatInt(n, 10), err
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)

// readName reads a name that only boards know.
func readName(text string) (string, error) {
	if !nameRE.MatchString(text) {
		return "", fmt.Errorf("%q is no name: want up to 32 letters, digits, _ . and -, or any", text)
	}
	return text, nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", fmt.Errorf("%q: want one of %s", text, strings.Join(words, ", "))
		}
		return text, nil
	}
}

const mostHold = 7 * 24 * time.Hour

// readHold keeps seconds, -1 for none.
func readHold(text string) (string, error) {
	if text == "none" {
		return "-1", nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > mostHold {
		return "", fmt.Errorf("%q: want a time of 1s to %s, as 30m, or none", text, mostHold)
	}
	return strconv.FormatInt(int64(d/time.Second), 10), nil
}

var bytesRE = regexp.MustCompile(`^([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([kKMGT]?)(i?)(B?)$`)

// ParseBytes reads a number of bytes as 1500, 50MB or 1.5GiB.
func ParseBytes(text string) (int64, error) {
	m := bytesRE.FindStringSubmatch(text)
	if m == nil || m[3] != "" && m[2] == "" {
		return 0, fmt.Errorf("%q is no number of bytes: want one as 1500, 50MB or 1.5GiB", text)
	}
	unit, base := int64(1), int64(1000)
	if m[3] != "" {
		base = 1024
	}
	for range strings.Index("_KMGT", strings.ToUpper(m[2] + "_")[:1]) {
		unit *= base
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err == nil && n <= maxBytes/unit {
		return n * unit, nil
	}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil || f*float64(unit) >= maxBytes {
		return 0, fmt.Errorf("%q is more bytes than can be counted", text)
	}
	return int64(f * float64(unit)), nil
}

const maxBytes = 1 << 62

// FormatBytes returns n in the largest unit that shows it exactly.
func FormatBytes(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1e12, "TB"}, {1 << 30, "GiB"}, {1e9, "GB"}, {1 << 20, "MiB"}, {1e6, "MB"}, {1 << 10, "KiB"}, {1e3, "KB"}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// Show returns a kept value as people read it.
func (s Setting) Show() string {
	n, err := strconv.ParseInt(s.Value, 10, 64)
	switch {
	case err != nil || s.Key == PowerMode || s.Key == FanProfile: // whose names may be numbers
		return s.Value
	case s.Key == LongestHold && n < 0:
		return "none"
	case s.Key == LongestHold:
		return (time.Duration(n) * time.Second).String()
	case s.Key == DeviceRate || s.Key == SiteRate || s.Key == FleetRate:
		return FormatBytes(n) + "/s"
	}
	return FormatBytes(n)
}

// Merge returns what is in force on a device, one setting a key, in the order
// of the keys.
func Merge(all []Setting, site, device string) []Setting {
	var out []Setting
	for _, k := range keys() {
		var best *Setting
		for i, s := range all {
			if s.Key == k.name && s.Applies(site, device) && (best == nil || s.Scope > best.Scope) {
				best = &all[i]
			}
		}
		if best != nil {
			out = append(out, *best)
		}
	}
	return out
}

// Applies reports whether the setting is for a device of a site.
func (s Setting) Applies(site, device string) bool {
	switch s.Scope {
	case Fleet:
		return true
	case Site:
		return s.Subject == site
	}
	return s.Subject == device
}

// Extra is what a rollout or an operator adds for one desired state.
type Extra struct {
	Download string `json:"download,omitempty"` // windows
	Apply    string `json:"apply,omitempty"`
	Zone     string `json:"zone,omitempty"` // of both, empty: the device's
	Now      bool   `json:"now,omitempty"`
}

// Wire returns what a device gets, nil when nothing restrains it. in is checked
// and merged.
func Wire(in []Setting, x Extra) *wire.Policy {
	p := &wire.Policy{Now: x.Now}
	bound := false
	values := map[string]string{}
	for _, s := range in {
		values[s.Key] = s.Value
	}
	if z := values[Zone]; z != "device" {
		p.Zone = z
	}
	add := func(list *[]wire.Schedule, windows, zone string) {
		if windows != "" && windows != "always" {
			*list = append(*list, wire.Schedule{Windows: windows, Zone: zone})
			bound = true
		}
	}
	add(&p.Download, values[DownloadWindow], p.Zone)
	add(&p.Download, x.Download, x.Zone)
	add(&p.Apply, values[ApplyWindow], p.Zone)
	add(&p.Apply, x.Apply, x.Zone)
	if m := values[MeteredLinks]; m != "" && m != "none" {
		p.Metered = strings.Split(m, ",")
	}
	number := func(key string) (int64, bool) {
		n, err := strconv.ParseInt(values[key], 10, 64)
		return n, err == nil
	}
	for _, a := range []struct {
		key    string
		class  wire.LinkClass
		period wire.Period
	}{{UnmeteredDay, wire.Unmetered, wire.PerDay}, {UnmeteredMonth, wire.Unmetered, wire.PerMonth},
		{MeteredDay, wire.Metered, wire.PerDay}, {MeteredMonth, wire.Metered, wire.PerMonth}} {
		if n, ok := number(a.key); ok {
			p.Allowances = append(p.Allowances, wire.Allowance{Class: a.class, Period: a.period, Bytes: n})
			bound = true
		}
	}
	p.Rate, _ = number(DeviceRate)
	p.Reserve, _ = number(Reserve)
	p.Power = powerWish(values)
	p.MaxHold, _ = number(LongestHold)
	if !bound && p.Rate == 0 && p.Reserve == 0 && p.Power == nil && p.MaxHold == 0 {
		return nil
	}
	return p
}

// powerWish is how the board should run, nil for as it likes.
func powerWish(values map[string]string) *wire.PowerWish {
	name := func(key string) string {
		if values[key] == "any" {
			return ""
		}
		return values[key]
	}
	w := &wire.PowerWish{Mode: name(PowerMode), Fan: name(FanProfile)}
	switch values[PowerClocks] {
	case "locked":
		w.Clocks = wire.ClocksLocked
	case "dynamic":
		w.Clocks = wire.ClocksDynamic
	}
	if *w == (wire.PowerWish{}) {
		return nil
	}
	w.Reboot = values[PowerReboot] == "yes"
	return w
}

// Rates are the rates that this server keeps to, zero for no limit.
type Rates struct {
	Fleet int64
	// Site is that of each site that has none of its own in Sites.
	Site  int64
	Sites map[string]int64
}

// RatesOf returns the server's rates.
func RatesOf(all []Setting) Rates {
	r := Rates{Sites: map[string]int64{}}
	for _, s := range all {
		n, err := strconv.ParseInt(s.Value, 10, 64)
		if err != nil {
			n = 0 // unlimited
		}
		switch {
		case s.Key == FleetRate:
			r.Fleet = n
		case s.Key == SiteRate && s.Scope == Fleet:
			r.Site = n
		case s.Key == SiteRate:
			r.Sites[s.Subject] = n
		}
	}
	return r
}

// Of returns the rate of one site.
func (r Rates) Of(site string) int64 {
	if n, ok := r.Sites[site]; ok {
		return n
	}
	return r.Site
}

// TimeForm is how moments at which windows change are shown.
const TimeForm = "Mon 2006-01-02 15:04 MST"

// WaitText says what a device waits for, empty for nothing.
func WaitText(t *wire.PolicyState) string {
	if t == nil || t.Waits == 0 {
		return ""
	}
	until := "; an end is not in sight"
	if t.Until != 0 {
		loc, err := window.Zone(t.Zone)
		if err != nil {
			loc = time.UTC
		}
		until = " until " + time.Unix(t.Until, 0).In(loc).Format(TimeForm)
	}
	switch t.Waits {
	case wire.WaitsForDownloadWindow:
		return "its download waits for the window of its policy" + until
	case wire.WaitsForApplyWindow:
		return "the release is on it and waits for the window in which it may be applied" + until
	}
	if t.Waits == wire.WaitsForHold {
		who := "an application"
		if len(t.Holds) > 0 {
			who = t.Holds[0].Owner + " (" + t.Holds[0].Reason + ")"
		}
		return "the release is on it and " + who + " holds it off" + until
	}
	return "its download waits: an allowance of bytes over " + t.Class.String() + " links is used up" + until
}
