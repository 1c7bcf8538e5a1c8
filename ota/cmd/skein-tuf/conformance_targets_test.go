package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// edge is a delegation: "targets>A", "A>C!" if terminating, "A>C *.py" with a
// pattern other than *.
type edge string

// grow delegates as the edges say; every role is published once.
func (c *client) grow(edges ...edge) {
	roles := map[string]bool{}
	for _, e := range edges {
		names, path, ok := strings.Cut(string(e), " ")
		if !ok {
			path = "*"
		}
		delegator, role, _ := strings.Cut(names, ">")
		name, terminating := strings.CutSuffix(role, "!")
		c.delegate(delegator, name, terminating, strings.Fields(path)...)
		roles[delegator], roles[name] = true, true
	}
	c.publish(slices.Sorted(maps.Keys(roles))...)
	c.publish("snapshot", "timestamp")
}

// walked wants these delegated roles asked for, in order, after the four at the
// top.
func (c *client) walked(want ...string) {
	if len(c.asked) < 4 {
		c.errorf("asked for %q", c.asked)
		return
	}
	for i := range want {
		want[i] += " 1"
	}
	c.requests(c.asked[4:], want...)
}

func graphCases() []conformanceCase {
	graphs := map[string]struct {
		edges []edge
		order string
	}{
		"basic-delegation":                                          {[]edge{"targets>A"}, "A"},
		"single-level-delegations":                                  {[]edge{"targets>A", "targets>B"}, "AB"},
		"two-level-delegations":                                     {[]edge{"targets>A", "targets>B", "B>C"}, "ABC"},
		"two-level-test-DFS-order-of-traversal":                     {[]edge{"targets>A", "targets>B", "A>C", "A>D"}, "ACDB"},
		"three-level-delegation-test-DFS-order-of-traversal":        {[]edge{"targets>A", "targets>B", "A>C", "C>D"}, "ACDB"},
		"two-level-terminating-ignores-all-but-roles-descendants":   {[]edge{"targets>A", "targets>B", "A>C!", "A>D"}, "AC"},
		"three-level-terminating-ignores-all-but-roles-descendants": {[]edge{"targets>A", "targets>B", "A>C!", "C>D"}, "ACD"},
		"two-level-ignores-all-branches-not-matching-paths":         {[]edge{"targets>A *.py", "targets>B", "A>C"}, "B"},
		"three-level-ignores-all-branches-not-matching-paths":       {[]edge{"targets>A", "targets>B", "A>C *.py", "C>D"}, "AB"},
		"cyclic-graph":                                    {[]edge{"targets>A", "targets>B", "B>C", "C>D", "D>B"}, "ABCD"},
		"two-roles-delegating-to-a-third":                 {[]edge{"targets>A", "targets>B", "B>C", "A>C"}, "ACB"},
		"two-roles-delegating-to-a-third-different-paths": {[]edge{"targets>A", "targets>B", "B>C", "A>C *.py"}, "ABC"},
	}
	var out []conformanceCase
	for name, g := range graphs {
		out = append(out, conformanceCase{"test_graph_traversal[" + name + "]", func(c *client) {
			c.init()
			c.grow(g.edges...)
			c.download(exitFailed, "missingpath")
			c.walked(strings.Split(g.order, "")...)
		}})
	}
	return out
}

func searchCases() []conformanceCase {
	files := [][2]string{
		{"targets", "targetfile"}, {"A", "README.md"}, {"A", "releases/README.md"}, {"A", "foo-1.tgz"}, {"A", "foo-alpha.tgz"},
		{"C", "releases/x/x_v1"}, {"D", "releases/y/y_v1.zip"}, {"D", "releases/z/z_v1.zip"},
	}
	cases := map[string]struct {
		path  string
		found bool
		order string
	}{
		"no delegations":                                        {"targetfile", true, ""},
		"targetpath matches wildcard":                           {"README.md", true, "A"},
		"targetpath with separators x":                          {"releases/x/x_v1", true, "BC"},
		"targetpath with separators y":                          {"releases/y/y_v1.zip", true, "BD"},
		"targetpath is not delegated by all roles in the chain": {"releases/z/z_v1.zip", false, "B"},
		"wildcard does not match path separator":                {"releases/README.md", false, ""},
		"targetpath matches question mark wildcard":             {"foo-1.tgz", true, "A"},
		"targetpath does not match question mark wildcard":      {"foo-alpha.tgz", false, ""},
		"targetpath matching is case sensitive":                 {"README.MD", false, ""},
	}
	var out []conformanceCase
	for name, tc := range cases {
		out = append(out, conformanceCase{"test_targetfile_search[" + name + "]", func(c *client) {
			c.init()
			for _, role := range "ACD" {
				c.mds[string(role)] = &signed{Type: "targets", Spec: "1.0.31", Version: 1, Expires: in(30 * day), Targets: map[string]simTarget{}}
			}
			for _, f := range files {
				c.list(f[0], f[1], f[1]+" of "+f[0], "sha256")
			}
			c.grow("targets>A *.doc *.md foo-?.tgz", "targets>B releases/*/*", "B>C releases/x/*", "B>D releases/y/*.zip")
			if tc.found {
				c.download(exitOK, tc.path)
				c.downloaded(string(c.files[tc.path]))
			} else {
				c.download(exitFailed, tc.path)
				c.downloaded()
			}
			c.walked(strings.Split(tc.order, "")...)
		}})
	}
	return out
}

func delegationCases() []conformanceCase {
	return []conformanceCase{
		{"test_cached_role_is_verified_against_current_delegator", func(c *client) {
			c.init()
			c.delegate("targets", "parent-a", false, "team-a/*")
			c.delegate("targets", "parent-b", false, "team-b/*")
			c.delegate("parent-a", "release", false, "team-a/*")
			c.delegate("parent-b", "release", false, "team-b/*")
			c.dropSigner("release") // what parent-b trusts
			c.list("release", "team-a/trusted_root.json", "trusted A", "sha256")
			c.list("release", "team-b/trusted_root.json", "malicious B", "sha256")
			c.publish("release", "parent-a", "parent-b", "targets", "snapshot", "timestamp")
			c.download(exitFailed, "team-a/trusted_root.json", "team-b/trusted_root.json")
			c.downloaded() // one that is refused spoils the run
			c.download(exitOK, "team-a/trusted_root.json")
			c.downloaded("trusted A")
		}},
		{"test_delegation_not_in_snapshot", func(c *client) {
			c.init()
			c.delegate("targets", "delegated", false, "delegatedpath/*")
			c.publish("delegated", "targets")
			delete(c.mds["snapshot"].Meta, "delegated.json")
			c.publish("snapshot", "timestamp")
			c.refresh(exitOK)
			c.asked = nil
			c.download(exitFailed, "delegatedpath/foo")
			c.version("delegated", 0)
			c.requests(c.asked, "root 2", "timestamp")
		}},
	}
}

// offer lists and publishes content at the top.
func (c *client) offer(path, content string, hashes ...string) {
	if hashes == nil {
		hashes = []string{"sha256"}
	}
	c.list("targets", path, content, hashes...)
	c.publish("targets", "snapshot", "timestamp")
}

func downloadCases() []conformanceCase {
	return []conformanceCase{
		{"test_client_downloads_expected_file", func(c *client) {
			c.init()
			c.offer("target_file.txt", "content")
			c.refresh(exitOK)
			c.downloaded()
			c.download(exitOK, "target_file.txt")
			c.downloaded("content")
		}},
		{"test_client_downloads_expected_file_in_sub_dir", func(c *client) {
			c.init()
			c.offer("path/to/a/target_file.txt", "content")
			c.download(exitOK, "path/to/a/target_file.txt")
			c.downloaded("content")
		}},
		{"test_repository_substitutes_target_file", func(c *client) {
			c.init()
			c.offer("one.txt", "content of one")
			c.offer("two.txt", "content")
			c.download(exitOK, "one.txt")
			c.downloaded("content of one")
			c.files["one.txt"], c.files["two.txt"] = []byte("malicious data"), []byte("malicious data")
			c.tryDownload("one.txt") // may find it there
			c.downloaded("content of one")
			c.download(exitFailed, "two.txt")
			c.downloaded("content of one")
		}},
		{"test_multiple_changes_to_target", (*client).changes},
		{"test_artifact_cache", func(c *client) {
			c.init()
			c.offer("target_file.txt", "content")
			c.download(exitOK, "target_file.txt")
			c.download(exitOK, "target_file.txt")
			if len(c.fetched) != 1 {
				c.errorf("fetched %q", c.fetched)
			}
		}},
	}
}

// changes changes a target again and again, rightly and wrongly; the client
// sees every fifth version.
func (c *client) changes() {
	c.init()
	const path = "target_file.txt"
	c.offer(path, "content")
	c.download(exitOK, path)
	c.downloaded("content")
	var others []string
	for i := range 11 {
		now, other := fmt.Sprintf("modified %d", i), fmt.Sprintf("new-%d", i)
		c.list("targets", path, now, "sha256")
		c.offer(other, "new file "+other)
		if i%5 != 0 {
			continue
		}
		c.download(exitOK, path)
		c.downloaded(append(slices.Clone(others), now)...)
		c.download(exitOK, other)
		others = append(others, "new file "+other)
		c.downloaded(append(slices.Clone(others), now)...)
		c.files[path] = fmt.Appendf(nil, "malicious %d", i)
		c.publish("targets", "snapshot", "timestamp")
		c.tryDownload(path)
		c.downloaded(append(slices.Clone(others), now)...)
	}
}

func hashCases() []conformanceCase {
	var out []conformanceCase
	for i, hashes := range [][]string{{"sha256"}, {"sha512"}, {"sha256", "sha512"}} {
		out = append(out, conformanceCase{fmt.Sprintf("test_download_with_hash_algorithms[hashes%d]", i), func(c *client) {
			c.offer("target_file.txt", "content", hashes...)
			c.init()
			c.download(exitOK, "target_file.txt")
			if len(c.fetched) != 1 {
				c.errorf("fetched %q", c.fetched)
			}
			c.downloaded("content")
		}})
	}
	return append(out, conformanceCase{"test_download_with_unknown_hash_algorithm", func(c *client) {
		c.offer("target_file.txt", "content", "sha512")
		h := c.mds["targets"].Targets["target_file.txt"].Hashes
		h["unknown-hash"] = h["sha512"]
		delete(h, "sha512")
		c.publish("targets", "snapshot", "timestamp")
		c.init()
		c.download(exitFailed, "target_file.txt")
		c.downloaded()
	}})
}
