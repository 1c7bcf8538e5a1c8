package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden vectors")

// vectors are one value of every message with every field set.
func vectors() map[string]any {
	id := MessageID{Boot: 0x1122334455667788, Counter: 42}
	sum := bytes.Repeat([]byte{0xab}, 32)
	held := Held{Generation: Generation{Epoch: 1, Counter: 7}, Digest: sum}
	return map[string]any{
		"presence": &Presence{ID: id, Connection: 3, Online: true},
		"hello": &Hello{ID: id, Held: held, Target: "linux/arm64;sm=8.7;trt=10.3.0", Capability: 1,
			Clock: Clock{UnixMilli: 1700000000000, Doubtful: true}, Agent: "0.1.0", Hardware: "Orin Nano", Peer: []string{"10.0.0.7:7443"}},
		"desired": &Desired{Device: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Tenant: "default", Generation: held.Generation, IssuedAt: 1700000000, ExpiresAt: 1700604800,
			Release: &ReleaseRef{Target: "releases/meter/3", Digest: sum, Length: 1234, Counter: 3},
			Params:  []Param{{Key: "camera", Value: []byte("rtsp://a"), Secret: true}}, RollbackAllowed: true, Rollout: "r1",
			Policy: &Policy{Download: []Schedule{{Windows: "Mon-Fri 22:00-06:00", Zone: "Europe/Paris"}}, Apply: []Schedule{{Windows: "Sun 02:00-05:00", Zone: "UTC"}},
				Zone: "Europe/Paris", Metered: []string{"wwan*"}, Allowances: []Allowance{{Class: Metered, Period: PerDay, Bytes: 50 << 20}},
				Rate: 1 << 20, Reserve: 256 << 20, Now: true, Power: &PowerWish{Mode: "15W", Clocks: ClocksLocked, Fan: "cool", Reboot: true}, MaxHold: 3600, EngineFit: "optimal"},
			Peers: []Peer{{Device: "bbbbbbbbbbbbbbbbbbbbbbbbbb", Addresses: []string{"10.0.0.7:7443"}}}, Grant: []byte{0xd2}, Cache: true},
		"grant": &Grant{Device: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Tenant: "default", Release: sum, ExpiresAt: 1700604800},
		"report": &Report{ID: id, Held: held, Counter: 99, Full: &Reported{Running: sum, RunningCounter: 3, Phase: PhaseFailed, Step: "prove",
			FailureClass: "FAILED", Failure: "golden set: 2 of 32 labels agree", FailedRelease: sum,
			Conditions:   []Condition{{Name: "disk-full", Severity: 3, Message: "3 MiB left", Since: 1700000000000}},
			Journal:      []StepEntry{{Step: "prove", State: StepFailed, Release: sum, Message: "m", Time: 1700000000000}},
			ParamsDigest: sum, Target: "linux/amd64;ort=1", HighestCounter: 4, BytesFetched: 5,
			Sources: []SourceBytes{{Name: "mqtt", Bytes: 5}},
			Boot: &BootChain{Driver: "nvbootctrl", Version: "36.4.7", Redundancy: "armed", Capsule: "applied",
				Firmware: []BootSlot{{Number: 1, Status: "normal", Retries: -1, Current: true, Active: true}},
				Rootfs:   []BootSlot{{Number: 1, Status: "unbootable", Retries: 3, Current: true, Active: true}},
				ESRT:     []BootFirmware{{Class: "bf0d4599", Version: 36, Lowest: 35, Attempted: 37, Status: 6}},
				Traps:    []BootTrap{{Name: "slot-unbootable", Problem: "0xFF", Repair: "printf"}}},
			Agent: &AgentSlots{Version: "1.2", Active: "a", Previous: "factory", Digest: bytes.Repeat([]byte{5}, 32), Trial: "b", TriesLeft: 4, CheckedIn: true, Failure: "exit status 1"},
			Policy: &PolicyState{Interface: "wwan0", Class: Metered, Zone: "Europe/Paris", Waits: WaitsForAllowance, Until: 1700000000,
				Used:  []Usage{{Class: Metered, Period: PerDay, Name: "2026-11-24", Bytes: 5, Limit: 6}},
				Holds: []Hold{{Owner: "line-3", Reason: "a batch runs", Since: 1700000000, Until: 1700000600}}},
			Power: &Power{Mode: "15W", Modes: []string{"15W", "7W"}, Wanted: "7W", NeedsReboot: true, Clocks: ClocksDynamic, Fan: "quiet",
				Throttle: []Throttle{{Name: "heat", Detail: "tj-thermal"}}, Headroom: 12500, Zone: "tj-thermal", OverCurrent: []OverCurrent{{Name: "oc3", Count: 27390, PerHour: 60}}},
			Servers: []Server{{Workload: "ab-cd", Kind: "container", Server: "triton", Image: sum, State: "waiting", Reason: "m", Started: 1700000000000, Restarts: 2,
				LastExit: "oom: the kernel ended it for memory", Memory: 800 << 20, Requests: 7, Failed: 1, Queue: 40, Compute: 900, Pending: 3, GPUMemory: 1 << 30}},
			Tap: &Tap{Address: "unix:/run/skein-agent/agent-tap.sock", Refused: 2, Asked: []Asked{{Model: "meter", Version: "3", OK: 7, Invalid: 1, Failed: 2, Shed: 3, P50: 900, P99: 4000}}}}},
		"crash": &Crash{ID: id, Number: 2, Kind: "machine", Time: 1700000000000, Found: 1700000060000, Agent: "0.1.0", Panic: "panic: m", Log: []string{"l"}, Tegrastats: []string{"RAM 1/2MB"},
			Journal: []StepEntry{{Step: "load", State: StepStarted, Release: sum, Message: "m", Time: 1700000000000}}, Exits: []string{"exit status 1"}},
		"telemetry": &Telemetry{ID: id, Block: []byte{1, 2, 3}},
		"event":     &Event{ID: id, Time: 1700000000000, Kind: "refused", Message: "m", Release: sum, Step: "verify", Attack: "rollback"},
		"get": &Get{ID: id, Stream: 9, Digest: sum, Name: "timestamp.json", Offset: 4096, Length: 1 << 20, Block: 16384, Run: 4, Seq: 3, Base: 17,
			Wanted: []byte{0x05}, Stop: true},
		"chunk": &Chunk{Stream: 9, Seq: 3, First: 17, Data: []byte{1, 2, 3}, Size: 2 << 20, Tag: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Refused: RefusedBusy,
			Message: "m", Wait: 1000},
		"build": &Build{ID: id, Kind: BuildDone, Job: "b1", Attempt: 2, Target: "linux/arm64;sm=8.7;trt=10.3.0", Step: "upload", Percent: 99, Message: "m",
			Class: BuildMemory, Offset: 4096, Data: []byte("log"), Record: []byte{0xd2}},
		"build-lease": &BuildLease{Device: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Tenant: "default", State: LeaseBuild, IssuedAt: 1700000000000, ExpiresAt: 1700000300,
			Every: 30, Job: "b1", Attempt: 2, Message: "m",
			Work: &BuildWork{Model: "meter", Version: 3, ONNX: Blob{Digest: sum, Length: 1234, Name: "model.onnx"}, Golden: &Blob{Digest: sum, Length: 5, Name: "golden.json"},
				Recipe: []byte(`{"version":1,"precision":"fp16"}`), Target: "linux/arm64;sm=8.7;trt=10.3.0", Key: sum,
				TimingCache: &Blob{Digest: sum, Length: 6, Name: "timing.cache"}, Calibration: &Blob{Digest: sum, Length: 7, Name: "int8.cache"},
				Plugins: []Blob{{Digest: sum, Length: 8, Name: "libnms.so"}}, Upload: "/build/b1/", Token: "t", MaxBytes: 1 << 30}},
		"engine-record": &EngineRecord{Key: sum, Model: "meter", Version: 3, ONNX: sum, Golden: sum, Recipe: sum, Target: "linux/arm64;sm=8.7;trt=10.3.0",
			Probed: "linux/arm64;sm=8.7;trt=10.3.0.30;cuda=12.6", TensorRT: "10.3.0.30", SM: "8.7", Digest: sum, Size: 1234, Stripped: true, Fallback: "m",
			LatencyP50: 1.5, LatencyP99: 1.75, Throughput: 640, Power: 7.5, Mode: "15W", Proof: &EngineProof{Cases: 32, Agreed: 31, MaxAbs: 0.001953125},
			Device: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Started: 1700000000, Finished: 1700000200, Log: Blob{Digest: sum, Length: 9, Name: "build.log"},
			TimingCache: &Blob{Digest: sum, Length: 6, Name: "timing.cache"}, Command: []string{"trtexec", "--fp16"}, Image: "sha256:ab",
			Warnings: []string{"GPU compute time is unstable"}, Job: "b1", Attempt: 2},
		"engine-seal": &EngineSeal{Record: []byte{0xd2}, Builder: []byte{0x30}, Scope: "aaaaaaaaaaaaaaaaaaaaaaaaaa", SealedAt: 1700000300, Tenant: "default"},
		"cmd":         &Cmd{Device: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Counter: 5, ExpiresAt: 1700000000, Kind: CmdWatch, Seconds: 300},
	}
}

func TestGoldenVectors(t *testing.T) {
	for name, v := range vectors() {
		b, err := Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(b); got != strings.TrimSpace(string(want)) {
			t.Errorf("%s: encoding changed:\n got %s\nwant %s", name, got, want)
		}
		back := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := UnmarshalCanonical(b, back); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(v, back); d != "" {
			t.Errorf("%s: round trip (-want +got):\n%s", name, d)
		}
	}
}

// TestVectorsSetEveryField catches a field added to a message and forgotten in
// the vectors.
func TestVectorsSetEveryField(t *testing.T) {
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				t.Errorf("%s is not set", path)
				return
			}
			walk(path, v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				walk(path+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s is empty", path)
			} else if v.Index(0).Kind() == reflect.Struct {
				walk(path+"[0]", v.Index(0))
			}
		default:
			if v.IsZero() {
				t.Errorf("%s is zero", path)
			}
		}
	}
	for name, v := range vectors() {
		walk(name, reflect.ValueOf(v))
	}
}

func TestRefuses(t *testing.T) {
	for name, h := range map[string]string{
		"empty": "", "wrong type": "a1016178", "duplicate key": "a203f503f4", "trailing": "a103f500",
		"indefinite": "bf03f5ff", "truncated": "a103", "null": "f6", "undefined": "f7", "not a map": "83010203",
	} {
		b, _ := hex.DecodeString(h)
		if name == "not a map" {
			b = []byte{0x01}
		}
		if err := Unmarshal(b, new(Presence)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
	if err := Unmarshal(make([]byte, MaxMessage+1), new(Presence)); !errors.Is(err, ErrMalformed) {
		t.Errorf("oversize: %v", err)
	}
	// Non-minimal integer: fine for Unmarshal, refused where the digest matters.
	b, _ := hex.DecodeString("a2021803" + "03f5")
	if err := Unmarshal(b, new(Presence)); err != nil {
		t.Errorf("lenient: %v", err)
	}
	if err := UnmarshalCanonical(b, new(Presence)); !errors.Is(err, ErrMalformed) {
		t.Errorf("canonical: %v", err)
	}
}

func TestTopic(t *testing.T) {
	id := FormatDeviceID([16]byte{1, 2, 3})
	for k := range kinds {
		dev, kind, err := ParseTopic(Topic(id, k))
		if err != nil || dev != id || kind != k {
			t.Errorf("ParseTopic(Topic(%s)) = %s, %s, %v", k, dev, kind, err)
		}
	}
	wrongShard := strings.Replace(Topic(id, UpHello), "/"+Shard(id)+"/", "/zz/", 1)
	for _, bad := range []string{"", "skein/1/", "skein/2/00/" + id + "/up/hello", wrongShard, Topic(id, "up/other"), Topic(id, "up/hello/x"), Topic("short", UpHello)} {
		if _, _, err := ParseTopic(bad); !errors.Is(err, ErrBadTopic) {
			t.Errorf("ParseTopic(%q) = %v", bad, err)
		}
	}
	domain, tenant, dev, err := ParseSpiffeID(SpiffeID("skein.local", "default", id))
	if err != nil || domain != "skein.local" || tenant != "default" || dev != id {
		t.Errorf("spiffe: %s %s %s %v", domain, tenant, dev, err)
	}
	for _, bad := range []string{"", "spiffe://d/t/x/d/short", "https://d/t/x/d/" + id, "spiffe:///t/x/d/" + id, "spiffe://d/t//d/" + id} {
		if _, _, _, err := ParseSpiffeID(bad); err == nil {
			t.Errorf("ParseSpiffeID(%q) was accepted", bad)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, v := range vectors() {
		b, err := Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range vectors() {
			dst := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if Unmarshal(b, dst) != nil {
				continue
			}
			again, err := Marshal(dst)
			if err != nil {
				t.Fatalf("decoded but not encodable: %v", err)
			}
			if err := UnmarshalCanonical(again, dst); err != nil {
				t.Fatalf("own encoding refused: %v", err)
			}
		}
	})
}
