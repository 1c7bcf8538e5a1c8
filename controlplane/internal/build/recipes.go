package build

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
)

// Recipe is a recipe under a name.
type Recipe struct {
	store.Recipe
	Parsed engine.Recipe
	Text   []byte // canonical
}

var (
	presets  = []string{engine.FP32, engine.FP16, engine.INT8, engine.Best}
	recipeRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// preset is the recipe that a precision alone stands for.
func preset(name string) (Recipe, error) {
	r, err := engine.Preset(name)
	if err != nil {
		return Recipe{}, err
	}
	text, err := r.Canonical()
	return Recipe{Recipe: store.Recipe{Name: name, Digest: string(ota.DigestOf(text)), CreatedBy: "skein"}, Parsed: r, Text: text}, err
}

// PushRecipe keeps a recipe under a name that is not taken, for good.
func (q *Queue) PushRecipe(ctx context.Context, tenant, name string, text []byte) (Recipe, error) {
	if !recipeRE.MatchString(name) || slices.Contains(presets, name) {
		return Recipe{}, fmt.Errorf("%w: recipe name %q: want small letters, digits and . _ -, and none of %s", ErrInvalid, name, strings.Join(presets, ", "))
	}
	r, err := q.readRecipe(text)
	if err != nil {
		return Recipe{}, err
	}
	if _, err := q.cfg.Blobs.PutBytes(r.Text); err != nil {
		return Recipe{}, err
	}
	r.Recipe = store.Recipe{Tenant: tenant, Name: name, Digest: r.Digest, Created: q.cfg.Now(), CreatedBy: store.Actor(ctx)}
	err = q.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, name, nil, string(r.Text))
		return tx.AddRecipe(ctx, r.Recipe)
	})
	if store.IsUnique(err) {
		if old, gerr := q.Recipe(ctx, tenant, name); gerr == nil && old.Digest == r.Digest {
			return old, nil
		}
		return Recipe{}, fmt.Errorf("recipe %s: %w: recipes do not change, choose another name", name, ErrExists)
	}
	return r, err
}

// readRecipe reads a recipe and checks that the blobs that it names are here.
func (q *Queue) readRecipe(text []byte) (Recipe, error) {
	r, err := engine.ParseRecipe(text)
	if err != nil {
		return Recipe{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	needs := r.Plugins
	if r.Calibration != nil {
		needs = append(slices.Clone(needs), *r.Calibration)
	}
	for _, b := range needs {
		switch n, err := q.cfg.Blobs.Size(b.Digest); {
		case err != nil:
			return Recipe{}, fmt.Errorf("%w: %s %s of the recipe is not here: push it with `skein recipe push --blob FILE`", ErrUnknown, b.Name, b.Digest)
		case n != b.Size:
			return Recipe{}, fmt.Errorf("%w: %s has %d bytes, the recipe says %d", ErrInvalid, b.Name, n, b.Size)
		}
	}
	canonical, err := r.Canonical()
	if err != nil {
		return Recipe{}, err
	}
	return Recipe{Recipe: store.Recipe{Digest: string(ota.DigestOf(canonical))}, Parsed: r, Text: canonical}, nil
}

// Recipe finds a recipe: a precision, a name, a digest of one that is known, or
// the JSON itself.
func (q *Queue) Recipe(ctx context.Context, tenant, text string) (Recipe, error) {
	switch trimmed := strings.TrimSpace(text); {
	case trimmed == "":
		return Recipe{}, fmt.Errorf("%w: no recipe: give one of %s, a name of `skein recipe list` or a file", ErrInvalid, strings.Join(presets, ", "))
	case strings.HasPrefix(trimmed, "{"):
		r, err := q.readRecipe([]byte(text))
		if err != nil {
			return Recipe{}, err
		}
		r.Name = r.Parsed.String()
		return r, nil
	case slices.Contains(presets, trimmed):
		return preset(trimmed)
	}
	all, err := q.Recipes(ctx, tenant)
	if err != nil {
		return Recipe{}, err
	}
	for _, r := range all {
		if r.Name == text || r.Digest == text {
			return r, nil
		}
	}
	if d, err := ota.ParseDigest(text); err == nil {
		if r, err := q.recipeAt(ctx, string(d)); err == nil {
			return r, nil
		}
	}
	return Recipe{}, fmt.Errorf("recipe %q: %w: `skein recipe list` shows those that are known", text, ErrUnknown)
}

// recipeAt reads a recipe by digest.
func (q *Queue) recipeAt(ctx context.Context, digest string) (Recipe, error) {
	raw, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(digest), engine.MaxRecipe)
	if err != nil {
		return Recipe{}, err
	}
	r, err := engine.ParseRecipe(raw)
	return Recipe{Recipe: store.Recipe{Name: r.String(), Digest: digest}, Parsed: r, Text: raw}, err
}

// Recipes lists the built-in recipes and those of a tenant.
func (q *Queue) Recipes(ctx context.Context, tenant string) ([]Recipe, error) {
	var out []Recipe
	for _, p := range presets {
		r, err := preset(p)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	var rows []store.Recipe
	if err := q.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Recipes(ctx, tenant)
		return err
	}); err != nil {
		return nil, err
	}
	for _, row := range rows {
		r, err := q.recipeAt(ctx, row.Digest)
		if err != nil {
			return nil, fmt.Errorf("recipe %s: %w", row.Name, err)
		}
		r.Recipe = row
		out = append(out, r)
	}
	return out, nil
}

// signed checks that a recipe that brings code was signed by a person.
func (q *Queue) signed(model string, r Recipe) error {
	if len(r.Parsed.Plugins) == 0 {
		return nil
	}
	err := q.cfg.Allowed(model, ota.Digest(r.Digest))
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: recipe %s has plugins, which are code: %w", ErrState, r.Digest, err)
}
