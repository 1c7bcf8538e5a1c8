package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) releaseImportCmd() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use: "import FILE", Short: "take a release from a bundle of another control plane", Args: args(cobra.ExactArgs(1)),
		Long: "Verifies the bundle in full: every digest here, then on the server the TUF metadata against the root of a\n" +
			"publisher that was named before, and the signed statements. Then uploads what the server lacks and lists\n" +
			"the release there, signed by its own trust, under the same digest. Importing again changes nothing; a\n" +
			"bundle that is refused changes nothing either.",
		Example: "  skein release publisher add lyon --root lyon-root.json\n  skein release import /media/usb/meter.skein",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.importBundle(cmd.Context(), args[0], check)
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				name := r.GetRelease().GetName() + "@" + r.GetRelease().GetVersion()
				switch {
				case r.GetExisting():
					line(w, "%s is here already, nothing was changed.", name)
				case check:
					line(w, "%s of %s can be imported: %d signed statements, %d files to upload.", name, r.GetPublisher(), r.GetVerified(), len(r.GetMissing()))
				default:
					line(w, "%s is here, from %s: %d signed statements were verified.", name, r.GetPublisher(), r.GetVerified())
				}
			})
		},
	}
	c.Flags().BoolVar(&check, "check", false, "verify and upload nothing but the metadata, import nothing")
	return c
}

func (a *app) importBundle(ctx context.Context, path string, check bool) (*releasev1.ImportReleaseResponse, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := bundle.Open(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	bar := newProgress(a.env.stderr, "verify "+filepath.Base(path), st.Size())
	err = b.Verify(ctx, func(done, _ int64) { bar.at(done, 0) })
	bar.done()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	head, err := b.Head()
	if err != nil {
		return nil, err
	}
	req := &releasev1.ImportReleaseRequest{HeadDigest: string(ota.DigestFromSum(sha256.Sum256(head))), Check: true}
	if err := a.uploadBlob(ctx, "metadata", bytes.NewReader(head), int64(len(head)), req.HeadDigest); err != nil {
		return nil, err
	}
	r, err := a.releases().ImportRelease(ctx, req)
	if err != nil || check || r.GetExisting() {
		return r, err
	}
	for i, d := range r.GetMissing() {
		at, ok := b.At(ota.Digest(d))
		if !ok {
			return nil, fmt.Errorf("%s: the server wants %s, which is not in it", path, d)
		}
		name := fmt.Sprintf("%s, file %d of %d", filepath.Base(path), i+1, len(r.GetMissing()))
		if err := a.uploadBlob(ctx, name, at, at.Size(), d); err != nil {
			return nil, err
		}
	}
	req.Check = false
	return a.releases().ImportRelease(ctx, req)
}

// uploadBlob sends bytes whose digest is known, unless the server has them.
func (a *app) uploadBlob(ctx context.Context, name string, r io.ReaderAt, size int64, digest string) error {
	if _, err := a.send(ctx, r, size, digest, name); err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	return nil
}

func (a *app) releasePublisherCmd() *cobra.Command {
	var root string
	add := &cobra.Command{
		Use: "add NAME", Short: "trust the bundles of another control plane", Args: args(cobra.ExactArgs(1)),
		Long:    "Its root comes from `skein release publisher root` there. Compare the digest with its people by another way.",
		Example: "  skein release publisher add lyon --root lyon-root.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(root)
			if err != nil {
				return err
			}
			r, err := a.releases().AddPublisher(cmd.Context(), &releasev1.AddPublisherRequest{Name: args[0], Root: b})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				line(w, "Bundles of %s are taken, by root %s.", r.GetPublisher().GetName(), r.GetPublisher().GetRootDigest())
			})
		},
	}
	add.Flags().StringVar(&root, "root", "", "TUF root of that control plane")
	_ = add.MarkFlagRequired("root")
	list := &cobra.Command{
		Use: "list", Short: "list whose bundles are taken", Args: args(cobra.NoArgs), Example: "  skein release publisher list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.releases().ListPublishers(cmd.Context(), &releasev1.ListPublishersRequest{})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "PUBLISHER", "ROOT", "ADDED", "BY")
				for _, p := range r.GetPublishers() {
					row(w, p.GetName(), p.GetRootDigest(), stamp(p.GetAdded()), p.GetAddedBy())
				}
			})
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "take no more bundles of a publisher", Args: args(cobra.ExactArgs(1)), Example: "  skein release publisher remove lyon",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.releases().RemovePublisher(cmd.Context(), &releasev1.RemovePublisherRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "No more bundles of %s are taken; what was imported stays.", args[0]) })
		},
	}
	return group("publisher", "whose bundles are taken", "  skein release publisher list", add, list, remove, a.publisherRootCmd())
}

func (a *app) publisherRootCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "root", Short: "write the TUF root of this control plane, for another to trust", Args: args(cobra.NoArgs),
		Example: "  skein release publisher root --file lyon-root.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.releases().ListPublishers(cmd.Context(), &releasev1.ListPublishersRequest{})
			if err != nil {
				return err
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return hinted{err, "name another file"}
			}
			if err != nil {
				return err
			}
			_, err = f.Write(r.GetOwnRoot())
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) { line(w, "%s: root %s.", file, ota.DigestOf(r.GetOwnRoot())) })
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "root.json", "file to write")
	return c
}

// metadata reads the signed metadata of the server.
func (a *app) metadata() func(ctx context.Context, name string) ([]byte, error) {
	return fetch.HTTPMetadata(a.http(), a.config.server)
}
