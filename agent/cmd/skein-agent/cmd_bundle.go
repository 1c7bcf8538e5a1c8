package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/ota/bundle"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1/agentlocalv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

func bundleCommand(s streams) *cobra.Command {
	c := &cobra.Command{Use: "bundle", Short: "Install from a bundle file, without any network", Example: "  skein-agent bundle apply /media/usb/meter.skein"}
	c.AddCommand(bundleApplyCommand(s), bundleShowCommand(s))
	return c
}

func bundleApplyCommand(s streams) *cobra.Command {
	var l localFlags
	var receipts string
	var noWait bool
	c := &cobra.Command{
		Use: "apply FILE", Short: "Install what a bundle holds for this device", Args: oneArg,
		Example: "  skein-agent bundle apply /media/usb/meter.skein\n  skein-agent bundle apply meter.skein --receipts /media/usb/receipts",
		Long: "Install what a bundle holds for this device, with the checks of an update that comes over the network.\n" +
			"The running agent reads the file; when the release runs, or has failed, a signed receipt is written beside\n" +
			"the bundle, in receipts/DEVICE.cbor, for `skein release import-receipts`.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := l.check(); err != nil {
				return err
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if receipts == "" {
				receipts = filepath.Join(filepath.Dir(path), "receipts")
			}
			return applyBundle(cmd.Context(), s, l, path, receipts, noWait)
		},
	}
	l.add(c)
	c.Flags().StringVar(&receipts, "receipts", "", "folder for the receipt; default is receipts beside the bundle")
	c.Flags().BoolVar(&noWait, "no-wait", false, "return when the bundle is accepted, write no receipt")
	return c
}

// oneArg is cobra.ExactArgs(1) with our exit code.
func oneArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%w: usage: %s", errUsage, cmd.UseLine())
	}
	return nil
}

func applyBundle(ctx context.Context, s streams, l localFlags, path, receipts string, noWait bool) error {
	client := localapi.Client(l.socket)
	got, err := client.ApplyBundle(ctx, &agentlocalv1.ApplyBundleRequest{Path: path})
	if err != nil {
		return unreachable(err, l.socket)
	}
	if noWait {
		return printApplied(s.out, l, got, "accepted", "")
	}
	outcome, failure, err := awaitBundle(ctx, s.err, client, got)
	if err != nil {
		return unreachable(err, l.socket)
	}
	name, err := writeReceipt(ctx, client, receipts)
	if err != nil {
		fmt.Fprintln(s.err, "skein-agent: no receipt:", err)
	}
	if err := printApplied(s.out, l, got, outcome, name); err != nil {
		return err
	}
	if failure != "" {
		return fmt.Errorf("%s did not come to run here: %s", got.GetRelease(), failure)
	}
	return nil
}

func printApplied(w io.Writer, l localFlags, got *agentlocalv1.ApplyBundleResponse, outcome, receipt string) error {
	if l.output == "json" {
		return printJSON(w, got)
	}
	fmt.Fprintf(w, "%s %s on %s\n", got.GetRelease(), outcome, got.GetDevice())
	if receipt != "" {
		fmt.Fprintf(w, "receipt %s\n", receipt)
	}
	return nil
}

// lookEvery is how often the agent is asked how far it is.
const lookEvery = 500 * time.Millisecond

// awaitBundle tells each new step until the release runs or has failed.
func awaitBundle(ctx context.Context, out io.Writer, client agentlocalv1connect.LocalServiceClient, got *agentlocalv1.ApplyBundleResponse) (outcome, failure string, err error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	told := ""
	for {
		st, err := client.Status(ctx, &agentlocalv1.StatusRequest{})
		if err != nil {
			return "", "", err
		}
		d := st.GetDevice()
		if atLeast(d.GetHeldGeneration(), got.GetGeneration()) {
			switch {
			case d.GetPhase() == "failed":
				return "failed", d.GetFailureClass() + ": " + d.GetFailure(), nil
			case d.GetPhase() == "idle" && d.GetRunningRelease() == got.GetDigest():
				return "runs", "", nil
			}
		}
		why, err := client.Explain(ctx, &agentlocalv1.ExplainRequest{})
		if err != nil {
			return "", "", err
		}
		if line := progressLine(why); line != told {
			told = line
			fmt.Fprintln(out, line)
		}
		select {
		case <-ctx.Done():
			return "", "", ctx.Err()
		case <-tick.C:
		}
	}
}

func progressLine(why *agentlocalv1.ExplainResponse) string {
	line := why.GetSummary()
	if r := why.GetReasons(); len(r) > 0 {
		line += " " + r[0]
	}
	return line
}

func atLeast(have, want *fleetv1.Generation) bool {
	if have.GetEpoch() != want.GetEpoch() {
		return have.GetEpoch() > want.GetEpoch()
	}
	return have.GetCounter() >= want.GetCounter()
}

// writeReceipt puts the signed report of this device into a folder.
func writeReceipt(ctx context.Context, client agentlocalv1connect.LocalServiceClient, dir string) (string, error) {
	r, err := client.Receipt(ctx, &agentlocalv1.ReceiptRequest{})
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name := filepath.Join(dir, r.GetDevice()+".cbor")
	temp := name + ".part"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	_, err = f.Write(r.GetReport())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil { // it may be pulled out next
		return "", err
	}
	return name, os.Rename(temp, name)
}

func bundleShowCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use: "show FILE", Short: "Show what a bundle holds, without trusting it", Args: oneArg, Example: "  skein-agent bundle show /media/usb/meter.skein",
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return err
			}
			b, err := bundle.Open(f, st.Size())
			if err != nil {
				return err
			}
			fmt.Fprintf(s.out, "release %s\ndigest  %s\nexpires %s\nwritten %s by %s\nlayers  %d\n", b.Info.Release, b.Info.Index.Digest, b.Info.Expires, b.Info.Created, b.Info.By, len(b.Info.Layers))
			for _, t := range b.Info.Targets {
				fmt.Fprintln(s.out, "target ", t)
			}
			for _, d := range b.Devices() {
				fmt.Fprintln(s.out, "device ", d)
			}
			return nil
		},
	}
}
