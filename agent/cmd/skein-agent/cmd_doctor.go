package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/internal/containerd"
	"github.com/skein-fleet/skein/agent/internal/doctor"
	"github.com/skein-fleet/skein/agent/internal/host"
)

// errSick is what doctor ends with where it found something to mend.
var errSick = errors.New("this host needs mending")

type doctorOptions struct {
	root, state, server, output string
	containerd, peerListen      string
	strict, all                 bool
}

func doctorCommand(s streams) *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use: "doctor", Short: "Check this host before it is enrolled, and say what to mend", Args: noArgs,
		Example: "  sudo skein-agent doctor --server https://fleet.example.com:8443\n  skein-agent doctor -o json",
		Long: "Check this host and say what to mend: what it is, disk, clock, network, containers, GPU, kernel, memory and\n" +
			"the vendor's tools. Nothing is changed, and nothing is sent to the server but the beginning of TLS.\n" +
			"Exit code 7: an error was found, with --strict also a warning.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output != "text" && o.output != "json" {
				return fmt.Errorf("%w: -o %q: want text or json", errUsage, o.output)
			}
			return examine(cmd.Context(), s, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.root, "root", "/", "root of the file system that is probed")
	f.StringVar(&o.state, "state", "/var/lib/skein-agent", "folder that the agent will work in")
	f.StringVar(&o.server, "server", "", "device port of the control plane to reach, https://HOST:8443")
	f.StringVar(&o.containerd, "containerd", "/run/containerd/containerd.sock", "socket of containerd; empty: no containers")
	f.StringVar(&o.peerListen, "peer-listen", ":7443", "where a cache of a site listens; empty: never")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	f.BoolVar(&o.strict, "strict", false, "warnings count as errors")
	f.BoolVar(&o.all, "all", false, "show also what is in order")
	return c
}

func examine(ctx context.Context, s streams, o doctorOptions) error {
	x := doctor.Options{Root: o.root, StateDir: o.state, Server: o.server, Containerd: o.containerd, Floor: buildTime(), IsRoot: os.Geteuid() == 0,
		LookPath: exec.LookPath, Run: host.Command, Live: o.root == string(filepath.Separator)}
	if o.containerd != "" {
		x.Containers = func(ctx context.Context) []doctor.Finding { return containersFound(ctx, o) }
	}
	if o.peerListen != "" {
		x.Listen = []string{o.peerListen}
	}
	all := doctor.Examine(ctx, x)
	if err := ctx.Err(); err != nil {
		return err
	}
	worst := doctor.Worst(all)
	if o.output == "json" {
		enc := json.NewEncoder(s.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"worst": worst, "findings": all}); err != nil {
			return err
		}
	} else if err := printFindings(s.out, all, o.all); err != nil {
		return err
	}
	if worst == doctor.Error || o.strict && worst == doctor.Warning {
		return errSick
	}
	return nil
}

// containersFound asks the driver of containers what it lacks.
func containersFound(ctx context.Context, o doctorOptions) (out []doctor.Finding) {
	grades := map[string]doctor.Severity{containerd.LevelOK: doctor.OK, containerd.LevelWarn: doctor.Note, containerd.LevelFail: doctor.Warning}
	for _, f := range containerd.Check(ctx, containerd.Options{Socket: o.containerd, HostRoot: o.root}) {
		out = append(out, doctor.Finding{Check: f.Check, Severity: grades[f.Level], Message: f.Detail, Fix: f.Mend})
	}
	return out
}

func printFindings(out io.Writer, findings []doctor.Finding, all bool) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	good := 0
	for _, f := range findings {
		if f.Severity == doctor.OK && !all {
			good++
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Severity, f.Check, f.Message)
		if f.Fix != "" {
			fmt.Fprintf(w, "\t\tmend: %s\n", f.Fix)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if good > 0 {
		fmt.Fprintf(out, "%d checks are in order (--all shows them)\n", good)
	}
	return nil
}
