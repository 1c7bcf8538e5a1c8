// Package operator does what a person does with the command line, for the
// demo, scenarios and end-to-end tests: it talks to skeind over its public API
// only. Packages of sim import it.
package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/policy/v1/policyv1connect"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
)

// Operator is one person with one credential.
type Operator struct {
	Fleet    fleetv1connect.FleetServiceClient
	Models   artifactv1connect.ModelServiceClient
	Releases releasev1connect.ReleaseServiceClient
	Rollouts rolloutv1connect.RolloutServiceClient
	Policies policyv1connect.PolicyServiceClient

	base string
	http *http.Client
}

type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

// New returns an operator for the skeind at base, for example
// http://127.0.0.1:8080, acting with a credential.
func New(base, token string) *Operator {
	c := &http.Client{Transport: bearer{token}}
	return &Operator{
		Fleet: fleetv1connect.NewFleetServiceClient(c, base), Models: artifactv1connect.NewModelServiceClient(c, base),
		Releases: releasev1connect.NewReleaseServiceClient(c, base), Rollouts: rolloutv1connect.NewRolloutServiceClient(c, base),
		Policies: policyv1connect.NewPolicyServiceClient(c, base),
		base:     base, http: c,
	}
}

// Claim makes a claim token for so many devices with the given labels.
func (o *Operator) Claim(ctx context.Context, uses int, labels map[string]string) (string, error) {
	r, err := o.Fleet.CreateTokens(ctx, &fleetv1.CreateTokensRequest{Uses: int32(uses), AutoApprove: true, Force: true, Labels: labels})
	if err != nil {
		return "", fmt.Errorf("create a claim token: %w", err)
	}
	return r.GetTokens()[0].GetClaim(), nil
}

// Upload stores bytes in the blob store and returns their digest.
func (o *Operator) Upload(ctx context.Context, data []byte) (ota.Digest, error) {
	d := ota.DigestOf(data)
	return d, o.UploadFrom(ctx, d, bytes.NewReader(data), int64(len(data)))
}

// UploadFrom stores the size bytes of r, whose digest is d, in the blob store.
func (o *Operator) UploadFrom(ctx context.Context, d ota.Digest, data io.Reader, size int64) error {
	target := "/v2/skein/blobs/uploads/"
	r, err := o.do(ctx, http.MethodPost, target, nil, 0)
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusAccepted {
		return fmt.Errorf("start upload: %s", r.Status)
	}
	target = r.Header.Get("Location")
	sep := "?"
	if strings.Contains(target, "?") {
		sep = "&"
	}
	r, err = o.do(ctx, http.MethodPut, target+sep+"digest="+url.QueryEscape(string(d)), data, size)
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusCreated {
		return fmt.Errorf("upload %s: %s", d.Short(), r.Status)
	}
	return nil
}

func (o *Operator) do(ctx context.Context, method, target string, body io.Reader, size int64) (*http.Response, error) {
	u, err := url.Parse(o.base)
	if err != nil {
		return nil, err
	}
	if u, err = u.Parse(target); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	r, err := o.http.Do(req)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r, err
}

// Export writes a bundle of a release for devices to a file. The release becomes
// the one that they are to run.
func (o *Operator) Export(ctx context.Context, release string, devices []string, file string) error {
	for _, d := range devices {
		if _, err := o.Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: d, Release: release}); err != nil {
			return fmt.Errorf("assign %s to %s: %w", release, d, err)
		}
	}
	r, err := o.Releases.ExportRelease(ctx, &releasev1.ExportReleaseRequest{Release: release, Devices: devices})
	if err != nil {
		return fmt.Errorf("export %s: %w", release, err)
	}
	plan, err := bundle.PlanOf(r.GetHead())
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(plan.Write(ctx, f, 0, fetch.HTTP(o.http, o.base), nil), f.Close())
}

// PushModel uploads a model with its golden set and returns "name@version".
func (o *Operator) PushModel(ctx context.Context, name string, onnx, golden []byte, description string) (string, error) {
	m, err := o.Upload(ctx, onnx)
	if err != nil {
		return "", fmt.Errorf("push model %s: %w", name, err)
	}
	g, err := o.Upload(ctx, golden)
	if err != nil {
		return "", fmt.Errorf("push golden set of %s: %w", name, err)
	}
	r, err := o.Models.PushModel(ctx, &artifactv1.PushModelRequest{Model: name, OnnxDigest: string(m), GoldenDigest: string(g), Description: description})
	if err != nil {
		return "", fmt.Errorf("push model %s: %w", name, err)
	}
	return fmt.Sprintf("%s@%d", r.GetVersion().GetModel(), r.GetVersion().GetVersion()), nil
}

// PushImage uploads the blobs of a container image, its manifest last.
func (o *Operator) PushImage(ctx context.Context, blobs ...[]byte) (manifest ota.Digest, err error) {
	for _, b := range blobs {
		if manifest, err = o.Upload(ctx, b); err != nil {
			return "", fmt.Errorf("push image: %w", err)
		}
	}
	return manifest, nil
}

// Release makes a release of a model version.
func (o *Operator) Release(ctx context.Context, req *releasev1.CreateReleaseRequest) (*releasev1.Release, error) {
	r, err := o.Releases.CreateRelease(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("create release %s of %s: %w", req.GetName(), req.GetModel(), err)
	}
	return r.GetRelease(), nil
}

// Start starts a rollout; spec is any value whose JSON is a rollout spec.
func (o *Operator) Start(ctx context.Context, name string, spec any) (*rolloutv1.Rollout, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(b); err != nil {
		return nil, err
	}
	r, err := o.Rollouts.StartRollout(ctx, &rolloutv1.StartRolloutRequest{Spec: s, Name: name})
	if err != nil {
		return nil, fmt.Errorf("start rollout %s: %w", name, err)
	}
	return r.GetRollout(), nil
}

// Wait follows a rollout until it ends; each change is given to show.
func (o *Operator) Wait(ctx context.Context, id string, show func(*rolloutv1.Rollout)) (*rolloutv1.Rollout, error) {
	stream, err := o.Rollouts.WatchRollout(ctx, &rolloutv1.WatchRolloutRequest{Rollout: id})
	if err != nil {
		return nil, fmt.Errorf("watch rollout %s: %w", id, err)
	}
	defer stream.Close()
	var last *rolloutv1.Rollout
	for stream.Receive() {
		last = stream.Msg().GetRollout()
		show(last)
	}
	if err := stream.Err(); err != nil {
		return last, fmt.Errorf("watch rollout %s: %w", id, err)
	}
	return last, nil
}

// Devices lists the devices that a selector matches.
func (o *Operator) Devices(ctx context.Context, selector string) ([]*fleetv1.Device, error) {
	var out []*fleetv1.Device
	for token := ""; ; {
		r, err := o.Fleet.ListDevices(ctx, &fleetv1.ListDevicesRequest{Selector: selector, PageSize: 500, PageToken: token, Full: true})
		if err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		out = append(out, r.GetDevices()...)
		if token = r.GetNextPageToken(); token == "" {
			return out, nil
		}
	}
}
