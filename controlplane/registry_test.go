package controlplane

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	plain "github.com/google/go-containerregistry/pkg/registry"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// do makes one call as the admin and returns status, header and body.
func (r *running) do(t *testing.T, method, path, kind string, body []byte) (int, http.Header, string) {
	t.Helper()
	return r.ask(t, method, path, kind, "", body)
}

// ask is do with a Content-Range.
func (r *running) ask(t *testing.T, method, path, kind, span string, body []byte) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if span != "" {
		req.Header.Set("Content-Range", span)
	}
	resp, err := r.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// orasRepo is a repository as the program oras sees it.
func orasRepo(t *testing.T, ref, password string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	repo.Client = &auth.Client{Client: http.DefaultClient, Credential: auth.StaticCredential(repo.Reference.Registry, auth.Credential{Username: "skein", Password: password})}
	return repo
}

// A release goes to a plain registry, with all that refers to it, and back under
// another name: it stays the same to the byte.
func TestReleaseThroughForeignRegistries(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	enrolled(t, r)
	rel := r.release(t, "registry", 0)
	foreign := httptest.NewServer(plain.New(plain.Logger(log.New(io.Discard, "", 0)), plain.WithReferrersSupport(true)))
	defer foreign.Close()
	ours, theirs := r.Addrs().HTTP.String(), strings.TrimPrefix(foreign.URL, "http://")

	there := orasRepo(t, theirs+"/lyon/meter", "")
	if _, err := oras.ExtendedCopy(t.Context(), orasRepo(t, ours+"/"+rel.GetName(), r.AdminToken()), rel.GetVersion(), there, "v1", oras.DefaultExtendedCopyOptions); err != nil {
		t.Fatal(err)
	}
	back := orasRepo(t, ours+"/mirror/lyon/meter", r.AdminToken())
	desc, err := oras.Copy(t.Context(), there, "v1", back, "again", oras.DefaultCopyOptions)
	if err != nil {
		t.Fatal(err)
	}
	if string(desc.Digest) != rel.GetDigest() {
		t.Errorf("came back as %s, went as %s", desc.Digest, rel.GetDigest())
	}
	// And as oras alone sees it, with all that hangs below.
	got, err := oras.ExtendedCopy(t.Context(), back, "again", orasRepo(t, theirs+"/second", ""), "v2", oras.DefaultExtendedCopyOptions)
	if err != nil || string(got.Digest) != rel.GetDigest() {
		t.Errorf("%v, %v", got, err)
	}
	if status, _, body := r.do(t, http.MethodGet, "/v2/mirror/lyon/meter/tags/list", "", nil); status != http.StatusOK || !strings.Contains(body, `"again"`) {
		t.Errorf("tags: %d %s", status, body)
	}
}

func TestRegistryKeepsReleasesAsTheyAre(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	enrolled(t, r)
	rel := r.release(t, "registry", 0)
	base := "/v2/" + rel.GetName() + "/manifests/"
	_, _, raw := r.do(t, http.MethodGet, base+rel.GetVersion(), "", nil)
	empty := r.upload(t, []byte("{}"))
	config := manifest.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: ota.Digest(empty), Size: 2}
	type sealed struct {
		manifest.Manifest
		Subject *manifest.Descriptor `json:"subject,omitempty"`
	}
	refers := func(subject string) []byte {
		m := sealed{Manifest: manifest.Manifest{SchemaVersion: 2, MediaType: manifest.MediaManifest, ArtifactType: "application/vnd.example.signature", Config: config, Layers: []manifest.Descriptor{config}}}
		if subject != "" {
			m.Subject = &manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: ota.Digest(subject), Size: int64(len(raw))}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	note := refers(rel.GetDigest())
	at := string(ota.DigestOf(note))
	absent := bytes.ReplaceAll(note, []byte(config.Digest.Hex()), []byte(strings.Repeat("0", 64)))
	for _, c := range []struct {
		what, method, path, kind string
		body                     []byte
		want                     int
		says                     string
	}{
		{"a push over a release", http.MethodPut, base + rel.GetVersion(), manifest.MediaIndex, []byte(raw), http.StatusForbidden, "by a subject and without a tag"},
		{"a manifest of its own beside a release", http.MethodPut, base + string(ota.DigestOf(refers(""))), manifest.MediaManifest, refers(""), http.StatusForbidden, "by a subject"},
		{"a deleted release", http.MethodDelete, base + rel.GetDigest(), "", nil, http.StatusMethodNotAllowed, "immutable"},
		{"a deleted version", http.MethodDelete, base + rel.GetVersion(), "", nil, http.StatusMethodNotAllowed, "immutable"},
		{"a push to a name that may become a release", http.MethodPut, "/v2/other/manifests/1", manifest.MediaManifest, note, http.StatusForbidden, "mirror/other"},
		{"a name that is none", http.MethodPut, "/v2/Mirror/x/manifests/1", manifest.MediaManifest, note, http.StatusBadRequest, "NAME_INVALID"},
		{"another digest", http.MethodPut, base + rel.GetDigest(), manifest.MediaManifest, note, http.StatusBadRequest, "DIGEST_INVALID"},
		{"another type", http.MethodPut, base + at, manifest.MediaIndex, note, http.StatusBadRequest, "MANIFEST_INVALID"},
		{"an unknown type", http.MethodPut, "/v2/mirror/x/manifests/1", "text/plain", []byte(`{"schemaVersion":2}`), http.StatusBadRequest, "MANIFEST_INVALID"},
		{"a blob that is not here", http.MethodPut, base + string(ota.DigestOf(absent)), manifest.MediaManifest, absent, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN"},
		{"a manifest without end", http.MethodPut, base + at, manifest.MediaManifest, make([]byte, 5<<20), http.StatusRequestEntityTooLarge, "SIZE_INVALID"},
		{"what refers to a release", http.MethodPut, base + at, manifest.MediaManifest, note, http.StatusCreated, ""},
		{"the same again", http.MethodPut, base + at, manifest.MediaManifest, note, http.StatusCreated, ""},
		{"its blobs in a repository that never had them", http.MethodGet, "/v2/mirror/x/blobs/" + empty, "", nil, http.StatusNotFound, "BLOB_UNKNOWN"},
	} {
		status, h, body := r.do(t, c.method, c.path, c.kind, c.body)
		if status != c.want || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s, want %d with %q", c.what, status, body, c.want, c.says)
		}
		if status == http.StatusCreated && h.Get("OCI-Subject") != rel.GetDigest() {
			t.Errorf("%s: OCI-Subject %q", c.what, h.Get("OCI-Subject"))
		}
	}
	status, h, body := r.do(t, http.MethodGet, "/v2/"+rel.GetName()+"/referrers/"+rel.GetDigest()+"?artifactType=application/vnd.example.signature", "", nil)
	var list manifest.Index
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != http.StatusOK || len(list.Manifests) != 1 || string(list.Manifests[0].Digest) != at || h.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("referrers: %d %v %s, %v", status, h, body, err)
	}
	if status, _, _ := r.do(t, http.MethodDelete, base+at, "", nil); status != http.StatusAccepted {
		t.Errorf("delete what a person attached: %d", status)
	}
	if _, _, now := r.do(t, http.MethodGet, base+rel.GetDigest(), "", nil); now != raw {
		t.Errorf("the release changed: %s", now)
	}
}
