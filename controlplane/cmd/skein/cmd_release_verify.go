package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
)

func (a *app) releaseAttestationsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "attestations RELEASE", Short: "list what is attached to a release", Args: args(cobra.ExactArgs(1)),
		Long:              "Signed SLSA provenance, the CycloneDX bill of materials, and what people attached with oras or cosign.",
		Example:           "  skein release attestations meter@3",
		ValidArgsFunction: a.offer(a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.releases().ListAttestations(cmd.Context(), &releasev1.ListAttestationsRequest{Release: args[0]})
			if err != nil {
				return err
			}
			return a.emit(r, func(w io.Writer) {
				row(w, "WHAT", "DOCUMENT", "SIZE", "MANIFEST", "CREATED")
				for _, x := range r.GetAttestations() {
					row(w, kindOf(x), short(x.GetDocumentDigest()), size(x.GetBytes()), short(x.GetManifestDigest()), stamp(x.GetCreated()))
				}
			})
		},
	}
}

// attached lists what is attached to a release; one that waits for signatures
// has no place to ask yet.
func (a *app) attached(ctx context.Context, r *releasev1.Release) ([]*releasev1.Attestation, error) {
	if r.GetPending() != "" {
		return nil, nil
	}
	l, err := a.releases().ListAttestations(ctx, &releasev1.ListAttestationsRequest{Release: r.GetDigest()})
	return l.GetAttestations(), err
}

// kindOf names an attestation for people.
func kindOf(x *releasev1.Attestation) string {
	switch {
	case x.GetBuildType() != "":
		return "provenance, " + path.Base(path.Dir(x.GetBuildType()))
	case x.GetArtifactType() == attest.MediaBOM:
		return "bill of materials"
	}
	return x.GetArtifactType()
}

func (a *app) releaseVerifyCmd() *cobra.Command {
	var root string
	c := &cobra.Command{
		Use: "verify RELEASE", Short: "verify a release and what is attested of it, on this machine", Args: args(cobra.ExactArgs(1)),
		Long: "Follows the TUF metadata from a root, checks that it lists the release under this digest, and verifies the\n" +
			"signed statements and the bill of materials with the keys that the metadata names. Without --root the\n" +
			"server's own word is taken for its root.",
		Example:           "  skein release verify meter@3\n  skein release verify meter@3 --root root.json",
		ValidArgsFunction: a.offer(a.releaseNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			v := verifier{app: a}
			if err := v.run(cmd.Context(), args[0], root); err != nil {
				return err
			}
			return a.emit(v.list, func(w io.Writer) {
				for _, l := range v.lines {
					row(w, l[0], l[1])
				}
			})
		},
	}
	c.Flags().StringVar(&root, "root", "", "TUF root to start from, as the people of that control plane gave it")
	return c
}

// verifier checks one release from outside.
type verifier struct {
	app   *app
	list  *releasev1.ListAttestationsResponse
	keys  []crypto.PublicKey
	lines [][2]string
}

func (v *verifier) say(what, format string, args ...any) {
	v.lines = append(v.lines, [2]string{what, fmt.Sprintf(format, args...)})
}

func (v *verifier) run(ctx context.Context, release, root string) error {
	r, err := v.app.releases().GetRelease(ctx, &releasev1.GetReleaseRequest{Release: release})
	if err != nil {
		return err
	}
	if v.list, err = v.app.releases().ListAttestations(ctx, &releasev1.ListAttestationsRequest{Release: release}); err != nil {
		return err
	}
	index := ota.Digest(r.GetRelease().GetDigest())
	if got := ota.DigestOf(r.GetIndex()); got != index {
		return fmt.Errorf("the index is %s, the server calls it %s", got, index)
	}
	if err := v.trusted(ctx, root, index); err != nil {
		return err
	}
	subjects, err := v.subjects(ctx, index, r.GetIndex())
	if err != nil {
		return err
	}
	return v.statements(ctx, index, subjects)
}

// trusted follows the metadata and compares what it lists.
func (v *verifier) trusted(ctx context.Context, root string, index ota.Digest) error {
	pub, err := v.app.releases().ListPublishers(ctx, &releasev1.ListPublishersRequest{})
	if err != nil {
		return err
	}
	anchor, from := pub.GetOwnRoot(), "as the server gives it; pin one with --root"
	if root != "" {
		if anchor, err = os.ReadFile(root); err != nil {
			return err
		}
		from = root
	}
	client, err := trust.NewClient(slot.NewMem(), anchor)
	if err != nil {
		return err
	}
	target := v.list.GetTarget()
	if err := client.Refresh(ctx, v.app.metadata(), time.Now(), target); err != nil {
		return fmt.Errorf("TUF metadata: %w", err)
	}
	v.say("root", "version %d (%s)", client.RootVersion(), from)
	info, err := client.Target(target)
	if err != nil {
		return err
	}
	if info.Digest != index {
		return fmt.Errorf("the image repository lists %s as %s, the server serves %s", target, info.Digest, index)
	}
	v.say("listed", "%s is %s, counter %d", target, index, info.Custom.Counter)
	v.keys, err = client.DirectorKeys()
	return err
}

// blob reads a document of the server and hashes it.
func (v *verifier) blob(ctx context.Context, d ota.Digest, limit int64) ([]byte, error) {
	return v.app.smallBlob(ctx, d, limit)
}

// smallBlob reads a blob that has at most limit bytes.
func (a *app) smallBlob(ctx context.Context, d ota.Digest, limit int64) ([]byte, error) {
	body, err := fetch.HTTP(a.http(), a.config.server).Open(ctx, d, 0, limit)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Short(), err)
	}
	if ota.DigestOf(b) != d {
		return nil, fmt.Errorf("blob %s is something else", d)
	}
	return b, nil
}

// subjects are the digests that statements may be about: the index and all files.
func (v *verifier) subjects(ctx context.Context, index ota.Digest, raw []byte) ([]ota.Digest, error) {
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	out := []ota.Digest{index}
	for _, d := range ix.Manifests {
		b, err := v.blob(ctx, d.Digest, manifest.MaxManifest)
		if err != nil {
			return nil, err
		}
		m, err := manifest.ParseManifest(b)
		if err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			out = append(out, l.Digest)
		}
	}
	return out, nil
}

// statements verifies all that skein attached; at least one provenance of the
// index must be signed by a key that the metadata names.
func (v *verifier) statements(ctx context.Context, index ota.Digest, subjects []ota.Digest) error {
	vouched, named := false, map[ota.Digest]bool{}
	boms := map[ota.Digest][]byte{}
	for _, x := range v.list.GetAttestations() {
		if !x.GetOwn() || x.GetDocumentDigest() == "" {
			v.say("attached", "%s, by people", kindOf(x))
			continue
		}
		d := ota.Digest(x.GetDocumentDigest())
		doc, err := v.blob(ctx, d, attest.MaxDocument)
		if err != nil {
			return err
		}
		if x.GetArtifactType() == attest.MediaBOM {
			boms[d] = doc
			continue
		}
		st, about, err := verifyAny(v.keys, doc, subjects)
		if errors.Is(err, trust.ErrSignature) {
			v.say("attached", "%s, signed by another control plane; it was verified when the release was imported", kindOf(x))
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", kindOf(x), err)
		}
		vouched = vouched || about == index
		for _, p := range st.Predicate.RunDetails.Byproducts {
			named[ota.Digest("sha256:"+p.Digest["sha256"])] = true
		}
		v.say("signed", "%s by %s, %s", kindOf(x), st.Predicate.RunDetails.Builder.ID, st.Predicate.RunDetails.Metadata.FinishedOn)
	}
	for d, doc := range boms {
		files, err := attest.CheckBOM(doc, index)
		if err != nil {
			return err
		}
		if !named[d] {
			v.say("attached", "bill of materials of %d files, which no statement of this control plane names", len(files))
			continue
		}
		v.say("signed", "bill of materials of %d files", len(files))
	}
	if !vouched {
		return fmt.Errorf("no signed provenance of %s: its attestations are not of this control plane's keys", index)
	}
	return nil
}

func verifyAny(keys []crypto.PublicKey, doc []byte, subjects []ota.Digest) (st *attest.Statement, about ota.Digest, err error) {
	for _, about = range subjects {
		if st, err = attest.Verify(keys, doc, about); err == nil || !errors.Is(err, attest.ErrSubject) {
			return st, about, err
		}
	}
	return nil, "", err
}
