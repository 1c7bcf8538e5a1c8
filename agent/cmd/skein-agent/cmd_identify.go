package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/internal/host"
)

// identity is what a machine is, for scripts.
type identity struct {
	Target   string `json:"target"`
	Hardware string `json:"hardware"`
	Serial   string `json:"serial,omitempty"`
}

func identifyCommand(s streams) *cobra.Command {
	var root, output string
	c := &cobra.Command{
		Use: "identify", Short: "Say what this machine is, before it is enrolled", Args: noArgs,
		Example: "  skein-agent identify\n  skein-agent identify -o json",
		Long:    "Say what this machine is: the target that engines are bound to, its hardware and its serial number.\nNothing is written and no control plane is asked.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("%w: -o %q: want text or json", errUsage, output)
			}
			f, err := host.New(host.Options{Root: root}).Facts(cmd.Context())
			if err != nil {
				return err
			}
			id := identity{Target: f.Target.String(), Hardware: f.Hardware, Serial: f.Serial}
			if output == "json" {
				return json.NewEncoder(s.out).Encode(id)
			}
			_, err = fmt.Fprintf(s.out, "target   %s\nhardware %s\nserial   %s\n", id.Target, orNone(id.Hardware), orNone(id.Serial))
			return err
		},
	}
	c.Flags().StringVar(&root, "root", "/", "root of the file system that is probed")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
