package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/skein-fleet/skein/agent/runtime/mock"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/sim/plane"
)

// LargeOptions say how large one artifact is.
type LargeOptions struct {
	Bytes    int64
	Skeind   []string // command that starts skeind
	Agent    string   // the shipped binary
	Dir      string   // for the data; empty: a temporary folder
	Progress func(format string, args ...any)
}

const (
	largeMemoryGoal = 64 // MiB
	largeTimeout    = 40 * time.Minute
)

// Large lets the shipped agent install one large artifact over HTTPS from a
// skeind of its own, and measures the highest memory of both.
func Large(ctx context.Context, o LargeOptions) (figures []Figure, err error) {
	dir, err := os.MkdirTemp(o.Dir, "skein-bench-large-")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &agentRun{o: AgentOptions{Skeind: o.Skeind, Agent: o.Agent, Progress: o.Progress}, dir: dir}
	if r.plane, err = plane.Child(ctx, o.Skeind, filepath.Join(dir, "skeind")); err != nil {
		return nil, err
	}
	defer r.plane.Close()
	if err := r.large(ctx, o.Bytes); err != nil {
		return r.figures, err
	}
	return r.figures, nil
}

func (r *agentRun) large(ctx context.Context, size int64) error {
	op := r.plane.Operator()
	claim, err := op.Claim(ctx, 1, nil)
	if err != nil {
		return err
	}
	p, err := r.start(r.o.Agent, "run", "--state", filepath.Join(r.dir, "agent"), "--socket", filepath.Join(r.dir, "agent.sock"), "--runtime", "mock",
		"--server", r.plane.DeviceURL, "--claim", claim, "--name", "bench")
	if err != nil {
		return err
	}
	defer p.stop()
	if err := r.awaitOnline(ctx, p, 1); err != nil {
		return err
	}
	devices, err := op.Devices(ctx, "")
	if err != nil {
		return err
	}
	release, err := r.largeRelease(ctx, size, devices[0].GetTarget())
	if err != nil {
		return err
	}
	idle, err := procKiB(p.cmd.Process.Pid, "VmRSS")
	if err != nil {
		return err
	}
	if _, err := op.Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: devices[0].GetId(), Release: release}); err != nil {
		return fmt.Errorf("assign the release: %w", err)
	}
	start := time.Now()
	if err := r.awaitRelease(ctx, p, release); err != nil {
		return err
	}
	took := time.Since(start)
	peak, err := procKiB(p.cmd.Process.Pid, "VmHWM")
	if err != nil {
		return err
	}
	server, err := procKiB(r.plane.PID(), "VmHWM")
	if err != nil {
		return err
	}
	r.add(figure("large.bytes", float64(size), "bytes"))
	r.add(figure("large.installed_after", took.Seconds(), "s"))
	r.add(figure("large.agent_rss_before", idle/1024, "MiB"))
	r.add(figure("large.agent_rss_peak", peak/1024, "MiB").atMost(largeMemoryGoal))
	r.add(figure("large.skeind_rss_peak", server/1024, "MiB"))
	return nil
}

// largeRelease pushes a model of about size bytes and releases it.
func (r *agentRun) largeRelease(ctx context.Context, size int64, target string) (string, error) {
	op := r.plane.Operator()
	r.o.Progress("a model of %d bytes is made and uploaded", size)
	h := sha256.New()
	n, err := io.Copy(h, largeModel(size))
	if err != nil {
		return "", err
	}
	d := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
	if err := op.UploadFrom(ctx, d, largeModel(size), n); err != nil {
		return "", err
	}
	input := []float32{1, 2}
	var answers mock.Spec
	golden, err := json.Marshal(manifest.Golden{Version: 1, Input: "x", Shape: []int64{2}, MinLabelAgreement: 1, Tolerance: manifest.Tolerance{Abs: 1e-4},
		Cases: []manifest.GoldenCase{{Input: input, Output: answers.Answer(input), Label: largest(answers.Answer(input))}}})
	if err != nil {
		return "", err
	}
	g, err := op.Upload(ctx, golden)
	if err != nil {
		return "", err
	}
	v, err := op.Models.PushModel(ctx, &artifactv1.PushModelRequest{Model: "large", OnnxDigest: string(d), GoldenDigest: string(g)})
	if err != nil {
		return "", fmt.Errorf("push the model: %w", err)
	}
	rel, err := op.Release(ctx, &releasev1.CreateReleaseRequest{Name: "large", Model: fmt.Sprintf("large@%d", v.GetVersion().GetVersion()), Targets: []string{target}})
	if err != nil {
		return "", err
	}
	r.o.Progress("the release is made")
	return rel.GetDigest(), nil
}

func largest(v []float32) int {
	best := 0
	for i := range v {
		if v[i] > v[best] {
			best = i
		}
	}
	return best
}

// awaitRelease waits until the one device runs the release.
func (r *agentRun) awaitRelease(ctx context.Context, p *program, release string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, largeTimeout, fmt.Errorf("not installed after %s", largeTimeout))
	defer cancel()
	said := ""
	for {
		devices, err := r.plane.Operator().Devices(ctx, "")
		if err == nil && len(devices) == 1 {
			d := devices[0]
			switch {
			case d.GetRunningRelease() == release:
				return nil
			case d.GetPhase() == "failed":
				return fmt.Errorf("the device refused it: %s", d.GetFailure())
			case d.GetStep() != said:
				said = d.GetStep()
				r.o.Progress("step %s", said)
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-p.done:
			return p.ended()
		case <-time.After(time.Second):
		}
	}
}

// largeModel is an ONNX file with one initializer of size bytes that repeat
// nowhere and do not compress.
func largeModel(size int64) io.Reader {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	graph := field(nil, 1, field(nil, 4, []byte("Gemm")))
	graph = field(graph, 11, field(nil, 1, []byte("x")))
	graph = field(graph, 12, field(nil, 1, []byte("logits")))
	graph = protowire.AppendVarint(protowire.AppendTag(graph, 5, protowire.BytesType), uint64(size))
	head := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 8)
	head = field(head, 8, protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 17))
	head = protowire.AppendVarint(protowire.AppendTag(head, 7, protowire.BytesType), uint64(len(graph))+uint64(size))
	return io.MultiReader(strings.NewReader(string(head)+string(graph)), io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
}

// procKiB reads one size of a process, in KiB.
func procKiB(pid int, key string) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 64)
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, key)
}
