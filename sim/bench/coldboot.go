package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/hil"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/sim/scenario/play"
	"github.com/skein-fleet/skein/sim/virtual"
)

// bootGoal is how much longer than its model server the agent may take from its
// start to the first answer to an application, in seconds.
const bootGoal = 2

// bootScript installs a release, and takes the power of the device with the
// cable out.
const bootScript = `devices 1 mix orin-nano=1 seed 5
at 0s release v1
at 0s rollout v1 canary=1
expect within 15s release v1 on all
at 15s fault cut device=1 for=10s
at 16s fault kill device=1 down=100ms
expect within 24s release v1 on all
`

// coldBoot measures the shipped agent from its start to the first served
// inference, with a release on its disk and without a network.
func (r *agentRun) coldBoot(ctx context.Context) error {
	script, err := scenario.Parse(strings.NewReader(bootScript))
	if err != nil {
		return err
	}
	shop, err := play.NewWorkshop(ctx, "")
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, "boot")
	var device *hil.Device
	newFleet := hil.New(hil.Options{Agent: r.o.Agent, Program: r.o.Sim[0]})
	result, err := play.Run(ctx, script, play.Options{Dir: dir, Workshop: shop, Host: hil.Host, Stretch: 1,
		Fleet: func(ctx context.Context, o virtual.FleetOptions) (play.Fleet, error) {
			f, err := newFleet(ctx, o)
			if err == nil {
				device, _ = f.Devices()[0].(*hil.Device)
			}
			return f, err
		}})
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		return fmt.Errorf("measure a cold boot: %w", err)
	}
	if device == nil || device.Starts() != 2 {
		return errors.New("measure a cold boot: the agent was not started twice")
	}
	server, err := r.serverStart(ctx, dir)
	if err != nil {
		return fmt.Errorf("measure a cold boot: %w", err)
	}
	r.add(figure("boot_to_first_answer", device.Boot().Seconds(), "s"))
	r.add(figure("boot_model_server_alone", server.Seconds(), "s"))
	r.add(figure("boot_agents_share", max(0, device.Boot()-server).Seconds(), "s").atMost(bootGoal))
	return nil
}

// serverStart is how long the model server takes by itself to get ready.
func (r *agentRun) serverStart(ctx context.Context, dir string) (time.Duration, error) {
	model := ""
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasSuffix(path, ".onnx") {
			model = path
		}
		return err
	})
	if err != nil || model == "" {
		return 0, fmt.Errorf("find the staged model: %q %w", model, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, r.o.Sim[0], "serve-model", "--addr", addr, "--dir", filepath.Dir(model), "--model-file", filepath.Base(model))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	for time.Since(begun) < time.Minute {
		resp, err := http.Get("http://" + addr + "/v2/health/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(begun), nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, errors.New("the model server did not get ready")
}
