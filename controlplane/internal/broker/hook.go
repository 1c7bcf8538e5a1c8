package broker

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/proto/wire"
)

// liveWindow: a session that spoke within it was alive when another one took
// its place.
const liveWindow = 5 * time.Second

// hook is where mochi asks and tells.
type hook struct {
	mqtt.HookBase
	b *Broker
}

func (h *hook) ID() string { return "skein" }

func (h *hook) Provides(what byte) bool {
	switch what {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnPublish,
		mqtt.OnWillSent, mqtt.OnDisconnect, mqtt.OnPublishDropped, mqtt.OnPacketSent:
		return true
	}
	return false
}

func connOf(cl *mqtt.Client) *conn {
	c, _ := cl.Net.Conn.(*conn)
	return c
}

// notice reports what was refused; when that cannot be stored it is in the log.
func (h *hook) notice(c *conn, kind, message, attack string) {
	h.b.metrics.refused.WithLabelValues(kind).Inc()
	if err := h.b.cfg.Handler.Noticed(h.b.ctx, c.id.Tenant, c.id.Device, kind, message, attack); err != nil {
		h.b.cfg.Logger.Error("store event", "device", c.id.Device, "kind", kind, "message", message, "error", err)
	}
}

// OnConnect clamps the keepalive: 0 would switch the read deadline off, and
// one and a half times a large one overflows mochi's 16 bits.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	limit := uint16(min(h.b.cfg.MaxKeepalive/time.Second, 43000))
	if cl.State.Keepalive == 0 || cl.State.Keepalive > limit {
		cl.State.Keepalive = limit
	}
	return nil
}

// OnConnectAuthenticate admits a device: by its record, its client id, its
// clean session and its will, which mochi checks nowhere else.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	c := connOf(cl)
	if c == nil {
		return false
	}
	if err := h.b.cfg.Handler.Admit(c.id.Tenant, c.id.Device); err != nil {
		h.b.metrics.refused.WithLabelValues("not-admitted").Inc()
		h.b.cfg.Logger.Info("device refused", "device", c.id.Device, "remote", cl.Net.Remote, "error", err)
		return false
	}
	switch {
	case cl.ID != c.id.Device:
		h.notice(c, "foreign-client-id", fmt.Sprintf("from %s: client id %.64q, certificate is for %s", cl.Net.Remote, cl.ID, c.id.Device), "identity")
		return false
	case !pk.Connect.Clean:
		h.notice(c, "persistent-session", "asked for a persistent session; the link has clean sessions only", "")
		return false
	case cl.Properties.Will.Flag != 0 && !ownWill(c.id.Device, cl.Properties.Will):
		h.notice(c, "foreign-will", fmt.Sprintf("will on topic %.128q, retain %v", cl.Properties.Will.TopicName, cl.Properties.Will.Retain), "identity")
		return false
	}
	return true
}

func ownWill(device string, w mqtt.Will) bool {
	return w.TopicName == wire.Topic(device, wire.UpPresence) && !w.Retain
}

// OnSessionEstablish numbers the session and reports one that takes the place
// of a live one: somebody else may have the key.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	if old := h.b.session(cl.ID); old != nil {
		if oc := connOf(old); oc != nil {
			idle := time.Since(time.Unix(0, oc.heard.Load()))
			if idle < liveWindow || host(old.Net.Remote) != host(cl.Net.Remote) {
				h.notice(c, "second-session", fmt.Sprintf("a session from %s takes the place of a live one from %s, silent for %s: if this repeats, the key is in two places",
					cl.Net.Remote, old.Net.Remote, idle.Round(time.Millisecond)), "identity")
			}
		}
	}
	c.session = h.b.sessions.Add(1)
	h.b.cfg.Handler.Session(c.id.Tenant, c.id.Device, c.session, true)
}

// OnSessionEstablished makes the session known to Publish and Kick. A device
// that was revoked meanwhile is cut off: its record is denied before Kick looks.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	if c == nil {
		return
	}
	h.b.mu.Lock()
	h.b.live[c.id.Device] = cl
	h.b.mu.Unlock()
	if err := h.b.cfg.Handler.Admit(c.id.Tenant, c.id.Device); err != nil {
		cl.Stop(err)
	}
}

func host(remote string) string {
	h, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return h
}

// OnACLCheck lets a device write its own up/ topics and read its own down/.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c := connOf(cl)
	if c == nil {
		return cl.Net.Inline
	}
	if allowed(c.id.Device, topic, write) {
		return true
	}
	verb := "subscribe to"
	if write {
		verb = "publish to"
	}
	h.notice(c, "foreign-topic", fmt.Sprintf("tried to %s %.128q", verb, topic), "identity")
	return false
}

func allowed(device, topic string, write bool) bool {
	if write {
		id, kind, err := wire.ParseTopic(topic)
		return err == nil && id == device && strings.HasPrefix(string(kind), "up/")
	}
	rest, ok := strings.CutPrefix(topic, wire.Topic(device, "down/"))
	if !ok {
		return false
	}
	switch wire.Kind("down/" + rest) {
	case wire.DownDesired, wire.DownCmd, wire.DownChunk, wire.DownBuild, "down/#", "down/+":
		return true
	}
	return false
}

// OnPublish stores a message before it is acknowledged. Nobody subscribes to
// up/ topics, so mochi need not look for anybody.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if c == nil { // from Publish
		return pk, nil
	}
	_, kind, err := wire.ParseTopic(pk.TopicName)
	if err != nil {
		return pk, packets.CodeSuccessIgnore
	}
	// One device that sends without end is slowed down, and nobody else is.
	if d := c.pace.take(time.Now(), 1+len(pk.Payload)/4096); d > 0 {
		h.b.metrics.slowed.Inc()
		if !wait(h.b.ctx, d) {
			return pk, packets.ErrRejectPacket
		}
	}
	err = h.b.cfg.Handler.Message(h.b.ctx, c.id.Tenant, c.id.Device, kind, pk.Payload)
	if err != nil {
		// No acknowledgement, and the connection ends: the device sends it
		// again when it is back.
		h.b.metrics.unstored.Inc()
		h.b.cfg.Logger.Warn("message not stored", "device", c.id.Device, "kind", string(kind), "error", err)
		cl.Stop(err)
		return pk, packets.ErrRejectPacket
	}
	pk.FixedHeader.Retain = false
	return pk, packets.CodeSuccessIgnore
}

// OnWillSent takes the last will, which passes no other hook.
func (h *hook) OnWillSent(cl *mqtt.Client, pk packets.Packet) {
	c := connOf(cl)
	if c == nil {
		return
	}
	if err := h.b.cfg.Handler.Message(h.b.ctx, c.id.Tenant, c.id.Device, wire.UpPresence, pk.Payload); err != nil {
		h.b.cfg.Logger.Debug("last will not used", "device", c.id.Device, "error", err)
	}
}

// OnDisconnect tells of the end, and why when it was the device's fault.
func (h *hook) OnDisconnect(cl *mqtt.Client, err error, _ bool) {
	c := connOf(cl)
	if c == nil {
		return
	}
	h.b.mu.Lock()
	if h.b.live[c.id.Device] == cl {
		delete(h.b.live, c.id.Device)
	}
	h.b.mu.Unlock()
	if errors.Is(err, packets.ErrPacketTooLarge) {
		h.notice(c, "oversize", fmt.Sprintf("sent a packet over %d bytes; the connection was closed", wire.MaxMessage+1024), "oversize")
	}
	h.b.cfg.Handler.Session(c.id.Tenant, c.id.Device, c.session, false)
}

// OnPublishDropped counts what a device's full queue cost; the desired state
// is sent again.
func (h *hook) OnPublishDropped(cl *mqtt.Client, pk packets.Packet) {
	h.b.metrics.droppedOut.Inc()
	h.left(cl, pk)
}

// OnPacketSent tells who paces what is sent that a message has left.
func (h *hook) OnPacketSent(cl *mqtt.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type == packets.Publish {
		h.left(cl, pk)
	}
}

func (h *hook) left(cl *mqtt.Client, pk packets.Packet) {
	if c := connOf(cl); c != nil && pk.FixedHeader.Qos == 0 {
		h.b.cfg.Sent(c.id.Device, len(pk.Payload))
	}
}
