package rpc

import (
	"context"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/ota"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

// explainTransfer fills in how the files of a release travel; device may be
// empty.
func (s *releaseService) explainTransfer(ctx context.Context, tenant string, d ota.Digest, device string, resp *releasev1.GetReleaseResponse) error {
	var v fleet.View
	if device != "" {
		var err error
		if v, err = s.Fleet.Lookup(tenant, device); err != nil {
			return err
		}
	}
	layers, before, err := s.Catalog.Layers(ctx, tenant, d, v.Running)
	if err != nil {
		return err
	}
	resp.Before = before
	total := int64(0)
	for _, l := range layers {
		m := layerMessage(l)
		if device != "" {
			m.Way, m.PredictedBytes = l.Ways[0].String(), l.Ways[0].Bytes
			total += m.PredictedBytes
		}
		resp.Layers = append(resp.Layers, m)
	}
	if device != "" {
		resp.Transfer = transferMessage(v, d, total)
		resp.Transfer.FromRelease = s.Catalog.Name(tenant, v.Running)
	}
	return nil
}

func layerMessage(l release.Layer) *releasev1.Layer {
	m := &releasev1.Layer{Title: l.Title, Image: l.Image, Digest: string(l.Digest), Bytes: l.Size, Chunks: int32(l.Chunks), IndexBytes: l.IndexSize, SharedBytes: l.Shared}
	for _, p := range l.Patches {
		m.Patches = append(m.Patches, &releasev1.LayerPatch{BaseDigest: string(p.Base), Kind: p.Kind, Bytes: p.Size})
	}
	return m
}

// transferMessage adds what the device told of its update to that release.
func transferMessage(v fleet.View, d ota.Digest, predicted int64) *releasev1.Transfer {
	t := &releasev1.Transfer{DeviceId: v.ID, DeviceName: v.Name, PredictedBytes: predicted}
	for _, e := range slices.Backward(v.Journal) {
		if e.Step == string(ota.StepFetch) && e.State == wire.StepDone && present.Digest(e.Release) == string(d) {
			t.Told, t.FetchedBytes = e.Message, v.BytesFetched
			break
		}
	}
	return t
}
