package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
)

var topLevel = []string{"root", "timestamp", "snapshot", "targets"}

// signed is what a role's metadata says; each role uses the fields it has.
type signed struct {
	Type        string                    `json:"_type"`
	Spec        string                    `json:"spec_version"`
	Version     int                       `json:"version"`
	Expires     string                    `json:"expires"`
	Consistent  bool                      `json:"consistent_snapshot,omitempty"`
	Keys        map[string]map[string]any `json:"keys,omitzero"`
	Roles       map[string]*simRole       `json:"roles,omitzero"`
	Meta        map[string]*simMeta       `json:"meta,omitzero"`
	Targets     map[string]simTarget      `json:"targets,omitzero"`
	Delegations *delegations              `json:"delegations,omitempty"`
	Extra       string                    `json:"x-extra,omitempty"`
}

type simRole struct {
	Name        string   `json:"name,omitempty"`
	KeyIDs      []string `json:"keyids"`
	Threshold   int      `json:"threshold"`
	Terminating *bool    `json:"terminating,omitempty"`
	Paths       []string `json:"paths,omitempty"`
	Extra       string   `json:"x-extra,omitempty"`
}

type delegations struct {
	Keys  map[string]map[string]any `json:"keys"`
	Roles []*simRole                `json:"roles"`
}

type simMeta struct {
	Version int               `json:"version"`
	Length  int               `json:"length,omitempty"`
	Hashes  map[string]string `json:"hashes,omitempty"`
}

type simTarget struct {
	Length int               `json:"length"`
	Hashes map[string]string `json:"hashes"`
}

// envelope is metadata as it is published.
type envelope struct {
	Signatures []signature     `json:"signatures"`
	Signed     json.RawMessage `json:"signed"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

type simKey struct {
	id     string
	public map[string]any
	sign   func([]byte) ([]byte, error)
}

// simulator is a repository that publishes whatever a case wants, sound or not,
// over HTTP, and keeps what was asked for.
type simulator struct {
	t         *testing.T
	url       string
	mds       map[string]*signed
	published map[string][][]byte // by role; version n is at n-1
	signers   map[string][]simKey
	files     map[string][]byte // by target path
	listed    map[string]simTarget
	hashes    bool     // in snapshot and timestamp
	asked     []string // metadata: "root 2", "timestamp"
	fetched   []string // targets: "path hash"
}

func newSimulator(t *testing.T) *simulator {
	t.Helper()
	s := &simulator{t: t, mds: map[string]*signed{}, published: map[string][][]byte{}, signers: map[string][]simKey{}, files: map[string][]byte{}, listed: map[string]simTarget{}}
	for _, role := range topLevel {
		s.mds[role] = &signed{Type: role, Spec: "1.0.31", Version: 1, Expires: in(30 * day)}
	}
	s.mds["root"].Consistent = true
	s.mds["root"].Keys, s.mds["root"].Roles = map[string]map[string]any{}, map[string]*simRole{}
	s.mds["snapshot"].Meta, s.mds["timestamp"].Meta = map[string]*simMeta{}, map[string]*simMeta{}
	s.mds["targets"].Targets = map[string]simTarget{}
	for _, role := range topLevel {
		s.mds["root"].Roles[role] = &simRole{Threshold: 1}
		s.addKey("root", role, s.newKey("ecdsa", nil))
	}
	s.publish("targets", "snapshot", "timestamp", "root")
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

const day = 24 * time.Hour

// in is the time after d as metadata has it.
func in(d time.Duration) string {
	return time.Now().Add(d).UTC().Format(time.RFC3339)
}

// newKey makes a key pair; its public part carries the extra fields too.
func (s *simulator) newKey(kind string, extra map[string]any) simKey {
	s.t.Helper()
	var (
		k      simKey
		public string
		err    error
		scheme = kind
	)
	switch kind {
	case "ed25519":
		pub, priv, genErr := ed25519.GenerateKey(rand.Reader)
		err, public = genErr, hex.EncodeToString(pub)
		k.sign = func(b []byte) ([]byte, error) { return ed25519.Sign(priv, b), nil }
	case "rsa":
		scheme = "rsassa-pss-sha256"
		priv, genErr := rsa.GenerateKey(rand.Reader, 2048)
		err = genErr
		public = s.pem(priv.Public())
		k.sign = func(b []byte) ([]byte, error) {
			sum := sha256.Sum256(b)
			return rsa.SignPSS(rand.Reader, priv, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	default:
		scheme = "ecdsa-sha2-nistp256"
		priv, genErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		err = genErr
		public = s.pem(priv.Public())
		k.sign = func(b []byte) ([]byte, error) {
			sum := sha256.Sum256(b)
			return ecdsa.SignASN1(rand.Reader, priv, sum[:])
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	k.public = map[string]any{"keytype": kind, "scheme": scheme, "keyval": map[string]any{"public": public}}
	maps.Copy(k.public, extra)
	sum := sha256.Sum256(s.canonical(k.public))
	k.id = hex.EncodeToString(sum[:])
	return k
}

func (s *simulator) pem(pub any) string {
	s.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *simulator) canonical(v any) []byte {
	s.t.Helper()
	b, err := cjson.EncodeCanonical(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// role is how a delegator, root or a targets role, trusts a role.
func (s *simulator) role(delegator, name string) *simRole {
	if delegator == "root" {
		return s.mds["root"].Roles[name]
	}
	d := s.mds[delegator].Delegations.Roles
	return d[slices.IndexFunc(d, func(r *simRole) bool { return r.Name == name })]
}

// trust lets a delegator trust a key for a role, once more if it does already.
func (s *simulator) trust(delegator, role string, k simKey) {
	r := s.role(delegator, role)
	r.KeyIDs = append(r.KeyIDs, k.id)
	if delegator == "root" {
		s.mds["root"].Keys[k.id] = k.public
	} else {
		s.mds[delegator].Delegations.Keys[k.id] = k.public
	}
}

// addSigner makes a key sign what the role publishes.
func (s *simulator) addSigner(role string, k simKey) {
	if !slices.ContainsFunc(s.signers[role], func(have simKey) bool { return have.id == k.id }) {
		s.signers[role] = append(s.signers[role], k)
	}
}

func (s *simulator) addKey(delegator, role string, k simKey) {
	s.trust(delegator, role, k)
	s.addSigner(role, k)
}

// dropKeys leaves a top-level role without keys.
func (s *simulator) dropKeys(role string) {
	s.mds["root"].Roles[role].KeyIDs, s.signers[role] = []string{}, nil
}

func (s *simulator) rotate(role string) {
	s.dropKeys(role)
	for range s.mds["root"].Roles[role].Threshold {
		s.addKey("root", role, s.newKey("ecdsa", nil))
	}
}

// dropSigner lets the last key of a role no longer sign.
func (s *simulator) dropSigner(role string) {
	s.signers[role] = s.signers[role][:len(s.signers[role])-1]
}

// delegate appends a delegation with a key of its own.
func (s *simulator) delegate(delegator, name string, terminating bool, paths ...string) {
	md := s.mds[delegator]
	if md.Delegations == nil {
		md.Delegations = &delegations{Keys: map[string]map[string]any{}}
	}
	md.Delegations.Roles = append(md.Delegations.Roles, &simRole{Name: name, Threshold: 1, Terminating: &terminating, Paths: paths})
	if s.mds[name] == nil {
		s.mds[name] = &signed{Type: "targets", Spec: "1.0.31", Version: 1, Expires: in(30 * day), Targets: map[string]simTarget{}}
	}
	s.addKey(delegator, name, s.newKey("ecdsa", nil))
}

// list lists content under a path with these hashes, and serves it.
func (s *simulator) list(role, path, content string, hashes ...string) {
	t := simTarget{Length: len(content), Hashes: map[string]string{}}
	for _, h := range hashes {
		if h == "sha256" {
			sum := sha256.Sum256([]byte(content))
			t.Hashes[h] = hex.EncodeToString(sum[:])
		} else {
			sum := sha512.Sum512([]byte(content))
			t.Hashes[h] = hex.EncodeToString(sum[:])
		}
	}
	s.mds[role].Targets[path], s.listed[path], s.files[path] = t, t, []byte(content)
}

// publish signs the next version of each role in turn and serves it. Snapshot
// lists what was published of targets, timestamp what was of snapshot.
func (s *simulator) publish(roles ...string) {
	s.t.Helper()
	for _, role := range roles {
		md := s.mds[role]
		if len(s.published[role]) > 0 {
			md.Version++
		}
		body := s.canonical(md)
		e := envelope{Signed: body, Signatures: []signature{}}
		for _, k := range s.signers[role] {
			sig, err := k.sign(body)
			if err != nil {
				s.t.Fatal(err)
			}
			e.Signatures = append(e.Signatures, signature{KeyID: k.id, Sig: hex.EncodeToString(sig)})
		}
		s.put(role, e)
		m := &simMeta{Version: md.Version}
		if s.hashes {
			b := s.latest(role)
			sum := sha256.Sum256(b)
			m.Length, m.Hashes = len(b), map[string]string{"sha256": hex.EncodeToString(sum[:])}
		}
		switch role {
		case "root", "timestamp":
		case "snapshot":
			s.mds["timestamp"].Meta["snapshot.json"] = m
		default:
			s.mds["snapshot"].Meta[role+".json"] = m
		}
	}
}

// put serves metadata as a role's next version. A newline in canonical JSON
// (keys have some) is no JSON, hence the encoding anew.
func (s *simulator) put(role string, e envelope) {
	s.t.Helper()
	e.Signed = json.RawMessage(strings.ReplaceAll(string(e.Signed), "\n", `\n`))
	b, err := json.Marshal(e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.published[role] = append(s.published[role], b)
}

func (s *simulator) latest(role string) []byte {
	v := s.published[role]
	return v[len(v)-1]
}

// edit changes the signatures of the version published last.
func (s *simulator) edit(role string, f func(*envelope)) {
	s.t.Helper()
	var e envelope
	if err := json.Unmarshal(s.latest(role), &e); err != nil {
		s.t.Fatal(err)
	}
	f(&e)
	s.published[role] = s.published[role][:len(s.published[role])-1]
	s.put(role, e)
}

// restart forgets what a role published: the next version is this one.
func (s *simulator) restart(role string, version int) {
	delete(s.published, role)
	s.mds[role].Version = version
}

// ServeHTTP serves metadata and targets.
func (s *simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b []byte
	if name, ok := strings.CutPrefix(r.URL.EscapedPath(), "/metadata/"); ok {
		b = s.metadata(strings.TrimSuffix(name, ".json"))
	} else {
		path := strings.TrimPrefix(r.URL.Path, "/targets/")
		i := strings.LastIndex(path, "/") + 1
		hash, name, _ := strings.Cut(path[i:], ".")
		path = path[:i] + name
		s.fetched = append(s.fetched, path+" "+hash)
		for _, h := range s.listed[path].Hashes {
			if h == hash {
				b = s.files[path]
			}
		}
	}
	if b == nil {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(b)
}

// metadata finds what was published under a name such as 2.root.
func (s *simulator) metadata(name string) []byte {
	if name == "timestamp" {
		s.asked = append(s.asked, name)
		if len(s.published[name]) == 0 {
			return nil
		}
		return s.latest(name)
	}
	number, role, _ := strings.Cut(name, ".")
	version, err := strconv.Atoi(number)
	s.asked = append(s.asked, fmt.Sprintf("%s %s", role, number))
	role, unquoteErr := url.PathUnescape(role)
	if v := s.published[role]; err == nil && unquoteErr == nil && version >= 1 && version <= len(v) {
		return v[version-1]
	}
	return nil
}
