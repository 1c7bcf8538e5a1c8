package controlplane

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
)

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestRolesAuditAndLogin(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	admin := authv1connect.NewAuthServiceClient(r.client(), r.url())
	made, err := admin.CreateCredential(t.Context(), &authv1.CreateCredentialRequest{Name: "vic", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	viewer := &http.Client{Transport: bearer{made.GetToken()}}
	vf := fleetv1connect.NewFleetServiceClient(viewer, r.url())
	if _, err := vf.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: b.id}); err != nil {
		t.Error(err)
	}
	if _, err := vf.RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: b.id}); code(err) != connect.CodePermissionDenied {
		t.Errorf("a viewer revoked: %v", err)
	}
	if _, err := vf.ListTokens(t.Context(), &fleetv1.ListTokensRequest{}); code(err) != connect.CodePermissionDenied {
		t.Errorf("a viewer listed tokens: %v", err)
	}
	nobody := fleetv1connect.NewFleetServiceClient(http.DefaultClient, r.url())
	if _, err := nobody.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{}); code(err) != connect.CodeUnauthenticated {
		t.Errorf("nobody listed devices: %v", err)
	}
	if status, _ := get(t, http.DefaultClient, r.url()+"/api/v1/labels"); status != http.StatusUnauthorized {
		t.Errorf("nobody read series: %d", status)
	}
	if status, _ := get(t, viewer, r.url()+"/api/v1/labels"); status != http.StatusOK {
		t.Errorf("a viewer cannot read series: %d", status)
	}

	c := r.fleetClient()
	if _, err := c.LabelDevice(t.Context(), &fleetv1.LabelDeviceRequest{Device: b.id, Set: map[string]string{"ring": "early"}, Grant: []string{"cache"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.LabelDevice(t.Context(), &fleetv1.LabelDeviceRequest{Device: b.id, Grant: []string{"root"}}); code(err) != connect.CodeInvalidArgument {
		t.Errorf("unknown capability: %v", err)
	}
	trail, err := auditv1connect.NewAuditServiceClient(r.client(), r.url()).ListEntries(t.Context(), &auditv1.ListEntriesRequest{Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	find := func(decision, action, part string) {
		t.Helper()
		for _, e := range trail.GetEntries() {
			if e.GetDecision() == decision && strings.HasSuffix(e.GetAction(), action) && strings.Contains(e.GetActor()+e.GetSubject()+e.GetBefore()+e.GetAfter()+e.GetError()+e.GetRule(), part) {
				return
			}
		}
		t.Errorf("no entry %s %s with %q", decision, action, part)
	}
	find("allowed", "FleetService/LabelDevice", `"ring":"early"`)
	find("allowed", "FleetService/LabelDevice", "capability")
	find("denied", "FleetService/RevokeDevice", "user:vic")
	find("allowed", "AuthService/CreateCredential", "vic")
	find("allowed", "EnrollService/Enroll", "token:")

	// The dashboard's way in.
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	login := func(token string, header http.Header) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url()+"/login", strings.NewReader(`{"token":"`+token+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		req.Header.Set("Content-Type", "application/json")
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for _, ck := range resp.Cookies() {
			if ck.Name == auth.CookieName && (!ck.HttpOnly || ck.SameSite != http.SameSiteStrictMode) {
				t.Errorf("cookie %v", ck)
			}
		}
		return resp.StatusCode
	}
	if got := login("skp_wrong", http.Header{}); got != http.StatusUnauthorized {
		t.Errorf("wrong token: %d", got)
	}
	if got := login(r.AdminToken(), http.Header{"Sec-Fetch-Site": {"cross-site"}}); got != http.StatusForbidden {
		t.Errorf("login from another site: %d", got)
	}
	if got := login(r.AdminToken(), http.Header{}); got != http.StatusOK {
		t.Errorf("login: %d", got)
	}
	me, err := authv1connect.NewAuthServiceClient(browser, r.url()).WhoAmI(t.Context(), &authv1.WhoAmIRequest{})
	if err != nil || me.GetCredential().GetRole() != "admin" {
		t.Errorf("%v, %v", me, err)
	}
	if _, err := admin.RevokeCredential(t.Context(), &authv1.RevokeCredentialRequest{Id: made.GetCredential().GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := vf.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{}); code(err) != connect.CodeUnauthenticated {
		t.Errorf("a revoked credential works on: %v", err)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.DebugAddr = "127.0.0.1:0"
	r := start(t, cfg)
	for _, base := range []string{r.url(), "http://" + r.Addrs().Debug.String()} {
		for path, part := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": "skein_broker_sessions"} {
			if status, body := get(t, http.DefaultClient, base+path); status != http.StatusOK || !strings.Contains(body, part) {
				t.Errorf("%s%s: %d %.80q", base, path, status, body)
			}
		}
	}
	if status, _ := get(t, http.DefaultClient, "http://"+r.Addrs().Debug.String()+"/debug/pprof/cmdline"); status != http.StatusOK {
		t.Errorf("pprof: %d", status)
	}
	if status, _ := get(t, http.DefaultClient, r.url()+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("pprof on the people's port: %d", status)
	}
}

func TestWatch(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all, err := r.fleetClient().WatchFleet(ctx, &fleetv1.WatchFleetRequest{Selector: "site=lyon"})
	if err != nil {
		t.Fatal(err)
	}
	one, err := r.fleetClient().WatchDevice(ctx, &fleetv1.WatchDeviceRequest{Device: b.id})
	if err != nil {
		t.Fatal(err)
	}
	if !all.Receive() || all.Msg().GetStatus().GetDevices() != 1 {
		t.Fatalf("first: %v %v", all.Msg(), all.Err())
	}
	if !one.Receive() || one.Msg().GetDevice().GetState() != fleetv1.DeviceState_DEVICE_STATE_OFFLINE {
		t.Fatalf("first: %v %v", one.Msg(), one.Err())
	}
	b.connect(t)
	for one.Receive() && one.Msg().GetDevice().GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE {
	}
	if err := one.Err(); err != nil {
		t.Error(err)
	}
	seen := false
	for !seen && all.Receive() {
		for _, d := range all.Msg().GetChanged() {
			seen = seen || d.GetId() == b.id && d.GetState() == fleetv1.DeviceState_DEVICE_STATE_ONLINE
		}
	}
	if !seen {
		t.Errorf("the fleet's watch missed the change: %v", all.Err())
	}
	// Being watched asks the device for telemetry every second.
	b.until(t, "online", func(v fleet.View) bool { return v.Online })
	r.fleet.Watch("default", b.id)
	for {
		select {
		case c := <-b.cmds:
			if c.Seconds != 300 {
				continue
			}
			return
		case <-ctx.Done():
			t.Fatal("no watch command came")
		}
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		path := filepath.Join(dir, "skeind.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := DefaultConfig()
	if err := LoadConfig(write(`{"http_addr": "[::1]:1", "public_host": "fleet.example.com"}`), &c); err != nil || c.HTTPAddr != "[::1]:1" || c.MQTTAddr != ":8883" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{`{"http_adr": ""}`, `{} {}`, `[]`, `{"names": 1}`} {
		if err := LoadConfig(write(bad), &c); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
	for name, change := range map[string]func(*Config){
		"no port":       func(c *Config) { c.HTTPAddr = "localhost" },
		"no folder":     func(c *Config) { c.DataDir = "" },
		"upper domain":  func(c *Config) { c.Domain = "A" },
		"host and port": func(c *Config) { c.PublicHost = "a:1" },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

func TestDomainIsFixed(t *testing.T) {
	cfg := testConfig(t.TempDir())
	r := start(t, cfg)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	token := r.AdminToken()
	again := start(t, cfg)
	if again.AdminToken() != token || !bytes.Equal(again.CAPEM(), r.CAPEM()) {
		t.Error("a second start made another credential or CA")
	}
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Domain = "other.test"
	if _, err := New(cfg, testLogger(t)); err == nil || !strings.Contains(err.Error(), "cannot change") {
		t.Errorf("another domain: %v", err)
	}
}

func TestInject(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := newBox(t, r)
	ids, err := r.EnrollLocal(t.Context(), []LocalDevice{{CSR: b.csr, Name: "v-1", Target: "linux/amd64;ort=1", Labels: map[string]string{"site": "oslo"}, SealKey: b.sealPub}})
	if err != nil || len(ids) != 1 {
		t.Fatal(err)
	}
	b.id, b.chain = ids[0].Device, ids[0].Chain
	b.connect(t) // its certificate is as good as any
	b.count = 100
	if err := r.Inject(t.Context(), b.id, "up/report", b.signedReport(t, nil)); err != nil {
		t.Fatal(err)
	}
	if err := r.Inject(t.Context(), "nobody", "up/report", nil); err == nil {
		t.Error("a message of nobody was taken")
	}
}
