package digits

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
)

func TestLoad(t *testing.T) {
	d, err := Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Train.Images) != 60000 || len(d.Test.Images) != 10000 {
		t.Fatalf("%d and %d images", len(d.Train.Images), len(d.Test.Images))
	}
	var perLabel [10]int
	for _, l := range d.Test.Labels {
		perLabel[l]++
	}
	if want := [10]int{980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}; perLabel != want {
		t.Errorf("test digits per label: got %v, want %v", perLabel, want)
	}
	const want = ota.Digest("sha256:625c86df0a1319fc9ee83afae9b44174ea5c67d979d470d0a9945b3682b01ff3")
	if got := d.Digest(); got != want {
		t.Errorf("digest: got %s, want %s", got, want)
	}
}

func TestVersionIsTheOneInGoMod(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), module+" "+version) {
		t.Errorf("go.mod does not name %s %s", module, version)
	}
}

func TestLocateSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	if _, err := Locate(t.Context(), dir); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "train-images") {
		t.Errorf("empty folder: got %v", err)
	}
	t.Setenv("GOMODCACHE", dir)
	t.Setenv("GOPATH", dir)
	t.Setenv("HOME", dir)
	t.Setenv("PATH", dir) // no go command
	t.Setenv(EnvDir, "")
	if _, err := Load(t.Context(), ""); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("nothing anywhere: got %v", err)
	}
}

func TestDamagedFiles(t *testing.T) {
	image := append([]byte{0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28}, make([]byte, Pixels)...)
	if got, err := ReadImages(bytes.NewReader(image)); err != nil || len(got) != 1 {
		t.Fatalf("one image: %d, %v", len(got), err)
	}
	huge := bytes.Clone(image)
	huge[4], huge[5] = 0x00, 0x0f // a million images promised, one there
	for name, b := range map[string][]byte{
		"empty": nil, "short": image[:100], "long": append(bytes.Clone(image), 0), "huge": huge,
		"magic": append([]byte{1}, image[1:]...),
	} {
		if _, err := ReadImages(bytes.NewReader(b)); !errors.Is(err, ErrBadData) {
			t.Errorf("%s images: got %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"empty": nil, "label 10": {0, 0, 8, 1, 0, 0, 0, 1, 10}, "long": {0, 0, 8, 1, 0, 0, 0, 1, 1, 1},
	} {
		if _, err := ReadLabels(bytes.NewReader(b)); !errors.Is(err, ErrBadData) {
			t.Errorf("%s labels: got %v", name, err)
		}
	}
	dir := t.TempDir()
	for _, n := range []string{"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"} {
		if err := os.WriteFile(filepath.Join(dir, n+".gz"), []byte("no gzip"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(t.Context(), dir); !errors.Is(err, ErrBadData) {
		t.Errorf("no gzip: got %v", err)
	}
}

func TestDriftIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Image
		copy(m[:], rapid.SliceOfN(rapid.Byte(), Pixels, Pixels).Draw(t, "image"))
		d := rapid.SampledFrom(Drifts()).Draw(t, "drift")
		severity, seed := rapid.Float64Range(-1, 2).Draw(t, "severity"), rapid.Uint64().Draw(t, "seed")
		one, two := d.Apply(m, severity, seed), d.Apply(m, severity, seed)
		if one != two {
			t.Fatal("equal arguments gave two images")
		}
		if severity <= 0 && one != m {
			t.Fatal("severity 0 changed the image")
		}
	})
}

func TestDriftGrowsWithSeverity(t *testing.T) {
	var m Image // a stroke of a pen
	for y := 5; y < 23; y++ {
		for x := 12; x < 15; x++ {
			m[y*Side+x] = 255
		}
	}
	for _, d := range Drifts() {
		last := 0.0
		for _, severity := range []float64{0.25, 0.5, 1} {
			out, sum := d.Apply(m, severity, 7), 0.0
			for i := range out {
				sum += math.Abs(float64(out[i]) - float64(m[i]))
			}
			if sum <= last {
				t.Errorf("%s: severity %v changes the image by %v, less than a lower one (%v)", d, severity, sum, last)
			}
			last = sum
		}
	}
	if _, err := ParseDrift("fog"); !errors.Is(err, ErrBadDrift) {
		t.Errorf("fog: got %v", err)
	}
	if d, err := ParseDrift("blur"); err != nil || d != Blur {
		t.Errorf("blur: got %v, %v", d, err)
	}
}
