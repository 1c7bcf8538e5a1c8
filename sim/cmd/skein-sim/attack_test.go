package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// TestAttack: one line an attack, or JSON; a name that is none is wrong usage.
func TestAttack(t *testing.T) {
	code, out, errs := call(t, "attack", "--only", "unsigned-desired,foreign-director-key")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != exitOK || len(lines) != 3 || lines[0] != "attack unsigned-desired refused=ok nothing-applied=ok named=ok recovers=ok" ||
		!strings.HasPrefix(lines[1], "attack foreign-director-key refused=ok") || lines[2] != "2 attacks, 0 short" {
		t.Errorf("exit code %d: %q %q", code, out, errs)
	}
	code, out, errs = call(t, "attack", "--only", "junk-desired", "-o", "json")
	var got []struct {
		Name     string
		OK       bool
		Verdicts []struct {
			Name string
			OK   bool
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK || len(got) != 1 || !got[0].OK || len(got[0].Verdicts) != 4 {
		t.Errorf("exit code %d: %q %q, %v", code, out, errs, err)
	}
	code, out, _ = call(t, "attack", "--list", "-o", "json")
	var list []row
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != exitOK || len(list) < 60 ||
		!slices.ContainsFunc(list, func(r row) bool { return r.Name == "freeze" && r.Class == "freeze" }) {
		t.Errorf("exit code %d, %d attacks, %v", code, len(list), err)
	}
	for _, args := range [][]string{{"attack", "--only", "nonsense"}, {"attack", "--parallel", "0"}, {"attack", "now"}} {
		if code, _, errs := call(t, args...); code != exitUsage || errs == "" {
			t.Errorf("%v: exit code %d, %q", args, code, errs)
		}
	}
	if shortError(nil) != nil || shortError([]string{"freeze"}) == nil {
		t.Error("short attacks do not count")
	}
}
