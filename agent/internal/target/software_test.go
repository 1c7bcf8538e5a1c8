package target

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadSoftware(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Software
	}{
		"JetPack 4.6": {map[string]string{"usr/lib/aarch64-linux-gnu/libnvinfer.so.8.2.1": "", "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n"}, Software{TensorRT: "8.2.1", CUDA: "10.2"}},
		"packages alone": {map[string]string{"var/lib/dpkg/status": "Package: libnvinfer8\nStatus: install ok installed\nVersion: 8.5.2-1+cuda11.4\n\nPackage: cuda-cudart-11-4\nStatus: install ok installed\nVersion: 11.4.298-1\n\nPackage: libnvinfer-plugin8\nStatus: install ok installed\nVersion: 9.9.9-1\n"},
			Software{TensorRT: "8.5.2", CUDA: "11.4"}},
		"removed package": {map[string]string{"var/lib/dpkg/status": "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.5.2-1+cuda11.4\n"}, Software{}},
		"build number":    {map[string]string{"var/lib/dpkg/status": "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n"}, Software{TensorRT: "10.3.0"}},
		"header":          {map[string]string{"usr/include/aarch64-linux-gnu/NvInferVersion.h": "#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 6 //!< x\n#define NV_TENSORRT_PATCH 2\n#define NV_TENSORRT_BUILD 3\n"}, Software{TensorRT: "8.6.2"}},
		"header of 10.13": {map[string]string{"usr/include/NvInferVersion.h": "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 13\n#define TRT_PATCH_ENTERPRISE 3\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< x\n"}, Software{TensorRT: "10.13.3"}},
		"two versions":    {map[string]string{"usr/lib/x86_64-linux-gnu/libnvinfer.so.8.6.1": "", "usr/lib/x86_64-linux-gnu/libnvinfer.so.10.0.1": ""}, Software{TensorRT: "10.0.1"}},
		"wheels":          {map[string]string{"usr/local/lib/python3.12/dist-packages/tensorrt_cu12_libs-10.9.0.34.dist-info/METADATA": ""}, Software{TensorRT: "10.9.0"}},
		"Triton":          {map[string]string{"opt/tritonserver/backends/onnxruntime/libonnxruntime.so.1.20.1": ""}, Software{ONNXRuntime: "1.20.1"}},
	} {
		if got := ReadSoftware(tree(t, c.files)); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestImageCommand runs the very script in a root that it sees as its own,
// by the shell of this machine.
func TestImageCommand(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell here")
	}
	root := tree(t, map[string]string{
		"usr/lib/aarch64-linux-gnu/libnvinfer.so.10.7.0":                            "",
		"usr/local/lib/python3.10/dist-packages/onnxruntime-1.20.1.dist-info/x":     "",
		"usr/local/cuda/version.json":                                               "{\n \"cuda\" : {\n \"name\" : \"CUDA SDK\",\n \"version\" : \"12.6.68\"\n }\n}\n",
		"usr/src/tensorrt/bin/trtexec":                                              "#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v100700] # trtexec'\nexit 1\n",
		"usr/local/lib/python3.10/dist-packages/onnxruntime-1.20.1.dist-info/WHEEL": "",
	})
	if err := os.Chmod(filepath.Join(root, "usr/src/tensorrt/bin/trtexec"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := ImageCommand()[2]
	for _, dir := range []string{"usr", "opt"} {
		script = strings.ReplaceAll(script, " /"+dir+"/", " "+root+"/"+dir+"/")
	}
	out, err := exec.CommandContext(t.Context(), sh, "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := ParseImage(string(out)), (Software{TensorRT: "10.7.0", CUDA: "12.6", ONNXRuntime: "1.20.1"}); got != want {
		t.Errorf("%+v, want %+v\n%s", got, want, out)
	}
}

func TestParseImage(t *testing.T) {
	const out = `== NVIDIA banner of the image ==
skein-probe lib libnvinfer.so.8.5.2
skein-probe lib libnvinfer.so.8
skein-probe infer 8503
skein-probe pkg libnvinfer8 8.5.2-1+cuda11.4
skein-probe trtexec &&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec
skein-probe infer
`
	if got := ParseImage(out); got.TensorRT != "8.5.3" {
		t.Errorf("TensorRT says 8.5.3, the file's name something else: %+v", got)
	}
	for in, want := range map[string]string{"8502": "8.5.2", "7103": "7.1.3", "100300": "10.3.0", "101303": "10.13.3", "101602": "10.16.2", "": "", "x": "", "12": ""} {
		if got := InferVersion(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	f.Add("skein-probe lib libnvinfer.so.10.3.0\nskein-probe infer 100300\n")
	f.Add("skein-probe cuda {\"cuda\":{\"version\":\"12.6\"}}")
	f.Fuzz(func(t *testing.T, out string) {
		s := ParseImage(out)
		for _, v := range []string{s.TensorRT, s.CUDA, s.ONNXRuntime} {
			if strings.ContainsAny(v, " \n;=") {
				t.Errorf("%q is no version", v)
			}
		}
	})
}
