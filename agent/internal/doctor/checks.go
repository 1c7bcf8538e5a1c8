package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/target"
)

func (h *host) identity(ctx context.Context) {
	i, err := target.Probe(ctx, target.Options{Root: h.Root, Arch: runtime.GOARCH, Run: h.Run})
	if err != nil {
		h.say("identity", Error, "what this machine is cannot be read: "+err.Error(), "run doctor as root; /proc/device-tree and /etc must be readable")
		return
	}
	h.board = i
	h.ok("identity", fmt.Sprintf("%s, target %s", orUnknown(i.Model), i.Target))
	if i.Serial == "" {
		h.say("serial", Note, "no serial number was found", "give --serial at enrolment, so that the device can be told from its siblings")
	}
	if !h.jetson() {
		return
	}
	release, _, _ := strings.Cut(h.text("etc/nv_tegra_release"), "\n")
	switch {
	case release == "" && i.Target.Attrs["l4t"] == "":
		h.say("l4t", Warning, "the device tree is of a Jetson, and no L4T release was found", "install nvidia-l4t-core, or restore /etc/nv_tegra_release: engines are bound to it")
	case i.Target.Attrs["l4t"] == "":
		h.say("l4t", Warning, fmt.Sprintf("the L4T release is not understood: %.120q", release), "report the first line of /etc/nv_tegra_release")
	default:
		h.ok("l4t", "L4T "+i.Target.Attrs["l4t"])
	}
	if i.Target.Attrs["trt"] == "" {
		h.say("tensorrt", Note, "TensorRT is not installed on the host", "none is needed where a container brings it; else install nvidia-jetpack or libnvinfer")
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown machine"
	}
	return s
}

// parent is the deepest folder of path that exists.
func parent(path string) string {
	for path != filepath.Dir(path) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func (h *host) permissions(context.Context) {
	dir := h.StateDir
	if dir == "" {
		return
	}
	if !h.IsRoot {
		h.say("user", Note, "doctor does not run as root", "some checks see more as root: sudo skein-agent doctor")
	}
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		h.ok("state", dir+" does not exist yet and is made at enrolment")
		return
	case err != nil:
		h.say("state", Error, err.Error(), "let the agent's user read it, or give another --state")
		return
	case !st.IsDir():
		h.say("state", Error, dir+" is no folder", "remove it, or give another --state")
		return
	case st.Mode().Perm()&0o022 != 0:
		h.say("state", Error, fmt.Sprintf("others may write in %s (%s)", dir, st.Mode().Perm()), "chmod go-w "+dir)
	}
	key := filepath.Join(dir, "identity", "key.pem")
	if st, err := os.Stat(key); err == nil && st.Mode().Perm()&0o077 != 0 {
		h.say("key", Error, fmt.Sprintf("others may read %s (%s)", key, st.Mode().Perm()), "chmod 600 "+key+", then replace the device: its key may be known")
	} else if err == nil {
		h.ok("key", "only its owner may read "+key)
	}
}

func (h *host) clock(context.Context) {
	now := h.Now()
	if now.Before(h.Floor) {
		h.say("clock", Error, fmt.Sprintf("the clock says %s, which has certainly passed", now.UTC().Format(time.RFC3339)),
			"set it (timedatectl set-time, or let NTP through); the agent bears it, and says that it doubts its clock")
	} else {
		h.ok("clock", now.UTC().Format(time.RFC3339))
	}
	rtcs := h.glob("sys/class/rtc/rtc*")
	if len(rtcs) == 0 {
		h.say("rtc", Warning, "there is no real-time clock", "without one each start begins in the past until NTP answers; the agent keeps a floor")
	}
	for _, dir := range rtcs {
		name := filepath.Base(dir)
		raw, err := os.ReadFile(filepath.Join(dir, "since_epoch"))
		n, perr := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		switch {
		case err != nil || perr != nil:
			h.say("rtc", Warning, name+" cannot be read", "look for it in dmesg")
		case time.Unix(n, 0).Before(h.Floor):
			h.say("rtc", Warning, fmt.Sprintf("%s says %s: it lost its time", name, time.Unix(n, 0).UTC().Format(time.RFC3339)),
				"put a coin cell on the carrier board, then: hwclock --systohc. Some boards step the clock back to it seconds after the start; the agent bears that")
		default:
			h.ok("rtc", name+" keeps time")
		}
	}
	if h.Live {
		if synced, known := synchronized(); known && !synced {
			h.say("time-sync", Warning, "the kernel says that the clock is not synchronized", "enable NTP (timedatectl set-ntp true), or let UDP 123 through to a time server of the site")
		} else if known {
			h.ok("time-sync", "the clock is synchronized")
		}
	}
}

func (h *host) network(context.Context) {
	for i, line := range strings.Split(h.text("proc/net/route"), "\n") {
		f := strings.Fields(line)
		if i > 0 && len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			h.ok("network", "the default route is by "+f[0])
			return
		}
	}
	h.say("network", Warning, "there is no default route", "connect the network; what is committed runs without it, enrolment does not")
}

// server makes a connection as enrolment would. Who answers is known only with
// the claim, so nothing is sent.
func (h *host) server(ctx context.Context) {
	if h.Server == "" {
		return
	}
	u, err := url.Parse(h.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		h.say("server", Error, fmt.Sprintf("--server %q: want https://HOST:PORT", h.Server), "give the device port of the control plane, as https://fleet.example.com:8443")
		return
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", address)
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		h.say("server", Error, "the name of the server is not known: "+dns.Error(), "look at /etc/resolv.conf and the network's DNS, or give an address")
		return
	}
	if err != nil {
		h.say("server", Error, fmt.Sprintf("%s cannot be reached: %v", address, err), "let TCP out to it through firewall and router; HTTPS_PROXY names a proxy to the agent")
		return
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // whom to trust is in the claim: enrolment verifies it
	})
	if err := c.HandshakeContext(ctx); err != nil {
		h.say("server", Error, fmt.Sprintf("%s does not speak TLS 1.3: %v", address, err), "is it the device port (8443)? Something in between may break TLS")
		return
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	switch now := h.Now(); {
	case now.Before(leaf.NotBefore):
		h.say("server", Warning, fmt.Sprintf("%s answers; its certificate begins %s, after this clock", address, leaf.NotBefore.UTC().Format(time.RFC3339)), "set the clock")
	case now.After(leaf.NotAfter):
		h.say("server", Error, fmt.Sprintf("%s answers with a certificate that ended %s", address, leaf.NotAfter.UTC().Format(time.RFC3339)), "is the clock right? Else renew the server's certificate")
	default:
		h.ok("server", fmt.Sprintf("%s answers with TLS 1.3; its certificate (%s) is checked against the claim at enrolment", address, leaf.Subject.CommonName))
	}
}

func (h *host) ports(ctx context.Context) {
	for _, a := range h.Listen {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", a)
		if err != nil {
			h.say("ports", Warning, fmt.Sprintf("%s cannot be listened on: %v", a, err), "stop what uses it, or give another --peer-listen; a running agent uses it itself once it is a cache")
			continue
		}
		l.Close()
		h.ok("ports", a+" is free")
	}
}
