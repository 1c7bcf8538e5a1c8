// Package rootfs makes a tree of the files by which software knows a Jetson:
// device tree, /etc, package database, libraries by name, thermal zones, power
// modes, UEFI variables. It owns what those files look like for each module and
// JetPack, from 4.6 to 7; what runs on the tree is somebody else's matter.
//
// Invariants: equal options give equal files, byte for byte; nothing outside of
// the tree is touched. Only sim and its commands import it.
package rootfs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/jetson"
)

// Board is what a tree shows.
type Board struct {
	Module  Module
	JetPack JetPack
	Serial  string
	BootID  string
	// Mode is the power mode in force, by name; empty is the model's default.
	Mode string
}

// Target is what an agent that looks at the tree has to find, without the power
// mode, which changes.
func (b Board) Target() ota.Target {
	cuda := strings.Split(b.JetPack.CUDA, ".")
	return ota.Target{OS: "linux", Arch: "arm64", Attrs: map[string]string{
		"sm": chips[b.Module.SoC].sm, "trt": b.JetPack.TensorRT, "cuda": cuda[0] + "." + cuda[1], "l4t": b.JetPack.L4T,
		"mem": strconv.Itoa(b.Module.MemGB), "dla": strconv.Itoa(b.Module.DLA),
	}}
}

// Release is the content of /etc/nv_tegra_release.
func (b Board) Release() string {
	head, rest, _ := strings.Cut(b.JetPack.L4T, ".")
	text := fmt.Sprintf("# R%s (release), REVISION: %s, GCID: 41062509, BOARD: %s, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n", head, rest, b.boardName())
	if head >= "36" {
		text += "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\nTARGET_USERSPACE_LIB_DIR_PATH=/usr/lib/aarch64-linux-gnu/nvidia\n"
	}
	return text
}

// boardName is the field that says nothing: t186ref stands on Xavier and Orin too.
func (b Board) boardName() string {
	switch {
	case b.JetPack.major() >= "36":
		return "generic"
	case b.Module.SoC == "t210":
		return "t210ref"
	}
	return "t186ref"
}

// Write makes the tree in dir, which may hold an older one: files that differ
// are replaced, others stay.
func Write(dir string, b Board) error {
	files, err := b.files()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the board's files: %w", err)
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			return fmt.Errorf("make the board's files: %w", err)
		}
	}
	return nil
}

func (b Board) files() (map[string]string, error) {
	model, err := jetson.Lookup(b.Module.Model)
	if err != nil {
		return nil, err
	}
	f := map[string]string{}
	b.identity(f)
	b.software(f)
	b.nodes(f, model)
	return f, b.power(f, model)
}

// identity is what the firmware and the kernel say.
func (b Board) identity(f map[string]string) {
	m, old := b.Module, b.JetPack.major() < "34"
	names := []string{"nvidia," + m.Carrier + "+" + m.Board + m.Suffix}
	if old {
		names = []string{"nvidia," + m.Carrier + "+" + m.Board, "nvidia,jetson-" + m.Key}
	} else if m.SoC == "t264" {
		names = append(names, "nvidia,"+m.Board)
	}
	names = append(names, chips[m.SoC].compatible)
	f["proc/device-tree/compatible"] = strings.Join(names, "\x00") + "\x00"
	f["proc/device-tree/model"] = m.Product + "\x00"
	f["proc/device-tree/serial-number"] = b.Serial + "\x00"
	if old {
		f["proc/device-tree/nvidia,boardids"] = strings.ReplaceAll(strings.TrimPrefix(m.Board, "p"), "-", ":") + ":A0\x00"
	}
	f["proc/sys/kernel/random/boot_id"] = b.BootID + "\n"
	f["proc/sys/kernel/osrelease"] = b.JetPack.Kernel + "\n"
	f["proc/version"] = "Linux version " + b.JetPack.Kernel + " (buildbrain@mobile-u64) #1 SMP PREEMPT\n"
	f["proc/meminfo"] = fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\nMemAvailable:   %8d kB\nSwapTotal:      %8d kB\nSwapFree:       %8d kB\n",
		m.MemKiB, m.MemKiB/2, m.MemKiB*6/10, m.MemKiB/2, m.MemKiB/2)
	f["proc/stat"] = "cpu  100 0 100 1000 0 0 0 0 0 0\n"
	f["proc/uptime"] = "42.00 40.00\n"
	f["proc/net/route"] = Route("eth0")
	f["proc/net/dev"] = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"  eth0: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n"
	spec := strings.Split(strings.TrimPrefix(m.Board, "p"), "-")
	if !old {
		f["etc/nv_boot_control.conf"] = fmt.Sprintf("TNSPEC %s-300-%s-N.2-1-1-jetson-%s-devkit-\nCOMPATIBLE_SPEC %s-300-%s--1--jetson-%s-devkit-\nTEGRA_CHIPID 0x%s\n",
			spec[0], spec[1], m.Key, spec[0], spec[1], m.Key, strings.TrimPrefix(m.SoC, "t"))
	}
}

// Route is /proc/net/route with the default route on one interface.
func Route(name string) string {
	return "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		name + "\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
}

// software is what the JetPack installed.
func (b Board) software(f map[string]string) {
	j := b.JetPack
	f["etc/nv_tegra_release"] = b.Release()
	f["var/lib/dpkg/status"] = "Package: adduser\nStatus: install ok installed\nVersion: 3.118\n\n" +
		"Package: nvidia-l4t-core\nStatus: install ok installed\nArchitecture: arm64\nVersion: " + j.L4T + "-20250616085344\n\n" +
		"Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.2.11\n"
	const lib = "usr/lib/aarch64-linux-gnu/"
	head, _, _ := strings.Cut(j.TensorRT, ".")
	f[lib+"libnvinfer.so."+j.TensorRT] = ""
	f[lib+"libnvinfer.so."+head] = ""
	f[lib+"libnvinfer_plugin.so."+j.TensorRT] = ""
	if j.major() < "34" {
		f["usr/local/cuda/version.txt"] = "CUDA Version " + j.CUDA + "\n"
	} else {
		f["usr/local/cuda/version.json"] = "{\n   \"cuda\" : {\n      \"name\" : \"CUDA SDK\",\n      \"version\" : \"" + j.CUDA + "\"\n   }\n}\n"
	}
}

// nodes are files of the kernel: heat, and the engines by their addresses.
func (b Board) nodes(f map[string]string, model *jetson.Model) {
	for n, z := range b.zones(model) {
		dir := fmt.Sprintf("sys/class/thermal/thermal_zone%d/", n)
		f[dir+"type"] = z + "\n"
		f[dir+"temp"] = "41500\n"
	}
	bus := "sys/devices/platform/13e10000.host1x/"
	switch {
	case b.Module.SoC == "t234" && b.JetPack.major() >= "36":
		bus = "sys/devices/platform/bus@0/13e00000.host1x/"
	case b.Module.SoC == "t234":
		bus = "sys/devices/platform/13e40000.host1x/"
	}
	for n := range b.Module.DLA {
		f[fmt.Sprintf("%s%s.nvdla%d/uevent", bus, []string{"15880000", "158c0000"}[n], n)] = "DRIVER=nvdla\n"
	}
	if b.JetPack.major() >= "35" && model.Jetson() {
		b.uefi(f)
	}
}

// zones are the names of thermal zones, which the releases spell differently.
func (b Board) zones(model *jetson.Model) (out []string) {
	for _, z := range model.Zones {
		name := z.Name
		switch {
		case b.Module.SoC == "t264" || name == "tj" && b.JetPack.major() < "36":
		case b.JetPack.major() >= "36":
			name = strings.ToLower(name) + "-thermal"
		case b.JetPack.major() >= "34":
			name = strings.ToUpper(name) + "-therm"
		default:
			name += "-therm"
		}
		out = append(out, name)
	}
	return out
}

// power is /etc/nvpmodel.conf and what the service wrote at the start.
func (b Board) power(f map[string]string, model *jetson.Model) error {
	name := b.Mode
	if name == "" {
		name = model.DefaultMode
	}
	mode, err := model.Mode(name)
	if err != nil {
		return err
	}
	var s strings.Builder
	s.WriteString("< PARAM TYPE=FILE NAME=GPU >\nMAX_FREQ /sys/class/devfreq/17000000.gpu/max_freq\n\n")
	def := 0
	for _, m := range model.Modes {
		fmt.Fprintf(&s, "< POWER_MODEL ID=%d NAME=%s >\nCPU_A78_0 MAX_FREQ %.0f\nGPU MAX_FREQ %.0f\nEMC MAX_FREQ %.0f\n\n", m.ID, m.Name, m.CPU*1e3, m.GPU*1e6, m.EMC*1e6)
		if m.Name == model.DefaultMode {
			def = m.ID
		}
	}
	fmt.Fprintf(&s, "< PM_CONFIG DEFAULT=%d >\n", def)
	f["etc/nvpmodel.conf"] = s.String()
	f["var/lib/nvpmodel/status"] = fmt.Sprintf("pmode:%04d", mode.ID)
	return nil
}

// Matches reports whether a target that was found is this board's. Attributes
// that only the finder knows (module and mode by name) do not count, nor does
// the architecture of the program that looked.
func (b Board) Matches(found string) bool {
	t, err := ota.ParseTarget(found)
	if err != nil {
		return false
	}
	for k, v := range b.Target().Attrs {
		if t.Attrs[k] != v {
			return false
		}
	}
	return true
}
