package e2e

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/controlplane"
)

// TestProxyOnly: a site whose only way out is an HTTP CONNECT proxy, where not
// even the server's name resolves.
func TestProxyOnly(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *controlplane.Config) { c.PublicHost = proxyHost })
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	before := proxied.Load()
	d := s.boot("v1", func(o *agent.EnrollOptions) { o.ServerURL = "https://" + net.JoinHostPort(proxyHost, port) })
	if !strings.HasPrefix(d.opts.Identity.MQTTAddress, proxyHost) {
		t.Errorf("MQTT address %s", d.opts.Identity.MQTTAddress)
	}
	s.settle(d, "v2")
	d.serves()
	if n := proxied.Load() - before; n < 3 { // enrolment, MQTT, blobs
		t.Errorf("%d tunnels through the proxy", n)
	}
}

// TestIPv6Only: enrolment and update where there is no IPv4.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	probe, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	probe.Close()
	s := start(t, func(c *controlplane.Config) {
		c.HTTPAddr, c.DeviceAddr, c.MQTTAddr = "[::1]:0", "[::1]:0", "[::1]:0"
	})
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	d := s.boot("v1")
	if !strings.HasPrefix(d.opts.Identity.MQTTAddress, "[::1]:") || !strings.HasPrefix(d.opts.Identity.BlobURL, "https://[::1]:") {
		t.Errorf("addresses %s, %s", d.opts.Identity.MQTTAddress, d.opts.Identity.BlobURL)
	}
	s.settle(d, "v2")
	d.serves()
}

// TestClockOf1970: a board without a battery enrols, updates, and says that its
// clock is doubtful.
func TestClockOf1970(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	booted := time.Now()
	d := s.boot("v1", func(o *agent.EnrollOptions) {
		o.Now = func() time.Time { return time.Unix(12, 0).Add(time.Since(booted)) }
		o.Floor = booted.AddDate(0, 0, -60) // an image of two months ago, older than the server's certificate
	})
	until(t, "the control plane to know that the clock is doubtful", func() bool {
		return s.get(d.id).GetClockDoubtful() && s.condition(d.id, "clock-doubtful") != ""
	})
	s.awaitEvent(d.id, "clock", "", "doubtful")
	s.settle(d, "v2")
	d.serves()
	if trusted := d.status().TrustedTime; trusted.Before(booted.Add(-time.Hour)) {
		t.Errorf("trusted time is %s: it did not advance from what was signed", trusted)
	}
}
