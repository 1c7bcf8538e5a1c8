package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/user"

	"github.com/skein-fleet/skein/agent/runtime"
)

// The options of containerd's own that read an image's users bring in
// text/template, with which the linker keeps every method of the program: 5 MB.

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// withProcess sets what runs: the image's command or the workload's, its
// environment, folder and user.
func withProcess(img client.Image, p *plan) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec) error {
		spec, err := img.Spec(ctx)
		if err != nil {
			return fmt.Errorf("read the image's configuration: %w", err)
		}
		config := spec.Config
		s.Process.Args = slices.Concat(config.Entrypoint, config.Cmd)
		switch {
		case p.mode == argsReplaceAll:
			s.Process.Args = p.args
		case len(p.args) > 0:
			s.Process.Args = slices.Concat(config.Entrypoint, p.args)
		}
		if len(s.Process.Args) == 0 {
			return fmt.Errorf("%w: neither the image nor the workload says what to run", runtime.ErrIncompatible)
		}
		if s.Process.Cwd = config.WorkingDir; s.Process.Cwd == "" {
			s.Process.Cwd = "/"
		}
		s.Process.Env = environment([]string{defaultPath, "HOME=/tmp"}, config.Env, p.env)
		s.Process.Rlimits = nil // those of the daemon; the default of 1024 files is too few for servers
		return setUser(ctx, c, r, s, config.User, p.w.User)
	}
}

// environment merges lists of KEY=VALUE; later ones win.
func environment(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, e := range list {
			k, _, ok := strings.Cut(e, "=")
			if !ok {
				continue
			}
			if i, known := at[k]; known {
				out[i] = e
				continue
			}
			at[k] = len(out)
			out = append(out, e)
		}
	}
	return out
}

// setUser sets who runs it. A number without a group is a group of its own, not
// the group of root.
func setUser(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec, ofImage, ofWorkload string) error {
	name := ofWorkload
	if name == "" {
		name = ofImage
	}
	who, err := lookup(ctx, c, r, name)
	if err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	u := &s.Process.User
	u.UID, u.GID, u.AdditionalGids = uint32(who.Uid), uint32(who.Gid), nil
	if u.UID == 0 && ofWorkload == "" {
		return fmt.Errorf("%w: the image runs as root, and the workload does not say that it may: set user, for example 65532", runtime.ErrIncompatible)
	}
	if u.UID != 0 && u.GID == 0 && !strings.Contains(name, ":") {
		u.GID = u.UID
	}
	for _, g := range who.Sgids {
		if g := uint32(g); g != u.GID && (g != 0 || u.UID == 0) && !slices.Contains(u.AdditionalGids, g) {
			u.AdditionalGids = append(u.AdditionalGids, g)
		}
	}
	return nil
}

// lookup finds a user in the files of the image.
func lookup(ctx context.Context, c oci.Client, r *containers.Container, name string) (*user.ExecUser, error) {
	mounts, err := c.SnapshotService(r.Snapshotter).Mounts(ctx, r.SnapshotKey)
	if err != nil {
		return nil, err
	}
	var who *user.ExecUser
	err = mount.WithReadonlyTempMount(ctx, mounts, func(dir string) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		var files [2]io.Reader
		for i, at := range []string{"etc/passwd", "etc/group"} {
			f, err := root.Open(at)
			if errors.Is(err, fs.ErrNotExist) {
				files[i] = strings.NewReader("")
				continue
			}
			if err != nil {
				return err
			}
			defer f.Close()
			files[i] = io.LimitReader(f, maxDocument)
		}
		who, err = user.GetExecUser(name, nil, files[0], files[1])
		if err != nil {
			return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
		}
		return nil
	})
	return who, err
}
