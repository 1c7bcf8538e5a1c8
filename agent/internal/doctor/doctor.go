// Package doctor looks at a host before it is enrolled, or when something is
// wrong with it, and says what to mend. Each check reads files below a root,
// runs short commands, or opens a connection; none changes anything. It owns the
// list of checks; cmd/skein-agent prints it.
package doctor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/target"
)

// Severity grades a finding.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Note    Severity = "note"    // good to know
	Warning Severity = "warning" // something will not work, or not well
	Error   Severity = "error"   // the device cannot be enrolled or cannot serve
)

// Finding is what one check found.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	Fix      string   `json:"fix,omitempty"`
}

// Options say where to look.
type Options struct {
	Root     string // empty is /
	StateDir string
	// Server is the device port, https://HOST:PORT; empty is not asked.
	Server string
	// Listen are addresses that the agent will listen on.
	Listen []string
	// Containerd is its socket; empty means that no containers are wanted.
	Containerd string
	// Containers asks the driver of containers what it lacks; nil asks nobody.
	Containers func(ctx context.Context) []Finding
	// Run runs a command of the host, LookPath finds one; nil runs none.
	Run      target.Run
	LookPath func(string) (string, error)
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)
	Now      func() time.Time
	// Floor is a time that has certainly passed.
	Floor time.Time
	// Root of the user, for what only root may do.
	IsRoot bool
	// Live means that the kernel may be asked too, not files below Root alone.
	Live bool
}

// host is one examination.
type host struct {
	Options
	board target.Info
	out   []Finding
}

// Examine runs all checks, in order.
func Examine(ctx context.Context, o Options) []Finding {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	h := &host{Options: o}
	for _, check := range []func(context.Context){
		h.identity, h.disk, h.permissions, h.clock, h.network, h.server, h.ports, h.containers, h.gpu, h.kernel, h.memory, h.tools,
	} {
		if ctx.Err() != nil {
			break
		}
		check(ctx)
	}
	return h.out
}

// Worst is the gravest severity among findings.
func Worst(all []Finding) Severity {
	order := []Severity{OK, Note, Warning, Error}
	worst := OK
	for _, f := range all {
		if slices.Index(order, f.Severity) > slices.Index(order, worst) {
			worst = f.Severity
		}
	}
	return worst
}

func (h *host) say(check string, s Severity, message, fix string) {
	h.out = append(h.out, Finding{Check: check, Severity: s, Message: message, Fix: fix})
}

func (h *host) ok(check, message string) { h.say(check, OK, message, "") }

func (h *host) path(name string) string { return filepath.Join(h.Root, name) }

func (h *host) text(name string) string {
	raw, err := os.ReadFile(h.path(name))
	if err != nil {
		return ""
	}
	return strings.Trim(string(raw), "\x00 \n\t")
}

func (h *host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

func (h *host) glob(pattern string) []string {
	found, err := filepath.Glob(h.path(pattern))
	if err != nil { // the pattern is ours
		return nil
	}
	return found
}

// jetson reports whether the device tree is of a Jetson.
func (h *host) jetson() bool {
	return strings.Contains(h.text("proc/device-tree/compatible"), "nvidia,tegra") || h.exists("etc/nv_tegra_release")
}
