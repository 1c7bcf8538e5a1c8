package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/boot"
	"github.com/skein-fleet/skein/agent/internal/sdnotify"
	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/ota/slot"
)

type superviseOptions struct {
	state             string
	deadline, restart time.Duration
	config            string
	rest              []string
}

func superviseCommand(s streams) *cobra.Command {
	var o superviseOptions
	c := &cobra.Command{
		Use: "supervise [flags] [-- flags of run]", Short: "Run the agent of the current slot, and watch a new one",
		Example: "  skein-agent supervise --state /var/lib/skein-agent --config /etc/skein/agent.json\n" +
			"  skein-agent supervise --state state -- --runtime mock",
		Long: "Run the agent of the current slot and start it again when it ends: what the service manager starts.\n\n" +
			"A release may carry an agent. It goes to one of two slots under --state and is started on trial:\n" +
			"five starts at most, written down before each, and --trial-deadline to find itself in order. Else the\n" +
			"agent before it runs again, and the release is reported as failed with the cause. The installed\n" +
			"binary stays as it is and runs when no slot does.",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.rest = args
			o.config, _ = cmd.Flags().GetString("config")
			return supervise(cmd.Context(), s, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.state, "state", "/var/lib/skein-agent", "folder for identity, releases and telemetry")
	f.DurationVar(&o.deadline, "trial-deadline", 5*time.Minute, "how long a new agent may take to find itself in order")
	f.DurationVar(&o.restart, "restart-after", 2*time.Second, "first pause after the agent ended by itself; it doubles up to a minute")
	return c
}

func supervise(ctx context.Context, s streams, o superviseOptions) (err error) {
	if o.deadline <= 0 || o.restart <= 0 {
		return fmt.Errorf("%w: --trial-deadline and --restart-after must be longer than nothing", errUsage)
	}
	log := newLogger(s.err, false)
	files, err := slot.OpenDir(o.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	unlock, err := lockFile(o.state, "supervisor.lock")
	if err != nil {
		return err
	}
	defer unlock()
	factory, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the installed agent: %w", err)
	}
	args := []string{"run", "--state", o.state}
	if o.config != "" {
		args = append(args, "--config", o.config)
	}
	v := &selfupdate.Supervisor{
		Files: files, Factory: factory, Args: append(args, o.rest...), Deadline: o.deadline, RestartMin: o.restart,
		Out: s.out, Err: s.err, Logger: log.With("part", "supervisor"),
	}
	manager := sdnotify.FromEnvironment()
	v.Env = manager.Environ()
	v.Alive = func(status string) {
		if err := manager.Say(sdnotify.Ready, sdnotify.Alive, sdnotify.Status(status)); err != nil {
			log.Warn("watchdog", "error", err)
		}
	}
	return v.Run(ctx)
}

// selfUpdate opens the agent's slots when a supervisor started this process.
func selfUpdate(files slot.Files) (agent.SelfUpdate, error) {
	from := os.Getenv(selfupdate.SlotVariable)
	if from == "" {
		return nil, nil
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the running agent: %w", err)
	}
	return agent.OpenSelfUpdate(files, from, program)
}

// bootloader is the boot chain of this machine, nil where it has none.
func bootloader(root, nvbootctrl string, reboot []string) (agent.Bootloader, error) {
	if root == string(filepath.Separator) {
		root = ""
	}
	b, err := boot.NewNVBootctl(boot.NVOptions{Root: root, Command: nvbootctrl, RebootCommand: reboot})
	if errors.Is(err, boot.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
