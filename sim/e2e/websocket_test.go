package e2e

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
)

// TestHTTPSPortOnly: a site whose firewall lets nothing but the HTTPS port
// through. The device finds the way by itself, is updated, and comes back after
// the server was away.
func TestHTTPSPortOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	d := s.enroll()
	var err error
	d.opts.Link, err = agent.NewMQTTLink(agent.MQTTOptions{
		Identity: d.opts.Identity, Transport: agent.TransportAuto, BackoffMin: 20 * time.Millisecond, BackoffMax: 300 * time.Millisecond,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == d.opts.Identity.MQTTAddress {
				return nil, errors.New("a firewall is in the way")
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.settle(d.run(), "v1")
	s.stop()
	until(t, "the device to notice", func() bool { return d.status().Link != "connected" })
	s.run()
	until(t, "the device to come back", func() bool { return d.status().Link == "connected" })
	s.settle(d, "v2")
	d.serves()
}
