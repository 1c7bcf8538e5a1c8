package trust

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFirstOf(t *testing.T) {
	var asked []string
	down := map[string]bool{}
	way := func(id string, answer error) MetadataSource {
		return func(_ context.Context, name string) ([]byte, error) {
			asked = append(asked, id)
			if down[id] {
				return nil, errors.New(id + " is down")
			}
			return []byte(id), answer
		}
	}
	check := func(src MetadataSource, name, want string, wantErr error, order ...string) {
		t.Helper()
		asked = nil
		b, err := src(t.Context(), name)
		if !errors.Is(err, wantErr) || err == nil && string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if d := cmp.Diff(order, asked); d != "" {
			t.Errorf("%s: asked %s", name, d)
		}
	}
	src := FirstOf(way("a", nil), nil, way("b", nil))
	check(src, "2.root.json", "a", nil, "a")
	down["a"] = true
	check(src, "timestamp.json", "b", nil, "a", "b")
	check(src, "1.snapshot.json", "b", nil, "b")
	down["a"], down["b"] = false, true
	check(src, "1.targets.json", "a", nil, "b", "a")
	down["b"] = false
	check(src, "2.root.json", "a", nil, "a")
	down["a"], down["b"] = true, true
	asked = nil
	_, err := src(t.Context(), "timestamp.json")
	if err == nil || !strings.Contains(err.Error(), "a is down") || !strings.Contains(err.Error(), "b is down") {
		t.Errorf("want what each way said, got %v", err)
	}

	// An answer is an answer, also when it is no.
	clear(down)
	refused := &Attack{ClassEndless, errors.New("too long")}
	check(FirstOf(way("a", refused), way("b", nil)), "timestamp.json", "", refused, "a")
	check(FirstOf(way("a", fs.ErrNotExist), way("b", nil)), "2.root.json", "", fs.ErrNotExist, "a")
	// An end of patience is not a reason to try all the others.
	ctx, cancel := context.WithCancel(t.Context())
	hang := func(ctx context.Context, _ string) ([]byte, error) { cancel(); return nil, ctx.Err() }
	asked = nil
	if _, err := FirstOf(hang, way("b", nil))(ctx, "timestamp.json"); !errors.Is(err, context.Canceled) || asked != nil {
		t.Errorf("%v, asked %v", err, asked)
	}
	if _, err := FirstOf(nil)(t.Context(), "timestamp.json"); err == nil {
		t.Error("no way, no error")
	}
}
