package attest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Statement is in-toto's, with SLSA provenance.
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     Provenance `json:"predicate"`
}

// Resource names something by its digest.
type Resource struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"`
	MediaType   string            `json:"mediaType,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Of names a blob.
func Of(name string, d ota.Digest, mediaType string) Resource {
	return Resource{Name: name, Digest: map[string]string{"sha256": d.Hex()}, MediaType: mediaType}
}

// Is reports whether the resource is the blob.
func (r Resource) Is(d ota.Digest) bool { return d != "" && r.Digest["sha256"] == d.Hex() }

// Provenance is SLSA v1's predicate.
type Provenance struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition says what was asked for and what went in.
type BuildDefinition struct {
	BuildType            string         `json:"buildType"`
	ExternalParameters   map[string]any `json:"externalParameters"`
	InternalParameters   map[string]any `json:"internalParameters,omitempty"`
	ResolvedDependencies []Resource     `json:"resolvedDependencies,omitempty"`
}

// RunDetails says who made it, when, and what came out beside it.
type RunDetails struct {
	Builder    Builder    `json:"builder"`
	Metadata   Metadata   `json:"metadata"`
	Byproducts []Resource `json:"byproducts,omitempty"`
}

// Builder is the control plane.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// Metadata is of one run.
type Metadata struct {
	InvocationID string `json:"invocationId,omitempty"`
	StartedOn    string `json:"startedOn,omitempty"` // RFC 3339
	FinishedOn   string `json:"finishedOn,omitempty"`
}

// Stamp is a time as statements carry it.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Truncate(time.Second).Format(time.RFC3339)
}

// NewStatement returns a provenance statement.
func NewStatement(subject []Resource, p Provenance) Statement {
	return Statement{Type: StatementType, Subject: subject, PredicateType: PredicateSLSA, Predicate: p}
}

// About reports whether the statement names d among its subjects.
func (s *Statement) About(d ota.Digest) bool {
	return slices.ContainsFunc(s.Subject, func(r Resource) bool { return r.Is(d) })
}

// ParseStatement reads an in-toto statement with SLSA provenance.
func ParseStatement(b []byte) (*Statement, error) {
	var s Statement
	if err := manifest.Decode(b, MaxDocument, &s); err != nil {
		return nil, fmt.Errorf("%w: statement: %w", ErrMalformed, err)
	}
	switch {
	case s.Type != StatementType:
		return nil, fmt.Errorf("%w: statement of type %.80q, want %s", ErrMalformed, s.Type, StatementType)
	case s.PredicateType != PredicateSLSA:
		return nil, fmt.Errorf("%w: predicate of type %.80q, want %s", ErrMalformed, s.PredicateType, PredicateSLSA)
	case len(s.Subject) == 0 || len(s.Subject) > manifest.MaxEntries+8:
		return nil, fmt.Errorf("%w: %d subjects", ErrMalformed, len(s.Subject))
	case s.Predicate.BuildDefinition.BuildType == "" || s.Predicate.RunDetails.Builder.ID == "":
		return nil, fmt.Errorf("%w: provenance without build type or builder", ErrMalformed)
	}
	return &s, nil
}

// Referrer is the OCI manifest that attaches one document to a release.
type Referrer struct {
	SchemaVersion int                   `json:"schemaVersion"`
	MediaType     string                `json:"mediaType"`
	ArtifactType  string                `json:"artifactType"`
	Config        manifest.Descriptor   `json:"config"`
	Layers        []manifest.Descriptor `json:"layers"`
	Subject       *manifest.Descriptor  `json:"subject"`
	Annotations   map[string]string     `json:"annotations,omitempty"`
}

// Empty is OCI's empty config, and its content.
var emptyContent = []byte("{}")

// EmptyConfig returns the config of a referrer and its bytes.
func EmptyConfig() (manifest.Descriptor, []byte) {
	return manifest.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: ota.DigestOf(emptyContent), Size: int64(len(emptyContent))}, slices.Clone(emptyContent)
}

// Attach returns the manifest that attaches document to subject.
func Attach(subject, document manifest.Descriptor, annotations map[string]string) ([]byte, error) {
	config, _ := EmptyConfig()
	b, err := json.Marshal(Referrer{SchemaVersion: 2, MediaType: manifest.MediaManifest, ArtifactType: document.MediaType, Config: config,
		Layers: []manifest.Descriptor{document}, Subject: &subject, Annotations: annotations})
	if err != nil {
		return nil, fmt.Errorf("write referrer: %w", err)
	}
	return b, nil
}

// ParseReferrer reads a manifest that attaches one document of a known type.
func ParseReferrer(b []byte) (*Referrer, error) {
	var r Referrer
	if err := manifest.Decode(b, manifest.MaxManifest, &r); err != nil {
		return nil, fmt.Errorf("%w: referrer: %w", ErrMalformed, err)
	}
	if r.Subject == nil || len(r.Layers) != 1 || r.Layers[0].Size > MaxDocument || r.MediaType != manifest.MediaManifest {
		return nil, fmt.Errorf("%w: referrer: want a subject and one document of at most %d bytes", ErrMalformed, MaxDocument)
	}
	for _, d := range []manifest.Descriptor{*r.Subject, r.Layers[0], r.Config} {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w: referrer: %w", ErrMalformed, err)
		}
	}
	return &r, nil
}
