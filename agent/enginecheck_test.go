package agent

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/mock"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// imageOf is a runtime whose image prints what its libraries are, and whose
// trtexec, if it has one, does as told.
type imageOf struct {
	runtime.Runtime
	libraries string
	trtexec   func(out io.Writer) (serving.Exit, error)
	ran       []serving.Command
}

func (i *imageOf) RunOnce(_ context.Context, c serving.Command) (serving.Exit, error) {
	i.ran = append(i.ran, c)
	if strings.HasSuffix(c.Args[0], "sh") {
		_, err := io.WriteString(c.Output, i.libraries)
		return serving.Exit{}, err
	}
	return i.trtexec(c.Output)
}

// TestEngineInItsImage: which engine loads is a matter of the serving image,
// not of the host, and it is tried where it will serve.
func TestEngineInItsImage(t *testing.T) {
	host, err := ota.ParseTarget("linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6")
	if err != nil {
		t.Fatal(err)
	}
	none := func(io.Writer) (serving.Exit, error) { return serving.Exit{}, errors.New("no such file") }
	passes := func(w io.Writer) (serving.Exit, error) {
		_, err := io.WriteString(w, "&&&& PASSED TensorRT.trtexec [TensorRT v100700] # trtexec\n")
		return serving.Exit{}, err
	}
	crashes := func(io.Writer) (serving.Exit, error) {
		return serving.Exit{Code: -1, Signal: "segmentation fault"}, nil
	}
	server := &manifest.Workload{Image: &manifest.Image{Digest: ota.DigestOf([]byte("image"))}, User: "1000", GPU: "all"}
	libs := "skein-probe lib libnvinfer.so.10.7.0\n"
	for name, c := range map[string]struct {
		made    string
		server  *manifest.Workload
		libs    string
		trtexec func(io.Writer) (serving.Exit, error)
		refused bool
		says    string
	}{
		"of the image":           {"linux/arm64;sm=8.7;trt=10.7.0", server, libs, passes, false, "TensorRT 10.7.0"},
		"of the host":            {"linux/arm64;sm=8.7;trt=10.3.0", server, libs, passes, true, "TensorRT 10.7.0"},
		"crashes its loader":     {"linux/arm64;sm=8.7;trt=10.7.0", server, libs, crashes, true, "crashed"},
		"no trtexec there":       {"linux/arm64;sm=8.7;trt=10.7.0", server, libs, none, false, "no trial load"},
		"an image that is quiet": {"linux/arm64;sm=8.7;trt=10.3.0", server, "", none, false, "does not say"},
		"no image":               {"linux/arm64;sm=8.7;trt=10.3.0", nil, libs, none, false, "not tried"},
	} {
		t.Run(name, func(t *testing.T) {
			files := slot.NewMem()
			st, err := state.Open(files)
			if err != nil {
				t.Fatal(err)
			}
			rt := &imageOf{Runtime: mock.New(mock.Options{}), libraries: c.libs, trtexec: c.trtexec}
			o := withDefaults(Options{Host: &board{files: files, clock: time.Now}, Runtime: rt, Files: files})
			a := &Agent{opts: o, log: o.Logger, state: st, board: health.NewBoard(time.Now, func() {})}
			a.known.Store(&Facts{Target: host})
			made, err := ota.ParseTarget(c.made)
			if err != nil {
				t.Fatal(err)
			}
			plan := filepath.Join(t.TempDir(), "model.plan")
			said, err := (&engineCheck{a: a}).Check(t.Context(), manifest.Descriptor{}, plan, made, c.server)
			if refused := errors.Is(err, runtime.ErrIncompatible); refused != c.refused || (err != nil) != refused {
				t.Fatalf("%q, %v", said, err)
			}
			if text := said + errorText(err); !strings.Contains(text, c.says) {
				t.Errorf("%q does not say %q", text, c.says)
			}
			for _, r := range rt.ran {
				if r.Image != *c.server.Image || r.User != "1000" || r.GPU != "all" || len(r.Dirs) != 1 || r.Dirs[0] != filepath.Dir(plan) {
					t.Errorf("ran %+v", r)
				}
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
