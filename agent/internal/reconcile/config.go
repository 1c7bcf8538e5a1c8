package reconcile

import (
	"context"
	"log/slog"
	"time"

	"github.com/skein-fleet/skein/agent/internal/boot"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Fetcher brings one blob into the local store, from the control plane or from
// a source that may use Remote, whose bytes are counted.
type Fetcher interface {
	FetchFrom(ctx context.Context, desc manifest.Descriptor, from fetch.Source) error
	Remote() fetch.Source
	BytesFetched() int64
}

// Gate says when an update may go on. Bringing back what is committed, the way
// back from an update, and what has begun to load never ask it.
type Gate interface {
	// Download returns when bytes may come. The context that it returns ends,
	// before ctx does, when they may no more; the caller calls stop.
	Download(ctx context.Context) (dctx context.Context, stop context.CancelFunc, err error)
	// Apply returns when a release may be put to work.
	Apply(ctx context.Context) error
	// Exempt marks transfers that bring back what is committed.
	Exempt(ctx context.Context) context.Context
}

// openGate lets all pass.
type openGate struct{}

func (openGate) Download(ctx context.Context) (context.Context, context.CancelFunc, error) {
	dctx, stop := context.WithCancel(ctx)
	return dctx, stop, nil
}

func (openGate) Apply(context.Context) error { return nil }

func (openGate) Exempt(ctx context.Context) context.Context { return ctx }

// Engines judges engine plans.
type Engines interface {
	// Check refuses a plan whose signed record does not match this device, or
	// that does not survive a trial load in a child; the note says what was done.
	// plan is the layer of the release, path where it is staged, target what its
	// manifest is for, and server what will load it, nil for what the device is
	// configured with; its image is ready.
	Check(ctx context.Context, plan manifest.Descriptor, path string, target ota.Target, server *manifest.Workload) (note string, err error)
	// Refit makes the whole plan out of a stripped one and its weights.
	Refit(ctx context.Context, plan, weights, out string) error
}

// Config is what an Executor works with. The functions that are only told
// something, Tend and the times may be left out.
type Config struct {
	Files slot.Files
	Blobs *blob.Store
	Fetch Fetcher
	// BytesBy returns how many bytes came so far by each way; nil counts none.
	BytesBy func() map[string]int64
	Journal *slot.Journal
	State   *state.Store
	Runtime runtime.Runtime
	Logger  *slog.Logger
	// Target is the device's own target.
	Target func() ota.Target
	// Params opens the secrets of rendered parameters.
	Params func([]wire.Param) (map[string]string, error)
	// Agrees asks whether the image repository lists this release as the
	// director named it, and whether what it lists may be made of this: its
	// index, and the manifests that count here. It uses what is on the device only.
	Agrees func(i *state.Install, ix *manifest.Index, ms []*manifest.Manifest) error
	// Free returns the free bytes of the state folder's file system.
	Free func() (int64, error)
	// Reserve is how many of them stay free for state, journal and spool, also
	// while a download fills the disk; nil or less than 32 MiB means 32 MiB.
	Reserve func() int64
	// Memory returns how much of it is in use and how much there is, zero when
	// that is not known; nil knows nothing.
	Memory func() (used, total int64)
	// Gate holds updates to a policy; nil lets all pass.
	Gate Gate
	// Headroom returns when heavy work may begin, with a note when it waited; nil
	// never waits. Bringing back what is committed does not ask it.
	Headroom func(ctx context.Context, work string) (note string, err error)
	Now      func() time.Time
	// LoadTimeout and ProveTimeout bound single steps; SoakEvery is the
	// interval of looks during soak.
	LoadTimeout, ProveTimeout, SoakEvery time.Duration
	// Hook is called before and after each step; tests end the process there.
	Hook func(ota.Step, wire.StepState)
	// Observe is told every line of the journal once it is durable.
	Observe func(slot.Entry)
	// Proven is told whether the golden set was answered rightly.
	Proven func(i *state.Install, ok bool)
	// Shadow compares a workload that is proven with the one that serves, where
	// its release asks for it; an error fails the step. nil compares nothing.
	Shadow func(ctx context.Context, i *state.Install) (note string, err error)
	// Point is called with a name before each durable write of an update (Points
	// lists them); tests end the process there.
	Point func(name string)
	// Agents are the slots of the agent's own binary, nil where nothing starts
	// another one; Restart ends this process so that it is.
	Agents  Agents
	Restart func(cause error)
	// Boot is the machine's boot chain, nil without one; BootID tells one start
	// of the machine from another.
	Boot   boot.Bootloader
	BootID func() uint64
	// Refused is told of what looks like an attack, by its class.
	Refused func(class string, release ota.Digest, message string)
	// Offer is told the layers of a release before they are fetched: they may
	// name mirrors.
	Offer func([]manifest.Descriptor)
	// Yield deletes what the device holds for others, so many bytes of it where
	// there are that many, and reports whether it deleted anything.
	Yield func(bytes int64) bool
	// Spent is told of a patch that was applied, before it is deleted.
	Spent func(ctx context.Context, patch ota.Digest)
	// Engines judges engine plans before the runtime gets them; nil lets all pass.
	Engines Engines
	// Waiting is told why a download waits for the network, nil once it goes on.
	Waiting func(err error)
	// Tend is called every TendEvery while a step runs that leaves the runtime
	// alone, since a download may take days: it looks after what is committed
	// and may let Do restore it. TendEvery 0 means 15 s.
	Tend      func(ctx context.Context)
	TendEvery time.Duration
}
