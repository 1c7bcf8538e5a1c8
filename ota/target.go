package ota

import (
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
// target dev: same platform, and the same SM, TensorRT and ONNX Runtime where
// t names them. The reason is empty when it loads.
func (t Target) Loads(dev Target) (reason string, ok bool) {
	if t.OS != dev.OS || t.Arch != dev.Arch {
		return fmt.Sprintf("made for %s/%s, device is %s/%s", t.OS, t.Arch, dev.OS, dev.Arch), false
	}
	for _, k := range loadable {
		if want, bound := t.Attrs[k]; bound && dev.Attrs[k] != want {
			have := dev.Attrs[k]
			if have == "" {
				have = "none"
			}
			return fmt.Sprintf("made for %s=%s, device has %s", k, want, have), false
		}
	}
	return "", true
}
