package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/window"
	"github.com/skein-fleet/skein/telemetry/spool"
)

type runOptions struct {
	state, socket, mqttOver   string
	servers                   serverOptions
	heartbeat, sample, blocks time.Duration
	look, loadTimeout         time.Duration
	spoolMiB                  int64
	root, zone, nvbootctrl    string
	reboot                    []string
	nvpmodel, jetsonClocks    string
	trtexec                   string
	refit                     []string
	fetcher, fetcherUser      string
	fetcherDir                string
	tegrastats, nvml          []string
	peerListen                string
	peerCacheMiB              int64
	tap, preseed              string
	verbose, check            bool
	claim                     enrollOptions
}

func runCommand(s streams) *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use: "run", Short: "Run the agent until it is stopped", Args: noArgs,
		Example: "  skein-agent run --config /etc/skein/agent.json\n  skein-agent run --check\n" +
			"  skein-agent run --model-command \"skein-sim serve-model --addr {addr} --dir {dir} --model-file {model-file} --model {model} --version {version}\"",
		Long: "Run the agent until it is stopped.\n\nWhat serves a model is what its release says: a container image, run by containerd, or a command; and\n" +
			"for releases that say nothing --model-command, whose words are parted by blanks and in which {http} (or\n" +
			"{addr}) {grpc} {metrics} {dir} {model-file} {model} {version} {id} are replaced. A server that cannot ever\n" +
			"load its model exits with 65, one without memory with 71.",
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgent(cmd.Context(), s, o) },
	}
	f := c.Flags()
	f.StringVar(&o.state, "state", "/var/lib/skein-agent", "folder for identity, releases and telemetry")
	f.StringVar(&o.socket, "socket", defaultSocket, "unix socket for status, explain and logs; empty for none")
	serverFlags(c, &o.servers)
	f.StringVar(&o.mqttOver, "mqtt-over", "auto", "tcp, websocket (through the HTTPS port), or auto: what works")
	f.DurationVar(&o.heartbeat, "heartbeat", 10*time.Minute, "longest time between two reports")
	f.DurationVar(&o.sample, "sample-every", time.Second, "time between two samples")
	f.DurationVar(&o.look, "check-every", 15*time.Second, "time between two looks at what runs and at the device's health")
	f.DurationVar(&o.blocks, "block-every", time.Minute, "time between two blocks of telemetry")
	f.DurationVar(&o.loadTimeout, "load-timeout", 10*time.Minute, "how long a model server may take to get ready")
	f.Int64Var(&o.spoolMiB, "spool-mib", 64, "bound of what waits while offline")
	f.StringVar(&o.zone, "timezone", "", "where the device stands, for maintenance windows and budgets, as Europe/Paris (default: as the system says)")
	f.StringVar(&o.root, "root", "/", "root of the file system that is probed")
	f.StringArrayVar(&o.tegrastats, "tegrastats", nil, "command that prints tegrastats lines, one word each time")
	f.StringArrayVar(&o.nvml, "nvml", nil, "command that writes what NVML says, one word each time (default: skein-nvml beside this program, where libnvidia-ml is)")
	f.StringVar(&o.nvbootctrl, "nvbootctrl", "nvbootctrl", "command that knows the boot chain, where there is one")
	f.StringArrayVar(&o.reboot, "reboot-command", nil, "command that restarts the machine, one word each time; systemctl reboot when not given")
	f.StringVar(&o.nvpmodel, "nvpmodel", "nvpmodel", "command that knows the power modes, where the board has some; empty: power is left alone")
	f.StringVar(&o.trtexec, "trtexec", agent.DefaultTrtexec, "TensorRT's trtexec, for trial loads of engines and for builds where an operator made this device a builder; empty: neither")
	f.StringArrayVar(&o.refit, "refit-command", nil, "command that puts the weights {onnx} into the stripped plan {plan} and writes {out}, one word each time (default: Python's TensorRT)")
	f.StringVar(&o.jetsonClocks, "jetson-clocks", "jetson_clocks", "command that locks clocks")
	f.StringVar(&o.fetcher, "fetcher", "", "skein-fetch, for mirrors that releases name (default: beside this program; none: no mirrors)")
	f.StringVar(&o.fetcherUser, "fetcher-user", "", "user that skein-fetch runs as, where the agent is root")
	f.StringVar(&o.fetcherDir, "fetcher-dir", "", "scratch folder of skein-fetch; with --fetcher-user one that this user can reach (default: below --state)")
	f.StringVar(&o.peerListen, "peer-listen", ":7443", "where to serve the other devices of the site, once the control plane makes this device their cache; empty: never")
	f.Int64Var(&o.peerCacheMiB, "peer-cache-mib", 4096, "bound of what is fetched for them alone")
	f.StringVar(&o.tap, "tap", "auto", "where applications ask the model over the KServe v2 protocol, HTTP and gRPC: unix:PATH, HOST:PORT on loopback, none; auto is a socket beside --socket, where the runtime has servers")
	f.BoolVar(&o.verbose, "verbose", false, "log debug lines too")
	f.BoolVar(&o.check, "check", false, "check configuration, identity and state, print what this device is, and exit")
	f.StringVar(&o.claim.server, "server", "", "enrol here first if this device is not enrolled")
	f.StringVar(&o.claim.claim, "claim", "", "claim for --server")
	f.StringVar(&o.preseed, "preseed", "", "JSON file with server, claim, name and labels: enrol by it if this device is not enrolled, then remove it")
	f.StringVar(&o.claim.name, "name", "", "name of the device for --server")
	f.StringToStringVar(&o.claim.labels, "label", nil, "labels that the device claims for --server")
	return c
}

// noArgs is cobra.NoArgs with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes none, got %q", errUsage, cmd.CommandPath(), args)
	}
	return nil
}

func newLogger(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

func runAgent(ctx context.Context, s streams, o runOptions) (err error) {
	pulse, stop := beat(ctx)
	defer stop()
	switch agent.Transport(o.mqttOver) {
	case agent.TransportTCP, agent.TransportWebSocket, agent.TransportAuto:
	default:
		return fmt.Errorf("%w: --mqtt-over %q: want tcp, websocket or auto", errUsage, o.mqttOver)
	}
	tail := localapi.NewTail(500)
	log := newLogger(io.MultiWriter(s.err, tail), o.verbose)
	files, err := slot.OpenDir(o.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	unlock, err := lockState(o.state)
	if err != nil && !o.check {
		return err
	}
	busy := err != nil
	if !busy {
		defer unlock()
	}
	machine := host.New(host.Options{Root: o.root, StateDir: o.state, Tegrastats: o.tegrastats, NVML: o.nvml, Logger: log})
	zone := machine.Zone()
	if o.zone != "" {
		if zone, err = window.Zone(o.zone); err != nil {
			return fmt.Errorf("%w: --timezone: %w", errUsage, err)
		}
	}
	if busy { // a check opens nothing that another agent writes
		return checkBeside(ctx, s, machine, files)
	}
	if o.claim.server != "" {
		o.claim.state = o.state
		if err := enrollDevice(ctx, s, o.claim, machine, files); err != nil {
			return err
		}
	}
	if o.preseed != "" && o.claim.server == "" && !o.check {
		if err := enrollFromFile(ctx, s, o.preseed, machine, files); err != nil {
			return err
		}
	}
	rt, closeRuntime, err := newRuntime(o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRuntime()) }()
	var sp spool.Spool
	if !o.check {
		var closeSpool func() error
		sp, closeSpool = newSpool(o, log)
		defer func() { err = errors.Join(err, closeSpool()) }()
	}
	agents, err := selfUpdate(files)
	if err != nil {
		return err
	}
	chain, err := bootloader(o.root, o.nvbootctrl, o.reboot)
	if err != nil {
		return err
	}
	fetcher, err := mirrorFetcher(o, log)
	if err != nil {
		return err
	}
	lastPanic := panicOutput(o.state, log)
	a, err := agent.New(agent.Options{
		Host: machine, Runtime: rt, Files: files, Spool: sp, Logger: log, Version: version, Floor: buildTime(), Zone: zone,
		MQTTOver: agent.Transport(o.mqttOver), Heartbeat: o.heartbeat, TelemetryEvery: o.sample, BlockEvery: o.blocks, CheckEvery: o.look, LoadTimeout: o.loadTimeout,
		Agents: agents, Boot: chain, Power: powerBoard(o), Engines: engineOptions(o), BoardLine: machine.Line, LastPanic: lastPanic, Fetcher: fetcher,
		LocalSocket: o.socket, LogTail: tail.Lines, PeerListen: o.peerListen, PeerCache: o.peerCacheMiB << 20, Tap: agent.TapOptions{Listen: tapAddress(o, rt)},
	})
	if err != nil {
		return err
	}
	if o.check {
		return printCheck(ctx, s, machine, a)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := machine.Run(ctx); err != nil {
			log.Warn("probes ended", "error", err)
		}
	})
	pulse.of(a)
	err = a.Run(ctx)
	cancel()
	wg.Wait()
	return err
}

// tapAddress is where the tap listens, empty for nowhere.
func tapAddress(o runOptions, rt runtime.Runtime) string {
	switch o.tap {
	case "none", "":
		return ""
	case "auto":
		if _, ok := rt.(runtime.Endpoints); !ok || o.socket == "" {
			return ""
		}
		return tapBeside(o.socket)
	}
	return o.tap
}

// tapBeside is the tap's socket of an agent with a local socket.
func tapBeside(socket string) string {
	path, err := filepath.Abs(strings.TrimSuffix(socket, ".sock") + "-tap.sock")
	if err != nil {
		return ""
	}
	return "unix:" + path
}

// lockState makes sure that one agent at a time works in a state folder.
func lockState(dir string) (unlock func(), err error) { return lockFile(dir, "lock") }

func lockFile(dir, base string) (unlock func(), err error) {
	name := filepath.Join(dir, base)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, syscall.EROFS) { // what is committed is served from a read-only disk too
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another agent works in %s: stop it, or give another --state (%w)", dir, err)
	}
	return func() { f.Close() }, nil
}

func printCheck(ctx context.Context, s streams, m *host.Machine, a *agent.Agent) error {
	facts, err := m.Facts(ctx)
	if err != nil {
		return err
	}
	st := a.Status()
	fmt.Fprintf(s.out, "device   %s (%s)\ntarget   %s\nhardware %s\nheld     %s\nrunning  %s\n", st.DeviceID, st.Name, facts.Target, facts.Hardware, st.Held, st.RunningName)
	return nil
}

// checkBeside is the check of a folder in which an agent works.
func checkBeside(ctx context.Context, s streams, m *host.Machine, files slot.Files) error {
	id, err := agent.LoadIdentity(files)
	if err != nil {
		return err
	}
	facts, err := m.Facts(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "device   %s (%s)\ntarget   %s\nhardware %s\nan agent works here: skein-agent status says more\n", id.DeviceID, id.Name, facts.Target, facts.Hardware)
	return nil
}

// newSpool opens the durable spool; without it telemetry waits in memory, for
// a device must go on with a broken or full disk.
func newSpool(o runOptions, log *slog.Logger) (spool.Spool, func() error) {
	opts := agent.SpoolOptions(o.spoolMiB << 20)
	sp, err := spool.OpenBadger(spool.BadgerOptions{Options: opts, Dir: filepath.Join(o.state, "spool")})
	if err != nil {
		log.Warn("telemetry waits in memory only", "error", err)
		opts.MaxBytes = min(opts.MaxBytes, 4<<20)
		m := spool.NewMemory(opts)
		return m, m.Close
	}
	return sp, sp.Close
}

// buildTime is a time that has certainly passed: of the commit that was built.
func buildTime() time.Time {
	first := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return first
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil && t.After(first) {
				return t
			}
		}
	}
	return first
}
