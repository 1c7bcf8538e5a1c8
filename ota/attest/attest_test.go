package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

func keys(t *testing.T) []*trust.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out []*trust.Signer
	for _, k := range []crypto.Signer{ed, ec} {
		s, err := trust.NewSigner(k)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

var (
	index  = ota.DigestOf([]byte("index"))
	golden = ota.DigestOf([]byte("golden"))
)

func statement() Statement {
	return NewStatement([]Resource{Of("meter@1", index, manifest.MediaIndex)}, Provenance{
		BuildDefinition: BuildDefinition{BuildType: BuildRelease, ExternalParameters: map[string]any{"name": "meter", "note": "a < b & c"},
			ResolvedDependencies: []Resource{Of("golden.json", golden, manifest.MediaGolden)}},
		RunDetails: RunDetails{Builder: Builder{ID: "https://skein.example"}, Metadata: Metadata{FinishedOn: Stamp(time.Unix(1e9, 5))}},
	})
}

func TestSignAndVerify(t *testing.T) {
	all := keys(t)
	for _, s := range all {
		raw, err := Sign(s, statement())
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify([]crypto.PublicKey{all[0].Public(), all[1].Public()}, raw, index)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(*got, statement()); d != "" {
			t.Error(d)
		}
		if _, err := Verify([]crypto.PublicKey{keys(t)[0].Public()}, raw, index); !errors.Is(err, trust.ErrSignature) {
			t.Errorf("a stranger's key: %v", err)
		}
		if _, err := Verify(nil, raw, index); !errors.Is(err, trust.ErrSignature) {
			t.Errorf("no key: %v", err)
		}
		if _, err := Verify([]crypto.PublicKey{s.Public()}, raw, golden); !errors.Is(err, ErrSubject) {
			t.Errorf("a dependency taken for a subject: %v", err)
		}
		var e Envelope
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		change := func(what string, f func(*Envelope), want error) {
			t.Helper()
			c := e
			c.Signatures = append([]Signature{}, e.Signatures...)
			f(&c)
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Verify([]crypto.PublicKey{s.Public()}, b, index); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		change("nothing changed", func(*Envelope) {}, nil)
		change("another type", func(e *Envelope) { e.PayloadType = "text/plain" }, ErrMalformed)
		change("no signature", func(e *Envelope) { e.Signatures = nil }, ErrMalformed)
		change("seventeen signatures", func(e *Envelope) { e.Signatures = make([]Signature, 17) }, ErrMalformed)
		change("another payload", func(e *Envelope) { e.Payload = base64.StdEncoding.EncodeToString([]byte("{}")) }, trust.ErrSignature)
		change("a key id that lies", func(e *Envelope) { e.Signatures[0].KeyID = "00" }, nil)
		if _, err := Verify([]crypto.PublicKey{s.Public()}, bytes.Replace(raw, []byte("{"), []byte(`{"payloadType":"x",`), 1), index); !errors.Is(err, ErrMalformed) {
			t.Errorf("a key twice: %v", err)
		}
	}
}

// What the director signs for devices is no attestation, and the other way round.
func TestSignaturesAreOfOneKind(t *testing.T) {
	for _, s := range keys(t) {
		payload := []byte(`{"a":1}`)
		cose, err := trust.Sign(s, wire.AADDesired, payload)
		if err != nil {
			t.Fatal(err)
		}
		sig := cose[len(cose)-64:]
		if err := trust.VerifyDSSE([]crypto.PublicKey{s.Public()}, PayloadType, payload, sig); !errors.Is(err, trust.ErrSignature) {
			t.Errorf("a signature of a desired state counts for an attestation: %v", err)
		}
		dsse, err := s.SignDSSE(PayloadType, payload)
		if err != nil {
			t.Fatal(err)
		}
		if len(dsse) == 64 {
			forged := append(bytes.Clone(cose[:len(cose)-64]), dsse...)
			if _, err := trust.Verify([]crypto.PublicKey{s.Public()}, wire.AADDesired, forged); !errors.Is(err, trust.ErrSignature) {
				t.Errorf("a signature of an attestation counts for a desired state: %v", err)
			}
		}
	}
}

func TestBOM(t *testing.T) {
	g := &manifest.Golden{Version: 1, Input: "x", Shape: []int64{1}, MinLabelAgreement: 0.9, Cases: make([]manifest.GoldenCase, 32)}
	weights := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: ota.DigestOf([]byte("w")), Size: 1, Annotations: map[string]string{manifest.AnnTitle: "model.onnx"}}
	set := manifest.Descriptor{MediaType: manifest.MediaGolden, Digest: golden, Size: 1, Annotations: map[string]string{manifest.AnnTitle: "golden.json"}}
	m := Model{Release: "meter", ReleaseVersion: "1", Index: index, Name: "digits", Version: 3, Licence: "Apache-2.0", Datasets: map[string]ota.Digest{"dataset.train": ota.DigestOf([]byte("d"))},
		Inputs: []string{"x: float32[1,784]"}, Outputs: []string{"y: float32[1,10]"}, Files: []manifest.Descriptor{weights, set}, Golden: g, GoldenDigest: golden, Author: "user:ann", Created: time.Unix(1e9, 0), Tool: "v1"}
	raw, err := BOM(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := BOM(m)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("the same facts give other bytes: %v", err)
	}
	for _, want := range []string{`"machine-learning-model"`, `"modelCard"`, "float32[1,784]", `"Apache-2.0"`, golden.Hex(), index.Hex(), `"golden cases"`, `"specVersion": "1.6"`, "dataset:dataset.train"} {
		if !strings.Contains(strings.ReplaceAll(string(raw), `":"`, `": "`), want) {
			t.Errorf("no %s in\n%s", want, raw)
		}
	}
	files, err := CheckBOM(raw, index)
	if err != nil || !cmp.Equal(files, []ota.Digest{weights.Digest, golden}) {
		t.Errorf("%v, %v", files, err)
	}
	if _, err := CheckBOM(raw, golden); !errors.Is(err, ErrSubject) {
		t.Errorf("a bill of another release: %v", err)
	}
	if _, err := CheckBOM([]byte(`{"a":1,"a":2}`), index); !errors.Is(err, ErrMalformed) {
		t.Errorf("a key twice: %v", err)
	}
}

func TestReferrer(t *testing.T) {
	doc := manifest.Descriptor{MediaType: MediaEnvelope, Digest: golden, Size: 7}
	raw, err := Attach(manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: index, Size: 5}, doc, map[string]string{AnnPredicate: PredicateSLSA})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseReferrer(raw)
	if err != nil || r.ArtifactType != MediaEnvelope || r.Subject.Digest != index || !cmp.Equal(r.Layers[0], doc) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"{}", strings.Replace(string(raw), `"layers":[`, `"layers":[`+`{"mediaType":"a","digest":"`+string(index)+`","size":1},`, 1), strings.Replace(string(raw), `"size":7`, `"size":99999999`, 1)} {
		if _, err := ParseReferrer([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	s, err := trust.NewSigner(key)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := Sign(s, statement())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := Verify([]crypto.PublicKey{s.Public()}, b, index)
		if err == nil && !cmp.Equal(*st, statement()) {
			t.Errorf("another statement counts: %+v", st)
		}
	})
}
