package e2e

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/trust"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
)

type tokenTransport struct{ token string }

func (b tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func (s *server) person() *http.Client { return &http.Client{Transport: tokenTransport{s.token}} }

func (s *server) releases() releasev1connect.ReleaseServiceClient {
	return releasev1connect.NewReleaseServiceClient(s.person(), s.http)
}

// export assigns a release to devices and writes a bundle for them.
func (s *server) export(name string, devices ...*device) string {
	s.t.Helper()
	req := &releasev1.ExportReleaseRequest{Release: "meter@" + name}
	for _, d := range devices {
		s.assign(d.id, name)
		req.Devices = append(req.Devices, d.id)
	}
	resp, err := s.releases().ExportRelease(s.t.Context(), req)
	if err != nil {
		s.t.Fatal(err)
	}
	plan, err := bundle.PlanOf(resp.GetHead())
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(s.t.TempDir(), name+".skein"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := plan.Write(s.t.Context(), f, 0, fetch.HTTP(s.person(), s.http), nil); err != nil {
		s.t.Fatal(err)
	}
	return f.Name()
}

// apply installs from a bundle and wants it to run.
func (d *device) apply(path, name string) {
	d.t.Helper()
	got, err := d.agent.Load().ApplyBundle(d.t.Context(), path, false)
	if err != nil || got.Outcome != "runs" {
		d.t.Fatalf("%+v, %v; %s %q", got, err, d.status().Summary, d.status().Reasons)
	}
	if st := d.status(); st.RunningName != "meter@"+name || st.Link == "connected" {
		d.t.Errorf("runs %s, link %s", st.RunningName, st.Link)
	}
}

// refuses wants a bundle to be refused for a reason, with nothing changed.
func (d *device) refuses(what, path, class, says string) {
	d.t.Helper()
	before := d.status()
	_, err := d.agent.Load().ApplyBundle(d.t.Context(), path, false)
	if err == nil || trust.AttackClass(err) != class || !strings.Contains(err.Error(), says) {
		d.t.Errorf("%s: %v, want %q %q", what, err, class, says)
	}
	after := d.status()
	if after.RunningName != before.RunningName || after.Held != before.Held {
		d.t.Errorf("%s: runs %s at %s, was %s at %s", what, after.RunningName, after.Held, before.RunningName, before.Held)
	}
}

// TestAirGap: a device whose network is gone for good is brought from release
// to release by a file alone, refuses what is old, expired, altered or not for
// it, and its receipt tells the control plane.
func TestAirGap(t *testing.T) {
	t.Parallel()
	var shift atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	s := start(t, func(c *controlplane.Config) { c.Now = now })
	d := s.enroll(func(o *agent.EnrollOptions) { o.Now = now })
	other := s.enroll()
	s.release("v1", version{bias: 1, pad: 300_000})
	first := s.export("v1", d)
	foreign := s.export("v1", other)
	s.release("v2", version{bias: 2, pad: 300_000})
	second := s.export("v2", d)
	s.stop() // no server, no network, from here on
	d.run()

	d.apply(first, "v1")
	d.refuses("a bundle for another device", foreign, "", "holds nothing for this device")
	d.apply(second, "v2")
	d.serves()
	d.refuses("an older bundle", first, trust.ClassRollback, "rollback")
	if d.condition("trust-refused") == "" {
		t.Errorf("no condition names the attack: %v", d.status().Conditions)
	}
	got, err := d.agent.Load().ApplyBundle(t.Context(), second, false)
	if err != nil || got.Outcome != "runs" {
		t.Errorf("the same bundle again: %+v, %v", got, err)
	}

	// What it says of itself travels back on the stick.
	id, receipt, err := d.agent.Load().Receipt()
	if err != nil {
		t.Fatal(err)
	}
	d.stop()
	s.run()
	taken, err := s.releases().ImportReceipts(t.Context(), &releasev1.ImportReceiptsRequest{Receipts: []*releasev1.Receipt{{Device: id, Report: receipt}}})
	if err != nil || taken.GetResults()[0].GetError() != "" || taken.GetResults()[0].GetRunning() != "meter@v2" {
		t.Fatalf("%v, %v", taken, err)
	}
	if !s.runs(d.id, "v2") {
		t.Errorf("the control plane does not know: %v", s.get(d.id))
	}
	again, err := s.releases().ImportReceipts(t.Context(), &releasev1.ImportReceiptsRequest{Receipts: []*releasev1.Receipt{{Device: id, Report: receipt}}})
	if err != nil || again.GetResults()[0].GetError() != "" || !again.GetResults()[0].GetKnown() {
		t.Errorf("the same receipt again: %v, %v", again, err)
	}
	s.release("v3", version{bias: 3, pad: 300_000})
	third := s.export("v3", d)
	s.stop()

	// Nine days later its metadata has expired.
	shift.Store(int64(9 * 24 * time.Hour))
	d.run()
	d.refuses("an expired bundle", third, trust.ClassFreeze, "freeze")
	d.serves()
	d.stop()
	s.run()
	fourth := s.export("v3", d)
	altered := spoil(t, fourth)
	s.stop()
	d.run()
	d.refuses("an altered bundle", altered, trust.ClassWrongHash, "")
	d.refuses("a file that is none", os.Args[0], "", "not a bundle")
	d.apply(fourth, "v3")
	d.serves()
}

// spoil copies a bundle with one byte of its largest layer changed.
func spoil(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	largest := b.Info.Layers[0]
	for _, l := range b.Info.Layers {
		if l.Size > largest.Size {
			largest = l
		}
	}
	at, _ := b.At(largest.Digest)
	layer := make([]byte, at.Size())
	if _, err := at.ReadAt(layer, 0); err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(raw, layer)
	if i < 0 {
		t.Fatal(errors.New("the layer is not in the file"))
	}
	raw[i+int(largest.Size/2)] ^= 1
	name := filepath.Join(t.TempDir(), "altered.skein")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
