package trust

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

var start = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

// world is a repository and a device that has refreshed from it once.
type world struct {
	t      *testing.T
	repo   *Repo
	mem    *slot.Mem
	client *Client
	anchor []byte
	now    time.Time
	over   map[string][]byte // what the attacker serves instead; nil bytes: not there
	count  uint64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	f := slot.NewMem()
	if _, err := initDev(f, "skein.local", start); err != nil {
		t.Fatal(err)
	}
	repo, err := openRepo(f)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, repo: repo, mem: slot.NewMem(), anchor: repo.Root(), now: start, over: map[string][]byte{}}
	w.client, err = NewClient(w.mem, w.anchor)
	if err != nil {
		t.Fatal(err)
	}
	w.release()
	w.mustRefresh()
	return w
}

func (w *world) release() string {
	w.t.Helper()
	w.count++
	path := fmt.Sprintf("releases/meter/%d", w.count)
	if err := w.repo.AddTarget(w.t.Context(), path, 100+int64(w.count), ota.DigestOf([]byte(path)), TargetCustom{Counter: w.count}, w.now); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) source(ctx context.Context, name string) ([]byte, error) {
	if b, ok := w.over[name]; ok {
		if b == nil {
			return nil, fs.ErrNotExist
		}
		return b, nil
	}
	return w.repo.Metadata(name)
}

func (w *world) refresh() error { return w.client.Refresh(w.t.Context(), w.source, w.now) }

func (w *world) mustRefresh() {
	w.t.Helper()
	if err := w.refresh(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) meta(name string) []byte {
	w.t.Helper()
	b, err := w.repo.Metadata(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// state is all the client has on disk, but for what it saw and did not accept.
func (w *world) state() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, name := range []string{rootFile, setFile, timeFile} {
		b, err := w.mem.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
		out[name] = string(b)
	}
	var set trustedSet
	if err := json.Unmarshal([]byte(out[setFile]), &set); err == nil {
		set.Seen = seenSet{}
		b, err := json.Marshal(set)
		if err != nil {
			w.t.Fatal(err)
		}
		out[setFile] = string(b)
	}
	return out
}

func (w *world) versions() string {
	r := w.repo
	return fmt.Sprintf("snapshot %d, targets %d", r.snapshot.Signed.Version, r.targets.Signed.Version)
}

// current names the versioned files that the repository serves now.
func (w *world) current(role string) string {
	switch role {
	case metadata.SNAPSHOT:
		return fmt.Sprintf("%d.snapshot.json", w.repo.snapshot.Signed.Version)
	case metadata.TARGETS:
		return fmt.Sprintf("%d.targets.json", w.repo.targets.Signed.Version)
	}
	return role + ".json"
}

// attack asserts the four things: refused, nothing applied, named, and the
// next honest update works, in this process and after a restart.
func (w *world) attack(class string) {
	w.t.Helper()
	before, targets := w.state(), w.client.Targets()
	err := w.refresh()
	if err == nil {
		w.t.Fatal("(a) the attack was not refused")
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		w.t.Errorf("(b) trusted files changed:\n%s", d)
	}
	if d := cmp.Diff(targets, w.client.Targets()); d != "" {
		w.t.Errorf("(b) targets changed:\n%s", d)
	}
	if got := AttackClass(err); got != class {
		w.t.Errorf("(c) class %q of %v, want %q", got, err, class)
	}
	again, err := NewClient(w.mem, w.anchor)
	if err != nil {
		w.t.Fatal(err)
	}
	if d := cmp.Diff(targets, again.Targets()); d != "" {
		w.t.Errorf("(b) targets changed by a restart:\n%s", d)
	}
	clear(w.over)
	path := w.release()
	for name, c := range map[string]*Client{"same process": w.client, "restarted": again} {
		w.client = c
		if err := w.refresh(); err != nil {
			w.t.Errorf("(d) next honest update, %s: %v", name, err)
		} else if _, err := c.Target(path); err != nil {
			w.t.Errorf("(d) next honest update, %s: %v", name, err)
		}
	}
}

func TestHonestUpdates(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		path := w.release()
		w.mustRefresh()
		info, err := w.client.Target(path)
		if err != nil {
			t.Fatal(err)
		}
		want := TargetInfo{Path: path, Length: 100 + int64(w.count), Digest: ota.DigestOf([]byte(path)), Custom: TargetCustom{Counter: w.count}}
		if d := cmp.Diff(want, info); d != "" {
			t.Error(d)
		}
	}
	// Nothing new: nothing but timestamp and the next root is asked for, nothing written.
	before, ops := w.state(), w.mem.Ops()
	var asked []string
	err := w.client.Refresh(t.Context(), func(ctx context.Context, name string) ([]byte, error) {
		asked = append(asked, name)
		return w.source(ctx, name)
	}, w.now)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"2.root.json", "timestamp.json"}, asked); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, w.state()); d != "" || w.mem.Ops() != ops {
		t.Errorf("an idle refresh wrote %d times: %s", w.mem.Ops()-ops, d)
	}
	if _, err := w.client.Target("releases/meter/99"); !errors.Is(err, ErrUnknownTarget) {
		t.Error(err)
	}
	if err := w.repo.RemoveTarget(t.Context(), "releases/meter/1", w.now); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	if _, err := w.client.Target("releases/meter/1"); !errors.Is(err, ErrUnknownTarget) {
		t.Error(err)
	}
}

func TestRefuses(t *testing.T) {
	evil := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	flip := func(b []byte) []byte {
		// A digit of a signature, so that the file stays well-formed.
		i := bytes.Index(b, []byte(`"sig":"`)) + len(`"sig":"`)
		c := bytes.Clone(b)
		if c[i]++; b[i] == '9' || b[i] == 'f' {
			c[i] = '0'
		}
		return c
	}
	stolen := func(w *world, role string) []ed25519.PrivateKey {
		keys, err := w.repo.keys.forRole(w.repo.root, role)
		if err != nil {
			w.t.Fatal(err)
		}
		return keys
	}
	must := func(w *world, b []byte, err error) []byte {
		if err != nil {
			w.t.Fatal(err)
		}
		return b
	}
	// resign signs the timestamp of the repository anew, changed.
	timestamp := func(w *world, change func(*metadata.TimestampType), keys ...ed25519.PrivateKey) []byte {
		m, err := metadata.Timestamp().FromBytes(w.meta("timestamp.json"))
		if err != nil {
			w.t.Fatal(err)
		}
		change(&m.Signed)
		b, err := sign(m, keys...)
		return must(w, b, err)
	}
	snapshot := func(w *world, change func(*metadata.SnapshotType), keys ...ed25519.PrivateKey) []byte {
		m, err := metadata.Snapshot().FromBytes(w.meta("snapshot.json"))
		if err != nil {
			w.t.Fatal(err)
		}
		change(&m.Signed)
		b, err := sign(m, keys...)
		return must(w, b, err)
	}
	targets := func(w *world, change func(*metadata.TargetsType), keys ...ed25519.PrivateKey) []byte {
		m, err := metadata.Targets().FromBytes(w.meta("targets.json"))
		if err != nil {
			w.t.Fatal(err)
		}
		change(&m.Signed)
		b, err := sign(m, keys...)
		return must(w, b, err)
	}
	for name, c := range map[string]struct {
		class string
		stage func(w *world)
	}{
		"rollback of timestamp": {ClassRollback, func(w *world) {
			old := w.meta("timestamp.json")
			w.release()
			w.mustRefresh()
			w.over["timestamp.json"] = old
		}},
		"rollback of the snapshot by a stolen timestamp key": {ClassRollback, func(w *world) {
			old := w.meta("snapshot.json")
			version := w.repo.snapshot.Signed.Version
			w.release()
			w.mustRefresh()
			w.over["timestamp.json"] = timestamp(w, func(s *metadata.TimestampType) {
				s.Version++
				s.Meta["snapshot.json"] = metaFile(version, old)
			}, stolen(w, metadata.TIMESTAMP)...)
		}},
		"rollback of targets by stolen snapshot and timestamp keys": {ClassRollback, func(w *world) {
			old, version := w.meta("targets.json"), w.repo.targets.Signed.Version
			w.release()
			w.mustRefresh()
			var v int64
			snap := snapshot(w, func(s *metadata.SnapshotType) {
				s.Version++
				v = s.Version
				s.Meta["targets.json"] = metaFile(version, old)
			}, stolen(w, metadata.SNAPSHOT)...)
			w.over["timestamp.json"] = timestamp(w, func(s *metadata.TimestampType) {
				s.Version++
				s.Meta["snapshot.json"] = metaFile(v, snap)
			}, stolen(w, metadata.TIMESTAMP)...)
			w.over[fmt.Sprintf("%d.snapshot.json", v)] = snap
		}},
		"freeze: an old timestamp past its expiry": {ClassFreeze, func(w *world) {
			w.over["timestamp.json"] = w.meta("timestamp.json")
			w.now = start.Add(TimestampLife + time.Hour)
		}},
		"freeze with the clock of the device set back": {ClassFreeze, func(w *world) {
			old := w.meta("timestamp.json")
			later := start.Add(TimestampLife + time.Hour)
			w.over["timestamp.json"] = old
			if err := w.client.advance(later, w.client.time.Keys); err != nil {
				w.t.Fatal(err)
			}
			w.now = time.Unix(0, 0)
		}},
		"expired snapshot": {ClassFreeze, func(w *world) {
			w.now = start.Add(SnapshotLife + time.Hour)
			if err := w.repo.signTimestamp(w.now); err != nil {
				w.t.Fatal(err)
			}
		}},
		"expired targets": {ClassFreeze, func(w *world) {
			w.now = start.Add(TargetsLife + time.Hour)
			if err := w.repo.signSnapshot(w.now); err != nil {
				w.t.Fatal(err)
			}
		}},
		"mix and match: old targets under new snapshot": {ClassMixAndMatch, func(w *world) {
			old := w.meta("targets.json")
			w.release()
			w.over[w.current(metadata.TARGETS)] = old
		}},
		"mix and match: old snapshot under new timestamp": {ClassMixAndMatch, func(w *world) {
			old := w.meta("snapshot.json")
			w.release()
			w.over[w.current(metadata.SNAPSHOT)] = old[:len(old):len(old)]
		}},
		"mix and match: new targets under old snapshot": {ClassMixAndMatch, func(w *world) {
			w.release()
			stamp, snap, snapName, targetsName := w.meta("timestamp.json"), w.meta("snapshot.json"), w.current(metadata.SNAPSHOT), w.current(metadata.TARGETS)
			w.release()
			w.over["timestamp.json"], w.over[snapName], w.over[targetsName] = stamp, snap, w.meta("targets.json")[:0:0]
			w.over[targetsName] = targets(w, func(s *metadata.TargetsType) {
				for k := range s.Targets {
					if k != DirectorTarget {
						delete(s.Targets, k)
					}
				}
			}, stolen(w, metadata.TARGETS)...)
		}},
		"unsigned timestamp": {ClassArbitrary, func(w *world) {
			w.release()
			w.over["timestamp.json"] = timestamp(w, func(*metadata.TimestampType) {})
		}},
		"timestamp of a foreign key": {ClassArbitrary, func(w *world) {
			w.release()
			w.over["timestamp.json"] = timestamp(w, func(*metadata.TimestampType) {}, evil)
		}},
		"timestamp signed by the key of another role": {ClassArbitrary, func(w *world) {
			w.release()
			w.over["timestamp.json"] = timestamp(w, func(*metadata.TimestampType) {}, stolen(w, metadata.SNAPSHOT)...)
		}},
		"changed signature": {ClassArbitrary, func(w *world) {
			w.release()
			w.over["timestamp.json"] = flip(w.meta("timestamp.json"))
		}},
		"arbitrary targets with a stolen timestamp key alone": {ClassArbitrary, func(w *world) {
			w.release()
			var v int64
			bad := targets(w, func(s *metadata.TargetsType) { s.Version++ }, evil)
			snap := snapshot(w, func(s *metadata.SnapshotType) {
				s.Version++
				v = s.Version
				s.Meta["targets.json"] = metaFile(v, bad)
			}, evil)
			w.over["timestamp.json"] = timestamp(w, func(s *metadata.TimestampType) {
				s.Version++
				s.Meta["snapshot.json"] = metaFile(v, snap)
			}, stolen(w, metadata.TIMESTAMP)...)
			w.over[fmt.Sprintf("%d.snapshot.json", v)] = snap
		}},
		"root of a foreign key": {ClassArbitrary, func(w *world) {
			m, err := metadata.Root().FromBytes(w.anchor)
			if err != nil {
				w.t.Fatal(err)
			}
			m.Signed.Version = 2
			if err := addKey(&m.Signed, evil, metadata.ROOT); err != nil {
				w.t.Fatal(err)
			}
			b, err := sign(m, evil)
			w.over["2.root.json"] = must(w, b, err)
		}},
		"root that skips a version": {ClassRollback, func(w *world) {
			m, err := metadata.Root().FromBytes(w.anchor)
			if err != nil {
				w.t.Fatal(err)
			}
			m.Signed.Version = 3
			b, err := sign(m, stolen(w, metadata.ROOT)...)
			w.over["2.root.json"] = must(w, b, err)
		}},
		"the same key twice under a threshold of two": {ClassArbitrary, func(w *world) {
			m, err := metadata.Root().FromBytes(w.anchor)
			if err != nil {
				w.t.Fatal(err)
			}
			m.Signed.Version = 2
			r := m.Signed.Roles[metadata.ROOT]
			r.Threshold = 2
			r.KeyIDs = append(r.KeyIDs, r.KeyIDs[0])
			b, err := sign(m, stolen(w, metadata.ROOT)...)
			w.over["2.root.json"] = must(w, b, err)
		}},
		"changed targets": {ClassWrongHash, func(w *world) {
			w.release()
			w.over[w.current(metadata.TARGETS)] = bytes.Replace(w.meta("targets.json"), []byte(`"counter":1`), []byte(`"counter":9`), 1)
		}},
		"truncated targets": {ClassWrongHash, func(w *world) {
			w.release()
			b := w.meta("targets.json")
			w.over[w.current(metadata.TARGETS)] = b[:len(b)/2]
		}},
		"targets longer than signed": {ClassEndless, func(w *world) {
			w.release()
			w.over[w.current(metadata.TARGETS)] = append(bytes.Clone(w.meta("targets.json")), ' ')
		}},
		"endless timestamp": {ClassEndless, func(w *world) {
			w.release()
			w.over["timestamp.json"] = bytes.Repeat([]byte(" "), maxTimestamp+1)
		}},
		"endless root": {ClassEndless, func(w *world) { w.over["2.root.json"] = make([]byte, maxRoot+1) }},
		"snapshot in place of timestamp": {ClassMalformed, func(w *world) {
			w.release()
			w.over["timestamp.json"] = w.meta("snapshot.json")
		}},
		"no JSON": {ClassMalformed, func(w *world) { w.release(); w.over["timestamp.json"] = []byte("<html>") }},
		"null root": {ClassArbitrary, func(w *world) {
			w.over["2.root.json"] = []byte(`{"signed":{"_type":"root","roles":null,"keys":null},"signatures":[]}`)
		}},
		"null key root": {ClassArbitrary, func(w *world) {
			w.over["2.root.json"] = []byte(`{"signed":{"_type":"root","version":2,"roles":{"root":null},"keys":{"a":null}},"signatures":[{"keyid":"a","sig":""}]}`)
		}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := newWorld(t)
			c.stage(w)
			if strings.Contains(name, "clock of the device") {
				w.clockAttack(c.class)
				return
			}
			if strings.HasPrefix(name, "expired") {
				w.expiredAttack(c.class)
				return
			}
			w.attack(c.class)
		})
	}
}

// clockAttack is attack with a repository whose clock is right.
func (w *world) clockAttack(class string) {
	w.t.Helper()
	if err := w.refresh(); AttackClass(err) != class {
		w.t.Errorf("got %v, want class %s", err, class)
	}
	clear(w.over)
	device := w.now
	w.now = w.client.TrustedTime()
	path := w.release()
	w.now = device
	w.mustRefresh()
	if _, err := w.client.Target(path); err != nil {
		w.t.Error(err)
	}
}

// expiredAttack is attack where the repository itself served the old files.
func (w *world) expiredAttack(class string) {
	w.t.Helper()
	before := w.state()
	if err := w.refresh(); AttackClass(err) != class {
		w.t.Errorf("got %v, want class %s", err, class)
	}
	if d := cmp.Diff(before, w.state()); d != "" {
		w.t.Errorf("trusted files changed:\n%s", d)
	}
	if err := w.repo.Refresh(w.now); err != nil {
		w.t.Fatal(err)
	}
	w.mustRefresh()
}
