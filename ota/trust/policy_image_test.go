package trust

import (
	"errors"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// containerPolicy allows other weights in one server: its workload and the
// layers of its image are pinned.
func containerPolicy() (*AutoPolicy, *manifest.Index, *manifest.Manifest) {
	p := signedPolicy()
	pin := func(mediaType, text string) LayerRule {
		return LayerRule{MediaType: mediaType, Digests: []ota.Digest{sumOf(text)}}
	}
	p.Layers = []LayerRule{p.Layers[0], pin(manifest.MediaWorkload, "workload"), pin(manifest.MediaManifest, "image"),
		pin(manifest.MediaImageConfig, "image config"), pin(manifest.MediaLayerGzip, "image layer")}
	ix, m := autoRelease()
	of := func(mediaType, text string) manifest.Descriptor {
		return manifest.Descriptor{MediaType: mediaType, Digest: sumOf(text), Size: 10, Annotations: map[string]string{manifest.AnnImage: string(sumOf("image"))}}
	}
	m.Layers = append(m.Layers[:2:2], manifest.WorkloadLayer(sumOf("workload"), 10),
		of(manifest.MediaManifest, "image"), of(manifest.MediaImageConfig, "image config"), of(manifest.MediaLayerGzip, "image layer"))
	return p, ix, m
}

// TestPolicyHoldsImages: with no hand, weights change and what runs them does
// not: neither the workload nor a byte of its image.
func TestPolicyHoldsImages(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(p *AutoPolicy, m *manifest.Manifest)
		want   string // "" passes
	}{
		{"as signed", func(*AutoPolicy, *manifest.Manifest) {}, ""},
		{"other weights", func(_ *AutoPolicy, m *manifest.Manifest) { m.Layers[0].Digest = sumOf("better") }, ""},
		{"other workload", func(_ *AutoPolicy, m *manifest.Manifest) { m.Layers[2].Digest = sumOf("privileged") }, "no rule"},
		{"no workload", func(_ *AutoPolicy, m *manifest.Manifest) { m.Layers = m.Layers[:2] }, "has no workload"},
		{"two workloads", func(_ *AutoPolicy, m *manifest.Manifest) { m.Layers = append(m.Layers, m.Layers[2]) }, "has no workload"},
		{"other layer", func(_ *AutoPolicy, m *manifest.Manifest) { m.Layers[5].Digest = sumOf("rootkit") }, "no rule"},
		{"other image", func(_ *AutoPolicy, m *manifest.Manifest) {
			for i := 3; i < len(m.Layers); i++ {
				m.Layers[i].Annotations = map[string]string{manifest.AnnImage: string(sumOf("other image"))}
			}
		}, "image"},
		{"layer as weights", func(_ *AutoPolicy, m *manifest.Manifest) {
			m.Layers[5] = manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: sumOf("rootkit"), Size: 10,
				Annotations: map[string]string{manifest.AnnImage: string(sumOf("image")), manifest.AnnTitle: "rootkit.onnx"}}
		}, "no rule"},
		{"weights as layer", func(p *AutoPolicy, m *manifest.Manifest) {
			m.Layers[0].Annotations[manifest.AnnImage] = string(sumOf("image"))
		}, "no rule"},
		{"a policy of weights alone", func(p *AutoPolicy, _ *manifest.Manifest) { p.Layers = p.Layers[:1] }, "no rule"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, ix, m := containerPolicy()
			c.change(p, m)
			err := p.Check(autoPath, ix, m)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			if a, ok := errors.AsType[*Attack](err); !ok || a.Class != ClassUnauthorised {
				t.Errorf("error %v is no attack of class %s", err, ClassUnauthorised)
			}
		})
	}
}
