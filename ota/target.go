package ota

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// ErrBadTarget is returned for text that is not a target.
var ErrBadTarget = errors.New("not a target")

// Target is what an engine is bound to: an operating system, an architecture
// and attributes probed on the device and inside the serving container. Its
// canonical text is "os/arch;key=value;…", with the known keys first in the
// order sm, trt, cuda, l4t, ort, mem, dla, module, mode and any others after
// them by name, for example
//
//	linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=8;dla=0
//	linux/amd64;ort=1
type Target struct {
	OS    string
	Arch  string
	Attrs map[string]string
}

var (
	targetKeys = []string{"sm", "trt", "cuda", "l4t", "ort", "mem", "dla", "module", "mode"}
	platformRE = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+$`)
	attrRE     = regexp.MustCompile(`^[a-z][a-z0-9_]*=[A-Za-z0-9._+-]+$`)
)

// loadable lists the attributes that must be equal for an engine to load;
// an attribute absent from the engine's target does not bind.
var loadable = []string{"sm", "trt", "ort"}

// ParseTarget reads the text form; attributes may stand in any order.
func ParseTarget(s string) (Target, error) {
	platform, rest, hasAttrs := strings.Cut(s, ";")
	if !platformRE.MatchString(platform) {
		return Target{}, fmt.Errorf("%w: %q: want os/arch first, as in linux/arm64;sm=8.7", ErrBadTarget, s)
	}
	os, arch, _ := strings.Cut(platform, "/")
	t := Target{OS: os, Arch: arch, Attrs: map[string]string{}}
	if !hasAttrs {
		return t, nil
	}
	for part := range strings.SplitSeq(rest, ";") {
		if !attrRE.MatchString(part) {
			return Target{}, fmt.Errorf("%w: %q: attribute %q: want key=value", ErrBadTarget, s, part)
		}
		k, v, _ := strings.Cut(part, "=")
		if _, dup := t.Attrs[k]; dup {
			return Target{}, fmt.Errorf("%w: %q: attribute %q given twice", ErrBadTarget, s, k)
		}
		t.Attrs[k] = v
	}
	return t, nil
}

// String returns the canonical text.
func (t Target) String() string {
	var b strings.Builder
	b.WriteString(t.OS + "/" + t.Arch)
	write := func(k string) { fmt.Fprintf(&b, ";%s=%s", k, t.Attrs[k]) }
	for _, k := range targetKeys {
		if _, ok := t.Attrs[k]; ok {
			write(k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(t.Attrs)) {
		if !slices.Contains(targetKeys, k) {
			write(k)
		}
	}
	return b.String()
}

// Digest returns the sha256 of the canonical text.
func (t Target) Digest() Digest { return DigestOf([]byte(t.String())) }

// Loads reports whether an artifact made for target t can be loaded on device
// target dev: same platform, the same SM, the same TensorRT to the patch level
// and the ONNX Runtime that t names, as far as it names it. The reason is empty
// when it loads.
func (t Target) Loads(dev Target) (reason string, ok bool) {
	if t.OS != dev.OS || t.Arch != dev.Arch {
		return fmt.Sprintf("made for %s/%s, device is %s/%s", t.OS, t.Arch, dev.OS, dev.Arch), false
	}
	for _, k := range loadable {
		want, bound := t.Attrs[k]
		if !bound || sameVersion(k, want, dev.Attrs[k]) {
			continue
		}
		return fmt.Sprintf("made for %s=%s, device has %s", k, want, cmp.Or(dev.Attrs[k], "none")), false
	}
	return "", true
}

// sameVersion compares one attribute that binds.
func sameVersion(key, want, have string) bool {
	switch key {
	case "trt": // the fourth part numbers builds of one patch level
		return want == have || patchLevel(want) != "" && patchLevel(want) == patchLevel(have)
	case "ort": // ONNX is not bound to one version: 1 is any 1.x
		return want == have || strings.HasPrefix(have, want+".")
	}
	return want == have
}

// patchLevel returns the first three parts of a version, "" when it has fewer.
func patchLevel(v string) string {
	parts := strings.SplitN(v, ".", 4)
	if len(parts) < 3 {
		return ""
	}
	return strings.Join(parts[:3], ".")
}

// Fit says how well an artifact suits a device.
type Fit uint8

// The classes of fit.
const (
	FitNone     Fit = 0 // it does not load
	FitLoadable Fit = 1 // it loads; an engine may be slower than one of the device's own
	FitOptimal  Fit = 2 // it was also tuned for this module in this power mode
)

// String returns the class's name.
func (f Fit) String() string {
	switch f {
	case FitNone:
		return "none"
	case FitLoadable:
		return "loadable"
	case FitOptimal:
		return "optimal"
	}
	return fmt.Sprintf("fit %d", uint8(f))
}

// tuned lists the attributes for which a builder's tactics are timed.
var tuned = []string{"module", "mode"}

// Fits classifies an artifact made for target t on device target dev. The
// reason says what keeps it out of the next class; it is empty for an optimal
// one. What binds neither TensorRT nor ONNX Runtime is loadable.
func (t Target) Fits(dev Target) (class Fit, reason string) {
	if reason, ok := t.Loads(dev); !ok {
		return FitNone, reason
	}
	_, trt := t.Attrs["trt"]
	_, ort := t.Attrs["ort"]
	switch {
	case !trt && !ort:
		return FitLoadable, "it is bound to no version of TensorRT or ONNX Runtime"
	case !trt: // ONNX Runtime tunes itself where it runs
		return FitOptimal, ""
	}
	for _, k := range tuned {
		if want, have := t.Attrs[k], dev.Attrs[k]; want != have {
			return FitLoadable, fmt.Sprintf("tuned for %s=%s, device has %s", k, cmp.Or(want, "any"), cmp.Or(have, "none"))
		}
	}
	return FitOptimal, ""
}
