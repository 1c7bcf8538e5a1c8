package tap

import (
	"net/http"
	"net/url"
	"strings"
)

// call is what an HTTP request asks for.
type call uint8

const (
	callServer   call = iota + 1 // of the server: metadata, health
	callModel                    // of a model: metadata, readiness, statistics
	callInfer                    // inference with one answer
	callGenerate                 // Triton's generate extension, an answer or a stream
)

// route is a request whose path was understood. Only paths that are built from
// it reach a server, never the one that was sent.
type route struct {
	call           call
	model, version string
	tail           string // what follows model and version, "infer" for example
	path           string // of callServer
}

// refusal is an answer that the tap gives itself.
type refusal struct {
	status int
	reason string
}

var (
	notFound  = &refusal{http.StatusNotFound, "no such endpoint: the tap serves /v2/health, /v2/models and inference"}
	badPath   = &refusal{http.StatusBadRequest, "the path is not in its plain form"}
	wrongVerb = &refusal{http.StatusMethodNotAllowed, "the method is not the endpoint's"}
	forbidden = &refusal{http.StatusForbidden, "model control, shared memory, logging and tracing are not for applications: the agent alone controls the server"}
)

// forbiddenHeads are the first words below /v2 of what is never forwarded.
var forbiddenHeads = []string{"repository", "systemsharedmemory", "cudasharedmemory", "logging", "trace"}

// parsePath understands a request by its escaped path.
func parsePath(method, escaped string) (route, *refusal) {
	words, ref := pathWords(escaped)
	if ref != nil {
		return route{}, ref
	}
	if len(words) == 0 || words[0] != "v2" {
		return route{}, notFound
	}
	words = words[1:]
	if len(words) > 0 {
		for _, f := range forbiddenHeads {
			if strings.EqualFold(words[0], f) {
				return route{}, forbidden
			}
		}
	}
	read := method == http.MethodGet || method == http.MethodHead
	switch p := strings.Join(words, "/"); p {
	case "", "health/live", "health/ready":
		if !read {
			return route{}, wrongVerb
		}
		return route{call: callServer, path: strings.TrimSuffix("/v2/"+p, "/")}, nil
	}
	if words[0] != "models" || len(words) < 2 {
		return route{}, notFound
	}
	r := route{model: words[1]}
	words = words[2:]
	if len(words) >= 2 && words[0] == "versions" {
		r.version, words = words[1], words[2:]
	}
	r.tail = strings.Join(words, "/")
	switch r.tail {
	case "", "ready", "config", "stats":
		r.call = callModel
	case "infer":
		r.call, read = callInfer, method == http.MethodPost
	case "generate", "generate_stream":
		r.call, read = callGenerate, method == http.MethodPost
	case "trace/setting":
		return route{}, forbidden
	default:
		return route{}, notFound
	}
	if !read {
		return route{}, wrongVerb
	}
	return r, nil
}

// pathWords splits a path, refusing all that two readers could read differently.
func pathWords(escaped string) ([]string, *refusal) {
	if !strings.HasPrefix(escaped, "/") || len(escaped) > 1024 {
		return nil, badPath
	}
	if escaped == "/v2/" { // as clients write it
		return []string{"v2"}, nil
	}
	words := strings.Split(escaped[1:], "/")
	for i, w := range words {
		plain, err := url.PathUnescape(w)
		if err != nil || plain == "" || plain == "." || plain == ".." || strings.ContainsAny(plain, "/\\;?#%") {
			return nil, badPath
		}
		for _, c := range []byte(plain) {
			if c < ' ' || c == 0x7f {
				return nil, badPath
			}
		}
		words[i] = plain
	}
	return words, nil
}

// target is the path at a server that knows the model by these names.
func (r route) target(model, version string) string {
	if r.call == callServer {
		return r.path
	}
	var b strings.Builder
	b.WriteString("/v2/models/")
	b.WriteString(url.PathEscape(model))
	if version != "" {
		b.WriteString("/versions/")
		b.WriteString(url.PathEscape(version))
	}
	if r.tail != "" {
		b.WriteString("/")
		b.WriteString(r.tail)
	}
	return b.String()
}
