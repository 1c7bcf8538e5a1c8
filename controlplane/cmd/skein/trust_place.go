package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/controlplane/internal/trustview"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

func (a *app) trusts() trustv1connect.TrustServiceClient {
	return trustv1connect.NewTrustServiceClient(a.http(), a.config.server)
}

// dirFlag is the folder that a trust command works on in place of the server.
const dirFlag = "dir"

// trustPlace is where drafts are: a folder, or the server by way of a copy in memory.
type trustPlace struct {
	app  *app
	dir  string // "": the server
	repo *trust.Repo
	base map[string]ota.Digest // of drafts, when they came from the server
	auto ed25519.PublicKey
}

// baseFile keeps, in a copy on a stick, which drafts it was made from.
const baseFile = "pending/base.json"

func (a *app) openPlace(ctx context.Context, dir string) (*trustPlace, error) {
	p := &trustPlace{app: a, dir: dir, base: map[string]ota.Digest{}}
	if dir != "" {
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
		var err error
		if p.repo, err = trust.OpenRepo(dir); errors.Is(err, trust.ErrNoRepo) {
			return nil, hinted{fmt.Errorf("no trust metadata in %s: %w", dir, fs.ErrNotExist), "make it with skein trust init, or copy it from the server with skein trust pending --out"}
		}
		return p, err
	}
	got, err := a.trusts().GetTrust(ctx, &trustv1.GetTrustRequest{Files: true})
	if err != nil {
		return nil, err
	}
	mem := slot.NewMem()
	if err := p.fill(mem, got); err != nil {
		return nil, err
	}
	p.auto = autoKey(got.GetStatus())
	p.repo, err = trust.OpenFiles(mem)
	return p, err
}

// fill puts what the server gave into f.
func (p *trustPlace) fill(f slot.Files, got *trustv1.GetTrustResponse) error {
	for _, d := range got.GetStatus().GetDrafts() {
		p.base[d.GetRole()] = ota.Digest(d.GetDigest())
	}
	for _, file := range got.GetFiles() {
		if !strings.HasPrefix(file.GetName(), "metadata/") && !strings.HasPrefix(file.GetName(), "pending/") {
			return fmt.Errorf("the server gave a file named %q", file.GetName())
		}
		if err := f.WriteFile(file.GetName(), file.GetContent()); err != nil {
			return err
		}
	}
	b, err := json.Marshal(p.base)
	if err != nil {
		return err
	}
	return f.WriteFile(baseFile, b)
}

// drafts returns the drafts by role.
func (p *trustPlace) drafts() map[string]trust.DraftStatus {
	out := map[string]trust.DraftStatus{}
	for _, d := range p.repo.Status().Drafts {
		out[d.Role] = d
	}
	return out
}

// keep gives drafts that were changed to the server; a folder has them already.
func (p *trustPlace) keep(ctx context.Context) error {
	if p.dir != "" {
		return nil
	}
	return p.send(ctx)
}

// send brings what is in a copy to the server: signatures where its drafts are
// the server's, else the drafts. What changed on the server since the copy was
// made is not overwritten.
func (p *trustPlace) send(ctx context.Context) error {
	got, err := p.app.trusts().GetTrust(ctx, &trustv1.GetTrustRequest{})
	if err != nil {
		return err
	}
	ours, theirs := p.drafts(), digests(got.GetStatus())
	for _, role := range []string{"root", "targets"} {
		if d, ok := ours[role]; ok && theirs[role] != string(d.Digest) && theirs[role] != string(p.base[role]) {
			return hinted{fmt.Errorf("the %s that waits on the server changed since this copy was made", role), "copy it again with skein trust pending --out, and repeat what you did"}
		}
	}
	for _, role := range []string{"root", "targets"} {
		d, ok := ours[role]
		if !ok || p.dir == "" && d.Digest == p.base[role] {
			continue
		}
		if theirs[role] != string(d.Digest) {
			r, err := p.app.trusts().ProposeMetadata(ctx, &trustv1.ProposeMetadataRequest{Role: role, Metadata: d.Metadata, BaseDigest: theirs[role]})
			if err != nil {
				return err
			}
			theirs = digests(r.GetStatus())
			continue
		}
		if err := p.sendSignatures(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func digests(s *trustv1.Status) map[string]string {
	out := map[string]string{}
	for _, d := range s.GetDrafts() {
		out[d.GetRole()] = d.GetDigest()
	}
	return out
}

func (p *trustPlace) sendSignatures(ctx context.Context, d trust.DraftStatus) error {
	var m struct {
		Signatures []struct {
			KeyID string `json:"keyid"`
			Sig   string `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(d.Metadata, &m); err != nil {
		return err
	}
	for _, s := range m.Signatures {
		sig, err := hexBytes(s.Sig)
		if err != nil {
			return err
		}
		_, err = p.app.trusts().AddSignature(ctx, &trustv1.AddSignatureRequest{Role: d.Role, Digest: string(d.Digest), KeyId: s.KeyID, Signature: sig})
		if err != nil {
			return err
		}
	}
	return nil
}

// status is what stands and waits at the place, as a message.
func (p *trustPlace) status(ctx context.Context) (*trustv1.Status, error) {
	if p.dir != "" {
		return trustview.Status(p.repo.Status()), nil
	}
	r, err := p.app.trusts().GetTrust(ctx, &trustv1.GetTrustRequest{})
	return r.GetStatus(), err
}

// edit opens the place, changes it, keeps that and shows what waits.
func (a *app) edit(cmd *cobra.Command, dir string, change func(p *trustPlace, now time.Time) error) error {
	p, err := a.openPlace(cmd.Context(), dir)
	if err != nil {
		return err
	}
	if err := change(p, time.Now()); err != nil && !errors.Is(err, trust.ErrPending) {
		return trustError(err)
	}
	if err := p.keep(cmd.Context()); err != nil {
		return err
	}
	return a.showPending(cmd.Context(), p)
}

// trustError gives errors of the trust package their exit codes.
func trustError(err error) error {
	if errors.Is(err, trust.ErrBadDraft) || errors.Is(err, trust.ErrBadSignature) {
		return usageError{err}
	}
	return err
}
