package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// startBuilder enrols a device that is a builder on the wire and builds what it
// is given: builder NAME TARGET [FAIL-CLASS]. What it uploads is text.
func startBuilder(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	key, csr := newKey(ts)
	_, seal, err := trust.NewSealKey()
	ts.Check(err)
	ids, err := w.server.EnrollLocal(w.ctx, []controlplane.LocalDevice{{CSR: csr, Name: args[0], Serial: args[0], Hardware: "Orin Nano", Target: args[1], SealKey: seal}})
	ts.Check(err)
	signer, err := trust.NewSigner(key)
	ts.Check(err)
	block, _ := pem.Decode(w.server.CAPEM())
	ca, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	b := &paperBuilder{id: ids[0].Device, target: args[1], signer: signer, base: "https://" + w.server.Addrs().Device.String(), leases: make(chan wire.BuildLease, 64)}
	if len(args) > 2 {
		b.fails = args[2]
	}
	conf := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{{Certificate: ids[0].Chain, PrivateKey: key}}}
	b.http = &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
	b.device = &device{id: b.id, signer: signer}
	b.connect(ts, w.server.Addrs().MQTT.String(), conf)
	w.devices[args[0]] = b.device
	ts.Setenv(strings.ToUpper(strings.ReplaceAll(args[0], "-", "_")), b.id)
	done := make(chan struct{})
	ts.Defer(func() {
		b.client.Disconnect(100)
		close(b.leases)
		<-done
		b.http.CloseIdleConnections()
	})
	go func() {
		defer close(done)
		b.work()
	}()
}

// paperBuilder is what a builder is on the wire, and nothing behind it.
type paperBuilder struct {
	device *device
	id     string
	target string
	fails  string
	signer *trust.Signer
	base   string
	http   *http.Client
	client mqtt.Client
	leases chan wire.BuildLease
}

func (b *paperBuilder) connect(ts *testscript.TestScript, addr string, conf *tls.Config) {
	o := mqtt.NewClientOptions().AddBroker("ssl://" + addr).SetClientID(b.id).SetTLSConfig(conf).SetProtocolVersion(4).SetCleanSession(true).SetAutoReconnect(false)
	b.client = mqtt.NewClient(o)
	wait := func(t mqtt.Token) {
		t.Wait()
		ts.Check(t.Error())
	}
	wait(b.client.Connect())
	wait(b.client.Subscribe(wire.Topic(b.id, wire.DownBuild), 1, func(_ mqtt.Client, m mqtt.Message) {
		defer func() { _ = recover() }() // the script has ended
		if l, ok := unsealed(m.Payload()); ok {
			b.leases <- l
		}
	}))
	hello, err := wire.Marshal(&wire.Hello{ID: b.device.next(), Target: b.target, Hardware: "Orin Nano", Capability: wire.CapabilityVersion, Clock: wire.Clock{UnixMilli: time.Now().UnixMilli()}})
	ts.Check(err)
	wait(b.client.Publish(wire.Topic(b.id, wire.UpHello), 1, false, hello))
}

func (b *paperBuilder) say(m wire.Build) {
	m.ID = b.device.next()
	raw, err := wire.Marshal(&m)
	if err == nil {
		b.client.Publish(wire.Topic(b.id, wire.UpBuild), 1, false, raw).Wait()
	}
}

func (b *paperBuilder) work() {
	for l := range b.leases {
		switch l.State {
		case wire.LeaseNone, wire.LeaseStop, wire.LeaseStored:
			if l.Every <= 1 || l.State != wire.LeaseNone {
				b.say(wire.Build{Kind: wire.BuildAsk, Target: b.target})
			}
		case wire.LeaseBuild:
			b.build(l)
		}
	}
}

func (b *paperBuilder) build(l wire.BuildLease) {
	b.say(wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: l.Attempt, Step: "build", Percent: 10})
	text := "[I] attempt " + fmt.Sprint(l.Attempt) + " of \x1b[31mtrtexec\n"
	b.say(wire.Build{Kind: wire.BuildLog, Job: l.Job, Attempt: l.Attempt, Data: []byte(text)})
	if b.fails != "" {
		b.say(wire.Build{Kind: wire.BuildFailed, Job: l.Job, Attempt: l.Attempt, Class: b.fails, Message: "it said no"})
		return
	}
	var r wire.EngineRecord
	err := func() error {
		onnx, err := b.get(l.Work.ONNX.Digest)
		if err != nil {
			return err
		}
		plan := append([]byte("plan of "), onnx...)
		put := func(part string, data []byte) (wire.Blob, error) {
			d := ota.DigestOf(data)
			// Half of it first, as after a connection that broke.
			half := len(data) / 2
			if err := b.put(l, part, string(d), data[:half], fmt.Sprintf("0-%d", half-1), http.MethodPatch); err != nil {
				return wire.Blob{}, err
			}
			return wire.Blob{Digest: d.Sum(), Length: int64(len(data)), Name: part}, b.put(l, part, string(d), data[half:], fmt.Sprintf("%d-%d", half, len(data)-1), http.MethodPut)
		}
		at, err := put("plan", plan)
		if err != nil {
			return err
		}
		log, err := put("log", []byte(text+"[I] Engine built\n"))
		if err != nil {
			return err
		}
		own, err := ota.ParseTarget(b.target)
		if err != nil {
			return err
		}
		r = wire.EngineRecord{Key: l.Work.Key, Model: l.Work.Model, Version: l.Work.Version, ONNX: l.Work.ONNX.Digest, Golden: l.Work.Golden.Digest,
			Recipe: ota.DigestOf(l.Work.Recipe).Sum(), Target: l.Work.Target, Probed: own.String(), TensorRT: own.Attrs["trt"], SM: own.Attrs["sm"], Digest: at.Digest, Size: at.Length,
			LatencyP50: 1.25, LatencyP99: 1.5, Throughput: 800, Power: 7.5, Mode: "15W", Proof: &wire.EngineProof{Cases: 1, Agreed: 1}, Device: b.id,
			Started: time.Now().Unix() - 1, Finished: time.Now().Unix(), Log: log, Command: []string{"trtexec", "--fp16"}, Job: l.Job, Attempt: l.Attempt}
		return nil
	}()
	if err != nil {
		b.say(wire.Build{Kind: wire.BuildFailed, Job: l.Job, Attempt: l.Attempt, Class: wire.BuildTransfer, Message: err.Error()})
		return
	}
	signed, err := engine.Sign(b.signer, r)
	if err == nil {
		b.say(wire.Build{Kind: wire.BuildDone, Job: l.Job, Attempt: l.Attempt, Record: signed})
	}
}

func (b *paperBuilder) get(sum []byte) ([]byte, error) {
	resp, err := b.http.Get(b.base + "/v2/skein/blobs/" + string(ota.DigestFromSum([32]byte(sum))))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("blob: %s", resp.Status)
	}
	return io.ReadAll(resp.Body)
}

func (b *paperBuilder) put(l wire.BuildLease, part, digest string, data []byte, span, method string) error {
	req, err := http.NewRequest(method, b.base+l.Work.Upload+part+"?digest="+digest, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.Work.Token)
	req.Header.Set("Content-Range", span)
	resp, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("upload %s: %s: %s", part, resp.Status, text)
	}
	return nil
}

// unsealed reads the payload of a lease. Which key may sign one is not the
// matter of this test.
func unsealed(signed []byte) (wire.BuildLease, bool) {
	var l wire.BuildLease
	// COSE_Sign1 is a tagged array of four; the payload is its third element.
	var parts struct {
		_         struct{} `cbor:",toarray"`
		Protected []byte
		Headers   map[int]any
		Payload   []byte
		Signature []byte
	}
	if len(signed) < 2 || wire.Unmarshal(signed[1:], &parts) != nil {
		return l, false
	}
	return l, wire.Unmarshal(parts.Payload, &l) == nil
}

// awaitEngine waits until something about an engine is so: await-engine ENGINE
// PATH VALUE.
func awaitEngine(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for {
		ts.Check(ts.Exec("skein", "engine", "show", args[0], "-o", "json"))
		var doc map[string]any
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &doc))
		if has(doc["engine"], args[1], args[2]) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			ts.Fatalf("%s of %s is not %s:\n%s", args[1], args[0], args[2], ts.ReadFile("stdout"))
		}
	}
}

// has reports whether a document holds a value at a path.
func has(v any, path, want string) bool {
	for key := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return false
			}
			v = x[i]
		default:
			return false
		}
	}
	return v == want
}
