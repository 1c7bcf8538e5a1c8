package serving

import (
	"cmp"
	"net"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Labels of a server by which it is known again.
const (
	labelWorkload = "dev.skein.workload"
	labelHTTP     = "dev.skein.http"
	labelGRPC     = "dev.skein.grpc"
	labelMetrics  = "dev.skein.metrics"
	labelFolder   = "dev.skein.folder"
)

// serverName is the name of a workload's server.
func serverName(id string) string {
	safe := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(id))
	return "skein-" + safe[:min(len(safe), 60)]
}

// specOf is what the release says, or nothing.
func specOf(w runtime.Workload) manifest.Workload {
	if w.Spec == nil {
		return manifest.Workload{}
	}
	return *w.Spec
}

// ServerOf names the dialect of a workload.
func ServerOf(w runtime.Workload) string { return cmp.Or(specOf(w).Server, manifest.ServerV2) }

// words are the command and the environment before placeholders are replaced.
func words(w runtime.Workload, command []string) (args []string, env map[string]string) {
	spec := specOf(w)
	args = spec.Args
	if len(args) == 0 && spec.Image == nil {
		args = command
	}
	return args, spec.Env
}

// speaks says which protocols a server is told to speak: by the placeholders
// of its command; one that names none speaks HTTP, where its environment says.
func speaks(args []string, env map[string]string) (http, grpc, metrics bool) {
	all := slices.Clone(args)
	for _, v := range env {
		all = append(all, v)
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(all, func(s string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return strings.Contains(s, n) })
		})
	}
	http, grpc = has("{http}", "{http-port}", "{addr}"), has("{grpc}", "{grpc-port}")
	return http || !grpc, grpc, has("{metrics}", "{metrics-port}")
}

// render fills the placeholders in and adds the parameters to the environment.
func render(g *Generation, start Start, labels map[string]string) Spec {
	w := g.Workload
	pairs := []string{
		"{addr}", g.Ports.HTTP, "{http}", g.Ports.HTTP, "{grpc}", g.Ports.GRPC, "{metrics}", g.Ports.Metrics,
		"{http-port}", port(g.Ports.HTTP), "{grpc-port}", port(g.Ports.GRPC), "{metrics-port}", port(g.Ports.Metrics),
		"{dir}", w.Dir, "{model-file}", w.ModelFile, "{model}", w.Model, "{version}", w.Version, "{id}", w.ID,
		"{repository}", start.Repository,
	}
	replace := strings.NewReplacer(pairs...)
	s := Spec{Name: g.Name, Workload: w, Dirs: append([]string{w.Dir}, start.Dirs...), Labels: labels}
	for _, a := range append(slices.Clone(g.args), start.Args...) {
		s.Args = append(s.Args, replace.Replace(a))
	}
	for k, v := range g.env {
		s.Env = append(s.Env, k+"="+replace.Replace(v))
	}
	s.Env = append(s.Env, parameters(w.Params)...)
	slices.Sort(s.Env)
	return s
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// parameters turns them into variables; a key's other characters become
// underscores.
func parameters(params map[string]string) []string {
	out := make([]string, 0, len(params))
	for k, v := range params {
		name := strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
				return c
			}
			return '_'
		}, strings.ToLower(k))
		out = append(out, "SKEIN_PARAM_"+strings.ToUpper(name)+"="+v)
	}
	return out
}
