package build

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/proto/wire"
)

const orinTarget = "linux/arm64;sm=8.7;trt=10.3.0"

func TestBuiltOnceAndGivenToAll(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1 := w.add(t, "b1", orin)
	w.add(t, "d1", orin2)
	w.add(t, "d2", cpu)

	if c := w.matrix(t, "")[orinTarget]; c.State != Missing || c.Devices != 2 || !strings.Contains(c.Reason, "b1 can build it") {
		t.Errorf("before: %+v", c)
	}
	if c := w.matrix(t, "")[cpu]; c.State != Unneeded {
		t.Errorf("CPU: %+v", c)
	}
	cs := w.want(t, "fp16")
	if len(cs) != 1 || cs[0].State != Queued || cs[0].Target != orinTarget {
		t.Fatalf("wanted: %+v", cs)
	}
	if l := w.answers[b1]; l.State != wire.LeaseNone || l.Every != 1 {
		t.Errorf("the builder was not told to ask: %+v", l)
	}
	l := w.ask(t, b1)
	if l.State != wire.LeaseBuild || l.Work == nil || l.Work.Target != orinTarget || l.Work.TimingCache != nil || !isSum(l.Work.Key, string(cs[0].Key)) {
		t.Fatalf("lease: %+v", l)
	}
	// The lease is its answer to everything while it lasts.
	if again := w.ask(t, b1); again.State != wire.LeaseBuild || again.Attempt != 1 || again.Job != l.Job || again.Work.Token != l.Work.Token {
		t.Errorf("asked again: %+v", again)
	}
	w.pass(time.Minute)
	if beat := w.send(t, b1, wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: 1, Step: "build", Percent: 40, Message: "tactics"}); beat.ExpiresAt <= l.ExpiresAt {
		t.Errorf("heartbeat does not extend: %+v", beat)
	}
	if c := w.matrix(t, "fp16")[orinTarget]; c.State != Building || c.Step != "build" || c.Percent != 40 || c.Reason != "on b1" {
		t.Errorf("while: %+v", c)
	}
	if !w.q.MayRead(store.DefaultTenant, b1, ota.Digest(w.model.ONNX)) || w.q.MayRead(store.DefaultTenant, b1, ota.DigestOf([]byte("x"))) {
		t.Error("what the builder may read")
	}
	if stored := w.finish(t, b1, l); stored.State != wire.LeaseStored {
		t.Fatalf("done: %+v, notices %q", stored, w.notices)
	}
	if w.q.MayRead(store.DefaultTenant, b1, ota.Digest(w.model.ONNX)) {
		t.Error("the builder reads on after the lease")
	}
	// A repeat of what was done is answered the same; nothing is built again.
	if again := w.send(t, b1, wire.Build{Kind: wire.BuildDone, Job: l.Job, Attempt: 1, Record: []byte{1}}); again.State != wire.LeaseStored {
		t.Errorf("done again: %+v", again)
	}
	if cs := w.want(t, "fp16"); cs[0].State != Built || cs[0].Engine == nil {
		t.Errorf("a cache hit builds: %+v", cs)
	}
	if l := w.ask(t, b1); l.State != wire.LeaseNone {
		t.Errorf("there is more to do: %+v", l)
	}
	c := w.matrix(t, "")[orinTarget]
	seal, err := w.q.seal(w.ctx, *c.Engine)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := engine.Open([]crypto.PublicKey{w.director.Public()}, store.DefaultTenant, seal)
	if err != nil || sealed.Scope != "" || !isSum(sealed.Digest, c.Engine.Plan) {
		t.Errorf("seal: %+v %v", sealed, err)
	}
	raw, err := w.q.Provenance(w.ctx, store.DefaultTenant, ota.Digest(c.Engine.Plan))
	if err != nil {
		t.Fatal(err)
	}
	st, err := attest.Verify([]crypto.PublicKey{w.director.Public()}, raw, ota.Digest(c.Engine.Plan))
	if err != nil {
		t.Fatal(err)
	}
	if a := st.Predicate.RunDetails.Byproducts[0].Annotations; st.Predicate.RunDetails.Builder.ID != wire.SpiffeID("skein.test", "default", b1) || a["latencyP50Ms"] != "1.2" || a["powerWatts"] != "7.5" || a["goldenMaxAbs"] != "0.001" {
		t.Errorf("provenance: %+v", st.Predicate.RunDetails)
	}
	// The next build for a like device gets the timings of this one.
	w.want(t, "int8", orin)
	if l := w.ask(t, b1); l.Work == nil || l.Work.TimingCache == nil || !isSum(l.Work.TimingCache.Digest, c.Engine.Timing) {
		t.Errorf("timing cache: %+v", l.Work)
	}
}

func TestNeverLeasedToTheWrongDevice(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	w.want(t, `{"version":1,"precision":"fp16","fit":"optimal"}`, orin)
	for name, target := range map[string]string{"b-h100": h100, "b-thor": thor, "b-mode": orin2, "b-cpu": cpu, "b-none": ""} {
		if l := w.ask(t, w.add(t, name, target)); l.State == wire.LeaseBuild {
			t.Errorf("%s got a lease for %s", name, l.Work.Target)
		}
	}
	plain := w.add(t, "plain", orin)
	if l := w.ask(t, plain); l.State != wire.LeaseDismissed {
		t.Errorf("not a builder: %+v", l)
	}
	// What a device says of itself does not make it another one.
	liar := w.add(t, "b-liar", h100)
	if l := w.send(t, liar, wire.Build{Kind: wire.BuildAsk, Target: orin}); l.State == wire.LeaseBuild {
		t.Error("a server got a lease by its word")
	}
	revoked := w.add(t, "b-revoked", orin)
	w.devices[revoked].State = fleet.Revoked
	if l := w.ask(t, revoked); l.State == wire.LeaseBuild {
		t.Error("a revoked device got a lease")
	}
	// The container that builds may have another TensorRT than the host.
	inside := w.add(t, "b-inside", orin)
	if l := w.send(t, inside, wire.Build{Kind: wire.BuildAsk, Target: strings.Replace(orin, "10.3.0.30", "10.7.0.1", 1)}); l.State == wire.LeaseBuild {
		t.Error("leased by the host's TensorRT")
	}
	if l := w.ask(t, inside); l.State != wire.LeaseBuild {
		t.Errorf("the right one: %+v", l)
	}
}

func TestRetriedElsewhereThenFails(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1, b2 := w.add(t, "b1", orin), w.add(t, "b2", orin2)
	job := w.want(t, "fp16", orin)[0].Build.ID
	l := w.ask(t, b1)
	w.send(t, b1, wire.Build{Kind: wire.BuildLog, Job: job, Attempt: 1, Data: []byte("[E] out of memory\n")})
	if a := w.send(t, b1, wire.Build{Kind: wire.BuildFailed, Job: job, Attempt: 1, Class: wire.BuildMemory, Message: "killed at 7.2 GiB"}); a.State != wire.LeaseStop {
		t.Errorf("failed: %+v", a)
	}
	text, _, _, _, _, err := w.q.Log(w.ctx, store.DefaultTenant, job, 0)
	if err != nil || !strings.Contains(string(text), "out of memory") {
		t.Errorf("log: %q %v", text, err)
	}
	w.pass(time.Hour)
	if a := w.ask(t, b1); a.State != wire.LeaseNone {
		t.Errorf("tried again on the same device while another one can: %+v", a)
	}
	l = w.ask(t, b2)
	if l.State != wire.LeaseBuild || l.Attempt != 2 {
		t.Fatalf("elsewhere: %+v", l)
	}
	// Silence ends a lease. Both have tried now, so b1 may once more.
	w.pass(3 * time.Minute)
	if err := w.q.Tick(w.ctx); err != nil {
		t.Fatal(err)
	}
	if c := w.matrix(t, "fp16")[orinTarget]; c.State != Queued || !strings.Contains(c.Reason, "nothing heard of the device") {
		t.Errorf("after silence: %+v", c)
	}
	w.pass(time.Hour)
	for attempt := uint32(3); attempt <= 4; attempt++ {
		l = w.ask(t, b1)
		if l.State != wire.LeaseBuild || l.Attempt != attempt {
			t.Fatalf("attempt %d: %+v", attempt, l)
		}
		w.send(t, b1, wire.Build{Kind: wire.BuildFailed, Job: job, Attempt: attempt, Class: "nonsense", Message: "no"})
		w.pass(24 * time.Hour)
	}
	c := w.matrix(t, "fp16")[orinTarget]
	if c.State != Refused || len(c.Build.Tried) != 4 || c.Build.Tried[3].Class != wire.BuildTool || c.Build.State != store.BuildFailed {
		t.Errorf("at last: %+v", c)
	}
	// The device of the second attempt comes back: too late.
	if a := w.send(t, b2, wire.Build{Kind: wire.BuildHeartbeat, Job: job, Attempt: 2}); a.State != wire.LeaseStop {
		t.Errorf("came back: %+v", a)
	}
	// A person may want it again.
	if c := w.want(t, "fp16", orin)[0]; c.State != Queued || c.Build.ID == job {
		t.Errorf("wanted again: %+v", c)
	}
}

func TestALeaseThatRanOutGoesOnWhenNobodyTookIt(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1 := w.add(t, "b1", orin)
	w.want(t, "fp16", orin)
	l := w.ask(t, b1)
	w.pass(10 * time.Minute)
	if err := w.q.Tick(w.ctx); err != nil {
		t.Fatal(err)
	}
	if a := w.send(t, b1, wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: 1, Step: "build"}); a.State != wire.LeaseBuild || a.Attempt != 1 {
		t.Errorf("back: %+v", a)
	}
	w.pass(10 * time.Minute)
	if err := w.q.Tick(w.ctx); err != nil {
		t.Fatal(err)
	}
	if a := w.finish(t, b1, l); a.State != wire.LeaseStored {
		t.Errorf("done: %+v", a)
	}
}

func TestResultsThatDoNotCount(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*wire.EngineRecord)
		class  string
		final  bool
	}{
		"wrong answers":    {func(r *wire.EngineRecord) { r.Proof.MaxAbs = 1 }, wire.BuildGolden, true},
		"no golden result": {func(r *wire.EngineRecord) { r.Proof = nil }, wire.BuildGolden, true},
		"other target":     {func(r *wire.EngineRecord) { r.Probed = thor }, wire.BuildMismatch, false},
		"other key":        {func(r *wire.EngineRecord) { r.Key = r.ONNX }, wire.BuildMismatch, false},
		"other attempt":    {func(r *wire.EngineRecord) { r.Attempt = 9 }, wire.BuildMismatch, false},
		"other length":     {func(r *wire.EngineRecord) { r.Size++ }, wire.BuildTool, false},
		"stripped unasked": {func(r *wire.EngineRecord) { r.Stripped = true }, wire.BuildMismatch, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, t.Context(), t.TempDir())
			defer w.close(t)
			b1 := w.add(t, "b1", orin)
			w.want(t, "fp16", orin)
			l := w.ask(t, b1)
			if a := w.finish(t, b1, l, c.change); a.State != wire.LeaseStop || !strings.Contains(a.Message, "refused") {
				t.Errorf("answer %+v", a)
			}
			cell := w.matrix(t, "fp16")[orinTarget]
			if cell.Engine != nil || len(cell.Build.Tried) != 1 || cell.Build.Tried[0].Class != c.class || (cell.State == Refused) != c.final || len(w.notices) != 1 {
				t.Errorf("cell %+v, notices %q", cell, w.notices)
			}
		})
	}
	t.Run("signed by another key", func(t *testing.T) {
		w := newWorld(t, t.Context(), t.TempDir())
		defer w.close(t)
		b1, b2 := w.add(t, "b1", orin), w.add(t, "b2", orin)
		w.want(t, "fp16", orin)
		l := w.ask(t, b1)
		w.keys[b1], w.keys[b2] = w.keys[b2], w.keys[b1]
		record := w.result(t, b1, l)
		w.keys[b1], w.keys[b2] = w.keys[b2], w.keys[b1]
		if a := w.send(t, b1, wire.Build{Kind: wire.BuildDone, Job: l.Job, Attempt: 1, Record: record}); a.State != wire.LeaseStop {
			t.Errorf("%+v", a)
		}
	})
	t.Run("not uploaded", func(t *testing.T) {
		w := newWorld(t, t.Context(), t.TempDir())
		defer w.close(t)
		b1 := w.add(t, "b1", orin)
		w.want(t, "fp16", orin)
		l := w.ask(t, b1)
		missing := func(r *wire.EngineRecord) { r.Digest = ota.DigestOf([]byte("elsewhere")).Sum() }
		if a := w.finish(t, b1, l, missing); a.State != wire.LeaseBuild || !strings.Contains(a.Message, "was not uploaded") {
			t.Errorf("%+v", a)
		}
		if a := w.finish(t, b1, l); a.State != wire.LeaseStored {
			t.Errorf("then uploaded: %+v", a)
		}
	})
}

func TestAnEngineOfWhoIsNoBuilderServesThereAlone(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1 := w.add(t, "b1", orin)
	w.want(t, "fp16", orin)
	l := w.ask(t, b1)
	w.devices[b1].Capabilities = nil
	w.finish(t, b1, l)
	if c := w.matrix(t, "fp16")[orinTarget]; c.State != Refused || c.Engine != nil || !strings.Contains(c.Reason, "serves there alone") {
		t.Errorf("%+v", c)
	}
	_, err := w.q.Engines(w.ctx, w.model, "fp16", []ota.Target{mustTarget(t, orin)})
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "skein engine build meter@1") {
		t.Errorf("released: %v", err)
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1 := w.add(t, "b1", orin)
	w.want(t, "fp16", orin)
	l := w.ask(t, b1)
	if _, err := w.q.Cancel(w.ctx, store.DefaultTenant, l.Job, "wrong recipe"); err != nil {
		t.Fatal(err)
	}
	w.deliver()
	if a := w.answers[b1]; a.State != wire.LeaseStop || a.Job != l.Job {
		t.Errorf("told: %+v", a)
	}
	// The message was lost: the next heartbeat is answered the same.
	if a := w.send(t, b1, wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: 1}); a.State != wire.LeaseStop || !strings.Contains(a.Message, "wrong recipe") {
		t.Errorf("heartbeat: %+v", a)
	}
	if _, err := w.q.Cancel(w.ctx, store.DefaultTenant, l.Job, ""); !errors.Is(err, ErrState) {
		t.Errorf("twice: %v", err)
	}
	if _, err := w.q.Cancel(w.ctx, store.DefaultTenant, "b0", ""); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
}

func TestRestartKeepsLeases(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	b1 := w.add(t, "b1", orin)
	w.want(t, "fp16", orin)
	l := w.ask(t, b1)
	w.pass(time.Hour) // the server was away for long
	w.close(t)
	w.open(t)
	defer w.close(t)
	if err := w.q.Tick(w.ctx); err != nil {
		t.Fatal(err)
	}
	a := w.send(t, b1, wire.Build{Kind: wire.BuildHeartbeat, Job: l.Job, Attempt: 1})
	if a.State != wire.LeaseBuild || a.Attempt != 1 || a.Work.Token == l.Work.Token {
		t.Errorf("after a restart: %+v", a)
	}
	if a := w.finish(t, b1, l); a.State != wire.LeaseStored {
		t.Errorf("done: %+v", a)
	}
}

func TestPriorities(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	b1 := w.add(t, "b1", orin)
	w.want(t, "fp16", orin)
	w.pass(time.Second)
	w.want(t, "int8", orin)
	w.pass(time.Second)
	urgent, err := w.q.Build(w.ctx, Request{Tenant: store.DefaultTenant, Model: "meter", Recipe: "best", Targets: []string{orin}, Priority: 5})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{urgent[0].Build.ID, "fp16", "int8"} {
		l := w.ask(t, b1)
		if l.Job != want && !strings.Contains(string(l.Work.Recipe), want) {
			t.Errorf("got %s %s, want %s", l.Job, l.Work.Recipe, want)
		}
		w.finish(t, b1, l)
	}
}

func TestRecipes(t *testing.T) {
	w := newWorld(t, t.Context(), t.TempDir())
	defer w.close(t)
	push := func(name, text string) error {
		_, err := w.q.PushRecipe(w.ctx, store.DefaultTenant, name, []byte(text))
		return err
	}
	if err := push("small", `{"version":1,"precision":"fp16","workspaceMiB":512}`); err != nil {
		t.Fatal(err)
	}
	if err := push("small", `{"workspaceMiB":512, "precision":"fp16","version":1}`); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for text, want := range map[string]error{`{"version":1,"precision":"fp16","workspaceMiB":256}`: ErrExists, `{"version":1,"precision":"fp16","x":1}`: ErrInvalid} {
		if err := push("small", text); !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := push("fp16", `{"version":1,"precision":"fp16"}`); !errors.Is(err, ErrInvalid) {
		t.Errorf("a preset's name: %v", err)
	}
	d, err := w.blobs.PutBytes([]byte("\x7fELF"))
	if err != nil {
		t.Fatal(err)
	}
	if err := push("nms", `{"version":1,"precision":"fp16","plugins":[{"name":"libnms.so","digest":"`+string(d)+`","size":4}]}`); err != nil {
		t.Fatal(err)
	}
	_, err = w.q.Build(w.ctx, Request{Tenant: store.DefaultTenant, Model: "meter", Recipe: "nms", Targets: []string{orin}})
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "plugins, which are code") {
		t.Errorf("code without a signature: %v", err)
	}
	if err := push("gone", `{"version":1,"precision":"int8","calibration":{"name":"c","digest":"`+string(ota.DigestOf([]byte("c")))+`","size":1}}`); !errors.Is(err, ErrUnknown) {
		t.Errorf("calibration that is not here: %v", err)
	}
	for text, want := range map[string]error{"": ErrInvalid, "nothing": ErrUnknown} {
		if _, err := w.q.Recipe(w.ctx, store.DefaultTenant, text); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTail(t *testing.T) {
	var l tail
	l.add(0, []byte("one\n"))
	l.add(0, []byte("one\n")) // a repeat
	l.add(2, []byte("e\ntwo\n"))
	if got, next := l.from(0); string(got) != "one\ntwo\n" || next != 8 {
		t.Errorf("%q %d", got, next)
	}
	l.add(100, []byte("far\n"))
	if got, next := l.from(8); !strings.Contains(string(got), "were lost") || !strings.HasSuffix(string(got), "far\n") || next != 104 {
		t.Errorf("%q %d", got, next)
	}
	l.add(104, make([]byte, 2*maxLog))
	if len(l.buf) != maxLog {
		t.Errorf("%d bytes", len(l.buf))
	}
}

func mustTarget(t testingT, s string) ota.Target {
	t.Helper()
	got, err := ota.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}
