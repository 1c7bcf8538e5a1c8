package broker

import (
	"net"
	"net/url"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/skein-fleet/skein/proto/wire"
)

// A device that sends without end is slowed down to its rate after a burst, by
// size too; nothing of it is lost, and another device is not slowed down.
func TestOneDeviceIsSlowedDown(t *testing.T) {
	b, h := newBroker(t, Config{MessageRate: 20})
	connect := func(device string) mqtt.Client {
		o := mqtt.NewClientOptions().AddBroker("tcp://mem").SetClientID(device).SetCleanSession(true).SetProtocolVersion(4).SetAutoReconnect(false)
		o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return pair(t, b, device), nil })
		c := mqtt.NewClient(o)
		if tok := c.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
			t.Fatal(tok.Error())
		}
		t.Cleanup(func() { c.Disconnect(0) })
		return c
	}
	send := func(c mqtt.Client, device string, n, size int) time.Duration {
		began := time.Now()
		for range n {
			if tok := c.Publish(wire.Topic(device, wire.UpEvent), 1, false, make([]byte, size)); !tok.WaitTimeout(20*time.Second) || tok.Error() != nil {
				t.Fatal(tok.Error())
			}
		}
		return time.Since(began)
	}
	loud := connect(deviceA)
	send(loud, deviceA, 9, 150<<10) // 9 times 38 of the burst of 320: 22 too many
	if took := send(loud, deviceA, 5, 1); took < 200*time.Millisecond {
		t.Errorf("five more messages took %s, want a quarter of a second", took)
	}
	if took := send(connect(deviceB), deviceB, 20, 1); took > 2*time.Second {
		t.Errorf("another device's messages took %s", took)
	}
	h.until(t, "all messages", func() bool { return len(h.messages) >= 34 })
}
