package attack

import "testing"

// TestAutoKeyWithinPolicy is the other side of the auto-key attacks: what a
// thief of the online keys can ship is other weights within the policy, proven
// by a golden set of the persons' choice, and no more. So the attacks fail at
// the policy and not for another reason.
func TestAutoKeyWithinPolicy(t *testing.T) {
	t.Parallel()
	ctx, s := t.Context(), newSuite(t)
	w, done, err := s.world(ctx, autoPlace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := done(); err != nil {
			t.Error(err)
		}
	})
	sc, err := newScene(ctx, s, w, &Attack{Name: "within", place: autoPlace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sc.close(); err != nil {
			t.Error(err)
		}
	})
	if err := takesOver(func(*fake) error { return nil }, nil)(ctx, sc); err != nil {
		t.Fatal(err)
	}
	if err := sc.until(ctx, func() (bool, error) { return sc.d.answers() == bait, nil }); err != nil {
		t.Errorf("weights within the policy do not run: %v; %s %q", err, sc.d.status().Summary, sc.d.status().Reasons)
	}
}
