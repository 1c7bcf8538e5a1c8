package main

import (
	"context"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/agent/internal/power"
)

// powerBoard is what sets the power mode here, nil where there are no modes.
func powerBoard(o runOptions) agent.PowerBoard {
	t := &power.Tools{Root: o.root, Run: host.CommandWith, Nvpmodel: o.nvpmodel, JetsonClocks: o.jetsonClocks,
		Restart: func(ctx context.Context) error {
			command := o.reboot
			if len(command) == 0 {
				command = []string{"systemctl", "reboot"}
			}
			_, err := host.CommandWith(ctx, "", command[0], command[1:]...)
			return err
		}}
	if o.nvpmodel == "" || !t.Present() {
		return nil
	}
	return t
}
