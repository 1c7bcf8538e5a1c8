package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const (
	// maxDelegations bounds the roles of one walk besides the top level.
	maxDelegations = 32
	maxRoleName    = 256
)

type targetsMeta = metadata.Metadata[metadata.TargetsType]

// loader returns the metadata of a role, verified as parent delegates to it. It
// is asked anew at each step: what one parent vouches for, another may not.
type loader func(role, parent string) (*targetsMeta, error)

// listing is where a walk found a path.
type listing struct {
	by   *targetsMeta
	role string
	auto string // the first auto role on the way there, "" when there is none
}

// hop is one delegation to follow.
type hop struct{ role, parent, auto string }

// walk looks for a path, from the top level down, depth first and in the order
// in which roles are delegated to. It returns the roles that were looked at; a
// nil listing when none of them lists the path.
func walk(target string, load loader) (*listing, []string, error) {
	stack := []hop{{role: metadata.TARGETS, parent: metadata.ROOT}}
	var visited []string
	for len(stack) > 0 && len(visited) <= maxDelegations {
		h := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if slices.Contains(visited, h.role) {
			continue
		}
		m, err := load(h.role, h.parent)
		if err != nil {
			return nil, visited, err
		}
		visited = append(visited, h.role)
		if m.Signed.Targets[target] != nil {
			return &listing{by: m, role: h.role, auto: h.auto}, visited, nil
		}
		if topOnly(target) || m.Signed.Delegations == nil {
			continue
		}
		next, last, err := children(m.Signed.Delegations, target)
		if err != nil {
			return nil, visited, err
		}
		if last {
			stack = nil
		}
		for _, role := range slices.Backward(next) {
			auto := h.auto
			if auto == "" && strings.HasPrefix(role, autoPrefix) {
				auto = role
			}
			stack = append(stack, hop{role: role, parent: h.role, auto: auto})
		}
	}
	return nil, visited, nil
}

// topOnly reports whether the top level alone may list a path: what is
// delegated must not say who the director is, nor what a policy is.
func topOnly(target string) bool {
	return target == DirectorTarget || strings.HasPrefix(target, policyPrefix)
}

// children returns the roles to which a path is delegated, in order, and
// whether the last of them ends the search.
func children(d *metadata.Delegations, target string) (roles []string, last bool, err error) {
	if d.Roles == nil && d.SuccinctRoles != nil {
		if n := d.SuccinctRoles.BitLength; n < 1 || n > 32 {
			return nil, false, &Attack{ClassMalformed, fmt.Errorf("succinct delegation of %d bits, want 1 to 32", n)}
		}
		for _, r := range d.SuccinctRoles.GetRolesForTarget(target) {
			roles, last = append(roles, r.Name), r.Terminating
		}
		return roles, last, checkRoles(roles)
	}
	for _, r := range d.Roles {
		if !delegates(r, target) {
			continue
		}
		roles = append(roles, r.Name)
		if r.Terminating {
			return roles, true, checkRoles(roles)
		}
	}
	return roles, false, checkRoles(roles)
}

func checkRoles(names []string) error {
	for _, name := range names {
		if name == "" || len(name) > maxRoleName || slices.Contains(metadata.TOP_LEVEL_ROLE_NAMES[:], name) {
			return &Attack{ClassMalformed, fmt.Errorf("delegation to a role named %.40q", name)}
		}
	}
	return nil
}

func delegates(r metadata.DelegatedRole, target string) bool {
	if len(r.Paths) > 0 {
		return slices.ContainsFunc(r.Paths, func(pattern string) bool { return matches(pattern, target) })
	}
	if len(r.PathHashPrefixes) == 0 {
		return false
	}
	// In hexadecimal, as the specification says; go-tuf compares with base64.
	sum := sha256.Sum256([]byte(target))
	text := hex.EncodeToString(sum[:])
	return slices.ContainsFunc(r.PathHashPrefixes, func(p string) bool { return strings.HasPrefix(text, strings.ToLower(p)) })
}

// matches compares part by part, so that no wildcard and no class of characters
// reaches over a slash. A bad pattern matches nothing.
func matches(pattern, target string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(target, "/")
	return slices.EqualFunc(want, have, func(w, h string) bool {
		ok, err := path.Match(w, h)
		return err == nil && ok
	})
}

// fileName is a role's name as it stands in the names of files, quoted as
// python-tuf quotes it, so that no role names a file elsewhere.
func fileName(role string) string { return strings.ReplaceAll(url.QueryEscape(role), "+", "%20") }

// errNotSigned is returned for a role that is delegated to and has not signed
// anything yet.
var errNotSigned = errors.New("delegated, but the snapshot does not list it")
