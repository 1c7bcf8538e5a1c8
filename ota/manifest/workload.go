package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// MediaWorkload is the layer of a release that says what serves its model.
const MediaWorkload = "application/vnd.skein.workload.v1+json"

// AnnImage marks the layers of a release that belong to the container image of
// its workload: image manifest, configuration and file system layers. Its value
// is the digest of the image manifest.
const AnnImage = "dev.skein.image"

// MaxWorkload bounds the document.
const MaxWorkload = 64 << 10

// Servers that a workload can be.
const (
	ServerV2     = "v2"     // any server of the KServe v2 protocol, one model in it
	ServerTriton = "triton" // NVIDIA Triton, its models loaded and unloaded by name
)

// Ways of bringing a new workload in.
const (
	// SwapBeside loads the new one beside the old one and switches between
	// requests; where memory does not hold both, the update fails.
	SwapBeside = "beside"
	// SwapAuto is beside where memory holds both, else unload-first.
	SwapAuto = "auto"
	// SwapUnloadFirst unloads the old one first: inference stops until the new
	// one answers.
	SwapUnloadFirst = "unload-first"
)

// Workload is what serves the model of a release: a container image, or with
// none the server command that the device is configured with, and what it gets.
// Arguments and environment may hold {http} {grpc} {metrics} (HOST:PORT on
// loopback, allocated for each generation), {http-port} {grpc-port}
// {metrics-port}, {dir} (the staged files), {repository} (the Triton model
// repository), {model-file}, {model}, {version} and {id}.
type Workload struct {
	Server string            `json:"server,omitempty"` // v2 (the default) or triton
	Image  *Image            `json:"image,omitempty"`
	Args   []string          `json:"args,omitempty"` // replaces the image's command
	Env    map[string]string `json:"env,omitempty"`
	// User is UID or UID:GID; empty is the image's, which must not be root
	// unless it is said here.
	User      string    `json:"user,omitempty"`
	Resources Resources `json:"resources,omitzero"`
	// GPU is "all", "none" or a CDI device such as nvidia.com/gpu=0; empty is
	// all where the device has one.
	GPU     string   `json:"gpu,omitempty"`
	Devices []string `json:"devices,omitempty"` // such as /dev/video0
	// Mounts must be allowed by the device too.
	Mounts []Mount `json:"mounts,omitempty"`
	// Network is "host" (the default) or "none"; the server listens on loopback.
	Network string `json:"network,omitempty"`
	// WritableRoot gives the container a scratch layer of its own; without it
	// the root is read-only and /tmp is in memory.
	WritableRoot bool `json:"writableRoot,omitempty"`
	// Swap says how a new workload takes the place of an old one: auto when empty.
	Swap string `json:"swap,omitempty"`
	// Shadow mirrors live requests to a new workload before it gets any.
	Shadow *Shadow `json:"shadow,omitempty"`
	// Restart says when a server that grows is started again.
	Restart RestartPolicy `json:"restart,omitzero"`
}

// Image is an OCI image: in the release by digest of its manifest, or at a
// registry by a reference with digest.
type Image struct {
	Digest    ota.Digest `json:"digest"`
	Reference string     `json:"reference,omitempty"` // registry/repository of it, empty when the release holds the image
}

// Resources bound a workload; 0 is unbounded.
type Resources struct {
	MemoryMiB int     `json:"memoryMiB,omitempty"`
	CPUs      float64 `json:"cpus,omitempty"`
	Pids      int     `json:"pids,omitempty"`
}

// Mount is a host path inside a container.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	Writable bool   `json:"writable,omitempty"`
}

// Shadow compares a new workload, proven and not yet serving, with the one that
// serves, on live requests that both get; only the old one's answers are returned.
// The journal keeps the comparison.
type Shadow struct {
	Share     float64 `json:"share"`               // of the requests, above 0 and up to 1
	PerSecond float64 `json:"perSecond,omitempty"` // at most so many of them, 20 when 0
	Requests  int     `json:"requests,omitempty"`  // compared before the switch, 100 when 0
	Seconds   int     `json:"seconds,omitempty"`   // longest time that it takes, 60 when 0
	// MaxDisagree fails the update where a greater share of the new answers names
	// another class, or fails; absent, the comparison is kept and decides nothing.
	MaxDisagree *float64 `json:"maxDisagree,omitempty"`
}

func (s *Shadow) valid() bool {
	return s == nil || s.Share > 0 && s.Share <= 1 && s.PerSecond >= 0 && s.PerSecond <= 1000 && s.Requests >= 0 && s.Requests <= 1e6 &&
		s.Seconds >= 0 && s.Seconds <= 3600 && (s.MaxDisagree == nil || *s.MaxDisagree >= 0 && *s.MaxDisagree <= 1)
}

// RestartPolicy says when a running server is started again.
type RestartPolicy struct {
	// GrowthMiB restarts a server that holds this much more memory than after
	// its first minute; 0 never does.
	GrowthMiB int `json:"growthMiB,omitempty"`
}

// ErrWorkload is returned for a workload that cannot be run anywhere.
var ErrWorkload = fmt.Errorf("%w: workload", ErrMalformed)

var (
	userRE    = regexp.MustCompile(`^[0-9]{1,9}(:[0-9]{1,9})?$`)
	cdiRE     = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9_-]*=[A-Za-z0-9:._-]+$`)
	envRE     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	referRE   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$`)
	maxMiB    = 1 << 20
	maxWords  = 256
	maxOfList = 64
)

// ParseWorkload reads the document, strictly.
func ParseWorkload(raw []byte) (*Workload, error) {
	if len(raw) > MaxWorkload {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrWorkload, len(raw), MaxWorkload)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var w Workload
	if err := dec.Decode(&w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWorkload, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the document", ErrWorkload)
	}
	return &w, w.Validate()
}

// Validate checks what can be checked without a device.
func (w *Workload) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrWorkload, fmt.Sprintf(format, args...))
	}
	oneOf := func(field, v string, all ...string) error {
		if v == "" || slices.Contains(all, v) {
			return nil
		}
		return bad("%s %q: want %s", field, v, strings.Join(all, ", "))
	}
	if err := errors.Join(
		oneOf("server", w.Server, ServerV2, ServerTriton),
		oneOf("network", w.Network, "host", "none"),
		oneOf("swap", w.Swap, SwapBeside, SwapAuto, SwapUnloadFirst),
	); err != nil {
		return err
	}
	if w.Image != nil {
		if _, err := ota.ParseDigest(string(w.Image.Digest)); err != nil {
			return bad("image: %v", err)
		}
		if r := w.Image.Reference; r != "" && !referRE.MatchString(r) {
			return bad("image reference %q: want registry/repository, the digest stands in digest", r)
		}
	}
	if w.User != "" && !userRE.MatchString(w.User) {
		return bad("user %q: want UID or UID:GID", w.User)
	}
	if g := w.GPU; g != "" && g != "all" && g != "none" && !cdiRE.MatchString(g) {
		return bad("gpu %q: want all, none or a CDI device such as nvidia.com/gpu=0", g)
	}
	if len(w.Args) > maxWords || len(w.Env) > maxWords || len(w.Devices) > maxOfList || len(w.Mounts) > maxOfList {
		return bad("more than %d words or %d devices or mounts", maxWords, maxOfList)
	}
	for k := range w.Env {
		if !envRE.MatchString(k) {
			return bad("environment variable %q", k)
		}
	}
	for _, d := range w.Devices {
		if !strings.HasPrefix(d, "/dev/") || path.Clean(d) != d {
			return bad("device %q: want a path below /dev", d)
		}
	}
	for _, m := range w.Mounts {
		for _, p := range []string{m.Source, m.Target} {
			if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
				return bad("mount %q: want absolute, clean paths", p)
			}
		}
	}
	if !w.Shadow.valid() {
		return bad("shadow is out of range: share above 0 and up to 1, perSecond up to 1000, seconds up to 3600, maxDisagree from 0 to 1")
	}
	r := w.Resources
	if r.MemoryMiB < 0 || r.MemoryMiB > maxMiB || r.CPUs < 0 || r.CPUs > 1024 || r.Pids < 0 || r.Pids > 1<<22 || w.Restart.GrowthMiB < 0 {
		return bad("resources are out of range")
	}
	return nil
}
