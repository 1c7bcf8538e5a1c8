package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/ota/slot"
)

type enrollOptions struct {
	state, server, claim, name, serial string
	labels                             map[string]string
}

func enrollCommand(s streams) *cobra.Command {
	var o enrollOptions
	var root string
	c := &cobra.Command{
		Use: "enroll", Short: "Bring this device into the fleet", Args: noArgs,
		Example: "  skein-agent enroll --server https://fleet.example.com:8443 --claim @/media/usb/claim --name cam-07",
		Long: "Bring this device into the fleet. The claim is what skein token create prints; it names the CA of the\n" +
			"control plane, so the device knows whom it talks to. Waits while approval is pending.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			files, err := slot.OpenDir(o.state)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, files.Close()) }()
			if _, err := agent.LoadIdentity(files); errors.Is(err, agent.ErrNotEnrolled) { // else nothing is written
				unlock, err := lockState(o.state)
				if err != nil {
					return err
				}
				defer unlock()
			}
			return enrollDevice(cmd.Context(), s, o, host.New(host.Options{Root: root, StateDir: o.state}), files)
		},
	}
	f := c.Flags()
	f.StringVar(&o.state, "state", "/var/lib/skein-agent", "folder for the identity")
	f.StringVar(&o.server, "server", "", "device port of the control plane, https://HOST:8443")
	f.StringVar(&o.claim, "claim", "", "claim, or @FILE to read it from a file")
	f.StringVar(&o.name, "name", "", "name of the device; the host name if empty")
	f.StringVar(&o.serial, "serial", "", "serial number; probed if empty")
	f.StringToStringVar(&o.labels, "label", nil, "labels that the device claims, as site=lyon")
	f.StringVar(&root, "root", "/", "root of the file system that is probed")
	return c
}

func enrollDevice(ctx context.Context, s streams, o enrollOptions, m *host.Machine, files slot.Files) error {
	if id, err := agent.LoadIdentity(files); err == nil {
		fmt.Fprintf(s.err, "already enrolled as %s\n", id.DeviceID)
		return nil
	} else if !errors.Is(err, agent.ErrNotEnrolled) {
		return err
	}
	if o.server == "" || o.claim == "" {
		return fmt.Errorf("%w: --server and --claim are needed", errUsage)
	}
	facts, err := m.Facts(ctx)
	if err != nil {
		return err
	}
	if o.claim, err = claimText(o.claim); err != nil {
		return err
	}
	if o.name == "" {
		if o.name, err = os.Hostname(); err != nil {
			return fmt.Errorf("learn the host's name: %w", err)
		}
	}
	if o.serial == "" {
		o.serial = facts.Serial
	}
	id, err := agent.Enroll(ctx, agent.EnrollOptions{
		ServerURL: o.server, Claim: o.claim, Name: o.name, Serial: o.serial, Labels: o.labels,
		Target: facts.Target.String(), Hardware: facts.Hardware, Files: files, Floor: buildTime(),
		Retrying: func(cause error, again time.Duration) {
			fmt.Fprintf(s.err, "cannot reach %s: %v, trying again in %s\n", o.server, cause, again.Round(time.Second/10))
		},
		Pending: func(again time.Duration) {
			fmt.Fprintf(s.err, "waiting for approval (skein device approve), asking again in %s\n", again)
		},
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "enrolled as %s\n", id.DeviceID)
	return nil
}

// claimText reads @FILE: a claim on the command line is seen by all users.
func claimText(claim string) (string, error) {
	if !strings.HasPrefix(claim, "@") {
		return claim, nil
	}
	raw, err := os.ReadFile(claim[1:])
	if err != nil {
		return "", fmt.Errorf("%w: read the claim: %w", errUsage, err)
	}
	return string(raw), nil
}
