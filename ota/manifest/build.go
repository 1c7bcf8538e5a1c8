package manifest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/skein-fleet/skein/ota"
)

// Put stores a small blob and returns its descriptor (media type, digest, size).
type Put func(ctx context.Context, mediaType string, data []byte) (Descriptor, error)

// Build says what a release is made of. The files are stored before.
type Build struct {
	Release
	Targets []ota.Target
	ONNX    Descriptor // media type and title are filled in
	Golden  Descriptor // zero when there is no golden set
	// Engines are built engines by the text of their target; a target without
	// one gets the ONNX file.
	Engines map[string]Descriptor
	// Extra layers go to every target, after the model, for example labels.
	Extra []Descriptor
	// Machine are further layers by the text of their target: agent, OS image,
	// workload and container image.
	Machine map[string][]Descriptor
	// Mirrors of layers, by their digest.
	Mirrors map[ota.Digest][]string
	// Savings of layers, by their digest.
	Savings map[ota.Digest]Savings
}

// modelConfig is the ModelPack config.
type modelConfig struct {
	Descriptor struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	} `json:"descriptor"`
	ModelFS struct {
		Type    string       `json:"type"`
		DiffIDs []ota.Digest `json:"diffIds"`
	} `json:"modelfs"`
	Config struct {
		Format string `json:"format"`
	} `json:"config"`
}

// Write stores the config and manifest of each target, then the index, whose
// digest names the release. The same Build gives the same bytes.
func (b Build) Write(ctx context.Context, put Put) (index Descriptor, indexBytes []byte, manifests []Descriptor, err error) {
	ann, err := b.annotations()
	if err != nil {
		return Descriptor{}, nil, nil, err
	}
	targets := slices.Clone(b.Targets)
	slices.SortFunc(targets, func(a, c ota.Target) int { return slices.Compare([]byte(a.String()), []byte(c.String())) })
	for _, t := range targets {
		d, err := b.writeManifest(ctx, put, t)
		if err != nil {
			return Descriptor{}, nil, nil, fmt.Errorf("write manifest for %s: %w", t, err)
		}
		manifests = append(manifests, d)
	}
	indexBytes, err = json.Marshal(Index{SchemaVersion: 2, MediaType: MediaIndex, ArtifactType: MediaArtifact, Manifests: manifests, Annotations: ann})
	if err != nil {
		return Descriptor{}, nil, nil, fmt.Errorf("write index: %w", err)
	}
	// What could not be read back must not be published.
	if _, err := ParseIndex(indexBytes); err != nil {
		return Descriptor{}, nil, nil, fmt.Errorf("write index: %w", err)
	}
	index, err = put(ctx, MediaIndex, indexBytes)
	if err != nil {
		return Descriptor{}, nil, nil, fmt.Errorf("store index: %w", err)
	}
	return index, indexBytes, manifests, nil
}

func (b Build) writeManifest(ctx context.Context, put Put, t ota.Target) (Descriptor, error) {
	model, format, title := b.ONNX, "onnx", "model.onnx"
	if e, ok := b.Engines[t.String()]; ok {
		model, format, title = e, "plan", "model.plan"
	}
	layers := []Descriptor{named(model, MediaWeights, title)}
	if b.Golden.Digest != "" {
		layers = append(layers, named(b.Golden, MediaGolden, "golden.json"))
	}
	layers = append(layers, b.Extra...)
	layers = append(layers, b.Machine[t.String()]...)
	for i, l := range layers {
		l.URLs = b.Mirrors[l.Digest]
		var err error
		if layers[i], err = b.Savings[l.Digest].annotate(l); err != nil {
			return Descriptor{}, err
		}
	}
	var cfg modelConfig
	cfg.Descriptor.Name, cfg.Descriptor.Version = b.Name, b.Version
	cfg.Config.Format = format
	cfg.ModelFS.Type = "layers"
	for _, l := range layers {
		cfg.ModelFS.DiffIDs = append(cfg.ModelFS.DiffIDs, l.Digest)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		return Descriptor{}, err
	}
	config, err := put(ctx, MediaConfig, raw)
	if err != nil {
		return Descriptor{}, fmt.Errorf("store config: %w", err)
	}
	m := Manifest{SchemaVersion: 2, MediaType: MediaManifest, ArtifactType: MediaArtifact, Config: config, Layers: layers,
		Annotations: map[string]string{AnnTarget: t.String()}}
	raw, err = json.Marshal(m)
	if err != nil {
		return Descriptor{}, err
	}
	if _, err := ParseManifest(raw); err != nil {
		return Descriptor{}, err
	}
	d, err := put(ctx, MediaManifest, raw)
	if err != nil {
		return Descriptor{}, fmt.Errorf("store manifest: %w", err)
	}
	d.ArtifactType = MediaArtifact
	d.Platform = &Platform{OS: t.OS, Architecture: t.Arch}
	d.Annotations = map[string]string{AnnTarget: t.String()}
	return d, nil
}

func named(d Descriptor, mediaType, title string) Descriptor {
	as := maps.Clone(d.Annotations)
	if as == nil {
		as = map[string]string{}
	}
	as[AnnTitle] = title
	return Descriptor{MediaType: mediaType, Digest: d.Digest, Size: d.Size, Annotations: as}
}
