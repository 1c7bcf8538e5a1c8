package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
)

func (a *app) trustAddKeyCmd() *cobra.Command {
	var dir string
	var threshold int
	c := &cobra.Command{
		Use: "add-key ROLE FILE.pub...", Short: "let keys sign for a role, from the next root on", Args: args(cobra.MinimumNArgs(2)),
		Long: `Adds public keys to root, targets, snapshot or timestamp in the draft of the next root,
which the keys of the root before it and its own must sign.`,
		Example: "  skein trust add-key targets dave.key.pub\n  skein trust add-key root erin.key.pub --threshold 3 --dir ./trust",
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := readKeys(args[1:])
			if err != nil {
				return err
			}
			return a.edit(cmd, dir, func(p *trustPlace, now time.Time) error {
				return p.repo.EditRoot(cmd.Context(), []trust.RootEdit{{Role: args[0], Add: keys, Threshold: threshold}}, now)
			})
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to work on; default is the server")
	c.Flags().IntVar(&threshold, "threshold", 0, "signatures that the role needs from then on; default is as before")
	noFiles(c, "threshold")
	return c
}

func (a *app) trustRemoveKeyCmd() *cobra.Command {
	var dir string
	var threshold int
	c := &cobra.Command{
		Use: "remove-key ROLE KEY...", Short: "let keys sign no more, from the next root on", Args: args(cobra.MinimumNArgs(2)),
		Long: `Removes keys, named by id or name, in the draft of the next root. Where targets are
signed by other keys from then on, they are signed anew together with that root.`,
		Example: "  skein trust remove-key targets dave\n  skein trust remove-key root 3f0a7712c5d1 --threshold 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.edit(cmd, dir, func(p *trustPlace, now time.Time) error {
				return p.repo.EditRoot(cmd.Context(), []trust.RootEdit{{Role: args[0], Remove: args[1:], Threshold: threshold}}, now)
			})
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to work on; default is the server")
	c.Flags().IntVar(&threshold, "threshold", 0, "signatures that the role needs from then on; default is as before")
	noFiles(c, "threshold")
	return c
}

// roleValue reads ROLE=VALUE.
func roleValue(flag, s string) (role, value string, err error) {
	role, value, ok := strings.Cut(s, "=")
	if !ok || role == "" || value == "" {
		return "", "", usageError{fmt.Errorf("--%s %q: want ROLE=VALUE, such as root=%s", flag, s, map[string]string{"add": "erin.key.pub", "remove": "dave"}[flag])}
	}
	return role, value, nil
}

func (a *app) trustRotateRootCmd() *cobra.Command {
	var dir string
	var add, remove, thresholds []string
	c := &cobra.Command{
		Use: "rotate-root", Short: "prepare the next root", Args: args(cobra.NoArgs),
		Long: `Prepares the next root: one that lives longer, with all changes of keys and thresholds
at once. It is published when enough keys of the root before it and enough of its own
have signed it (skein trust sign), and targets too where other keys sign them from then on.`,
		Example: "  skein trust rotate-root\n  skein trust rotate-root --add root=erin.key.pub --remove root=dave --threshold root=2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			edits, err := rootEdits(add, remove, thresholds)
			if err != nil {
				return err
			}
			return a.edit(cmd, dir, func(p *trustPlace, now time.Time) error { return p.repo.EditRoot(cmd.Context(), edits, now) })
		},
	}
	f := c.Flags()
	f.StringVar(&dir, dirFlag, "", "folder to work on; default is the server")
	f.StringArrayVar(&add, "add", nil, "ROLE=FILE.pub, a key that signs from then on")
	f.StringArrayVar(&remove, "remove", nil, "ROLE=KEY, a key that signs no more, by id or name")
	f.StringArrayVar(&thresholds, "threshold", nil, "ROLE=N, signatures that a role needs")
	noFiles(c, "add", "remove", "threshold")
	return c
}

func rootEdits(add, remove, thresholds []string) ([]trust.RootEdit, error) {
	byRole := map[string]*trust.RootEdit{}
	at := func(role string) *trust.RootEdit {
		if byRole[role] == nil {
			byRole[role] = &trust.RootEdit{Role: role}
		}
		return byRole[role]
	}
	for _, s := range add {
		role, path, err := roleValue("add", s)
		if err != nil {
			return nil, err
		}
		keys, err := readKeys([]string{path})
		if err != nil {
			return nil, err
		}
		at(role).Add = append(at(role).Add, keys...)
	}
	for _, s := range remove {
		role, key, err := roleValue("remove", s)
		if err != nil {
			return nil, err
		}
		at(role).Remove = append(at(role).Remove, key)
	}
	for _, s := range thresholds {
		role, n, err := roleValue("threshold", s)
		if err != nil {
			return nil, err
		}
		if at(role).Threshold, err = strconv.Atoi(n); err != nil || at(role).Threshold < 1 {
			return nil, usageError{fmt.Errorf("--threshold %q: want ROLE=N with N of 1 or more", s)}
		}
	}
	var out []trust.RootEdit
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		if e := byRole[role]; e != nil {
			out = append(out, *e)
			delete(byRole, role)
		}
	}
	for role := range byRole {
		return nil, usageError{fmt.Errorf("no role %q: want root, targets, snapshot or timestamp", role)}
	}
	return out, nil
}

type delegateOptions struct {
	dir, like, policyFile string
	keys                  []string
	releases, golden      []string
	formats               []string
	maxBytes              int64
	minSoak               time.Duration
	maxCounter            uint64
}

func (a *app) trustDelegateCmd() *cobra.Command {
	var o delegateOptions
	c := &cobra.Command{
		Use: "delegate MODEL", Short: "let releases of a model be made with no hand, within bounds", Args: args(cobra.ExactArgs(1)),
		Long: `Drafts the role auto/MODEL and its policy, for the targets keys to sign: from then on
skein release create --auto lists releases of the model with the online key, and devices
take them only if every file in them is within the policy: weights and engines of the
formats named, up to a size, proven by a golden set that a person chose. Code never is;
but mind that an engine (format plan) can hold code of whoever built it.
--like takes golden set, parameters, size and soak from a release that exists, and pins
its workload and container image, so that only weights change;
--policy takes a whole policy from a JSON file. The key is the auto key of skein-signer:
in production give it with --key, from the machine of the signer, not from the server.`,
		Example: "  skein trust delegate meter --like meter@3 --key auto.pub\n  skein trust delegate meter --release meter --golden golden.json --max-bytes 200000000 --format onnx",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.delegate(cmd, args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.dir, dirFlag, "", "folder to work on; default is the server")
	f.StringVar(&o.like, "like", "", "release that the policy is taken from")
	f.StringVar(&o.policyFile, "policy", "", "JSON file with the whole policy")
	f.StringArrayVar(&o.keys, "key", nil, "public auto key; default is the one that the server names")
	f.StringArrayVar(&o.releases, "release", nil, "name of releases; default is the model's name")
	f.StringArrayVar(&o.golden, "golden", nil, "golden set that proves a release: a digest or a file")
	f.StringSliceVar(&o.formats, "format", []string{"onnx"}, "formats of weights: onnx, plan, safetensors")
	f.Int64Var(&o.maxBytes, "max-bytes", 0, "the most bytes of one target")
	f.DurationVar(&o.minSoak, "min-soak", 0, "the least time on trial")
	f.Uint64Var(&o.maxCounter, "max-counter", 0, "the highest release counter; default is any")
	a.offerFlag(c, "like", a.releaseNames)
	c.MarkFlagsMutuallyExclusive("like", "policy")
	noFiles(c, "release", "golden", "format", "max-bytes", "min-soak", "max-counter")
	return c
}

func (a *app) delegate(cmd *cobra.Command, model string, o delegateOptions) error {
	keys, err := readKeys(o.keys)
	if err != nil {
		return err
	}
	if o.like != "" && o.dir != "" {
		return usageError{errors.New("--like asks the server: leave --dir out")}
	}
	policy, err := a.policy(cmd.Context(), model, o)
	if err != nil {
		return err
	}
	return a.edit(cmd, o.dir, func(p *trustPlace, now time.Time) error {
		if len(keys) == 0 {
			if p.auto == nil {
				return usageError{errors.New("no auto key: give --key auto.pub, which skein-signer init made")}
			}
			keys = []trust.NamedKey{{Key: p.auto}}
		}
		return p.repo.Delegate(cmd.Context(), policy, keys, now)
	})
}

// policy is what the flags say that a release may be.
func (a *app) policy(ctx context.Context, model string, o delegateOptions) (trust.AutoPolicy, error) {
	p := trust.AutoPolicy{Model: model}
	if o.policyFile != "" {
		b, err := os.ReadFile(o.policyFile)
		if err != nil {
			return p, err
		}
		if err := json.Unmarshal(b, &p); err != nil {
			return p, usageError{fmt.Errorf("read %s: %w", o.policyFile, err)}
		}
		if p.Model != model {
			return p, usageError{fmt.Errorf("%s is a policy for %q", o.policyFile, p.Model)}
		}
		return p, nil
	}
	if o.like != "" {
		if err := a.likeRelease(ctx, o.like, &p); err != nil {
			return p, err
		}
	}
	for _, g := range o.golden {
		d, err := goldenDigest(g)
		if err != nil {
			return p, err
		}
		p.Golden = append(p.Golden, d)
	}
	names := o.releases
	if len(names) == 0 {
		names = []string{model}
	}
	for _, n := range names {
		p.Paths = append(p.Paths, "releases/"+n+"/"+trust.AutoVersion+"*")
	}
	if o.maxBytes != 0 {
		p.MaxBytes = o.maxBytes
	}
	if o.minSoak != 0 {
		p.MinSoak = int64(o.minSoak / time.Second)
	}
	p.MaxCounter = o.maxCounter
	p.Layers = append(p.Layers, trust.LayerRule{MediaType: manifest.MediaWeights, Formats: o.formats, MaxBytes: p.MaxBytes})
	if err := p.Validate(); err != nil {
		return p, hinted{usageError{err}, "--golden and --max-bytes say what is allowed, or --like RELEASE takes them from one that exists"}
	}
	return p, nil
}

func goldenDigest(text string) (ota.Digest, error) {
	if d, err := ota.ParseDigest(text); err == nil {
		return d, nil
	}
	b, err := os.ReadFile(text)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("golden set %q is neither a digest nor a file: %w", text, err)
	}
	if err != nil {
		return "", err
	}
	if _, err := manifest.ParseGolden(b); err != nil {
		return "", usageError{fmt.Errorf("%s: %w", text, err)}
	}
	return ota.DigestOf(b), nil
}

// likeRelease fills p from a release: its golden set, parameters and soak, and
// twice its size.
func (a *app) likeRelease(ctx context.Context, name string, p *trust.AutoPolicy) error {
	r, err := a.releases().GetRelease(ctx, &releasev1.GetReleaseRequest{Release: name})
	if err != nil {
		return err
	}
	rel := r.GetRelease()
	if rel.GetModel() != p.Model {
		return usageError{fmt.Errorf("%s is a release of model %q", name, rel.GetModel())}
	}
	m, err := a.models().GetModel(ctx, &artifactv1.GetModelRequest{Model: fmt.Sprintf("%s@%d", rel.GetModel(), rel.GetModelVersion())})
	if err != nil {
		return err
	}
	for _, v := range m.GetVersions() {
		p.Golden = append(p.Golden, ota.Digest(v.GetGolden().GetDigest()))
	}
	ix, err := manifest.ParseIndex(r.GetIndex())
	if err != nil {
		return err
	}
	if text, ok := ix.Annotations[manifest.AnnParameters]; ok {
		p.Parameters = []ota.Digest{ota.DigestOf([]byte(text))}
	}
	for _, t := range rel.GetTargets() {
		pinned, err := a.pinServer(ctx, ota.Digest(t.GetManifestDigest()), p)
		if err != nil {
			return err
		}
		p.MaxBytes = max(p.MaxBytes, 2*(t.GetBytes()-pinned)+pinned)
	}
	p.MinSoak = rel.GetSoakSeconds()
	return nil
}

// pinServer adds rules for the workload of one target and for each layer of its
// image, by digest: what runs the model changes by a person's hand alone. It
// returns their bytes.
func (a *app) pinServer(ctx context.Context, d ota.Digest, p *trust.AutoPolicy) (pinned int64, err error) {
	raw, err := a.smallBlob(ctx, d, manifest.MaxManifest)
	if err != nil {
		return 0, err
	}
	m, err := manifest.ParseManifest(raw)
	if err != nil {
		return 0, err
	}
	for _, l := range m.Layers {
		if l.MediaType != manifest.MediaWorkload && !l.OfImage() {
			continue
		}
		pinned += l.Size
		i := slices.IndexFunc(p.Layers, func(r trust.LayerRule) bool { return r.MediaType == l.MediaType })
		switch {
		case i < 0:
			p.Layers = append(p.Layers, trust.LayerRule{MediaType: l.MediaType, Digests: []ota.Digest{l.Digest}})
		case !slices.Contains(p.Layers[i].Digests, l.Digest):
			p.Layers[i].Digests = append(p.Layers[i].Digests, l.Digest)
		}
	}
	return pinned, nil
}

func (a *app) trustUndelegateCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "undelegate MODEL", Short: "take the role auto/MODEL and its policy back", Args: args(cobra.ExactArgs(1)),
		Long:    "Drafts targets without the delegation, for the targets keys to sign. What it listed is not installed any more;\ndevices that run it keep running it.",
		Example: "  skein trust undelegate meter",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.edit(cmd, dir, func(p *trustPlace, now time.Time) error { return p.repo.Undelegate(cmd.Context(), args[0], now) })
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to work on; default is the server")
	return c
}

func (a *app) trustRotateDirectorCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "rotate-director", Short: "make a new key for the director", Args: args(cobra.NoArgs),
		Long: `Makes a new key of the director in the keys of skeind's own trust folder, and drafts
targets that name it in place of the old one. Run it where skeind runs, while it is
stopped, and start it again; the old key is used until the draft is signed, and devices
refuse it from then on.`,
		Example: "  skein trust rotate-director --dir /var/lib/skein/trust",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.edit(cmd, dir, func(p *trustPlace, now time.Time) error { return p.repo.NewDirector(cmd.Context(), now) })
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "skeind's trust folder")
	_ = c.MarkFlagRequired(dirFlag)
	return c
}

func (a *app) trustSendCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "send", Short: "bring drafts and signatures from a folder to the server", Args: args(cobra.NoArgs),
		Long:    "Brings back what skein trust pending --out copied to a stick, with the signatures and changes made there.",
		Example: "  skein trust send --dir /media/stick/trust",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.openPlace(cmd.Context(), dir)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(dir + "/" + baseFile)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err == nil {
				if err := json.Unmarshal(b, &p.base); err != nil {
					return fmt.Errorf("read %s: %w", baseFile, err)
				}
			}
			if err := p.send(cmd.Context()); err != nil {
				return err
			}
			r, err := a.trusts().GetTrust(cmd.Context(), &trustv1.GetTrustRequest{})
			if err != nil {
				return err
			}
			return a.emitStatus(r.GetStatus(), false)
		},
	}
	c.Flags().StringVar(&dir, dirFlag, "", "folder to send")
	_ = c.MarkFlagRequired(dirFlag)
	return c
}

func (a *app) trustDiscardCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "discard ROLE", Short: "drop the draft of root or targets", Args: args(cobra.ExactArgs(1)),
		Long:      "Drops what waits for signatures. Releases that wait go into a new draft of targets.",
		Example:   "  skein trust discard root",
		ValidArgs: []string{"root", "targets"},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.trusts().DiscardDraft(cmd.Context(), &trustv1.DiscardDraftRequest{Role: args[0]})
			if err != nil {
				return err
			}
			return a.emitStatus(r.GetStatus(), false)
		},
	}
	return c
}
