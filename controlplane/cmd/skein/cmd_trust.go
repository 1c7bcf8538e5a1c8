package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/controlplane/internal/trustview"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/ota/trust/keyfile"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
)

func (a *app) trustCmd() *cobra.Command {
	c := group("trust", "keys and signed metadata", "  skein trust status\n  skein trust sign --key alice.key",
		a.trustInitCmd(), a.trustNewKeyCmd(), a.trustStatusCmd(), a.trustPendingCmd(), a.trustAddKeyCmd(), a.trustRemoveKeyCmd(),
		a.trustRotateRootCmd(), a.trustRotateDirectorCmd(), a.trustDelegateCmd(), a.trustUndelegateCmd(), a.trustSignCmd(), a.trustSendCmd(), a.trustDiscardCmd())
	return c
}

func autoKey(s *trustv1.Status) ed25519.PublicKey {
	pub, err := x509.ParsePKIXPublicKey(s.GetAutoKey())
	if err != nil {
		return nil // it has none
	}
	ed, _ := pub.(ed25519.PublicKey)
	return ed
}

func readKeys(paths []string) ([]trust.NamedKey, error) {
	out := make([]trust.NamedKey, len(paths))
	for i, path := range paths {
		k, err := keyfile.ReadPublic(path)
		if err != nil {
			return nil, err
		}
		out[i] = trust.NamedKey{Key: k.Key, Name: k.Name}
	}
	return out, nil
}

func (a *app) trustNewKeyCmd() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "new-key FILE", Short: "make a key of your own, encrypted with a passphrase", Args: args(cobra.ExactArgs(1)),
		Long: `Makes an Ed25519 key for signing root or targets. FILE is the private half, encrypted;
keep it on a machine or stick of yours and nowhere else. FILE.pub is the public half,
for skein trust init and add-key. SKEIN_PASSPHRASE is used where no terminal can be asked.`,
		Example: "  skein trust new-key alice.key --name alice",
		RunE: func(_ *cobra.Command, args []string) error {
			if name == "" {
				name = strings.TrimSuffix(filepath.Base(args[0]), filepath.Ext(args[0]))
			}
			pass, err := a.passphrase(args[0], true)
			if err != nil {
				return err
			}
			k, err := keyfile.Create(args[0], name, pass)
			if err != nil {
				return err
			}
			id, err := trust.KeyOf(k.Key)
			if err != nil {
				return err
			}
			b, err := json.Marshal(map[string]string{"id": id, "name": k.Name, "private": args[0], "public": args[0] + ".pub"})
			if err != nil {
				return err
			}
			if a.table() {
				_, err := io.WriteString(a.env.stdout, layOut(func(w io.Writer) {
					row(w, "key", id)
					row(w, "name", k.Name)
					row(w, "private", args[0])
					row(w, "public", args[0]+".pub")
				}, 0))
				return err
			}
			return a.printJSON(b)
		},
	}
	c.Flags().StringVar(&name, "name", "", "what others call this key; default is the file's name")
	noFiles(c, "name")
	return c
}

type initOptions struct {
	dev            bool
	domain         string
	files          map[string]*[]string
	fresh          map[string]*int
	thresholds     map[string]*int
	director, keys string
}

func (a *app) trustInitCmd() *cobra.Command {
	o := initOptions{files: map[string]*[]string{}, fresh: map[string]*int{}, thresholds: map[string]*int{}}
	c := &cobra.Command{
		Use: "init DIR", Short: "begin the trust of a fleet", Args: args(cobra.ExactArgs(1)),
		Long: `Makes the drafts of the first root and targets in DIR; they wait there for the
signatures of as many root and targets keys as the thresholds say (skein trust sign
--dir DIR). Then DIR goes to DATA/trust of skeind, before its first start.

Root and targets keys are those of persons, made with skein trust new-key and given by
their .pub files; --root-keys 3 makes three new ones at once in DIR/private instead.
Snapshot and timestamp keys are those of skein-signer (skein-signer init); without them
skeind keeps keys of its own, in DIR/keys, together with the director's.

With --dev all keys lie in that folder and nothing waits, which is right for a laptop
and a lab, and for nothing else: whoever reads the folder can sign anything. skeind does
the same at its first start when its data folder has no trust yet.`,
		Example: "  skein trust init --dev ./trust --domain factory.example\n  skein trust init ./trust --domain factory.example --root-keys 3 --root-threshold 2 --targets-keys 2\n" +
			"  skein trust init ./trust --domain factory.example --root-key alice.pub --root-key bob.pub --root-threshold 2 --targets-key carol.pub --snapshot-key snapshot.pub --timestamp-key timestamp.pub",
		RunE: func(_ *cobra.Command, args []string) error {
			if o.dev {
				return a.initDev(args[0], o.domain)
			}
			return a.initOffline(args[0], o)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.dev, "dev", false, "development: all keys in one folder")
	f.StringVar(&o.domain, "domain", "skein.local", "trust domain of the fleet")
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		o.files[role] = f.StringArray(role+"-key", nil, "public key of role "+role)
		if role == "root" || role == "targets" {
			o.fresh[role] = f.Int(role+"-keys", 0, "make that many new keys of role "+role)
			o.thresholds[role] = f.Int(role+"-threshold", 1, "signatures that "+role+" needs")
		}
	}
	f.StringVar(&o.director, "director-key", "", "public key of the director; default is a new one in DIR/keys")
	f.StringVar(&o.keys, "private", "", "folder for new root and targets keys; default is DIR/private")
	noFiles(c, "domain")
	return c
}

func (a *app) initDev(dir, domain string) error {
	s, err := trust.InitDev(dir, domain, time.Now())
	if err != nil {
		return err
	}
	if a.table() {
		_, err := io.WriteString(a.env.stdout, layOut(func(w io.Writer) { trustTable(w, dir, s) }, 0))
		return err
	}
	b, err := json.Marshal(map[string]any{"dir": s.Dir, "domain": s.Domain, "root_digest": s.RootDigest, "keys": s.Keys})
	if err != nil {
		return err
	}
	return a.printJSON(b)
}

func trustTable(w io.Writer, dir string, s *trust.Summary) {
	row(w, "folder", dir)
	row(w, "domain", s.Domain)
	row(w, "root", s.RootDigest)
	for _, k := range s.Keys {
		row(w, "key", k)
	}
	row(w, "warning", "all keys lie in one folder: for development only")
}

func (a *app) initOffline(dir string, o initOptions) error {
	init := trust.InitOptions{Domain: o.domain, Keys: map[string][]trust.NamedKey{}, Thresholds: map[string]int{}}
	for role, n := range o.thresholds {
		if have := len(*o.files[role]) + *o.fresh[role]; *n < 1 {
			return usageError{fmt.Errorf("--%s-threshold %d: want 1 or more", role, *n)}
		} else if have == 0 {
			return usageError{fmt.Errorf("role %s has no keys: give --%s-key FILE.pub or --%s-keys N; or --dev for development", role, role, role)}
		}
		init.Thresholds[role] = *n
	}
	var err error
	for role, files := range o.files {
		if init.Keys[role], err = readKeys(*files); err != nil {
			return err
		}
	}
	if o.director != "" {
		k, err := keyfile.ReadPublic(o.director)
		if err != nil {
			return err
		}
		init.Director = k.Key
	}
	f, err := slot.OpenDir(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.freshKeys(f, o, init.Keys); err != nil {
		return err
	}
	if err := trust.Init(f, init, time.Now()); !errors.Is(err, trust.ErrPending) {
		return trustError(err)
	}
	repo, err := trust.OpenFiles(f)
	if err != nil {
		return err
	}
	return a.emitStatus(trustview.Status(repo.Status()), true)
}

// freshKeys makes the keys that init was asked for.
func (a *app) freshKeys(f *slot.Dir, o initOptions, into map[string][]trust.NamedKey) error {
	dir := o.keys
	if dir == "" {
		dir = f.Path("private")
		if *o.fresh["root"]+*o.fresh["targets"] > 0 {
			if err := f.MkdirAll("private"); err != nil {
				return err
			}
		}
	}
	for _, role := range []string{"root", "targets"} {
		for i := range *o.fresh[role] {
			name := role + "-" + strconv.Itoa(i+1)
			path := filepath.Join(dir, name+".key")
			pass, err := a.passphrase(path, true)
			if err != nil {
				return err
			}
			k, err := keyfile.Create(path, name, pass)
			if err != nil {
				return err
			}
			a.note("made %s", path)
			into[role] = append(into[role], trust.NamedKey{Key: k.Key, Name: k.Name})
		}
	}
	return nil
}

func (a *app) trustStatusCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "status", Short: "roles, keys, thresholds, expiry, and what waits for signatures", Args: args(cobra.NoArgs),
		Example: "  skein trust status\n  skein trust status --dir ./trust -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				r, err := a.trusts().GetTrust(cmd.Context(), &trustv1.GetTrustRequest{})
				if err != nil {
					return err
				}
				return a.emitStatus(r.GetStatus(), true)
			}
			p, err := a.openPlace(cmd.Context(), dir)
			if err != nil {
				return err
			}
			s, err := p.status(cmd.Context())
			if err != nil {
				return err
			}
			return a.emitStatus(s, true)
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to look at; default is the server")
	return c
}

func (a *app) emitStatus(s *trustv1.Status, all bool) error {
	return a.emit(s, func(w io.Writer) {
		if all {
			row(w, "domain", s.GetDomain())
			row(w, "root", s.GetRootDigest())
			if s.GetSigner() != "" {
				row(w, "signer", s.GetSigner())
			}
			line(w, "")
			row(w, "ROLE", "VERSION", "EXPIRES", "NEEDS", "KEYS")
			for _, r := range s.GetRoles() {
				var keys []string
				for _, k := range r.GetKeys() {
					keys = append(keys, keyName(k))
				}
				row(w, r.GetName(), r.GetVersion(), stamp(r.GetExpires()), fmt.Sprintf("%d of %d", r.GetThreshold(), len(r.GetKeys())), strings.Join(keys, ", "))
			}
		}
		for _, d := range s.GetDrafts() {
			if all {
				line(w, "")
			}
			draftText(w, d)
		}
		if len(s.GetDrafts()) == 0 {
			line(w, "Nothing waits for signatures.")
		}
	})
}

func keyName(k *trustv1.Key) string {
	if k.GetName() == "" {
		return short(k.GetId())
	}
	return k.GetName() + " " + short(k.GetId())
}

// draftText says what waits, what it changes and who has signed.
func draftText(w io.Writer, d *trustv1.Draft) {
	line(w, "Waiting for signatures: %s %d, %s", d.GetRole(), d.GetVersion(), d.GetDigest())
	for _, c := range d.GetChanges() {
		line(w, "  %s %s", c.GetSign(), c.GetText())
	}
	if d.GetProblem() != "" {
		line(w, "  ! %s", d.GetProblem())
	}
	complete := d.GetProblem() == ""
	for _, n := range d.GetNeeds() {
		var signed, missing []string
		for _, k := range n.GetKeys() {
			if k.GetSigned() {
				signed = append(signed, keyName(k))
			} else {
				missing = append(missing, keyName(k))
			}
		}
		line(w, "  %d of %d signatures of %s: signed %s; not yet %s", len(signed), n.GetThreshold(), n.GetBy(), orNone(signed), orNone(missing))
		complete = complete && len(signed) >= int(n.GetThreshold())
	}
	if complete {
		line(w, "  complete: skeind publishes it with its signer; root and targets that need each other wait for both")
	}
}

func orNone(s []string) string {
	if len(s) == 0 {
		return "nobody"
	}
	return strings.Join(s, ", ")
}

func message(r *trust.Repo, role string) *trustv1.Draft {
	for _, d := range trustview.Status(r.Status()).GetDrafts() {
		if d.GetRole() == role {
			return d
		}
	}
	return nil
}

func (a *app) showPending(ctx context.Context, p *trustPlace) error {
	s, err := p.status(ctx)
	if err != nil {
		return err
	}
	return a.emitStatus(s, false)
}

func (a *app) trustPendingCmd() *cobra.Command {
	var dir, out string
	c := &cobra.Command{
		Use: "pending", Short: "show what waits for signatures, or copy it to a stick", Args: args(cobra.NoArgs),
		Long: `Shows what a signature would change: releases with their digests, sizes and counters,
keys, thresholds, delegations and policies. With --out everything that is needed to look at it and to
sign it on a machine without a network is copied to a folder; bring it back with
skein trust send --dir.`,
		Example: "  skein trust pending\n  skein trust pending --out /media/stick/trust",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				p, err := a.openPlace(cmd.Context(), dir)
				if err != nil {
					return err
				}
				return a.showPending(cmd.Context(), p)
			}
			return a.copyTrust(cmd.Context(), out)
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to look at; default is the server")
	c.Flags().StringVar(&out, "out", "", "new folder to copy to")
	c.MarkFlagsMutuallyExclusive(dirFlag, "out")
	return c
}

func (a *app) copyTrust(ctx context.Context, out string) error {
	got, err := a.trusts().GetTrust(ctx, &trustv1.GetTrustRequest{Files: true})
	if err != nil {
		return err
	}
	f, err := slot.OpenDir(out)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, name := range []string{"metadata", "pending", "keys"} {
		if files, err := f.ReadDir(name); err == nil && len(files) > 0 {
			return usageError{fmt.Errorf("%s has trust metadata already: name a new folder", out)}
		}
	}
	p := &trustPlace{app: a, dir: out, base: map[string]ota.Digest{}}
	if err := p.fill(f, got); err != nil {
		return err
	}
	if p.repo, err = trust.OpenFiles(f); err != nil {
		return err
	}
	return a.showPending(ctx, p)
}
