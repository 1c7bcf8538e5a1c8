package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	engines "github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
)

// refitted is the whole plan beside a stripped one in a staged folder.
const refitted = "refitted.plan"

// doBuild builds nothing: an engine is built once for its target, and the same
// bytes go to all. It is where an engine is judged before the runtime gets it.
func (x *Executor) doBuild(ctx context.Context, a *attempt) (string, error) {
	if a.install.Format == "onnx" {
		return "nothing to build: the runtime loads ONNX", nil
	}
	const note = "nothing to build: the engine is in the release"
	if x.Engines == nil {
		return note, nil
	}
	c, err := x.read(ctx, &a.install)
	if err != nil {
		return "", err
	}
	target, err := ota.ParseTarget(c.manifest.Annotations[manifest.AnnTarget])
	if err != nil {
		return "", err
	}
	path := x.Files.Path(a.install.Dir() + "/" + a.install.ModelFile)
	if c.weights.Annotations[engines.AnnStripped] == "true" {
		w := a.install.Workload(x.Files, a.params)
		if err := x.whole(ctx, &w); err != nil {
			return "", err
		}
		path = filepath.Join(w.Dir, w.ModelFile)
	}
	said, err := x.Engines.Check(ctx, c.weights, path, target, a.install.Spec)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(note+"; "+said, "; "), nil
}

// whole makes a workload of a stripped plan one of the plan with its weights,
// which are put in once and again after the folder was laid out anew.
func (x *Executor) whole(ctx context.Context, w *runtime.Workload) error {
	if w.Format != "plan" {
		return nil
	}
	weights := filepath.Join(w.Dir, engines.SourceTitle)
	if _, err := os.Stat(weights); errors.Is(err, fs.ErrNotExist) {
		return nil // it is whole as it came
	}
	out := filepath.Join(w.Dir, refitted)
	if _, err := os.Stat(out); errors.Is(err, fs.ErrNotExist) {
		if x.Engines == nil {
			return fmt.Errorf("%w: its plan is stripped of its weights, and nothing here puts them in", ErrRejected)
		}
		if err := x.Engines.Refit(ctx, filepath.Join(w.Dir, w.ModelFile), weights, out+".part"); err != nil {
			return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
		}
		if err := os.Rename(out+".part", out); err != nil {
			return fmt.Errorf("keep the whole plan: %w", err)
		}
	}
	w.ModelFile = refitted
	return nil
}

// plain adds to what a server said of an engine what it means.
func plain(format string, err error) error {
	if format != "plan" {
		return err
	}
	if f := engine.ExplainText(strings.Split(err.Error(), "\n")); f != nil {
		return fmt.Errorf("%s: %w", f, err)
	}
	return err
}
