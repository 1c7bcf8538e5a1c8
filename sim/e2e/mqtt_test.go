package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/proto/wire"
)

// raw is an MQTT 3.1.1 client that says whatever it is told to.
type raw struct {
	t    testing.TB
	id   string
	conn net.Conn
	in   *bufio.Reader
	next uint16
}

// errCut is returned when the broker ends the connection.
var errCut = errors.New("the broker ended the connection")

// tlsAs is the client side of TLS with a device's certificate.
func tlsAs(t testing.TB, id *agent.Identity) *tls.Config {
	t.Helper()
	roots, err := id.Roots()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*id.TLSCertificate()}}
}

// dial opens a TLS connection to the broker with the device's certificate.
func (s *server) dial(id *agent.Identity) (*raw, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.mqtt, tlsAs(s.t, id))
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { conn.Close() })
	return over(s.t, conn, id.DeviceID), nil
}

func over(t testing.TB, conn net.Conn, id string) *raw {
	return &raw{t: t, id: id, conn: conn, in: bufio.NewReader(conn)}
}

// honest is how a device connects.
func honest(id string) packets.ConnectParams {
	return packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: id}
}

// connect says CONNECT and returns the code of the answer.
func (r *raw) connect(c packets.ConnectParams) (byte, error) {
	p := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4, Connect: c}
	_, body, err := r.ask(p.ConnectEncode, packets.Connack)
	if err != nil {
		return 0, err
	}
	return body[1], nil
}

// publish says PUBLISH with QoS 1 and waits for the acknowledgement.
func (r *raw) publish(topic string, payload []byte) error {
	r.next++
	p := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 4, PacketID: r.next, TopicName: topic, Payload: payload}
	_, _, err := r.ask(p.PublishEncode, packets.Puback)
	return err
}

// up publishes on one of the device's own topics.
func (r *raw) up(kind wire.Kind, v any) error {
	b, err := wire.Marshal(v)
	if err != nil {
		return err
	}
	return r.publish(wire.Topic(r.id, kind), b)
}

// subscribe returns the broker's code: 0x80 is refused.
func (r *raw) subscribe(filter string) (byte, error) {
	r.next++
	p := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 4, PacketID: r.next,
		Filters: packets.Subscriptions{{Filter: filter, Qos: 1}}}
	_, body, err := r.ask(p.SubscribeEncode, packets.Suback)
	if err != nil {
		return 0, err
	}
	return body[2], nil
}

// ask writes a packet and reads until one of the given type comes.
func (r *raw) ask(encode func(*bytes.Buffer) error, answer byte) (packets.FixedHeader, []byte, error) {
	var b bytes.Buffer
	if err := encode(&b); err != nil {
		return packets.FixedHeader{}, nil, err
	}
	if _, err := r.conn.Write(b.Bytes()); err != nil {
		return packets.FixedHeader{}, nil, fmt.Errorf("%w: %w", errCut, err)
	}
	return r.await(answer)
}

// await reads packets until one of the type comes.
func (r *raw) await(kind byte) (head packets.FixedHeader, body []byte, err error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return head, nil, fmt.Errorf("%w: %w", errCut, err)
	}
	for head.Type != kind {
		b, err := r.in.ReadByte()
		if err != nil {
			return head, nil, cut(err)
		}
		if err := head.Decode(b); err != nil {
			return head, nil, err
		}
		if head.Remaining, _, err = packets.DecodeLength(r.in); err != nil {
			return head, nil, err
		}
		body = make([]byte, head.Remaining)
		if _, err := io.ReadFull(r.in, body); err != nil {
			return head, nil, cut(err)
		}
	}
	return head, body, nil
}

// cut tells an end of the connection from a peer that is merely silent.
func cut(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return fmt.Errorf("no answer: %w", err)
	}
	return fmt.Errorf("%w: %w", errCut, err)
}

// session opens an honest session.
func (s *server) session(id *agent.Identity) *raw {
	s.t.Helper()
	r, err := s.dial(id)
	if err != nil {
		s.t.Fatal(err)
	}
	if code, err := r.connect(honest(id.DeviceID)); err != nil || code != 0 {
		s.t.Fatalf("honest session: code %d, %v", code, err)
	}
	return r
}

// hello says hello as a device that holds g.
func (r *raw) hello(boot, counter uint64, g wire.Generation) error {
	return r.up(wire.UpHello, &wire.Hello{ID: wire.MessageID{Boot: boot, Counter: counter}, Held: wire.Held{Generation: g}, Target: testTarget, Capability: wire.CapabilityVersion})
}

// desiredIn reads the desired state in a PUBLISH packet, whoever signed it.
func desiredIn(t testing.TB, head packets.FixedHeader, body []byte) (d wire.Desired) {
	t.Helper()
	p := packets.Packet{FixedHeader: head, ProtocolVersion: 4}
	if err := p.PublishDecode(body); err != nil {
		t.Fatal(err)
	}
	var m cborMessage
	if err := wire.Unmarshal(p.Payload[1:], &m); err != nil { // behind the tag of COSE_Sign1
		t.Fatal(err)
	}
	if err := wire.Unmarshal(m.Payload, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// cborMessage is COSE_Sign1 without its tag.
type cborMessage struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int]any
	Payload     []byte
	Signature   []byte
}
