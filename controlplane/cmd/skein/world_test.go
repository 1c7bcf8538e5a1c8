package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/wire"
)

func (d *device) next() wire.MessageID { return wire.MessageID{Boot: 1, Counter: d.counter.Add(1)} }

func (w *world) inject(ts *testscript.TestScript, d *device, kind wire.Kind, msg any) {
	b, err := wire.Marshal(msg)
	ts.Check(err)
	if kind == wire.UpReport {
		b, err = trust.Sign(d.signer, wire.AADReport, b)
		ts.Check(err)
	}
	ts.Check(w.server.Inject(w.ctx, d.id, kind, b))
}

func (w *world) hello(ts *testscript.TestScript, l controlplane.LocalDevice) {
	d := w.devices[l.Name]
	w.inject(ts, d, wire.UpHello, &wire.Hello{ID: d.next(), Target: l.Target, Hardware: l.Hardware, Capability: wire.CapabilityVersion,
		Agent: "v0.0.0-test", Clock: wire.Clock{UnixMilli: time.Now().UnixMilli()}})
}

func (w *world) device(ts *testscript.TestScript, name string) *device {
	d, ok := w.devices[name]
	if !ok {
		ts.Fatalf("no device %s", name)
	}
	return d
}

// digest finds the release name@version.
func (w *world) digest(ts *testscript.TestScript, name string) []byte {
	c := releasev1connect.NewReleaseServiceClient(&http.Client{Transport: transport{w.server.AdminToken()}}, "http://"+w.server.Addrs().HTTP.String())
	r, err := c.GetRelease(w.ctx, &releasev1.GetReleaseRequest{Release: name})
	ts.Check(err)
	b, err := hex.DecodeString(strings.TrimPrefix(r.GetRelease().GetDigest(), "sha256:"))
	ts.Check(err)
	return b
}

func report(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	d := w.device(ts, args[0])
	full := &wire.Reported{Phase: wire.PhaseIdle}
	held := wire.Held{}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "running":
			full.Running, full.RunningCounter, full.HighestCounter = w.digest(ts, value), 1, 1
		case "updating":
			full.Phase, full.Step = wire.PhaseUpdating, value
		case "failed":
			full.Phase, full.FailureClass, full.Failure = wire.PhaseFailed, value, "golden set: label agreement 3 of 32, need 95 %"
		case "journal":
			step, message, _ := strings.Cut(value, ":")
			full.Journal = append(full.Journal, wire.StepEntry{Step: step, State: wire.StepDone, Message: message, Release: full.Running, Time: time.Now().UnixMilli()})
		case "waits": // KIND:SECONDS, behind wwan0
			kind, seconds, _ := strings.Cut(value, ":")
			n, err := strconv.ParseInt(seconds, 10, 64)
			ts.Check(err)
			full.Policy = &wire.PolicyState{Interface: "wwan0", Class: wire.Metered, Zone: "Europe/Paris", Until: n,
				Waits: map[string]wire.WaitKind{"download": wire.WaitsForDownloadWindow, "apply": wire.WaitsForApplyWindow, "allowance": wire.WaitsForAllowance}[kind],
				Used:  []wire.Usage{{Class: wire.Metered, Period: wire.PerDay, Name: "2026-11-24", Bytes: 50e6, Limit: 50e6}}}
		case "hold": // OWNER:REASON, for 10 minutes, and the release waits
			owner, reason, _ := strings.Cut(value, ":")
			until := time.Now().Add(10 * time.Minute).Unix()
			full.Policy = &wire.PolicyState{Interface: "eth0", Class: wire.Unmetered, Zone: "UTC", Waits: wire.WaitsForHold, Until: until,
				Holds: []wire.Hold{{Owner: owner, Reason: reason, Since: time.Now().Unix(), Until: until}}}
		case "power": // MODE:WANTED
			mode, wanted, _ := strings.Cut(value, ":")
			full.Power = &wire.Power{Mode: mode, Modes: []string{mode, wanted}, Wanted: wanted, NeedsReboot: true, Clocks: wire.ClocksLocked, Fan: "quiet",
				Throttle: []wire.Throttle{{Name: "heat", Detail: "tj-thermal is 2.0 K over its trip"}}, Headroom: 12500, Zone: "tj-thermal",
				OverCurrent: []wire.OverCurrent{{Name: "oc3", Count: 27390, PerHour: 60}}}
		case "condition":
			name, message, _ := strings.Cut(value, ":")
			full.Conditions = append(full.Conditions, wire.Condition{Name: name, Severity: 2, Message: message, Since: time.Now().UnixMilli()})
		case "source":
			name, text, _ := strings.Cut(value, ":")
			n, err := strconv.ParseInt(text, 10, 64)
			ts.Check(err)
			full.Sources = append(full.Sources, wire.SourceBytes{Name: name, Bytes: n})
			full.BytesFetched += n
		case "held":
			n, err := strconv.ParseUint(value, 10, 64)
			ts.Check(err)
			held = wire.Held{Generation: wire.Generation{Epoch: 1, Counter: n}, Digest: make([]byte, 32)}
		default:
			ts.Fatalf("report: unknown %s", key)
		}
	}
	id := d.next()
	w.inject(ts, d, wire.UpReport, &wire.Report{ID: id, Counter: id.Counter, Held: held, Full: full})
}

func crash(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	d := w.device(ts, args[0])
	n, err := strconv.ParseUint(args[1], 10, 64)
	ts.Check(err)
	now := time.Now().UnixMilli()
	w.inject(ts, d, wire.UpLog, &wire.Crash{ID: d.next(), Number: n, Kind: args[2], Time: now - 60000, Found: now, Agent: "v1", Panic: "panic: " + args[3] + "\ngoroutine 1",
		Log: []string{"last words"}, Tegrastats: []string{"RAM 1/2MB"}, Exits: []string{"meter: signal: killed (out of memory)"},
		Journal: []wire.StepEntry{{Step: "load", State: wire.StepStarted, Time: now}}})
}

func event(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	d := w.device(ts, args[0])
	w.inject(ts, d, wire.UpEvent, &wire.Event{ID: d.next(), Time: time.Now().UnixMilli(), Kind: args[1], Message: args[2], Attack: "rollback"})
}

// enrol enrols a device over TLS and prints its state.
func enrol(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	block, _ := pem.Decode(w.server.CAPEM())
	ca, err := x509.ParseCertificate(block.Bytes)
	ts.Check(err)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer t.CloseIdleConnections()
	c := enrollv1connect.NewEnrollServiceClient(&http.Client{Transport: t}, "https://"+w.server.Addrs().Device.String())
	_, csr := newKey(ts)
	r, err := c.Enroll(w.ctx, &enrollv1.EnrollRequest{Token: args[0], Name: args[1], Serial: args[2], Csr: csr, Target: "linux/arm64;sm=8.7"})
	if neg {
		if err == nil {
			ts.Fatalf("device was let in")
		}
		fmt.Fprintln(ts.Stderr(), err)
		return
	}
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), r.GetState())
}

// writeModel writes the smallest model that the control plane takes, with that
// many bytes of weights, and a golden set for it.
func writeModel(ts *testscript.TestScript, _ bool, args []string) {
	weights, err := strconv.Atoi(args[2])
	ts.Check(err)
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	node := field(nil, 4, []byte("Gemm"))
	graph := field(nil, 1, node)
	graph = field(graph, 5, make([]byte, weights))
	graph = field(graph, 11, field(nil, 1, []byte("x")))
	graph = field(graph, 12, field(nil, 1, []byte("logits")))
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 8)
	b = field(b, 7, graph)
	b = field(b, 8, protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 17))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
	golden, err := json.Marshal(manifest.Golden{Version: 1, Input: "x", Shape: []int64{2}, MinLabelAgreement: 1, Tolerance: manifest.Tolerance{Abs: 1e-4},
		Cases: []manifest.GoldenCase{{Input: []float32{1, 2}, Output: []float32{0, 1}, Label: 1}}})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), golden, 0o600))
}

// badLine forwards connections to the server and breaks them after some bytes,
// some times; then it is mended, or stays cut until it is.
type badLine struct {
	server string
	each   int64
	stays  bool
	left   atomic.Int64 // bytes until the next break
	cuts   atomic.Int64 // breaks to come
	sent   atomic.Int64
}

func (l *badLine) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go l.forward(c)
	}
}

func (l *badLine) forward(c net.Conn) {
	defer c.Close()
	if l.stays && l.cuts.Load() <= 0 {
		return
	}
	up, err := net.Dial("tcp", l.server)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(c, up) // ends with the connection
		c.Close()
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			l.sent.Add(int64(n))
			if l.cuts.Load() > 0 && l.left.Add(-int64(n)) <= 0 {
				l.left.Store(l.each)
				l.cuts.Add(-1)
				return
			}
			if _, err := up.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func flaky(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	n, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	times, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { ts.Check(ln.Close()) })
	w.line = &badLine{server: w.server.Addrs().HTTP.String(), each: n, stays: len(args) > 2}
	w.line.left.Store(n)
	w.line.cuts.Store(times)
	go w.line.serve(ln)
	ts.Setenv("SKEIN_SERVER", "http://"+ln.Addr().String())
}

// heal mends the line; with an argument it wants that at most so many bytes
// went over it since the last time.
func heal(ts *testscript.TestScript, _ bool, args []string) {
	l := worldOf(ts).line
	if len(args) == 1 {
		limit, err := strconv.ParseInt(args[0], 10, 64)
		ts.Check(err)
		if sent := l.sent.Load(); sent > limit {
			ts.Fatalf("%d bytes were sent, want at most %d", sent, limit)
		}
	}
	l.left.Store(1 << 40)
	l.cuts.Store(1)
	l.sent.Store(0)
}

// startStranger puts a program that is not skeind where skeind should be.
func startStranger(ts *testscript.TestScript, _ bool, args []string) {
	kind := args[0]
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch kind {
		case "html":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<!doctype html><title>Router</title>\n")
		case "404":
			http.NotFound(w, r)
		case "redirect":
			http.Redirect(w, r, "https://login.example/", http.StatusFound)
		case "502":
			http.Error(w, "bad gateway", http.StatusBadGateway)
		case "echo":
			_, _ = io.Copy(w, bytes.NewReader([]byte(r.Header.Get("Authorization"))))
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv("SKEIN_SERVER", s.URL)
}

// envFile puts the values of variables into a file.
func envFile(ts *testscript.TestScript, _ bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// await waits until a file, which a program in the background writes, matches.
func await(ts *testscript.TestScript, _ bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && re.Match(b) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			ts.Fatalf("no match for %s in %s:\n%s", args[1], args[0], b)
		}
	}
}
