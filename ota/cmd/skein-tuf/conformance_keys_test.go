package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hexOf(sum[:])
}

func keyCases() []conformanceCase {
	return []conformanceCase{
		{"test_snapshot_does_not_meet_threshold", func(c *client) {
			c.mds["root"].Roles["snapshot"].Threshold = 3
			for range 2 {
				c.addKey("root", "snapshot", c.newKey("ecdsa", nil))
			}
			c.publish("root", "targets", "snapshot", "timestamp")
			c.init()
			c.refresh(exitOK)
			c.dropSigner("snapshot")
			c.publish("targets", "snapshot", "timestamp")
			c.refresh(exitFailed)
			c.version("snapshot", 2)
		}},
		{"test_snapshot_has_too_few_keys", func(c *client) {
			c.init()
			for range 4 {
				c.addKey("root", "snapshot", c.newKey("ecdsa", nil))
			}
			c.mds["root"].Roles["snapshot"].Threshold = 6
			c.publish("root", "snapshot", "timestamp")
			c.refresh(exitFailed)
			c.version("root", 2)
			c.version("snapshot", 0)
		}},
		{"test_duplicate_keys", func(c *client) {
			c.init()
			k := c.newKey("ecdsa", nil)
			for range 9 {
				c.trust("root", "snapshot", k)
			}
			c.addSigner("snapshot", k)
			c.mds["root"].Roles["snapshot"].Threshold = 6
			c.publish("root", "snapshot", "timestamp")
			c.edit("snapshot", func(e *envelope) {
				for range 8 {
					e.Signatures = append(e.Signatures, e.Signatures[1])
				}
			})
			c.refresh(exitFailed)
			c.version("snapshot", 0)
		}},
		{"test_duplicate_sig_keyids", func(c *client) {
			c.init()
			c.edit("snapshot", func(e *envelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) })
			c.refresh(exitFailed)
			c.version("snapshot", 0)
		}},
	}
}

func signatureCases() []conformanceCase {
	var out []conformanceCase
	for kind, scheme := range map[string]string{"rsa": "rsassa-pss-sha256", "ecdsa": "ecdsa-sha2-nistp256", "ed25519": "ed25519"} {
		out = append(out, conformanceCase{"test_keytype_and_scheme[" + kind + "/" + scheme + "]", func(c *client) {
			c.init()
			k := c.newKey(kind, nil)
			c.addKey("root", "root", k)
			c.mds["root"].Roles["root"].Threshold = 2
			c.publish("root")
			c.refresh(exitOK)
			c.version("root", 2)
			other, err := k.sign([]byte("something else"))
			if err != nil {
				c.t.Fatal(err)
			}
			c.publish("root")
			c.edit("root", func(e *envelope) { e.Signatures[1].Sig = hexOf(other) })
			c.refresh(exitFailed)
			c.version("root", 2)
		}})
	}
	return append(out, conformanceCase{"test_invalid_sig_in_valid_metadata", func(c *client) {
		c.init()
		var old envelope
		c.edit("timestamp", func(e *envelope) { old = *e })
		c.addKey("root", "timestamp", c.newKey("ecdsa", nil))
		c.publish("root", "timestamp")
		c.edit("timestamp", func(e *envelope) { e.Signatures[0] = old.Signatures[0] })
		c.refresh(exitOK) // one sound signature is enough
		c.version("timestamp", 2)
		c.publish("timestamp")
		c.edit("timestamp", func(e *envelope) { e.Signatures[0].Sig = "" })
		c.refresh(exitOK)
		c.version("timestamp", 3)
	}})
}

// version is a version of a role: which keys it has, its threshold, who signs.
type version struct {
	keys      string // a digit is a key
	threshold int
	sigs      string
}

// rotationCases: the last version of each is taken, or not if the name says so.
func rotationCases() []conformanceCase {
	root := map[string][]version{
		"1-of-1-key-rotation":                                             {{"1", 1, "1"}, {"2", 1, "21"}, {"2", 1, "2"}},
		"1-of-1-key-rotation-unused-signatures":                           {{"1", 1, "314"}, {"2", 1, "3214"}, {"2", 1, "324"}},
		"3-of-5-sign-with-different-keycombos":                            {{"01234", 3, "024"}, {"01234", 3, "041"}, {"01234", 3, "013"}, {"01234", 3, "013"}},
		"3-of-5-one-key-rotated":                                          {{"01234", 3, "024"}, {"01345", 3, "041"}},
		"3-of-5-one-key-rotated-with-intermediate-step":                   {{"01234", 3, "024"}, {"01345", 3, "0245"}, {"01345", 3, "045"}},
		"3-of-5-all-keys-rotated-with-intermediate-step":                  {{"01234", 3, "024"}, {"56789", 3, "024567"}, {"56789", 3, "567"}},
		"1-of-3-threshold-increase-to-2-of-3":                             {{"123", 1, "1"}, {"123", 2, "12"}},
		"2-of-3-threshold-decrease-to-1-of-3":                             {{"123", 2, "12"}, {"123", 1, "12"}, {"123", 1, "1"}},
		"1-of-2-threshold-increase-to-2-of-2":                             {{"1", 1, "1"}, {"12", 2, "12"}},
		"1-of-1-key-rotation-fail-not-signed-with-old-key":                {{"1", 1, "1"}, {"2", 1, "234"}},
		"1-of-1-key-rotation-fail-not-signed-with-new-key":                {{"1", 1, "1"}, {"2", 1, "134"}},
		"3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys":          {{"01234", 3, "024"}, {"01345", 3, "024"}},
		"3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys":          {{"01234", 3, "024"}, {"01345", 3, "045"}},
		"1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached": {{"123", 1, "1"}, {"123", 2, "2"}},
		"2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-eached":  {{"123", 2, "12"}, {"123", 1, "1"}},
	}
	others := map[string]version{
		"1-of-1-key-rotation":                                            {"2", 1, "2"},
		"1-of-1-key-rotation-unused-signatures":                          {"1", 1, "314"},
		"1-of-1-key-rotation-fail-not-signed-with-new-key":               {"2", 1, "134"},
		"3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys": {"01345", 3, "024"},
		"2-of-5-one-key-signature-mising-threshold-not-reached":          {"01345", 3, "04"},
		"3-of-5-sign-first-combo":                                        {"01234", 3, "024"},
		"3-of-5-sign-second-combo":                                       {"01234", 3, "041"},
		"3-of-5-sign-third-combo":                                        {"01234", 3, "013"},
		"3-of-5-sign-fourth-combo":                                       {"01234", 3, "123"},
		"3-of-5-sign-fifth-combo":                                        {"01234", 3, "234"},
	}
	var out []conformanceCase
	for name, versions := range root {
		out = append(out, conformanceCase{"test_root_rotation[" + name + "]", func(c *client) {
			c.rotateRoot(versions, !strings.Contains(name, "fail"))
		}})
	}
	for name, v := range others {
		refused := strings.Contains(name, "fail") || strings.Contains(name, "wrong") || strings.Contains(name, "not-reached")
		out = append(out, conformanceCase{"test_non_root_rotations[" + name + "]", func(c *client) { c.rotateOthers(v, !refused) }})
	}
	return out
}

func (c *client) tenKeys() []simKey {
	var out []simKey
	for range 10 {
		out = append(out, c.newKey("ecdsa", nil))
	}
	return out
}

// become gives a role the keys, threshold and signers of a version.
func (c *client) become(role string, v version, keys []simKey) {
	c.dropKeys(role)
	c.mds["root"].Roles[role].Threshold = v.threshold
	for _, i := range v.keys {
		c.trust("root", role, keys[i-'0'])
	}
	for _, i := range v.sigs {
		c.addSigner(role, keys[i-'0'])
	}
}

func (c *client) rotateRoot(versions []version, taken bool) {
	c.restart("root", 1)
	keys := c.tenKeys()
	for _, v := range versions {
		c.become("root", v, keys)
		c.publish("root")
	}
	c.publish("targets", "snapshot", "timestamp")
	c.anchor = c.published["root"][0]
	c.init()
	last := len(versions) - 1
	if taken {
		c.refresh(exitOK)
	} else {
		c.refresh(exitFailed)
		last--
	}
	c.holds("root", c.published["root"][last])
}

func (c *client) rotateOthers(v version, taken bool) {
	c.init()
	keys := c.tenKeys()
	for _, role := range []string{"timestamp", "snapshot", "targets"} {
		c.become(role, v, keys)
		c.publish("root", "targets", "snapshot", "timestamp")
		if taken {
			c.refresh(exitOK)
			c.holdsLatest(role)
		} else {
			c.refresh(exitFailed)
			c.version(role, 0)
		}
	}
}

func rollbackCases() []conformanceCase {
	out := []conformanceCase{
		{"test_new_timestamp_version_rollback", func(c *client) {
			c.init()
			c.publish("timestamp")
			c.refresh(exitOK)
			c.version("timestamp", 2)
			c.restart("timestamp", 1)
			c.publish("timestamp")
			c.refresh(exitFailed)
			c.version("timestamp", 2)
			c.lastRequest("timestamp")
		}},
		{"test_targets_role_removal", func(c *client) {
			c.init()
			c.delegate("targets", "delegated", false, "delegatedpath/*")
			c.publish("delegated", "targets", "snapshot", "timestamp")
			c.refresh(exitOK)
			delete(c.mds["snapshot"].Meta, "delegated.json")
			c.publish("snapshot", "timestamp")
			c.refresh(exitFailed)
			c.version("snapshot", 2)
		}},
	}
	for name, hashes := range map[string]bool{"basic": false, "with hashes": true} {
		out = append(out, conformanceCase{"test_snapshot_rollback[" + name + "]", func(c *client) {
			c.init()
			c.hashes = hashes
			c.publish("snapshot", "timestamp")
			c.refresh(exitOK)
			c.restart("snapshot", 1)
			c.publish("snapshot", "timestamp")
			c.refresh(exitFailed)
			c.version("timestamp", 2)
			c.version("snapshot", 2)
			c.lastRequest("timestamp")
		}}, conformanceCase{"test_targets_rollback[" + name + "]", func(c *client) {
			c.init()
			c.hashes = hashes
			c.publish("targets", "snapshot", "timestamp")
			c.refresh(exitOK)
			c.restart("targets", 1)
			c.publish("targets", "snapshot", "timestamp")
			c.refresh(exitFailed)
			c.version("snapshot", 2)
			c.version("targets", 2)
		}})
	}
	return out
}

// recoveryCases: a version that went too far is taken back by new keys.
func recoveryCases() []conformanceCase {
	far := func(c *client, role string) {
		for range 99 {
			c.publish(role)
		}
	}
	return []conformanceCase{
		{"test_targets_fast_forward_recovery", func(c *client) {
			c.init()
			c.delegate("targets", "delegated", false, "delegatedpath/*")
			c.publish("delegated")
			far(c, "targets")
			c.publish("snapshot", "timestamp")
			c.refresh(exitOK)
			c.version("targets", 100)
			c.rotate("snapshot")
			c.restart("targets", 1)
			delete(c.mds["snapshot"].Meta, "delegated.json")
			c.publish("root", "targets", "snapshot", "timestamp")
			c.refresh(exitOK)
			c.version("targets", 1)
		}},
		{"test_new_snapshot_fast_forward_recovery", func(c *client) {
			c.init()
			far(c, "snapshot")
			c.publish("timestamp")
			c.refresh(exitOK)
			c.version("snapshot", 100)
			c.rotate("snapshot")
			c.rotate("timestamp")
			c.restart("snapshot", 1)
			c.publish("root", "targets", "snapshot", "timestamp")
			c.refresh(exitOK)
			c.version("snapshot", 1)
		}},
		{"test_new_timestamp_fast_forward_recovery", func(c *client) {
			c.init()
			far(c, "timestamp")
			c.refresh(exitOK)
			c.version("timestamp", 100)
			c.rotate("timestamp")
			c.restart("timestamp", 1)
			c.publish("root", "timestamp")
			c.refresh(exitOK)
			c.version("timestamp", 1)
		}},
	}
}
