package trust

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// withhold makes a repository with three versions, of which the client has the
// first and is told about the second, without name.
func withhold(t *testing.T, gone func(w *world) string) (w *world, first, second map[string][]byte) {
	t.Helper()
	w = newWorld(t)
	serve := func() map[string][]byte {
		out := map[string][]byte{}
		for _, name := range []string{"timestamp.json", w.current(metadata.SNAPSHOT), w.current(metadata.TARGETS)} {
			out[name] = w.meta(name)
		}
		return out
	}
	first = serve()
	w.release()
	second = serve()
	before, targets := w.state(), w.client.Targets()
	w.over[gone(w)] = nil
	if err := w.refresh(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	clear(w.over)
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("the set changed: %s", d)
	}
	if d := cmp.Diff(targets, w.client.Targets()); d != "" {
		t.Errorf("what may be installed changed: %s", d)
	}
	return w, first, second
}

func (w *world) restarted() *Client {
	w.t.Helper()
	c, err := NewClient(w.mem, w.anchor)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func version(t *testing.T, b []byte) int64 {
	t.Helper()
	var m struct {
		Signed struct {
			Version int64 `json:"version"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m.Signed.Version
}

// TestSeen: a newer timestamp, and a newer snapshot, are remembered when what
// they name is withheld: the older ones are refused although they have not
// expired. What may be installed stays what it was, and the rest completes it.
func TestSeen(t *testing.T) {
	for name, c := range map[string]struct {
		gone                func(w *world) string
		timestamp, snapshot int64
	}{
		"snapshot withheld": {func(w *world) string { return w.current(metadata.SNAPSHOT) }, 3, 2},
		"targets withheld":  {func(w *world) string { return w.current(metadata.TARGETS) }, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w, first, second := withhold(t, c.gone)
			for name, client := range map[string]*Client{"same process": w.client, "restarted": w.restarted()} {
				trusted := client.Trusted()
				got := [3]int64{version(t, trusted["timestamp.json"]), version(t, trusted["snapshot.json"]), version(t, trusted["targets.json"])}
				if want := [3]int64{c.timestamp, c.snapshot, 2}; got != want {
					t.Errorf("%s: seen and trusted are %v, want %v", name, got, want)
				}
				if _, err := client.Target("releases/meter/2"); !errors.Is(err, ErrUnknownTarget) {
					t.Errorf("%s: a mixture is believed: %v", name, err)
				}
				if _, err := client.Target("releases/meter/1"); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				w.over["timestamp.json"] = first["timestamp.json"]
				w.client = client
				if err := w.refresh(); AttackClass(err) != ClassRollback {
					t.Errorf("%s: the older timestamp: %v", name, err)
				}
				clear(w.over)
			}
			// The rest arrives: only that is asked for.
			w.over = second
			var asked []string
			client := w.restarted()
			err := client.Refresh(t.Context(), func(ctx context.Context, name string) ([]byte, error) {
				asked = append(asked, name)
				return w.source(ctx, name)
			}, w.now)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"2.root.json", "timestamp.json", "3.snapshot.json", "3.targets.json"}
			if c.snapshot == 3 {
				want = []string{"2.root.json", "timestamp.json", "3.targets.json"}
			}
			if d := cmp.Diff(want, asked); d != "" {
				t.Error(d)
			}
			if _, err := client.Target("releases/meter/2"); err != nil {
				t.Error(err)
			}
			if !client.set.Seen.equal(seenSet{}) {
				t.Error("what was seen is kept after it was accepted")
			}
		})
	}
}

// TestSeenOfAThief: what was signed with a stolen timestamp key, and never
// became whole, does not stand in the way of the honest timestamp of that
// version; one run further up is cured by new keys.
func TestSeenOfAThief(t *testing.T) {
	w, _, _ := withhold(t, func(w *world) string { return w.current(metadata.SNAPSHOT) })
	forge := func(version int64) {
		t.Helper()
		m, err := metadata.Timestamp().FromBytes(w.meta("timestamp.json"))
		if err != nil {
			t.Fatal(err)
		}
		m.Signed.Version = version
		m.Signed.Meta["snapshot.json"].Hashes["sha256"] = metadata.HexBytes(make([]byte, 32))
		keys, err := w.repo.keys.forRole(w.repo.root, metadata.TIMESTAMP)
		if err != nil {
			t.Fatal(err)
		}
		b, err := sign(m, keys...)
		if err != nil {
			t.Fatal(err)
		}
		w.over["timestamp.json"] = b
		if err := w.refresh(); AttackClass(err) != ClassMixAndMatch {
			t.Errorf("timestamp %d of a thief: %v", version, err)
		}
		clear(w.over)
	}
	w.client = w.restarted()
	forge(3) // the honest one of that version was seen before: the last one is the one that counts
	w.mustRefresh()
	w.release()
	forge(4)
	w.client = w.restarted()
	w.mustRefresh()
	if _, err := w.client.Target("releases/meter/3"); err != nil {
		t.Error(err)
	}
	forge(9)
	path := w.release()
	if err := w.refresh(); AttackClass(err) != ClassRollback {
		t.Errorf("an honest timestamp below the thief's: %v", err)
	}
	if err := w.repo.Rotate(t.Context(), metadata.TIMESTAMP, w.now); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{"same process": w.client, "restarted": w.restarted()} {
		w.client = c
		if err := w.refresh(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := c.Target(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSeenFullDisk: what cannot be remembered is told, beside the refusal.
func TestSeenFullDisk(t *testing.T) {
	w := newWorld(t)
	w.release()
	w.over[w.current(metadata.SNAPSHOT)] = []byte("{}")
	w.mem.SetFree(0)
	err := w.refresh()
	if AttackClass(err) == "" || !errors.Is(err, slot.ErrDiskFull) {
		t.Errorf("%v", err)
	}
	w.mem.SetFree(1 << 20)
	clear(w.over)
	w.mustRefresh()
}

// TestLearnAcrossPowerCuts cuts the power at every operation of a refresh that
// is refused half-way and of the one that completes it, over a delegated role:
// what a device believes is of one time, all of it, and the next refresh arrives.
func TestLearnAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	const next = "releases/meter/auto-2"
	for n := 0; ; n += stride(3) {
		tr := autoTree(t)
		tr.publish(autoSigners)
		c, mem := tr.client()
		if err := c.Refresh(t.Context(), tr.source, start, autoPath); err != nil {
			t.Fatal(err)
		}
		tr.list("auto/meter", next, TargetCustom{Counter: 8})
		tr.publish(autoSigners)
		targets := tr.files["2.targets.json"]
		mem.FailAfter(n)
		delete(tr.files, "2.targets.json")
		first := c.Refresh(t.Context(), tr.source, start, autoPath)
		tr.files["2.targets.json"] = targets
		if !errors.Is(first, fs.ErrNotExist) {
			t.Fatal(first)
		}
		err := c.Refresh(t.Context(), tr.source, start, autoPath)
		if err == nil && !errors.Is(first, slot.ErrCut) {
			if n < 4 {
				t.Fatalf("both took %d operations", n)
			}
			return
		}
		for seed := range seeds(8) {
			c, err := NewClient(mem.Crash(seed), tr.files["1.root.json"])
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			have := [3]int64{version(t, c.set.Snapshot), version(t, c.set.Targets), version(t, c.set.Roles["auto/meter"])}
			if have != [3]int64{1, 1, 1} && have != [3]int64{2, 2, 2} {
				t.Errorf("cut at %d, seed %d: a mixture of %v", n, seed, have)
			}
			if _, err := c.Target(autoPath); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
			if err := c.Refresh(t.Context(), tr.source, start, next); err != nil {
				t.Errorf("cut at %d, seed %d: next refresh: %v", n, seed, err)
			}
			if _, err := c.Target(next); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
		}
	}
}
