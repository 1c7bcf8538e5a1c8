package engine

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// What TargetFor returns, wrapped.
var (
	// ErrNoEngine says that the target serves ONNX files and has no engines.
	ErrNoEngine = errors.New("target needs no engine")
	// ErrUnsupported says that the recipe asks for what the target does not have.
	ErrUnsupported = errors.New("recipe does not suit the target")
)

// VersionDigest names an immutable model version: its ONNX file and the golden
// set that proves it.
func VersionDigest(onnx, golden ota.Digest) ota.Digest {
	return ota.DigestOf([]byte("skein model version\n" + string(onnx) + "\n" + string(golden) + "\n"))
}

// Key is the name under which an engine is kept: sha256 over the digests of the
// model version and of the recipe and the canonical text of the target. Two
// builds with one key are interchangeable, so there is never a second one.
func Key(version, recipe ota.Digest, target ota.Target) ota.Digest {
	h := sha256.New()
	for _, part := range []string{"skein engine", string(version), string(recipe), target.String()} {
		fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
}

// TargetFor reduces what a device is to what an engine of the recipe is bound
// to: platform, SM and TensorRT to the patch level, DLA where one is used,
// module and power mode where the recipe is to be optimal. ErrNoEngine is for
// devices without TensorRT, ErrUnsupported for recipes that they cannot do.
func (r Recipe) TargetFor(dev ota.Target) (ota.Target, error) {
	trt, sm := dev.Attrs["trt"], dev.Attrs["sm"]
	if trt == "" {
		return ota.Target{}, fmt.Errorf("%w: %s has no TensorRT and takes the ONNX file", ErrNoEngine, dev)
	}
	patch := Patch(trt)
	if sm == "" || patch == "" {
		return ota.Target{}, fmt.Errorf("%w: %s: want an SM and TensorRT with its patch level, as in sm=8.7;trt=10.3.0", ErrUnsupported, dev)
	}
	t := ota.Target{OS: dev.OS, Arch: dev.Arch, Attrs: map[string]string{"sm": sm, "trt": patch}}
	if r.DLA != nil {
		n, err := strconv.Atoi(dev.Attrs["dla"])
		if err != nil || n <= r.DLA.Core {
			return ota.Target{}, fmt.Errorf("%w: %s has no DLA core %d", ErrUnsupported, dev, r.DLA.Core)
		}
		t.Attrs["dla"] = dev.Attrs["dla"]
	}
	if r.Fit == BindOptimal {
		for _, k := range []string{"module", "mode"} {
			v := dev.Attrs[k]
			if v == "" {
				return ota.Target{}, fmt.Errorf("%w: %s does not say its %s, and the recipe asks for an optimal fit", ErrUnsupported, dev, k)
			}
			t.Attrs[k] = v
		}
	}
	if _, err := r.Args(patch); err != nil {
		return ota.Target{}, err
	}
	return t, nil
}

// Builds says whether a device may build the recipe for target: its own engine
// target must be exactly that one. The reason is empty when it may.
func (r Recipe) Builds(target, dev ota.Target) (reason string, ok bool) {
	own, err := r.TargetFor(dev)
	switch {
	case err != nil:
		return err.Error(), false
	case own.String() != target.String():
		return fmt.Sprintf("it would build for %s", own), false
	}
	return "", true
}

// Patch returns the first three parts of a TensorRT version, "" when there are
// fewer or one is no number.
func Patch(trt string) string {
	parts := strings.SplitN(trt, ".", 4)
	if len(parts) < 3 {
		return ""
	}
	for _, p := range parts[:3] {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return ""
		}
	}
	return strings.Join(parts[:3], ".")
}
