package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

// onnxOf is the model file of a release.
func (s *server) onnxOf(r *releasev1.Release) ota.Digest {
	s.t.Helper()
	m, err := s.op.Models.GetModel(s.t.Context(), &artifactv1.GetModelRequest{Model: "meter"})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range m.GetVersions() {
		if v.GetVersion() == r.GetModelVersion() {
			return ota.Digest(v.GetOnnx().GetDigest())
		}
	}
	s.t.Fatalf("release %s has no model", r.GetVersion())
	return ""
}

// dropPatches takes from the server's disk what would make the model file of a
// release out of an older one, so that devices must fetch the file itself.
func (s *server) dropPatches(r *releasev1.Release) {
	s.t.Helper()
	for _, target := range r.GetTargets() {
		raw, err := os.ReadFile(s.blobFile(ota.Digest(target.GetManifestDigest())))
		if err != nil {
			s.t.Fatal(err)
		}
		m, err := manifest.ParseManifest(raw)
		if err != nil {
			s.t.Fatal(err)
		}
		weights, _, err := m.Weights()
		if err != nil {
			s.t.Fatal(err)
		}
		savings, err := weights.Savings()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, p := range savings.Patches {
			if err := os.Remove(s.blobFile(p.Digest)); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// TestDamagedBlobs: what the server's disk does to a blob never runs, is told
// by the device, and leaves what runs alone; once mended, the same release is
// installed when it is assigned again, and so is the next one.
func TestDamagedBlobs(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	other := s.release("other", version{bias: 50, pad: 64 << 10})
	for _, c := range []struct {
		name, failure string
		damage        func(path string, whole []byte) error
	}{
		{"one bit", "digest", func(path string, whole []byte) error {
			whole[len(whole)/2] ^= 1
			return os.WriteFile(path, whole, 0o600)
		}},
		{"another blob in its place", "digest", func(path string, whole []byte) error {
			wrong, err := os.ReadFile(s.blobFile(s.onnxOf(other)))
			if err == nil {
				err = os.WriteFile(path, wrong[:len(whole)], 0o600)
			}
			return err
		}},
		{"longer than signed, and wrong", "digest", func(path string, whole []byte) error {
			return os.WriteFile(path, append([]byte("x"), whole...), 0o600)
		}},
		{"gone", "does not have the blob", func(path string, _ []byte) error { return os.Remove(path) }},
	} {
		if testing.Short() && c.name != "one bit" {
			continue // each costs the waits between attempts
		}
		bad, good := "bad-"+c.name[:3], "good-"+c.name[:3]
		r := s.release(bad, version{bias: 10, pad: 32 << 10})
		s.dropPatches(r)
		path := s.blobFile(s.onnxOf(r))
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.damage(path, append([]byte(nil), whole...)); err != nil {
			t.Fatal(err)
		}
		running := d.status().RunningName
		s.assign(d.id, bad)
		until(t, c.name+": a failure that names it", func() bool {
			v := s.get(d.id)
			return v.GetPhase() == "failed" && v.GetFailureClass() == "FAILED" && strings.Contains(v.GetFailure(), c.failure)
		})
		if now := s.get(d.id).GetRunningReleaseName(); now != running {
			t.Errorf("%s: runs %s, ran %s", c.name, now, running)
		}
		d.serves()
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		s.settle(d, bad) // assigned once more, it is tried once more
		s.release(good, version{bias: 11, pad: 1})
		s.settle(d, good)
		d.serves()
	}
	s.kept(d)
}

// TestTruncatedBlob: a blob that ends early is waited for, not taken; when it
// is whole again the update goes on where it stood.
func TestTruncatedBlob(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	r := s.release("v2", version{bias: 2, pad: 256 << 10})
	s.dropPatches(r)
	path := s.blobFile(s.onnxOf(r))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(whole)/2)); err != nil {
		t.Fatal(err)
	}
	s.assign(d.id, "v2")
	until(t, "the device to stand in fetch", func() bool {
		v := s.get(d.id)
		return v.GetPhase() == "updating" && v.GetStep() == "fetch"
	})
	d.serves()
	if n := d.app.bias.Load(); n != 1 {
		t.Errorf("the model of bias %d answers", n)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.settled(d, "v2")
	if got, most := d.status().BytesFetched, int64(len(whole)+64<<10); got > most {
		t.Errorf("fetched %d bytes for %d: what had arrived was fetched again", got, len(whole))
	}
	d.serves()
	s.kept(d)
}

// TestWrongTarget: a release for other hardware is rejected by the device, not
// retried, and the next one is installed.
func TestWrongTarget(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	s.release("orin", version{bias: 9, targets: []string{"linux/arm64;sm=8.7;trt=10.3.0"}})
	s.assign(d.id, "orin")
	until(t, "REJECTED at the control plane", func() bool {
		v := s.get(d.id)
		return v.GetPhase() == "failed" && v.GetFailureClass() == "REJECTED" && strings.Contains(v.GetFailure(), "made for linux/arm64")
	})
	// Reports overtake events: the last one of the way back is that of the first step.
	until(t, "the events of the way back", func() bool { return s.count(d.id, "step", "", "undone") == 1 })
	steps := s.count(d.id, "step", "", "")
	checks := s.metric("skein_fleet_ingest_seconds_count", "report")
	until(t, "several reports later", func() bool { return s.metric("skein_fleet_ingest_seconds_count", "report") > checks+2 })
	if n := s.count(d.id, "step", "", ""); n != steps {
		t.Errorf("%d steps, then %d: the rejected release was tried again", steps, n)
	}
	d.serves()
	s.release("v2", version{bias: 2})
	s.settle(d, "v2")
	d.serves()
}

// TestForeignBlob: a device reads the blobs of its releases and no others.
func TestForeignBlob(t *testing.T) {
	t.Parallel()
	s := start(t)
	own, foreign := s.release("v1", version{bias: 1}), s.release("v2", version{bias: 2})
	d := s.boot("v1")
	path := func(r *releasev1.Release) string { return "/v2/skein/blobs/" + string(s.onnxOf(r)) }
	if status, _ := s.fetch(d.opts.Identity, path(own)); status != 200 {
		t.Errorf("own blob: %d", status)
	}
	for _, p := range []string{path(foreign), "/v2/skein/blobs/" + foreign.GetDigest(), "/v2/skein/blobs/sha256:" + zeros} {
		if status, body := s.fetch(d.opts.Identity, p); status != 403 || !strings.Contains(body, "no release of this device") {
			t.Errorf("%s: %d %s", p, status, body)
		}
	}
	if status, body := s.fetch(nil, path(own)); status != 401 {
		t.Errorf("without a certificate: %d %s", status, body)
	}
	s.settle(d, "v2")
	if status, _ := s.fetch(d.opts.Identity, path(foreign)); status != 200 {
		t.Errorf("blob of the release assigned now: %d", status)
	}
}
