package attack

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the table in docs/security-attacks.md")

const (
	docs  = "../../docs/security-attacks.md"
	begin = "<!-- attacks: made by go test ./sim/attack -run Docs -update -->\n"
	end   = "<!-- /attacks -->\n"
)

// table is the list of attacks for people.
func table() string {
	var b strings.Builder
	b.WriteString("| attack | kind | what refuses it | name in the report |\n|---|---|---|---|\n")
	for _, a := range List() {
		named := "event `refused`, attack `" + a.Class + "`"
		switch {
		case a.Denial:
			named = "condition `" + a.Class + "`"
		case a.named != nil:
			named = a.where + ": `" + a.Class + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.Name, a.Row, a.Refuser, named)
	}
	return b.String()
}

// TestDocs: the table in the docs is the list of attacks.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", docs)
	}
	if *update {
		if err := os.WriteFile(docs, []byte(head+begin+table()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != table() {
		t.Errorf("the table in %s is not the list of attacks: run go test ./sim/attack -run Docs -update", docs)
	}
}

// TestList: names are names, and each attack says what it needs.
func TestList(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range List() {
		if seen[a.Name] || a.Name == "" || strings.ToLower(a.Name) != a.Name || strings.ContainsAny(a.Name, " ,=") {
			t.Errorf("name %q", a.Name)
		}
		seen[a.Name] = true
		if a.Row == "" || a.Class == "" || a.Refuser == "" || a.strike == nil || a.Denial == (a.jitter == nil) {
			t.Errorf("%s is not complete", a.Name)
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d attacks", len(seen))
	}
}
