package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota/trust"
)

var update = flag.Bool("update", false, "rewrite the scripts' expected output and docs/cli.md")

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"skein": main}) }

// TestScripts runs the scripts that specify the program, each against a
// control plane of its own. Their commands beside those of testscript:
//
//	serve [again]             start the control plane, again where it was, log in by environment
//	unserve                   stop it
//	site DIR                  from now on be a control plane of another site
//	trust DIR                 give it the trust of a folder before its first start
//	code N skein ARG...       run the program and want exit code N
//	json PATH VALUE           want a value in the JSON on standard output
//	capture VAR PATH          keep such a value in the environment
//	devices FILE              enrol devices: NAME SERIAL HARDWARE TARGET LABELS
//	enrol CLAIM NAME SERIAL   enrol one as a device does, over TLS
//	report NAME KEY=VALUE...  let a device report
//	event NAME KIND MESSAGE   let a device tell an event
//	model FILE GOLDEN WEIGHTS write an ONNX file and its golden set
//	envfile FILE              put the values of variables into a file
//	await FILE REGEXP         wait until a file has a match
//	flaky N TIMES [stays]     put a line before the server that breaks after N bytes
//	heal MAX                  mend it, and later want at most MAX bytes sent
//	stranger KIND             start another program where skeind should be
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *update, RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("SKEIN_CONFIG", filepath.Join(e.WorkDir, "config", "skein.json"))
			e.Setenv("TZ", "UTC")
			e.Values[worldKey{}] = &world{ctx: t.Context(), dir: filepath.Join(e.WorkDir, ".skeind"), devices: map[string]*device{}}
			return nil
		},
		Deadline: time.Now().Add(5 * time.Minute),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serve, "unserve": unserve, "code": exitCode, "json": wantJSON, "capture": capture, "devices": addDevices, "enrol": enrol,
			"site": moveSite, "trust": placeTrust, "report": report, "event": event, "crash": crash, "model": writeModel, "envfile": envFile, "await": await, "flaky": flaky, "heal": heal, "stranger": startStranger,
			"image": writeImage, "builder": startBuilder, "await-engine": awaitEngine, "fetcher": buildFetcher, "web": serveFolder,
		},
	})
}

type worldKey struct{}

// world is one script's control plane and devices.
type world struct {
	ctx     context.Context
	dir     string
	server  *controlplane.Server
	stop    func() error
	devices map[string]*device
	line    *badLine
}

func worldOf(ts *testscript.TestScript) *world {
	w, _ := ts.Value(worldKey{}).(*world)
	return w
}

func serve(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	addr := "127.0.0.1:0"
	if len(args) > 0 {
		addr = w.server.Addrs().HTTP.String()
	}
	s, err := controlplane.New(controlplane.Config{DataDir: w.dir, HTTPAddr: addr, DeviceAddr: "127.0.0.1:0", MQTTAddr: "127.0.0.1:0",
		Domain: "skein.local", Version: "v0.0.0-test"}, slog.New(slog.DiscardHandler))
	ts.Check(err)
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		ts.Fatalf("serve: %v", err)
	}
	w.server = s
	w.stop = func() error {
		w.stop = nil
		cancel()
		return <-done
	}
	ts.Defer(func() {
		if w.stop != nil {
			ts.Check(w.stop())
		}
	})
	ts.Setenv("SKEIN_SERVER", "http://"+s.Addrs().HTTP.String())
	ts.Setenv("SKEIN_TOKEN", s.AdminToken())
}

func moveSite(ts *testscript.TestScript, _ bool, args []string) {
	worldOf(ts).dir = ts.MkAbs(args[0])
}

func placeTrust(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.CopyFS(filepath.Join(worldOf(ts).dir, "trust"), os.DirFS(ts.MkAbs(args[0]))))
}

func unserve(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	ts.Check(w.stop())
}

func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if err != nil || neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND ARG...")
	}
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// find walks a JSON document: keys and numbers joined by dots, len for a length.
func find(ts *testscript.TestScript, path string) string {
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("standard output is not JSON: %v", err)
	}
	for key := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			if v = x[key]; key == "len" {
				v = len(x)
			}
		case []any:
			if key == "len" {
				v = len(x)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				ts.Fatalf("%s: no element %s of %d", path, key, len(x))
			}
			v = x[i]
		default:
			ts.Fatalf("%s: nothing at %s", path, key)
		}
	}
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	ts.Check(err)
	return string(b)
}

func wantJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: json PATH VALUE")
	}
	if got := find(ts, args[0]); (got == args[1]) == neg {
		ts.Fatalf("%s is %q", args[0], got)
	}
}

func capture(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: capture VAR PATH")
	}
	ts.Setenv(args[0], find(ts, args[1]))
}

// device is what a script knows of a device that it enrolled.
type device struct {
	id      string
	signer  *trust.Signer
	counter atomic.Uint64
}

func newKey(ts *testscript.TestScript) (*ecdsa.PrivateKey, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	ts.Check(err)
	return key, csr
}

func addDevices(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	var local []controlplane.LocalDevice
	var keys []*ecdsa.PrivateKey
	for l := range strings.Lines(ts.ReadFile(args[0])) {
		f := strings.Fields(l)
		if len(f) != 5 {
			ts.Fatalf("%s: %q: want NAME SERIAL HARDWARE TARGET LABELS", args[0], l)
		}
		labels, err := pairs(strings.Split(f[4], ","))
		ts.Check(err)
		key, csr := newKey(ts)
		_, seal, err := trust.NewSealKey()
		ts.Check(err)
		keys = append(keys, key)
		local = append(local, controlplane.LocalDevice{CSR: csr, Name: f[0], Serial: f[1], Hardware: f[2], Target: f[3], Labels: labels, SealKey: seal})
	}
	ids, err := w.server.EnrollLocal(w.ctx, local)
	ts.Check(err)
	for i, id := range ids {
		signer, err := trust.NewSigner(keys[i])
		ts.Check(err)
		w.devices[local[i].Name] = &device{id: id.Device, signer: signer}
		w.hello(ts, local[i])
		ts.Setenv(strings.ToUpper(strings.ReplaceAll(local[i].Name, "-", "_")), id.Device)
	}
	fmt.Fprintf(ts.Stdout(), "%d devices\n", len(ids))
}
