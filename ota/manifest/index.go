package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// Index is a release: one manifest per target. Its digest names the release.
type Index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Manifests     []Descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Manifest is what one target gets.
type Manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// ParseIndex reads a release index and checks all that Release and Select use.
func ParseIndex(b []byte) (*Index, error) {
	var ix Index
	if err := decode(b, MaxIndex, &ix); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if ix.SchemaVersion != 2 || ix.MediaType != MediaIndex {
		return nil, fmt.Errorf("read index: %w: schema version %d, media type %q: want 2 and %s", ErrMalformed, ix.SchemaVersion, ix.MediaType, MediaIndex)
	}
	if len(ix.Manifests) == 0 || len(ix.Manifests) > MaxEntries {
		return nil, fmt.Errorf("read index: %w: %d manifests, want 1 to %d", ErrMalformed, len(ix.Manifests), MaxEntries)
	}
	seen := map[string]bool{}
	for i, d := range ix.Manifests {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("read index: manifest %d: %w", i, err)
		}
		if d.MediaType != MediaManifest || d.Size > MaxManifest {
			return nil, fmt.Errorf("read index: manifest %d: %w: media type %q of %d bytes", i, ErrMalformed, d.MediaType, d.Size)
		}
		t, err := d.Target()
		if err != nil {
			return nil, fmt.Errorf("read index: manifest %d: %w", i, err)
		}
		if seen[t.String()] {
			return nil, fmt.Errorf("read index: %w: target %s", ErrTwice, t)
		}
		seen[t.String()] = true
	}
	if err := checkAnnotations(ix.Annotations); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if _, err := ix.Release(); err != nil {
		return nil, err
	}
	return &ix, nil
}

// ParseManifest reads the manifest of one target.
func ParseManifest(b []byte) (*Manifest, error) {
	var m Manifest
	if err := decode(b, MaxManifest, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.MediaType != MediaManifest || m.ArtifactType != MediaArtifact {
		return nil, fmt.Errorf("read manifest: %w: schema version %d, media type %q, artifact type %q: want 2, %s, %s",
			ErrMalformed, m.SchemaVersion, m.MediaType, m.ArtifactType, MediaManifest, MediaArtifact)
	}
	if err := m.Config.Validate(); err != nil {
		return nil, fmt.Errorf("read manifest: config: %w", err)
	}
	if len(m.Layers) == 0 || len(m.Layers) > MaxEntries {
		return nil, fmt.Errorf("read manifest: %w: %d layers, want 1 to %d", ErrMalformed, len(m.Layers), MaxEntries)
	}
	titles := map[string]bool{}
	for i, d := range m.Layers {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("read manifest: layer %d: %w", i, err)
		}
		if _, err := d.Savings(); err != nil {
			return nil, fmt.Errorf("read manifest: layer %d: %w", i, err)
		}
		// Two files of one name, in any case, would overwrite each other on some file systems.
		if t := strings.ToLower(d.Title()); t != "" && titles[t] {
			return nil, fmt.Errorf("read manifest: %w: file %q", ErrTwice, d.Title())
		} else {
			titles[t] = true
		}
	}
	if _, _, err := m.Weights(); err != nil {
		return nil, err
	}
	if _, _, err := m.Agent(); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if _, _, _, err := m.OSImage(); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if _, _, err := m.Workload(); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if _, _, _, err := m.Image(); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return &m, checkAnnotations(m.Annotations)
}

// Weights returns the layer that is loaded and its format: "onnx", or "plan"
// for a built engine.
func (m *Manifest) Weights() (d Descriptor, format string, err error) {
	found := 0
	for _, l := range m.Layers {
		if l.MediaType != MediaWeights {
			continue
		}
		switch {
		case strings.HasSuffix(l.Title(), ".onnx"):
			format = "onnx"
		case strings.HasSuffix(l.Title(), ".plan"):
			format = "plan"
		default:
			continue
		}
		d = l
		found++
	}
	if found != 1 {
		return Descriptor{}, "", fmt.Errorf("%w: %d model files named .onnx or .plan of type %s, want 1", ErrMalformed, found, MediaWeights)
	}
	return d, format, nil
}

// Golden returns the layer with the golden set, and whether there is one.
func (m *Manifest) Golden() (Descriptor, bool) {
	i := slices.IndexFunc(m.Layers, func(l Descriptor) bool { return l.MediaType == MediaGolden })
	if i < 0 {
		return Descriptor{}, false
	}
	return m.Layers[i], true
}

// Target returns the target that a manifest is made for.
func (d Descriptor) Target() (ota.Target, error) {
	text, ok := d.Annotations[AnnTarget]
	if !ok {
		return ota.Target{}, fmt.Errorf("%w: manifest %s: no annotation %s", ErrMalformed, d.Digest.Short(), AnnTarget)
	}
	t, err := ota.ParseTarget(text)
	if err != nil {
		return ota.Target{}, fmt.Errorf("%w: manifest %s: %w", ErrMalformed, d.Digest.Short(), err)
	}
	if p := d.Platform; p != nil && (p.OS != t.OS || p.Architecture != t.Arch) {
		return ota.Target{}, fmt.Errorf("%w: manifest %s: platform %s/%s, target %s", ErrMalformed, d.Digest.Short(), p.OS, p.Architecture, t)
	}
	return t, nil
}

// Release is what the annotations of an index say.
type Release struct {
	Name         string
	Version      string
	Counter      uint64 // grows with every release of a name, from 1
	Model        string
	ModelVersion int64
	Soak         time.Duration
	Parameters   []ParamDecl
}

// Release reads the annotations.
func (ix *Index) Release() (Release, error) {
	a := ix.Annotations
	r := Release{Name: a[AnnName], Version: a[AnnVersion], Model: a[AnnModel]}
	if !plainName(r.Name) || !plainName(r.Version) {
		return Release{}, fmt.Errorf("read release: %w: %.60q, version %.60q", ErrName, r.Name, r.Version)
	}
	bad := func(key, why string) (Release, error) {
		return Release{}, fmt.Errorf("read release: %w: annotation %s %.60q: %s", ErrMalformed, key, a[key], why)
	}
	if r.Name == "" {
		return bad(AnnName, "want a plain name")
	}
	if r.Version == "" {
		return bad(AnnVersion, "want a plain version")
	}
	var err error
	if r.Counter, err = strconv.ParseUint(a[AnnCounter], 10, 64); err != nil || r.Counter == 0 || r.Counter > MaxCounter {
		return bad(AnnCounter, "want a whole number from 1 to 2^53-1")
	}
	if v, ok := a[AnnModelVersion]; ok {
		if r.ModelVersion, err = strconv.ParseInt(v, 10, 64); err != nil || r.ModelVersion < 0 {
			return bad(AnnModelVersion, "want a whole number")
		}
	}
	if v, ok := a[AnnSoak]; ok {
		if r.Soak, err = time.ParseDuration(v); err != nil || r.Soak < 0 {
			return bad(AnnSoak, "want a duration such as 10m")
		}
	}
	if v, ok := a[AnnParameters]; ok {
		if err := decode([]byte(v), maxText, &r.Parameters); err != nil {
			return bad(AnnParameters, err.Error())
		}
		if err := ValidateDecls(r.Parameters); err != nil {
			return Release{}, fmt.Errorf("read release: %w", err)
		}
	}
	return r, nil
}

// annotations is the reverse of Release.
func (r Release) annotations() (map[string]string, error) {
	a := map[string]string{AnnName: r.Name, AnnVersion: r.Version, AnnCounter: strconv.FormatUint(r.Counter, 10)}
	if r.Model != "" {
		a[AnnModel] = r.Model
	}
	if r.ModelVersion != 0 {
		a[AnnModelVersion] = strconv.FormatInt(r.ModelVersion, 10)
	}
	if r.Soak != 0 {
		a[AnnSoak] = r.Soak.String()
	}
	if len(r.Parameters) > 0 {
		b, err := json.Marshal(r.Parameters)
		if err != nil {
			return nil, fmt.Errorf("write parameters: %w", err)
		}
		a[AnnParameters] = string(b)
	}
	return a, nil
}

// Select returns the manifest that fits device target dev best: an optimal one
// before those that only load, and of equals the one whose target names most of
// what the device has. When none loads, the error is ErrNoTarget and says why
// for each.
func (ix *Index) Select(dev ota.Target) (Descriptor, error) {
	type candidate struct {
		d     Descriptor
		fit   ota.Fit
		score int
	}
	var fits []candidate
	var reasons []string
	for _, d := range ix.Manifests {
		t, err := d.Target()
		if err != nil {
			return Descriptor{}, err
		}
		c := candidate{d: d}
		var reason string
		if c.fit, reason = t.Fits(dev); c.fit == ota.FitNone {
			reasons = append(reasons, fmt.Sprintf("%s: %s", t, reason))
			continue
		}
		for k, v := range t.Attrs {
			if dev.Attrs[k] == v {
				c.score += 2
			} else {
				c.score-- // made for something the device is not, though it loads
			}
		}
		fits = append(fits, c)
	}
	if len(fits) == 0 {
		return Descriptor{}, fmt.Errorf("%w %s: %s", ErrNoTarget, dev, strings.Join(reasons, "; "))
	}
	best := slices.MaxFunc(fits, func(a, b candidate) int { return cmp.Or(cmp.Compare(a.fit, b.fit), cmp.Compare(a.score, b.score)) })
	return best.d, nil
}
