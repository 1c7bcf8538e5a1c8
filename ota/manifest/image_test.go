package manifest

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota"
)

// image is an image of two layers with its manifest.
func image(t testing.TB, change ...func(*ImageManifest)) (Descriptor, []byte, *ImageManifest) {
	t.Helper()
	m := ImageManifest{SchemaVersion: 2, MediaType: MediaManifest,
		Config: Descriptor{MediaType: MediaImageConfig, Digest: ota.DigestOf([]byte("config")), Size: 6},
		Layers: []Descriptor{
			{MediaType: MediaLayerTar, Digest: ota.DigestOf([]byte("base")), Size: 4},
			{MediaType: MediaLayerGzip, Digest: ota.DigestOf([]byte("server")), Size: 6},
			{MediaType: MediaLayerTar, Digest: ota.DigestOf([]byte("base")), Size: 4}, // a layer may come twice
		}}
	for _, c := range change {
		c(&m)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return Descriptor{MediaType: MediaManifest, Digest: ota.DigestOf(raw), Size: int64(len(raw))}, raw, &m
}

// withImage is a build whose targets have a workload and an image.
func withImage(t testing.TB, w Workload, layers []Descriptor) (*Manifest, error) {
	t.Helper()
	b, store := build(t), memory{}
	raw, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	b.Machine = map[string][]Descriptor{}
	for _, g := range b.Targets {
		b.Machine[g.String()] = append([]Descriptor{WorkloadLayer(ota.DigestOf(raw), int64(len(raw)))}, layers...)
	}
	_, _, ms, err := b.Write(t.Context(), store.put)
	if err != nil {
		return nil, err
	}
	return ParseManifest(store[ms[0].Digest])
}

func TestImageOfRelease(t *testing.T) {
	d, raw, im := image(t)
	w := Workload{Server: ServerV2, Image: &Image{Digest: d.Digest}}
	m, err := withImage(t, w, ImageLayers(d, im))
	if err != nil {
		t.Fatal(err)
	}
	got, layers, ok, err := m.Image()
	if err != nil || !ok || got.Digest != d.Digest || len(layers) != 3 {
		t.Fatalf("image %+v, %d layers, %v, %v", got, len(layers), ok, err)
	}
	if l, ok, err := m.Workload(); err != nil || !ok || l.Title() != "workload.json" {
		t.Fatalf("workload %+v, %v, %v", l, ok, err)
	}
	if err := m.CheckImage(&w, raw); err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if !l.OfImage() || l.Title() != "" {
			t.Errorf("layer %+v", l)
		}
	}
	if n := (Descriptor{MediaType: MediaLayerGzip, Size: 1000}).Unpacked(); n != 2500 {
		t.Errorf("1000 bytes of gzip are taken for %d", n)
	}
}

func TestImageRefused(t *testing.T) {
	d, raw, im := image(t)
	all := ImageLayers(d, im)
	_, other, _ := image(t, func(m *ImageManifest) { m.Layers[1].Size = 7 })
	tagged := func(l Descriptor, annotation string) Descriptor {
		l.Annotations = map[string]string{AnnImage: annotation}
		return l
	}
	w := Workload{Image: &Image{Digest: d.Digest}}
	for _, c := range []struct {
		name   string
		w      Workload
		layers []Descriptor
		raw    []byte
		want   string
	}{
		{"manifest missing", w, all[1:], raw, "is none of the layers"},
		{"layer missing", w, all[:3], raw, "2 are in the release"},
		{"layer of nobody", w, append(all[:len(all):len(all)], tagged(blobOf("extra"), string(d.Digest))), raw, "media"},
		{"one too many", w, append(all[:len(all):len(all)], tagged(Descriptor{MediaType: MediaLayerTar, Digest: ota.DigestOf([]byte("x")), Size: 1}, string(d.Digest))), raw, "4 are in the release"},
		{"two images", w, append(all[:len(all):len(all)], tagged(Descriptor{MediaType: MediaLayerTar, Digest: ota.DigestOf([]byte("x")), Size: 1}, string(ota.DigestOf(nil)))), raw, "two images"},
		{"twice", w, append(all[:len(all):len(all)], all[2]), raw, "twice"},
		{"weights", w, append(all[:len(all):len(all)], tagged(Descriptor{MediaType: MediaWeights, Digest: ota.DigestOf([]byte("x")), Size: 1}, string(d.Digest))), raw, "no part of an image"},
		{"other digest", Workload{Image: &Image{Digest: ota.DigestOf([]byte("no"))}}, all, raw, "the release has"},
		{"no image wanted", Workload{}, all, raw, "its workload runs none"},
		{"none here", w, nil, nil, "not among the layers"},
		{"other bytes", w, all, other, "its manifest is not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := withImage(t, c.w, c.layers)
			if err == nil {
				err = m.CheckImage(&c.w, c.raw)
			}
			if err == nil || !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	if m, err := withImage(t, Workload{Image: &Image{Digest: d.Digest, Reference: "nvcr.io/nvidia/tritonserver"}}, nil); err != nil {
		t.Error(err)
	} else if err := m.CheckImage(&Workload{Image: &Image{Digest: d.Digest, Reference: "nvcr.io/nvidia/tritonserver"}}, nil); err != nil {
		t.Errorf("an image at a registry: %v", err)
	}
	b := build(t)
	b.Extra = all
	if _, _, _, err := b.Write(t.Context(), memory{}.put); !errors.Is(err, ErrImage) {
		t.Errorf("an image without a workload: %v", err)
	}
}

func TestParseImage(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*ImageManifest)
		want   string
	}{
		{"artifact", func(m *ImageManifest) { m.Config.MediaType = MediaConfig }, "no container image"},
		{"no layers", func(m *ImageManifest) { m.Layers = nil }, "0 layers"},
		{"foreign layer", func(m *ImageManifest) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}, "want a tar archive"},
		{"index", func(m *ImageManifest) { m.MediaType = MediaIndex }, "want an OCI or Docker"},
		{"digest", func(m *ImageManifest) { m.Layers[0].Digest = "sha256:no" }, "descriptor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, raw, _ := image(t, c.change)
			if _, err := ParseImage(raw); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	for user, root := range map[string]bool{"": true, "0": true, "root": true, "0:1000": true, "1000": false, "nobody:nogroup": false, "1000:0": false, "00": true} {
		var c ImageConfig
		c.Config.User = user
		if c.Root() != root {
			t.Errorf("user %q: root %v", user, !root)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	_, raw, _ := image(f)
	f.Add(raw)
	f.Add([]byte(`{"schemaVersion":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseImage(b)
		if err != nil {
			return
		}
		if n := len(m.Blobs()); n < 1 || n > MaxImageLayers+1 {
			t.Errorf("%d blobs", n)
		}
	})
}
