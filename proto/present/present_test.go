package present

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

func TestUnknownIsLeftOut(t *testing.T) {
	if Milli(0) != nil || Transfer(nil) != nil || BootChain(nil) != nil || AgentSlots(nil) != nil || Digest(nil) != "" {
		t.Error("what is not known is shown")
	}
	if got := Digest(make([]byte, 32)); len(got) != len("sha256:")+64 {
		t.Errorf("digest %q", got)
	}
}

func TestTransfer(t *testing.T) {
	got := Transfer(&wire.PolicyState{Interface: "wwan0", Class: wire.Metered, Zone: "Europe/Paris", Waits: wire.WaitsForAllowance, Until: 1700000000,
		Used: []wire.Usage{{Class: wire.Metered, Period: wire.PerDay, Name: "2026-11-24", Bytes: 5, Limit: 7}}})
	want := &fleetv1.TransferState{Interface: "wwan0", LinkClass: "metered", Zone: "Europe/Paris", Waits: "allowance", Until: &timestamppb.Timestamp{Seconds: 1700000000},
		Used: []*fleetv1.AllowanceUse{{LinkClass: "metered", Period: "day", Name: "2026-11-24", Bytes: 5, Limit: 7}}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestConditions(t *testing.T) {
	got := Conditions([]wire.Condition{{Name: "a", Severity: 2, Message: "m", Since: 1000}, {Name: "b", Severity: 9}})
	want := []*fleetv1.Condition{{Name: "a", Severity: "warning", Message: "m", Since: &timestamppb.Timestamp{Seconds: 1}}, {Name: "b", Severity: "severity 9"}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestServerLine(t *testing.T) {
	m := Servers([]wire.Server{{Workload: "w", Kind: "container", Server: "triton", Image: bytes.Repeat([]byte{0xab}, 32), State: "waiting", Reason: "the server ended",
		Restarts: 2, LastExit: "oom: the kernel ended it for memory", Memory: 800 << 20, Requests: 7, Failed: 1, Queue: 40, Compute: 900, GPUMemory: 1 << 30}, {State: "left over"}})
	for i, want := range []string{
		"triton container waiting, 800 MiB, 1024 MiB on GPUs, 7 requests, 1 failed, 900 µs computing, 40 µs waiting, image sha256:abababababab, 2 restarts, last ended: oom: the kernel ended it for memory, the server ended",
		"unknown server left over",
	} {
		if got := ServerLine(m[i]); got != want {
			t.Errorf("got %s", got)
		}
	}
}
