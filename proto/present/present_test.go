package present

import (
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
