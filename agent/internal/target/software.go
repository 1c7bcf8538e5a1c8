package target

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Software is which versions of what engines are bound to are installed in a
// root: the host's or that of an image. What is not there is empty.
type Software struct {
	TensorRT    string `json:"tensorrt,omitempty"` // to the patch level
	CUDA        string `json:"cuda,omitempty"`     // major.minor
	ONNXRuntime string `json:"onnxruntime,omitempty"`
}

// Over returns s with what it leaves out taken from below.
func (s Software) Over(below Software) Software {
	return Software{cmp.Or(s.TensorRT, below.TensorRT), cmp.Or(s.CUDA, below.CUDA), cmp.Or(s.ONNXRuntime, below.ONNXRuntime)}
}

// libraryDirs are where the vendor's packages, archives and images put libraries.
var libraryDirs = []string{
	"usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu/nvidia", "usr/lib/aarch64-linux-gnu/tegra",
	"usr/local/tensorrt/lib", "usr/local/tensorrt/targets/aarch64-linux-gnu/lib", "usr/local/tensorrt/targets/x86_64-linux-gnu/lib",
	"opt/tensorrt/lib", "usr/src/tensorrt/lib", "usr/local/cuda/lib64", "usr/local/cuda/targets/aarch64-linux/lib", "usr/local/cuda/targets/x86_64-linux/lib",
	"usr/local/lib", "usr/lib64", "usr/lib", "opt/onnxruntime/lib", "opt/tritonserver/backends/onnxruntime",
}

// packageDirs are where Python keeps the names and versions of wheels.
var packageDirs = []string{
	"usr/local/lib/python3*/dist-packages", "usr/local/lib/python3*/site-packages", "usr/lib/python3/dist-packages", "usr/lib/python3*/site-packages",
	"opt/*/lib/python3*/site-packages",
}

var (
	inferRE  = regexp.MustCompile(`^libnvinfer\.so\.(\d+\.\d+\.\d+)(?:\.\d+)?$`)
	cudartRE = regexp.MustCompile(`^libcudart\.so\.(\d+\.\d+)(?:\.\d+)?$`)
	ortRE    = regexp.MustCompile(`^libonnxruntime\.so\.(\d+\.\d+\.\d+)$`)
	wheelRE  = regexp.MustCompile(`^(tensorrt|onnxruntime)[a-z0-9_]*-(\d+\.\d+\.\d+)[.a-z0-9]*\.dist-info$`)

	cudaJSONRE = regexp.MustCompile(`"cuda"\s*:\s*{[^}]*"version"\s*:\s*"(\d+\.\d+)`)
	cudaTextRE = regexp.MustCompile(`CUDA Version (\d+\.\d+)`)
	headerRE   = regexp.MustCompile(`(?m)^\s*#define\s+(?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(?:_ENTERPRISE)?\s+(\d+)\b`)

	inferPackageRE  = regexp.MustCompile(`^libnvinfer\d*$`)
	cudartPackageRE = regexp.MustCompile(`^cuda-cudart-\d+-\d+$`)
	versionRE       = regexp.MustCompile(`^(?:\d+:)?(\d+\.\d+(?:\.\d+)?)`)
)

// ReadSoftware looks below a root. Libraries say most, then the package
// database, then headers.
func ReadSoftware(root string) Software {
	var libs, wheels Software
	for _, dir := range libraryDirs {
		libs = newest(libs, libraries(filepath.Join(root, dir)))
	}
	for _, pattern := range packageDirs {
		dirs, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, dir := range dirs {
			wheels = newest(wheels, wheelsIn(dir))
		}
	}
	files := Software{CUDA: cudaVersion(root)}
	packages := dpkg(readText(root, "var/lib/dpkg/status"))
	return files.Over(libs).Over(wheels).Over(packages).Over(Software{TensorRT: header(root)})
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func libraries(dir string) (s Software) {
	for _, n := range names(dir) {
		s = newest(s, fileName(n))
	}
	return s
}

// fileName is what one library's name says.
func fileName(n string) (s Software) {
	if g := inferRE.FindStringSubmatch(n); g != nil {
		s.TensorRT = g[1]
	}
	if g := cudartRE.FindStringSubmatch(n); g != nil {
		s.CUDA = g[1]
	}
	if g := ortRE.FindStringSubmatch(n); g != nil {
		s.ONNXRuntime = g[1]
	}
	return s
}

func wheelsIn(dir string) (s Software) {
	for _, n := range names(dir) {
		s = newest(s, wheelName(n))
	}
	return s
}

func wheelName(n string) (s Software) {
	switch g := wheelRE.FindStringSubmatch(n); {
	case g == nil:
	case g[1] == "tensorrt":
		s.TensorRT = g[2]
	default:
		s.ONNXRuntime = g[2]
	}
	return s
}

// newest takes the higher version of each: a loader finds the newest where
// several are installed.
func newest(a, b Software) Software {
	pick := func(x, y string) string {
		if compareVersions(x, y) < 0 {
			return y
		}
		return x
	}
	return Software{pick(a.TensorRT, b.TensorRT), pick(a.CUDA, b.CUDA), pick(a.ONNXRuntime, b.ONNXRuntime)}
}

func compareVersions(a, b string) int {
	number := func(s string) (out []int) {
		for part := range strings.SplitSeq(s, ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				n = -1
			}
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(number(a), number(b))
}

func cudaVersion(root string) string {
	if g := cudaJSONRE.FindStringSubmatch(readText(root, "usr/local/cuda/version.json")); g != nil {
		return g[1]
	}
	if g := cudaTextRE.FindStringSubmatch(readText(root, "usr/local/cuda/version.txt")); g != nil {
		return g[1]
	}
	return ""
}

// header reads NvInferVersion.h.
func header(root string) string {
	for _, dir := range []string{"usr/include/aarch64-linux-gnu", "usr/include/x86_64-linux-gnu", "usr/local/tensorrt/include", "usr/include"} {
		if v := headerVersion(readText(root, dir+"/NvInferVersion.h")); v != "" {
			return v
		}
	}
	return ""
}

func headerVersion(text string) string {
	parts := map[string]string{}
	for _, g := range headerRE.FindAllStringSubmatch(text, -1) {
		if parts[g[1]] == "" {
			parts[g[1]] = g[2]
		}
	}
	if parts["MAJOR"] == "" || parts["MINOR"] == "" || parts["PATCH"] == "" {
		return ""
	}
	return fmt.Sprintf("%s.%s.%s", parts["MAJOR"], parts["MINOR"], parts["PATCH"])
}

// dpkg reads what the package database says.
func dpkg(status string) (s Software) {
	eachPackage(status, func(name, version string) {
		g := versionRE.FindStringSubmatch(version)
		switch {
		case g == nil:
		case inferPackageRE.MatchString(name) && strings.Count(g[1], ".") == 2:
			s = newest(s, Software{TensorRT: g[1]})
		case cudartPackageRE.MatchString(name):
			major, rest, _ := strings.Cut(g[1], ".")
			minor, _, _ := strings.Cut(rest, ".")
			s = newest(s, Software{CUDA: major + "." + minor})
		}
	})
	return s
}

// eachPackage calls f for every installed package of a dpkg status file.
func eachPackage(status string, f func(name, version string)) {
	for section := range strings.SplitSeq(status, "\n\n") {
		var name, version string
		gone := false
		for line := range strings.Lines(section) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch key {
			case "Package":
				name = value
			case "Version":
				version = value
			case "Status":
				gone = !strings.HasSuffix(value, " installed")
			}
		}
		if name != "" && version != "" && !gone {
			f(name, version)
		}
	}
}

func packageVersion(status, want string) (out string) {
	eachPackage(status, func(name, version string) {
		if name == want {
			out = version
		}
	})
	return out
}
