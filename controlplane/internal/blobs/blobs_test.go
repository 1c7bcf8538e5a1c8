package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
)

func data(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

type client struct {
	t    *testing.T
	base string
}

func serve(t *testing.T, h http.Handler) client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return client{t, s.URL}
}

// do sends one request; the header is key, value, key, value.
func (c client) do(method, target string, body []byte, header ...string) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+target, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	got, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return r, string(got)
}

func (c client) want(status int, method, target string, body []byte, header ...string) (*http.Response, string) {
	c.t.Helper()
	r, got := c.do(method, target, body, header...)
	if r.StatusCode != status {
		c.t.Fatalf("%s %s: %s, want %d: %s", method, target, r.Status, status, got)
	}
	return r, got
}

func (c client) begin() string {
	c.t.Helper()
	r, _ := c.want(202, "POST", "/v2/skein/blobs/uploads/", nil)
	return r.Header.Get("Location")
}

func TestChunkedUploadSurvivesRestart(t *testing.T) {
	files := slot.NewMem()
	b := data(1 << 20)
	d := ota.DigestOf(b)
	c := serve(t, New(Options{Files: files}).People())
	at := c.begin()
	c.want(202, "PATCH", at, b[:1000], "Content-Range", "0-999")

	c = serve(t, New(Options{Files: files}).People()) // restarted
	r, _ := c.want(204, "GET", at, nil)
	if got := r.Header.Get("Range"); got != "0-999" {
		t.Fatalf("range after restart %q", got)
	}
	// A chunk that does not continue is refused and told where to go on.
	r, _ = c.want(416, "PATCH", at, b[500:2000], "Content-Range", "500-1999")
	if got := r.Header.Get("Range"); got != "0-999" {
		t.Errorf("range of a refusal %q", got)
	}
	c.want(400, "PATCH", at, b[1000:2000], "Content-Range", "1000-1500")
	c.want(202, "PATCH", at, b[1000:2000], "Content-Range", "1000-1999")
	c.want(202, "PATCH", at, b[2000:3000]) // without a range it goes on where it stands
	r, _ = c.want(201, "PUT", at+"?digest="+string(d), b[3000:])
	if got := r.Header.Get("Docker-Content-Digest"); got != string(d) {
		t.Errorf("digest %q", got)
	}
	// The answer may be lost: the same PUT again is no error.
	c.want(201, "PUT", at+"?digest="+string(d), nil)
	c.want(404, "GET", at, nil)
	if _, got := c.want(200, "GET", r.Header.Get("Location"), nil); got != string(b) {
		t.Error("the blob is not what was sent")
	}
	if es, err := files.ReadDir(uploadDir); err != nil || len(es) != 0 {
		t.Errorf("uploads left behind: %v %v", es, err)
	}
}

func TestReadsAreRangesOfAnImmutableBlob(t *testing.T) {
	c := serve(t, New(Options{Files: slot.NewMem()}).People())
	b := data(5000)
	d := string(ota.DigestOf(b))
	c.want(201, "POST", "/v2/skein/blobs/uploads/?digest="+d, b)
	r, body := c.want(200, "HEAD", "/v2/skein/blobs/"+d, nil)
	if body != "" || r.ContentLength != 5000 || r.Header.Get("ETag") != `"`+d+`"` || !strings.Contains(r.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("HEAD: %v %q", r.Header, body)
	}
	r, body = c.want(206, "GET", "/v2/skein/blobs/"+d, nil, "Range", "bytes=100-199")
	if body != string(b[100:200]) || r.Header.Get("Content-Range") != "bytes 100-199/5000" {
		t.Errorf("range: %v", r.Header)
	}
	c.want(416, "GET", "/v2/skein/blobs/"+d, nil, "Range", "bytes=5000-")
	c.want(304, "GET", "/v2/skein/blobs/"+d, nil, "If-None-Match", `"`+d+`"`)
	c.want(404, "GET", "/v2/skein/blobs/"+string(ota.DigestOf([]byte("x"))), nil)
	c.want(400, "GET", "/v2/skein/blobs/sha256:xyz", nil)
	c.want(200, "GET", "/v2/", nil)
	c.want(405, "DELETE", "/v2/skein/blobs/"+d, nil)
	c.want(201, "POST", "/v2/skein/blobs/uploads/?mount="+d+"&from=other", nil)
}

func TestWrongDigestLosesNothing(t *testing.T) {
	c := serve(t, New(Options{Files: slot.NewMem()}).People())
	b := data(3000)
	at := c.begin()
	c.want(202, "PATCH", at, b)
	_, body := c.want(400, "PUT", at+"?digest="+string(ota.DigestOf([]byte("other"))), nil)
	if !strings.Contains(body, "DIGEST_INVALID") || !strings.Contains(body, "3000 bytes are kept") {
		t.Error(body)
	}
	c.want(400, "PUT", at, nil)
	c.want(201, "PUT", at+"?digest="+string(ota.DigestOf(b)), nil)
	c.want(404, "PATCH", "/v2/skein/blobs/uploads/..%2F..%2Fx", nil)
	c.want(404, "PATCH", "/v2/skein/blobs/uploads/0123", nil)
	at = c.begin()
	c.want(204, "DELETE", at, nil)
	c.want(404, "PATCH", at, b)
}

func TestFullDiskIsReportedAndResumable(t *testing.T) {
	files := slot.NewMem()
	c := serve(t, New(Options{Files: files}).People())
	b := data(900 << 10)
	at := c.begin()
	files.SetFree(600 << 10)
	r, body := c.want(507, "PATCH", at, b)
	if !strings.Contains(body, "disk is full") {
		t.Error(body)
	}
	var have int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "0-%d", &have); err != nil || have == 0 {
		t.Fatalf("range %q: nothing was kept", r.Header.Get("Range"))
	}
	have++
	files.SetFree(100 << 20)
	c.want(202, "PATCH", at, b[have:], "Content-Range", fmt.Sprintf("%d-%d", have, len(b)-1))
	c.want(201, "PUT", at+"?digest="+string(ota.DigestOf(b)), nil)
}

// A dead connection must not hold its upload: whoever continues it wins, and
// not a byte that was taken is asked for again.
func TestNewestRequestTakesOver(t *testing.T) {
	files := slot.NewMem()
	s := New(Options{Files: files})
	c := serve(t, s.People())
	b := data(64 << 10)
	at := c.begin()
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", c.base+at, pr)
	if err != nil {
		t.Fatal(err)
	}
	dead := make(chan int, 1)
	go func() {
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			dead <- 0
			return
		}
		r.Body.Close()
		dead <- r.StatusCode
	}()
	if _, err := pw.Write(b[:1000]); err != nil {
		t.Fatal(err)
	}
	id := at[strings.LastIndex(at, "/")+1:]
	for n := int64(0); n < 1000; { // until the server has them; it may take a moment
		if n, err = s.size(id); err != nil {
			t.Fatal(err)
		}
	}
	c.want(202, "PATCH", at, b[1000:], "Content-Range", fmt.Sprintf("1000-%d", len(b)-1))
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if code := <-dead; code == 202 {
		t.Error("the request that was taken over reports success")
	}
	c.want(201, "PUT", at+"?digest="+string(ota.DigestOf(b)), nil)
}

type grants map[string]ota.Digest

func (g grants) MayRead(_ context.Context, id string, d ota.Digest) error {
	if g[id] != d {
		return fmt.Errorf("blob %s is in no release of device %s", d.Short(), id)
	}
	return nil
}

func TestDevicesReadOnlyWhatTheirReleasesContain(t *testing.T) {
	s := New(Options{Files: slot.NewMem()})
	b, other := data(100), data(101)
	for _, x := range [][]byte{b, other} {
		if _, err := s.Store().PutBytes(x); err != nil {
			t.Fatal(err)
		}
	}
	identify := func(r *http.Request) (string, error) {
		if id := r.Header.Get("X-Device"); id != "" {
			return id, nil
		}
		return "", errors.New("no client certificate")
	}
	c := serve(t, s.Devices(identify, grants{"d1": ota.DigestOf(b)}))
	at := func(b []byte) string { return "/v2/skein/blobs/" + string(ota.DigestOf(b)) }
	c.want(200, "GET", at(b), nil, "X-Device", "d1")
	c.want(206, "GET", at(b), nil, "X-Device", "d1", "Range", "bytes=5-")
	_, body := c.want(403, "GET", at(other), nil, "X-Device", "d1")
	if !strings.Contains(body, "no release of device d1") {
		t.Error(body)
	}
	c.want(403, "GET", at(b), nil, "X-Device", "d2")
	// Whether a blob exists is nobody's business: unknown ones are refused alike.
	c.want(403, "GET", at([]byte("none")), nil, "X-Device", "d2")
	c.want(401, "GET", at(b), nil)
	c.want(405, "POST", at(b), nil, "X-Device", "d1")
	c.want(404, "POST", "/v2/skein/blobs/uploads/", nil, "X-Device", "d1")
}

type releases struct{ m Manifest }

func (r releases) Manifest(_ context.Context, name, ref string) (Manifest, error) {
	if name != "meter" || ref != "1" && ref != string(r.m.Digest) {
		return Manifest{}, fmt.Errorf("%w: %s@%s", ErrUnknown, name, ref)
	}
	return r.m, nil
}

func (r releases) Tags(_ context.Context, name string) ([]string, error) {
	if name != "meter" {
		return nil, ErrUnknown
	}
	return []string{"1"}, nil
}

func TestManifestsForPullers(t *testing.T) {
	m := Manifest{MediaType: "application/vnd.oci.image.index.v1+json", Data: []byte(`{"schemaVersion":2}`)}
	m.Digest = ota.DigestOf(m.Data)
	c := serve(t, New(Options{Files: slot.NewMem(), Manifests: releases{m}}).People())
	for _, ref := range []string{"1", string(m.Digest)} {
		r, body := c.want(200, "GET", "/v2/meter/manifests/"+ref, nil)
		got := []string{body, r.Header.Get("Content-Type"), r.Header.Get("Docker-Content-Digest")}
		if d := cmp.Diff([]string{string(m.Data), m.MediaType, string(m.Digest)}, got); d != "" {
			t.Error(d)
		}
		c.want(200, "HEAD", "/v2/meter/manifests/"+ref, nil)
	}
	c.want(404, "GET", "/v2/meter/manifests/2", nil)
	c.want(404, "GET", "/v2/other/tags/list", nil)
	if _, body := c.want(200, "GET", "/v2/meter/tags/list", nil); body != `{"name":"meter","tags":["1"]}`+"\n" {
		t.Error(body)
	}
	c.want(405, "PUT", "/v2/meter/manifests/2", m.Data)
}

func TestSweepRemovesAbandonedUploads(t *testing.T) {
	files, err := slot.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := New(Options{Files: files, Now: func() time.Time { return now }})
	c := serve(t, s.People())
	at := c.begin()
	if n, err := s.Sweep(t.Context()); n != 0 || err != nil {
		t.Fatalf("a fresh upload was swept: %d %v", n, err)
	}
	now = now.Add(8 * 24 * time.Hour)
	if n, err := s.Sweep(t.Context()); n != 1 || err != nil {
		t.Fatalf("swept %d, %v", n, err)
	}
	if _, err := s.size(at[strings.LastIndex(at, "/")+1:]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
