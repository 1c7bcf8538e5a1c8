package attack

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
)

// thief has a copy of the trust repository with its keys. Which of them an
// attack uses is what it says of itself.
type thief struct {
	dir  string
	keys map[string]ed25519.PrivateKey // by the hex of the public key
	repo *trust.Repo
}

func newThief(w *world, n int) (*thief, error) {
	t := &thief{dir: filepath.Join(w.dir, fmt.Sprintf("thief-%d", n)), keys: map[string]ed25519.PrivateKey{}}
	if err := os.CopyFS(t.dir, os.DirFS(w.trustDir())); err != nil {
		return nil, err
	}
	err := filepath.WalkDir(t.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(p, ".pem") {
			return err
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(raw)
		if block == nil || block.Type != "PRIVATE KEY" {
			return nil
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return err
		}
		if k, ok := key.(ed25519.PrivateKey); ok {
			t.keys[hex.EncodeToString(k.Public().(ed25519.PublicKey))] = k
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.repo, err = trust.OpenRepo(t.dir)
	return t, err
}

// director signs as the director does.
func (t *thief) director() (*trust.Signer, error) { return t.repo.DirectorSigner() }

// stranger signs with a key that nobody trusts.
func stranger() (*trust.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return trust.NewSigner(crypto.Signer(key))
}

// lists makes the stolen repository list an artifact.
func (t *thief) lists(ctx context.Context, w *world, path string, content []byte, counter uint64) error {
	return t.repo.AddTarget(ctx, path, int64(len(content)), ota.DigestOf(content), trust.TargetCustom{Counter: counter}, w.now())
}

// served are all files of the stolen repository.
func (t *thief) served() (map[string][]byte, error) {
	dir := filepath.Join(t.dir, "metadata")
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, f := range list {
		if out[f.Name()], err = os.ReadFile(filepath.Join(dir, f.Name())); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// metaFile is a file of TUF metadata that can be changed and signed again.
type metaFile struct {
	Signatures []map[string]any `json:"signatures"`
	Signed     map[string]any   `json:"signed"`
}

func parseMeta(raw []byte) (*metaFile, error) {
	m := &metaFile{}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber() // so that what is not changed stays as it was
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("read stolen metadata: %w", err)
	}
	return m, nil
}

// canonical is the form that is signed: sorted keys and no spaces. Go writes
// maps so, but for what it escapes.
func canonical(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// sign replaces the signatures.
func (m *metaFile) sign(keys map[string]ed25519.PrivateKey) ([]byte, error) {
	msg, err := canonical(m.Signed)
	if err != nil {
		return nil, err
	}
	m.Signatures = nil
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		m.Signatures = append(m.Signatures, map[string]any{"keyid": id, "sig": hex.EncodeToString(ed25519.Sign(keys[id], msg))})
	}
	return canonical(m)
}

// field is a map inside of a map.
func field(m map[string]any, path ...string) map[string]any {
	for _, p := range path {
		next, ok := m[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[p] = next
		}
		m = next
	}
	return m
}

func number(m map[string]any, key string) int64 {
	n, err := m[key].(json.Number).Int64()
	if err != nil {
		return 0
	}
	return n
}

// forgery is a set of metadata that the thief builds on the newest files.
type forgery struct {
	t                         *thief
	root, ts, snap, targets   *metaFile
	rootRaw, snapRaw, listRaw []byte
	files                     map[string][]byte
}

// forge begins with copies of the newest files of the true repository.
func (t *thief) forge(w *world) (*forgery, error) {
	set, err := w.metadata()
	if err != nil {
		return nil, err
	}
	return t.forgeOn(set)
}

func (t *thief) forgeOn(set map[string][]byte) (*forgery, error) {
	f := &forgery{t: t, files: map[string][]byte{}}
	for n := 1; set[fmt.Sprintf("%d.root.json", n)] != nil; n++ {
		f.rootRaw = set[fmt.Sprintf("%d.root.json", n)]
	}
	var err error
	if f.root, err = parseMeta(f.rootRaw); err != nil {
		return nil, err
	}
	if f.ts, err = parseMeta(set["timestamp.json"]); err != nil {
		return nil, err
	}
	f.snapRaw = set[fmt.Sprintf("%d.snapshot.json", number(field(f.ts.Signed, "meta", "snapshot.json"), "version"))]
	if f.snap, err = parseMeta(f.snapRaw); err != nil {
		return nil, err
	}
	f.listRaw = set[fmt.Sprintf("%d.targets.json", number(field(f.snap.Signed, "meta", "targets.json"), "version"))]
	f.targets, err = parseMeta(f.listRaw)
	return f, err
}

// keysOf are the stolen keys of a role, by their TUF ids.
func (f *forgery) keysOf(role string) (map[string]ed25519.PrivateKey, error) {
	out := map[string]ed25519.PrivateKey{}
	ids, _ := field(f.root.Signed, "roles", role)["keyids"].([]any)
	for _, id := range ids {
		public, _ := field(f.root.Signed, "keys", fmt.Sprint(id), "keyval")["public"].(string)
		if key, ok := f.t.keys[public]; ok {
			out[fmt.Sprint(id)] = key
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no key of the role %s was stolen", role)
	}
	return out, nil
}

// raise gives a file the next version, or the one given.
func raise(m *metaFile, version int64) int64 {
	if version == 0 {
		version = number(m.Signed, "version") + 1
	}
	m.Signed["version"] = json.Number(fmt.Sprint(version))
	return version
}

func entry(version int64, raw []byte) map[string]any {
	return map[string]any{"version": json.Number(fmt.Sprint(version)), "length": json.Number(fmt.Sprint(len(raw))),
		"hashes": map[string]any{"sha256": ota.DigestOf(raw).Hex()}}
}

// putTargets signs the targets with keys and keeps them as a version.
func (f *forgery) putTargets(version int64, keys map[string]ed25519.PrivateKey) error {
	version = raise(f.targets, version)
	raw, err := f.targets.sign(keys)
	if err != nil {
		return err
	}
	f.putTargetsRaw(version, raw)
	return nil
}

func (f *forgery) putTargetsRaw(version int64, raw []byte) {
	f.listRaw = raw
	f.files[fmt.Sprintf("%d.targets.json", version)] = raw
	field(f.snap.Signed, "meta")["targets.json"] = entry(version, raw)
}

// putSnapshot signs the snapshot with the stolen key.
func (f *forgery) putSnapshot(version int64) error {
	keys, err := f.keysOf("snapshot")
	if err != nil {
		return err
	}
	version = raise(f.snap, version)
	raw, err := f.snap.sign(keys)
	if err != nil {
		return err
	}
	f.snapRaw = raw
	f.files[fmt.Sprintf("%d.snapshot.json", version)] = raw
	field(f.ts.Signed, "meta")["snapshot.json"] = entry(version, raw)
	return nil
}

// putTimestamp signs the timestamp with the stolen key.
func (f *forgery) putTimestamp(version int64) error {
	keys, err := f.keysOf("timestamp")
	if err != nil {
		return err
	}
	raise(f.ts, version)
	raw, err := f.ts.sign(keys)
	if err != nil {
		return err
	}
	f.files["timestamp.json"] = raw
	return nil
}

// publish signs snapshot and timestamp.
func (f *forgery) publish() error { return errors.Join(f.putSnapshot(0), f.putTimestamp(0)) }

// list adds an artifact to the targets, without a signature as yet.
func (f *forgery) list(path string, content []byte, counter uint64) {
	field(f.targets.Signed, "targets")[path] = map[string]any{
		"length": json.Number(fmt.Sprint(len(content))), "hashes": map[string]any{"sha256": ota.DigestOf(content).Hex()},
		"custom": map[string]any{"counter": json.Number(fmt.Sprint(counter))},
	}
}
