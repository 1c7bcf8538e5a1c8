package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/operator"
)

// calls are one of each kind that changes something.
func calls(ctx context.Context, o *operator.Operator, device string) map[string]error {
	out := map[string]error{}
	_, out["assign"] = o.Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: device})
	_, out["revoke"] = o.Fleet.RevokeDevice(ctx, &fleetv1.RevokeDeviceRequest{Device: device})
	_, out["label"] = o.Fleet.LabelDevice(ctx, &fleetv1.LabelDeviceRequest{Device: device, Grant: []string{"builder"}})
	_, out["confirm"] = o.Fleet.ConfirmGeneration(ctx, &fleetv1.ConfirmGenerationRequest{Device: device})
	_, out["token"] = o.Fleet.CreateTokens(ctx, &fleetv1.CreateTokensRequest{})
	_, out["parameter"] = o.Fleet.SetParameters(ctx, &fleetv1.SetParametersRequest{Set: []*fleetv1.Parameter{{Scope: fleetv1.ParameterScope_PARAMETER_SCOPE_FLEET, Key: "note", Value: "x"}}})
	_, out["upload"] = o.Upload(ctx, []byte("x"))
	_, out["release"] = o.Release(ctx, &releasev1.CreateReleaseRequest{Name: "meter", Version: "evil", Model: "meter@1", Targets: []string{testTarget}})
	_, out["rollout"] = o.Start(ctx, "evil", map[string]any{"release": "meter@v1"})
	return out
}

// TestCredentials: a viewer changes nothing and no credential reads nothing;
// what was denied is in the audit log.
func TestCredentials(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	made, err := authv1connect.NewAuthServiceClient(&http.Client{Transport: bearer(s.token)}, s.http).CreateCredential(t.Context(), &authv1.CreateCredentialRequest{Name: "guest", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	viewer := operator.New(s.http, made.GetToken())
	if devices, err := viewer.Devices(t.Context(), ""); err != nil || len(devices) != 1 {
		t.Errorf("a viewer sees %d devices, %v", len(devices), err)
	}
	before := s.get(d.id)
	for call, err := range calls(t.Context(), viewer, d.id) {
		if !has(err, "permission_denied") && !has(err, "403") {
			t.Errorf("viewer, %s: %v", call, err)
		}
	}
	for _, action := range []string{"AssignRelease", "RevokeDevice", "LabelDevice", "CreateTokens", "SetParameters"} {
		if !s.audited("FleetService/"+action, "denied", "") {
			t.Errorf("%s by a viewer is not in the audit log as denied", action)
		}
	}
	for _, token := range []string{"", "skp_forged", made.GetToken() + "x"} {
		nobody := operator.New(s.http, token)
		if _, err := nobody.Devices(t.Context(), ""); !has(err, "unauthenticated") {
			t.Errorf("token %q reads devices: %v", token, err)
		}
		for call, err := range calls(t.Context(), nobody, d.id) {
			if !has(err, "unauthenticated") && !has(err, "401") {
				t.Errorf("token %q, %s: %v", token, call, err)
			}
		}
		c := &http.Client{Transport: bearer(token)}
		for _, path := range []string{"/api/v1/query?query=up", "/v2/skein/blobs/sha256:" + zeros, "/v2/meter/tags/list"} {
			if status, _ := s.get1(c, s.http, path); status != 401 {
				t.Errorf("token %q gets %s: %d", token, path, status)
			}
		}
	}
	after := s.get(d.id)
	if after.GetDesiredGeneration().GetCounter() != before.GetDesiredGeneration().GetCounter() || len(after.GetCapabilities()) != 0 || after.GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE {
		t.Errorf("something changed: %v", after)
	}
	d.serves()
	s.release("v2", version{bias: 2})
	s.settle(d, "v2")
}

// TestPathTraversal asks for files of the server in every spelling that may
// lead out of a folder.
func TestPathTraversal(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.enroll().opts.Identity
	secrets := []string{"PRIVATE KEY", s.token, "SQLite format"}
	device, people := s.client(id), &http.Client{Transport: bearer(s.token)}
	for _, name := range []string{"ca.key", "admin.token", "vault.key", "skein.db", "trust/keys/root.json", "etc/passwd"} {
		for _, up := range []string{"../", "../../", "../../../", "..%2f", "..%2f..%2f", "%2e%2e/", "%2e%2e%2f%2e%2e%2f", "..%5c", "....//", "/", "%2f", "sha256:../", "sha256:..%2f..%2f", "./..%00/"} {
			for _, base := range []string{"/v2/skein/blobs/", "/tuf/", "/v2/skein/blobs/uploads/", "/v2/meter/manifests/", "/v2/"} {
				path := base + up + strings.ReplaceAll(name, "/", "%2f")
				for where, get := range map[string]func() (int, string){
					"device": func() (int, string) { return s.get1(device, s.url, path) },
					"people": func() (int, string) { return s.get1(people, s.http, path) },
				} {
					status, body := get()
					for _, secret := range secrets {
						if strings.Contains(body, secret) {
							t.Fatalf("%s port, %s: a secret file came", where, path)
						}
					}
					if where == "device" && status == 200 {
						t.Errorf("device port, %s: status 200: %.100s", path, body)
					}
				}
			}
		}
	}
	if status, _ := s.fetch(id, "/tuf/timestamp.json"); status != 200 {
		t.Errorf("an honest name afterwards: %d", status)
	}
}

// TestSlowLoris: connections that never say anything whole are ended, and
// honest devices work meanwhile.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	const crowd = 100
	s := start(t)
	s.release("v1", version{bias: 1})
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 4*crowd)
	for _, address := range []string{s.mqtt, strings.TrimPrefix(s.url, "https://"), strings.TrimPrefix(s.http, "http://")} {
		for i := range crowd {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { ended <- dribble(ctx, conn, i%2 == 0) })
		}
	}
	// The same inside of TLS, with a good certificate.
	id := s.enroll().opts.Identity
	for range crowd / 2 {
		r, err := s.dial(id)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { ended <- dribble(ctx, r.conn, true) })
	}
	d := s.boot("v1")
	d.serves()
	s.release("v2", version{bias: 2})
	s.settle(d, "v2")
	if testing.Short() {
		return
	}
	for range 3*crowd + crowd/2 {
		if err := <-ended; err != nil {
			t.Fatalf("a silent connection is still open: %v", err)
		}
	}
	d.serves()
}

// dribble says nothing, or one byte a second that completes nothing, and
// returns nil when the server ends the connection.
func dribble(ctx context.Context, conn net.Conn, talks bool) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	done := make(chan struct{})
	defer close(done)
	if talks {
		go func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for { // bytes that may begin a TLS record, an MQTT packet or a request
				if _, err := conn.Write([]byte{0x16}); err != nil {
					return
				}
				select {
				case <-done:
					return
				case <-tick.C:
				}
			}
		}()
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil // closed already
	}
	_, err := io.Copy(io.Discard, conn)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return err
	}
	return nil
}

// TestStuckSubscriber: a device that does not read what is sent to it delays
// nobody else.
func TestStuckSubscriber(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	began := time.Now()
	s.release("v1b", version{bias: 1.5})
	s.settle(d, "v1b")
	alone := max(time.Since(began), time.Second)
	const stuck = 20
	var wg sync.WaitGroup
	defer wg.Wait()
	for range stuck {
		id := s.enroll().opts.Identity
		near, far := net.Pipe() // holds nothing: a write waits for its reader
		defer near.Close()
		wg.Go(func() {
			if err := s.plane.Attach(far, id.DeviceID); err != nil {
				t.Error(err)
			}
		})
		r := over(t, near, id.DeviceID)
		if code, err := r.connect(honest(r.id)); err != nil || code != 0 {
			t.Fatalf("connect: %d, %v", code, err)
		}
		if _, err := r.subscribe(wire.Topic(r.id, wire.DownDesired)); err != nil {
			t.Fatal(err)
		}
		if err := r.hello(1, 1, wire.Generation{}); err != nil {
			t.Fatal(err)
		}
		s.assign(id.DeviceID, "v1") // it never reads this
	}
	began = time.Now()
	s.release("v2", version{bias: 2})
	s.settle(d, "v2")
	// The broker's promise is one write deadline, 5 s; the machine's own pace is
	// what the same update takes with nobody stuck.
	if took := time.Since(began); took > 5*time.Second+4*alone {
		t.Errorf("the update of another device took %s beside %d stuck ones, %s alone", took, stuck, alone)
	}
	d.serves()
	if testing.Short() {
		return
	}
	until(t, "the stuck ones to be cut off", func() bool {
		devices, err := s.op.Devices(t.Context(), "state=offline")
		return err == nil && len(devices) == stuck
	})
}
