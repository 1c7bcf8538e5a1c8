// Package load is the wire-level load generator: devices that are one TLS
// connection and one goroutine each, speak MQTT 3.1.1 by hand and send what a
// real agent sends. It needs no broker library of its own beyond the packet
// codec, and is imported by the skein-sim program and benchmarks only.
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/proto/wire"
)

// ErrRefused is returned when the broker answers a CONNECT or SUBSCRIBE with a refusal.
var ErrRefused = errors.New("broker refused")

const (
	keepalive = 300 * time.Second
	maxPacket = wire.MaxMessage + 1024
)

// Device is one connected wire-level device. Its methods may be called from
// one goroutine at a time beside Receive.
type Device struct {
	id   string
	conn net.Conn
	in   *bufio.Reader

	mu      sync.Mutex // guards out, nextID and pending
	out     bytes.Buffer
	nextID  uint16
	pending map[uint16]time.Time // packet id -> when it was published
}

// Dial opens an MQTT session as device id over conn: CONNECT with the last will
// on the device's own presence topic, and SUBSCRIBE to its own down topics.
func Dial(ctx context.Context, conn net.Conn, id string, will []byte) (*Device, error) {
	d := &Device{id: id, conn: conn, in: bufio.NewReaderSize(conn, 512), pending: map[uint16]time.Time{}}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	connect := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), Clean: true, Keepalive: uint16(keepalive.Seconds()), ClientIdentifier: id,
			WillFlag: true, WillQos: 1, WillTopic: wire.Topic(id, wire.UpPresence), WillPayload: will,
		},
	}
	if err := d.write(connect.ConnectEncode); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	head, body, err := d.read()
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if head.Type != packets.Connack || len(body) < 2 || body[1] != 0 {
		return nil, fmt.Errorf("%w: connect answered by packet type %d, %x", ErrRefused, head.Type, body)
	}
	sub := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 4, PacketID: d.packetID(),
		Filters: packets.Subscriptions{{Filter: wire.Topic(id, wire.DownDesired), Qos: 1}, {Filter: wire.Topic(id, wire.DownCmd), Qos: 1}},
	}
	if err := d.write(sub.SubscribeEncode); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	head, body, err = d.read()
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	if head.Type != packets.Suback || len(body) < 4 || body[2] >= 0x80 || body[3] >= 0x80 {
		return nil, fmt.Errorf("%w: subscribe answered by packet type %d, %x", ErrRefused, head.Type, body)
	}
	return d, conn.SetDeadline(time.Time{})
}

func (d *Device) packetID() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nextID++; d.nextID == 0 {
		d.nextID = 1
	}
	return d.nextID
}

func (d *Device) write(encode func(*bytes.Buffer) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out.Reset()
	if err := encode(&d.out); err != nil {
		return err
	}
	_, err := d.conn.Write(d.out.Bytes())
	return err
}

func (d *Device) read() (packets.FixedHeader, []byte, error) {
	var head packets.FixedHeader
	b, err := d.in.ReadByte()
	if err != nil {
		return head, nil, err
	}
	if err := head.Decode(b); err != nil {
		return head, nil, err
	}
	if head.Remaining, _, err = packets.DecodeLength(d.in); err != nil {
		return head, nil, err
	}
	if head.Remaining > maxPacket {
		return head, nil, fmt.Errorf("packet of %d bytes", head.Remaining)
	}
	body := make([]byte, head.Remaining)
	_, err = io.ReadFull(d.in, body)
	return head, body, err
}

// Publish sends payload with QoS 1; Receive sees the answer.
func (d *Device) Publish(kind wire.Kind, payload []byte, now time.Time) error {
	id := d.packetID()
	d.mu.Lock()
	d.pending[id] = now
	d.mu.Unlock()
	p := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 4, PacketID: id,
		TopicName: wire.Topic(d.id, kind), Payload: payload,
	}
	return d.write(p.PublishEncode)
}

// Ping keeps the session alive.
func (d *Device) Ping() error {
	p := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}, ProtocolVersion: 4}
	return d.write(p.PingreqEncode)
}

// Close ends the connection without DISCONNECT, as a cut cable does.
func (d *Device) Close() error { return d.conn.Close() }

// Receive reads until the connection ends. acked is called for every PUBACK
// with the time since the publish; message for every message from the control
// plane, which is acknowledged after it returns.
func (d *Device) Receive(acked func(time.Duration), message func(kind wire.Kind, payload []byte)) error {
	for {
		head, body, err := d.read()
		if err != nil {
			return err
		}
		switch head.Type {
		case packets.Puback:
			ack := packets.Packet{FixedHeader: head, ProtocolVersion: 4}
			if err := ack.PubackDecode(body); err != nil {
				return err
			}
			d.mu.Lock()
			sent, ok := d.pending[ack.PacketID]
			delete(d.pending, ack.PacketID)
			d.mu.Unlock()
			if ok {
				acked(time.Since(sent))
			}
		case packets.Publish:
			if err := d.receivePublish(head, body, message); err != nil {
				return err
			}
		}
	}
}

func (d *Device) receivePublish(head packets.FixedHeader, body []byte, message func(wire.Kind, []byte)) error {
	p := packets.Packet{FixedHeader: head, ProtocolVersion: 4}
	if err := p.PublishDecode(body); err != nil {
		return err
	}
	if _, kind, err := wire.ParseTopic(p.TopicName); err == nil {
		message(kind, p.Payload)
	}
	if head.Qos == 0 {
		return nil
	}
	ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, ProtocolVersion: 4, PacketID: p.PacketID}
	return d.write(ack.PubackEncode)
}
