package trust

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// FuzzPolicy: what is taken for a policy stays the same when it is written, and
// judging by it does not panic.
func FuzzPolicy(f *testing.F) {
	b, err := json.Marshal(signedPolicy())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"model":"meter","paths":["releases/meter/*"],"layers":[{"mediaType":"x","digests":[]}],"maxBytes":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var p AutoPolicy
		if json.Unmarshal(in, &p) != nil || p.Validate() != nil {
			return
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back AutoPolicy
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		b2, err := json.Marshal(back)
		if d := cmp.Diff(string(b), string(b2)); d != "" || err != nil {
			t.Fatal(d, err)
		}
		for _, path := range append([]string{autoPath, DirectorTarget, "releases/door/1"}, p.Paths...) {
			ix, m := autoRelease()
			if p.Check(path, ix, m) == nil && (ix.Annotations["dev.skein.model"] != p.Model || !strings.HasPrefix(path, "releases/")) {
				t.Fatalf("%s passes", path)
			}
		}
	})
}

// FuzzDelegated: whatever a thief signs with the key of an auto role, nothing
// panics, what it lists comes with its policy, and the top level stays as it is.
func FuzzDelegated(f *testing.F) {
	f.Add([]byte(`{"targets":{"releases/meter/auto-1":{"length":1,"hashes":{"sha256":"00"}}}}`), "releases/meter/auto-1")
	f.Add([]byte(`{"delegations":{"keys":{},"roles":[{"name":"x","keyids":["0"],"threshold":1,"terminating":false,"paths":["*"]}]},"targets":{}}`), "releases/meter/auto-2")
	f.Add([]byte(`{"delegations":{"keys":{},"succinct_roles":{"keyids":["0"],"threshold":1,"bit_length":33,"name_prefix":"x"}},"targets":{}}`), "releases/meter/auto-3")
	f.Add([]byte(`{"delegations":{"keys":{"0":{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"zz"}}},"roles":[{"name":"auto/meter","keyids":["0"],"threshold":-1,"paths":["releases/meter/*"]}]}}`), "director.json")
	f.Fuzz(func(t *testing.T, in []byte, path string) {
		var signed metadata.TargetsType
		if json.Unmarshal(in, &signed) != nil {
			return
		}
		tr := autoTree(t)
		m := tr.role("auto/meter")
		m.Signed.Targets, m.Signed.Delegations, m.Signed.UnrecognizedFields = signed.Targets, signed.Delegations, signed.UnrecognizedFields
		if m.Signed.Targets == nil {
			m.Signed.Targets = map[string]*metadata.TargetFiles{}
		}
		if _, err := sign(m, tr.key("meter")); err != nil {
			return // what cannot be signed is nobody's metadata
		}
		tr.publish(autoSigners)
		c, mem := tr.client()
		if err := c.Refresh(t.Context(), tr.source, start, path, autoPath); err != nil && AttackClass(err) == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		again, err := NewClient(mem, tr.files["1.root.json"])
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*Client{c, again} {
			for _, p := range []string{path, autoPath} {
				info, err := c.Target(p)
				if err == nil && info.Role != "" && (info.Policy == nil || !info.Policy.lists(p)) {
					t.Fatalf("%q: %+v", p, info)
				}
			}
			if info, err := c.Target("releases/meter/1"); err != nil || info.Role != "" || info.Custom.Counter != 1 {
				t.Fatalf("what a person signed: %+v, %v", info, err)
			}
			if info, err := c.Target(DirectorTarget); err != nil || info.Role != "" {
				t.Fatalf("director: %+v, %v", info, err)
			}
		}
	})
}
