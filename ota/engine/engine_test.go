package engine

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

var sum = ota.DigestOf([]byte("x"))

func target(t *testing.T, s string) ota.Target {
	t.Helper()
	got, err := ota.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRecipeIsClosed(t *testing.T) {
	for text, want := range map[string]string{
		`{"version":1,"precision":"fp16"}`:                                                                        "",
		`{"version":1,"precision":"fp16","flags":["sparsity"],"fit":"optimal"}`:                                   "",
		`{"version":1,"precision":"int8","calibration":{"name":"c","digest":"` + string(sum) + `","size":3}}`:     "",
		`{"version":1,"precision":"fp16","shapes":[{"input":"image","min":[1,3],"opt":[4,3],"max":[8,3]}]}`:       "",
		`{"version":2,"precision":"fp16"}`:                                                                        "version 2",
		`{"version":1,"precision":"fp8"}`:                                                                         "precision",
		`{"version":1,"precision":"fp16","extra":"--loadEngine"}`:                                                 "unknown field",
		`{"version":1,"precision":"fp16","Precision":"int8"}`:                                                     "named twice",
		`{"version":1,"precision":"fp16","flags":["--plugins=x"]}`:                                                "want one of",
		`{"version":1,"precision":"fp16","flags":["sparsity","sparsity"]}`:                                        "twice",
		`{"version":1,"precision":"fp16","flags":["obey-precision","prefer-precision"]}`:                          "exclude",
		`{"version":1,"precision":"fp16","calibration":{"name":"c","digest":"` + string(sum) + `","size":3}}`:     "calibration is for int8",
		`{"version":1,"precision":"fp32","dla":{"core":0}}`:                                                       "DLA computes",
		`{"version":1,"precision":"fp16","dla":{"core":2}}`:                                                       "want 0 or 1",
		`{"version":1,"precision":"fp16","optimizationLevel":6}`:                                                  "0 to 5",
		`{"version":1,"precision":"fp16","shapes":[{"input":"image","min":[1],"opt":[4],"max":[2]}]}`:             "min <= opt <= max",
		`{"version":1,"precision":"fp16","shapes":[{"input":"a,b:9","min":[1],"opt":[1],"max":[1]}]}`:             "want a name",
		`{"version":1,"precision":"fp16","plugins":[{"name":"../x.so","digest":"` + string(sum) + `","size":1}]}`: "plain file name",
		`{"version":1,"precision":"fp16"} {}`:                                                                     "after the document",
		`[]`:                                                                                                      "bad recipe",
	} {
		_, err := ParseRecipe([]byte(text))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (!errors.Is(err, ErrRecipe) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func genRecipe(t *rapid.T) Recipe {
	r := Recipe{Version: 1, Precision: rapid.SampledFrom([]string{FP16, INT8, Best}).Draw(t, "precision"),
		Fit: rapid.SampledFrom([]string{"", BindLoadable, BindOptimal}).Draw(t, "fit"), WorkspaceMiB: rapid.IntRange(0, 4096).Draw(t, "ws")}
	for _, f := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"direct-io", "no-tf32", "obey-precision", "sparsity"}), 0, 4, rapid.ID).Draw(t, "flags") {
		r.Flags = append(r.Flags, f)
	}
	for _, in := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID).Draw(t, "inputs") {
		r.Shapes = append(r.Shapes, Shape{Input: in, Min: []int64{1}, Opt: []int64{2}, Max: []int64{4}})
	}
	if rapid.Bool().Draw(t, "level") {
		r.OptimizationLevel = new(rapid.IntRange(0, 5).Draw(t, "n"))
	}
	return r
}

func TestCanonicalIsOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecipe(t)
		want, err := r.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		shuffled := r
		shuffled.Flags = rapid.Permutation(r.Flags).Draw(t, "order")
		shuffled.Shapes = rapid.Permutation(r.Shapes).Draw(t, "shapes")
		if got, err := shuffled.Canonical(); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s\n%s %v", got, want, err)
		}
		back, err := ParseRecipe(want)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := back.Canonical(); err != nil || !bytes.Equal(again, want) {
			t.Fatalf("%s\n%s %v", again, want, err)
		}
	})
}

func TestTargetFor(t *testing.T) {
	orin := "linux/arm64;sm=8.7;trt=10.3.0.30;cuda=12.6;l4t=36.4.3;mem=8;dla=0;module=p3767-0005;mode=15W"
	agx := "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=64;dla=2;module=p3701-0005;mode=MAXN"
	for name, c := range map[string]struct {
		recipe, dev, want string
		err               error
	}{
		"loadable":      {`{"version":1,"precision":"fp16"}`, orin, "linux/arm64;sm=8.7;trt=10.3.0", nil},
		"other module":  {`{"version":1,"precision":"fp16"}`, agx, "linux/arm64;sm=8.7;trt=10.3.0", nil},
		"optimal":       {`{"version":1,"precision":"fp16","fit":"optimal"}`, orin, "linux/arm64;sm=8.7;trt=10.3.0;module=p3767-0005;mode=15W", nil},
		"dla":           {`{"version":1,"precision":"fp16","dla":{"core":1}}`, agx, "linux/arm64;sm=8.7;trt=10.3.0;dla=2", nil},
		"no dla":        {`{"version":1,"precision":"fp16","dla":{"core":0}}`, orin, "", ErrUnsupported},
		"no mode":       {`{"version":1,"precision":"fp16","fit":"optimal"}`, "linux/arm64;sm=8.7;trt=10.3.0;module=x", "", ErrUnsupported},
		"cpu":           {`{"version":1,"precision":"fp16"}`, "linux/amd64;ort=1.22.0", "", ErrNoEngine},
		"no patch":      {`{"version":1,"precision":"fp16"}`, "linux/arm64;sm=8.7;trt=10.3", "", ErrUnsupported},
		"strip on 8":    {`{"version":1,"precision":"fp16","strip":true}`, "linux/arm64;sm=7.2;trt=8.5.2", "", ErrUnsupported},
		"level on 8.2":  {`{"version":1,"precision":"fp16","optimizationLevel":5}`, "linux/arm64;sm=5.3;trt=8.2.1", "", ErrUnsupported},
		"h100 is other": {`{"version":1,"precision":"fp16"}`, "linux/amd64;sm=9.0;trt=10.3.0", "linux/amd64;sm=9.0;trt=10.3.0", nil},
	} {
		r, err := ParseRecipe([]byte(c.recipe))
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := r.TargetFor(target(t, c.dev))
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || got.String() != c.want) {
			t.Errorf("%s: %s %v, want %s %v", name, got, err, c.want, c.err)
		}
		if c.err == nil {
			if reason, ok := r.Builds(got, target(t, c.dev)); !ok {
				t.Errorf("%s: cannot build for its own target: %s", name, reason)
			}
			if _, ok := r.Builds(got, target(t, "linux/amd64;sm=8.9;trt=10.3.0")); ok {
				t.Errorf("%s: an L4 may build it", name)
			}
		}
	}
}

func TestArgs(t *testing.T) {
	r := Recipe{Version: 1, Precision: INT8, WorkspaceMiB: 1024, DLA: &DLA{Core: 1, GPUFallback: true}, OptimizationLevel: new(3), Flags: []string{"sparsity", "direct-io"},
		Shapes: []Shape{{Input: "b", Min: []int64{1, 2}, Opt: []int64{2, 2}, Max: []int64{4, 2}}, {Input: "a", Min: []int64{1}, Opt: []int64{1}, Max: []int64{1}}}}
	got, err := r.Args("10.3.0.30")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--int8", "--fp16", "--memPoolSize=workspace:1024", "--builderOptimizationLevel=3", "--useDLACore=1", "--allowGPUFallback",
		"--directIO", "--sparsity=enable", "--minShapes=a:1,b:1x2", "--optShapes=a:1,b:2x2", "--maxShapes=a:1,b:4x2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err := (Recipe{Version: 1, Precision: FP16, WorkspaceMiB: 512}).Args("8.2.1"); err != nil || got[1] != "--workspace=512" {
		t.Errorf("%v %v", got, err)
	}
}

func TestKeyDependsOnAllThree(t *testing.T) {
	a, b := ota.DigestOf([]byte("a")), ota.DigestOf([]byte("b"))
	t1, t2 := target(t, "linux/arm64;sm=8.7;trt=10.3.0"), target(t, "linux/arm64;trt=10.3.0;sm=8.7;module=x")
	keys := map[ota.Digest]bool{Key(a, b, t1): true, Key(b, a, t1): true, Key(a, b, t2): true, Key(a, a, t1): true}
	if len(keys) != 4 || !keys[Key(a, b, target(t, "linux/arm64;trt=10.3.0;sm=8.7"))] {
		t.Error(keys)
	}
	if VersionDigest(a, b) == VersionDigest(b, a) || VersionDigest(a, "") == VersionDigest(a, b) {
		t.Error("version digests collide")
	}
}

func record() wire.EngineRecord {
	raw := sum.Sum()
	return wire.EngineRecord{Key: raw, Model: "meter", Version: 3, ONNX: raw, Golden: raw, Recipe: raw, Target: "linux/arm64;sm=8.7;trt=10.3.0",
		Probed: "linux/arm64;sm=8.7;trt=10.3.0.30", TensorRT: "10.3.0.30", SM: "8.7", Digest: raw, Size: 5, LatencyP50: 1, LatencyP99: 2, Throughput: 900, Power: 7,
		Proof: &wire.EngineProof{Cases: 10, Agreed: 10, MaxAbs: 0.001}, Device: wire.FormatDeviceID([16]byte{1}), Started: 10, Finished: 20,
		Log: wire.Blob{Digest: raw, Length: 3}, Command: []string{"trtexec"}, Job: "b1", Attempt: 1}
}

func signer(t *testing.T) *trust.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealNeedsBothSignatures(t *testing.T) {
	dev, other, director := signer(t), signer(t), signer(t)
	signed, err := Sign(dev, record())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Seal(director, "default", signed, other.Public(), "", time.Unix(30, 0)); !errors.Is(err, ErrRecord) {
		t.Errorf("sealed under another device's key: %v", err)
	}
	seal, err := Seal(director, "default", signed, dev.Public(), record().Device, time.Unix(30, 0))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open([]crypto.PublicKey{director.Public()}, "default", seal)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(record(), got.EngineRecord); d != "" {
		t.Error(d)
	}
	for name, f := range map[string]func() error{
		"other director": func() error { _, err := Open([]crypto.PublicKey{other.Public()}, "default", seal); return err },
		"other tenant":   func() error { _, err := Open([]crypto.PublicKey{director.Public()}, "t2", seal); return err },
		"record alone":   func() error { _, err := Open([]crypto.PublicKey{dev.Public()}, "default", signed); return err },
	} {
		if err := f(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	layer := Annotate(manifest.Descriptor{Digest: sum, Size: 5}, seal, false)
	back, err := FromLayer(layer)
	if err != nil || !bytes.Equal(back, seal) {
		t.Fatal(err)
	}
	fits := target(t, "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6")
	if _, _, err := got.CheckLoad(layer, record().Device, fits); err != nil {
		t.Error(err)
	}
	if _, _, err := got.CheckLoad(layer, wire.FormatDeviceID([16]byte{2}), fits); !errors.Is(err, ErrOtherDevice) {
		t.Errorf("scope: %v", err)
	}
	if _, _, err := got.CheckLoad(layer, record().Device, target(t, "linux/arm64;sm=8.7;trt=10.7.0")); !errors.Is(err, ErrDoesNotFit) {
		t.Errorf("other TensorRT: %v", err)
	}
	if _, _, err := got.CheckLoad(manifest.Descriptor{Digest: ota.DigestOf([]byte("y")), Size: 5}, record().Device, fits); !errors.Is(err, ErrRecord) {
		t.Errorf("other bytes: %v", err)
	}
}

func TestValidateAndProve(t *testing.T) {
	set := &manifest.Golden{Cases: make([]manifest.GoldenCase, 10), Tolerance: manifest.Tolerance{Abs: 0.01}, MinLabelAgreement: 0.9}
	if err := Prove(record(), set); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(r *wire.EngineRecord){
		"no result":   func(r *wire.EngineRecord) { r.Proof = nil },
		"few cases":   func(r *wire.EngineRecord) { r.Proof.Cases = 9 },
		"off":         func(r *wire.EngineRecord) { r.Proof.MaxAbs = 0.02 },
		"disagreeing": func(r *wire.EngineRecord) { r.Proof.Agreed = 8 },
	} {
		r := record()
		change(&r)
		if err := Prove(r, set); !errors.Is(err, ErrUnproven) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(r *wire.EngineRecord){
		"key":          func(r *wire.EngineRecord) { r.Key = nil },
		"not measured": func(r *wire.EngineRecord) { r.LatencyP50 = 0 },
		"p99 < p50":    func(r *wire.EngineRecord) { r.LatencyP99 = 0.5 },
		"other trt":    func(r *wire.EngineRecord) { r.TensorRT = "10.7.0.1" },
		"other sm":     func(r *wire.EngineRecord) { r.SM = "7.2" },
		"time":         func(r *wire.EngineRecord) { r.Finished = 1 },
		"fallback":     func(r *wire.EngineRecord) { r.Stripped, r.Fallback = true, "why" },
		"device":       func(r *wire.EngineRecord) { r.Device = "x" },
		"target":       func(r *wire.EngineRecord) { r.Target = "x" },
	} {
		r := record()
		change(&r)
		if err := Validate(r); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte(`{"version":1,"precision":"fp16","flags":["sparsity"],"shapes":[{"input":"image","min":[1,3],"opt":[4,3],"max":[8,3]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseRecipe(raw)
		if err != nil {
			return
		}
		one, err := r.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRecipe(one)
		if err != nil {
			t.Fatalf("own form refused: %v", err)
		}
		if two, err := again.Canonical(); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s %s %v", one, two, err)
		}
	})
}
