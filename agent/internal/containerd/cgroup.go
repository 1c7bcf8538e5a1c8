package containerd

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"

	"github.com/skein-fleet/skein/agent/internal/serving"
)

// Usage measures the container now.
func (i *instance) Usage(ctx context.Context) (serving.Usage, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, i.l.opts.Namespace), answerTimeout)
	defer cancel()
	m, err := i.task.Metrics(ctx)
	if err != nil {
		return serving.Usage{}, fmt.Errorf("measure container %s: %w", i.id, i.l.told(err))
	}
	v, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return serving.Usage{}, fmt.Errorf("measure container %s: %w", i.id, err)
	}
	u, err := usageOf(v)
	if err != nil {
		return serving.Usage{}, fmt.Errorf("measure container %s: %w", i.id, err)
	}
	return u, nil
}

// usageOf reads the metrics of either version of cgroups. Memory is what the
// kernel cannot take back without asking: file pages not in use are left out.
func usageOf(v any) (serving.Usage, error) {
	var u serving.Usage
	switch m := v.(type) {
	case *cgroup1.Metrics:
		u.CPU = nanoseconds(m.GetCPU().GetUsage().GetTotal(), 1)
		u.Memory = working(m.GetMemory().GetUsage().GetUsage(), m.GetMemory().GetTotalInactiveFile())
		u.Pids = int(min(m.GetPids().GetCurrent(), math.MaxInt32))
		u.OOMKill = int(min(m.GetMemoryOomControl().GetOomKill(), math.MaxInt32))
	case *cgroup2.Metrics:
		u.CPU = nanoseconds(m.GetCPU().GetUsageUsec(), 1000)
		u.Memory = working(m.GetMemory().GetUsage(), m.GetMemory().GetInactiveFile())
		u.Pids = int(min(m.GetPids().GetCurrent(), math.MaxInt32))
		u.OOMKill = int(min(m.GetMemoryEvents().GetOomKill(), math.MaxInt32))
	default:
		return u, fmt.Errorf("metrics of type %T", v)
	}
	return u, nil
}

func nanoseconds(n, unit uint64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/unit) * unit)
}

func working(usage, inactive uint64) int64 {
	if inactive > usage {
		inactive = usage
	}
	return int64(min(usage-inactive, math.MaxInt64))
}

// memoryFigures are what the kernel noted about the memory of a cgroup.
type memoryFigures struct {
	peak, limit int64 // bytes, 0 when unknown or unbounded
	kills       int   // processes ended for memory
}

// cgroupPath is where the containers of a namespace are, below the root of cgroups.
func cgroupPath(namespace, id string) string { return "/" + namespace + "/" + id }

// memory reads them from the host: it needs no daemon, and works when the
// container has ended and is not removed yet.
func (l *Launcher) memory(id string) memoryFigures {
	root := filepath.Join(l.opts.HostRoot, "sys/fs/cgroup")
	path := cgroupPath(l.opts.Namespace, id)
	if dir := filepath.Join(root, "memory", path); exists(dir) {
		f := memoryFigures{
			peak: figure(dir, "memory.max_usage_in_bytes"), limit: figure(dir, "memory.limit_in_bytes"),
			kills: int(field(dir, "memory.oom_control", "oom_kill")),
		}
		// Kernels before 4.13 do not count: memory was refused and its top was the limit.
		if !hasField(dir, "memory.oom_control", "oom_kill") && figure(dir, "memory.failcnt") > 0 && f.limit > 0 && f.peak >= f.limit {
			f.kills = 1
		}
		return f
	}
	dir := filepath.Join(root, path)
	return memoryFigures{peak: figure(dir, "memory.peak"), limit: figure(dir, "memory.max"), kills: int(field(dir, "memory.events", "oom_kill"))}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// figure reads a file of one number; 0 is unknown or no bound.
func figure(dir, name string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n >= 1<<60 { // "max", or version 1's largest number
		return 0
	}
	return n
}

// field reads one of the "key number" lines of a file.
func field(dir, name, key string) int64 {
	n, _ := lineOf(dir, name, key)
	return n
}

func hasField(dir, name, key string) bool {
	_, ok := lineOf(dir, name, key)
	return ok
}

func lineOf(dir, name, key string) (int64, bool) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
