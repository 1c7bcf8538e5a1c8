package doctor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/agent/internal/target"
)

func (h *host) disk(context.Context) {
	dir := h.StateDir
	if dir == "" {
		return
	}
	dir = parent(dir)
	free, total, readOnly, err := space(dir)
	switch {
	case err != nil:
		h.say("disk", Warning, "free space cannot be read: "+err.Error(), "is the disk mounted?")
	case readOnly:
		h.say("disk", Error, dir+" is mounted read-only", "mount it writable, or give another --state; look for errors of the disk in dmesg")
	case free < 256<<20:
		h.say("disk", Error, fmt.Sprintf("%d MiB of %d MiB are free at %s", free>>20, total>>20, dir), "make room: two releases and what a container unpacks must fit")
	case free < 4<<30:
		h.say("disk", Warning, fmt.Sprintf("%d MiB of %d MiB are free at %s", free>>20, total>>20, dir), "enough for models; container images of the vendor need 5 GiB and more")
	default:
		h.ok("disk", fmt.Sprintf("%d GiB of %d GiB are free at %s", free>>30, total>>30, dir))
	}
	for _, path := range h.glob("sys/block/mmcblk*/device/life_time") {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(raw)) {
			if n, err := strconv.ParseUint(strings.TrimPrefix(f, "0x"), 16, 8); err == nil && n >= 9 {
				h.say("disk-life", Warning, fmt.Sprintf("the eMMC says that %d %% of its life are used", n*10), "plan to replace the module, or move --state to an SSD")
				break
			}
		}
	}
}

func (h *host) containers(ctx context.Context) {
	if h.Containerd == "" {
		return
	}
	if !h.exists(h.Containerd) {
		h.say("containerd", Note, h.Containerd+" does not exist", "for releases with container images install containerd 1.6 or newer; model servers as processes need none")
		return
	}
	c, err := h.Dial(ctx, "unix", h.path(h.Containerd))
	if err != nil {
		h.say("containerd", Warning, "containerd does not answer: "+err.Error(), "systemctl start containerd, and run doctor as root")
		return
	}
	c.Close()
	if h.Containers == nil {
		h.ok("containerd", "it answers")
		return
	}
	h.out = append(h.out, h.Containers(ctx)...)
}

func (h *host) gpu(context.Context) {
	if !h.jetson() && len(h.glob("dev/nvidia[0-9]*")) == 0 {
		return
	}
	cdi := append(h.glob("etc/cdi/nvidia*.yaml"), h.glob("var/run/cdi/nvidia*.yaml")...)
	cdi = append(cdi, h.glob("etc/cdi/nvidia*.json")...)
	hook := h.exists("usr/bin/nvidia-container-runtime")
	switch {
	case len(cdi) > 0:
		h.ok("gpu", "containers get the GPU by CDI ("+cdi[0]+")")
	case hook:
		h.say("gpu", Note, "there is no CDI specification; the NVIDIA runtime is used instead", "better: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, again after each update of L4T")
	default:
		h.say("gpu", Warning, "containers cannot get the GPU: neither a CDI specification nor the NVIDIA runtime is installed",
			"install nvidia-container-toolkit, then: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
	}
	if h.jetson() && hook && len(cdi) == 0 && len(h.glob("etc/nvidia-container-runtime/host-files-for-container.d/*.csv")) == 0 {
		h.say("gpu-files", Warning, "the lists of the vendor's libraries are missing: containers start without them", "reinstall nvidia-l4t-core and nvidia-container-csv-*, or nvidia-container-toolkit")
	}
}

// kernel is what containers need of it.
func (h *host) kernel(context.Context) {
	switch v2, v1 := h.text("sys/fs/cgroup/cgroup.controllers"), h.text("proc/cgroups"); {
	case strings.Contains(" "+v2+" ", " memory "):
		h.ok("cgroup-memory", "cgroup v2 limits memory")
	case cgroupV1(v1, "memory"):
		h.ok("cgroup-memory", "cgroup v1 limits memory")
	case v1 != "" || v2 != "":
		h.say("cgroup-memory", Warning, "the memory controller of cgroups is off: limits of memory do not hold", "add cgroup_enable=memory to the kernel's command line (extlinux.conf)")
	}
	if n, err := strconv.Atoi(h.text("proc/sys/user/max_user_namespaces")); err == nil && n > 0 {
		h.ok("user-namespaces", "the kernel has them")
	} else {
		h.say("user-namespaces", Note, "the kernel has no user namespaces, or they are off", "containers run without them; sysctl user.max_user_namespaces=10000 where the kernel was built with them")
	}
	release := h.text("proc/sys/kernel/osrelease")
	if release == "" {
		return
	}
	var lacking []string
	for _, m := range []string{"iptable_raw", "xt_addrtype", "br_netfilter"} {
		if !h.module(release, m) {
			lacking = append(lacking, m)
		}
	}
	if len(lacking) > 0 {
		h.say("iptables", Note, "the kernel lacks "+strings.Join(lacking, ", ")+": bridges with port mappings do not work",
			"none is needed: containers use the host's network and serve on loopback. Docker with -p needs them")
	} else {
		h.ok("iptables", "the modules for bridges are there")
	}
}

// cgroupV1 reports whether a controller of /proc/cgroups is on.
func cgroupV1(text, name string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == name {
			return f[3] == "1"
		}
	}
	return false
}

// module reports whether the kernel has a module, loaded, built in or on the disk.
func (h *host) module(release, name string) bool {
	if h.exists("sys/module/" + name) {
		return true
	}
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		if strings.Contains(h.text("lib/modules/"+release+"/"+list), "/"+name+".ko") {
			return true
		}
	}
	return false
}

func (h *host) memory(context.Context) {
	mem, swap := h.meminfo("MemTotal"), h.meminfo("SwapTotal")
	if mem == 0 {
		return
	}
	zram := len(h.glob("sys/block/zram*")) > 0
	text := fmt.Sprintf("%d MiB of memory, %d MiB of swap", mem>>10, swap>>10)
	if zram && swap > 0 {
		text += " (zram among it)"
	}
	switch {
	case swap == 0 && mem < 9<<20:
		h.say("memory", Note, text, "engines that are built on the device may need more: add a swap file, or nvzramconfig")
	default:
		h.ok("memory", text)
	}
}

// meminfo returns a line of /proc/meminfo in KiB.
func (h *host) meminfo(name string) int64 {
	for line := range strings.Lines(h.text("proc/meminfo")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// tools are the vendor's programs.
func (h *host) tools(ctx context.Context) {
	if !h.jetson() {
		return
	}
	look := func(name, fix string) bool {
		if h.LookPath == nil {
			return false
		}
		if _, err := h.LookPath(name); err != nil {
			h.say(name, Warning, name+" is not installed or not in PATH", fix)
			return false
		}
		return true
	}
	if look("tegrastats", "install nvidia-l4t-tools: without it heat, power and GPU load are not measured") {
		if h.IsRoot {
			h.ok("tegrastats", "it is installed")
		} else {
			h.say("tegrastats", Note, "it is installed; without root it leaves out clocks and some rails", "run the agent as root")
		}
	}
	if !h.exists("etc/nvpmodel.conf") {
		h.say("nvpmodel", Warning, "/etc/nvpmodel.conf is missing: power modes are not known", "systemctl restart nvpmodel, or reinstall nvidia-l4t-nvpmodel")
		return
	}
	if !look("nvpmodel", "install nvidia-l4t-nvpmodel: power modes cannot be set without it") || h.Run == nil {
		return
	}
	out, err := h.Run(ctx, "nvpmodel", "-q")
	if name := target.ParseModeQuery(string(out)); err == nil && name != "" {
		h.ok("nvpmodel", "power mode "+name)
	} else {
		h.say("nvpmodel", Warning, "nvpmodel -q names no power mode", "run it as root; systemctl status nvpmodel says more")
	}
}
