package engine

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// What readers of records return, wrapped.
var (
	// ErrRecord is returned for a record that is not signed, or not whole.
	ErrRecord = errors.New("bad engine record")
	// ErrUnproven is returned for an engine whose golden result does not pass.
	ErrUnproven = errors.New("engine is not proven")
	// ErrOtherDevice is returned for an engine that only its builder may load.
	ErrOtherDevice = errors.New("engine is for the device that built it alone")
	// ErrDoesNotFit is returned for an engine that this device cannot load.
	ErrDoesNotFit = errors.New("engine does not fit this device")
)

// AnnSeal is the annotation of a plan layer that holds its sealed record, in
// standard base64.
const AnnSeal = manifest.AnnEngine

// Stripped plans have a layer with the ONNX file beside them, from which the
// weights come: MediaSource, titled SourceTitle.
const (
	MediaSource = manifest.MediaSource
	SourceTitle = "weights.onnx"
	AnnStripped = manifest.AnnStripped // of a plan layer: "true"
)

// Sign returns a checked record, signed by the device that built.
func Sign(s *trust.Signer, r wire.EngineRecord) ([]byte, error) {
	if err := Validate(r); err != nil {
		return nil, err
	}
	b, err := wire.Marshal(&r)
	if err != nil {
		return nil, fmt.Errorf("write engine record: %w", err)
	}
	return trust.Sign(s, wire.AADEngine, b)
}

// Verify returns the record if one of keys signed it.
func Verify(keys []crypto.PublicKey, signed []byte) (wire.EngineRecord, error) {
	payload, err := trust.Verify(keys, wire.AADEngine, signed)
	if err != nil {
		return wire.EngineRecord{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	var r wire.EngineRecord
	if err := wire.UnmarshalCanonical(payload, &r); err != nil {
		return wire.EngineRecord{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, Validate(r)
}

// Validate checks that a record is whole and that its figures are figures.
func Validate(r wire.EngineRecord) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRecord, fmt.Sprintf(format, args...))
	}
	for name, sum := range map[string][]byte{"key": r.Key, "ONNX": r.ONNX, "recipe": r.Recipe, "digest": r.Digest, "log": r.Log.Digest} {
		if len(sum) != 32 {
			return bad("%s is no sha256", name)
		}
	}
	for _, f := range []float64{r.LatencyP50, r.LatencyP99, r.Throughput, r.Power} {
		if math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
			return bad("a measured figure is %v", f)
		}
	}
	target, err := ota.ParseTarget(r.Target)
	if err != nil {
		return bad("%v", err)
	}
	switch {
	case r.Model == "" || r.Version < 1 || r.Job == "" || r.Attempt == 0:
		return bad("it names no model version or no job")
	case !wire.ValidDeviceID(r.Device):
		return bad("device %.40q", r.Device)
	case r.Size < 1 || r.Size > manifest.MaxBlob || r.Log.Length < 0:
		return bad("size %d, log of %d bytes", r.Size, r.Log.Length)
	case r.LatencyP50 == 0 || r.LatencyP99 < r.LatencyP50 || r.Throughput == 0:
		return bad("latency p50 %v ms, p99 %v ms, %v per second: it was not measured", r.LatencyP50, r.LatencyP99, r.Throughput)
	case r.Finished < r.Started:
		return bad("finished before it started")
	case Patch(r.TensorRT) == "" || Patch(r.TensorRT) != target.Attrs["trt"] || r.SM != target.Attrs["sm"]:
		return bad("TensorRT %q and SM %q are not those of target %s", r.TensorRT, r.SM, target)
	case r.Stripped && r.Fallback != "":
		return bad("it is stripped and says why it is not")
	case r.Proof != nil && (r.Proof.Cases < 1 || r.Proof.Agreed < 0 || r.Proof.Agreed > r.Proof.Cases || math.IsNaN(r.Proof.MaxAbs) || r.Proof.MaxAbs < 0):
		return bad("golden result %+v", *r.Proof)
	case len(r.Command) > 256 || len(r.Warnings) > 64:
		return bad("%d words of a command, %d warnings", len(r.Command), len(r.Warnings))
	}
	return nil
}

// Prove judges a record's golden result by the set that it names.
func Prove(r wire.EngineRecord, set *manifest.Golden) error {
	p := r.Proof
	switch {
	case p == nil:
		return fmt.Errorf("%w: it has no golden result", ErrUnproven)
	case p.Cases != int64(len(set.Cases)):
		return fmt.Errorf("%w: %d cases answered, the golden set has %d", ErrUnproven, p.Cases, len(set.Cases))
	case !(p.MaxAbs <= set.Tolerance.Abs):
		return fmt.Errorf("%w: output differs from the reference by %.4g, tolerance %.4g", ErrUnproven, p.MaxAbs, set.Tolerance.Abs)
	case float64(p.Agreed) < set.MinLabelAgreement*float64(p.Cases):
		return fmt.Errorf("%w: %d of %d labels agree, need %.4g %%", ErrUnproven, p.Agreed, p.Cases, 100*set.MinLabelAgreement)
	}
	return nil
}

// Seal countersigns what a device signed with the key builder. scope is the one
// device that may load the engine, empty for all of its target.
func Seal(director *trust.Signer, tenant string, signed []byte, builder crypto.PublicKey, scope string, now time.Time) ([]byte, error) {
	if _, err := Verify([]crypto.PublicKey{builder}, signed); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(builder)
	if err != nil {
		return nil, fmt.Errorf("seal engine: %w", err)
	}
	b, err := wire.Marshal(&wire.EngineSeal{Record: signed, Builder: der, Scope: scope, SealedAt: now.Unix(), Tenant: tenant})
	if err != nil {
		return nil, fmt.Errorf("seal engine: %w", err)
	}
	return trust.Sign(director, wire.AADEngineSeal, b)
}

// Sealed is a record under both signatures.
type Sealed struct {
	wire.EngineRecord
	Scope    string // the one device that may load it, or empty
	SealedAt time.Time
}

// Open returns the record of a seal by one of the director's keys.
func Open(director []crypto.PublicKey, tenant string, seal []byte) (*Sealed, error) {
	payload, err := trust.Verify(director, wire.AADEngineSeal, seal)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	var s wire.EngineSeal
	if err := wire.UnmarshalCanonical(payload, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if s.Tenant != tenant {
		return nil, fmt.Errorf("%w: sealed for tenant %q, this is %q", ErrRecord, s.Tenant, tenant)
	}
	key, err := x509.ParsePKIXPublicKey(s.Builder)
	if err != nil {
		return nil, fmt.Errorf("%w: builder's key: %w", ErrRecord, err)
	}
	r, err := Verify([]crypto.PublicKey{key}, s.Record)
	if err != nil {
		return nil, err
	}
	return &Sealed{EngineRecord: r, Scope: s.Scope, SealedAt: time.Unix(s.SealedAt, 0)}, nil
}

// Annotate returns a plan layer with its seal.
func Annotate(d manifest.Descriptor, seal []byte, stripped bool) manifest.Descriptor {
	a := map[string]string{AnnSeal: base64.StdEncoding.EncodeToString(seal)}
	maps.Copy(a, d.Annotations)
	if stripped {
		a[AnnStripped] = "true"
	}
	d.Annotations = a
	return d
}

// FromLayer returns the seal of a plan layer; nil when it has none.
func FromLayer(d manifest.Descriptor) ([]byte, error) {
	text, ok := d.Annotations[AnnSeal]
	if !ok {
		return nil, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: annotation %s: %w", ErrRecord, AnnSeal, err)
	}
	return b, nil
}

// CheckLoad says whether device may load the plan of a layer: the record is
// about these bytes, was not sealed for another device, and its target loads
// on dev. It returns how well it fits and what keeps it out of the next class.
func (s *Sealed) CheckLoad(layer manifest.Descriptor, device string, dev ota.Target) (ota.Fit, string, error) {
	if !bytes.Equal(layer.Digest.Sum(), s.Digest) || layer.Size != s.Size {
		return ota.FitNone, "", fmt.Errorf("%w: it is about %x, the release has %s", ErrRecord, s.Digest, layer.Digest.Hex())
	}
	if s.Scope != "" && s.Scope != device {
		return ota.FitNone, "", fmt.Errorf("%w: %s, this is %s", ErrOtherDevice, s.Scope, device)
	}
	target, err := ota.ParseTarget(s.Target)
	if err != nil {
		return ota.FitNone, "", fmt.Errorf("%w: %w", ErrRecord, err)
	}
	fit, reason := target.Fits(dev)
	if fit == ota.FitNone {
		return fit, reason, fmt.Errorf("%w: %s; have one built: skein engine build %s@%d --target '%s'", ErrDoesNotFit, reason, s.Model, s.Version, dev)
	}
	return fit, reason, nil
}

// Summary is a record in a line, for people.
func Summary(r wire.EngineRecord) string {
	words := []string{fmt.Sprintf("%s@%d", r.Model, r.Version), r.Target, fmt.Sprintf("p50 %.3g ms", r.LatencyP50)}
	if r.Power > 0 {
		words = append(words, fmt.Sprintf("%.3g W", r.Power))
	}
	if r.Proof != nil {
		words = append(words, fmt.Sprintf("golden %d/%d, off by %.2g", r.Proof.Agreed, r.Proof.Cases, r.Proof.MaxAbs))
	}
	return strings.Join(append(words, "built by "+cmp.Or(r.Device, "nobody")), ", ")
}
