package manifest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
)

func target(t testing.TB, s string) ota.Target {
	t.Helper()
	v, err := ota.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func blobOf(s string) Descriptor {
	return Descriptor{Digest: ota.DigestOf([]byte(s)), Size: int64(len(s))}
}

// memory stores what Build writes.
type memory map[ota.Digest][]byte

func (m memory) put(_ context.Context, mediaType string, b []byte) (Descriptor, error) {
	d := ota.DigestOf(b)
	m[d] = b
	return Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}, nil
}

func build(t testing.TB) Build {
	return Build{
		Release: Release{Name: "meter", Version: "3", Counter: 3, Model: "digits", ModelVersion: 7, Soak: 10 * time.Minute,
			Parameters: []ParamDecl{{Key: "camera", Type: TypeSecret, Required: true, Description: "RTSP address"}, {Key: "confidence", Type: TypeFloat, Default: "0.5"}}},
		Targets: []ota.Target{target(t, "linux/arm64;sm=8.7;trt=10.3.0"), target(t, "linux/amd64;ort=1"), target(t, "linux/arm64;ort=1")},
		ONNX:    blobOf("the model"), Golden: blobOf("the golden set"),
		Engines: map[string]Descriptor{"linux/arm64;sm=8.7;trt=10.3.0": blobOf("the engine")},
		Extra:   []Descriptor{{MediaType: "text/plain", Digest: ota.DigestOf([]byte("labels")), Size: 6, Annotations: map[string]string{AnnTitle: "labels.txt"}}},
	}
}

func TestBuild(t *testing.T) {
	b, store := build(t), memory{}
	index, raw, manifests, err := b.Write(t.Context(), store.put)
	if err != nil {
		t.Fatal(err)
	}
	_, again, _, err := b.Write(t.Context(), memory{}.put)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("the same build gives other bytes: %v", err)
	}
	if index.Digest != ota.DigestOf(raw) || index.MediaType != MediaIndex || len(manifests) != 3 {
		t.Errorf("index %+v, %d manifests", index, len(manifests))
	}
	ix, err := ParseIndex(raw)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ix.Release()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.Release, r); d != "" {
		t.Error(d)
	}
	for _, c := range []struct{ device, format, model string }{
		{"linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;ort=1", "plan", "the engine"},
		{"linux/arm64;ort=1", "onnx", "the model"},
		{"linux/amd64;ort=1;mem=32", "onnx", "the model"},
	} {
		d, err := ix.Select(target(t, c.device))
		if err != nil {
			t.Errorf("%s: %v", c.device, err)
			continue
		}
		m, err := ParseManifest(store[d.Digest])
		if err != nil {
			t.Fatal(err)
		}
		w, format, err := m.Weights()
		if err != nil || format != c.format || w.Digest != ota.DigestOf([]byte(c.model)) || w.Title() != "model."+format {
			t.Errorf("%s: %s %s, %v", c.device, format, w.Title(), err)
		}
		g, ok := m.Golden()
		if !ok || g.Digest != ota.DigestOf([]byte("the golden set")) || len(m.Layers) != 3 {
			t.Errorf("%s: golden %v, %d layers", c.device, ok, len(m.Layers))
		}
		var config struct {
			Descriptor struct{ Name, Version string }
			Config     struct{ Format string }
			ModelFS    struct {
				Type    string
				DiffIDs []ota.Digest
			}
		}
		if err := json.Unmarshal(store[m.Config.Digest], &config); err != nil {
			t.Fatal(err)
		}
		if config.Descriptor.Name != "meter" || config.Config.Format != c.format || config.ModelFS.Type != "layers" || len(config.ModelFS.DiffIDs) != 3 {
			t.Errorf("config %s", store[m.Config.Digest])
		}
	}
}

func TestSelectSaysWhy(t *testing.T) {
	_, raw, _, err := build(t).Write(t.Context(), memory{}.put)
	if err != nil {
		t.Fatal(err)
	}
	ix, err := ParseIndex(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ix.Select(target(t, "linux/arm64;sm=8.7;trt=10.0.1"))
	if !errors.Is(err, ErrNoTarget) {
		t.Fatal(err)
	}
	for _, want := range []string{"made for trt=10.3.0, device has 10.0.1", "made for ort=1, device has none", "made for linux/amd64, device is linux/arm64"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}

func TestSelectPrefersTheClosest(t *testing.T) {
	ix := &Index{}
	for i, text := range []string{"linux/arm64", "linux/arm64;sm=8.7", "linux/arm64;sm=8.7;mem=64", "linux/arm64;sm=8.7;mem=8"} {
		d := blobOf(fmt.Sprint(i))
		d.Annotations = map[string]string{AnnTarget: text}
		ix.Manifests = append(ix.Manifests, d)
	}
	for device, want := range map[string]int{"linux/arm64;sm=8.7;mem=8": 3, "linux/arm64;sm=8.7;mem=64": 2, "linux/arm64;sm=8.7;mem=16": 1, "linux/arm64;sm=5.3": 0} {
		d, err := ix.Select(target(t, device))
		if err != nil || d.Digest != ix.Manifests[want].Digest {
			t.Errorf("%s: got %s, %v", device, d.Annotations[AnnTarget], err)
		}
	}
}

// TestSelectPrefersOptimal: an engine tuned here comes before one of another
// module that names more of what the device has.
func TestSelectPrefersOptimal(t *testing.T) {
	ix := &Index{}
	for i, text := range []string{
		"linux/arm64", "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=16;dla=2;module=orin-nano-8gb;mode=15W",
		"linux/arm64;sm=8.7;trt=10.3.0;module=orin-nano-8gb;mode=25W",
	} {
		d := blobOf(fmt.Sprint(i))
		d.Annotations = map[string]string{AnnTarget: text}
		ix.Manifests = append(ix.Manifests, d)
	}
	const device = "linux/arm64;sm=8.7;trt=%s;cuda=12.6;l4t=36.4.3;mem=16;dla=2;module=orin-nano-8gb;mode=%s"
	for _, c := range []struct {
		trt, mode string
		want      int
	}{{"10.3.0", "25W", 2}, {"10.3.0", "15W", 1}, {"10.3.0", "7W", 1}, {"10.4.0", "25W", 0}} {
		d, err := ix.Select(target(t, fmt.Sprintf(device, c.trt, c.mode)))
		if err != nil || d.Digest != ix.Manifests[c.want].Digest {
			t.Errorf("%s in %s: got %s, %v", c.trt, c.mode, d.Annotations[AnnTarget], err)
		}
	}
}

// edit returns raw with one change to its JSON value.
func edit(t *testing.T, raw []byte, change func(m map[string]any)) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseRefuses(t *testing.T) {
	store := memory{}
	_, index, manifests, err := build(t).Write(t.Context(), store.put)
	if err != nil {
		t.Fatal(err)
	}
	man := store[manifests[0].Digest]
	ann := func(key string, value any) func(map[string]any) {
		return func(m map[string]any) { m["annotations"].(map[string]any)[key] = value }
	}
	first := func(list string, change func(map[string]any)) func(map[string]any) {
		return func(m map[string]any) { change(m[list].([]any)[0].(map[string]any)) }
	}
	set := func(key string, value any) func(map[string]any) { return func(m map[string]any) { m[key] = value } }
	nested := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	for name, b := range map[string][]byte{
		"empty": nil, "no JSON": []byte("<html>"), "null": []byte("null"), "a list": []byte("[]"),
		"trailing":       append(bytes.Clone(index), '1'),
		"twice":          []byte(strings.Replace(string(index), `"schemaVersion":2`, `"schemaVersion":2,"schemaVersion":2`, 1)),
		"twice, long s":  []byte(strings.Replace(string(index), `"schemaVersion":2`, `"schemaVersion":2,"\u017fchemaVersion":2`, 1)),
		"twice, by case": []byte(strings.Replace(string(index), `"schemaVersion":2`, `"schemaVersion":2,"SchemaVersion":2`, 1)),
		"deep":           edit(t, index, set("x", json.RawMessage(nested))),
		"too long":       append(bytes.Clone(index), bytes.Repeat([]byte(" "), MaxIndex)...),
		"schema 1":       edit(t, index, set("schemaVersion", 1)),
		"a manifest":     man,
		"none":           edit(t, index, set("manifests", []any{})),
		"too many":       edit(t, index, set("manifests", make([]Descriptor, MaxEntries+1))),
		"same target":    edit(t, index, func(m map[string]any) { l := m["manifests"].([]any); m["manifests"] = append(l, l[0]) }),
		"no target":      edit(t, index, first("manifests", set("annotations", map[string]any{}))),
		"bad target":     edit(t, index, first("manifests", ann(AnnTarget, "linux"))),
		"lying platform": edit(t, index, first("manifests", set("platform", map[string]any{"os": "linux", "architecture": "riscv64"}))),
		"bad digest":     edit(t, index, first("manifests", set("digest", "sha256:../../x"))),
		"other digest":   edit(t, index, first("manifests", set("digest", "sha512:"+strings.Repeat("a", 128)))),
		"negative size":  edit(t, index, first("manifests", set("size", -1))),
		"huge manifest":  edit(t, index, first("manifests", set("size", MaxManifest+1))),
		"size of text":   edit(t, index, first("manifests", set("size", "12"))),
		"no name":        edit(t, index, ann(AnnName, "")),
		"path as name":   edit(t, index, ann(AnnName, "../x")),
		"no version":     edit(t, index, ann(AnnVersion, "")),
		"counter 0":      edit(t, index, ann(AnnCounter, "0")),
		"counter -1":     edit(t, index, ann(AnnCounter, "-1")),
		"counter huge":   edit(t, index, ann(AnnCounter, "9007199254740993")),
		"model version":  edit(t, index, ann(AnnModelVersion, "x")),
		"soak":           edit(t, index, ann(AnnSoak, "-1s")),
		"parameters":     edit(t, index, ann(AnnParameters, "{")),
		"bad parameter":  edit(t, index, ann(AnnParameters, `[{"key":"A","type":"int"}]`)),
		"long":           edit(t, index, ann("x", strings.Repeat("x", maxText+1))),
	} {
		if _, err := ParseIndex(b); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrParam) {
			t.Errorf("index, %s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"an index":       index,
		"other artifact": edit(t, man, set("artifactType", "x/y")),
		"no layers":      edit(t, man, set("layers", []any{})),
		"no weights":     edit(t, man, first("layers", set("mediaType", "text/plain"))),
		"two weights": edit(t, man, func(m map[string]any) {
			m["layers"] = append(m["layers"].([]any), map[string]any{"mediaType": MediaWeights, "digest": ota.DigestOf(nil), "size": 0, "annotations": map[string]any{AnnTitle: "b.onnx"}})
		}),
		"same file": edit(t, man, func(m map[string]any) {
			m["layers"] = append(m["layers"].([]any), map[string]any{"mediaType": "text/plain", "digest": ota.DigestOf(nil), "size": 0, "annotations": map[string]any{AnnTitle: "LABELS.txt"}})
		}),
		"path as title": edit(t, man, first("layers", ann(AnnTitle, "../../etc/model.onnx"))),
		"huge layer":    edit(t, man, first("layers", set("size", int64(MaxBlob)+1))),
		"bad config":    edit(t, man, set("config", map[string]any{"mediaType": MediaConfig, "digest": "x", "size": 1})),
	} {
		if _, err := ParseManifest(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("manifest, %s: %v", name, err)
		}
	}
	// What OCI tools may add is no fault.
	if _, err := ParseIndex(edit(t, index, set("subject", map[string]any{"x": 1}))); err != nil {
		t.Error(err)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, change := range map[string]func(*Build){
		"no targets":  func(b *Build) { b.Targets = nil },
		"no model":    func(b *Build) { b.ONNX = Descriptor{} },
		"no name":     func(b *Build) { b.Name = "" },
		"counter":     func(b *Build) { b.Counter = 0 },
		"twice":       func(b *Build) { b.Targets = append(b.Targets, b.Targets[0]) },
		"parameters":  func(b *Build) { b.Parameters = []ParamDecl{{Key: "a", Type: "x"}} },
		"extra file":  func(b *Build) { b.Extra[0].Annotations = map[string]string{AnnTitle: "a/b"} },
		"second onnx": func(b *Build) { b.Extra[0] = named(b.ONNX, MediaWeights, "other.onnx") },
	} {
		b := build(t)
		change(&b)
		if _, _, _, err := b.Write(t.Context(), memory{}.put); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	boom := errors.New("disk full")
	_, _, _, err := build(t).Write(t.Context(), func(context.Context, string, []byte) (Descriptor, error) { return Descriptor{}, boom })
	if !errors.Is(err, boom) {
		t.Error(err)
	}
}

func FuzzParseIndex(f *testing.F) {
	_, raw, _, err := build(f).Write(f.Context(), memory{}.put)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := ParseIndex(b)
		if err != nil {
			return
		}
		if _, err := ix.Release(); err != nil {
			t.Fatal(err)
		}
		if _, err := ix.Select(ota.Target{OS: "linux", Arch: "arm64"}); err != nil && !errors.Is(err, ErrNoTarget) {
			t.Fatal(err)
		}
		again, err := json.Marshal(ix)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseIndex(again); err != nil {
			t.Fatalf("own writing refused: %v", err)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	store := memory{}
	_, _, ms, err := build(f).Write(f.Context(), store.put)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(store[ms[0].Digest])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		if _, _, err := m.Weights(); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if title := l.Title(); strings.ContainsAny(title, "/\\\x00") || title == ".." {
				t.Fatalf("title %q", title)
			}
		}
	})
}

func TestMachineLayers(t *testing.T) {
	b, store := build(t), memory{}
	after := target(t, "linux/arm64;sm=8.7;trt=10.16.2;l4t=39.2.0")
	b.Machine = map[string][]Descriptor{"linux/arm64;sm=8.7;trt=10.3.0": {
		AgentLayer(ota.DigestOf([]byte("agent")), 5), OSLayer(ota.DigestOf([]byte("os")), 2, after)}}
	_, _, manifests, err := b.Write(t.Context(), store.put)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range manifests {
		m, err := ParseManifest(store[d.Digest])
		if err != nil {
			t.Fatal(err)
		}
		_, agent, _ := m.Agent()
		_, to, image, _ := m.OSImage()
		if want := d.Annotations[AnnTarget] == "linux/arm64;sm=8.7;trt=10.3.0"; agent != want || image != want || want && to.String() != after.String() {
			t.Errorf("%s: agent %v, OS image %v to %s", d.Annotations[AnnTarget], agent, image, to)
		}
	}
	for name, layers := range map[string][]Descriptor{
		"two agents":             {AgentLayer(ota.DigestOf([]byte("1")), 1), AgentLayer(ota.DigestOf([]byte("2")), 1)},
		"OS image to nowhere":    {{MediaType: MediaOSImage, Digest: ota.DigestOf([]byte("os")), Size: 2}},
		"OS image to a bad name": {{MediaType: MediaOSImage, Digest: ota.DigestOf([]byte("os")), Size: 2, Annotations: map[string]string{AnnOSTarget: "linux"}}},
	} {
		b.Machine = map[string][]Descriptor{"linux/arm64;ort=1": layers}
		if _, _, _, err := b.Write(t.Context(), memory{}.put); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
