// Package tegra reads the lines that NVIDIA's tegrastats prints on Jetson
// modules, in the grammar of every L4T release from R21 to R39. It owns that
// grammar: Parse reads a line, Format prints one, Readings maps it to the
// vocabulary of package telemetry.
//
// Invariants: Parse never fails and takes linear time; what it cannot place is
// kept in Unknown with its text and counted; what a line does not say is
// absent (nil, or no map entry), never zero. Anything may import it.
package tegra

import (
	"encoding/json"
	"strings"
)

// Stats is one line of tegrastats. Names of zones and rails are kept as
// printed; a name that stands twice on a line gets "#2" at its second place.
type Stats struct {
	// Time is the device's local time without a zone, "2026-05-09T18:42:06";
	// releases before R34 print none.
	Time string `json:"time,omitempty"`

	RAMUsedMB    *float64 `json:"ram_used_mb,omitempty"`
	RAMTotalMB   *float64 `json:"ram_total_mb,omitempty"`
	RAMLfb       *Lfb     `json:"ram_lfb,omitempty"`
	SwapUsedMB   *float64 `json:"swap_used_mb,omitempty"`
	SwapTotalMB  *float64 `json:"swap_total_mb,omitempty"`
	SwapCachedMB *float64 `json:"swap_cached_mb,omitempty"`
	IRAMUsedKB   *float64 `json:"iram_used_kb,omitempty"`
	IRAMTotalKB  *float64 `json:"iram_total_kb,omitempty"`
	IRAMLfbKB    *float64 `json:"iram_lfb_kb,omitempty"`

	CPU []Core `json:"cpu,omitempty"`
	// CPUMHz is the clock that all cores share, where the release prints it
	// once after the list; it is in each core that is on as well.
	CPUMHz *float64 `json:"cpu_mhz,omitempty"`

	GR3D    *GPU              `json:"gr3d,omitempty"`
	DGPU    *GPU              `json:"dgpu,omitempty"` // GR3D_PCI, a discrete GPU beside the module's own
	EMC     *Engine           `json:"emc,omitempty"`
	Engines map[string]Engine `json:"engines,omitempty"` // by lower-case name without _FREQ or _LOAD: vic, nvenc0, nvdla1, ape …

	MTS      *MTS     `json:"mts,omitempty"`
	EDPLimit *float64 `json:"edp_limit,omitempty"`

	TempsC     map[string]float64 `json:"temps_c,omitempty"`
	TempsPeakC map[string]float64 `json:"temps_peak_c,omitempty"`
	ZonesOff   []string           `json:"zones_off,omitempty"` // printed as -256C: the block is powered down

	PowerMW map[string]Rail `json:"power_mw,omitempty"`

	// Unknown lists tokens that have no place above, as "NAME value"; at most
	// maxUnknown of them, while UnknownCount counts them all.
	Unknown      []Unknown `json:"unknown"`
	UnknownCount int       `json:"unknown_count,omitempty"`
}

// Lfb is the largest free block: how many of the largest size are free.
type Lfb struct {
	Blocks float64 `json:"blocks"`
	KB     float64 `json:"kb"`
}

// Core is one CPU core; both values are null while it is off.
type Core struct {
	Pct *float64 `json:"pct"`
	MHz *float64 `json:"mhz"`
	Off bool     `json:"off,omitempty"`
	// Cluster is the name before the list where it is not plain CPU.
	Cluster string `json:"cluster,omitempty"`
}

// GPU is the load and the clock of each graphics processing cluster; a null
// clock belongs to a cluster that is off.
type GPU struct {
	Pct *float64   `json:"pct"`
	MHz []*float64 `json:"mhz"`
	// Pct2 is the second cluster's own load, where the release prints it
	// apart (GR3D2_FREQ); its clock is the last of MHz.
	Pct2 *float64 `json:"pct2,omitempty"`
	Off  bool     `json:"off,omitempty"`
}

// Engine is a fixed-function engine or the memory controller.
type Engine struct {
	Pct *float64 `json:"pct"`
	MHz *float64 `json:"mhz"`
	Off bool     `json:"off,omitempty"`
	// Each holds the loads of the engine's units where they are printed as a
	// list (the two vector units of a PVA); Pct is the highest of them.
	Each []float64 `json:"each_pct,omitempty"`
}

// MTS is the share of the code-morphing work of Denver and Carmel cores.
type MTS struct {
	FgPct float64 `json:"fg_pct"`
	BgPct float64 `json:"bg_pct"`
}

// Rail is the power of one rail in milliwatts. The average runs since
// tegrastats was started, so it is no window; Peak is printed from R39 on.
type Rail struct {
	Now  float64  `json:"now"`
	Avg  *float64 `json:"avg"`
	Peak *float64 `json:"peak,omitempty"`
}

// Unknown is a token that could not be placed: its name, and its value where
// one followed.
type Unknown struct {
	Name  string
	Value string
}

// String returns "NAME value".
func (u Unknown) String() string {
	if u.Value == "" {
		return u.Name
	}
	return u.Name + " " + u.Value
}

// MarshalText makes it one JSON string.
func (u Unknown) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (u *Unknown) UnmarshalText(b []byte) error {
	u.Name, u.Value, _ = strings.Cut(string(b), " ")
	return nil
}

// Empty reports that nothing on the line was understood.
func (s *Stats) Empty() bool {
	return s.RAMUsedMB == nil && s.SwapUsedMB == nil && s.IRAMUsedKB == nil && s.CPU == nil &&
		s.GR3D == nil && s.DGPU == nil && s.EMC == nil && s.Engines == nil && s.MTS == nil && s.EDPLimit == nil &&
		s.TempsC == nil && s.ZonesOff == nil && s.PowerMW == nil
}

// JSON returns the object that represents the line; unknown is always there.
func (s *Stats) JSON() ([]byte, error) {
	c := *s
	if c.Unknown == nil {
		c.Unknown = []Unknown{}
	}
	return json.Marshal(&c)
}
