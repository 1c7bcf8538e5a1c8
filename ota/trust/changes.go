package trust

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Change is one line of what a signature would change.
type Change struct {
	Sign string // "+", "-" or "~"
	Text string
}

// String is the change as a line.
func (c Change) String() string { return c.Sign + " " + c.Text }

// rootChanges says what next changes of was, whose version is 0 when there is none.
func rootChanges(was, next *metadata.RootType) []Change {
	var out []Change
	add := func(sign, format string, args ...any) { out = append(out, Change{sign, fmt.Sprintf(format, args...)}) }
	if was.Version == 0 {
		add("+", "first root of %s", domainOf(next))
	}
	for _, role := range slices.Sorted(maps.Keys(next.Roles)) {
		entry, before := next.Roles[role], was.Roles[role]
		if before == nil || was.Version == 0 {
			before = &metadata.Role{}
		}
		for _, id := range before.KeyIDs {
			if !slices.Contains(entry.KeyIDs, id) {
				add("-", "key %s of role %s", keyText(was, id), role)
			}
		}
		for _, id := range entry.KeyIDs {
			if !slices.Contains(before.KeyIDs, id) {
				add("+", "key %s for role %s", keyText(next, id), role)
			}
		}
		switch {
		case before.Threshold == 0:
			add("+", "role %s needs %d of %d keys", role, entry.Threshold, len(entry.KeyIDs))
		case before.Threshold != entry.Threshold || len(before.KeyIDs) != len(entry.KeyIDs):
			add("~", "role %s needs %d of %d keys, was %d of %d", role, entry.Threshold, len(entry.KeyIDs), before.Threshold, len(before.KeyIDs))
		}
	}
	for _, role := range slices.Sorted(maps.Keys(was.Roles)) {
		if next.Roles[role] == nil {
			add("-", "role %s", role)
		}
	}
	if was.Version > 0 {
		out = append(out, expiryChange(was.Expires, next.Expires)...)
		if was.ConsistentSnapshot != next.ConsistentSnapshot {
			add("~", "consistent snapshots: %v, was %v", next.ConsistentSnapshot, was.ConsistentSnapshot)
		}
		out = append(out, fieldChanges(was.UnrecognizedFields, next.UnrecognizedFields, keyNames)...)
	}
	return out
}

func keyText(root *metadata.RootType, id string) string {
	if name := nameOf(root, id); name != "" {
		return fmt.Sprintf("%s (%q)", shortID(id), name)
	}
	return shortID(id)
}

func expiryChange(was, next time.Time) []Change {
	if was.UTC().Format(time.DateOnly) == next.UTC().Format(time.DateOnly) {
		return nil
	}
	return []Change{{"~", fmt.Sprintf("expires %s, was %s", next.UTC().Format(time.DateOnly), was.UTC().Format(time.DateOnly))}}
}

// fieldChanges names signed fields that no rule here reads: nothing that is
// signed goes unsaid.
func fieldChanges(was, next map[string]any, said ...string) []Change {
	var out []Change
	names := slices.Sorted(maps.Keys(next))
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if _, ok := next[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		a, b := jsonText(was[name]), jsonText(next[name])
		if a == b || slices.Contains(said, name) {
			continue
		}
		out = append(out, Change{"~", fmt.Sprintf("field %s: %s, was %s", name, b, a)})
	}
	return out
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(b) > 400 {
		return fmt.Sprintf("%.400s… (%d bytes, %s)", b, len(b), ota.DigestOf(b).Short())
	}
	return string(b)
}

// targetsChanges says what next changes of was.
func targetsChanges(was, next *metadata.TargetsType) []Change {
	var out []Change
	for _, path := range union(was.Targets, next.Targets) {
		a, b := was.Targets[path], next.Targets[path]
		switch {
		case a == nil:
			out = append(out, targetLines("+", path, b)...)
		case b == nil:
			out = append(out, targetLines("-", path, a)...)
		case !sameTarget(a, b):
			out = append(out, targetLines("-", path, a)...)
			out = append(out, targetLines("+", path, b)...)
		}
	}
	out = append(out, delegationChanges(was.Delegations, next.Delegations)...)
	out = append(out, fieldChanges(was.UnrecognizedFields, next.UnrecognizedFields)...)
	if was.Version > 0 {
		out = append(out, expiryChange(was.Expires, next.Expires)...)
	}
	return out
}

func union[V any](a, b map[string]V) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}

func sameTarget(a, b *metadata.TargetFiles) bool {
	return a.Length == b.Length && a.Hashes.Equal(b.Hashes) && customText(a) == customText(b) &&
		(len(a.UnrecognizedFields)+len(b.UnrecognizedFields) == 0 || jsonText(a.UnrecognizedFields) == jsonText(b.UnrecognizedFields)) // none is null before it was read back, {} after
}

func customText(t *metadata.TargetFiles) string {
	if t.Custom == nil {
		return ""
	}
	var v any
	if json.Unmarshal(*t.Custom, &v) != nil {
		return string(*t.Custom)
	}
	b, err := json.Marshal(v) // sorted keys
	if err != nil {
		return string(*t.Custom)
	}
	return string(b)
}

// targetLines says what is listed under a path, by kind.
func targetLines(sign, path string, t *metadata.TargetFiles) []Change {
	var custom TargetCustom
	known := t.Custom == nil || json.Unmarshal(*t.Custom, &custom) == nil
	digest := ota.Digest("sha256:" + fmt.Sprintf("%x", []byte(t.Hashes["sha256"])))
	switch {
	case path == DirectorTarget && known:
		out := []Change{}
		for _, der := range custom.Keys {
			out = append(out, Change{sign, fmt.Sprintf("director key %s: it says which device runs what", spkiID(der))})
		}
		return out
	case strings.HasPrefix(path, policyPrefix):
		out := []Change{{sign, fmt.Sprintf("policy for %s: what may be released with no hand", strings.TrimSuffix(strings.TrimPrefix(path, policyPrefix), ".json"))}}
		for _, l := range policyLines(t) {
			out = append(out, Change{sign, "  " + l})
		}
		return out
	}
	text := fmt.Sprintf("release %s, counter %d, %d bytes, %s", strings.TrimPrefix(path, "releases/"), custom.Counter, t.Length, digest)
	if !strings.HasPrefix(path, "releases/") {
		text = fmt.Sprintf("target %s, %d bytes, %s, custom %s", path, t.Length, digest, customText(t))
	}
	if len(t.Hashes) != 1 {
		text += fmt.Sprintf(", %d hashes", len(t.Hashes))
	}
	return []Change{{sign, text}}
}

func spkiID(der []byte) string { return ota.DigestOf(der).Hex()[:16] }

func delegationChanges(was, next *metadata.Delegations) []Change {
	a, b := delegationTexts(was), delegationTexts(next)
	var out []Change
	for _, name := range union(a, b) {
		if a[name] == b[name] {
			continue
		}
		if a[name] != "" {
			out = append(out, Change{"-", a[name]})
		}
		if b[name] != "" {
			out = append(out, Change{"+", b[name]})
		}
	}
	return out
}

func delegationTexts(d *metadata.Delegations) map[string]string {
	out := map[string]string{}
	if d == nil {
		return out
	}
	for _, r := range d.Roles {
		ids := make([]string, len(r.KeyIDs))
		for i, id := range r.KeyIDs {
			ids[i] = shortID(id)
		}
		out[r.Name] += fmt.Sprintf("delegation %s of paths %s to %d of keys %s", r.Name, strings.Join(append(slices.Clone(r.Paths), r.PathHashPrefixes...), ", "), r.Threshold, strings.Join(ids, ", "))
		if r.Terminating {
			out[r.Name] += ", terminating"
		}
	}
	if d.SuccinctRoles != nil {
		out["succinct roles"] = fmt.Sprintf("succinct delegation %s to keys %v", d.SuccinctRoles.NamePrefix, d.SuccinctRoles.KeyIDs)
	}
	return out
}
