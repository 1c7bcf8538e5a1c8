package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
)

const fakeToken = "skp_fake"

// fake is a control plane of memory alone that answers the dashboard's calls:
// a fleet with every state in it, and rollouts that move when step is called.
type fake struct {
	fleetv1connect.UnimplementedFleetServiceHandler
	rolloutv1connect.UnimplementedRolloutServiceHandler

	// mu guards everything below.
	mu        sync.Mutex
	devices   map[string]*fleetv1.Device
	changed   map[string]bool
	tick      chan struct{} // closed and replaced at each step
	rollouts  []*rolloutv1.Rollout
	runs      map[string]map[string]*rolloutv1.DeviceExecution
	decisions map[string][]*rolloutv1.Decision
	releases  []*releasev1.Release
	tokens    []*fleetv1.Token
	audit     []*auditv1.Entry
	rng       *rand.Rand
}

var (
	fakeSites   = []string{"lyon", "porto", "gent", "turku", "split"}
	fakeTargets = []struct{ hardware, target string }{
		{"Jetson Orin Nano 8GB", "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=8;dla=0"},
		{"Jetson AGX Orin 64GB", "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=64;dla=2"},
		{"Jetson Xavier NX", "linux/arm64;sm=7.2;trt=8.5.2;cuda=11.4;l4t=35.4.1;mem=8;dla=2"},
		{"Jetson Nano", "linux/arm64;sm=5.3;trt=8.2.1;cuda=10.2;l4t=32.7.4;mem=4;dla=0"},
		{"x86 gateway", "linux/amd64;ort=1"},
	}
	fakeSteps = []string{"fetch", "verify", "stage", "build", "load", "prove", "switch", "soak", "commit"}
)

func digest(n int) string { return fmt.Sprintf("sha256:%064x", n*7919+13) }

func newFake(n int) *fake {
	f := &fake{devices: map[string]*fleetv1.Device{}, changed: map[string]bool{}, tick: make(chan struct{}),
		runs: map[string]map[string]*rolloutv1.DeviceExecution{}, decisions: map[string][]*rolloutv1.Decision{},
		rng: rand.New(rand.NewPCG(1, 2))}
	now := time.Now()
	for i, v := range []string{"1", "2", "3"} {
		r := &releasev1.Release{Digest: digest(i + 1), Name: "meter", Version: v, Counter: uint64(i + 1), Model: "digits", ModelVersion: int64(i + 1),
			Bytes: 1_843_000, Created: timestamppb.New(now.Add(-time.Duration(72-24*i) * time.Hour)), CreatedBy: "user:ci", SoakSeconds: 30,
			Parameters: []*releasev1.ParameterDeclaration{{Key: "camera.url", Type: "url", Required: true, Description: "where the frames come from"}}}
		for k, t := range fakeTargets {
			r.Targets = append(r.Targets, &releasev1.TargetManifest{Target: t.target, ManifestDigest: digest(100 + k), Bytes: 368_600})
		}
		f.releases = append(f.releases, r)
	}
	for i := range n {
		f.addDevice(i, now)
	}
	// Made last, so that devices and rollouts go on with the three before it.
	waits := proto.CloneOf(f.releases[2])
	waits.Digest, waits.Version, waits.Counter, waits.Created = digest(4), "4", 4, timestamppb.New(now.Add(-20*time.Minute))
	waits.Pending = "waits for 1 more signature of targets 8"
	waits.AgentTargets, waits.OsTargets = []string{fakeTargets[0].target}, []string{fakeTargets[0].target}
	f.releases = append(f.releases, waits)
	f.tokens = []*fleetv1.Token{{Id: "t-7f3a", Uses: 20, Used: 12, Expires: timestamppb.New(now.Add(20 * time.Hour)), Labels: map[string]string{"site": "lyon"}, Created: timestamppb.New(now), CreatedBy: "user:admin", AutoApprove: true}}
	f.addRollout("meter-2", 1, now.Add(-26*time.Hour), 1)
	bad := f.addRollout("meter-2b", 2, now.Add(-3*time.Hour), 0)
	bad.Phase, bad.Reason, bad.Harmed = "aborted", "wave canary failed: latency of 7 of 10 devices is 2.3 times their own past", 7
	bad.Waves[0].State, bad.Waves[0].Verdict, bad.Waves[0].Failed, bad.Waves[0].RolledBack, bad.Waves[0].Healthy = "failed", "fail", 3, 7, 0
	bad.Waves[0].Evidence = []string{"skein_inference_latency_p99_seconds: 7 of 10 devices regressed, limit 20 %", "3 devices FAILED at prove: label agreement 3 of 32, need 95 %"}
	bad.Failed, bad.RolledBack, bad.Ended = 3, 7, timestamppb.New(now.Add(-2*time.Hour))
	hurt := 0
	for _, id := range slices.Sorted(maps.Keys(f.runs[bad.Id])) {
		x := f.runs[bad.Id][id]
		switch hurt++; {
		case x.Wave != "canary":
			x.State = "withdrawn"
		case hurt <= 3:
			x.State, x.FailureClass, x.Message = "failed", "FAILED", "label agreement 3 of 32, need 95 %"
		default:
			x.State = "rolled-back"
		}
	}
	f.log("system:conductor", "rollout/abort", bad.Id, `{"phase":"running"}`, `{"phase":"aborted"}`)
	return f
}

func (f *fake) addDevice(i int, now time.Time) {
	t := fakeTargets[i%len(fakeTargets)]
	rel := f.releases[1]
	id := fmt.Sprintf("%026x", i*1_000_003+17)
	d := &fleetv1.Device{Id: id, Tenant: "default", Name: fmt.Sprintf("cam-%03d", i+1), Serial: fmt.Sprintf("14238%08d", i), Hardware: t.hardware, Target: t.target,
		Labels: map[string]string{"site": fakeSites[i%len(fakeSites)], "ring": []string{"early", "main", "main"}[i%3]}, State: fleetv1.DeviceState_DEVICE_STATE_ONLINE,
		LastSeen: timestamppb.New(now), Enrolled: timestamppb.New(now.Add(-9 * 24 * time.Hour)), CertificateNotAfter: timestamppb.New(now.Add(21 * 24 * time.Hour)),
		AgentVersion: "0.1.0", DesiredRelease: rel.Digest, DesiredReleaseName: "meter@2", RunningRelease: rel.Digest, RunningReleaseName: "meter@2",
		DesiredGeneration: &fleetv1.Generation{Epoch: 1, Counter: 4}, HeldGeneration: &fleetv1.Generation{Epoch: 1, Counter: 4}, Phase: "idle", Step: "commit",
		DesiredParametersDigest: digest(500), ReportedParametersDigest: digest(500), BootId: fmt.Sprintf("%016x", i)}
	for k, s := range fakeSteps {
		at := now.Add(-time.Hour + time.Duration(k*4)*time.Second)
		d.Journal = append(d.Journal, &fleetv1.StepEntry{Step: s, State: "started", Release: rel.Digest, Time: timestamppb.New(at)},
			&fleetv1.StepEntry{Step: s, State: "done", Release: rel.Digest, Time: timestamppb.New(at.Add(3 * time.Second))})
	}
	f.addMachine(d, i, now)
	switch {
	case i%41 == 7:
		d.State, d.LastSeen = fleetv1.DeviceState_DEVICE_STATE_OFFLINE, timestamppb.New(now.Add(-37*time.Minute))
	case i%53 == 11:
		d.State, d.RunningRelease, d.RunningReleaseName, d.DesiredRelease, d.DesiredReleaseName, d.Journal, d.Step = fleetv1.DeviceState_DEVICE_STATE_PENDING, "", "", "", "", nil, ""
	case i%97 == 3:
		d.Phase, d.Step, d.FailureClass, d.Failure = "failed", "prove", "FAILED", "golden set: label agreement 3 of 32, need 95 %"
		d.DesiredRelease, d.DesiredReleaseName = f.releases[2].Digest, "meter@3"
		d.Journal = d.Journal[:11]
		d.Journal = append(d.Journal, &fleetv1.StepEntry{Step: "prove", State: "failed", Release: f.releases[2].Digest, Message: d.Failure, Time: timestamppb.New(now.Add(-59 * time.Minute))})
		d.Conditions = []*fleetv1.Condition{{Name: "golden-set-failed", Severity: "critical", Message: d.Failure, Since: timestamppb.New(now.Add(-59 * time.Minute))}}
	case i%29 == 5:
		d.Conditions = []*fleetv1.Condition{{Name: "thermal-throttle", Severity: "warning", Message: "GPU clock held at 612 MHz at 94 °C", Since: timestamppb.New(now.Add(-11 * time.Minute))}}
	}
	f.devices[id] = d
}

// addRollout draws the whole fleet into three waves; full of it has succeeded.
func (f *fake) addRollout(name string, release int, created time.Time, full float64) *rolloutv1.Rollout {
	rel := f.releases[release]
	r := &rolloutv1.Rollout{Id: fmt.Sprintf("r-%06x", len(f.rollouts)*7919+4096), Name: name, Release: rel.Digest, ReleaseName: rel.Name + "@" + rel.Version,
		Phase: "running", Created: timestamppb.New(created), CreatedBy: "user:admin"}
	ids := slices.Sorted(maps.Keys(f.devices))
	for i, size := range []int{2 * len(fakeTargets), len(ids) / 4, len(ids) - len(ids)/4 - 2*len(fakeTargets)} {
		r.Waves = append(r.Waves, &rolloutv1.Wave{Name: []string{"canary", "quarter", "rest"}[i], State: "waiting", Devices: int32(max(size, 0)), Queued: int32(max(size, 0))})
	}
	f.runs[r.Id] = map[string]*rolloutv1.DeviceExecution{}
	for i, id := range ids {
		wave := "rest"
		if i < 2*len(fakeTargets) {
			wave = "canary"
		} else if i < 2*len(fakeTargets)+len(ids)/4 {
			wave = "quarter"
		}
		f.runs[r.Id][id] = &rolloutv1.DeviceExecution{Device: id, DeviceName: f.devices[id].Name, Wave: wave, State: "queued", Updated: timestamppb.New(created)}
	}
	r.Devices = int32(len(ids))
	r.Waves[0].State, r.Waves[0].Started = "running", timestamppb.New(created)
	if full == 1 {
		r.Phase, r.Ended, r.Healthy = "succeeded", timestamppb.New(created.Add(47*time.Minute)), r.Devices
		for _, w := range r.Waves {
			w.State, w.Verdict, w.Healthy, w.Queued, w.Started, w.Ended = "passed", "pass", w.Devices, 0, timestamppb.New(created), timestamppb.New(created.Add(12*time.Minute))
			w.Evidence = []string{fmt.Sprintf("%d of %d devices healthy, need 90 %%", w.Devices, w.Devices)}
		}
		for _, x := range f.runs[r.Id] {
			x.State = "healthy"
		}
	}
	f.decide(r, "start", "", "canary", "draws 2 devices of each target")
	f.rollouts = append([]*rolloutv1.Rollout{r}, f.rollouts...)
	return r
}

func (f *fake) decide(r *rolloutv1.Rollout, kind, device, wave, reason string) {
	f.decisions[r.Id] = append(f.decisions[r.Id], &rolloutv1.Decision{Time: timestamppb.Now(), Kind: kind, Device: device, Wave: wave, Reason: reason})
}

func (f *fake) log(actor, action, subject, before, after string) {
	f.audit = append(f.audit, &auditv1.Entry{Sequence: int64(len(f.audit) + 1), Time: timestamppb.Now(), Tenant: "default", Actor: actor, Action: action,
		Subject: subject, Decision: "allowed", Rule: "role operator", Before: before, After: after})
}

// step moves every running rollout a little and wakes the streams.
func (f *fake) step() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rollouts {
		if r.Phase == "running" || r.Phase == "aborting" {
			f.move(r)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(f.devices)) {
		if d := f.devices[id]; d.State == fleetv1.DeviceState_DEVICE_STATE_ONLINE && f.rng.IntN(20) == 0 {
			d.LastSeen = timestamppb.Now()
			f.changed[id] = true
		}
	}
	close(f.tick)
	f.tick = make(chan struct{})
}

func (f *fake) move(r *rolloutv1.Rollout) {
	if r.Phase == "aborting" {
		for _, x := range f.runs[r.Id] {
			switch x.State {
			case "healthy":
				x.State = "rolled-back"
			case "queued", "offered", "in-progress":
				x.State = "withdrawn"
			}
		}
		r.Phase, r.Ended = "aborted", timestamppb.Now()
		f.count(r)
		return
	}
	w := r.Waves[r.CurrentWave]
	budget, held := 12, int32(0)
	for _, id := range slices.Sorted(maps.Keys(f.runs[r.Id])) {
		x := f.runs[r.Id][id]
		if x.Wave != w.Name || budget == 0 {
			continue
		}
		switch {
		case x.State == "queued":
			x.State = "offered"
		case x.State == "offered":
			x.State = "in-progress"
			d := f.devices[id]
			d.Phase, d.Step, d.DesiredRelease, d.DesiredReleaseName = "updating", "fetch", r.Release, r.ReleaseName
		case x.State == "in-progress" && f.devices[id].Transfer.GetWaits() != "":
			held++
			continue
		case x.State == "in-progress" && f.rng.IntN(25) == 0:
			x.State, x.FailureClass, x.Message = "failed", "FAILED", "disk full: 12 MiB free, 340 MiB needed"
			f.devices[id].Phase = "failed"
		case x.State == "in-progress":
			x.State = "healthy"
			d := f.devices[id]
			d.Phase, d.Step, d.RunningRelease, d.RunningReleaseName, d.DesiredRelease, d.DesiredReleaseName = "idle", "commit", r.Release, r.ReleaseName, r.Release, r.ReleaseName
		default:
			continue
		}
		budget--
		x.Updated = timestamppb.Now()
		f.changed[id] = true
	}
	f.count(r)
	if w.Queued+w.InProgress > held {
		return
	}
	w.State, w.Verdict, w.Ended = "passed", "pass", timestamppb.Now()
	w.Evidence = []string{fmt.Sprintf("%d of %d executed devices healthy, need 90 %%", w.Healthy, w.Devices)}
	f.decide(r, "pass", "", w.Name, w.Evidence[0])
	if int(r.CurrentWave) == len(r.Waves)-1 {
		r.Phase, r.Ended = "succeeded", timestamppb.Now()
		return
	}
	r.CurrentWave++
	r.Waves[r.CurrentWave].State, r.Waves[r.CurrentWave].Started = "running", timestamppb.Now()
}

func (f *fake) count(r *rolloutv1.Rollout) {
	r.Healthy, r.Failed, r.RolledBack = 0, 0, 0
	for _, w := range r.Waves {
		w.Queued, w.InProgress, w.Healthy, w.Failed, w.RolledBack = 0, 0, 0, 0, 0
		for _, x := range f.runs[r.Id] {
			if x.Wave != w.Name {
				continue
			}
			switch x.State {
			case "queued":
				w.Queued++
			case "offered", "in-progress":
				w.InProgress++
			case "healthy":
				w.Healthy++
			case "failed":
				w.Failed++
			case "rolled-back":
				w.RolledBack++
			}
		}
		r.Healthy, r.Failed, r.RolledBack = r.Healthy+w.Healthy, r.Failed+w.Failed, r.RolledBack+w.RolledBack
	}
}

func (f *fake) status() *fleetv1.FleetStatus {
	s := &fleetv1.FleetStatus{Devices: int32(len(f.devices)), Time: timestamppb.Now()}
	by := map[string]map[string]int32{}
	add := func(kind, key string) {
		if by[kind] == nil {
			by[kind] = map[string]int32{}
		}
		by[kind][key]++
	}
	for _, d := range f.devices {
		add("state", strings.ToLower(strings.TrimPrefix(d.State.String(), "DEVICE_STATE_")))
		add("target", d.Target)
		add("site", d.Labels["site"])
		add("release", d.RunningReleaseName)
		add("hardware", d.Hardware)
		for _, c := range d.Conditions {
			add("condition", c.Name)
		}
		if d.Phase == "updating" {
			s.Converging++
		}
		if d.FailureClass != "" {
			s.Failed++
		}
	}
	counts := func(kind string) (out []*fleetv1.Count) {
		for _, k := range slices.Sorted(maps.Keys(by[kind])) {
			out = append(out, &fleetv1.Count{Key: k, Count: by[kind][k]})
		}
		return out
	}
	s.ByState, s.ByTarget, s.BySite, s.ByRelease, s.ByHardware, s.ByCondition = counts("state"), counts("target"), counts("site"), counts("release"), counts("hardware"), counts("condition")
	return s
}

func (f *fake) device(ref string) (*fleetv1.Device, error) {
	for _, d := range f.devices {
		if d.Id == ref || d.Name == ref {
			return d, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no device %q", ref))
}

func (f *fake) ListDevices(_ context.Context, r *fleetv1.ListDevicesRequest) (*fleetv1.ListDevicesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := slices.Sorted(maps.Keys(f.devices))
	from, _ := strconv.Atoi(r.PageToken)
	to := min(len(ids), from+int(r.PageSize))
	out := &fleetv1.ListDevicesResponse{Total: int32(len(ids))}
	for _, id := range ids[from:to] {
		out.Devices = append(out.Devices, proto.CloneOf(f.devices[id]))
	}
	if to < len(ids) {
		out.NextPageToken = strconv.Itoa(to)
	}
	return out, nil
}

func (f *fake) GetFleetStatus(context.Context, *fleetv1.GetFleetStatusRequest) (*fleetv1.GetFleetStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fleetv1.GetFleetStatusResponse{Status: f.status()}, nil
}

// watch calls send now and after each step until the caller goes.
func (f *fake) watch(ctx context.Context, send func() (last bool, err error)) error {
	for {
		f.mu.Lock()
		tick := f.tick
		f.mu.Unlock()
		if last, err := send(); last || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

func (f *fake) WatchFleet(ctx context.Context, _ *fleetv1.WatchFleetRequest, s *connect.ServerStream[fleetv1.WatchFleetResponse]) error {
	return f.watch(ctx, func() (bool, error) {
		f.mu.Lock()
		m := &fleetv1.WatchFleetResponse{Status: f.status()}
		for id := range f.changed {
			m.Changed = append(m.Changed, proto.CloneOf(f.devices[id]))
		}
		clear(f.changed)
		f.mu.Unlock()
		return false, s.Send(m)
	})
}

func (f *fake) WatchDevice(ctx context.Context, r *fleetv1.WatchDeviceRequest, s *connect.ServerStream[fleetv1.WatchDeviceResponse]) error {
	return f.watch(ctx, func() (bool, error) {
		f.mu.Lock()
		d, err := f.device(r.Device)
		m := &fleetv1.WatchDeviceResponse{Device: proto.CloneOf(d)}
		f.mu.Unlock()
		if err != nil {
			return false, err
		}
		now := time.Now()
		for _, line := range fakeSeries {
			m.Readings = append(m.Readings, &fleetv1.Reading{Series: line.text(), Value: line.at(float64(now.UnixMilli()) / 1000), Time: timestamppb.New(now)})
		}
		return false, s.Send(m)
	})
}

func (f *fake) ExplainDevice(_ context.Context, r *fleetv1.ExplainDeviceRequest) (*fleetv1.ExplainDeviceResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.device(r.Device)
	if err != nil {
		return nil, err
	}
	if d.FailureClass != "" {
		return &fleetv1.ExplainDeviceResponse{Summary: "The last update failed at step prove; the device serves meter@2 on.", Reasons: []string{d.Failure, "REJECTED and FAILED updates are not offered again by this rollout"}}, nil
	}
	return &fleetv1.ExplainDeviceResponse{Summary: cmp.Or(map[bool]string{true: "Converged: it runs what is wanted."}[d.Phase == "idle"], "An update is under way, in step "+d.Step+".")}, nil
}

func (f *fake) ListDeviceEvents(_ context.Context, r *fleetv1.ListDeviceEventsRequest) (*fleetv1.ListDeviceEventsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.device(r.Device)
	if err != nil {
		return nil, err
	}
	out := &fleetv1.ListDeviceEventsResponse{}
	for _, e := range slices.Backward(d.Journal) {
		out.Events = append(out.Events, &fleetv1.DeviceEvent{Time: e.Time, Received: e.Time, Kind: "step", Message: cmp.Or(e.Message, e.Step+" "+e.State), Release: e.Release, Step: e.Step})
	}
	out.Events = append(out.Events, &fleetv1.DeviceEvent{Time: d.Enrolled, Received: d.Enrolled, Kind: "refused", Attack: "rollback", Message: "timestamp.json version 3 is older than 5"})
	return out, nil
}

// act changes one device, logs it and tells the streams.
func (f *fake) act(ref, action string, change func(*fleetv1.Device)) (*fleetv1.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.device(ref)
	if err != nil {
		return nil, err
	}
	change(d)
	f.changed[d.Id] = true
	f.log("user:admin", "skein.fleet.v1.FleetService/"+action, d.Id, `{"labels":{"site":"lyon"},"state":"online"}`, `{"labels":{"site":"gent"},"state":"online"}`)
	return proto.CloneOf(d), nil
}

func (f *fake) ApproveDevice(_ context.Context, r *fleetv1.ApproveDeviceRequest) (*fleetv1.ApproveDeviceResponse, error) {
	d, err := f.act(r.Device, "ApproveDevice", func(d *fleetv1.Device) { d.State = fleetv1.DeviceState_DEVICE_STATE_OFFLINE })
	return &fleetv1.ApproveDeviceResponse{Device: d}, err
}

func (f *fake) RevokeDevice(_ context.Context, r *fleetv1.RevokeDeviceRequest) (*fleetv1.RevokeDeviceResponse, error) {
	d, err := f.act(r.Device, "RevokeDevice", func(d *fleetv1.Device) { d.State = fleetv1.DeviceState_DEVICE_STATE_REVOKED })
	return &fleetv1.RevokeDeviceResponse{Device: d, SessionEnded: true}, err
}

func (f *fake) LabelDevice(_ context.Context, r *fleetv1.LabelDeviceRequest) (*fleetv1.LabelDeviceResponse, error) {
	d, err := f.act(r.Device, "LabelDevice", func(d *fleetv1.Device) {
		maps.Copy(d.Labels, r.Set)
		for _, k := range r.Remove {
			delete(d.Labels, k)
		}
		d.Name = cmp.Or(r.Name, d.Name)
	})
	return &fleetv1.LabelDeviceResponse{Device: d}, err
}

func (f *fake) ListTokens(context.Context, *fleetv1.ListTokensRequest) (*fleetv1.ListTokensResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fleetv1.ListTokensResponse{Tokens: slices.Clone(f.tokens)}, nil
}

func (f *fake) CreateTokens(_ context.Context, r *fleetv1.CreateTokensRequest) (*fleetv1.CreateTokensResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &fleetv1.Token{Id: fmt.Sprintf("t-%04x", len(f.tokens)*577), Uses: r.Uses, Labels: r.Labels, Expires: timestamppb.New(time.Now().Add(time.Duration(r.TtlSeconds) * time.Second))}
	f.tokens = append(f.tokens, t)
	return &fleetv1.CreateTokensResponse{Tokens: []*fleetv1.CreatedToken{{Token: t, Claim: "skein1.c2VjcmV0.aGFzaA"}}}, nil
}

func (f *fake) rollout(ref string) (*rolloutv1.Rollout, error) {
	for _, r := range f.rollouts {
		if r.Id == ref || r.Name == ref {
			return r, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no rollout %q", ref))
}

func (f *fake) PlanRollout(_ context.Context, r *rolloutv1.PlanRolloutRequest) (*rolloutv1.PlanRolloutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &rolloutv1.PlanRolloutResponse{EffectiveSpec: r.Spec, Notes: []string{"The canary can show a regression of 18 % or more in p99 latency."}}
	waves := r.GetSpec().GetFields()["waves"].GetListValue().GetValues()
	if len(waves) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("waves: at least one wave is needed"))
	}
	for i, w := range waves {
		p := &rolloutv1.PlannedWave{Name: w.GetStructValue().GetFields()["name"].GetStringValue(), ByTarget: map[string]int32{}}
		for _, t := range fakeTargets {
			p.ByTarget[t.target] = int32(2 + i*len(f.devices)/20)
			p.Devices += p.ByTarget[t.target]
		}
		p.Bytes = int64(p.Devices) * 368_600
		out.Waves = append(out.Waves, p)
	}
	for _, d := range f.devices {
		if d.State == fleetv1.DeviceState_DEVICE_STATE_PENDING {
			out.Unreachable = append(out.Unreachable, &rolloutv1.Unreachable{Device: d.Id, DeviceName: d.Name, Reason: "waits for approval"})
		}
	}
	return out, nil
}

func (f *fake) StartRollout(_ context.Context, r *rolloutv1.StartRolloutRequest) (*rolloutv1.StartRolloutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.releases, func(x *releasev1.Release) bool {
		return x.Digest == r.GetSpec().GetFields()["release"].GetStringValue()
	})
	if i < 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("release: no such release"))
	}
	ro := f.addRollout(cmp.Or(r.Name, "meter-"+f.releases[i].Version), i, time.Now(), 0)
	ro.Spec = r.Spec
	f.log("user:admin", "skein.rollout.v1.RolloutService/StartRollout", ro.Id, "", `{"phase":"running"}`)
	return &rolloutv1.StartRolloutResponse{Rollout: proto.CloneOf(ro)}, nil
}

func (f *fake) ListRollouts(context.Context, *rolloutv1.ListRolloutsRequest) (*rolloutv1.ListRolloutsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &rolloutv1.ListRolloutsResponse{}
	for _, r := range f.rollouts {
		out.Rollouts = append(out.Rollouts, proto.CloneOf(r))
	}
	return out, nil
}

func (f *fake) GetRollout(_ context.Context, q *rolloutv1.GetRolloutRequest) (*rolloutv1.GetRolloutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.rollout(q.Rollout)
	if err != nil {
		return nil, err
	}
	out := &rolloutv1.GetRolloutResponse{Rollout: proto.CloneOf(r), Decisions: slices.Clone(f.decisions[r.Id])}
	for _, x := range f.runs[r.Id] {
		out.Devices = append(out.Devices, proto.CloneOf(x))
	}
	return out, nil
}

func (f *fake) WatchRollout(ctx context.Context, q *rolloutv1.WatchRolloutRequest, s *connect.ServerStream[rolloutv1.WatchRolloutResponse]) error {
	return f.watch(ctx, func() (bool, error) {
		f.mu.Lock()
		r, err := f.rollout(q.Rollout)
		if err != nil {
			f.mu.Unlock()
			return false, err
		}
		m := &rolloutv1.WatchRolloutResponse{Rollout: proto.CloneOf(r)}
		for _, x := range f.runs[r.Id] {
			m.Changed = append(m.Changed, proto.CloneOf(x))
		}
		f.mu.Unlock()
		return r.Ended != nil, s.Send(m)
	})
}

func (f *fake) ExplainRollout(_ context.Context, q *rolloutv1.ExplainRolloutRequest) (*rolloutv1.ExplainRolloutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.rollout(q.Rollout)
	if err != nil {
		return nil, err
	}
	w := r.Waves[r.CurrentWave]
	out := &rolloutv1.ExplainRolloutResponse{Summary: fmt.Sprintf("The rollout is %s.", r.Phase)}
	switch r.Phase {
	case "running":
		out.Summary = fmt.Sprintf("Wave %s is under way: %d of %d devices settled.", w.Name, w.Healthy+w.Failed, w.Devices)
		out.Reasons = []string{fmt.Sprintf("the ramp allows 12 devices in flight, %d are", w.InProgress)}
	case "aborted", "paused":
		out.Reasons = []string{cmp.Or(r.Reason, "a person asked for it")}
	}
	return out, nil
}

func (f *fake) turn(ref, action, phase, reason string) (*rolloutv1.Rollout, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.rollout(ref)
	if err != nil {
		return nil, err
	}
	if r.Ended != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("the rollout is %s already", r.Phase))
	}
	f.log("user:admin", "skein.rollout.v1.RolloutService/"+action, r.Id, `{"phase":"`+r.Phase+`"}`, `{"phase":"`+phase+`"}`)
	r.Phase, r.Reason = phase, reason
	f.decide(r, phase, "", "", reason)
	return proto.CloneOf(r), nil
}

func (f *fake) PauseRollout(_ context.Context, q *rolloutv1.PauseRolloutRequest) (*rolloutv1.PauseRolloutResponse, error) {
	r, err := f.turn(q.Rollout, "PauseRollout", "paused", q.Reason)
	return &rolloutv1.PauseRolloutResponse{Rollout: r}, err
}

func (f *fake) ResumeRollout(_ context.Context, q *rolloutv1.ResumeRolloutRequest) (*rolloutv1.ResumeRolloutResponse, error) {
	r, err := f.turn(q.Rollout, "ResumeRollout", "running", q.Reason)
	return &rolloutv1.ResumeRolloutResponse{Rollout: r}, err
}

func (f *fake) AbortRollout(_ context.Context, q *rolloutv1.AbortRolloutRequest) (*rolloutv1.AbortRolloutResponse, error) {
	r, err := f.turn(q.Rollout, "AbortRollout", "aborting", q.Reason)
	return &rolloutv1.AbortRolloutResponse{Rollout: r}, err
}
