package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// onnxFile is the smallest model that readONNX takes, with weights to pass over.
func onnxFile(input string, weights int) []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	var g []byte
	g = field(g, graphNode, field(nil, 4, []byte("Gemm")))
	g = field(g, 5, make([]byte, weights))
	g = field(g, graphInput, field(nil, valueInfoName, []byte(input)))
	g = field(g, graphOutput, field(nil, valueInfoName, []byte("logits")))
	b := protowire.AppendVarint(protowire.AppendTag(nil, modelIRVersion, protowire.VarintType), 8)
	b = field(b, 2, []byte("test"))
	b = field(b, modelGraph, g)
	return field(b, modelOpset, protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 17))
}

func goldenFile(t *testing.T, input string) []byte {
	t.Helper()
	b, err := manifest.Golden{Version: 1, Input: input, Shape: []int64{2}, MinLabelAgreement: 1, Tolerance: manifest.Tolerance{Abs: 1e-4},
		Cases: []manifest.GoldenCase{{Input: []float32{1, 2}, Output: []float32{0, 1}, Label: 1}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type world struct {
	t     *testing.T
	cfg   Config
	cat   *Catalog
	files *slot.Mem
	tuf   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, files: slot.NewMem(), tuf: t.TempDir()}
	if _, err := trust.InitDev(w.tuf, "skein.local", time.Now()); err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{Store: db, Blobs: blob.NewStore(w.files), Now: time.Now, Targets: func(string) []string {
		return []string{"linux/arm64;sm=8.7", "linux/amd64;ort=1", "linux/arm64;sm=8.7"}
	}}
	w.restart()
	return w
}

// restart opens the catalog and the trust repository anew, as after a crash.
func (w *world) restart() {
	w.t.Helper()
	repo, err := trust.OpenRepo(w.tuf)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Repository = repo
	if w.cat, err = New(w.cfg); err != nil {
		w.t.Fatal(err)
	}
	if err := w.cat.Load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(b []byte) string {
	w.t.Helper()
	d, err := w.cfg.Blobs.PutBytes(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(d)
}

func (w *world) push(name string, weights int) store.ModelVersion {
	w.t.Helper()
	v, _, err := w.cat.Push(w.t.Context(), store.ModelVersion{Tenant: store.DefaultTenant, Name: name, ONNX: w.put(onnxFile("x", weights)),
		Golden: w.put(goldenFile(w.t, "x")), CreatedBy: "user:a"})
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) request(model string) Request {
	return Request{Tenant: store.DefaultTenant, Name: "meter", Model: model, Soak: time.Minute, By: "user:a"}
}

func TestPushNumbersVersionsAndKnowsTheSameBytes(t *testing.T) {
	w := newWorld(t)
	a, b := w.push("meter", 10), w.push("meter", 20)
	again, existing, err := w.cat.Push(t.Context(), store.ModelVersion{Tenant: store.DefaultTenant, Name: "meter", ONNX: a.ONNX, Golden: a.Golden})
	if err != nil || !existing || a.Version != 1 || b.Version != 2 || again.Version != 1 {
		t.Errorf("versions %d, %d, again %d (existing %v), %v", a.Version, b.Version, again.Version, existing, err)
	}
	m, vs, err := w.cat.Model(t.Context(), store.DefaultTenant, "meter")
	if err != nil || m.Latest != 2 || len(vs) != 2 || vs[0].Version != 2 {
		t.Errorf("%+v %+v %v", m, vs, err)
	}
	if _, _, err := w.cat.Model(t.Context(), "other", "meter"); !errors.Is(err, ErrUnknown) {
		t.Errorf("another tenant sees the model: %v", err)
	}
}

func TestPushRefusesWithReasons(t *testing.T) {
	w := newWorld(t)
	good, golden := onnxFile("x", 100), goldenFile(t, "x")
	noGraph := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 8)
	for _, tc := range []struct {
		name         string
		onnx, golden []byte
		kind         error
		want         string
	}{
		{"meter", []byte("PK\x03\x04 a zip file"), golden, ErrInvalid, "not an ONNX model"},
		{"meter", good[:len(good)-20], golden, ErrInvalid, "not an ONNX model"},
		{"meter", noGraph, golden, ErrInvalid, "0 graphs"},
		{"meter", nil, golden, ErrInvalid, "not an ONNX model"},
		{"meter", good, []byte(`{"version":2}`), ErrInvalid, "version 2"},
		{"meter", good, []byte("no json"), ErrInvalid, "golden set"},
		{"meter", good, goldenFile(t, "y"), ErrInvalid, `feeds input "y", the model has ["x"]`},
		{"Meter!", good, golden, ErrInvalid, "model name"},
	} {
		_, _, err := w.cat.Push(t.Context(), store.ModelVersion{Tenant: store.DefaultTenant, Name: tc.name, ONNX: w.put(tc.onnx), Golden: w.put(tc.golden)})
		if !errors.Is(err, tc.kind) || !strings.Contains(fmt.Sprint(err), tc.want) {
			t.Errorf("%q: %v, want %v saying %q", tc.onnx, err, tc.kind, tc.want)
		}
	}
	_, _, err := w.cat.Push(t.Context(), store.ModelVersion{Tenant: store.DefaultTenant, Name: "meter", ONNX: string(ota.DigestOf([]byte("absent"))), Golden: w.put(golden)})
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "was not uploaded") {
		t.Error(err)
	}
	if ms, err := w.cat.Models(t.Context(), store.DefaultTenant); len(ms) != 0 || err != nil {
		t.Errorf("refused models are listed: %v %v", ms, err)
	}
}

func TestCreateListsWhatDevicesAndPullersRead(t *testing.T) {
	w := newWorld(t)
	w.push("meter", 1000)
	r := w.request("meter@1")
	r.Parameters = []manifest.ParamDecl{{Key: "camera", Type: manifest.TypeURL, Required: true}}
	row, err := w.cat.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if row.Version != "1" || row.Counter != 1 || len(row.Targets) != 2 {
		t.Errorf("%+v", row)
	}
	d := ota.Digest(row.Digest)
	ref, decls, err := w.cat.Ref(t.Context(), store.DefaultTenant, d)
	if err != nil || ref.Target != "releases/meter/1" || ref.Length != row.Length || ref.Counter != 1 || !bytes.Equal(ref.Digest, d.Sum()) {
		t.Errorf("%+v %v", ref, err)
	}
	if diff := cmp.Diff(r.Parameters, decls); diff != "" {
		t.Error(diff)
	}
	// A device verifies the same through the chain of trust.
	files := slot.NewMem()
	root, err := w.cfg.Repository.Metadata("root.json")
	if err != nil {
		t.Fatal(err)
	}
	cl, err := trust.NewClient(files, root)
	if err != nil {
		t.Fatal(err)
	}
	src := func(_ context.Context, name string) ([]byte, error) {
		rec := httptest.NewRecorder()
		w.cat.TUF().ServeHTTP(rec, httptest.NewRequest("GET", "/tuf/"+name, nil))
		if rec.Code != 200 {
			return nil, fs.ErrNotExist
		}
		return rec.Body.Bytes(), nil
	}
	if err := cl.Refresh(t.Context(), src, time.Now()); err != nil {
		t.Fatal(err)
	}
	info, err := cl.Target(ref.Target)
	if err != nil || info.Digest != d || info.Length != row.Length || info.Custom.Counter != 1 {
		t.Errorf("%+v %v", info, err)
	}
	// Bytes and grants.
	n, err := w.cat.Fits(store.DefaultTenant, d, "linux/arm64;sm=8.7;trt=10.3.0")
	if err != nil || n != row.Targets[1].Bytes || n < 1000 {
		t.Errorf("%d bytes, %v; targets %+v", n, err, row.Targets)
	}
	if _, err := w.cat.Fits(store.DefaultTenant, d, "linux/arm64;sm=5.3"); !errors.Is(err, manifest.ErrNoTarget) {
		t.Errorf("a Nano fits: %v", err)
	}
	m := w.push("meter", 1000)
	if !w.cat.Contains(store.DefaultTenant, d, ota.Digest(m.ONNX)) || !w.cat.Contains(store.DefaultTenant, d, d) ||
		w.cat.Contains(store.DefaultTenant, d, ota.DigestOf(nil)) || w.cat.Contains("other", d, d) {
		t.Error("grants are wrong")
	}
	for _, ref := range []string{"1", row.Digest, row.Targets[0].Manifest} {
		if mf, err := w.cat.Manifest(t.Context(), "meter", ref); err != nil || ota.DigestOf(mf.Data) != mf.Digest {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, text := range []string{"meter@1", "meter", row.Digest, d.Short()} {
		if got, err := w.cat.Resolve(t.Context(), store.DefaultTenant, text); err != nil || got != d {
			t.Errorf("resolve %s: %s %v", text, got, err)
		}
	}
	if _, err := w.cat.Resolve(t.Context(), store.DefaultTenant, "meter@9"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestVersionsAreImmutableAndCountersGrow(t *testing.T) {
	w := newWorld(t)
	w.push("meter", 1)
	w.push("meter", 2)
	a, err := w.cat.Create(t.Context(), w.request("meter@1"))
	if err != nil {
		t.Fatal(err)
	}
	r := w.request("meter@2")
	r.Version = a.Version
	if _, err := w.cat.Create(t.Context(), r); !errors.Is(err, ErrExists) {
		t.Errorf("a version was made twice: %v", err)
	}
	r.Version = "2.0-rc1"
	b, err := w.cat.Create(t.Context(), r)
	if err != nil || b.Counter != 2 {
		t.Errorf("%+v %v", b, err)
	}
	if tags, err := w.cat.Tags(t.Context(), "meter"); err != nil || !cmp.Equal(tags, []string{"1", "2.0-rc1"}) {
		t.Errorf("%v %v", tags, err)
	}
	for _, bad := range []Request{{Name: "Bad Name"}, {Name: "meter", Version: "a b"}, {Name: "meter", Model: "absent"}, {Name: "meter", Model: "meter@x"},
		{Name: "meter", Model: "meter@1", Targets: []string{"arm"}}, {Name: "meter", Model: "meter@1", Soak: -1},
		{Name: "meter", Model: "meter@1", Parameters: []manifest.ParamDecl{{Key: "k", Type: "int", Default: "x"}}}} {
		bad.Tenant = store.DefaultTenant
		if _, err := w.cat.Create(t.Context(), bad); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnknown) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	w.cfg.Targets = nil
	w.restart()
	if _, err := w.cat.Create(t.Context(), w.request("meter@1")); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "no device has reported") {
		t.Error(err)
	}
}

// A crash before any step leaves either no release or, after the restart, a
// whole one that devices can verify.
func TestCrashWhileCreating(t *testing.T) {
	boom := errors.New("power cut")
	for _, step := range []string{StepReserve, StepList, StepReady} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.push("meter", 1)
			w.cfg.StepHook = func(s string) error {
				if s == step {
					return boom
				}
				return nil
			}
			w.restart()
			if _, err := w.cat.Create(t.Context(), w.request("meter@1")); !errors.Is(err, boom) {
				t.Fatal(err)
			}
			rs, err := w.cat.List(t.Context(), store.DefaultTenant)
			if err != nil || len(rs) > 1 {
				t.Errorf("after the failure: %v %v", rs, err)
			}
			for _, r := range rs {
				if r.Ready || w.cat.Pending(store.DefaultTenant, ota.Digest(r.Digest)) == "" {
					t.Errorf("half a release counts as whole: %v", r)
				}
			}
			w.cfg.StepHook = nil
			w.restart()
			rs, err = w.cat.List(t.Context(), store.DefaultTenant)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string]int{StepReserve: 0, StepList: 1, StepReady: 1}[step]; len(rs) != want {
				t.Errorf("%d releases after the restart, want %d", len(rs), want)
			}
			next, err := w.cat.Create(t.Context(), w.request("meter@1"))
			if err != nil || next.Counter != uint64(len(rs)+1) {
				t.Errorf("next has counter %d after %d releases: %v", next.Counter, len(rs), err)
			}
			raw, err := w.cfg.Repository.Metadata("targets.json")
			if err != nil || !bytes.Contains(raw, []byte("releases/meter/"+next.Version)) {
				t.Errorf("not listed in the targets: %v", err)
			}
		})
	}
}

// TestListedLater: a release that could not be listed, as when the signer is
// away, is shown as waiting and made usable later, without a restart.
func TestListedLater(t *testing.T) {
	w := newWorld(t)
	w.push("meter", 1)
	away := errors.New("the signer does not answer")
	w.cfg.StepHook = func(s string) error {
		if s == StepList {
			return away
		}
		return nil
	}
	w.restart()
	if _, err := w.cat.Create(t.Context(), w.request("meter@1")); !errors.Is(err, away) || !strings.Contains(err.Error(), "is kept") {
		t.Fatal(err)
	}
	pending := func() string {
		rs, err := w.cat.List(t.Context(), store.DefaultTenant)
		if err != nil || len(rs) != 1 {
			t.Fatalf("%v %v", rs, err)
		}
		return w.cat.Pending(store.DefaultTenant, ota.Digest(rs[0].Digest))
	}
	if why := pending(); !strings.Contains(why, away.Error()) {
		t.Errorf("it waits because it %q", why)
	}
	if !w.cat.unlisted() {
		t.Error("it is not tried again soon")
	}
	away = nil
	if err := w.cat.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if why := pending(); why != "" {
		t.Errorf("it still waits: it %s", why)
	}
	if w.cat.unlisted() {
		t.Error("it is tried again for ever")
	}
}

func FuzzReadONNX(f *testing.F) {
	good := onnxFile("x", 8)
	f.Add(good)
	f.Add(good[:10])
	f.Add([]byte{0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readONNX(bytes.NewReader(b), int64(len(b)))
		if err == nil && len(s.Outputs) == 0 {
			t.Error("a model without outputs passed")
		}
		if err != nil && !errors.Is(err, errONNX) {
			t.Errorf("untyped error %v", err)
		}
	})
}
