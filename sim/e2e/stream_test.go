package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	mrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestBrokerPortOnly: a site whose firewall lets nothing but the broker's port
// through, once the device is enrolled, and of whose messages each fifth from
// the control plane is lost. Trust metadata and blobs come over the link, and
// device and control plane say by which way how much came.
func TestBrokerPortOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2, pad: 2 << 20})
	d := s.enroll()
	var refused, lost atomic.Int64
	https := strings.TrimPrefix(d.opts.Identity.BlobURL, "https://")
	d.opts.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == https {
			refused.Add(1)
			return nil, errors.New("a firewall is in the way")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	rng := mrand.New(mrand.NewPCG(3, 3))
	d.tap.drop = func(wire.Kind) bool {
		if rng.Float64() >= 0.2 {
			return false
		}
		lost.Add(1)
		return true
	}
	d.run()
	var fetched int64
	for _, name := range []string{"v1", "v2"} {
		s.settle(d, name)
		d.serves()
		st := d.status()
		if len(st.Sources) != 1 || st.Sources[0].Name != "mqtt" || st.Sources[0].Bytes != st.BytesFetched || st.BytesFetched == 0 {
			t.Errorf("%s: %d bytes, by %+v", name, st.BytesFetched, st.Sources)
		}
		fetched += st.BytesFetched
		until(t, name+": the control plane to know by which way", func() bool {
			v := s.get(d.id)
			return len(v.GetSources()) == 1 && v.GetSources()[0].GetName() == "mqtt" && v.GetSources()[0].GetBytes() == st.BytesFetched && v.GetBytesFetched() == st.BytesFetched
		})
	}
	until(t, "the control plane to know that HTTPS is blocked", func() bool { return strings.Contains(s.condition(d.id, "https-blocked"), "a firewall is in the way") })
	if refused.Load() == 0 || lost.Load() == 0 {
		t.Errorf("%d connections refused, %d messages lost", refused.Load(), lost.Load())
	}
	if n := s.metric("skein_stream_bytes_total", ""); n < float64(fetched) {
		t.Errorf("the server counts %v bytes over the link, the device %d", n, fetched)
	}
	s.kept(d)
}

// chunk reads the next answer of the control plane on down/chunk.
func (r *raw) chunk(id *agent.Identity) (c wire.Chunk) {
	r.t.Helper()
	for {
		head, body, err := r.await(packets.Publish)
		if err != nil {
			r.t.Fatal(err)
		}
		p := packets.Packet{FixedHeader: head, ProtocolVersion: 4}
		if err := p.PublishDecode(body); err != nil {
			r.t.Fatal(err)
		}
		if p.TopicName != wire.Topic(id.DeviceID, wire.DownChunk) {
			continue
		}
		if head.Qos != 0 {
			r.t.Errorf("down/chunk with QoS %d", head.Qos)
		}
		if err := wire.UnmarshalCanonical(p.Payload, &c); err != nil {
			r.t.Fatal(err)
		}
		return c
	}
}

// TestForeignBlobOverTheLink: over the link a device reads the blobs of its own
// releases, in the ranges that they have, and nothing else; what it may not is
// refused by name and told.
func TestForeignBlobOverTheLink(t *testing.T) {
	t.Parallel()
	s := start(t)
	own, foreign := s.release("v1", version{bias: 1}), s.release("v2", version{bias: 2})
	d := s.enroll()
	s.assign(d.id, "v1")
	r := s.session(d.opts.Identity)
	if code, err := r.subscribe(wire.Topic(d.id, wire.DownChunk)); err != nil || code == 0x80 {
		t.Fatalf("subscribe: %d, %v", code, err)
	}
	whole, err := os.ReadFile(s.blobFile(s.onnxOf(own)))
	if err != nil {
		t.Fatal(err)
	}
	stream := uint64(0)
	get := func(of ota.Digest, change func(g *wire.Get)) wire.Chunk {
		t.Helper()
		stream++
		g := &wire.Get{ID: wire.MessageID{Boot: 5, Counter: stream}, Stream: stream, Digest: of.Sum(), Length: int64(len(whole)), Block: 1024, Run: 1, Seq: 1, Wanted: []byte{1}}
		change(g)
		if err := r.up(wire.UpGet, g); err != nil {
			t.Fatal(err)
		}
		for {
			if c := r.chunk(d.opts.Identity); c.Stream == stream {
				return c
			}
		}
	}
	plain := func(*wire.Get) {}
	if c := get(s.onnxOf(own), plain); c.Refused != 0 || c.Size != int64(len(whole)) || !bytes.Equal(c.Data, whole[:min(1024, len(whole))]) {
		t.Errorf("own blob: %s %q, %d bytes of %d", c.Refused, c.Message, len(c.Data), c.Size)
	}
	timestamp := get(s.onnxOf(own), func(g *wire.Get) { g.Digest, g.Length, g.Name = nil, 0, "timestamp.json" })
	if sum := sha256.Sum256(timestamp.Data); timestamp.Refused != 0 || int64(len(timestamp.Data)) == timestamp.Size && !bytes.Equal(sum[:8], timestamp.Tag) {
		t.Errorf("timestamp.json: %s %q, %d bytes of %d", timestamp.Refused, timestamp.Message, len(timestamp.Data), timestamp.Size)
	}
	for name, c := range map[string]struct {
		got  wire.Chunk
		want wire.Refusal
	}{
		"blob of another release": {get(s.onnxOf(foreign), plain), wire.RefusedForbidden},
		"index of another":        {get(ota.Digest(foreign.GetDigest()), plain), wire.RefusedForbidden},
		"unknown blob":            {get("sha256:"+ota.Digest(zeros), plain), wire.RefusedForbidden},
		"past the end":            {get(s.onnxOf(own), func(g *wire.Get) { g.Length++ }), wire.RefusedMalformed},
		"overflowing":             {get(s.onnxOf(own), func(g *wire.Get) { g.Offset, g.Length = 1<<62, 1<<62 }), wire.RefusedMalformed},
		"a block past the end":    {get(s.onnxOf(own), func(g *wire.Get) { g.Base = 1 << 40 }), wire.RefusedMalformed},
		"a key of the server":     {get(s.onnxOf(own), func(g *wire.Get) { g.Digest, g.Length, g.Name = nil, 0, "../keys/director.key" }), wire.RefusedNotFound},
		"another file":            {get(s.onnxOf(own), func(g *wire.Get) { g.Digest, g.Length, g.Name = nil, 0, "skein.db" }), wire.RefusedNotFound},
	} {
		if c.got.Refused != c.want || len(c.got.Data) > 0 {
			t.Errorf("%s: %s %q with %d bytes, want %s", name, c.got.Refused, c.got.Message, len(c.got.Data), c.want)
		}
	}
	s.awaitEvent(d.id, "stream-refused", "", "no release of this device")
	s.awaitEvent(d.id, "stream-refused", "malformed", "range")
	// Bytes that are no request end nothing.
	if err := r.publish(wire.Topic(d.id, wire.UpGet), []byte{0xff}); err != nil {
		t.Fatal(err)
	}
	s.awaitEvent(d.id, "malformed", "", "up/get")
	if c := get(s.onnxOf(own), plain); c.Refused != 0 {
		t.Errorf("own blob after all that: %s %q", c.Refused, c.Message)
	}
}
