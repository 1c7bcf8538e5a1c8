// Package target finds out what engines are bound to on this machine: board,
// chip, releases of L4T, CUDA, TensorRT and ONNX Runtime, power mode, and the
// same libraries inside of the image that serves a model, whose versions win
// over the host's.
//
// Invariants: it reads below a root that tests replace and never opens a CUDA
// context; its tables are data files beside it, and a board or release that is
// in none of them still gets a target; what cannot be found is left out. The
// packages of the agent import it.
package target

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// Run runs a command of the host and returns what it prints.
type Run func(ctx context.Context, name string, args ...string) ([]byte, error)

// Options say where to look.
type Options struct {
	Root string // of the file system; empty is /
	Arch string // the architecture, as Go names it
	Run  Run    // nil runs nothing: power mode and discrete GPU then come from files alone
}

// Info is what was found.
type Info struct {
	Target ota.Target
	// Model is the device tree's, Board the module's id (p3767-0005) and Product
	// its name, where they are known.
	Model, Board, Product, Serial string
	JetPack                       string
	Ships                         Software // what that JetPack ships, installed or not
	Host                          Software // what is installed here
	Jetson                        bool
}

// prober reads one root.
type prober struct {
	o   Options
	tab *tables
}

// Probe looks at the machine.
func Probe(ctx context.Context, o Options) (Info, error) {
	o.Root = cmp.Or(o.Root, "/")
	tab, err := readTables()
	if err != nil {
		return Info{}, err
	}
	p := &prober{o: o, tab: tab}
	i := Info{Model: p.text("proc/device-tree/model"), Serial: p.text("proc/device-tree/serial-number"), Host: ReadSoftware(o.Root)}
	i.Target = ota.Target{OS: "linux", Arch: o.Arch, Attrs: map[string]string{}}
	if i.Model == "" {
		i.Model = p.text("sys/firmware/devicetree/base/model")
	}
	chip, l4t := p.chip(), p.l4t()
	if i.Jetson = chip.compatible != "" || l4t != ""; i.Jetson {
		p.jetson(ctx, &i, chip, l4t)
	} else {
		p.plain(ctx, &i)
	}
	// Reading back catches what a file put into an attribute.
	if i.Target, err = ota.ParseTarget(i.Target.String()); err != nil {
		return Info{}, fmt.Errorf("probe target: %w", err)
	}
	return i, nil
}

func (p *prober) jetson(ctx context.Context, i *Info, chip chipRow, l4t string) {
	set := func(key, value string) {
		if value = attr(value); value != "" {
			i.Target.Attrs[key] = value
		}
	}
	b := p.board(chip.chip)
	i.Board, i.Product = b.id, b.product
	set("sm", chip.sm)
	if chip.sm == "" { // newer than the table: the driver knows
		_, sm := p.discrete(ctx)
		set("sm", sm)
	}
	set("l4t", l4t)
	set("trt", i.Host.TensorRT)
	set("cuda", i.Host.CUDA)
	set("module", cmp.Or(b.name, b.id, strings.ToLower(i.Model)))
	set("mode", p.Mode(ctx))
	if kib := p.memoryKiB(); kib > 0 {
		set("mem", strconv.FormatUint(moduleGiB(kib), 10))
	} else if b.ramGiB > 0 {
		set("mem", strconv.Itoa(b.ramGiB))
	}
	if b.known {
		set("dla", strconv.Itoa(b.dla))
	} else if chip.chip == "t194" || chip.chip == "t234" || chip.sm == "" {
		set("dla", strconv.Itoa(p.dlaNodes()))
	}
	if r, ok := p.tab.release(l4t); ok {
		i.JetPack, i.Ships = r.jetpack, Software{CUDA: r.cuda, TensorRT: r.tensorrt}
	}
}

// plain is a host that is no Jetson: it serves ONNX, and engines where it has a
// discrete GPU with TensorRT.
func (p *prober) plain(ctx context.Context, i *Info) {
	i.Target.Attrs["ort"] = cmp.Or(i.Host.ONNXRuntime, "1")
	if i.Model == "" {
		i.Model = strings.TrimSpace(p.text("sys/class/dmi/id/sys_vendor") + " " + p.text("sys/class/dmi/id/product_name"))
	}
	if i.Serial == "" {
		i.Serial = p.text("sys/class/dmi/id/product_serial")
	}
	name, sm := p.discrete(ctx)
	if sm == "" {
		return
	}
	for k, v := range map[string]string{"sm": sm, "trt": i.Host.TensorRT, "cuda": i.Host.CUDA, "module": strings.ToLower(name)} {
		if v = attr(v); v != "" {
			i.Target.Attrs[k] = v
		}
	}
}

var computeRE = regexp.MustCompile(`^(.+), (\d+\.\d+)$`)

// discrete asks the driver for the first GPU.
func (p *prober) discrete(ctx context.Context) (name, sm string) {
	if p.o.Run == nil {
		return "", ""
	}
	out, err := p.o.Run(ctx, "nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
	if err != nil {
		return "", ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if g := computeRE.FindStringSubmatch(strings.TrimSpace(line)); g != nil {
		return g[1], g[2]
	}
	return "", ""
}

var notAttrRE = regexp.MustCompile(`[^A-Za-z0-9._+-]+`)

// attr makes what a file says fit into an attribute.
func attr(s string) string { return strings.Trim(notAttrRE.ReplaceAllString(s, "-"), "-") }

func (p *prober) path(name string) string { return filepath.Join(p.o.Root, name) }

// text reads a small file without surrounding blanks and NULs, "" when absent.
func (p *prober) text(name string) string { return readText(p.o.Root, name) }

const maxText = 8 << 20 // /var/lib/dpkg/status is the largest

func readText(root, name string) string {
	f, err := os.Open(filepath.Join(root, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxText))
	if err != nil {
		return ""
	}
	return strings.Trim(string(raw), "\x00 \n\t")
}

// chip looks at the device tree; the SM is empty for a chip not known here.
func (p *prober) chip() chipRow {
	var unknown chipRow
	for _, c := range p.compatible() {
		if row, ok := p.tab.chips[c]; ok {
			return row
		}
		if strings.HasPrefix(c, "nvidia,tegra") {
			unknown = chipRow{compatible: c}
		}
	}
	return unknown
}

func (p *prober) compatible() []string {
	text := cmp.Or(p.text("proc/device-tree/compatible"), p.text("sys/firmware/devicetree/base/compatible"))
	return strings.FieldsFunc(text, func(r rune) bool { return r == 0 })
}

var (
	l4tRE  = regexp.MustCompile(`^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)?),`)
	coreRE = regexp.MustCompile(`^(\d+(?:\.\d+){1,2})-\d+$`)
)

// l4t returns the release of the board support package, as in 36.4.4: from its
// own file, or from the version of its package where images leave that out.
func (p *prober) l4t() string {
	first, _, _ := strings.Cut(p.text("etc/nv_tegra_release"), "\n")
	if g := l4tRE.FindStringSubmatch(first); g != nil {
		return g[1] + "." + g[2]
	}
	if g := coreRE.FindStringSubmatch(packageVersion(p.text("var/lib/dpkg/status"), "nvidia-l4t-core")); g != nil {
		return g[1]
	}
	return ""
}

func (p *prober) memoryKiB() uint64 {
	for line := range strings.Lines(p.text("proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib
		}
	}
	return 0
}

// moduleGiB rounds up what the kernel has to a size that modules are sold in:
// carve-outs take up to an eighth.
func moduleGiB(kib uint64) uint64 {
	gib := float64(kib) / (1 << 20)
	for _, size := range []uint64{2, 4, 8, 16, 32, 64, 128} {
		if gib <= float64(size) {
			return size
		}
	}
	return uint64(gib + 0.5)
}

func (p *prober) dlaNodes() int {
	n := 0
	for _, core := range []string{"0", "1"} {
		for _, depth := range []string{"*/", "*/*/"} {
			if found, _ := filepath.Glob(p.path("sys/devices/platform/" + depth + "*.nvdla" + core)); len(found) > 0 {
				n++
				break
			}
		}
	}
	return n
}
