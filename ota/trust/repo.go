package trust

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// How long metadata lives. Refresh signs anew at half of it.
const (
	RootLife      = 5 * 365 * 24 * time.Hour
	TargetsLife   = 365 * 24 * time.Hour
	SnapshotLife  = 30 * 24 * time.Hour
	TimestampLife = 7 * 24 * time.Hour
)

// DirectorTarget is the TUF target whose custom part lists the director's keys.
const DirectorTarget = "director.json"

// What the repository returns, wrapped.
var (
	// ErrTargetExists is returned for a path that is listed with other
	// content: what was released does not change.
	ErrTargetExists = errors.New("target is listed with other content")
	// ErrFull is returned when devices could not read the list any more.
	ErrFull = errors.New("no room for more targets")
	// ErrNoRepo is returned by OpenRepo for a folder without a repository.
	ErrNoRepo = errors.New("no trust repository here")
)

const (
	metaDir      = "metadata"
	signedAt     = "x-skein-signed-at" // in the signed part of timestamp, RFC 3339
	domainField  = "x-skein-domain"    // in the signed part of root
	keepVersions = 10                  // older snapshot and targets files for slow readers
	maxCounter   = 1<<53 - 1           // what every JSON reader keeps exactly
	// MaxTargets keeps targets.json below the 5 MB that TUF clients read.
	MaxTargets = 10000
)

// Repo is a TUF image repository in a folder: metadata/ is what devices may
// read, keys/ the private keys that are here. Files appear in an order in
// which a reader, or a restart after a power cut, always finds a whole set.
type Repo struct {
	files slot.Files

	mu        sync.Mutex // guards all below
	keys      keyring
	root      *metadata.Metadata[metadata.RootType]
	rootBytes []byte
	targets   *metadata.Metadata[metadata.TargetsType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	timestamp *metadata.Metadata[metadata.TimestampType]
}

// OpenRepo opens the repository in dir; ErrNoRepo when there is none.
func OpenRepo(dir string) (*Repo, error) {
	f, err := slot.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return openRepo(f)
}

func openRepo(f slot.Files) (*Repo, error) {
	r := &Repo{files: f}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("open trust repository: %w", err)
	}
	return r, nil
}

func metaName(version int64, role string) string {
	return fmt.Sprintf("%s/%d.%s.json", metaDir, version, role)
}

const timestampName = metaDir + "/timestamp.json"

// load reads the newest root and what timestamp leads to.
func (r *Repo) load() error {
	keys, err := loadKeys(r.files)
	if err != nil {
		return err
	}
	version, err := r.newestRoot()
	if err != nil {
		return err
	}
	rootBytes, root, err := readMeta(r.files, metaName(version, metadata.ROOT), metadata.Root())
	if err != nil {
		return err
	}
	_, timestamp, err := readMeta(r.files, timestampName, metadata.Timestamp())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNoRepo, err)
	}
	if err != nil {
		return err
	}
	snapshot, err := follow(r.files, timestamp.Signed.Meta, metadata.SNAPSHOT, metadata.Snapshot())
	if err != nil {
		return err
	}
	targets, err := follow(r.files, snapshot.Signed.Meta, metadata.TARGETS, metadata.Targets())
	if err != nil {
		return err
	}
	r.keys, r.rootBytes, r.root = keys, rootBytes, root
	r.timestamp, r.snapshot, r.targets = timestamp, snapshot, targets
	return nil
}

func (r *Repo) newestRoot() (int64, error) {
	files, err := r.files.ReadDir(metaDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: %w", ErrNoRepo, err)
	}
	if err != nil {
		return 0, err
	}
	newest := int64(0)
	for _, e := range files {
		if role, v := splitName(e.Name()); role == metadata.ROOT {
			newest = max(newest, v)
		}
	}
	if newest == 0 {
		return 0, fmt.Errorf("%w: no root metadata", ErrNoRepo)
	}
	return newest, nil
}

// splitName reads VERSION.ROLE.json or ROLE.json (version 0).
func splitName(name string) (role string, version int64) {
	m := servedName.FindStringSubmatch(name)
	if m == nil {
		return "", 0
	}
	if m[1] != "" {
		v, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return "", 0
		}
		version = v
	}
	return m[2], version
}

var servedName = regexp.MustCompile(`^(?:([1-9][0-9]*)\.)?(root|snapshot|targets|timestamp)\.json$`)

func readMeta[T metadata.Roles](f slot.Files, name string, into *metadata.Metadata[T]) ([]byte, *metadata.Metadata[T], error) {
	b, err := f.ReadFile(name)
	if err != nil {
		return nil, nil, err
	}
	m, err := into.FromBytes(b)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, m, nil
}

func follow[T metadata.Roles](f slot.Files, meta map[string]*metadata.MetaFiles, role string, into *metadata.Metadata[T]) (*metadata.Metadata[T], error) {
	mf := meta[role+".json"]
	if mf == nil {
		return nil, fmt.Errorf("read trust repository: no entry for %s", role)
	}
	_, m, err := readMeta(f, metaName(mf.Version, role), into)
	return m, err
}

// Metadata returns a file for devices: "timestamp.json", "2.root.json",
// "3.snapshot.json", "3.targets.json", and "root.json", "snapshot.json",
// "targets.json" for the current ones. Others are fs.ErrNotExist.
func (r *Repo) Metadata(name string) ([]byte, error) {
	role, version := splitName(name)
	if role == "" || role == metadata.TIMESTAMP && version != 0 {
		return nil, fmt.Errorf("trust metadata %q: %w", name, fs.ErrNotExist)
	}
	if role == metadata.TIMESTAMP {
		return r.files.ReadFile(timestampName)
	}
	if version == 0 {
		r.mu.Lock()
		version = map[string]int64{metadata.ROOT: r.root.Signed.Version, metadata.SNAPSHOT: r.snapshot.Signed.Version,
			metadata.TARGETS: r.targets.Signed.Version}[role]
		r.mu.Unlock()
	}
	return r.files.ReadFile(metaName(version, role))
}

// Source serves the repository to a Client in the same process.
func (r *Repo) Source() MetadataSource {
	return func(ctx context.Context, name string) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		return r.Metadata(name)
	}
}

// Root returns the current root metadata: what a device is given at enrolment.
func (r *Repo) Root() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.rootBytes)
}

// Expires returns when devices will begin to refuse the metadata if nothing
// is signed anew.
func (r *Repo) Expires() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.MinFunc([]time.Time{r.root.Signed.Expires, r.targets.Signed.Expires, r.snapshot.Signed.Expires, r.timestamp.Signed.Expires}, time.Time.Compare)
}

// Target returns what the repository lists under path, or ErrUnknownTarget.
func (r *Repo) Target(path string) (TargetInfo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return targetInfo(r.targets, path)
}

// AddTarget lists an artifact and signs targets, snapshot and timestamp anew.
// Listing the same again changes nothing; other content under a listed path
// is ErrTargetExists.
func (r *Repo) AddTarget(ctx context.Context, path string, length int64, d ota.Digest, custom TargetCustom, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list target %s: %w", path, context.Cause(ctx))
	}
	if path == DirectorTarget {
		return fmt.Errorf("list target %s: the repository keeps it itself", path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := targetInfo(r.targets, path)
	if err == nil {
		if have.Length == length && have.Digest == d && have.Custom.equal(custom) {
			return nil
		}
		return fmt.Errorf("list target %s: %w: %s of %d bytes, counter %d", path, ErrTargetExists, have.Digest.Short(), have.Length, have.Custom.Counter)
	}
	if len(r.targets.Signed.Targets) >= MaxTargets {
		return fmt.Errorf("list target %s: %w: %d are listed: remove old ones", path, ErrFull, MaxTargets)
	}
	if err := r.putTarget(path, length, d, custom); err != nil {
		return fmt.Errorf("list target %s: %w", path, err)
	}
	return r.settle(r.signTargets(now))
}

// RemoveTarget takes an artifact off the list, so that no device starts to
// install it any more. Absent is no error.
func (r *Repo) RemoveTarget(ctx context.Context, path string, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove target %s: %w", path, context.Cause(ctx))
	}
	if path == DirectorTarget {
		return fmt.Errorf("remove target %s: the repository keeps it itself", path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, listed := r.targets.Signed.Targets[path]; !listed {
		return nil
	}
	delete(r.targets.Signed.Targets, path)
	return r.settle(r.signTargets(now))
}

// settle goes back to what is on disk when a change failed half-way.
func (r *Repo) settle(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, r.load())
}

func (c TargetCustom) equal(o TargetCustom) bool {
	return c.Counter == o.Counter && slices.EqualFunc(c.Keys, o.Keys, bytes.Equal)
}

func (r *Repo) putTarget(path string, length int64, d ota.Digest, custom TargetCustom) error {
	if !validTarget(path) {
		return fmt.Errorf("%q: want a relative path of letters, digits and . _ - + /", path)
	}
	sum := d.Sum()
	if _, err := ota.ParseDigest(string(d)); err != nil || length < 0 {
		return fmt.Errorf("%d bytes, digest %q: %w", length, d, ota.ErrBadDigest)
	}
	if custom.Counter > maxCounter {
		return fmt.Errorf("counter %d, limit %d", custom.Counter, uint64(maxCounter))
	}
	raw, err := json.Marshal(custom)
	if err != nil {
		return err
	}
	// Exactly one hash: with several, clients that put the hash in the file
	// name pick one at random.
	r.targets.Signed.Targets[path] = &metadata.TargetFiles{Path: path, Length: length,
		Hashes: metadata.Hashes{"sha256": sum}, Custom: (*json.RawMessage)(&raw)}
	return nil
}

var targetPath = regexp.MustCompile(`^[A-Za-z0-9._+/-]{1,512}$`)

func validTarget(path string) bool {
	return fs.ValidPath(path) && path != "." && targetPath.MatchString(path)
}

// Refresh signs anew what has lived half its time, or what the current root
// does not stand behind. Call it at least daily.
func (r *Repo) Refresh(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	due := func(expires time.Time, life time.Duration) bool { return expires.Sub(now) < life/2 }
	ok := func(role string, m any) bool { return r.root.VerifyDelegate(role, m) == nil }
	if due(r.root.Signed.Expires, RootLife) {
		// Root keys are offline in production: there, a person signs.
		if err := r.signRoot(now, nil); err != nil && !errors.Is(err, ErrNoKey) {
			return r.settle(err)
		}
	}
	if due(r.targets.Signed.Expires, TargetsLife) || !ok(metadata.TARGETS, r.targets) {
		if err := r.signTargets(now); !errors.Is(err, ErrNoKey) {
			return r.settle(err)
		}
	}
	switch {
	case due(r.snapshot.Signed.Expires, SnapshotLife) || !ok(metadata.SNAPSHOT, r.snapshot):
		return r.settle(r.signSnapshot(now))
	case due(r.timestamp.Signed.Expires, TimestampLife) || !ok(metadata.TIMESTAMP, r.timestamp):
		return r.settle(r.signTimestamp(now))
	}
	return nil
}

func expiry(now time.Time, life time.Duration) time.Time {
	return now.UTC().Add(life).Truncate(time.Second)
}

func metaFile(version int64, b []byte) *metadata.MetaFiles {
	return &metadata.MetaFiles{Version: version, Length: int64(len(b)), Hashes: metadata.Hashes{"sha256": ota.DigestOf(b).Sum()}}
}

// signTargets, signSnapshot and signTimestamp each write the next version of
// their file and then what must follow; timestamp.json comes last and makes
// all of it current.
func (r *Repo) signTargets(now time.Time) error {
	keys, err := r.keys.forRole(r.root, metadata.TARGETS)
	if err != nil {
		return err
	}
	r.targets.Signed.Version++
	r.targets.Signed.Expires = expiry(now, TargetsLife)
	b, err := sign(r.targets, keys...)
	if err != nil {
		return err
	}
	if len(b) > maxTargets {
		return fmt.Errorf("%w: targets.json would have %d bytes, devices read %d: remove old targets", ErrFull, len(b), maxTargets)
	}
	if err := r.files.WriteFile(metaName(r.targets.Signed.Version, metadata.TARGETS), b); err != nil {
		return err
	}
	r.snapshot.Signed.Meta["targets.json"] = metaFile(r.targets.Signed.Version, b)
	return r.signSnapshot(now)
}

func (r *Repo) signSnapshot(now time.Time) error {
	keys, err := r.keys.forRole(r.root, metadata.SNAPSHOT)
	if err != nil {
		return err
	}
	r.snapshot.Signed.Version++
	r.snapshot.Signed.Expires = expiry(now, SnapshotLife)
	b, err := sign(r.snapshot, keys...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(metaName(r.snapshot.Signed.Version, metadata.SNAPSHOT), b); err != nil {
		return err
	}
	r.timestamp.Signed.Meta["snapshot.json"] = metaFile(r.snapshot.Signed.Version, b)
	return r.signTimestamp(now)
}

func (r *Repo) signTimestamp(now time.Time) error {
	keys, err := r.keys.forRole(r.root, metadata.TIMESTAMP)
	if err != nil {
		return err
	}
	r.timestamp.Signed.Version++
	r.timestamp.Signed.Expires = expiry(now, TimestampLife)
	if r.timestamp.Signed.UnrecognizedFields == nil {
		r.timestamp.Signed.UnrecognizedFields = map[string]any{}
	}
	r.timestamp.Signed.UnrecognizedFields[signedAt] = now.UTC().Format(time.RFC3339)
	b, err := sign(r.timestamp, keys...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(timestampName, b); err != nil {
		return err
	}
	return r.prune()
}

// signRoot writes the next root, changed by change, signed by the keys of the
// root before it and by its own.
func (r *Repo) signRoot(now time.Time, change func(*metadata.RootType) error) error {
	old, err := r.keys.forRole(r.root, metadata.ROOT)
	if err != nil {
		return err
	}
	if change != nil {
		if err := change(&r.root.Signed); err != nil {
			return err
		}
	}
	own, err := r.keys.forRole(r.root, metadata.ROOT)
	if err != nil {
		return err
	}
	r.root.Signed.Version++
	r.root.Signed.Expires = expiry(now, RootLife)
	b, err := sign(r.root, append(slices.Clone(old), own...)...)
	if err != nil {
		return err
	}
	if err := r.files.WriteFile(metaName(r.root.Signed.Version, metadata.ROOT), b); err != nil {
		return err
	}
	r.rootBytes = b
	return nil
}

// prune removes snapshot and targets files that no reader can still want;
// roots stay, for devices walk them one by one.
func (r *Repo) prune() error {
	files, err := r.files.ReadDir(metaDir)
	if err != nil {
		return err
	}
	current := map[string]int64{metadata.SNAPSHOT: r.snapshot.Signed.Version, metadata.TARGETS: r.targets.Signed.Version}
	for _, e := range files {
		role, v := splitName(e.Name())
		if now, ok := current[role]; ok && v > 0 && v < now-keepVersions {
			if err := r.files.Remove(metaDir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// targetInfo reads one entry of targets.
func targetInfo(m *metadata.Metadata[metadata.TargetsType], path string) (TargetInfo, error) {
	if m == nil || m.Signed.Targets[path] == nil {
		return TargetInfo{}, fmt.Errorf("target %q: %w", path, ErrUnknownTarget)
	}
	t := m.Signed.Targets[path]
	info := TargetInfo{Path: path, Length: t.Length, Digest: ota.Digest("sha256:" + hex.EncodeToString(t.Hashes["sha256"]))}
	if _, err := ota.ParseDigest(string(info.Digest)); err != nil || t.Length < 0 || !validTarget(path) {
		return TargetInfo{}, fmt.Errorf("target %q: listed without a usable length and sha256", path)
	}
	if t.Custom != nil {
		if err := json.Unmarshal(*t.Custom, &info.Custom); err != nil {
			return TargetInfo{}, fmt.Errorf("target %q: custom part: %w", path, err)
		}
	}
	return info, nil
}
