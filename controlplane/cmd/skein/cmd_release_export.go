package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) releaseExportCmd() *cobra.Command {
	req := &releasev1.ExportReleaseRequest{}
	var file string
	var sites []string
	var assign, again bool
	c := &cobra.Command{
		Use: "export RELEASE", Short: "write a release into one file, for a site without a network", Args: args(cobra.ExactArgs(1)),
		Long: "Writes a bundle: an OCI image layout with the TUF metadata and what is attested inside. It serves another\n" +
			"control plane (skein release import) and, with --device or --site, the devices themselves\n" +
			"(skein-agent bundle apply), whose signed desired states go along. An interrupted copy stays as FILE.part,\n" +
			"and the same command goes on where it stopped.",
		Example:           "  skein release export meter@3 --file /media/usb/meter.skein\n  skein release export meter@3 --site lyon --assign --file /media/usb/lyon.skein",
		ValidArgsFunction: a.offer(a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Release = args[0]
			for _, s := range sites {
				req.Selectors = append(req.Selectors, "site="+s)
			}
			return a.export(cmd.Context(), req, file, assign, again)
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "file", "f", "", "bundle to write; default is NAME-VERSION.skein")
	f.StringSliceVar(&req.Targets, "target", nil, "take the files of these targets only")
	f.StringSliceVar(&req.Devices, "device", nil, "also carry the signed desired state of these devices, and the files they need")
	f.StringSliceVar(&sites, "site", nil, "the same for all devices of these sites")
	f.StringArrayVar(&req.Selectors, "selector", nil, "the same for all devices of a selector")
	f.Int64Var(&req.RootFrom, "root-from", 0, "leave out trust roots before this version")
	f.BoolVar(&assign, "assign", false, "make the release the wanted one of these devices first")
	f.BoolVar(&again, "force", false, "replace a bundle that is there")
	a.offerFlag(c, "device", a.deviceNames)
	noFiles(c, "target", "site", "selector", "root-from")
	return c
}

func (a *app) export(ctx context.Context, req *releasev1.ExportReleaseRequest, file string, assign, force bool) error {
	r, err := a.releases().GetRelease(ctx, &releasev1.GetReleaseRequest{Release: req.GetRelease()})
	if err != nil {
		return err
	}
	req.Release = r.GetRelease().GetDigest()
	if file == "" {
		file = r.GetRelease().GetName() + "-" + r.GetRelease().GetVersion() + ".skein"
	}
	if _, err := os.Lstat(file); err == nil && !force {
		return hinted{fmt.Errorf("%s: %w", file, fs.ErrExist), "name another file, or replace it with --force"}
	}
	if assign {
		if err := a.assignAll(ctx, req); err != nil {
			return err
		}
	}
	resp, err := a.releases().ExportRelease(ctx, req)
	if err != nil {
		return err
	}
	plan, err := bundle.PlanOf(resp.GetHead())
	if err != nil {
		return fmt.Errorf("the server's bundle: %w", err)
	}
	size, kept, err := a.writeBundle(ctx, plan, file)
	if err != nil {
		return hinted{fmt.Errorf("write %s: %w", file, err), "the same command goes on where it stopped"}
	}
	resp.Head = nil // it is in the file
	return a.emit(resp, func(w io.Writer) {
		line(w, "%s: %s, %s%s.", file, plan.Info.Release, sizeText(size), keptText(kept))
		line(w, "The metadata in it holds until %s.", plan.Info.Expires)
		if n := len(resp.GetDevices()); n > 0 {
			line(w, "For %d devices: skein-agent bundle apply FILE.", n)
		}
	})
}

func sizeText(n int64) string { return fmt.Sprint(size(n)) }

func keptText(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %s of it were there already", sizeText(n))
}

// assignAll makes the release the wanted one of the devices that are named.
func (a *app) assignAll(ctx context.Context, req *releasev1.ExportReleaseRequest) error {
	devices := slices.Clone(req.GetDevices())
	for _, s := range req.GetSelectors() {
		token := ""
		for {
			page, err := a.fleet().ListDevices(ctx, &fleetv1.ListDevicesRequest{Selector: s, PageToken: token})
			if err != nil {
				return err
			}
			for _, d := range page.GetDevices() {
				devices = append(devices, d.GetId())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
	}
	for _, d := range devices {
		if _, err := a.fleet().AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: d, Release: req.GetRelease()}); err != nil {
			return fmt.Errorf("assign to %s: %w", d, err)
		}
	}
	return nil
}

// writeBundle writes FILE.part, from where an earlier run stopped, and renames
// it at the end. It returns how much of it was there.
func (a *app) writeBundle(ctx context.Context, plan *bundle.Plan, file string) (size, kept int64, err error) {
	part := file + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if old, ok := earlier(f, plan); ok {
		plan = old
	}
	bar := newProgress(a.env.stderr, filepath.Base(file), plan.Size())
	defer bar.done()
	src := fetch.HTTP(a.http(), a.config.server)
	first := true
	for failures := 0; ; {
		st, err := f.Stat()
		if err != nil {
			return 0, 0, err
		}
		reached := int64(0)
		err = plan.Write(ctx, f, st.Size(), src, func(done, there int64) {
			if reached = done; first {
				kept = there
			}
			bar.at(done, there)
		})
		if err == nil {
			break
		}
		first = false
		if !passing(err) || ctx.Err() != nil {
			return 0, 0, err
		}
		if failures++; reached > st.Size() {
			failures = 1
		}
		if failures > uploadTries {
			return 0, 0, err
		}
		if err := pause(ctx, time.Second<<failures); err != nil {
			return 0, 0, err
		}
	}
	if err := f.Close(); err != nil {
		return 0, 0, err
	}
	return plan.Size(), kept, os.Rename(part, file)
}

// passing reports whether a copy may go on after an error: what the disk says
// is final, what the network says is not.
func passing(err error) bool {
	if errors.Is(err, fetch.ErrForbidden) || errors.Is(err, fetch.ErrNotFound) || errors.Is(err, bundle.ErrContent) {
		return false
	}
	_, disk := errors.AsType[*fs.PathError](err)
	return !disk
}

// least is how long the metadata of a copy that is gone on with must hold.
const least = 24 * time.Hour

// earlier returns the plan of an interrupted copy, if it is of the same
// contents and good for a while: then not a byte of it is copied again.
func earlier(f *os.File, fresh *bundle.Plan) (*bundle.Plan, bool) {
	head, err := io.ReadAll(io.LimitReader(f, bundle.MaxHead))
	if err != nil {
		return nil, false
	}
	old, err := bundle.PlanOf(head)
	if err != nil {
		return nil, false
	}
	ends, err := time.Parse(time.RFC3339, old.Info.Expires)
	if err != nil || time.Until(ends) < least || old.Info.Index.Digest != fresh.Info.Index.Digest ||
		!slices.Equal(old.Info.Layers, fresh.Info.Layers) || !slices.Equal(old.Info.Targets, fresh.Info.Targets) {
		return nil, false
	}
	return old, sameDesired(old, fresh)
}

func sameDesired(a, b *bundle.Plan) bool {
	read := func(p *bundle.Plan) (*bundle.Bundle, error) {
		head := p.Head()
		return bundle.OpenHead(bytes.NewReader(head), int64(len(head)))
	}
	x, err := read(a)
	if err != nil {
		return false
	}
	y, err := read(b)
	if err != nil || !slices.Equal(x.Devices(), y.Devices()) {
		return false
	}
	for _, d := range x.Devices() {
		p, perr := x.Desired(d)
		q, qerr := y.Desired(d)
		if perr != nil || qerr != nil || !bytes.Equal(p, q) {
			return false
		}
	}
	return true
}

func (a *app) releaseReceiptsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "import-receipts FOLDER|FILE...", Short: "take the signed reports that devices left on a stick", Args: args(cobra.MinimumNArgs(1)),
		Long:    "Reads DEVICE.cbor files, which skein-agent bundle apply writes beside a bundle, in receipts/.\nThose that were taken before are named and change nothing.",
		Example: "  skein release import-receipts /media/usb/receipts",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &releasev1.ImportReceiptsRequest{}
			for _, arg := range args {
				if err := readReceipts(arg, req); err != nil {
					return err
				}
			}
			if len(req.GetReceipts()) == 0 {
				return hinted{fmt.Errorf("%s: no receipts: %w", strings.Join(args, " "), fs.ErrNotExist), "they are named DEVICE.cbor"}
			}
			r, err := a.releases().ImportReceipts(cmd.Context(), req)
			if err != nil {
				return err
			}
			refused := 0
			for _, x := range r.GetResults() {
				if x.GetError() != "" {
					refused++
				}
			}
			if err := a.emit(r, func(w io.Writer) {
				row(w, "DEVICE", "RUNNING", "NOT TAKEN")
				for _, x := range r.GetResults() {
					what := x.GetError()
					if x.GetKnown() {
						what = "taken before"
					}
					row(w, x.GetDevice(), x.GetRunning(), what)
				}
			}); err != nil || refused == 0 {
				return err
			}
			return fmt.Errorf("%d of %d receipts were refused", refused, len(r.GetResults()))
		},
	}
}

// maxReceipt bounds one receipt.
const maxReceipt = 1 << 20

func readReceipts(path string, req *releasev1.ImportReceiptsRequest) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	names := []string{path}
	if st.IsDir() {
		if names, err = filepath.Glob(filepath.Join(path, "*.cbor")); err != nil {
			return err
		}
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxReceipt+1))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if len(b) > maxReceipt {
			return fmt.Errorf("%s: more than %d bytes: that is no receipt", name, maxReceipt)
		}
		req.Receipts = append(req.Receipts, &releasev1.Receipt{Device: strings.TrimSuffix(filepath.Base(name), ".cbor"), Report: b})
	}
	return nil
}
