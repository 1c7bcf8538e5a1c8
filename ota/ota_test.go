package ota

import "testing"

func TestTargetRoundTrip(t *testing.T) {
	const in = "linux/arm64;dla=0;l4t=36.4.3;sm=8.7;zz=1;trt=10.3.0;mem=8;cuda=12.6"
	const want = "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=8;dla=0;zz=1"
	tg, err := ParseTarget(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := tg.String(); got != want {
		t.Errorf("canonical text %q, want %q", got, want)
	}
	for _, bad := range []string{"", "linux", "linux/arm64;", "linux/arm64;sm", "linux/arm64;sm=1;sm=2", "Linux/arm64", "linux/arm64;sm=a b"} {
		if _, err := ParseTarget(bad); err == nil {
			t.Errorf("ParseTarget(%q) was accepted", bad)
		}
	}
}

func TestTargetLoads(t *testing.T) {
	parse := func(s string) Target {
		tg, err := ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		return tg
	}
	dev := parse("linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=8;dla=0")
	for text, want := range map[string]bool{
		"linux/arm64": true, "linux/arm64;sm=8.7;trt=10.3.0": true, "linux/arm64;sm=8.7;trt=10.3.0;mem=64": true,
		"linux/arm64;sm=8.7;trt=10.3.1": false, "linux/arm64;sm=7.2": false, "linux/amd64": false, "linux/arm64;ort=1": false,
	} {
		if reason, ok := parse(text).Loads(dev); ok != want {
			t.Errorf("%s loads = %v (%s), want %v", text, ok, reason, want)
		}
	}
}

func TestTargetFits(t *testing.T) {
	parse := func(s string) Target {
		tg, err := ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		return tg
	}
	const nano = "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=8;dla=0;module=orin-nano-8gb;mode=25W"
	for _, c := range []struct {
		artifact, device string
		want             Fit
		reason           string
	}{
		{nano, nano, FitOptimal, ""},
		{"linux/arm64;sm=8.7;trt=10.3.0.30;module=orin-nano-8gb;mode=25W", nano, FitOptimal, ""},
		{"linux/arm64;sm=8.7;trt=10.3.0;module=orin-nano-8gb;mode=15W", nano, FitLoadable, "tuned for mode=15W, device has 25W"},
		{"linux/arm64;sm=8.7;trt=10.3.0;module=orin-nx-16gb;mode=25W", nano, FitLoadable, "tuned for module=orin-nx-16gb, device has orin-nano-8gb"},
		{"linux/arm64;sm=8.7;trt=10.3.0", nano, FitLoadable, "tuned for module=any, device has orin-nano-8gb"},
		{"linux/arm64;sm=8.7;trt=10.3.0", "linux/arm64;sm=8.7;trt=10.3.0", FitOptimal, ""},
		{"linux/arm64", nano, FitLoadable, "it is bound to no version of TensorRT or ONNX Runtime"},
		{"linux/arm64;sm=8.7;trt=10.3.1;module=orin-nano-8gb;mode=25W", nano, FitNone, "made for trt=10.3.1, device has 10.3.0"},
		{"linux/arm64;sm=8.7;trt=10.3", nano, FitNone, "made for trt=10.3, device has 10.3.0"},
		{"linux/arm64;sm=7.2;trt=10.3.0", nano, FitNone, "made for sm=7.2, device has 8.7"},
		{"linux/amd64;ort=1", "linux/amd64;ort=1", FitOptimal, ""},
		{"linux/amd64;ort=1", "linux/amd64;ort=1.20.1", FitOptimal, ""},
		{"linux/amd64;ort=1", "linux/amd64;ort=10.1", FitNone, "made for ort=1, device has 10.1"},
		{"linux/amd64;ort=1.20.1", "linux/amd64;ort=1", FitNone, "made for ort=1.20.1, device has 1"},
	} {
		if got, reason := parse(c.artifact).Fits(parse(c.device)); got != c.want || reason != c.reason {
			t.Errorf("%s on %s: %s (%s), want %s (%s)", c.artifact, c.device, got, reason, c.want, c.reason)
		}
	}
}

func TestDigest(t *testing.T) {
	d := DigestOf([]byte("skein"))
	if got, err := ParseDigest(string(d)); err != nil || got != d || len(d.Sum()) != 32 {
		t.Errorf("ParseDigest(%q) = %q, %v", d, got, err)
	}
	for _, bad := range []string{"", "sha256:", "sha512:" + d.Hex(), "sha256:" + d.Hex()[1:], "sha256:G" + d.Hex()[1:]} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) was accepted", bad)
		}
	}
}

func TestGenerationOrder(t *testing.T) {
	if (Generation{Epoch: 1, Counter: 9}).Compare(Generation{Epoch: 2, Counter: 1}) >= 0 || (Generation{Epoch: 1, Counter: 2}).Compare(Generation{Epoch: 1, Counter: 1}) <= 0 {
		t.Error("epoch comes before counter")
	}
}
