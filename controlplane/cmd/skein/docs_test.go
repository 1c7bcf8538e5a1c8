package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestDocs holds docs/cli.md to the commands: go test ./controlplane/cmd/skein
// -run Docs -update writes it anew.
func TestDocs(t *testing.T) {
	a := &app{}
	root := a.root()
	var b bytes.Buffer
	b.WriteString("# The command line\n\nWritten from the commands by `go test ./controlplane/cmd/skein -run Docs -update`; do not edit.\n\n" +
		"Completion for your shell: `skein completion --help`. Results go to standard output, everything else to\n" +
		"standard error. `-o json` and `-o yaml` carry the messages of the API with all fields, under the names of\n" +
		"the `.proto` files; 64-bit numbers are text there, as JSON cannot hold them all.\n")
	document(&b, root)
	path := filepath.Join("..", "..", "..", "docs", "cli.md")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("docs/cli.md is not what the commands say (-file +commands):\n%s", diff)
	}
}

func document(b *bytes.Buffer, c *cobra.Command) {
	if !c.HasParent() || !c.HasSubCommands() {
		fmt.Fprintf(b, "\n## %s\n\n%s.\n\n", c.CommandPath(), strings.ToUpper(c.Short[:1])+c.Short[1:])
		if c.HasParent() {
			fmt.Fprintf(b, "```\n%s\n```\n", c.UseLine())
		}
		if c.Long != "" {
			fmt.Fprintf(b, "\n```text\n%s\n```\n", c.Long)
		}
		flags := c.LocalFlags()
		if flags.HasAvailableFlags() {
			b.WriteString("\n| flag | meaning |\n|---|---|\n")
			flags.VisitAll(func(f *pflag.Flag) {
				name := "--" + f.Name
				if f.Shorthand != "" {
					name = "-" + f.Shorthand + ", " + name
				}
				kind, usage := pflag.UnquoteUsage(f)
				if d := f.DefValue; d != "" && d != "false" && d != "[]" && d != "0" && d != "0s" {
					usage += "; default " + d
				}
				fmt.Fprintf(b, "| `%s` | %s |\n", strings.TrimSpace(name+" "+kind), strings.ReplaceAll(usage, "|", `\|`))
			})
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\nExamples:\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
		}
	}
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() && child.Name() != "completion" {
			document(b, child)
		}
	}
}

// TestCommands holds what every command owes its user.
func TestCommands(t *testing.T) {
	a := &app{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: help without summary or example", c.CommandPath())
		}
		if c.RunE == nil || c.Args == nil {
			t.Errorf("%s: arguments are not checked", c.CommandPath())
		}
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(a.root())
}
