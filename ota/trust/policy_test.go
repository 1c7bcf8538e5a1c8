package trust

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

const (
	paramsText = `[{"key":"threshold","type":"float","default":"0.5"}]`
	autoPath   = "releases/meter/auto-1"
)

func sumOf(text string) ota.Digest { return ota.DigestOf([]byte(text)) }

// signedPolicy is what a person signs for a model called meter.
func signedPolicy() *AutoPolicy {
	return &AutoPolicy{
		Model: "meter", Paths: []string{"releases/meter/auto-*"}, MaxBytes: 10_000,
		Layers: []LayerRule{
			{MediaType: manifest.MediaWeights, Formats: []string{"onnx", "plan"}, MaxBytes: 8000},
			{MediaType: "application/vnd.skein.container.v1", Digests: []ota.Digest{sumOf("server")}},
			{MediaType: "application/vnd.skein.labels.v1", Digests: []ota.Digest{sumOf("labels")}},
		},
		Golden: []ota.Digest{sumOf("golden")}, Parameters: []ota.Digest{sumOf(paramsText)}, Recipes: []ota.Digest{sumOf("recipe")},
		Annotations: map[string][]string{"dev.skein.workload": {"server@1"}}, MinSoak: 60, MaxCounter: 100,
	}
}

// autoRelease is a release within that policy: an index and a manifest.
func autoRelease() (*manifest.Index, *manifest.Manifest) {
	layer := func(mediaType, text, title string, size int64) manifest.Descriptor {
		return manifest.Descriptor{MediaType: mediaType, Digest: sumOf(text), Size: size, Annotations: map[string]string{manifest.AnnTitle: title}}
	}
	ix := &manifest.Index{SchemaVersion: 2, MediaType: manifest.MediaIndex, ArtifactType: manifest.MediaArtifact, Annotations: map[string]string{
		manifest.AnnName: "meter", manifest.AnnVersion: "auto-1", manifest.AnnCounter: "7", manifest.AnnModel: "meter", manifest.AnnModelVersion: "3",
		manifest.AnnSoak: "1m", manifest.AnnParameters: paramsText, manifest.AnnRecipe: string(sumOf("recipe")), "dev.skein.workload": "server@1", "org.opencontainers.image.created": "today"}}
	m := &manifest.Manifest{SchemaVersion: 2, MediaType: manifest.MediaManifest, ArtifactType: manifest.MediaArtifact,
		Config: manifest.Descriptor{MediaType: manifest.MediaConfig, Digest: sumOf("config"), Size: 300},
		Layers: []manifest.Descriptor{
			layer(manifest.MediaWeights, "weights", "model.onnx", 5000), layer(manifest.MediaGolden, "golden", "golden.json", 1000),
			layer("application/vnd.skein.container.v1", "server", "server.tar", 2000), layer("application/vnd.skein.labels.v1", "labels", "labels.txt", 100),
		}, Annotations: map[string]string{manifest.AnnTarget: "linux/arm64"}}
	return ix, m
}

func TestPolicyCheck(t *testing.T) {
	type release struct {
		path string
		ix   *manifest.Index
		m    *manifest.Manifest
		p    *AutoPolicy
	}
	cases := map[string]struct {
		change func(r *release)
		want   string // "" passes
	}{
		"as signed":          {func(*release) {}, ""},
		"built engine":       {func(r *release) { r.m.Layers[0].Annotations[manifest.AnnTitle] = "model.plan" }, ""},
		"other weights":      {func(r *release) { r.m.Layers[0].Digest = sumOf("better") }, ""},
		"no parameters":      {func(r *release) { delete(r.ix.Annotations, manifest.AnnParameters) }, ""},
		"patches":            {func(r *release) { r.m.Layers[0].Annotations[manifest.AnnPatches] = "[]" }, ""},
		"no bound of number": {func(r *release) { r.p.MaxCounter = 0; r.ix.Annotations[manifest.AnnCounter] = "999" }, ""},

		"other code":             {func(r *release) { r.m.Layers[2].Digest = sumOf("evil server") }, "no rule"},
		"code as weights":        {func(r *release) { r.m.Layers[0].Annotations[manifest.AnnTitle] = "model.so" }, "no rule"},
		"weights without a name": {func(r *release) { r.m.Layers[0].Annotations = nil }, "no rule"},
		"one more layer": {func(r *release) {
			r.m.Layers = append(r.m.Layers, manifest.Descriptor{MediaType: "application/vnd.skein.agent.v1", Digest: sumOf("agent"), Size: 1})
		}, "no rule"},
		"pinned content as other type": {func(r *release) { r.m.Layers[3].MediaType = "application/vnd.skein.container.v1" }, "no rule"},
		"other golden set":             {func(r *release) { r.m.Layers[1].Digest = sumOf("easy golden") }, "golden"},
		"no golden set":                {func(r *release) { r.m.Layers = append(r.m.Layers[:1:1], r.m.Layers[2:]...) }, "golden"},
		"two golden sets":              {func(r *release) { r.m.Layers = append(r.m.Layers, r.m.Layers[1]) }, "golden"},
		"layer too big":                {func(r *release) { r.m.Layers[0].Size = 8001 }, "no rule"},
		"all too big":                  {func(r *release) { r.m.Layers[0].Size, r.m.Layers[2].Size = 7000, 3000 }, "more than 10000 bytes"},
		"config too big":               {func(r *release) { r.m.Config.Size = 1 << 20 }, "config"},
		"config of another type":       {func(r *release) { r.m.Config.MediaType = "application/vnd.oci.image.config.v1+json" }, "config"},
		"config that is not pinned":    {func(r *release) { r.p.Configs = []ota.Digest{sumOf("other")} }, "config"},
		"other parameters":             {func(r *release) { r.ix.Annotations[manifest.AnnParameters] = `[{"key":"exec","type":"string"}]` }, "parameters"},
		"other recipe":                 {func(r *release) { r.ix.Annotations[manifest.AnnRecipe] = string(sumOf("mine")) }, "recipe"},
		"other workload":               {func(r *release) { r.ix.Annotations["dev.skein.workload"] = "shell@1" }, "dev.skein.workload"},
		"annotation of tomorrow":       {func(r *release) { r.ix.Annotations["dev.skein.hook"] = "sh" }, "dev.skein.hook"},
		"annotation of a manifest":     {func(r *release) { r.m.Annotations["dev.skein.hook"] = "sh" }, "dev.skein.hook"},
		"annotation of a layer":        {func(r *release) { r.m.Layers[0].Annotations["dev.skein.hook"] = "sh" }, "dev.skein.hook"},
		"annotation of a config":       {func(r *release) { r.m.Config.Annotations = map[string]string{"dev.skein.hook": "sh"} }, "dev.skein.hook"},
		"other model":                  {func(r *release) { r.ix.Annotations[manifest.AnnModel] = "door" }, "model"},
		"release of another name":      {func(r *release) { r.path = "releases/door/auto-1" }, "path"},
		"release of a person's name":   {func(r *release) { r.path = "releases/meter/2" }, "path"},
		"deeper path":                  {func(r *release) { r.path = "releases/meter/auto-1/x" }, "path"},
		"number used up":               {func(r *release) { r.ix.Annotations[manifest.AnnCounter] = "101" }, "counter"},
		"no trial":                     {func(r *release) { r.ix.Annotations[manifest.AnnSoak] = "59s" }, "soak"},
		"no trial at all":              {func(r *release) { delete(r.ix.Annotations, manifest.AnnSoak) }, "soak"},
		"other artifact":               {func(r *release) { r.ix.ArtifactType = "application/x" }, "artifact type"},
		"policy that is none":          {func(r *release) { r.p.Golden = nil }, "golden"},
	}
	for name, c := range cases {
		ix, m := autoRelease()
		r := &release{autoPath, ix, m, signedPolicy()}
		c.change(r)
		err := r.p.Check(r.path, r.ix, r.m)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (AttackClass(err) != ClassUnauthorised || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %s with %q", name, err, ClassUnauthorised, c.want)
		}
	}
	ix, m := autoRelease()
	p := signedPolicy()
	p.Configs = []ota.Digest{m.Config.Digest}
	if err := p.Check(autoPath, ix, m); err != nil {
		t.Errorf("pinned config: %v", err)
	}
}

func TestPolicyValidate(t *testing.T) {
	for name, change := range map[string]func(p *AutoPolicy){
		"no model":           func(p *AutoPolicy) { p.Model = "" },
		"model with a slash": func(p *AutoPolicy) { p.Model = "a/b" },
		"model of dots":      func(p *AutoPolicy) { p.Model = "../x" },
		"no paths":           func(p *AutoPolicy) { p.Paths = nil },
		"all releases":       func(p *AutoPolicy) { p.Paths = []string{"releases/*/*"} },
		"any folder":         func(p *AutoPolicy) { p.Paths = []string{"*/meter/auto-*"} },
		"a class of names":   func(p *AutoPolicy) { p.Paths = []string{"releases/[a-z]eter/auto-*"} },
		"director":           func(p *AutoPolicy) { p.Paths = []string{"director.json"} },
		"no name":            func(p *AutoPolicy) { p.Paths = []string{"releases/auto-*"} },
		"bad pattern":        func(p *AutoPolicy) { p.Paths = []string{"releases/meter/["} },
		"no layers":          func(p *AutoPolicy) { p.Layers = nil },
		"no size":            func(p *AutoPolicy) { p.MaxBytes = 0 },
		"no golden set":      func(p *AutoPolicy) { p.Golden = nil },
		"bad digest":         func(p *AutoPolicy) { p.Golden = []ota.Digest{"sha256:0"} },
		"bad layer digest":   func(p *AutoPolicy) { p.Layers[1].Digests = []ota.Digest{"x"} },
		"code of any content": func(p *AutoPolicy) {
			p.Layers[1] = LayerRule{MediaType: "application/vnd.skein.container.v1", Formats: []string{"onnx"}, MaxBytes: 9}
		},
		"weights of any form": func(p *AutoPolicy) { p.Layers[0].Formats = nil },
		"weights as code":     func(p *AutoPolicy) { p.Layers[0].Formats = []string{"so"} },
		"weights of any size": func(p *AutoPolicy) { p.Layers[0].MaxBytes = 0 },
		"both":                func(p *AutoPolicy) { p.Layers[0].Digests = p.Golden },
		"no media type":       func(p *AutoPolicy) { p.Layers[0].MediaType = "" },
		"negative soak":       func(p *AutoPolicy) { p.MinSoak = -1 },
	} {
		p := signedPolicy()
		change(p)
		if err := p.Validate(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := signedPolicy().Validate(); err != nil {
		t.Error(err)
	}
}

// TestPolicyIsStrict: a bound that this device does not know must not be lost.
func TestPolicyIsStrict(t *testing.T) {
	b, err := json.Marshal(TargetCustom{Policy: signedPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	var c TargetCustom
	if err := json.Unmarshal(b, &c); err != nil || c.Policy.Validate() != nil {
		t.Fatal(err)
	}
	for _, more := range []string{`"minBattery":50,`, `"layers":[{"mediaType":"x","signedBy":"y"}],`} {
		text := strings.Replace(string(b), `{"policy":{`, `{"policy":{`+more, 1)
		if err := json.Unmarshal([]byte(text), &c); err == nil {
			t.Errorf("%s: passed over", more)
		}
	}
}

// autoTree delegates releases of meter and of door to an online key each.
func autoTree(t testing.TB) *tree {
	tr := newTree(t)
	tr.delegate("targets", "auto/meter", "meter", true, "releases/meter/auto-*")
	tr.delegate("targets", "auto/door", "door", true, "releases/door/auto-*")
	tr.list("targets", DirectorTarget, TargetCustom{Keys: [][]byte{{1}}})
	tr.list("targets", "releases/meter/1", TargetCustom{Counter: 1})
	tr.list("targets", policyOf("meter"), TargetCustom{Policy: signedPolicy()})
	tr.list("auto/meter", autoPath, TargetCustom{Counter: 7})
	return tr
}

var autoSigners = map[string]string{"auto/meter": "meter", "auto/door": "door"}

// TestAutoTarget: what an auto role lists comes with the policy of its model,
// and only where a person signed one.
func TestAutoTarget(t *testing.T) {
	learn := func(tr *tree, signers map[string]string, path string) (TargetInfo, error) {
		t.Helper()
		tr.publish(signers)
		c, mem := tr.client()
		if err := c.Refresh(t.Context(), tr.source, start, path); err != nil {
			return TargetInfo{}, err
		}
		again, err := NewClient(mem, tr.files["1.root.json"])
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Target(path)
		info, err2 := again.Target(path)
		if (err == nil) != (err2 == nil) {
			t.Errorf("%s: %v, after a restart %v", path, err, err2)
		}
		return info, err2
	}
	tr := autoTree(t)
	if info, err := learn(tr, autoSigners, autoPath); err != nil || info.Role != "auto/meter" || info.Policy == nil || info.Policy.MaxBytes != 10_000 {
		t.Errorf("%+v, %v", info, err)
	}
	if info, err := learn(tr, autoSigners, "releases/meter/1"); err != nil || info.Role != "" || info.Policy != nil {
		t.Errorf("a person's release: %+v, %v", info, err)
	}

	for name, c := range map[string]struct {
		change  func(tr *tree)
		path    string
		want    string // class, "" for ErrUnknownTarget
		signers map[string]string
	}{
		"no policy":              {func(tr *tree) { delete(tr.role("targets").Signed.Targets, policyOf("meter")) }, autoPath, ClassUnauthorised, nil},
		"policy without content": {func(tr *tree) { tr.list("targets", policyOf("meter"), TargetCustom{}) }, autoPath, ClassUnauthorised, nil},
		"policy of another model": {func(tr *tree) {
			p := signedPolicy()
			p.Model = "door"
			tr.list("targets", policyOf("meter"), TargetCustom{Policy: p})
		}, autoPath, ClassUnauthorised, nil},
		"policy for other paths": {func(tr *tree) {
			p := signedPolicy()
			p.Paths = []string{"releases/meter/auto-2*"}
			tr.list("targets", policyOf("meter"), TargetCustom{Policy: p})
		}, autoPath, ClassUnauthorised, nil},
		"policy that is no good": {func(tr *tree) {
			p := signedPolicy()
			p.Golden = nil
			tr.list("targets", policyOf("meter"), TargetCustom{Policy: p})
		}, autoPath, ClassUnauthorised, nil},
		// A thief with the key of meter:
		"its own policy": {func(tr *tree) {
			delete(tr.role("targets").Signed.Targets, policyOf("meter"))
			tr.list("auto/meter", policyOf("meter"), TargetCustom{Policy: signedPolicy()})
		}, autoPath, ClassUnauthorised, nil},
		"release of another model": {func(tr *tree) { tr.list("auto/meter", "releases/door/auto-1", TargetCustom{Counter: 1}) }, "releases/door/auto-1", "", nil},
		"release of a person":      {func(tr *tree) { tr.list("auto/meter", "releases/meter/2", TargetCustom{Counter: 2}) }, "releases/meter/2", "", nil},
		"director": {func(tr *tree) {
			delete(tr.role("targets").Signed.Targets, DirectorTarget)
			tr.list("auto/meter", DirectorTarget, TargetCustom{Keys: [][]byte{{2}}})
		}, DirectorTarget, "", nil},
		// A delegation of persons that is too wide:
		"director of a wide delegation": {func(tr *tree) {
			tr.delegate("targets", "team", "team", false, "*", "*/*")
			delete(tr.role("targets").Signed.Targets, DirectorTarget)
			tr.list("team", DirectorTarget, TargetCustom{Keys: [][]byte{{2}}})
		}, DirectorTarget, "", nil},
		"policy of a wide delegation": {func(tr *tree) {
			tr.delegate("targets", "team", "team", false, "*", "*/*")
			delete(tr.role("targets").Signed.Targets, policyOf("meter"))
			tr.list("team", policyOf("meter"), TargetCustom{Policy: signedPolicy()})
		}, autoPath, ClassUnauthorised, nil},
		"looking for a policy of a wide delegation": {func(tr *tree) {
			tr.delegate("targets", "team", "team", false, "*", "*/*")
			delete(tr.role("targets").Signed.Targets, policyOf("meter"))
			tr.list("team", policyOf("meter"), TargetCustom{Policy: signedPolicy()})
		}, policyOf("meter"), "", nil},
		"the role of another model": {func(*tree) {}, autoPath, ClassArbitrary, map[string]string{"auto/meter": "door", "auto/door": "door"}},
		"hands on to a role of its own": {func(tr *tree) {
			delete(tr.role("auto/meter").Signed.Targets, autoPath)
			tr.delegate("auto/meter", "thief", "thief", false, "releases/*/*")
			tr.list("thief", autoPath, TargetCustom{Counter: 7})
			delete(tr.role("targets").Signed.Targets, policyOf("meter"))
		}, autoPath, ClassUnauthorised, nil},
		"hands on paths that it has not": {func(tr *tree) {
			tr.delegate("auto/meter", "thief", "thief", false, "releases/*/*", "*")
			tr.list("thief", "releases/door/auto-1", TargetCustom{Counter: 7})
		}, "releases/door/auto-1", "", nil},
		"hands on to another auto role": {func(tr *tree) {
			delete(tr.role("auto/meter").Signed.Targets, autoPath)
			tr.delegate("auto/meter", "auto/free", "thief", false, "releases/*/*")
			tr.list("auto/free", autoPath, TargetCustom{Counter: 7})
			p := signedPolicy()
			p.Model, p.Paths = "free", []string{"releases/meter/auto-9"}
			tr.list("targets", policyOf("free"), TargetCustom{Policy: p})
			tr.list("targets", policyOf("meter"), TargetCustom{})
		}, autoPath, ClassUnauthorised, map[string]string{"auto/free": "thief"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := autoTree(t)
			c.change(tr)
			signers := map[string]string{}
			maps.Copy(signers, autoSigners)
			maps.Copy(signers, c.signers)
			info, err := learn(tr, signers, c.path)
			if c.want == "" && !errors.Is(err, ErrUnknownTarget) || c.want != "" && AttackClass(err) != c.want {
				t.Errorf("%+v, %v, want %q", info, err, c.want)
			}
		})
	}
	// Handing on within its own paths is its right; the policy goes along.
	tr = autoTree(t)
	delete(tr.role("auto/meter").Signed.Targets, autoPath)
	tr.delegate("auto/meter", "worker", "worker", false, "releases/meter/auto-*")
	tr.list("worker", autoPath, TargetCustom{Counter: 7})
	if info, err := learn(tr, autoSigners, autoPath); err != nil || info.Role != "worker" || info.Policy == nil {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestAutoRoleDown: a closed loop that stands still, whose role expired or is
// withheld, stops what it lists and nothing else.
func TestAutoRoleDown(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(tr *tree)
		want  string
	}{
		"expired":  {func(tr *tree) { tr.role("auto/meter").Signed.Expires = start.Add(-time.Hour) }, ClassFreeze},
		"withheld": {func(tr *tree) { delete(tr.files, "2.auto%2Fmeter.json") }, ""},
		"tampered": {func(tr *tree) { tr.files["2.auto%2Fmeter.json"] = tr.files["1.auto%2Fmeter.json"] }, ClassMixAndMatch},
		"cut":      {func(tr *tree) { b := tr.files["2.auto%2Fmeter.json"]; tr.files["2.auto%2Fmeter.json"] = b[:len(b)-5] }, ClassWrongHash},
		"endless":  {func(tr *tree) { tr.files["2.auto%2Fmeter.json"] = make([]byte, maxTargets+1) }, ClassEndless},
	} {
		t.Run(name, func(t *testing.T) {
			tr := autoTree(t)
			tr.publish(autoSigners)
			c1, mem := tr.client()
			if err := c1.Refresh(t.Context(), tr.source, start, autoPath); err != nil {
				t.Fatal(err)
			}
			tr.list("targets", "releases/meter/2", TargetCustom{Counter: 2})
			if name == "expired" {
				c.spoil(tr)
			}
			tr.publish(autoSigners)
			if name != "expired" {
				c.spoil(tr)
			}
			err := c1.Refresh(t.Context(), tr.source, start, autoPath)
			if err == nil || AttackClass(err) != c.want {
				t.Errorf("asked for: %v, want %q", err, c.want)
			}
			if _, err := c1.Target(autoPath); !errors.Is(err, ErrNotHeld) {
				t.Errorf("the old list with the new snapshot is a mixture: %v", err)
			}
			if err := c1.Refresh(t.Context(), tr.source, start, "releases/meter/2"); err != nil {
				t.Errorf("what a person signed: %v", err)
			}
			if _, err := c1.Target("releases/meter/2"); err != nil {
				t.Error(err)
			}
			// The next honest one works, unasked since it was asked for before.
			tr.role("auto/meter").Signed.Expires = start.Add(SnapshotLife)
			tr.publish(autoSigners)
			again, err := NewClient(mem, tr.files["1.root.json"])
			if err != nil {
				t.Fatal(err)
			}
			for name, c := range map[string]*Client{"same process": c1, "restarted": again} {
				if err := c.Refresh(t.Context(), tr.source, start); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if _, err := c.Target(autoPath); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestManyDelegations: a walk ends, however much is delegated.
func TestManyDelegations(t *testing.T) {
	tr := newTree(t)
	parent := "targets"
	for i := range maxDelegations + 5 {
		role := "r" + strings.Repeat("x", i)
		tr.delegate(parent, role, role, false, "*")
		parent = role
	}
	tr.list(parent, "far", TargetCustom{})
	tr.publish(nil)
	c, _ := tr.client()
	if err := c.Refresh(t.Context(), tr.source, start, "far"); err != nil {
		t.Fatal(err)
	}
	if got := len(tr.visited()); got != maxDelegations {
		t.Errorf("asked for %d roles, want %d", got, maxDelegations)
	}
	if _, err := c.Target("far"); !errors.Is(err, ErrUnknownTarget) {
		t.Error(err)
	}
}
