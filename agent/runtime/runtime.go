// Package runtime is the agent's port to whatever runs inference workloads:
// containers, processes, or an interpreter in this process. It owns the
// contract, the KServe v2 tensor values that cross it, and a conformance suite
// (package runtimetest) that every driver passes. Drivers and the agent import
// it; it imports nothing of the agent.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Errors that drivers return, wrapped with what was tried.
var (
	// ErrNotLoaded is returned for a workload that is not loaded.
	ErrNotLoaded = errors.New("workload not loaded")
	// ErrIncompatible is returned when the model cannot run on this device
	// at all (unknown operator, wrong engine version): trying again is useless.
	ErrIncompatible = errors.New("workload incompatible with this device")
	// ErrNoCapacity is returned when memory would not hold the workload
	// beside those loaded; the agent unloads the old one first and tries again.
	ErrNoCapacity = errors.New("not enough memory for the workload")
	// ErrBadRequest is returned by Infer for inputs that the model does not
	// take: the caller is at fault, and trying again is useless.
	ErrBadRequest = errors.New("request does not fit the model")
)

// Workload is one model server to run: the model files of one release laid out
// in a folder, as staged and verified by the agent.
type Workload struct {
	// ID names this generation of the workload; it is the release digest and
	// the digest of its rendered parameters, and is unique on the device.
	ID string
	// Model and Version name what is served, for example "meter" and "3".
	Model   string
	Version string
	// Dir holds the staged files; it is read-only to the driver. ModelFile is
	// the ONNX file or engine plan in it. Format is "onnx" or "plan".
	Dir       string
	ModelFile string
	Format    string
	// Params are the rendered parameters of the release (secrets opened).
	Params map[string]string
	// MemoryMiB is the declared need, 0 when unknown.
	MemoryMiB int
	// Spec says what serves the model; nil is what the device is configured with.
	Spec *manifest.Workload
}

// Status describes one loaded workload.
type Status struct {
	ID      string
	Ready   bool
	Serving bool
	Reason  string // why it is not ready
}

// Runtime runs workloads. At most one of them serves at a time. All calls are
// idempotent by workload ID and safe for concurrent use; the agent serialises
// Load, Switch and Unload itself.
type Runtime interface {
	// Load starts w beside whatever serves and returns when it is ready to
	// answer Infer. Loading what is loaded already returns nil.
	Load(ctx context.Context, w Workload) error
	// Switch sends requests that name no workload to id, between requests:
	// no request fails because of it.
	Switch(ctx context.Context, id string) error
	// Unload stops id and frees what it held. An unknown id is no error.
	Unload(ctx context.Context, id string) error
	// List returns what is loaded, in order of ID.
	List(ctx context.Context) ([]Status, error)
	Inferer
}

// Endpoint is where a loaded workload listens, on loopback, and the name under
// which its server knows the model.
type Endpoint struct {
	ID             string
	HTTP           string // HOST:PORT
	GRPC           string // HOST:PORT, empty when the server speaks HTTP only
	Metrics        string // HOST:PORT, empty when it has none
	Model, Version string // as the server names them; an empty version is any
	// ReleaseModel and ReleaseVersion are what the release calls them.
	ReleaseModel, ReleaseVersion string
}

// Endpoints is implemented by runtimes whose workloads listen for themselves,
// so that a proxy can forward to them.
type Endpoints interface {
	// Acquire returns where id listens, or what serves when id is empty, and
	// keeps it from being stopped until release is called. It returns
	// ErrNotLoaded when there is none.
	Acquire(ctx context.Context, id string) (e Endpoint, release func(), err error)
}

// TensorInfo is one input or output of a model; a size of -1 is the caller's choice.
type TensorInfo struct {
	Name     string
	Datatype string // FP32, INT64 and so on
	Shape    []int64
}

// Signature is what a model takes and gives, as its server says.
type Signature struct {
	Inputs, Outputs []TensorInfo
}

// Describer is implemented by runtimes whose servers say what a model takes. A
// signature without inputs means that the server does not say.
type Describer interface {
	Describe(ctx context.Context, id string) (Signature, error)
}

// Event is something that a workload did by itself.
type Event struct {
	Time     time.Time
	Workload string
	Kind     string // one of the kinds below
	Message  string
}

// Kinds of events.
const (
	EventExit    = "exit"    // the server ended
	EventOOM     = "oom"     // the kernel ended it for memory
	EventHung    = "hung"    // it stopped answering and is started again
	EventGrowth  = "growth"  // it is started again because its memory grew
	EventRestart = "restart" // it answers again
	EventAdopted = "adopted" // it ran before the agent started, and goes on
)

// Watcher is implemented by runtimes that tell of events. f must not block and
// must not call the runtime.
type Watcher interface {
	Watch(f func(Event))
}

// Server describes what runs for one workload.
type Server struct {
	ID             string
	Model, Version string
	Kind           string     // process or container
	Server         string     // v2 or triton
	Image          ota.Digest // empty for a process
	State          string     // ready, waiting or left over
	Reason         string
	Started        time.Time
	Restarts       int
	LastExit       string // how it last ended by itself
	Memory         int64  // bytes, 0 when unknown
	CPU            time.Duration
	Endpoint       Endpoint
	// Requests, Failed, Queue and Compute are what the server itself counts of
	// the model; the times are means of a request. Zero where it does not count.
	Requests, Failed uint64
	Queue, Compute   time.Duration
	Pending          int   // requests that wait in it
	GPUMemory        int64 // bytes in use on its GPUs, by all
}

// Reporter is implemented by runtimes whose workloads are servers. It answers
// at once, with what was last measured.
type Reporter interface {
	Servers(ctx context.Context) ([]Server, error)
}

// Images is implemented by runtimes that need container images.
type Images interface {
	// EnsureImage makes img ready to start; what it unpacked is durable when it
	// returns. anew does not trust what is unpacked already. Blobs come from
	// open, or from the registry that img names.
	EnsureImage(ctx context.Context, img manifest.Image, anew bool, open func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error)) error
	// KeepImages removes all images but these.
	KeepImages(ctx context.Context, keep []ota.Digest) error
}

// ImageRunner is implemented by runtimes with Images that may be set up without
// containers; then they refuse every image.
type ImageRunner interface {
	RunsImages() bool
}

// Inferer answers inference requests.
type Inferer interface {
	// Infer runs one request on the workload id, or on the serving one when
	// id is empty. It returns ErrNotLoaded when there is none.
	Infer(ctx context.Context, id string, req Request) (Response, error)
}

// Tensor is a named tensor in row-major order, as in the KServe v2 protocol. Its
// values are held as FP32; Datatype is what they are on the wire, FP32 when empty.
type Tensor struct {
	Name     string
	Shape    []int64
	Data     []float32
	Datatype string
}

// Request is a KServe v2 inference request.
type Request struct {
	ID     string
	Inputs []Tensor
}

// Response is a KServe v2 inference response.
type Response struct {
	ModelName    string
	ModelVersion string
	ID           string
	Outputs      []Tensor
}
