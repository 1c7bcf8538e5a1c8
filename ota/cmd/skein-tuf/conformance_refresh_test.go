package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var refreshRequests = []string{"root 2", "timestamp", "snapshot 1", "targets 1"}

func basicCases() []conformanceCase {
	return []conformanceCase{
		{"test_basic_refresh_requests", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.requests(c.asked, refreshRequests...)
		}},
		{"test_basic_refresh_trusted_data", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.holdsLatest(topLevel...)
		}},
		{"test_implicit_refresh", func(c *client) {
			c.init()
			c.download(exitFailed, "nonexistent artifact")
			c.requests(c.asked, refreshRequests...)
			c.holdsLatest(topLevel...)
		}},
		{"test_invalid_initial_root", func(c *client) {
			c.anchor = bytes.Replace(c.anchor, []byte(`,"version":1`), nil, 1)
			if bytes.Equal(c.anchor, c.latest("root")) {
				c.errorf("the anchor has its version still")
			}
			c.badAnchor()
		}},
		{"test_unsigned_initial_root", func(c *client) {
			other, err := c.signers["root"][0].sign([]byte("something else"))
			if err != nil {
				c.t.Fatal(err)
			}
			c.edit("root", func(e *envelope) { e.Signatures[0].Sig = hexOf(other) })
			c.anchor = c.latest("root")
			c.badAnchor()
		}},
		{"test_faketime", func(c *client) {
			c.init()
			c.mds["root"].Expires = in(7 * day)
			c.publish("root")
			c.refresh(exitOK)
			c.refresh(exitFailed, 8*day)
		}},
	}
}

// badAnchor wants nothing to come of the first root, whether init takes it or
// not.
func (c *client) badAnchor() {
	c.tryInit()
	c.refresh(exitFailed)
	c.requests(c.asked)
}

// mismatchCases: one top-level role is wrong; those before it come in.
func mismatchCases() []conformanceCase {
	trusted := map[string][4]int{"root": {1}, "timestamp": {2}, "snapshot": {2, 2}, "targets": {2, 2, 2}}
	all := []string{"root", "targets", "snapshot", "timestamp"}
	var out []conformanceCase
	for _, role := range topLevel {
		v := trusted[role]
		out = append(out, conformanceCase{"test_unsigned_metadata[" + role + "]", func(c *client) {
			c.dropSigner(role)
			c.publish(all...)
			c.init()
			c.refresh(exitFailed)
			c.trusted(v[0], v[1], v[2], v[3])
		}})
		if role == "timestamp" {
			continue // its name has no version
		}
		out = append(out, conformanceCase{"test_url_and_metadata_version_mismatch[" + role + "]", func(c *client) {
			c.mds[role].Version++
			c.publish(all...) // 3 at the address of 2
			c.init()
			c.refresh(exitFailed)
			c.trusted(v[0], v[1], v[2], v[3])
		}})
	}
	return append(out, []conformanceCase{
		{"test_snapshot_404", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["timestamp"].Meta["snapshot.json"].Version++
			c.publish("timestamp")
			c.refresh(exitFailed)
			c.lastRequest("snapshot 2")
			c.trusted(1, 2, 1, 1)
		}},
		{"test_targets_404", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["snapshot"].Meta["targets.json"].Version++
			c.publish("snapshot", "timestamp")
			c.refresh(exitFailed)
			c.lastRequest("targets 2")
			c.trusted(1, 2, 2, 1)
		}},
		{"test_timestamp_404", func(c *client) {
			c.init()
			c.refresh(exitOK)
			delete(c.published, "timestamp")
			c.refresh(exitFailed)
			c.lastRequest("timestamp")
		}},
	}...)
}

func contentCases() []conformanceCase {
	return []conformanceCase{
		{"test_timestamp_content_changes", func(c *client) {
			c.init()
			c.refresh(exitOK)
			first := c.latest("timestamp")
			c.mds["timestamp"].Meta["snapshot.json"].Version = 100
			c.restart("timestamp", 1)
			c.publish("timestamp")
			c.refresh(exitOK)
			c.lastRequest("timestamp")
			c.holds("timestamp", first)
		}},
		{"test_basic_metadata_hash_support", func(c *client) {
			c.hashes = true
			c.publish("targets", "snapshot", "timestamp")
			c.init()
			c.refresh(exitOK)
			c.trusted(1, 2, 2, 2)
		}},
		{"test_targets_hash_mismatch", func(c *client) {
			c.hashes = true
			c.publish("targets", "snapshot", "timestamp")
			c.init()
			c.refresh(exitOK)
			c.publish("targets")
			c.mds["snapshot"].Meta["targets.json"].Hashes["sha256"] = strings.Repeat("0", 64)
			c.publish("snapshot", "timestamp")
			c.refresh(exitFailed)
			c.trusted(1, 3, 3, 2)
		}},
		{"test_snapshot_hash_mismatch", func(c *client) {
			c.hashes = true
			c.publish("snapshot", "timestamp")
			c.init()
			c.refresh(exitOK)
			c.publish("snapshot")
			c.mds["timestamp"].Meta["snapshot.json"].Hashes["sha256"] = strings.Repeat("0", 64)
			c.publish("timestamp")
			c.refresh(exitFailed)
			c.trusted(1, 3, 2, 1)
		}},
		{"test_metadata_bytes_match", func(c *client) {
			c.init()
			v := c.published["timestamp"]
			v[len(v)-1] = append(slices.Clone(v[len(v)-1]), ' ')
			c.refresh(exitOK)
			c.holds("timestamp", v[len(v)-1])
		}},
		{"test_custom_fields", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["root"].Extra, c.mds["root"].Roles["root"].Extra = "value", "another value"
			c.addKey("root", "root", c.newKey("ecdsa", map[string]any{"extra-field": map[string]any{"a": 1, "b": 2}}))
			c.publish("root")
			c.refresh(exitOK)
			c.version("root", 2)
		}},
		{"test_deprecated_keyid_hash_algorithms", func(c *client) {
			c.init()
			c.dropKeys("snapshot")
			c.addKey("root", "snapshot", c.newKey("ecdsa", map[string]any{"keyid_hash_algorithms": "md5"}))
			c.publish("root", "snapshot", "timestamp")
			c.refresh(exitOK)
			c.version("root", 2)
			c.version("snapshot", 2)
		}},
		{"test_incorrect_metadata_type", func(c *client) {
			c.init()
			// A snapshot that is a sound timestamp in all but its type.
			c.addKey("root", "snapshot", c.signers["timestamp"][0])
			c.mds["snapshot"].Meta = map[string]*simMeta{"snapshot.json": {Version: 1}}
			c.publish("root", "snapshot")
			c.published["timestamp"] = append(c.published["timestamp"], c.latest("snapshot"))
			c.published["snapshot"] = c.published["snapshot"][:1]
			c.refresh(exitFailed)
			c.trusted(2, 0, 0, 0)
		}},
	}
}

func expiryCases() []conformanceCase {
	return []conformanceCase{
		{"test_root_expired", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.publish("root")
			c.refresh(exitOK)
			c.mds["root"].Expires = in(-day)
			c.publish("root", "targets", "snapshot", "timestamp")
			c.refresh(exitFailed)
			c.trusted(3, 1, 1, 1)
		}},
		{"test_timestamp_expired", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["timestamp"].Expires = in(-5 * day)
			c.publish("timestamp")
			c.refresh(exitFailed)
			c.trusted(1, 1, 1, 1)
		}},
		{"test_snapshot_expired", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["snapshot"].Expires = in(-5 * day)
			c.publish("snapshot", "timestamp")
			c.refresh(exitFailed)
			c.trusted(1, 2, 1, 1)
		}},
		{"test_targets_expired", func(c *client) {
			c.init()
			c.refresh(exitOK)
			c.mds["targets"].Expires = in(-5 * day)
			c.publish("targets", "snapshot", "timestamp")
			c.refresh(exitFailed)
			c.trusted(1, 2, 2, 1)
		}},
		{"test_expired_local_root", func(c *client) {
			c.init()
			c.mds["root"].Expires = in(7 * day)
			c.publish("root")
			c.refresh(exitOK)
			c.mds["root"].Expires = in(21 * day)
			c.publish("root")
			c.refresh(exitOK, 18*day)
			c.version("root", 3)
		}},
		{"test_expired_local_timestamp", func(c *client) {
			c.init()
			c.mds["timestamp"].Expires = in(7 * day)
			c.publish("timestamp")
			c.refresh(exitOK)
			c.mds["timestamp"].Expires = in(21 * day)
			c.publish("targets", "snapshot", "timestamp")
			c.refresh(exitOK, 18*day)
			c.trusted(1, 3, 2, 2)
		}},
	}
}

// simulatorCases: the simulator publishes what it says it does.
func simulatorCases() []conformanceCase {
	read := func(c *client, role string) signed {
		var md struct{ Signed signed }
		if err := json.Unmarshal(c.latest(role), &md); err != nil {
			c.t.Fatal(err)
		}
		return md.Signed
	}
	return []conformanceCase{
		{"test_repo_initialzation_unittest", func(c *client) {
			for _, role := range topLevel {
				if md := read(c, role); md.Version != 1 || md.Type != role || len(c.published[role]) != 1 {
					c.errorf("%s: %+v", role, md)
				}
			}
		}},
		{"test_basic_metadata_hash_support_unittest", func(c *client) {
			c.hashes = true
			c.publish("targets", "snapshot", "timestamp")
			m := read(c, "timestamp").Meta["snapshot.json"]
			if b := c.latest("snapshot"); m.Version != 2 || m.Length != len(b) || m.Hashes["sha256"] != hexSum(b) {
				c.errorf("%+v", m)
			}
		}},
		{"test_update_timestamp", func(c *client) {
			past := time.Now().Add(-5 * day).UTC().Format(time.RFC3339)
			c.mds["timestamp"].Expires = past
			c.publish("timestamp")
			if md := read(c, "timestamp"); md.Expires != past || md.Version != 2 {
				c.errorf("%+v", md)
			}
		}},
	}
}

// shapeCases are repositories of the shape that two programmes write; the suite
// has copies of real ones, which are not ours to keep.
func shapeCases() []conformanceCase {
	return []conformanceCase{
		{"test_static_repository[tuf-on-ci-0.11]", func(c *client) {
			c.mds["root"].Extra = "online uri"
			c.mds["root"].Roles["snapshot"].Extra = "365"
			c.rotate("timestamp")
			c.addKey("root", "root", c.newKey("ecdsa", map[string]any{"x-tuf-on-ci-keyowner": "@somebody"}))
			c.delegate("targets", "delegatedrole", true, "delegatedrole/*")
			c.list("delegatedrole", "delegatedrole/artifact", "content", "sha256")
			c.publish("root", "delegatedrole", "targets", "snapshot", "timestamp")
			c.init()
			c.refresh(exitOK, day)
			c.download(exitOK, "delegatedrole/artifact")
			c.downloaded("content")
		}},
		{"test_static_repository[sigstore-root-signing]", func(c *client) {
			for range 4 {
				c.addKey("root", "root", c.newKey("ecdsa", map[string]any{"x-tuf-on-ci-keyowner": "@somebody"}))
			}
			c.mds["root"].Roles["root"].Threshold = 3
			for range 10 {
				c.publish("root") // to 11, the first by the key of version 1 too
			}
			c.delegate("targets", "registry.npmjs.org", true, "registry.npmjs.org/*")
			c.list("targets", "trusted_root.json", "{}", "sha256", "sha512")
			c.publish("registry.npmjs.org", "targets", "snapshot", "timestamp")
			c.init()
			c.refresh(exitOK, day)
			c.download(exitOK, "trusted_root.json")
			c.downloaded("{}")
			c.version("root", 11)
		}},
	}
}

// quotingCases: names of roles go into addresses and names of files.
func quotingCases() []conformanceCase {
	var out []conformanceCase
	for role, quoted := range map[string]string{"?": "%3F", "#": "%23", "/delegatedrole": "%2Fdelegatedrole", "../delegatedrole": "..%2Fdelegatedrole"} {
		out = append(out, conformanceCase{"test_unusual_role_name[" + role + "]", func(c *client) {
			c.delegate("targets", role, false, "*")
			c.addKey("targets", role, c.newKey("ecdsa", nil))
			c.publish(role, "targets", "snapshot", "timestamp")
			c.init()
			c.download(exitFailed, "nonexistent target")
			if !slices.Contains(c.asked, quoted+" 1") {
				c.errorf("asked for %q", c.asked)
			}
			if v := c.versions(); len(v) != 5 {
				c.errorf("on disk are %v", v)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(c.dir), "delegatedrole.json")); err == nil {
				c.errorf("a file outside the folder")
			}
		}})
	}
	return out
}
