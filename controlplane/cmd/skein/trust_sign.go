package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/ota/trust/keyfile"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
)

func hexBytes(s string) ([]byte, error) { return hex.DecodeString(s) }

// passphraseEnv holds a passphrase where no terminal can be asked.
const passphraseEnv = "SKEIN_PASSPHRASE"

// passphrase asks for one; twice when a key is made with it.
func (a *app) passphrase(what string, twice bool) ([]byte, error) {
	if p := a.env.getenv(passphraseEnv); p != "" {
		return []byte(p), nil
	}
	f, ok := a.env.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, usageError{fmt.Errorf("no terminal to ask for the passphrase of %s: set %s", what, passphraseEnv)}
	}
	ask := func(text string) ([]byte, error) {
		fmt.Fprintf(a.env.stderr, "%s: ", clean(text))
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.env.stderr)
		return b, err
	}
	first, err := ask("Passphrase of " + what)
	if err != nil || !twice {
		return first, err
	}
	again, err := ask("The same again")
	if err != nil {
		return nil, err
	}
	if string(first) != string(again) {
		return nil, usageError{errors.New("the two passphrases differ")}
	}
	return first, nil
}

// confirmSign asks a person; without a terminal the answer is no.
func (a *app) confirmSign(question string) (bool, error) {
	f, ok := a.env.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false, usageError{errors.New("no terminal to ask: look at it with skein trust pending, then give --yes")}
	}
	fmt.Fprintf(a.env.stderr, "%s [y/N] ", clean(question))
	l, err := bufio.NewReader(io.LimitReader(f, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(l))), nil
}

type signOptions struct {
	dir, key, role, trustRoot string
	yes                       bool
}

func (a *app) trustSignCmd() *cobra.Command {
	o := signOptions{}
	c := &cobra.Command{
		Use: "sign", Short: "sign what waits, with one key", Args: args(cobra.NoArgs),
		Long: `Shows what waits for this key, against what is published, asks, and adds the
signature: to the drafts of the server, or of a folder with --dir. The private key
stays on this machine. Beside the key file, FILE.root.json keeps the newest root that
this key has seen; what a server or a folder shows must follow from it, or nothing is
signed. The first time, --trust-root says which root to begin with: get its digest
from somebody who was at the ceremony, not from the server.`,
		Example: "  skein trust sign --key alice.key\n  skein trust sign --key alice.key --dir /media/stick --yes",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.sign(cmd.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.key, "key", "", "private key file")
	f.StringVar(&o.dir, dirFlag, "", "folder to work on; default is the server")
	f.StringVar(&o.role, "role", "", "sign only root or targets")
	f.StringVar(&o.trustRoot, "trust-root", "", "digest of the root to begin with, the first time a key is used")
	f.BoolVar(&o.yes, "yes", false, "do not ask")
	_ = c.MarkFlagRequired("key")
	fixed(c, "role", "root", "targets")
	noFiles(c, "trust-root")
	return c
}

func (a *app) sign(ctx context.Context, o signOptions) error {
	if o.role != "" && o.role != "root" && o.role != "targets" {
		return usageError{fmt.Errorf("--role %q: want root or targets", o.role)}
	}
	pub, err := keyfile.ReadPublic(o.key + ".pub")
	if err != nil {
		return err
	}
	id, err := trust.KeyOf(pub.Key)
	if err != nil {
		return err
	}
	p, err := a.openPlace(ctx, o.dir)
	if err != nil {
		return err
	}
	if err := a.anchor(p, o); err != nil {
		return err
	}
	roles := slices.DeleteFunc([]string{"root", "targets"}, func(role string) bool {
		return o.role != "" && o.role != role || !p.repo.Signs(role, id)
	})
	if len(roles) == 0 {
		a.note("Nothing waits for key %s.", id[:12])
		if err := a.pin(p, o); err != nil {
			return err
		}
		return a.showPending(ctx, p)
	}
	for _, d := range p.repo.Status().Drafts {
		if slices.Contains(roles, d.Role) {
			if d.Problem != "" {
				return hinted{fmt.Errorf("%s cannot be signed yet: %s", d.Role, d.Problem), "skein trust status shows the roles"}
			}
			_, err := io.WriteString(a.env.stderr, layOut(func(w io.Writer) { draftText(w, message(p.repo, d.Role)) }, 0))
			if err != nil {
				return err
			}
		}
	}
	if !o.yes {
		if yes, err := a.confirmSign("Sign this with " + cmp.Or(pub.Name, o.key) + "?"); err != nil || !yes {
			return errors.Join(err, errorIf(err == nil, "nothing was signed"))
		}
	}
	pass, err := a.passphrase(o.key, false)
	if err != nil {
		return err
	}
	key, err := keyfile.Open(o.key, pass)
	if err != nil {
		return err
	}
	for _, role := range roles {
		if err := a.signOne(ctx, p, role, key); err != nil {
			return trustError(err)
		}
	}
	if err := a.pin(p, o); err != nil {
		return err
	}
	return a.showPending(ctx, p)
}

func errorIf(is bool, text string) error {
	if is {
		return errors.New(text)
	}
	return nil
}

func (a *app) signOne(ctx context.Context, p *trustPlace, role string, key ed25519.PrivateKey) error {
	digest, id, sig, err := p.repo.SignDraft(role, key)
	if err != nil {
		return err
	}
	if p.dir == "" {
		r, err := a.trusts().AddSignature(ctx, &trustv1.AddSignatureRequest{Role: role, Digest: string(digest), KeyId: id, Signature: sig})
		if err == nil && r.GetPublished() {
			a.note("Published.")
		}
		return err
	}
	err = p.repo.AddSignature(ctx, role, digest, id, sig, time.Now())
	if errors.Is(err, trust.ErrPending) {
		return nil
	}
	return err
}

// anchor checks a place against the root that this key trusts.
func (a *app) anchor(p *trustPlace, o signOptions) error {
	pinned, err := os.ReadFile(o.key + ".root.json")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now := p.repo.Status().RootDigest
	switch {
	case err == nil:
		if _, err := p.repo.Anchored(pinned); err != nil {
			return hinted{fmt.Errorf("%s does not trust what is shown: %w", o.key, err), "the server or the folder may have been tampered with: compare with a colleague, and sign nothing before that"}
		}
		return nil
	case now == "" && o.dir != "":
		return nil // the first root: it is looked at as a whole
	case o.trustRoot == "" && a.sawFirst(p, o):
		return nil
	case o.trustRoot == "":
		return hinted{usageError{fmt.Errorf("%s has not seen a root yet; this one is %s", o.key, now)},
			"compare that digest with somebody who was at the ceremony, then give --trust-root " + string(now)}
	case ota.Digest(o.trustRoot) != now:
		return usageError{fmt.Errorf("the root is %s, not %s", now, o.trustRoot)}
	}
	_, err = p.repo.Anchored(p.repo.Root())
	return err
}

// pin keeps the newest root beside the key.
func (a *app) pin(p *trustPlace, o signOptions) error {
	if p.repo.Status().RootDigest == "" {
		if d, ok := p.drafts()["root"]; ok {
			return a.keep(o.key+firstRoot, []byte(d.Digest))
		}
		return nil
	}
	if err := a.keep(o.key+".root.json", p.repo.Root()); err != nil {
		return err
	}
	if err := os.Remove(o.key + firstRoot); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// firstRoot ends the file that names the draft of the first root, which this
// key was shown, until that root is published.
const firstRoot = ".root.draft"

// sawFirst reports whether this key was shown the first root as a draft, and
// what is shown now follows from it.
func (a *app) sawFirst(p *trustPlace, o signOptions) bool {
	b, err := os.ReadFile(o.key + firstRoot)
	if err != nil {
		return false
	}
	_, err = p.repo.AnchoredAt(ota.Digest(b))
	return err == nil
}

func (a *app) keep(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("keep the root: %w", err)
	}
	return os.Rename(path+".new", path)
}
