package controlplane

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// TestConformance runs the opencontainers conformance programme for
// distribution, whose path SKEIN_OCI_CONFORMANCE names: it cannot be had from a
// module proxy. TestDistributionCases asks its questions by name.
func TestConformance(t *testing.T) {
	program := os.Getenv("SKEIN_OCI_CONFORMANCE")
	if program == "" {
		t.Skip("SKEIN_OCI_CONFORMANCE names no programme: build it from github.com/opencontainers/distribution-spec/conformance")
	}
	r := start(t, testConfig(t.TempDir()))
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+r.Addrs().HTTP.String(), "OCI_TLS=disabled", "OCI_USERNAME=skein", "OCI_PASSWORD="+r.AdminToken(),
		"OCI_VERSION=1.1", "OCI_DATA_SHA512=false", "OCI_RESULTS_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%d cases passed, %d did not", strings.Count(string(out), ": Pass\n"), strings.Count(string(out), ": FAIL\n"))
}

func TestDistributionCases(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	const repo = "/v2/conformance/repo1"
	layer, config := []byte("layer of the conformance cases"), []byte("{}")
	digest := func(b []byte) string { return string(ota.DigestOf(b)) }
	image := func(note, subject string) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example.%s","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},`+
			`"layers":[{"mediaType":"text/plain","digest":%q,"size":%d}]%s}`, manifest.MediaManifest, note, digest(config), digest(layer), len(layer), subject)
	}
	one := image("one", "")
	two := image("two", fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d}`, manifest.MediaManifest, digest(one), len(one)))
	none := "sha256:" + strings.Repeat("0", 64)
	var session string
	for _, c := range []struct {
		name, method, path, kind string
		body                     []byte
		want                     int
		says                     string // in the body or a header
	}{
		{"ping", "GET", "/v2/", "", nil, 200, ""},
		{"blob get missing", "GET", repo + "/blobs/" + none, "", nil, 404, "BLOB_UNKNOWN"},
		{"blob head bad digest", "HEAD", repo + "/blobs/sha256:short", "", nil, 400, ""},
		{"blob post only", "POST", repo + "/blobs/uploads/?digest=" + digest(config), "application/octet-stream", config, 201, repo + "/blobs/" + digest(config)},
		{"blob post wrong digest", "POST", repo + "/blobs/uploads/?digest=" + none, "application/octet-stream", config, 400, "DIGEST_INVALID"},
		{"blob mount from another repository", "POST", "/v2/conformance/repo2/blobs/uploads/?mount=" + digest(config) + "&from=conformance/repo1", "", nil, 201, "conformance/repo2"},
		{"blob mount missing", "POST", repo + "/blobs/uploads/?mount=" + none, "", nil, 202, "Location"},
		{"blob post, to be patched", "POST", repo + "/blobs/uploads/", "", nil, 202, "Location"},
		{"blob patch chunked", "PATCH", "SESSION", "application/octet-stream 0-9", layer[:10], 202, "0-9"},
		{"blob patch out of order", "PATCH", "SESSION", "application/octet-stream 15-20", layer[15:21], 416, ""},
		{"blob upload status", "GET", "SESSION", "", nil, 204, "0-9"},
		{"blob put last chunk", "PUT", "SESSION?digest=" + digest(layer), "application/octet-stream", layer[10:], 201, digest(layer)},
		{"blob get", "GET", repo + "/blobs/" + digest(layer), "", nil, 200, string(layer)},
		{"blob of one repository in another", "GET", "/v2/conformance/repo2/blobs/" + digest(layer), "", nil, 404, "BLOB_UNKNOWN"},
		{"manifest get missing", "GET", repo + "/manifests/none", "", nil, 404, "MANIFEST_UNKNOWN"},
		{"manifest with missing subject", "PUT", repo + "/manifests/" + digest(two), manifest.MediaManifest, two, 201, "Oci-Subject"},
		{"manifest put by tag", "PUT", repo + "/manifests/v1", manifest.MediaManifest, one, 201, digest(one)},
		{"manifest put by digest", "PUT", repo + "/manifests/" + digest(one), manifest.MediaManifest, one, 201, digest(one)},
		{"manifest put bad digest", "PUT", repo + "/manifests/" + none, manifest.MediaManifest, one, 400, "DIGEST_INVALID"},
		{"manifest put second tag", "PUT", repo + "/manifests/v2", manifest.MediaManifest, two, 201, ""},
		{"manifest get by tag", "GET", repo + "/manifests/v1", "", nil, 200, string(one)},
		{"manifest head by digest", "HEAD", repo + "/manifests/" + digest(one), "", nil, 200, digest(one)},
		{"tags list", "GET", repo + "/tags/list", "", nil, 200, `["v1","v2"]`},
		{"tags list one at a time", "GET", repo + "/tags/list?n=1", "", nil, 200, `last=v1`},
		{"tags list after one", "GET", repo + "/tags/list?last=v1", "", nil, 200, `["v2"]`},
		{"tags list of no repository", "GET", "/v2/conformance/none/tags/list", "", nil, 404, "NAME_UNKNOWN"},
		{"referrers", "GET", repo + "/referrers/" + digest(one), "", nil, 200, "application/vnd.example.two"},
		{"referrers filtered", "GET", repo + "/referrers/" + digest(one) + "?artifactType=application/vnd.example.one", "", nil, 200, `"manifests":[]`},
		{"referrers of nothing", "GET", repo + "/referrers/" + none, "", nil, 200, `"manifests":[]`},
		{"referrers bad digest", "GET", repo + "/referrers/x", "", nil, 400, "DIGEST_INVALID"},
		{"tag delete", "DELETE", repo + "/manifests/v2", "", nil, 202, ""},
		{"tag delete atomic", "GET", repo + "/manifests/v2", "", nil, 404, "MANIFEST_UNKNOWN"},
		{"manifest delete", "DELETE", repo + "/manifests/" + digest(two), "", nil, 202, ""},
		{"manifest delete atomic", "GET", repo + "/referrers/" + digest(one), "", nil, 200, `"manifests":[]`},
		{"manifest delete missing", "DELETE", repo + "/manifests/" + digest(two), "", nil, 404, "MANIFEST_UNKNOWN"},
		{"blob delete", "DELETE", repo + "/blobs/" + digest(layer), "", nil, 202, ""},
		{"blob delete atomic", "HEAD", repo + "/blobs/" + digest(layer), "", nil, 404, ""},
		{"blob delete missing", "DELETE", repo + "/blobs/" + digest(layer), "", nil, 404, "BLOB_UNKNOWN"},
		{"push to a name that is none", "POST", "/v2/UPPER/case/blobs/uploads/", "", nil, 400, "NAME_INVALID"},
		{"a path of no API", "GET", "/v2/conformance/repo1/else", "", nil, 404, "UNSUPPORTED"},
	} {
		kind, span, _ := strings.Cut(c.kind, " ")
		status, h, body := r.ask(t, c.method, strings.Replace(c.path, "SESSION", session, 1), kind, span, c.body)
		if status != c.want || !strings.Contains(fmt.Sprint(h)+body, c.says) {
			t.Errorf("%s: %d %v %s, want %d with %q", c.name, status, h, body, c.want, c.says)
		}
		if at := h.Get("Location"); c.method != http.MethodPut && strings.Contains(at, "/uploads/") {
			session = at
		}
	}
}
