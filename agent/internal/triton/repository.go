package triton

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/skein-fleet/skein/agent/runtime"
)

const (
	configFile = "config.pbtxt"
	onnxName   = "model.onnx"
	planName   = "model.plan"
)

var modelRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// versionOf is the folder of a model's version: Triton wants a whole number.
func versionOf(version string) string {
	if n, err := strconv.ParseInt(version, 10, 64); err == nil && n > 0 && strconv.FormatInt(n, 10) == version {
		return version
	}
	return "1"
}

// defaultName is under which Triton looks for a model of a format.
func defaultName(format string) string {
	if format == "plan" {
		return planName
	}
	return onnxName
}

// writeRepository lays a model repository out in dir:
//
//	MODEL/config.pbtxt
//	MODEL/VERSION/model.onnx or model.plan, and all other files of the release
//
// Files are links to the staged ones, which were verified; the configuration is
// the release's, checked, or made from the model.
func writeRepository(dir string, w runtime.Workload) error {
	if !modelRE.MatchString(w.Model) {
		return fmt.Errorf("%w: model name %q: Triton makes a folder of it, so use letters, digits, dots and dashes", runtime.ErrIncompatible, w.Model)
	}
	config, err := configOf(w)
	if err != nil {
		return err
	}
	model := filepath.Join(dir, w.Model)
	version := filepath.Join(model, versionOf(w.Version))
	if err := os.MkdirAll(version, 0o755); err != nil {
		return fmt.Errorf("make the model repository: %w", err)
	}
	if err := os.WriteFile(filepath.Join(model, configFile), config, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", configFile, err)
	}
	return linkFiles(version, w)
}

func linkFiles(version string, w runtime.Workload) error {
	return filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(w.Dir, path)
		if err != nil || rel == configFile {
			return err
		}
		to := filepath.Join(version, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("make the model repository: %w", err)
		}
		if err := os.Symlink(path, to); err != nil {
			return fmt.Errorf("link %s: %w", rel, err)
		}
		if rel != w.ModelFile {
			return nil
		}
		err = os.Symlink(path, filepath.Join(version, defaultName(w.Format)))
		if err != nil && !errors.Is(err, fs.ErrExist) { // the release may name it so
			return fmt.Errorf("link %s: %w", rel, err)
		}
		return nil
	})
}
