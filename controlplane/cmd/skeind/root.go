package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/skein-fleet/skein/controlplane"
)

// gcPercent halves the garbage that a storm of reconnecting devices leaves; the
// memory of idle connections is mostly stacks.
const gcPercent = 50

type options struct {
	config   string
	logLevel string
	logJSON  bool
	cfg      controlplane.Config
}

func rootCmd(stdout, stderr io.Writer) *cobra.Command {
	o := options{cfg: controlplane.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "skeind",
		Short: "run the Skein control plane",
		Long: "skeind runs the control plane of a fleet. Without any configuration it makes its\n" +
			"certificate authority, a development trust repository and an admin credential in\n" +
			"the data folder at the first start, and prints how to log in.",
		Example:       "  skeind\n  skeind --data-dir /var/lib/skein --public-host fleet.example.com --http-addr :8080",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(cmd.Flags())
			if err != nil {
				return err
			}
			return run(cmd.Context(), cfg, o, stdout, stderr)
		},
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "JSON file with the same settings, flags win over it")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.logJSON, "log-json", false, "log JSON lines")
	flags(f, &o.cfg)
	return cmd
}

func flags(f *pflag.FlagSet, c *controlplane.Config) {
	f.StringVar(&c.DataDir, "data-dir", c.DataDir, "folder for all data")
	f.StringVar(&c.HTTPAddr, "http-addr", c.HTTPAddr, "address for people: API and dashboard")
	f.StringVar(&c.DeviceAddr, "device-addr", c.DeviceAddr, "address for devices: HTTPS")
	f.StringVar(&c.MQTTAddr, "mqtt-addr", c.MQTTAddr, "address for devices: MQTT over TLS")
	f.StringVar(&c.DebugAddr, "debug-addr", c.DebugAddr, "address for pprof and metrics, empty: off")
	f.StringVar(&c.Domain, "domain", c.Domain, "trust domain in device certificates, fixed by the first start")
	f.StringVar(&c.PublicHost, "public-host", c.PublicHost, "name or address under which devices reach this server")
	f.StringSliceVar(&c.Names, "name", c.Names, "more DNS names or IP addresses for the server certificate")
	f.StringVar(&c.Signer, "signer", c.Signer, "skein-signer that holds the online signing keys, unix:///path; empty: they are in the data folder")
	f.BoolVar(&c.Restored, "restored", c.Restored, "the data folder came back from a backup: raise the epoch of all generations, once")
}

// load reads the file over the defaults and the given flags over both.
func (o *options) load(f *pflag.FlagSet) (controlplane.Config, error) {
	cfg := controlplane.DefaultConfig()
	if o.config != "" {
		if err := controlplane.LoadConfig(o.config, &cfg); err != nil {
			return cfg, err
		}
	}
	over := pflag.NewFlagSet("given", pflag.ContinueOnError)
	flags(over, &cfg)
	var err error
	f.Visit(func(given *pflag.Flag) {
		if g := over.Lookup(given.Name); g != nil && err == nil {
			if s, ok := given.Value.(pflag.SliceValue); ok {
				err = g.Value.(pflag.SliceValue).Replace(s.GetSlice())
				return
			}
			err = g.Value.Set(given.Value.String())
		}
	})
	cfg.Version = version
	return cfg, err
}

func run(ctx context.Context, cfg controlplane.Config, o options, stdout, stderr io.Writer) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(stderr, opts)
	if o.logJSON {
		h = slog.NewJSONHandler(stderr, opts)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	s, err := controlplane.New(cfg, slog.New(h))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error {
		giveBack(ctx)
		return nil
	})
	g.Go(func() error {
		select {
		case <-s.Ready():
			_, err := fmt.Fprintln(stdout, s.LoginHint())
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}
