package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Model is a model with its newest version.
type Model struct {
	Name    string
	Latest  int64
	Created time.Time // of the first version
}

// Push makes the next version of m's model from blobs that were uploaded, or
// returns the version that has the same bytes. Size, number and time of m are
// filled in here.
func (c *Catalog) Push(ctx context.Context, m store.ModelVersion) (v store.ModelVersion, existing bool, err error) {
	if err := checkName("model", m.Name); err != nil {
		return v, false, err
	}
	if err := manifest.CheckMirrors(m.Mirrors); err != nil {
		return v, false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if m.ONNXSize, m.GoldenSize, err = c.checkModel(ctx, m); err != nil {
		return v, false, err
	}
	m.Created = c.cfg.Now()
	err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		v, err = tx.ModelByContent(ctx, m.Tenant, m.Name, m.ONNX, m.Golden)
		if err == nil {
			existing = true
			store.Note(ctx, fmt.Sprintf("%s@%d", v.Name, v.Version), nil, "pushed again, nothing changed")
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		v, err = tx.AddModelVersion(ctx, m)
		store.Note(ctx, fmt.Sprintf("%s@%d", v.Name, v.Version), nil, map[string]string{"onnx": v.ONNX, "golden": v.Golden})
		return err
	})
	return v, existing, err
}

// checkModel looks into both files of a model version.
func (c *Catalog) checkModel(ctx context.Context, m store.ModelVersion) (onnxSize, goldenSize int64, err error) {
	onnx, err := uploaded("onnx", m.ONNX)
	if err != nil {
		return 0, 0, err
	}
	golden, err := uploaded("golden", m.Golden)
	if err != nil {
		return 0, 0, err
	}
	f, onnxSize, err := c.cfg.Blobs.Open(ctx, onnx)
	if err != nil {
		return 0, 0, notUploaded("onnx", onnx, err)
	}
	defer f.Close()
	outline, err := readONNX(f, onnxSize)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: onnx file %s: %w", ErrInvalid, onnx.Short(), err)
	}
	if goldenSize, err = c.cfg.Blobs.Size(golden); err != nil {
		return 0, 0, notUploaded("golden set", golden, err)
	}
	if goldenSize > manifest.MaxGolden {
		return 0, 0, fmt.Errorf("%w: golden set of %d bytes, at most %d", ErrInvalid, goldenSize, int64(manifest.MaxGolden))
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, golden, manifest.MaxGolden)
	if err != nil {
		return 0, 0, notUploaded("golden set", golden, err)
	}
	g, err := manifest.ParseGolden(raw)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: golden set %s: %w", ErrInvalid, golden.Short(), err)
	}
	if !slices.Contains(outline.Inputs, g.Input) {
		return 0, 0, fmt.Errorf("%w: the golden set feeds input %q, the model has %q", ErrInvalid, g.Input, outline.Inputs)
	}
	return onnxSize, goldenSize, nil
}

func uploaded(what, text string) (ota.Digest, error) {
	if text == "" {
		return "", fmt.Errorf("%w: no %s digest: a model is an ONNX file and the golden set that proves it on a device", ErrInvalid, what)
	}
	d, err := ota.ParseDigest(text)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrInvalid, what, err)
	}
	return d, nil
}

func notUploaded(what string, d ota.Digest, err error) error {
	if errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("%w: %s %s was not uploaded: send it to /v2/skein/blobs/uploads/ first", ErrUnknown, what, d)
	}
	return err
}

// Models lists the models of a tenant by name.
func (c *Catalog) Models(ctx context.Context, tenant string) (out []Model, err error) {
	var rows []store.ModelVersion
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		rows, err = tx.ModelVersions(ctx, tenant, "")
		return err
	})
	for _, v := range rows { // by name, newest first
		if n := len(out); n > 0 && out[n-1].Name == v.Name {
			out[n-1].Created = v.Created
			continue
		}
		out = append(out, Model{Name: v.Name, Latest: v.Version, Created: v.Created})
	}
	return out, err
}

// Model returns a model with its versions, newest first; with name@version, that one alone.
func (c *Catalog) Model(ctx context.Context, tenant, text string) (m Model, vs []store.ModelVersion, err error) {
	name, version, err := splitModel(text)
	if err != nil {
		return m, nil, err
	}
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		vs, err = tx.ModelVersions(ctx, tenant, name)
		return err
	})
	if err != nil {
		return m, nil, err
	}
	if len(vs) == 0 || name == "" {
		return m, nil, fmt.Errorf("model %q: %w", text, ErrUnknown)
	}
	m = Model{Name: name, Latest: vs[0].Version, Created: vs[len(vs)-1].Created}
	if version != 0 {
		vs = slices.DeleteFunc(vs, func(v store.ModelVersion) bool { return v.Version != version })
		if len(vs) == 0 {
			return m, nil, fmt.Errorf("model %q: %w: the newest version is %d", text, ErrUnknown, m.Latest)
		}
	}
	return m, vs, nil
}

// modelVersion returns one version; without a number the newest.
func (c *Catalog) modelVersion(ctx context.Context, tenant, text string) (store.ModelVersion, error) {
	if strings.TrimSpace(text) == "" {
		return store.ModelVersion{}, fmt.Errorf("%w: no model: give name@version", ErrInvalid)
	}
	_, vs, err := c.Model(ctx, tenant, text)
	if err != nil {
		return store.ModelVersion{}, err
	}
	return vs[0], nil
}
