package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/ota/bundle"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1/agentlocalv1connect"
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
	telling, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tellProgress(telling, s.err, client) })
	got, err := localapi.PatientClient(l.socket).ApplyBundle(ctx, &agentlocalv1.ApplyBundleRequest{Path: path, NoWait: noWait})
	stop()
	wg.Wait()
	if err != nil {
		return unreachable(err, l.socket)
	}
	name := ""
	if !noWait {
		if name, err = writeReceipt(ctx, client, receipts); err != nil {
			fmt.Fprintln(s.err, "skein-agent: no receipt:", err)
		}
	}
	if err := printApplied(s.out, l, got, name); err != nil {
		return err
	}
	if got.GetOutcome() == "failed" {
		return fmt.Errorf("%s does not run here: %s", got.GetRelease(), got.GetFailure())
	}
	return nil
}

func printApplied(w io.Writer, l localFlags, got *agentlocalv1.ApplyBundleResponse, receipt string) error {
	if l.output == "json" {
		return printJSON(w, got)
	}
	fmt.Fprintf(w, "%s %s on %s\n", got.GetRelease(), got.GetOutcome(), got.GetDevice())
	if receipt != "" {
		fmt.Fprintf(w, "receipt %s\n", receipt)
	}
	return nil
}

// lookEvery is how often the agent is asked how far it is.
const lookEvery = 500 * time.Millisecond

// tellProgress says where the device stands, each time that it changes.
func tellProgress(ctx context.Context, out io.Writer, client agentlocalv1connect.LocalServiceClient) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		why, err := client.Explain(ctx, &agentlocalv1.ExplainRequest{})
		if err != nil {
			continue // the call that is waited for says what is wrong
		}
		if line := progressLine(why); line != told {
			told = line
			fmt.Fprintln(out, line)
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
	var output string
	c := &cobra.Command{
		Use: "show FILE", Short: "Show what a bundle holds, without trusting it", Args: oneArg, Example: "  skein-agent bundle show /media/usb/meter.skein",
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("%w: --output %q: want text or json", errUsage, output)
			}
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
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return printBundle(s.out, b, output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// printBundle prints a bundle as skein/bundle.json with its devices, or in lines.
func printBundle(w io.Writer, b *bundle.Bundle, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			bundle.Info
			Devices []string `json:"devices"`
		}{b.Info, slices.Concat([]string{}, b.Devices())})
	}
	fmt.Fprintf(w, "release %s\ndigest  %s\nexpires %s\nwritten %s by %s\nlayers  %d\n", b.Info.Release, b.Info.Index.Digest, b.Info.Expires, b.Info.Created, b.Info.By, len(b.Info.Layers))
	for _, t := range b.Info.Targets {
		fmt.Fprintln(w, "target ", t)
	}
	for _, d := range b.Devices() {
		fmt.Fprintln(w, "device ", d)
	}
	return nil
}
