package target

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// ImageCommand is run inside of the container of a server to learn which
// libraries it has: names of libraries and wheels, headers, packages, and what
// TensorRT itself says, in lines that ParseImage reads. It needs a shell; an
// image without one is read from its file system by ReadSoftware.
func ImageCommand() []string { return []string{"/bin/sh", "-c", imageScript()} }

const marker = "skein-probe "

func imageScript() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line(`p() { printf '%s%%s %%s\n' "$1" "$2"; }`, marker)
	line(`for f in`)
	s := strings.TrimSuffix(b.String(), "\n")
	b.Reset()
	b.WriteString(s)
	for _, dir := range libraryDirs {
		for _, lib := range []string{"libnvinfer.so.*", "libcudart.so.*", "libonnxruntime.so.*"} {
			b.WriteString(" /" + dir + "/" + lib)
		}
	}
	line(`; do [ -e "$f" ] && p lib "${f##*/}"; done`)
	b.WriteString("for f in")
	for _, dir := range packageDirs {
		b.WriteString(" /" + dir + "/tensorrt*.dist-info /" + dir + "/onnxruntime*.dist-info")
	}
	line(`; do [ -e "$f" ] && p wheel "${f##*/}"; done`)
	line(`for f in /usr/local/cuda/version.json /usr/local/cuda/version.txt; do [ -r "$f" ] && p cuda "$(tr -d '\n' <"$f")"; done`)
	line(`command -v dpkg-query >/dev/null && dpkg-query -W -f '%spkg ${Package} ${Version}\n' 'libnvinfer*' 'cuda-cudart-*' 2>/dev/null`, marker)
	line(`command -v python3 >/dev/null && p infer "$(python3 -c 'import ctypes; print(ctypes.CDLL("libnvinfer.so").getInferLibVersion())' 2>/dev/null)"`)
	line(`for t in trtexec /usr/src/tensorrt/bin/trtexec; do command -v $t >/dev/null && p trtexec "$($t 2>&1 | head -n 1)" && break; done`)
	line(`exit 0`)
	return b.String()
}

var (
	bannerRE  = regexp.MustCompile(`\[TensorRT v(\d{4,6})\]`)
	numericRE = regexp.MustCompile(`^\d{4,6}$`)
)

// ParseImage reads what ImageCommand printed, between whatever else the image
// prints. What TensorRT says of itself counts before names of files.
func ParseImage(out string) Software {
	var asked, libs, wheels, packages, cuda Software
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), marker)
		if !ok {
			continue
		}
		kind, value, _ := strings.Cut(rest, " ")
		switch kind {
		case "lib":
			libs = newest(libs, fileName(value))
		case "wheel":
			wheels = newest(wheels, wheelName(value))
		case "cuda":
			if g := cudaJSONRE.FindStringSubmatch(value); g != nil {
				cuda.CUDA = g[1]
			} else if g := cudaTextRE.FindStringSubmatch(value); g != nil {
				cuda.CUDA = g[1]
			}
		case "pkg":
			name, version, _ := strings.Cut(value, " ")
			packages = newest(packages, dpkg("Package: "+name+"\nVersion: "+version))
		case "infer":
			if numericRE.MatchString(value) {
				asked.TensorRT = InferVersion(value)
			}
		case "trtexec":
			if g := bannerRE.FindStringSubmatch(value); g != nil && asked.TensorRT == "" {
				asked.TensorRT = InferVersion(g[1])
			}
		}
	}
	return asked.Over(cuda).Over(libs).Over(wheels).Over(packages)
}

// InferVersion turns TensorRT's own number into a version: 8502 is 8.5.2, and
// from version 10 on 100300 is 10.3.0. It is empty for what is no such number.
func InferVersion(number string) string {
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || n < 1000:
		return ""
	case n < 10000:
		return fmt.Sprintf("%d.%d.%d", n/1000, n/100%10, n%100)
	}
	return fmt.Sprintf("%d.%d.%d", n/10000, n/100%100, n%100)
}
