package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestInside asks a container what it can do.
func TestInside(t *testing.T) {
	for _, mode := range []string{UserNSOn, UserNSOff} {
		t.Run("user namespace "+mode, func(t *testing.T) {
			l := newLab(t)
			l.opts.UserNS = mode
			l.opts.Mounts = []string{filepath.Join(l.Dir, "shared"), filepath.Join(l.Dir, "out") + ":rw"}
			l.opts.Devices = []string{"/dev/fuse", "/dev/full"}
			for _, d := range []string{"model", "shared", "out"} {
				write(t, filepath.Join(l.Dir, d, "f"), "in "+d)
			}
			if err := os.Chmod(filepath.Join(l.Dir, "out"), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(l.Dir, "shared", "f"), 0o644); err != nil {
				t.Fatal(err)
			}
			c := l.ready()
			s := l.spec("a", "look", filepath.Join(l.Dir, "model/f"), "/mnt/f", "write:/x", "write:/tmp/x", "write:/out/x", "write:"+filepath.Join(l.Dir, "model/x"), "write:/dev/full", "write:/dev/x", "/proc/kcore")
			s.Dirs = []string{filepath.Join(l.Dir, "model")}
			s.Env = []string{"ANSWER=42"}
			s.Workload.Spec.Mounts = []manifest.Mount{{Source: filepath.Join(l.Dir, "shared"), Target: "/mnt"}, {Source: filepath.Join(l.Dir, "out"), Target: "/out", Writable: true}}
			s.Workload.Spec.Devices = []string{"/dev/full"}
			i := l.start(c, s)
			e := l.ended(i)
			text := strings.Join(e.Tail, "\n")
			for _, want := range []string{
				"Uid: 65532 65532 65532 65532", "Gid: 65532 65532 65532 65532", "CapEff: 0000000000000000", "CapBnd: 0000000000000000",
				"NoNewPrivs: 1", "Seccomp: 2", "env: ANSWER=42", "env: HOME=", fmt.Sprintf("read %s: <nil>", filepath.Join(l.Dir, "model/f")), `read /mnt/f: <nil> "in shared"`,
				"write /x: open /x: read-only file system", "write /tmp/x: <nil>", "write /out/x: <nil>", "model/x: read-only file system", "write /dev/full: write /dev/full: no space left",
				"write /dev/x: open /dev/x: permission denied",
			} {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
			mapped := strings.Contains(text, fmt.Sprintf("uid_map: 0 %d 1 65532 65532 1", rootID))
			if mapped != (mode == UserNSOn) {
				t.Errorf("mapped %v\n%s", mapped, text)
			}
			if strings.Contains(text, `read /proc/kcore: <nil> "\`) {
				t.Errorf("kernel memory can be read\n%s", text)
			}
			l.empty(c)
		})
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	for name, change := range map[string]func(*serving.Spec){
		"mount":         func(s *serving.Spec) { s.Workload.Spec.Mounts = []manifest.Mount{{Source: "/etc", Target: "/mnt"}} },
		"device":        func(s *serving.Spec) { s.Workload.Spec.Devices = []string{"/dev/mem"} },
		"gpu":           func(s *serving.Spec) { s.Workload.Spec.GPU = "all" },
		"named gpu":     func(s *serving.Spec) { s.Workload.Spec.GPU = "nvidia.com/gpu=7" },
		"no image":      func(s *serving.Spec) { s.Workload.Spec = nil },
		"root of image": func(s *serving.Spec) { s.Workload.Spec.Image = l.rootImage(c) },
	} {
		s := l.spec("a", "wait")
		change(&s)
		if _, err := c.Launch(t.Context(), s); !errors.Is(err, runtime.ErrIncompatible) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := l.spec("a", "look")
	s.Workload.Spec.Image, s.Workload.Spec.User = l.rootImage(c), "0"
	if text := strings.Join(l.ended(l.start(c, s)).Tail, "\n"); !strings.Contains(text, "Uid: 0 0 0 0") || !strings.Contains(text, "CapEff: 0000000000000000") {
		t.Errorf("root that was asked for:\n%s", text)
	}
	s = l.spec("a", "look")
	s.Workload.Spec.Network, s.Workload.Spec.User = "none", "1234"
	if text := strings.Join(l.ended(l.start(c, s)).Tail, "\n"); !strings.Contains(text, "interfaces: 1 ") || !strings.Contains(text, "Gid: 1234 1234") {
		t.Errorf("no network, a user of its own:\n%s", text)
	}
	l.empty(c)
}

const cdiText = `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[
{"name":"0","containerEdits":{"env":["GPU=0"],"deviceNodes":[{"path":"/dev/null0","hostPath":"/dev/null"}]}},
{"name":"all","containerEdits":{"env":["GPU=all"],"deviceNodes":[{"path":"/dev/null0","hostPath":"/dev/null"}],"mounts":[{"hostPath":"/etc/hostname","containerPath":"/gpu-lib","options":["ro","bind"]}]}}]}`

func TestCDI(t *testing.T) {
	l := newLab(t)
	write(t, filepath.Join(l.Dir, "cdi/nvidia.json"), cdiText)
	l.opts.CDIDirs = []string{filepath.Join(l.Dir, "cdi")}
	c := l.ready()
	for want, env := range map[string]string{"": "env: GPU=all", "all": "env: GPU=all", "nvidia.com/gpu=0": "env: GPU=0", "none": ""} {
		s := l.spec("a", "look", "write:/dev/null0", "/gpu-lib")
		s.Workload.Spec.GPU = want
		text := strings.Join(l.ended(l.start(c, s)).Tail, "\n")
		if env == "" && strings.Contains(text, "GPU=") || !strings.Contains(text, env) || strings.Contains(text, "write /dev/null0: <nil>") != (env != "") {
			t.Errorf("gpu %q:\n%s", want, text)
		}
	}
	l.empty(c)
}

// TestFindGPU looks at fake hosts.
func TestFindGPU(t *testing.T) {
	jetson := t.TempDir()
	write(t, filepath.Join(jetson, "etc/nv_tegra_release"), "# R32 (release), REVISION: 7.1\n")
	write(t, filepath.Join(jetson, nvidiaShim), "")
	broken := t.TempDir()
	write(t, filepath.Join(broken, "nvidia.yaml"), "kind: [")
	for _, c := range []struct{ root, cdi, want, shim, err string }{
		{jetson, "none", "", nvidiaShim, ""},
		{jetson, "none", "all", nvidiaShim, ""},
		{jetson, "none", "none", "", ""},
		{jetson, "none", "intel.com/gpu=0", "", "no CDI specification"},
		{t.TempDir(), "none", "", "", ""},
		{t.TempDir(), broken, "all", "", "nvidia.yaml"},
	} {
		l, err := New(Options{Dir: t.TempDir(), HostRoot: c.root, CDIDirs: []string{c.cdi}})
		if err != nil {
			t.Fatal(err)
		}
		g, err := l.findGPU(c.want)
		if g.shim != c.shim || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %+v %v", c, g, err)
		}
		s := &specs.Spec{Process: &specs.Process{}}
		if err := g.apply(t.Context(), nil, nil, s); err != nil || (len(s.Process.Env) > 0) != (c.shim != "") {
			t.Errorf("%+v: env %v, %v", c, s.Process.Env, err)
		}
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ok/f"), "")
	write(t, filepath.Join(dir, "okay/f"), "")
	if err := os.Symlink("/etc", filepath.Join(dir, "ok/out")); err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Dir: dir, Mounts: []string{filepath.Join(dir, "ok")}})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"ok": true, "ok/f": true, "okay": false, "ok/out": false, "ok/missing": false} {
		if err := l.allowMount(manifest.Mount{Source: filepath.Join(dir, path), Target: "/x"}); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
		if err := l.allowMount(manifest.Mount{Source: filepath.Join(dir, path), Target: "/x", Writable: true}); err == nil {
			t.Errorf("%s: writable", path)
		}
	}
}

func TestUsage(t *testing.T) {
	one := &cgroup1.Metrics{CPU: &cgroup1.CPUStat{Usage: &cgroup1.CPUUsage{Total: 5000}}, Pids: &cgroup1.PidsStat{Current: 3},
		Memory: &cgroup1.MemoryStat{Usage: &cgroup1.MemoryEntry{Usage: 100}, TotalInactiveFile: 30}, MemoryOomControl: &cgroup1.MemoryOomControl{OomKill: 2}}
	two := &cgroup2.Metrics{CPU: &cgroup2.CPUStat{UsageUsec: 5}, Pids: &cgroup2.PidsStat{Current: 3},
		Memory: &cgroup2.MemoryStat{Usage: 100, InactiveFile: 30}, MemoryEvents: &cgroup2.MemoryEvents{OomKill: 2}}
	want := serving.Usage{CPU: 5000, Memory: 70, Pids: 3, OOMKill: 2}
	for _, m := range []any{one, two} {
		got, err := usageOf(m)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%T: %v %s", m, err, d)
		}
	}
	if _, err := usageOf("x"); err == nil {
		t.Error("unknown metrics are read")
	}
	// Figures of the kernel, in both versions.
	root := t.TempDir()
	write(t, filepath.Join(root, "sys/fs/cgroup/skein/a/memory.peak"), "41\n")
	write(t, filepath.Join(root, "sys/fs/cgroup/skein/a/memory.max"), "42\n")
	write(t, filepath.Join(root, "sys/fs/cgroup/skein/a/memory.events"), "oom 1\noom_kill 1\n")
	old := "sys/fs/cgroup/memory/skein/b/"
	write(t, filepath.Join(root, old, "memory.max_usage_in_bytes"), "42\n")
	write(t, filepath.Join(root, old, "memory.limit_in_bytes"), "42\n")
	write(t, filepath.Join(root, old, "memory.failcnt"), "9\n")
	write(t, filepath.Join(root, old, "memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\n")
	l, err := New(Options{Dir: root, HostRoot: root})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.memory("a"); got != (memoryFigures{41, 42, 1}) {
		t.Errorf("version 2: %+v", got)
	}
	if got := l.memory("b"); got != (memoryFigures{42, 42, 1}) {
		t.Errorf("version 1 of an old kernel: %+v", got)
	}
}

func TestLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	o := &output{path: filepath.Join(dir, "a.log"), max: 2000}
	for i := range 200 {
		f, err := os.OpenFile(o.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(f, "line %d\n", i)
		f.Close()
		if err := o.bound(); err != nil {
			t.Fatal(err)
		}
	}
	tail := o.tail()
	if len(tail) != tailLines || tail[len(tail)-1] != "line 199" || tail[0] != "line 180" {
		t.Errorf("tail %v", tail)
	}
	var sum int64
	for _, p := range []string{o.path, o.path + rotated} {
		if info, err := os.Stat(p); err == nil {
			sum += info.Size()
		}
	}
	if sum > 2000 {
		t.Errorf("%d bytes", sum)
	}
}

func TestCheck(t *testing.T) {
	l := newLab(t)
	levels := map[string]string{}
	for _, f := range Check(t.Context(), l.opts) {
		levels[f.Check] = f.Level
		if (f.Level == LevelOK) != (f.Mend == "") || f.Detail == "" {
			t.Errorf("%+v", f)
		}
	}
	for _, c := range []string{"containerd", "snapshotter", "runc", "cgroup", "seccomp", "user namespaces", "gpu"} {
		if levels[c] == "" || levels[c] == LevelFail {
			t.Errorf("%s: %q", c, levels[c])
		}
	}
	l.opts.Socket = "/nonexistent/c.sock"
	if f := Check(t.Context(), l.opts)[0]; f.Level != LevelFail || f.Check != "containerd" {
		t.Errorf("%+v", f)
	}
}
