package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// listAuto lists a release in the role of meter, signed by its online key.
func (w *world) listAuto(index []byte, manifests []manifest.Descriptor) {
	w.t.Helper()
	req := trust.ListRequest{Role: trust.AutoRole("meter"), Index: index}
	for _, d := range manifests {
		b, err := w.blobs.ReadAll(context.Background(), d.Digest, manifest.MaxManifest)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Manifests = append(req.Manifests, b)
	}
	if err := w.repo.List(context.Background(), req, bubbleStart); err != nil {
		w.t.Fatal(err)
	}
}

// delegate lets the online key release meter within a policy.
func (w *world) delegate(p trust.AutoPolicy) {
	w.t.Helper()
	key, err := w.repo.AutoKey(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.repo.Delegate(context.Background(), p, []trust.NamedKey{{Key: key}}, bubbleStart); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) goldenDigest(bias float32) ota.Digest {
	w.t.Helper()
	raw, err := golden(bias).Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	return ota.DigestOf(raw)
}

const codeType = "application/vnd.skein.container.v1"

// autoWorld has releases that the auto role of meter lists, rightly signed, of
// which the policy that persons signed allows auto-1 and auto-9.
func autoWorld(t *testing.T) (*world, *slot.Mem) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2})
	store := func(text string) manifest.Descriptor {
		d, err := w.blobs.PutBytes([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return manifest.Descriptor{MediaType: codeType, Digest: d, Size: int64(len(text)), Annotations: map[string]string{manifest.AnnTitle: "server.tar"}}
	}
	server, evil := store("server"), store("evil server")
	wide := trust.AutoPolicy{Model: "meter", Paths: []string{"releases/meter/auto-*"}, MaxBytes: 10 << 20,
		Layers: []trust.LayerRule{{MediaType: manifest.MediaWeights, Formats: []string{"onnx"}, MaxBytes: 8 << 20},
			{MediaType: codeType, Digests: []ota.Digest{server.Digest, evil.Digest}}},
		Golden: []ota.Digest{w.goldenDigest(5), w.goldenDigest(6)}}
	w.delegate(wide)
	w.release("auto-1", model{Bias: 5}, releaseOptions{counter: 3, golden: 5, auto: true, extra: []manifest.Descriptor{server}})
	w.release("auto-code", model{Bias: 5}, releaseOptions{counter: 4, golden: 5, auto: true, extra: []manifest.Descriptor{evil}})
	w.release("auto-golden", model{Bias: 6}, releaseOptions{counter: 5, golden: 6, auto: true})
	w.release("auto-big", model{Bias: 5, Pad: make([]byte, 2<<20)}, releaseOptions{counter: 6, golden: 5, auto: true})
	w.release("auto-9", model{Bias: 5}, releaseOptions{counter: 9, golden: 5, auto: true})
	// What the key signed stays signed; the policy that counts is this one.
	narrow := wide
	narrow.MaxBytes, narrow.Golden = 1<<20, wide.Golden[:1]
	narrow.Layers = slices.Clone(wide.Layers)
	narrow.Layers[1].Digests = narrow.Layers[1].Digests[:1]
	w.delegate(narrow)
	return w, committed(t, w)
}

// TestAutoRole: with the control plane and the key of an auto role taken over,
// no code runs that no person signed, nor is a model proven with another golden
// set, nor is the disk filled. What the policy allows is installed.
func TestAutoRole(t *testing.T) {
	w, base := autoWorld(t)
	for _, version := range []string{"auto-code", "auto-golden", "auto-big"} {
		t.Run(version, func(t *testing.T) {
			on(t, w, base, func(t *testing.T, d *device) {
				w.mu.Lock()
				before := w.fetched
				w.mu.Unlock()
				w.want(2, version)
				settle(2 * time.Minute)
				if got, err := d.runtime.answer(); err != nil || got != 1 {
					t.Errorf("answers %v, %v", got, err)
				}
				if s := d.state.Get(); s.Update != nil || s.Current.Version != "1" {
					t.Errorf("update %v, current %s", s.Update, s.Current.Version)
				}
				if !w.event(trust.ClassUnauthorised) {
					t.Errorf("not named: %+v", w.got().events)
				}
				if r := w.last(); r.FailureClass != string(ota.Rejected) {
					t.Errorf("failure %q %q", r.FailureClass, r.Failure)
				}
				w.mu.Lock()
				fetched := w.fetched - before
				w.mu.Unlock()
				if fetched > 64<<10 {
					t.Errorf("%d bytes were fetched of what may not be here", fetched)
				}
				w.want(3, "auto-9")
				settle(2 * time.Minute)
				if got, err := d.runtime.answer(); err != nil || got != 5 {
					t.Errorf("the next honest update: %v, %v; %q", got, err, w.last().Failure)
				}
			})
		})
	}
	t.Run("allowed", func(t *testing.T) {
		on(t, w, base, func(t *testing.T, d *device) {
			w.want(2, "auto-1")
			settle(2 * time.Minute)
			if got, err := d.runtime.answer(); err != nil || got != 5 {
				t.Errorf("answers %v, %v; %q", got, err, w.last().Failure)
			}
		})
	})
}

// TestAutoRoleWithoutPolicy: what an auto role lists is refused before anything
// is fetched when no person allows it.
func TestAutoRoleWithoutPolicy(t *testing.T) {
	w, base := autoWorld(t)
	if err := w.repo.Undelegate(t.Context(), "meter", bubbleStart); err != nil {
		t.Fatal(err)
	}
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "auto-1")
		settle(time.Minute)
		if got, _ := d.runtime.answer(); got != 1 || !w.event(trust.ClassDisagreement) || w.last().FailureClass != string(ota.Rejected) {
			t.Errorf("answers %v; %+v", got, w.got().events)
		}
		w.want(3, "2")
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Errorf("the next honest update: %v, %v", got, err)
		}
	})
}
