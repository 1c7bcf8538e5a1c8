package rootfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/sim/jetson"
)

// Errors of this package, wrapped with what was asked for.
var (
	ErrUnknown = errors.New("unknown")
	ErrNoPair  = errors.New("the JetPack was never made for this module")
)

// JetPack is one release of the vendor's software.
type JetPack struct {
	Name, L4T string
	CUDA      string // full version, as its file says it
	TensorRT  string // full version, as its library says it
	Kernel    string
	SoCs      []string // that it was made for
}

var (
	socs4 = []string{"t210", "t186", "t194"}
	socs5 = []string{"t194", "t234"}
	socs6 = []string{"t234"}
	socs7 = []string{"t264"}
)

// JetPacks from 4.6 to 7, oldest first. README.md of package jetson names the
// sources; fourth numbers of TensorRT are those of the vendor's packages.
var JetPacks = []JetPack{
	{"4.6", "32.6.1", "10.2.300", "8.0.1", "4.9.253-tegra", socs4},
	{"4.6.1", "32.7.1", "10.2.300", "8.2.1", "4.9.253-tegra", socs4},
	{"4.6.2", "32.7.2", "10.2.300", "8.2.1", "4.9.299-tegra", socs4},
	{"4.6.3", "32.7.3", "10.2.300", "8.2.1", "4.9.299-tegra", socs4},
	{"4.6.4", "32.7.4", "10.2.300", "8.2.1", "4.9.337-tegra", socs4},
	{"4.6.5", "32.7.5", "10.2.300", "8.2.1", "4.9.337-tegra", socs4},
	{"4.6.6", "32.7.6", "10.2.300", "8.2.1", "4.9.337-tegra", socs4},
	{"5.0.2", "35.1.0", "11.4.14", "8.4.1", "5.10.104-tegra", socs5},
	{"5.1", "35.2.1", "11.4.19", "8.5.2", "5.10.104-tegra", socs5},
	{"5.1.1", "35.3.1", "11.4.19", "8.5.2", "5.10.104-tegra", socs5},
	{"5.1.2", "35.4.1", "11.4.19", "8.5.2", "5.10.120-tegra", socs5},
	{"5.1.3", "35.5.0", "11.4.19", "8.5.2", "5.10.192-tegra", socs5},
	{"5.1.4", "35.6.0", "11.4.19", "8.5.2", "5.10.216-tegra", socs5},
	{"5.1.5", "35.6.1", "11.4.19", "8.5.2", "5.10.216-tegra", socs5},
	{"5.1.6", "35.6.4", "11.4.19", "8.5.2", "5.10.216-tegra", socs5},
	{"6.0", "36.3.0", "12.2.12", "8.6.2", "5.15.136-tegra", socs6},
	{"6.1", "36.4.0", "12.6.68", "10.3.0", "5.15.148-tegra", socs6},
	{"6.2", "36.4.3", "12.6.68", "10.3.0", "5.15.148-tegra", socs6},
	{"6.2.1", "36.4.4", "12.6.68", "10.3.0", "5.15.148-tegra", socs6},
	{"6.2.2", "36.5.0", "12.6.68", "10.3.0", "5.15.148-tegra", socs6},
	{"7.0", "38.2.0", "13.0.48", "10.13.3", "6.8.12-tegra", socs7},
	{"7.1", "38.4.0", "13.0.48", "10.13.3", "6.8.12-tegra", socs7},
	{"7.2", "39.2.0", "13.2.19", "10.16.2", "6.8.12-l4t-r39.2.0", []string{"t234", "t264"}},
}

// Module is a Jetson module as its device tree names it.
type Module struct {
	Key        string
	Board      string // p3767-0005
	Carrier    string // p3768-0000
	Suffix     string // of the first compatible string, as -super
	SoC        string // t234
	Product    string // model string of the device tree
	MemKiB     uint64 // MemTotal
	MemGB, DLA int
	Since      string // first L4T that knows it, empty for all of its SoC
	Model      string // key of the jetson.Model that lives under it
}

// Modules that a tree can be made for.
var Modules = []Module{
	{"nano", "p3448-0000", "p3449-0000", "-b00", "t210", "NVIDIA Jetson Nano Developer Kit", 4059200, 4, 0, "", "nano"},
	{"nano-2gb", "p3448-0003", "p3542-0000", "", "t210", "NVIDIA Jetson Nano 2GB Developer Kit", 2026496, 2, 0, "", "nano"},
	{"tx1", "p2180-1000", "p2597-0000", "", "t210", "NVIDIA Jetson TX1 Developer Kit", 4052992, 4, 0, "", "nano"},
	{"tx2", "p3310-1000", "p2597-0000", "", "t186", "NVIDIA Jetson TX2 Developer Kit", 8045568, 8, 0, "", "nano"},
	{"tx2-nx", "p3636-0001", "p3509-0000", "", "t186", "NVIDIA Jetson TX2 NX Developer Kit", 3980288, 4, 0, "", "nano"},
	{"xavier-nx", "p3668-0000", "p3509-0000", "", "t194", "NVIDIA Jetson Xavier NX Developer Kit", 6998016, 8, 2, "", "xavier-nx"},
	{"agx-xavier", "p2888-0004", "p2822-0000", "", "t194", "NVIDIA Jetson AGX Xavier Developer Kit", 32692224, 32, 2, "", "xavier-nx"},
	{"orin-nano", "p3767-0005", "p3768-0000", "-super", "t234", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7802880, 8, 0, "36.4.3", "orin-nano"},
	{"orin-nano-4gb", "p3767-0004", "p3768-0000", "", "t234", "NVIDIA Jetson Orin Nano Developer Kit", 3901440, 4, 0, "35.2.1", "orin-nano"},
	{"orin-nx", "p3767-0000", "p3768-0000", "", "t234", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15758336, 16, 2, "35.2.1", "orin-nx"},
	{"orin-nx-8gb", "p3767-0001", "p3768-0000", "", "t234", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 7802880, 8, 1, "35.2.1", "orin-nx"},
	{"agx-orin", "p3701-0005", "p3737-0000", "", "t234", "NVIDIA Jetson AGX Orin Developer Kit", 64349184, 64, 2, "35.2.1", "agx-orin"},
	{"agx-orin-32gb", "p3701-0004", "p3737-0000", "", "t234", "NVIDIA Jetson AGX Orin Developer Kit", 31434752, 32, 2, "", "agx-orin"},
	{"thor", "p3834-0008", "p4071-0000", "", "t264", "NVIDIA Jetson AGX Thor Developer Kit", 128791552, 128, 0, "", "thor"},
	{"thor-t4000", "p3834-0000", "p4071-0000", "", "t264", "NVIDIA Jetson AGX Thor Developer Kit", 64395776, 64, 0, "38.4.0", "thor"},
}

// chips maps SoCs to the device tree's name and the compute capability.
var chips = map[string]struct{ compatible, sm string }{
	"t210": {"nvidia,tegra210", "5.3"}, "t186": {"nvidia,tegra186", "6.2"}, "t194": {"nvidia,tegra194", "7.2"},
	"t234": {"nvidia,tegra234", "8.7"}, "t264": {"nvidia,tegra264", "11.0"},
}

// FindModule returns the module of a key.
func FindModule(key string) (Module, error) {
	i := slices.IndexFunc(Modules, func(m Module) bool { return m.Key == key })
	if i < 0 {
		var keys []string
		for _, m := range Modules {
			keys = append(keys, m.Key)
		}
		return Module{}, fmt.Errorf("%w module %q: want one of %s", ErrUnknown, key, strings.Join(keys, ", "))
	}
	return Modules[i], nil
}

// FindJetPack returns the JetPack of a name or of an L4T release. An empty name
// is the one that the board model of the module runs.
func FindJetPack(name string, m Module) (JetPack, error) {
	if name == "" {
		model, err := jetson.Lookup(m.Model)
		if err != nil {
			return JetPack{}, err
		}
		name = model.L4T
		if !strings.Contains(strings.Join(made(m), " "), name) {
			name = made(m)[0]
		}
	}
	i := slices.IndexFunc(JetPacks, func(j JetPack) bool { return j.Name == name || j.L4T == name })
	if i < 0 {
		var names []string
		for _, j := range JetPacks {
			names = append(names, j.Name)
		}
		return JetPack{}, fmt.Errorf("%w JetPack %q: want one of %s", ErrUnknown, name, strings.Join(names, ", "))
	}
	if !JetPacks[i].Runs(m) {
		return JetPack{}, fmt.Errorf("%w: %s on %s", ErrNoPair, JetPacks[i].Name, m.Key)
	}
	return JetPacks[i], nil
}

// made lists the L4T releases for a module.
func made(m Module) (out []string) {
	for _, j := range JetPacks {
		if j.Runs(m) {
			out = append(out, j.L4T)
		}
	}
	return out
}

// Runs reports whether a JetPack was made for a module.
func (j JetPack) Runs(m Module) bool {
	return slices.Contains(j.SoCs, m.SoC) && (m.Since == "" || j.major() > major(m.Since) || j.L4T >= m.Since)
}

func (j JetPack) major() string { return major(j.L4T) }

func major(l4t string) string {
	a, _, _ := strings.Cut(l4t, ".")
	return a
}

// HasJetPack reports whether there is a JetPack of a name or L4T release.
func HasJetPack(name string) bool {
	return slices.ContainsFunc(JetPacks, func(j JetPack) bool { return j.Name == name || j.L4T == name })
}
