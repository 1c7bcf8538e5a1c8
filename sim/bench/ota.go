package bench

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// OTAOptions say how large the files are and where they go.
type OTAOptions struct {
	MiB      int    // of each file; 0 means 32
	Dir      string // for the files; empty: a temporary one
	Self     string // program whose `bench ota-apply` applies in a process of its own
	Progress func(format string, args ...any)
}

// OTA measures the bytes that an update costs, against other ways on the same
// files, and the memory of a process that applies it.
func OTA(ctx context.Context, o OTAOptions) (figures []Figure, err error) {
	o.MiB = cmp.Or(o.MiB, 32)
	if o.Dir == "" {
		if o.Dir, err = os.MkdirTemp("", "skein-bench-ota-"); err != nil {
			return nil, fmt.Errorf("make a folder for files: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	}
	worst := 0.0
	for _, c := range otaCases(o.MiB << 20) {
		o.Progress("%s: %d MiB", c.name, o.MiB)
		row, above, err := o.measure(ctx, c)
		figures = append(figures, row...)
		if err != nil {
			return figures, fmt.Errorf("%s: %w", c.name, err)
		}
		worst = max(worst, above)
	}
	return append(figures, figure("ota.apply_memory_above_idle", worst, "MiB").atMost(64)), nil
}

// measure is one row.
func (o OTAOptions) measure(ctx context.Context, c otaCase) (figures []Figure, above float64, err error) {
	base, target := c.make()
	dir := filepath.Join(o.Dir, c.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, 0, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, b := range map[string][]byte{"base": base, "target": target} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return nil, 0, fmt.Errorf("write %s: %w", name, err)
		}
	}
	add := func(name string, n int64) {
		figures = append(figures, figure("ota."+c.name+"."+name, float64(n), "bytes"))
	}
	best := int64(len(target))
	add("full", best)
	others := []struct {
		name string
		make func() (int64, error)
	}{
		{"zstd_19", func() (int64, error) { return zstdSize(ctx, dir, "-19", "-T2", "--long=27") }},
		{"chunks_zstd", func() (int64, error) { return chunkSize(ctx, base, target) }},
		{"zstd_3_patch_from", func() (int64, error) { return zstdSize(ctx, dir, "-3", "--long=27", "--patch-from=base") }},
		{"zstd_19_patch_from", func() (int64, error) { return zstdSize(ctx, dir, "-19", "-T2", "--long=27", "--patch-from=base") }},
	}
	for _, other := range others {
		n, err := other.make()
		if errors.Is(err, exec.ErrNotFound) {
			o.Progress("zstd is not installed: %s is left out", other.name)
			continue
		}
		if err != nil {
			return figures, 0, fmt.Errorf("%s: %w", other.name, err)
		}
		add(other.name, n)
		best = min(best, n)
	}
	u, err := prepare(ctx, dir, base, target)
	if err != nil {
		return figures, 0, err
	}
	got, err := o.apply(ctx, dir)
	if err != nil {
		return figures, 0, err
	}
	if got.fetched != u.Bytes {
		return figures, 0, fmt.Errorf("the plan said %d bytes, %d were fetched", u.Bytes, got.fetched)
	}
	o.Progress("%s: %s, %d of %d bytes; the best other way takes %d", c.name, u, got.fetched, len(target), best)
	figures = append(figures, figure("ota."+c.name+".skein", float64(got.fetched), "bytes").atMost(float64(best)))
	return figures, float64(got.peak-got.idle) / (1 << 20), nil
}

// zstdSize compresses target in dir with the zstd program.
func zstdSize(ctx context.Context, dir string, args ...string) (int64, error) {
	cmd := exec.CommandContext(ctx, "zstd", append(args, "-q", "-c", "target")...)
	cmd.Dir = dir
	var n size
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &n, &stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("zstd %s: %w %s", strings.Join(args, " "), err, stderr.String())
	}
	return int64(n), nil
}

type size int64

func (s *size) Write(p []byte) (int, error) {
	*s += size(len(p))
	return len(p), nil
}

// prepare puts what a control plane offers for target into dir/offer, what a
// device has into dir/device, and returns its plan.
func prepare(ctx context.Context, dir string, base, target []byte) (chunk.Choice, error) {
	device, err := openStore(filepath.Join(dir, "device"))
	if err != nil {
		return chunk.Choice{}, err
	}
	defer device.Close()
	offer, err := openStore(filepath.Join(dir, "offer"))
	if err != nil {
		return chunk.Choice{}, err
	}
	defer offer.Close()
	from, to := chunkFile(base), chunkFile(target)
	for _, f := range []*chunk.File{&from, &to} {
		if f.Index, err = chunk.Build(ctx, f.Digest, f.Data); err != nil {
			return chunk.Choice{}, err
		}
	}
	var patch bytes.Buffer
	_, kind, err := chunk.MakePatch(ctx, &patch, from, to, nil)
	if err != nil {
		return chunk.Choice{}, err
	}
	if _, err := device.PutBytes(base); err != nil {
		return chunk.Choice{}, err
	}
	for _, b := range [][]byte{target, patch.Bytes(), to.Index.Marshal()} {
		if _, err := offer.PutBytes(b); err != nil {
			return chunk.Choice{}, err
		}
	}
	p := manifest.Patch{Base: from.Digest, Digest: ota.DigestOf(patch.Bytes()), Size: int64(patch.Len()), Kind: kind}
	index := to.Index.Marshal()
	plan := chunk.Plan(chunk.Artifact{Digest: to.Digest, Size: to.Size, Index: to.Index, IndexBytes: int64(len(index))},
		[]chunk.Offer{{Patch: p}}, []chunk.Installed{{Digest: from.Digest, Size: from.Size, Index: from.Index}})
	job := fmt.Sprintf("%s %s %d %s %d %s %d %s", plan[0].Way, to.Digest, to.Size, p.Digest, p.Size, ota.DigestOf(index), len(index), from.Digest)
	return plan[0], os.WriteFile(filepath.Join(dir, "job"), []byte(job), 0o644)
}

func chunkFile(b []byte) chunk.File {
	return chunk.File{Digest: ota.DigestOf(b), Size: int64(len(b)), Data: bytes.NewReader(b)}
}

type store struct {
	*blob.Store
	dir *slot.Dir
}

func openStore(path string) (*store, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	d, err := slot.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return &store{blob.NewStore(d), d}, nil
}

func (s *store) Close() error { return s.dir.Close() }

// source makes a store a source.
func (s *store) source() fetch.Source { return storeSource{s} }

type storeSource struct{ s *store }

// Open implements fetch.Source.
func (s storeSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	r, _, err := s.s.Open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fetch.ErrNotFound, err)
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, length), r}, nil
}

// applied is what the process that applied says: bytes of memory at its most,
// before and in all, and bytes fetched.
type applied struct{ idle, peak, fetched int64 }

// apply runs ApplyOTA in a process of its own.
func (o OTAOptions) apply(ctx context.Context, dir string) (a applied, err error) {
	out, err := exec.CommandContext(ctx, o.Self, "bench", "ota-apply", dir).Output()
	if err != nil {
		return a, fmt.Errorf("apply in a process of its own: %w", err)
	}
	if _, err := fmt.Sscan(string(out), &a.idle, &a.peak, &a.fetched); err != nil {
		return a, fmt.Errorf("apply in a process of its own: %q: %w", out, err)
	}
	return a, nil
}

// ApplyOTA carries out the plan that OTA left in dir, with the agent's own
// parts, and returns the line that OTA reads.
func ApplyOTA(ctx context.Context, dir string) (string, error) {
	idle, err := status(os.Getpid(), "VmHWM")
	if err != nil {
		return "", err
	}
	job, err := os.ReadFile(filepath.Join(dir, "job"))
	if err != nil {
		return "", fmt.Errorf("read the plan: %w", err)
	}
	f := strings.Fields(string(job))
	if len(f) != 8 {
		return "", fmt.Errorf("read the plan: %q", job)
	}
	var sizes [3]int64
	for i := range sizes {
		if sizes[i], err = strconv.ParseInt(f[2+2*i], 10, 64); err != nil {
			return "", fmt.Errorf("read the plan: %w", err)
		}
	}
	device, err := openStore(filepath.Join(dir, "device"))
	if err != nil {
		return "", err
	}
	defer device.Close()
	offer, err := openStore(filepath.Join(dir, "offer"))
	if err != nil {
		return "", err
	}
	defer offer.Close()
	ft := &fetch.Fetcher{Store: device.Store, Source: offer.source()}
	target := manifest.BlobRef{Digest: ota.Digest(f[1]), Size: sizes[0]}.Descriptor("application/octet-stream")
	patch := manifest.BlobRef{Digest: ota.Digest(f[3]), Size: sizes[1]}.Descriptor(chunk.MediaPatch)
	index := manifest.BlobRef{Digest: ota.Digest(f[5]), Size: sizes[2]}.Descriptor(chunk.MediaIndex)
	base := ota.Digest(f[7])
	if err := device.Verify(ctx, base); err != nil {
		return "", err
	}
	switch chunk.Way(f[0]) {
	case chunk.ByPatch:
		err = applyPatch(ctx, device, ft, target, patch, base)
	case chunk.ByChunks:
		err = applyChunks(ctx, device, ft, target, index, base)
	default:
		err = ft.Fetch(ctx, target)
	}
	if err != nil {
		return "", err
	}
	peak, err := status(os.Getpid(), "VmHWM")
	return fmt.Sprintf("%d %d %d", int64(idle*1024), int64(peak*1024), ft.BytesFetched()), err
}

func applyPatch(ctx context.Context, device *store, ft *fetch.Fetcher, target, patch manifest.Descriptor, base ota.Digest) error {
	if err := ft.Fetch(ctx, patch); err != nil {
		return err
	}
	data, size, err := device.Open(ctx, patch.Digest)
	if err != nil {
		return err
	}
	defer data.Close()
	p, err := chunk.OpenPatch(data, size)
	if err != nil {
		return err
	}
	b, baseSize, err := device.Open(ctx, base)
	if err != nil {
		return err
	}
	defer b.Close()
	src, err := chunk.FromPatch(p, b, baseSize)
	if err != nil {
		return err
	}
	return ft.FetchFrom(ctx, target, src)
}

func applyChunks(ctx context.Context, device *store, ft *fetch.Fetcher, target, index manifest.Descriptor, base ota.Digest) error {
	if err := ft.Fetch(ctx, index); err != nil {
		return err
	}
	raw, err := device.ReadAll(ctx, index.Digest, chunk.MaxIndex)
	if err != nil {
		return err
	}
	ix, err := chunk.ParseIndex(raw)
	if err != nil {
		return err
	}
	b, size, err := device.Open(ctx, base)
	if err != nil {
		return err
	}
	baseIx, err := chunk.Build(ctx, base, b)
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	have := []chunk.Installed{{Digest: base, Size: size, Index: baseIx}}
	return ft.FetchFrom(ctx, target, chunk.FromChunks(ix, have, device.Open, ft.Remote()))
}
