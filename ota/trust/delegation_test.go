package trust

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// tree is a repository whose delegations a test draws by hand.
type tree struct {
	t     testing.TB
	now   time.Time
	keys  map[string]ed25519.PrivateKey // by role, or by parent>role where that differs
	root  *metadata.Metadata[metadata.RootType]
	roles map[string]*targetsMeta
	not   map[string]bool // roles that the snapshot does not list
	n     int64           // version of all that is signed
	files map[string][]byte
	asked []string
}

func newTree(t testing.TB) *tree {
	tr := &tree{t: t, now: start, keys: map[string]ed25519.PrivateKey{}, not: map[string]bool{}, root: metadata.Root(start.Add(RootLife)), roles: map[string]*targetsMeta{}}
	tr.root.Signed.ConsistentSnapshot = true
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		if err := addKey(&tr.root.Signed, tr.key(role), role); err != nil {
			t.Fatal(err)
		}
	}
	tr.roles[metadata.TARGETS] = metadata.Targets(start.Add(TargetsLife))
	return tr
}

func (tr *tree) key(name string) ed25519.PrivateKey {
	k, ok := tr.keys[name]
	if !ok {
		seed := sha256.Sum256([]byte(name))
		k = ed25519.NewKeyFromSeed(seed[:])
		tr.keys[name] = k
	}
	return k
}

func (tr *tree) public(name string) (string, *metadata.Key) {
	tr.t.Helper()
	k, err := metadata.KeyFromPublicKey(tr.key(name).Public())
	if err != nil {
		tr.t.Fatal(err)
	}
	id, err := k.ID()
	if err != nil {
		tr.t.Fatal(err)
	}
	return id, k
}

// delegate makes parent delegate paths to role, whose key is called key.
func (tr *tree) delegate(parent, role, key string, terminating bool, paths ...string) *metadata.DelegatedRole {
	tr.t.Helper()
	p := tr.role(parent)
	if p.Signed.Delegations == nil {
		p.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	}
	id, k := tr.public(key)
	d := p.Signed.Delegations
	d.Keys[id] = k
	d.Roles = append(d.Roles, metadata.DelegatedRole{Name: role, KeyIDs: []string{id}, Threshold: 1, Terminating: terminating, Paths: paths})
	tr.role(role)
	return &d.Roles[len(d.Roles)-1]
}

func (tr *tree) role(name string) *targetsMeta {
	if tr.roles[name] == nil {
		tr.roles[name] = metadata.Targets(start.Add(SnapshotLife))
	}
	return tr.roles[name]
}

func (tr *tree) list(role, path string, custom TargetCustom) {
	tr.t.Helper()
	raw, err := json.Marshal(custom)
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.role(role).Signed.Targets[path] = &metadata.TargetFiles{Path: path, Length: 7, Hashes: metadata.Hashes{"sha256": ota.DigestOf([]byte(role + path)).Sum()}, Custom: (*json.RawMessage)(&raw)}
}

// publish signs all with the next version. signers says who signs a role, when
// it is not the key of its name.
func (tr *tree) publish(signers map[string]string) {
	tr.t.Helper()
	tr.n++
	if tr.files == nil {
		tr.files = map[string][]byte{}
	}
	put := func(name string, b []byte, err error) []byte {
		if err != nil {
			tr.t.Fatal(err)
		}
		tr.files[name] = b
		return b
	}
	if tr.n == 1 {
		b, err := sign(tr.root, tr.key(metadata.ROOT))
		put("1.root.json", b, err)
	}
	snapshot := metadata.Snapshot(start.Add(SnapshotLife))
	snapshot.Signed.Version = tr.n
	for role, m := range tr.roles {
		m.Signed.Version = tr.n
		who := role
		if s := signers[role]; s != "" {
			who = s
		}
		b, err := sign(m, tr.key(who))
		put(fmt.Sprintf("%d.%s.json", tr.n, fileName(role)), b, err)
		if !tr.not[role] {
			snapshot.Signed.Meta[role+".json"] = metaFile(tr.n, b)
		}
	}
	b, err := sign(snapshot, tr.key(metadata.SNAPSHOT))
	put(fmt.Sprintf("%d.snapshot.json", tr.n), b, err)
	timestamp := metadata.Timestamp(start.Add(TimestampLife))
	timestamp.Signed.Version = tr.n
	timestamp.Signed.Meta["snapshot.json"] = metaFile(tr.n, b)
	b, err = sign(timestamp, tr.key(metadata.TIMESTAMP))
	put("timestamp.json", b, err)
}

func (tr *tree) source(_ context.Context, name string) ([]byte, error) {
	tr.asked = append(tr.asked, name)
	b, ok := tr.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (tr *tree) client() (*Client, *slot.Mem) {
	tr.t.Helper()
	mem := slot.NewMem()
	c, err := NewClient(mem, tr.files["1.root.json"])
	if err != nil {
		tr.t.Fatal(err)
	}
	return c, mem
}

// visited are the delegated roles asked for since the last call.
func (tr *tree) visited() []string {
	var out []string
	for _, name := range tr.asked {
		parts := strings.Split(name, ".")
		if len(parts) == 3 && !slices.Contains(metadata.TOP_LEVEL_ROLE_NAMES[:], parts[1]) {
			out = append(out, parts[1])
		}
	}
	tr.asked = nil
	return out
}

// edge is parent>role, optionally !terminating, and its path.
type edge struct {
	parent, role string
	terminating  bool
	path         string
}

// TestWalk: the graphs of the TUF conformance suite.
func TestWalk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edges []edge
		want  []string
	}{
		"basic":                            {[]edge{{"targets", "A", false, "*"}}, []string{"A"}},
		"two levels, depth first":          {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"A", "C", false, "*"}, {"A", "D", false, "*"}}, []string{"A", "C", "D", "B"}},
		"terminating":                      {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"A", "C", true, "*"}, {"A", "D", false, "*"}}, []string{"A", "C"}},
		"terminating with a child":         {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"A", "C", true, "*"}, {"C", "D", false, "*"}}, []string{"A", "C", "D"}},
		"other paths":                      {[]edge{{"targets", "A", false, "*.py"}, {"targets", "B", false, "*"}, {"A", "C", false, "*"}}, []string{"B"}},
		"cycle":                            {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"B", "C", false, "*"}, {"C", "D", false, "*"}, {"D", "B", false, "*"}}, []string{"A", "B", "C", "D"}},
		"cycle over the top":               {[]edge{{"targets", "A", false, "*"}, {"A", "A", false, "*"}}, []string{"A"}},
		"diamond":                          {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"B", "C", false, "*"}, {"A", "C", false, "*"}}, []string{"A", "C", "B"}},
		"diamond, one of whose paths fits": {[]edge{{"targets", "A", false, "*"}, {"targets", "B", false, "*"}, {"B", "C", false, "*"}, {"A", "C", false, "*.py"}}, []string{"A", "B", "C"}},
		"a terminating one that does not fit is none": {[]edge{{"targets", "A", true, "*.py"}, {"targets", "B", false, "*"}}, []string{"B"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			for _, e := range c.edges {
				tr.delegate(e.parent, e.role, e.role, e.terminating, e.path)
			}
			tr.publish(nil)
			client, _ := tr.client()
			if err := client.Refresh(t.Context(), tr.source, start, "missing"); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, tr.visited()); d != "" {
				t.Error(d)
			}
			if _, err := client.Target("missing"); !errors.Is(err, ErrUnknownTarget) || errors.Is(err, ErrNotHeld) {
				t.Error(err)
			}
		})
	}
}

// TestDelegated: what is delegated is found, also later without a network and
// after a restart, and only for the paths that a device asked for.
func TestDelegated(t *testing.T) {
	tr := newTree(t)
	tr.delegate("targets", "team/x", "x", false, "releases/x/*", "more/*/?")
	tr.delegate("targets", "team y", "y", false, "releases/y/*")
	tr.delegate("team/x", "x deep", "xx", false, "releases/x/d-*")
	tr.list("targets", "releases/top/1", TargetCustom{Counter: 1})
	tr.list("team/x", "releases/x/1", TargetCustom{Counter: 2})
	tr.list("team/x", "releases/y/stolen", TargetCustom{Counter: 9})
	tr.list("team/x", "more/a/bb", TargetCustom{Counter: 9})
	tr.list("x deep", "releases/x/d-1", TargetCustom{Counter: 3})
	tr.list("team y", "releases/y/1", TargetCustom{Counter: 4})
	tr.publish(map[string]string{"team/x": "x", "team y": "y", "x deep": "xx"})
	c, mem := tr.client()
	if err := c.Refresh(t.Context(), tr.source, start, "releases/top/1", "releases/x/d-1"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"team%2Fx", "x%20deep"}, tr.visited()); d != "" {
		t.Error(d)
	}
	again, err := NewClient(mem, tr.files["1.root.json"])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{"same process": c, "restarted": again} {
		for path, want := range map[string]string{"releases/top/1": "", "releases/x/1": "team/x", "releases/x/d-1": "x deep"} {
			info, err := c.Target(path)
			if err != nil || info.Role != want || info.Policy != nil || info.Path != path {
				t.Errorf("%s: %s: %+v, %v, want role %q", name, path, info, err, want)
			}
		}
		if _, err := c.Target("releases/y/1"); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%s: a role that was not learned: %v", name, err)
		}
		// Out of its paths, and over a slash.
		for _, path := range []string{"more/a/bb", "releases/z/1"} {
			if _, err := c.Target(path); !errors.Is(err, ErrUnknownTarget) {
				t.Errorf("%s: %s: %v", name, path, err)
			}
		}
	}
	if err := c.Refresh(t.Context(), tr.source, start, "releases/y/stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Target("releases/y/stolen"); !errors.Is(err, ErrUnknownTarget) {
		t.Errorf("a role lists what is delegated to another one: %v", err)
	}
	// A new version of all: what was asked for once is kept up to date, unasked.
	tr.list("x deep", "releases/x/d-2", TargetCustom{Counter: 5})
	tr.publish(map[string]string{"team/x": "x", "team y": "y", "x deep": "xx"})
	if err := c.Refresh(t.Context(), tr.source, start); err != nil {
		t.Fatal(err)
	}
	if info, err := c.Target("releases/x/d-2"); err != nil || info.Role != "x deep" {
		t.Errorf("%+v, %v", info, err)
	}
	// Nothing new: nothing is asked for but the next root and the timestamp, nothing is written.
	tr.asked = nil
	ops := mem.Ops()
	if err := c.Refresh(t.Context(), tr.source, start, "releases/x/d-2"); err != nil {
		t.Fatal(err)
	}
	ops2 := mem.Ops()
	tr.asked = nil
	if err := c.Refresh(t.Context(), tr.source, start, "releases/x/d-2"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"2.root.json", "timestamp.json"}, tr.asked); d != "" || mem.Ops() != ops2 {
		t.Errorf("an idle refresh wrote %d times (%d before) and asked %s", mem.Ops()-ops2, ops2-ops, d)
	}
}

// TestPathHashPrefixes: in hexadecimal, as the specification says.
func TestPathHashPrefixes(t *testing.T) {
	sum := sha256.Sum256([]byte("releases/meter/1"))
	tr := newTree(t)
	d := tr.delegate("targets", "other", "other", false)
	d.PathHashPrefixes = []string{fmt.Sprintf("%02x", sum[0]^0xff)}
	d = tr.delegate("targets", "bin", "bin", false)
	d.PathHashPrefixes = []string{"zz", hex.EncodeToString(sum[:])[:3]}
	tr.delegate("targets", "none", "none", false) // neither paths nor prefixes: nothing
	tr.list("bin", "releases/meter/1", TargetCustom{Counter: 1})
	tr.publish(nil)
	c, _ := tr.client()
	if err := c.Refresh(t.Context(), tr.source, start, "releases/meter/1"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"bin"}, tr.visited()); d != "" {
		t.Error(d)
	}
	if info, err := c.Target("releases/meter/1"); err != nil || info.Role != "bin" {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestSuccinctRoles(t *testing.T) {
	sum := sha256.Sum256([]byte("releases/meter/1"))
	bin := fmt.Sprintf("bin-%02x", sum[0]>>3) // 5 bits
	tr := newTree(t)
	id, k := tr.public("bins")
	tr.role("targets").Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{id: k},
		SuccinctRoles: &metadata.SuccinctRoles{KeyIDs: []string{id}, Threshold: 1, BitLength: 5, NamePrefix: "bin"}}
	tr.list(bin, "releases/meter/1", TargetCustom{Counter: 1})
	tr.publish(map[string]string{bin: "bins"})
	c, _ := tr.client()
	if err := c.Refresh(t.Context(), tr.source, start, "releases/meter/1"); err != nil {
		t.Fatal(err)
	}
	if info, err := c.Target("releases/meter/1"); err != nil || info.Role != bin {
		t.Errorf("%+v, %v", info, err)
	}
	for _, bits := range []int{-1, 0, 33, 1 << 40} {
		tr := newTree(t)
		tr.role("targets").Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{id: k},
			SuccinctRoles: &metadata.SuccinctRoles{KeyIDs: []string{id}, Threshold: 1, BitLength: bits, NamePrefix: "bin"}}
		tr.publish(nil)
		c, _ := tr.client()
		if err := c.Refresh(t.Context(), tr.source, start, "releases/meter/1"); AttackClass(err) != ClassMalformed {
			t.Errorf("%d bits: %v", bits, err)
		}
	}
}

// TestCurrentDelegator: what one parent vouches for, another one may not. Both
// are asked in one process and of one state, where a cache by name would err.
func TestCurrentDelegator(t *testing.T) {
	tr := newTree(t)
	tr.delegate("targets", "parent-a", "parent-a", false, "team-a/*")
	tr.delegate("targets", "parent-b", "parent-b", false, "team-b/*")
	tr.delegate("parent-a", "release", "key-a", false, "team-a/*")
	tr.delegate("parent-b", "release", "key-b", false, "team-b/*")
	tr.list("release", "team-a/1", TargetCustom{})
	tr.list("release", "team-b/1", TargetCustom{})
	tr.publish(map[string]string{"release": "key-a"})
	for _, order := range [][]string{{"team-a/1", "team-b/1"}, {"team-b/1", "team-a/1"}} {
		c, mem := tr.client()
		if err := c.Refresh(t.Context(), tr.source, start, order...); AttackClass(err) != ClassArbitrary {
			t.Errorf("class of %v, want %s", err, ClassArbitrary)
		}
		again, err := NewClient(mem, tr.files["1.root.json"])
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*Client{"same process": c, "restarted": again} {
			if info, err := c.Target("team-a/1"); err != nil || info.Role != "release" {
				t.Errorf("%s: %+v, %v", name, info, err)
			}
			if info, err := c.Target("team-b/1"); AttackClass(err) != ClassArbitrary {
				t.Errorf("%s: %+v, %v", name, info, err)
			}
		}
	}
}

// TestLostOnTheWay: where the network ends at a delegated role, asked for or
// kept up to date, the refresh fails as a whole and what was known stays known.
func TestLostOnTheWay(t *testing.T) {
	down := errors.New("no route")
	for name, paths := range map[string][]string{"asked for": {autoPath}, "kept up to date": nil, "beside another": {"releases/meter/1"}} {
		t.Run(name, func(t *testing.T) {
			tr := autoTree(t)
			tr.publish(autoSigners)
			c, mem := tr.client()
			if err := c.Refresh(t.Context(), tr.source, start, autoPath); err != nil {
				t.Fatal(err)
			}
			tr.list("auto/meter", "releases/meter/auto-2", TargetCustom{Counter: 8})
			tr.publish(autoSigners)
			err := c.Refresh(t.Context(), func(ctx context.Context, name string) ([]byte, error) {
				if name == "2.auto%2Fmeter.json" {
					return nil, down
				}
				return tr.source(ctx, name)
			}, start, paths...)
			if !errors.Is(err, down) || AttackClass(err) != "" {
				t.Errorf("%v", err)
			}
			again, err := NewClient(mem, tr.files["1.root.json"])
			if err != nil {
				t.Fatal(err)
			}
			for name, c := range map[string]*Client{"same process": c, "restarted": again} {
				if _, err := c.Target(autoPath); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := c.Refresh(t.Context(), tr.source, start, paths...); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if _, err := c.Target("releases/meter/auto-2"); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestOddPaths: what can be no target is not believed, whoever lists it, and
// what is too long is not even looked for.
func TestOddPaths(t *testing.T) {
	tr := autoTree(t)
	tr.delegate("targets", "any", "any", false, "*", "*/*", "*/*/*")
	long := strings.Repeat("x", maxPath+1)
	odd := []string{"", "..", "../x", "/abs", "a b", long, "releases/\x00/1"}
	for _, p := range odd {
		tr.list("any", p, TargetCustom{})
	}
	tr.publish(autoSigners)
	c, _ := tr.client()
	if err := c.Refresh(t.Context(), tr.source, start, "", long); err != nil {
		t.Fatal(err)
	}
	if got := tr.visited(); len(got) != 0 || len(c.set.Paths) != 0 {
		t.Errorf("asked for %v, remembers %v", got, c.set.Paths)
	}
	if err := c.Refresh(t.Context(), tr.source, start, odd...); err != nil {
		t.Fatal(err)
	}
	for _, p := range odd {
		if info, err := c.Target(p); err == nil {
			t.Errorf("%q: %+v", p, info)
		}
	}
}

// TestDelegatedBytes: a device does not fill itself with what is delegated. A
// role that comes again, on another way, counts once.
func TestDelegatedBytes(t *testing.T) {
	u := update{next: trustedSet{Roles: map[string][]byte{}}}
	half := make([]byte, maxDelegated/2)
	for _, role := range []string{"a", "b", "a", "b"} {
		if err := u.hold(role, half); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.hold("c", []byte{1}); AttackClass(err) != ClassEndless || u.next.Roles["c"] != nil {
		t.Errorf("%v, want %s", err, ClassEndless)
	}
}
