package controlplane

import (
	"bytes"
	"crypto"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/wire"
)

func (r *running) releases() releasev1connect.ReleaseServiceClient {
	return releasev1connect.NewReleaseServiceClient(r.client(), r.url())
}

// export writes a bundle as the command line does.
func (r *running) export(t *testing.T, req *releasev1.ExportReleaseRequest) (string, *bundle.Plan) {
	t.Helper()
	resp, err := r.releases().ExportRelease(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := bundle.PlanOf(resp.GetHead())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "x.skein"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := plan.Write(t.Context(), f, 0, fetch.HTTP(r.client(), r.url()), nil); err != nil {
		t.Fatal(err)
	}
	return f.Name(), plan
}

// take imports a bundle into r: the head, then what is missing.
func (r *running) take(t *testing.T, path string) (*releasev1.ImportReleaseResponse, error) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	head, err := b.Head()
	if err != nil {
		t.Fatal(err)
	}
	req := &releasev1.ImportReleaseRequest{HeadDigest: r.upload(t, head), Check: true}
	got, err := r.releases().ImportRelease(t.Context(), req)
	if err != nil {
		return nil, err
	}
	for _, d := range got.GetMissing() {
		size, _ := b.Size(ota.Digest(d))
		layer, err := b.Small(ota.Digest(d), size)
		if err != nil {
			t.Fatal(err)
		}
		r.upload(t, layer)
	}
	req.Check = false
	return r.releases().ImportRelease(t.Context(), req)
}

func (r *running) count(t *testing.T) int {
	t.Helper()
	all, err := r.releases().ListReleases(t.Context(), &releasev1.ListReleasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return len(all.GetReleases())
}

func TestReleaseIsAttested(t *testing.T) {
	cfg := testConfig(t.TempDir())
	r := start(t, cfg)
	enrolled(t, r)
	rel := r.release(t, "attest", 0)
	list, err := r.releases().ListAttestations(t.Context(), &releasev1.ListAttestationsRequest{Release: "meter@1"})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, a := range list.GetAttestations() {
		kinds[a.GetArtifactType()+" "+a.GetBuildType()] = a.GetDocumentDigest()
	}
	if len(kinds) != 3 || list.GetRepository() != "meter" || list.GetTarget() != "releases/meter/1" {
		t.Fatalf("%v", list)
	}
	_, _, bom := r.do(t, http.MethodGet, "/v2/meter/blobs/"+kinds[attest.MediaBOM+" "], "", nil)
	files, err := attest.CheckBOM([]byte(bom), ota.Digest(rel.GetDigest()))
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v\n%s", files, err, bom)
	}
	_, _, raw := r.do(t, http.MethodGet, "/v2/meter/blobs/"+kinds[attest.MediaEnvelope+" "+attest.BuildRelease], "", nil)
	signer, err := r.trust.DirectorSigner()
	if err != nil {
		t.Fatal(err)
	}
	st, err := attest.Verify([]crypto.PublicKey{signer.Public()}, []byte(raw), ota.Digest(rel.GetDigest()))
	if err != nil {
		t.Fatal(err)
	}
	p := st.Predicate
	if !p.RunDetails.Byproducts[0].Is(ota.DigestOf([]byte(bom))) || p.BuildDefinition.ExternalParameters["model"] != "meter@1" || p.RunDetails.Builder.ID != "spiffe://skein.test/skeind" {
		t.Errorf("%+v", p)
	}
	// And as anybody sees it.
	_, _, body := r.do(t, http.MethodGet, "/v2/meter/referrers/"+rel.GetDigest(), "", nil)
	var refs manifest.Index
	if err := json.Unmarshal([]byte(body), &refs); err != nil || len(refs.Manifests) != 3 {
		t.Errorf("%s, %v", body, err)
	}
	if status, _, _ := r.do(t, http.MethodDelete, "/v2/meter/manifests/"+string(refs.Manifests[0].Digest), "", nil); status != http.StatusForbidden {
		t.Errorf("an attestation of skein was deleted: %d", status)
	}
	// A restart finds all of it and makes none anew.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, cfg)
	list2, err := again.releases().ListAttestations(t.Context(), &releasev1.ListAttestationsRequest{Release: "meter@1"})
	if err != nil || len(list2.GetAttestations()) != 3 {
		t.Errorf("after a restart: %v, %v", list2, err)
	}
}

func TestBundleFromSiteToSite(t *testing.T) {
	a := start(t, testConfig(t.TempDir()))
	enrolled(t, a)
	one := a.release(t, "one", 0)
	first, _ := a.export(t, &releasev1.ExportReleaseRequest{Release: "meter@1"})
	two := a.release(t, "two", 0)
	second, plan := a.export(t, &releasev1.ExportReleaseRequest{Release: "meter@2"})

	// oras reads it as an image layout.
	layout, err := oci.NewFromTar(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if desc, err := layout.Resolve(t.Context(), "2"); err != nil || string(desc.Digest) != two.GetDigest() {
		t.Errorf("oras: %v, %v", desc, err)
	}
	b := start(t, testConfig(t.TempDir()))
	if _, err := oras.Copy(t.Context(), layout, "2", orasRepo(t, b.Addrs().HTTP.String()+"/from/tar", b.AdminToken()), "2", oras.DefaultCopyOptions); err != nil {
		t.Errorf("oras copies the bundle: %v", err)
	}

	if _, err := b.take(t, second); code(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "not trusted here") {
		t.Errorf("a stranger's bundle: %v", err)
	}
	if b.count(t) != 0 {
		t.Error("a refused bundle left a release")
	}
	pubs, err := a.releases().ListPublishers(t.Context(), &releasev1.ListPublishersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.releases().AddPublisher(t.Context(), &releasev1.AddPublisherRequest{Name: "lyon", Root: []byte("{}")}); code(err) != connect.CodeInvalidArgument {
		t.Errorf("a root that is none: %v", err)
	}
	if _, err := b.releases().AddPublisher(t.Context(), &releasev1.AddPublisherRequest{Name: "lyon", Root: pubs.GetOwnRoot()}); err != nil {
		t.Fatal(err)
	}
	got, err := b.take(t, second)
	if err != nil {
		t.Fatal(err)
	}
	if got.GetRelease().GetDigest() != two.GetDigest() || got.GetPublisher() != "lyon" || got.GetVerified() != 2 || got.GetExisting() || len(got.GetMissing()) != 0 {
		t.Errorf("%v", got)
	}
	if again, err := b.take(t, second); err != nil || !again.GetExisting() || b.count(t) != 1 {
		t.Errorf("the same again: %v, %v", again, err)
	}
	if _, err := b.take(t, first); code(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "rollback") {
		t.Errorf("an older bundle: %v", err)
	}
	if info, err := b.trust.Target("releases/meter/2"); err != nil || string(info.Digest) != two.GetDigest() || info.Custom.Counter != 2 {
		t.Errorf("the site does not list it: %+v, %v", info, err)
	}
	for _, l := range plan.Info.Layers {
		if status, _, body := b.do(t, http.MethodGet, "/v2/meter/blobs/"+string(l.Digest), "", nil); status != http.StatusOK || ota.DigestOf([]byte(body)) != l.Digest {
			t.Errorf("layer %s: %d", l.Digest, status)
		}
	}
	// The site carries it on under its own word.
	onwards, _ := b.export(t, &releasev1.ExportReleaseRequest{Release: "meter@2"})
	c := start(t, testConfig(t.TempDir()))
	theirs, err := b.releases().ListPublishers(t.Context(), &releasev1.ListPublishersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.releases().AddPublisher(t.Context(), &releasev1.AddPublisherRequest{Name: "paris", Root: theirs.GetOwnRoot()}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.take(t, onwards); err != nil || got.GetRelease().GetDigest() != two.GetDigest() || got.GetVerified() != 1 {
		t.Errorf("from site to site to site: %v, %v", got, err)
	}
	// A release of its own is never overwritten.
	d := start(t, testConfig(t.TempDir()))
	enrolled(t, d)
	mine := d.release(t, "mine", 0)
	if _, err := d.releases().AddPublisher(t.Context(), &releasev1.AddPublisherRequest{Name: "lyon", Root: pubs.GetOwnRoot()}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.take(t, first); code(err) != connect.CodeAlreadyExists {
		t.Errorf("over a release of its own: %v", err)
	}
	if now, err := d.releases().GetRelease(t.Context(), &releasev1.GetReleaseRequest{Release: "meter@1"}); err != nil || now.GetRelease().GetDigest() != mine.GetDigest() || one.GetDigest() == mine.GetDigest() {
		t.Errorf("%v, %v", now, err)
	}
}

func TestExportForDevices(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	rel := r.release(t, "one", 0)
	if _, err := r.releases().ExportRelease(t.Context(), &releasev1.ExportReleaseRequest{Release: "meter@1", Devices: []string{b.id}}); code(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "assign") {
		t.Errorf("a device that is to run nothing: %v", err)
	}
	if _, err := r.fleetClient().AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: b.id, Release: "meter@1"}); err != nil {
		t.Fatal(err)
	}
	path, plan := r.export(t, &releasev1.ExportReleaseRequest{Release: "meter@1", Selectors: []string{"site=lyon"}})
	if len(plan.Info.Targets) != 1 || len(plan.Info.Layers) != 2 {
		t.Errorf("%+v", plan.Info)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := bundle.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if d := f.Devices(); len(d) != 1 || d[0] != b.id {
		t.Errorf("devices %v", d)
	}
	if string(f.Info.Index.Digest) != rel.GetDigest() {
		t.Errorf("%+v", f.Info)
	}
	for _, bad := range []*releasev1.ExportReleaseRequest{
		{Release: "meter@9"}, {Release: "meter@1", Devices: []string{"nobody"}}, {Release: "meter@1", Selectors: []string{"site=mars"}}, {Release: "meter@1", Targets: []string{"linux/arm64;sm=9.9"}},
	} {
		if _, err := r.releases().ExportRelease(t.Context(), bad); err == nil {
			t.Errorf("%v was exported", bad)
		}
	}
	// What the device says afterwards comes back by hand.
	signed, err := f.Desired(b.id)
	if err != nil {
		t.Fatal(err)
	}
	director, err := r.trust.DirectorSigner()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := trust.Verify([]crypto.PublicKey{director.Public()}, wire.AADDesired, signed)
	if err != nil {
		t.Fatal(err)
	}
	var d wire.Desired
	if err := wire.Unmarshal(payload, &d); err != nil {
		t.Fatal(err)
	}
	b.take(t, d)
	full := b.signedReport(t, &wire.Reported{Phase: wire.PhaseIdle, Running: ota.Digest(rel.GetDigest()).Sum(), RunningCounter: 1, HighestCounter: 1, Target: "linux/arm64;sm=8.7"})
	result := func(report []byte) *releasev1.ReceiptResult {
		t.Helper()
		got, err := r.releases().ImportReceipts(t.Context(), &releasev1.ImportReceiptsRequest{Receipts: []*releasev1.Receipt{{Device: b.id, Report: report}}})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetResults()[0]
	}
	if got := result(full); got.GetError() != "" || got.GetRunning() != "meter@1" {
		t.Errorf("%v", got)
	}
	if got := result(full); !got.GetKnown() || got.GetError() != "" || got.GetRunning() != "meter@1" {
		t.Errorf("the same receipt again: %v", got)
	}
	full[len(full)-1] ^= 1
	if got := result(full); !strings.Contains(got.GetError(), "signature") {
		t.Errorf("an altered receipt: %v", got)
	}
}
