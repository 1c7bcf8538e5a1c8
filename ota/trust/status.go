package trust

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// keyNames is a field in the signed part of root: what persons call the keys.
const keyNames = "x-skein-key-names"

// Status is what stands and what waits, for persons.
type Status struct {
	Domain     string
	RootDigest ota.Digest // empty before the first root is published
	Roles      []RoleStatus
	Drafts     []DraftStatus
}

// RoleStatus is one role of the published metadata.
type RoleStatus struct {
	Role      string
	Version   int64 // 0: not published yet
	Expires   time.Time
	Threshold int
	Keys      []KeyStatus
}

// KeyStatus is one key of a role.
type KeyStatus struct {
	ID     string
	Name   string
	Here   bool // its private key is in this folder
	Signed bool // the current metadata of the role, or the draft
}

// DraftStatus is a root or targets that waits for signatures.
type DraftStatus struct {
	Role    string
	Version int64
	Expires time.Time
	Digest  ota.Digest // of what is signed
	Needs   []Need
	// Problem says why it cannot be published even when signed.
	Problem string
	Changes []Change
	// Metadata is the file with the signatures so far.
	Metadata []byte
}

// Need is one threshold that a draft must reach.
type Need struct {
	By        string // whose keys: "root 3", "root 4 (this one)"
	Threshold int
	Keys      []KeyStatus
}

// Signed counts the signatures that count.
func (n Need) Signed() int {
	count := 0
	for _, k := range n.Keys {
		if k.Signed {
			count++
		}
	}
	return count
}

// Met reports whether the threshold is reached.
func (n Need) Met() bool { return n.Signed() >= n.Threshold }

// Complete reports whether all thresholds are reached.
func (d DraftStatus) Complete() bool {
	return d.Problem == "" && !slices.ContainsFunc(d.Needs, func(n Need) bool { return !n.Met() })
}

// String says in one line what is missing.
func (d DraftStatus) String() string {
	if d.Problem != "" {
		return fmt.Sprintf("%s %d: %s", d.Role, d.Version, d.Problem)
	}
	parts := make([]string, len(d.Needs))
	for i, n := range d.Needs {
		parts[i] = fmt.Sprintf("%d of %d signatures of %s", n.Signed(), n.Threshold, n.By)
	}
	return fmt.Sprintf("%s %d has %s", d.Role, d.Version, strings.Join(parts, " and "))
}

// Status says what stands and what waits.
func (r *Repo) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{Domain: domainOf(&r.root.Signed), Drafts: r.draftStatus()}
	if s.Domain == "" && r.draft.root != nil {
		s.Domain = domainOf(&r.draft.root.Signed)
	}
	if r.root.Signed.Version > 0 {
		s.RootDigest = ota.DigestOf(r.rootBytes)
	}
	s.Roles = []RoleStatus{
		r.roleStatus(metadata.ROOT, r.root.Signed.Version, r.root.Signed.Expires, r.root.Signatures),
		r.roleStatus(metadata.TARGETS, r.targets.Signed.Version, r.targets.Signed.Expires, r.targets.Signatures),
		r.roleStatus(metadata.SNAPSHOT, r.snapshot.Signed.Version, r.snapshot.Signed.Expires, r.snapshot.Signatures),
		r.roleStatus(metadata.TIMESTAMP, r.timestamp.Signed.Version, r.timestamp.Signed.Expires, r.timestamp.Signatures),
	}
	for _, role := range delegatedRoles(r.targets) {
		entry := RoleStatus{Role: role.Name, Threshold: role.Threshold}
		var sigs []metadata.Signature
		if m := r.autos[role.Name]; m != nil {
			entry.Version, entry.Expires, sigs = m.Signed.Version, m.Signed.Expires, m.Signatures
		}
		entry.Keys = r.keyStatus(role.KeyIDs, sigs, nil)
		s.Roles = append(s.Roles, entry)
	}
	return s
}

func (r *Repo) roleStatus(role string, version int64, expires time.Time, sigs []metadata.Signature) RoleStatus {
	s := RoleStatus{Role: role, Version: version}
	if version > 0 {
		s.Expires = expires
	}
	if entry := r.root.Signed.Roles[role]; entry != nil && r.root.Signed.Version > 0 {
		s.Threshold, s.Keys = entry.Threshold, r.keyStatus(entry.KeyIDs, sigs, r.root)
	}
	return s
}

func (r *Repo) keyStatus(ids []string, sigs []metadata.Signature, root *metadata.Metadata[metadata.RootType]) []KeyStatus {
	out := make([]KeyStatus, len(ids))
	for i, id := range ids {
		_, here := r.keys[id]
		out[i] = KeyStatus{ID: id, Here: here, Signed: slices.ContainsFunc(sigs, func(s metadata.Signature) bool { return s.KeyID == id })}
		if root != nil {
			out[i].Name = nameOf(&root.Signed, id)
		}
	}
	return out
}

func nameOf(root *metadata.RootType, id string) string {
	names, _ := root.UnrecognizedFields[keyNames].(map[string]any)
	name, _ := names[id].(string)
	return name
}

// setName names a key in a root; an empty name takes it away.
func setName(root *metadata.RootType, id, name string) {
	names, _ := root.UnrecognizedFields[keyNames].(map[string]any)
	next := maps.Clone(names)
	if next == nil {
		next = map[string]any{}
	}
	if next[id] = name; name == "" {
		delete(next, id)
	}
	if root.UnrecognizedFields == nil {
		root.UnrecognizedFields = map[string]any{}
	}
	root.UnrecognizedFields[keyNames] = next
}

// draftStatus needs mu.
func (r *Repo) draftStatus() []DraftStatus {
	var out []DraftStatus
	if d := r.draft.root; d != nil {
		s := DraftStatus{Role: metadata.ROOT, Version: d.Signed.Version, Expires: d.Signed.Expires, Changes: rootChanges(&r.root.Signed, &d.Signed)}
		fill(&s, d)
		if r.root.Signed.Version > 0 {
			s.Needs = append(s.Needs, r.need(r.root, metadata.ROOT, d.Signatures))
		}
		s.Needs = append(s.Needs, r.need(d, metadata.ROOT, d.Signatures))
		if err := checkRoot(&d.Signed); err != nil {
			s.Problem = err.Error()
		}
		out = append(out, s)
	}
	if d := r.draft.targets; d != nil {
		s := DraftStatus{Role: metadata.TARGETS, Version: d.Signed.Version, Expires: d.Signed.Expires, Changes: targetsChanges(&r.targets.Signed, &d.Signed)}
		fill(&s, d)
		by := r.root
		if r.draft.root != nil {
			by = r.draft.root
		}
		s.Needs = append(s.Needs, r.need(by, metadata.TARGETS, d.Signatures))
		out = append(out, s)
	}
	return out
}

func fill[T metadata.Roles](s *DraftStatus, d *metadata.Metadata[T]) {
	if payload, err := signedBytes(d); err == nil {
		s.Digest = ota.DigestOf(payload)
	}
	if b, err := d.ToBytes(false); err == nil {
		s.Metadata = b
	}
}

func (r *Repo) need(root *metadata.Metadata[metadata.RootType], role string, sigs []metadata.Signature) Need {
	n := Need{By: fmt.Sprintf("%s keys in root %d", role, root.Signed.Version)}
	if entry := root.Signed.Roles[role]; entry != nil {
		n.Threshold, n.Keys = entry.Threshold, r.keyStatus(entry.KeyIDs, sigs, root)
	}
	return n
}
