package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// containers is fakeRuntime with images, kept as a container run-time keeps
// them: what it unpacks is not synced before it counts as unpacked, and what
// counts is trusted.
type containers struct {
	*fakeRuntime

	mu      sync.Mutex // guards what follows
	down    error
	imports []string // short digests, with a + when made anew
}

func (c *containers) path(d ota.Digest, name string) string { return "ctr/" + d.Hex() + "/" + name }

func (c *containers) EnsureImage(ctx context.Context, img manifest.Image, anew bool, open func(context.Context, ota.Digest) (io.ReadCloser, int64, error)) error {
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	if down != nil {
		return down
	}
	if _, err := c.files.ReadFile(c.path(img.Digest, "image")); err == nil && !anew {
		return nil
	}
	mark := ""
	if anew {
		mark = "+"
	}
	c.mu.Lock()
	c.imports = append(c.imports, img.Digest.Short()+mark)
	c.mu.Unlock()
	raw, err := read(ctx, open, img.Digest)
	if err != nil {
		return err
	}
	m, err := manifest.ParseImage(raw)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if _, err := c.files.ReadFile(c.path(l.Digest, "unpacked")); err == nil && !anew {
			continue
		}
		if err := c.unpack(ctx, l.Digest, open); err != nil {
			return err
		}
	}
	if err := c.files.Sync(); err != nil {
		return err
	}
	return c.files.WriteFile(c.path(img.Digest, "image"), raw)
}

func (c *containers) unpack(ctx context.Context, d ota.Digest, open func(context.Context, ota.Digest) (io.ReadCloser, int64, error)) error {
	raw, err := read(ctx, open, d)
	if err != nil {
		return err
	}
	if err := c.files.Remove("ctr/" + d.Hex()); err != nil {
		return err
	}
	f, err := c.files.OpenAppend(c.path(d, "fs"))
	if err != nil {
		return err
	}
	if _, err := f.Write(raw); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return c.files.WriteFile(c.path(d, "unpacked"), []byte("yes"))
}

func read(ctx context.Context, open func(context.Context, ota.Digest) (io.ReadCloser, int64, error), d ota.Digest) ([]byte, error) {
	r, _, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func (c *containers) KeepImages(_ context.Context, keep []ota.Digest) error {
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	if down != nil {
		return down
	}
	used := map[string]bool{}
	for _, d := range keep {
		used[d.Hex()] = true
		raw, err := c.files.ReadFile(c.path(d, "image"))
		if err != nil {
			continue
		}
		m, err := manifest.ParseImage(raw)
		if err != nil {
			return err
		}
		for _, l := range m.Layers {
			used[l.Digest.Hex()] = true
		}
	}
	entries, err := c.files.ReadDir("ctr")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !used[e.Name()] {
			err = errors.Join(err, c.files.Remove("ctr/"+e.Name()))
		}
	}
	return err
}

// Load starts a container: its file systems must be whole.
func (c *containers) Load(ctx context.Context, w runtime.Workload) error {
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	if down != nil {
		return down
	}
	if w.Spec != nil && w.Spec.Image != nil {
		raw, err := c.files.ReadFile(c.path(w.Spec.Image.Digest, "image"))
		if err != nil {
			return fmt.Errorf("the image is not here: %w", err)
		}
		m, err := manifest.ParseImage(raw)
		if err != nil {
			return err
		}
		for _, l := range m.Layers {
			if b, err := c.files.ReadFile(c.path(l.Digest, "fs")); err != nil || ota.DigestOf(b) != l.Digest {
				return fmt.Errorf("exec format error: layer %s is torn: %v", l.Digest.Short(), err)
			}
		}
	}
	return c.fakeRuntime.Load(ctx, w)
}

func (c *containers) imported() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.imports)
}

// withImages makes the agent's runtime one with containers.
func withImages(at **containers) func(*Options) {
	return func(o *Options) {
		*at = &containers{fakeRuntime: o.Runtime.(*fakeRuntime)}
		o.Runtime = *at
	}
}

// image stores an image of layers, and returns what a release needs of it. A
// layer of one text is the same in all images.
func (w *world) image(spec manifest.Workload, layers ...string) map[string][]manifest.Descriptor {
	w.t.Helper()
	put := func(mediaType string, b []byte) manifest.Descriptor {
		d, err := w.blobs.PutBytes(b)
		if err != nil {
			w.t.Fatal(err)
		}
		return manifest.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			w.t.Fatal(err)
		}
		return b
	}
	m := manifest.ImageManifest{SchemaVersion: 2, MediaType: manifest.MediaManifest, Config: put(manifest.MediaImageConfig, []byte(`{"os":"linux","architecture":"arm64"}`))}
	for _, l := range layers {
		m.Layers = append(m.Layers, put(manifest.MediaLayerTar, []byte(strings.Repeat(l, 1000))))
	}
	d := put(manifest.MediaManifest, encode(m))
	spec.Image = &manifest.Image{Digest: d.Digest}
	doc := put(manifest.MediaWorkload, encode(spec))
	return map[string][]manifest.Descriptor{"linux/arm64": append([]manifest.Descriptor{manifest.WorkloadLayer(doc.Digest, doc.Size)}, manifest.ImageLayers(d, &m)...)}
}

// TestImageRelease: a release with an image serves in it, its blobs come once
// and stay for the next, layers in common are not fetched again, and after the
// commit only two releases' images are there.
func TestImageRelease(t *testing.T) {
	w := newWorld(t)
	for i, layer := range []string{"one", "two", "three"} {
		n := uint64(i + 1)
		w.release(fmt.Sprint(n), model{Bias: float32(n)}, releaseOptions{counter: n, golden: float32(n),
			machine: w.image(manifest.Workload{Resources: manifest.Resources{MemoryMiB: 64}}, "base", layer)})
	}
	files := slot.NewMem()
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var c *containers
		d := w.boot(files, withImages(&c))
		d.link.SetOnline(true)
		for n, layer := range []string{"one", "two", "three"} {
			version := fmt.Sprint(n + 1)
			before := w.got().fetched
			w.want(uint64(n+1), version)
			settle(time.Minute)
			if got, err := c.answer(); err != nil || got != float32(n+1) {
				t.Fatalf("release %s: answers %v, %v; %+v", version, got, err, d.state.Get().Failure)
			}
			if fetched := w.got().fetched - before; n > 0 && fetched > int64(1000*len(layer)+3900) { // the layer and documents, and not the 4000 of the base
				t.Errorf("release %s took %d bytes", version, fetched)
			}
			s := d.state.Get()
			if s.Current.Spec == nil || s.Current.Spec.Resources.MemoryMiB != 64 || s.Current.Image() == "" {
				t.Errorf("the committed release does not remember its workload: %+v", s.Current)
			}
			if len(s.Importing) != 0 {
				t.Errorf("imports under way: %v", s.Importing)
			}
		}
		entries, err := files.ReadDir("ctr")
		if err != nil || len(entries) != 5 { // base, two, three, and two manifests
			t.Errorf("%d folders of images: %v, %v", len(entries), entries, err)
		}
		if n := len(c.imported()); n != 3 || strings.Contains(strings.Join(c.imported(), " "), "+") {
			t.Errorf("imports %v", c.imported())
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
	// A start without the network, of the machine and then of the agent alone.
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.unplug(true)
		var c *containers
		d := w.boot(files.Crash(1), withImages(&c))
		settle(20 * time.Second)
		if got, err := c.answer(); err != nil || got != 3 {
			t.Errorf("offline: answers %v, %v", got, err)
		}
		if n := len(c.imported()); n != 0 {
			t.Errorf("imported again: %v", c.imported())
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// TestPowerCutWalkImage: the power is cut at every operation of an update to
// another image, of which one layer is shared with the one before.
func TestPowerCutWalkImage(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, soak: 3 * time.Second, machine: w.image(manifest.Workload{}, "base", "one")})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, soak: 3 * time.Second, machine: w.image(manifest.Workload{}, "base", "two", "three")})
	var c *containers
	ww := &walkWorld{world: w, base: committed(t, w, withImages(&c)), end: 2, more: func(o *Options, boot uint64) {
		o.Host.(*board).start = boot
		withImages(&c)(o)
	}}
	ww.everyCut(t, wire.StepStarted, wire.StepDone)
}

// TestImageRefusedWithoutContainers: a device that runs no containers takes no
// byte of an image, and says what to do.
func TestImageRefusedWithoutContainers(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, machine: w.image(manifest.Workload{}, strings.Repeat("base", 100))})
	files := committed(t, w)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d := w.boot(files)
		d.link.SetOnline(true)
		before := w.got().fetched
		w.want(2, "2")
		settle(time.Minute)
		r := w.last()
		if r.FailureClass != string(ota.Rejected) || !strings.Contains(r.Failure, "--runtime containerd") {
			t.Errorf("class %s: %s", r.FailureClass, r.Failure)
		}
		if n := w.got().fetched - before; n > 10_000 {
			t.Errorf("%d bytes came", n)
		}
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("answers %v, %v", got, err)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// TestContainerRuntimeDown: an update waits for nothing that is down, it fails
// with the cause; what is committed comes back when it is up again.
func TestContainerRuntimeDown(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, machine: w.image(manifest.Workload{}, "base")})
	var c *containers
	files := committed(t, w, withImages(&c))
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.unplug(true)
		d := w.boot(files, withImages(&c), func(*Options) { c.down = errors.New("dial containerd.sock: connection refused") })
		settle(2 * time.Minute)
		if _, err := c.answer(); err == nil {
			t.Error("it serves without its container")
		}
		c.mu.Lock()
		c.down = nil
		c.mu.Unlock()
		settle(2 * time.Minute)
		if got, err := c.answer(); err != nil || got != 1 {
			t.Errorf("with the container run-time up: answers %v, %v", got, err)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// TestSwap: what a workload says of memory is kept to, and the outage is said.
func TestSwap(t *testing.T) {
	for _, c := range []struct {
		swap  string
		room  int32
		end   float32
		wants string // in the message of a step, or of the failure
	}{
		{manifest.SwapAuto, 0, 2, ""},
		{manifest.SwapAuto, 1, 2, "memory does not hold both"},
		{manifest.SwapUnloadFirst, 0, 2, "as the release says"},
		{manifest.SwapBeside, 0, 2, ""},
		{manifest.SwapBeside, 1, 1, "beside each other"},
	} {
		t.Run(fmt.Sprintf("%s, room for %d", c.swap, c.room), func(t *testing.T) {
			w := newWorld(t)
			w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
			w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, machine: w.image(manifest.Workload{Swap: c.swap}, "base")})
			files := committed(t, w)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				var ctr *containers
				d := w.boot(files, withImages(&ctr))
				ctr.room.Store(c.room)
				d.link.SetOnline(true)
				w.want(2, "2")
				settle(time.Minute)
				if got, err := ctr.answer(); err != nil || got != c.end {
					t.Errorf("answers %v, %v, want %v", got, err, c.end)
				}
				r := w.last()
				var text strings.Builder
				text.WriteString(r.Failure)
				for _, e := range r.Journal {
					text.WriteString("\n" + e.Message)
				}
				if !strings.Contains(text.String(), c.wants) {
					t.Errorf("nothing says %q: %s", c.wants, text.String())
				}
				if outage := strings.Contains(text.String(), "nothing answered for"); outage != (c.wants != "" && c.end == 2) {
					t.Errorf("outage %v: %s", outage, text.String())
				}
				if err := d.stop(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestContainerReadsItsModel: the staged files of a model in a container can be
// read by any user that reaches them, and nobody reaches them on the host.
func TestContainerReadsItsModel(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, machine: w.image(manifest.Workload{}, "base")})
	dir := filepath.Join(t.TempDir(), "state")
	files, err := slot.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		var c *containers
		d := w.boot(files, withImages(&c))
		d.link.SetOnline(true)
		w.want(1, "1")
		settle(time.Minute)
		if got, err := c.answer(); err != nil || got != 1 {
			t.Fatalf("answers %v, %v: %+v", got, err, d.state.Get().Failure)
		}
		staged := filepath.Join(dir, d.state.Get().Current.Dir())
		for name, want := range map[string]fs.FileMode{staged: 0o755, filepath.Join(staged, "model.onnx"): 0o644, filepath.Dir(staged): 0o700} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
			}
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}
