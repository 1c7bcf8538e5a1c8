package web

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

// addMachine makes up what a device tells of its start, its agent, its policy
// and its downloads. The first devices are a cache, one with a trap, one that
// waits for a window, one that fails, and one that waits for an allowance.
func (f *fake) addMachine(d *fleetv1.Device, i int, now time.Time) {
	d.BytesFetched = 612_000
	d.Sources = []*fleetv1.SourceBytes{{Name: "peer", Bytes: 401_000}, {Name: "mqtt", Bytes: 189_000}, {Name: "child", Bytes: 22_000}}
	d.AgentSlots = &fleetv1.AgentSlots{Active: "a", Previous: "factory", Digest: digest(700), CheckedIn: true}
	if i%len(fakeTargets) < 2 {
		d.BootChain = &fleetv1.BootChain{Driver: "nvbootctrl", Version: "36.4.3", Redundancy: "armed", Capsule: "applied",
			Firmware: []*fleetv1.BootSlot{{Number: 0, Status: "normal", Retries: -1, Current: true, Active: true}, {Number: 1, Status: "normal", Retries: -1}},
			Rootfs:   []*fleetv1.BootSlot{{Number: 0, Status: "normal", Retries: 3, Current: true, Active: true}, {Number: 1, Status: "normal", Retries: 3}},
			Esrt:     []*fleetv1.BootFirmware{{Class: "bf0d4599-20d4-414e-b2c5-3595b1cda402", Version: 2360323, LowestSupported: 2360320, LastAttemptVersion: 2360323}}}
	}
	d.Transfer = &fleetv1.TransferState{Interface: "eth0", LinkClass: "unmetered", Zone: "Europe/Paris"}
	switch i {
	case 0:
		d.Capabilities, d.Serves = []string{"cache", "builder"}, []string{"10.20.0.7:7443", "[fd00:20::7]:7443"}
	case 1:
		d.BootChain.Redundancy, d.BootChain.Rootfs[1].Status, d.BootChain.Rootfs[1].Retries = "not-armed", "unbootable", 0
		d.BootChain.Traps = []*fleetv1.BootTrap{{Name: "slot-unbootable", Problem: "slot B is marked unbootable (0xFF), so the machine would start the old system again",
			Repair: "write the variable anew: `printf '\\x07\\x00\\x00\\x00\\x00\\x00\\x00\\x00' > /sys/firmware/efi/efivars/RootfsStatusSlotB-781e084c-a330-417c-b678-38e696380cb9` as root"}}
		d.AgentSlots = &fleetv1.AgentSlots{Active: "b", Previous: "a", Digest: digest(701), Trial: "b", TriesLeft: 2, Failure: "slot a: exit status 1 after 3 starts"}
	case 2:
		f.hold(d, "download window", now.Add(7*time.Hour+12*time.Minute))
	case 4:
		f.hold(d, "allowance", time.Time{})
		d.Transfer.Interface, d.Transfer.LinkClass = "wwan0", "metered"
		d.Transfer.Used = []*fleetv1.AllowanceUse{{LinkClass: "metered", Period: "day", Name: now.Format("2006-01-02"), Bytes: 50 << 20, Limit: 50 << 20},
			{LinkClass: "metered", Period: "month", Name: now.Format("2006-01"), Bytes: 312 << 20, Limit: 1 << 30}}
	}
}

// hold makes a device wait in the fetch step of release 3.
func (f *fake) hold(d *fleetv1.Device, what string, until time.Time) {
	d.Phase, d.Step, d.DesiredRelease, d.DesiredReleaseName = "updating", "fetch", f.releases[2].Digest, "meter@3"
	d.Transfer.Waits = what
	if !until.IsZero() {
		d.Transfer.Until = timestamppb.New(until)
	}
}

func (r fakeReleases) ListAttestations(_ context.Context, q *releasev1.ListAttestationsRequest) (*releasev1.ListAttestationsResponse, error) {
	out := &releasev1.ListAttestationsResponse{Target: "default/meter/" + q.Release[len("sha256:"):], Repository: "meter"}
	if q.Release == digest(1) { // from before there were any
		return out, nil
	}
	made := timestamppb.New(time.Now().Add(-26 * time.Hour))
	const slsa, dsse = "https://slsa.dev/provenance/v1", "application/vnd.dsse.envelope.v1+json"
	out.Attestations = []*releasev1.Attestation{
		{ManifestDigest: digest(801), ArtifactType: dsse, PredicateType: slsa, BuildType: "https://github.com/skein-fleet/skein/attest/release/v1", DocumentDigest: digest(811), Bytes: 4_812, Own: true, Created: made},
		{ManifestDigest: digest(802), ArtifactType: "application/vnd.cyclonedx+json", DocumentDigest: digest(812), Bytes: 9_240, Own: true, Created: made},
		{ManifestDigest: digest(803), ArtifactType: "application/vnd.example.card.v1+json", Created: made},
	}
	return out, nil
}

type fakeTrust struct {
	trustv1connect.UnimplementedTrustServiceHandler
}

func (fakeTrust) GetTrust(context.Context, *trustv1.GetTrustRequest) (*trustv1.GetTrustResponse, error) {
	return &trustv1.GetTrustResponse{Status: &trustv1.Status{Domain: "image", RootDigest: digest(900), Drafts: []*trustv1.Draft{{
		Role: "targets", Version: 8, Expires: timestamppb.New(time.Now().Add(90 * 24 * time.Hour)), Digest: digest(901),
		Needs:   []*trustv1.Need{{By: "targets keys in root 3", Threshold: 2, Keys: []*trustv1.Key{{Id: digest(902), Name: "alice", Signed: true}, {Id: digest(903), Name: "bob"}, {Id: digest(904), Name: "carol"}}}},
		Changes: []*trustv1.Change{{Sign: "+", Text: "release meter@4"}},
	}}}}, nil
}
