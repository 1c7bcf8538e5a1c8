package containerd

import (
	"context"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skein-fleet/skein/agent/internal/containerd/containerdtest"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/ota/manifest"
)

const goarch = goruntime.GOARCH

func configOf(entry string) ocispec.ImageConfig {
	return ocispec.ImageConfig{User: "server", Entrypoint: []string{entry}}
}

// active are the writable snapshots.
func (l *lab) active(c *Launcher) []string {
	l.Helper()
	var out []string
	for name, kind := range l.kinds(c) {
		if kind != snapshots.KindCommitted {
			out = append(out, name)
		}
	}
	return out
}

func (l *lab) snapshots(c *Launcher) int { return len(l.kinds(c)) }

func (l *lab) kinds(c *Launcher) map[string]snapshots.Kind {
	l.Helper()
	ctx, cl, err := c.dial(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	out := map[string]snapshots.Kind{}
	if err := cl.SnapshotService(c.opts.Snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		out[i.Name] = i.Kind
		return nil
	}); err != nil {
		l.Fatal(err)
	}
	return out
}

// blobCount is how many blobs the content store holds.
func (l *lab) blobCount(c *Launcher) int {
	l.Helper()
	ctx, cl, err := c.dial(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	n := 0
	if err := cl.ContentStore().Walk(ctx, func(content.Info) error { n++; return nil }); err != nil {
		l.Fatal(err)
	}
	half, err := cl.ContentStore().ListStatuses(ctx)
	if err != nil {
		l.Fatal(err)
	}
	return n + len(half)
}

// orphans makes what agents that were cut off leave.
func (l *lab) orphans(ctx context.Context, cl *client.Client) error {
	if _, err := cl.LeasesService().Create(ctx, leases.WithID("left"), leases.WithLabel(labelLease, "image")); err != nil {
		return err
	}
	leased := leases.WithLease(ctx, "left")
	if _, err := cl.SnapshotService("overlayfs").Prepare(leased, "left", ""); err != nil {
		return err
	}
	w, err := cl.ContentStore().Writer(leased, content.WithRef("skein-left"))
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte("half")); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if _, err := cl.NewContainer(ctx, "left", client.WithNewSpec()); err != nil {
		return err
	}
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.opts.Dir, "left.log"), []byte("x"), 0o600)
}

func (l *lab) specOf(name string, img manifest.Image, args ...string) serving.Spec {
	s := l.spec(name, args...)
	s.Workload.Spec.Image = &img
	return s
}

func (l *lab) startTime() time.Time { return time.Unix(1_700_000_000, 0) }

// rootImage is an image whose user is root.
func (l *lab) rootImage(c *Launcher) *manifest.Image {
	l.Helper()
	img := containerdtest.Image(l.T, l.blobs, ocispec.ImageConfig{Entrypoint: []string{"/server"}}, goarch, containerdtest.ServerLayer(l.T))
	if err := c.EnsureImage(l.Context(), img, false, l.blobs.Open); err != nil {
		l.Fatal(err)
	}
	return &img
}
