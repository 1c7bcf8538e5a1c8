package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// policyOf is the target, in top-level targets alone, whose custom part holds
// the AutoPolicy of a model.
func policyOf(model string) string { return policyPrefix + model + ".json" }

// AutoPolicy is what a person signed for the closed loop of a model: the most
// that a release listed by its auto role may be. Whoever holds the key of that
// role, and the director's with it, can ship other weights within these bounds
// and nothing else. What a policy does not name is not allowed.
type AutoPolicy struct {
	Model string `json:"model"`
	// Paths are patterns as in TUF delegations, such as releases/meter/auto-*.
	Paths []string `json:"paths"`
	// Layers says what a release may be made of, besides its golden set.
	Layers []LayerRule `json:"layers"`
	// MaxBytes bounds all layers of one target together.
	MaxBytes int64 `json:"maxBytes"`
	// Golden are the golden sets one of which proves the release on the device.
	Golden []ota.Digest `json:"golden"`
	// Configs are the configurations allowed; empty: any of at most 64 KiB, for
	// the device does not act on it.
	Configs []ota.Digest `json:"configs,omitempty"`
	// Parameters are digests of declarations as they stand in the annotation
	// dev.skein.parameters; without one a release declares none.
	Parameters []ota.Digest `json:"parameters,omitempty"`
	// Recipes are what a release may say that it was made by, in the annotation
	// dev.skein.recipe; without one it says nothing.
	Recipes []ota.Digest `json:"recipes,omitempty"`
	// Annotations are values of further dev.skein annotations.
	Annotations map[string][]string `json:"annotations,omitempty"`
	// MinSoak in seconds is the least time on trial.
	MinSoak int64 `json:"minSoak,omitzero"`
	// MaxCounter bounds the release counter, so that a thief cannot use it up;
	// zero: no bound.
	MaxCounter uint64 `json:"maxCounter,omitzero"`
}

// LayerRule allows layers of one media type: either these digests, which may be
// anything, or files of these formats, which are weights and engines alone.
type LayerRule struct {
	MediaType string       `json:"mediaType"`
	Formats   []string     `json:"formats,omitempty"` // endings of the file name, such as onnx
	Digests   []ota.Digest `json:"digests,omitempty"`
	MaxBytes  int64        `json:"maxBytes,omitzero"` // of one layer; for formats it must be set
}

const (
	maxPolicy       = 64 << 10 // as JSON
	maxPolicyConfig = 64 << 10 // of a config that is not pinned
	annOwn          = "dev.skein."
)

var modelName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}$`)

// formats that may be released with no hand.
var autoFormats = []string{"onnx", "plan", "safetensors"}

// UnmarshalJSON refuses fields it does not know: they may be bounds.
func (p *AutoPolicy) UnmarshalJSON(b []byte) error {
	if len(b) > maxPolicy {
		return fmt.Errorf("policy of %d bytes, limit %d", len(b), maxPolicy)
	}
	type plain AutoPolicy
	var got plain
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	*p = AutoPolicy(got)
	return nil
}

// Validate checks a policy before somebody signs it, and before a device
// believes it.
func (p *AutoPolicy) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("policy of %q: %w", p.Model, fmt.Errorf(format, args...))
	}
	switch {
	case !modelName.MatchString(p.Model):
		return bad("model: want small letters, digits and . _ -, at most 128")
	case len(p.Paths) == 0:
		return bad("paths: none, so nothing can be released; want for example releases/%s/auto-*", p.Model)
	case len(p.Layers) == 0:
		return bad("layers: none; want at least a rule for weights")
	case p.MaxBytes <= 0:
		return bad("maxBytes %d: want the bytes that a release may have", p.MaxBytes)
	case len(p.Golden) == 0:
		return bad("golden: none; want the digest of the golden set that proves a release")
	case p.MinSoak < 0:
		return bad("minSoak %d: want seconds", p.MinSoak)
	}
	for _, pattern := range p.Paths {
		dir, _ := path.Split(pattern)
		if _, err := path.Match(pattern, ""); err != nil || !strings.HasPrefix(dir, "releases/") || len(dir) <= len("releases/") || strings.ContainsAny(dir, `*?[\\`) {
			return bad("path %q: want a pattern below releases/ with the release's name, such as releases/meter/auto-*", pattern)
		}
	}
	for i, l := range p.Layers {
		if err := l.validate(); err != nil {
			return bad("layers[%d]: %w", i, err)
		}
	}
	for _, d := range slices.Concat(p.Golden, p.Configs, p.Parameters, p.Recipes) {
		if _, err := ota.ParseDigest(string(d)); err != nil {
			return bad("%w", err)
		}
	}
	return nil
}

func (l LayerRule) validate() error {
	for _, d := range l.Digests {
		if _, err := ota.ParseDigest(string(d)); err != nil {
			return err
		}
	}
	switch {
	case l.MediaType == "":
		return fmt.Errorf("no mediaType")
	case len(l.Digests) > 0 && len(l.Formats) > 0:
		return fmt.Errorf("give digests or formats, not both")
	case len(l.Digests) > 0:
		return nil
	case l.MediaType != manifest.MediaWeights:
		return fmt.Errorf("%s: only %s may be of any content, pin others by their digests", l.MediaType, manifest.MediaWeights)
	case len(l.Formats) == 0 || l.MaxBytes <= 0:
		return fmt.Errorf("want formats and maxBytes, or digests")
	}
	for _, f := range l.Formats {
		if !slices.Contains(autoFormats, f) {
			return fmt.Errorf("format %q: want one of %s", f, strings.Join(autoFormats, ", "))
		}
	}
	return nil
}

// Check says whether a release that an auto role lists under target is one that
// the policy allows: its index, and the manifest of one of its targets. The
// error is an *Attack.
func (p *AutoPolicy) Check(target string, ix *manifest.Index, m *manifest.Manifest) error {
	if err := p.check(target, ix, m); err != nil {
		return &Attack{ClassUnauthorised, fmt.Errorf("%s: the policy signed for %s does not allow it: %w", target, p.Model, err)}
	}
	return nil
}

func (p *AutoPolicy) check(target string, ix *manifest.Index, m *manifest.Manifest) error {
	if err := p.Validate(); err != nil {
		return err
	}
	r, err := ix.Release()
	if err != nil {
		return err
	}
	switch {
	case !p.lists(target):
		return fmt.Errorf("its path is none of %s", strings.Join(p.Paths, ", "))
	case r.Model != p.Model:
		return fmt.Errorf("it is of model %q", r.Model)
	case p.MaxCounter > 0 && r.Counter > p.MaxCounter:
		return fmt.Errorf("counter %d, limit %d", r.Counter, p.MaxCounter)
	case int64(r.Soak/time.Second) < p.MinSoak:
		return fmt.Errorf("soak of %s, at least %s", r.Soak, time.Duration(p.MinSoak)*time.Second)
	case ix.ArtifactType != "" && ix.ArtifactType != manifest.MediaArtifact:
		return fmt.Errorf("artifact type %q", ix.ArtifactType)
	}
	if err := p.checkAnnotations(ix.Annotations); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := p.checkAnnotations(m.Annotations); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if err := p.checkConfig(m.Config); err != nil {
		return err
	}
	return p.checkLayers(m)
}

func (p *AutoPolicy) lists(target string) bool {
	return slices.ContainsFunc(p.Paths, func(pattern string) bool { return matches(pattern, target) })
}

// What a device may read anywhere in a release without a policy's word.
var knownAnnotations = []string{manifest.AnnName, manifest.AnnVersion, manifest.AnnCounter, manifest.AnnModel, manifest.AnnModelVersion,
	manifest.AnnSoak, manifest.AnnTarget, manifest.AnnChunks, manifest.AnnPatches, manifest.AnnEngine, manifest.AnnStripped}

func (p *AutoPolicy) checkAnnotations(as map[string]string) error {
	for key, value := range as {
		switch {
		case !strings.HasPrefix(key, annOwn) || slices.Contains(knownAnnotations, key):
		case key == manifest.AnnParameters:
			if !slices.Contains(p.Parameters, ota.DigestOf([]byte(value))) {
				return fmt.Errorf("parameters: declaration %s is none of those allowed", ota.DigestOf([]byte(value)).Short())
			}
		case key == manifest.AnnImage:
			// The layer itself stands for its digest below; what it is a part of is
			// an image that a person signed.
			if !p.pins(ota.Digest(value)) {
				return fmt.Errorf("image %.80q is none of those allowed", value)
			}
		case key == manifest.AnnRecipe:
			if !slices.Contains(p.Recipes, ota.Digest(value)) {
				return fmt.Errorf("recipe %.80q is none of those allowed", value)
			}
		case !slices.Contains(p.Annotations[key], value):
			return fmt.Errorf("annotation %s: value %.80q is none of those allowed", key, value)
		}
	}
	return nil
}

func (p *AutoPolicy) checkConfig(c manifest.Descriptor) error {
	switch {
	case slices.Contains(p.Configs, c.Digest):
		return nil
	case len(p.Configs) > 0:
		return fmt.Errorf("config %s is none of those allowed", c.Digest.Short())
	case c.MediaType != manifest.MediaConfig || c.Size > maxPolicyConfig:
		return fmt.Errorf("config of type %q and %d bytes, want %s of at most %d", c.MediaType, c.Size, manifest.MediaConfig, maxPolicyConfig)
	}
	return p.checkAnnotations(c.Annotations)
}

func (p *AutoPolicy) checkLayers(m *manifest.Manifest) error {
	if p.serves() {
		// Without it the release would run in whatever the device is set up with.
		if _, ok, err := m.Workload(); err != nil || !ok {
			return fmt.Errorf("it has no workload, and the policy names which it runs in")
		}
	}
	golden, total := 0, int64(0)
	for _, l := range m.Layers {
		if err := p.checkAnnotations(l.Annotations); err != nil {
			return fmt.Errorf("layer %q: %w", l.Title(), err)
		}
		if total += l.Size; total > p.MaxBytes { // sizes are bounded by manifest: no overflow
			return fmt.Errorf("more than %d bytes", p.MaxBytes)
		}
		if l.MediaType == manifest.MediaGolden {
			if golden++; !slices.Contains(p.Golden, l.Digest) {
				return fmt.Errorf("golden set %s is none of those allowed", l.Digest.Short())
			}
			continue
		}
		if !slices.ContainsFunc(p.Layers, func(r LayerRule) bool { return r.allows(l) }) {
			return fmt.Errorf("layer %q of type %s, %d bytes, %s: no rule allows it", l.Title(), l.MediaType, l.Size, l.Digest.Short())
		}
	}
	if golden != 1 {
		return fmt.Errorf("%d golden sets, want 1", golden)
	}
	return nil
}

// pins reports whether a rule names the digest.
func (p *AutoPolicy) pins(d ota.Digest) bool {
	return slices.ContainsFunc(p.Layers, func(r LayerRule) bool { return slices.Contains(r.Digests, d) })
}

// serves reports whether the policy says what a release runs in.
func (p *AutoPolicy) serves() bool {
	return slices.ContainsFunc(p.Layers, func(r LayerRule) bool { return r.MediaType == manifest.MediaWorkload })
}

func (r LayerRule) allows(l manifest.Descriptor) bool {
	if l.MediaType != r.MediaType || r.MaxBytes > 0 && l.Size > r.MaxBytes {
		return false
	}
	if len(r.Digests) > 0 {
		return slices.Contains(r.Digests, l.Digest)
	}
	if l.OfImage() {
		return false
	}
	return slices.Contains(r.Formats, strings.TrimPrefix(path.Ext(l.Title()), "."))
}
