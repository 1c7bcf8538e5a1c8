package attest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/CycloneDX/cyclonedx-go"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Model is what is known of a released model.
type Model struct {
	Release, ReleaseVersion string
	Index                   ota.Digest // of the release
	Name                    string
	Version                 int64
	Description             string
	// Licence is an SPDX expression, or empty when nobody named one.
	Licence string
	// Datasets by name, where the one who pushed the model gave their digests.
	Datasets map[string]ota.Digest
	// Inputs and Outputs are tensors, for example "x: float32[1,784]".
	Inputs, Outputs []string
	// Files are the layers of all targets, each content once.
	Files []manifest.Descriptor
	// Golden describes the golden set among Files.
	Golden       *manifest.Golden
	GoldenDigest ota.Digest
	Author       string // who pushed it
	Created      time.Time
	Tool         string // version of the control plane
}

// BOM writes the CycloneDX bill of materials of a released model.
func BOM(m Model) ([]byte, error) {
	ref := "model:" + m.Name + "@" + fmt.Sprint(m.Version)
	model := cyclonedx.Component{BOMRef: ref, Type: cyclonedx.ComponentTypeMachineLearningModel, Name: m.Name, Version: fmt.Sprint(m.Version), Description: m.Description,
		ModelCard: card(m)}
	if m.Author != "" {
		model.Authors = &[]cyclonedx.OrganizationalContact{{Name: m.Author}}
	}
	if m.Licence != "" {
		model.Licenses = &cyclonedx.Licenses{{Expression: m.Licence}}
	}
	var files []cyclonedx.Component
	var refs []string
	for _, f := range m.Files {
		c := cyclonedx.Component{BOMRef: string(f.Digest), Type: cyclonedx.ComponentTypeFile, MIMEType: f.MediaType, Name: f.Title(), Hashes: hashes(f.Digest)}
		if c.Name == "" {
			c.Name = f.Digest.Short()
		}
		if f.MediaType == manifest.MediaWeights {
			model.Hashes = hashes(f.Digest)
		}
		files = append(files, c)
		refs = append(refs, c.BOMRef)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Datasets)) {
		c := cyclonedx.Component{BOMRef: "dataset:" + name, Type: cyclonedx.ComponentTypeData, Name: name, Hashes: hashes(m.Datasets[name])}
		files = append(files, c)
		refs = append(refs, c.BOMRef)
	}
	release := cyclonedx.Component{BOMRef: "release", Type: cyclonedx.ComponentTypeApplication, Name: m.Release, Version: m.ReleaseVersion, Hashes: hashes(m.Index)}
	b := cyclonedx.NewBOM()
	b.SpecVersion, b.JSONSchema = cyclonedx.SpecVersion1_6, "http://cyclonedx.org/schema/bom-1.6.schema.json"
	b.SerialNumber = serial(m.Index)
	b.Metadata = &cyclonedx.Metadata{Timestamp: Stamp(m.Created), Component: &release,
		Tools: &cyclonedx.ToolsChoice{Components: &[]cyclonedx.Component{{Type: cyclonedx.ComponentTypeApplication, Name: "skeind", Version: m.Tool}}}}
	b.Components = new(append([]cyclonedx.Component{model}, files...))
	b.Dependencies = &[]cyclonedx.Dependency{{Ref: "release", Dependencies: &[]string{ref}}, {Ref: ref, Dependencies: &refs}}
	var out bytes.Buffer
	if err := cyclonedx.NewBOMEncoder(&out, cyclonedx.BOMFileFormatJSON).SetEscapeHTML(false).EncodeVersion(b, cyclonedx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("write bill of materials: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// card is the model card: the tensors, the datasets where they are known, and
// the golden set that every device must answer.
func card(m Model) *cyclonedx.MLModelCard {
	p := cyclonedx.MLModelParameters{}
	tensors := func(of []string) *[]cyclonedx.MLInputOutputParameters {
		if len(of) == 0 {
			return nil
		}
		var out []cyclonedx.MLInputOutputParameters
		for _, t := range of {
			out = append(out, cyclonedx.MLInputOutputParameters{Format: t})
		}
		return &out
	}
	p.Inputs, p.Outputs = tensors(m.Inputs), tensors(m.Outputs)
	var sets []cyclonedx.MLDatasetChoice
	for _, name := range slices.Sorted(maps.Keys(m.Datasets)) {
		sets = append(sets, cyclonedx.MLDatasetChoice{Ref: "dataset:" + name})
	}
	if m.Golden != nil {
		sets = append(sets, cyclonedx.MLDatasetChoice{Ref: string(m.GoldenDigest)})
	}
	if len(sets) > 0 {
		p.Datasets = &sets
	}
	c := &cyclonedx.MLModelCard{ModelParameters: &p}
	if g := m.Golden; g != nil {
		c.QuantitativeAnalysis = &cyclonedx.MLQuantitativeAnalysis{PerformanceMetrics: &[]cyclonedx.MLPerformanceMetric{
			{Type: "golden cases", Value: fmt.Sprint(len(g.Cases)), Slice: "golden set, answered on every device before the model serves"},
			{Type: "least label agreement", Value: fmt.Sprint(g.MinLabelAgreement), Slice: "golden set"},
			{Type: "largest absolute difference of outputs", Value: fmt.Sprint(g.Tolerance.Abs), Slice: "golden set"},
		}}
	}
	return c
}

func hashes(d ota.Digest) *[]cyclonedx.Hash {
	return &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: d.Hex()}}
}

// serial names a bill of materials by what it is of, as a UUID of version 8.
func serial(d ota.Digest) string {
	b := d.Sum()
	if len(b) < 16 {
		return ""
	}
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// CheckBOM reads a bill of materials and returns the digests of the files of
// the model that it lists.
func CheckBOM(raw []byte, index ota.Digest) ([]ota.Digest, error) {
	var scan any
	if err := manifest.Decode(raw, MaxDocument, &scan); err != nil {
		return nil, fmt.Errorf("%w: bill of materials: %w", ErrMalformed, err)
	}
	var b cyclonedx.BOM
	if err := cyclonedx.NewBOMDecoder(bytes.NewReader(raw), cyclonedx.BOMFileFormatJSON).Decode(&b); err != nil {
		return nil, fmt.Errorf("%w: bill of materials: %w", ErrMalformed, err)
	}
	if b.Metadata == nil || b.Metadata.Component == nil || !hashed(*b.Metadata.Component, index) {
		return nil, fmt.Errorf("%w: the bill of materials does not name %s", ErrSubject, index)
	}
	if b.Components == nil {
		return nil, fmt.Errorf("%w: bill of materials without components", ErrMalformed)
	}
	var out []ota.Digest
	for _, c := range *b.Components {
		if c.Type != cyclonedx.ComponentTypeFile {
			continue
		}
		d, err := ota.ParseDigest(c.BOMRef)
		if err != nil || !hashed(c, d) {
			return nil, fmt.Errorf("%w: bill of materials: file %.80q without its sha256", ErrMalformed, c.Name)
		}
		out = append(out, d)
	}
	return out, nil
}

func hashed(c cyclonedx.Component, d ota.Digest) bool {
	return c.Hashes != nil && slices.ContainsFunc(*c.Hashes, func(h cyclonedx.Hash) bool {
		return h.Algorithm == cyclonedx.HashAlgoSHA256 && h.Value == d.Hex()
	})
}
