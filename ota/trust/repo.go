package trust

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
	autos     map[string]*metadata.Metadata[metadata.TargetsType] // by role
	draft     drafts
	online    Online // nil: the keys of snapshot and timestamp are in keys/
}

// OpenRepo opens the repository in dir; ErrNoRepo when there is none. online
// signs snapshot, timestamp and auto roles; nil when their keys are in dir.
func OpenRepo(dir string, online ...Online) (*Repo, error) {
	f, err := slot.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return openRepo(f, online...)
}

// OpenFiles is OpenRepo for any durable files, such as a copy in memory.
func OpenFiles(f slot.Files, online ...Online) (*Repo, error) { return openRepo(f, online...) }

func openRepo(f slot.Files, online ...Online) (*Repo, error) {
	r := &Repo{files: f}
	for _, o := range online {
		if o != nil {
			r.online = o
		}
	}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("open trust repository: %w", err)
	}
	return r, nil
}

func metaName(version int64, role string) string {
	return fmt.Sprintf("%s/%d.%s.json", metaDir, version, url.PathEscape(role))
}

const timestampName = metaDir + "/timestamp.json"

// unborn is a repository in which nothing is signed: all versions are 0, and
// each signature counts up from there.
func unborn(f slot.Files) *Repo {
	r := &Repo{files: f, keys: keyring{}, root: metadata.Root(), targets: metadata.Targets(), snapshot: metadata.Snapshot(), timestamp: metadata.Timestamp(),
		autos: map[string]*metadata.Metadata[metadata.TargetsType]{}}
	r.root.Signed.Version, r.targets.Signed.Version, r.snapshot.Signed.Version, r.timestamp.Signed.Version = 0, 0, 0, 0
	return r
}

// load reads the newest root, what timestamp leads to, and the drafts.
func (r *Repo) load() error {
	keys, err := loadKeys(r.files)
	if err != nil {
		return err
	}
	next := unborn(r.files)
	next.keys = keys
	if next.draft, err = readDrafts(r.files); err != nil {
		return err
	}
	version, err := r.newestRoot()
	if err != nil {
		return err
	}
	if version == 0 && next.draft.root == nil {
		return ErrNoRepo
	}
	if version > 0 {
		if next.rootBytes, next.root, err = readMeta(r.files, metaName(version, metadata.ROOT), metadata.Root()); err != nil {
			return err
		}
	}
	if err := next.loadSet(); err != nil {
		return err
	}
	if err := next.dropStale(); err != nil {
		return err
	}
	r.keys, r.rootBytes, r.root = next.keys, next.rootBytes, next.root
	r.timestamp, r.snapshot, r.targets, r.autos, r.draft = next.timestamp, next.snapshot, next.targets, next.autos, next.draft
	return nil
}

// loadSet reads what timestamp leads to. There is none before the first targets
// are signed.
func (r *Repo) loadSet() error {
	_, timestamp, err := readMeta(r.files, timestampName, metadata.Timestamp())
	if errors.Is(err, fs.ErrNotExist) {
		if r.draft.targets == nil {
			return fmt.Errorf("%w: %w", ErrNoRepo, err)
		}
		return nil
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
	for file := range snapshot.Signed.Meta {
		role := strings.TrimSuffix(file, ".json")
		if !strings.HasPrefix(role, autoPrefix) {
			continue
		}
		if r.autos[role], err = follow(r.files, snapshot.Signed.Meta, role, metadata.Targets()); err != nil {
			return err
		}
	}
	r.timestamp, r.snapshot, r.targets = timestamp, snapshot, targets
	return nil
}

// newestRoot returns 0 when no root is published.
func (r *Repo) newestRoot() (int64, error) {
	files, err := r.files.ReadDir(metaDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
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
	return newest, nil
}

// splitName reads VERSION.ROLE.json or ROLE.json (version 0). The slash of a
// role is written %2F.
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
	return strings.Replace(m[2], "%2F", "/", 1), version
}

var servedName = regexp.MustCompile(`^(?:([1-9][0-9]*)\.)?(root|snapshot|targets|timestamp|auto%2F[a-z0-9._-]+)\.json$`)

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
// "targets.json" for the current ones; "3.auto%2Fmeter.json" of a delegated
// role, also with its slash as it is. Others are fs.ErrNotExist.
func (r *Repo) Metadata(name string) ([]byte, error) {
	role, version := splitName(strings.Replace(name, autoPrefix, url.PathEscape(autoPrefix), 1))
	if role == "" || role == metadata.TIMESTAMP && version != 0 {
		return nil, fmt.Errorf("trust metadata %q: %w", name, fs.ErrNotExist)
	}
	if role == metadata.TIMESTAMP {
		return r.files.ReadFile(timestampName)
	}
	if version == 0 {
		r.mu.Lock()
		version = r.versions()[role]
		r.mu.Unlock()
	}
	return r.files.ReadFile(metaName(version, role))
}

// versions returns the current version of every file that has one in its name.
func (r *Repo) versions() map[string]int64 {
	v := map[string]int64{metadata.ROOT: r.root.Signed.Version, metadata.SNAPSHOT: r.snapshot.Signed.Version, metadata.TARGETS: r.targets.Signed.Version}
	for role, m := range r.autos {
		v[role] = m.Signed.Version
	}
	return v
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

// Target returns what the repository lists under path, itself or through an
// auto role, or ErrUnknownTarget.
func (r *Repo) Target(path string) (TargetInfo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := targetInfo(r.targets, path)
	if errors.Is(err, ErrUnknownTarget) {
		if role, ok := r.autoOf(path); ok {
			return targetInfo(r.autos[role], path)
		}
	}
	return info, err
}

// AddTarget lists an artifact and signs targets, snapshot and timestamp anew.
// Listing the same again changes nothing; other content under a listed path
// is ErrTargetExists. Where the targets keys are not here the artifact goes to
// the draft of the next targets, and ErrPending is returned until it is signed.
func (r *Repo) AddTarget(ctx context.Context, path string, length int64, d ota.Digest, custom TargetCustom, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list target %s: %w", path, context.Cause(ctx))
	}
	if reserved(path) {
		return fmt.Errorf("list target %s: the repository keeps it itself", path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	listed, err := r.listed(r.targets, path, length, d, custom)
	if err != nil || listed {
		return err
	}
	if r.draft.targets != nil {
		listed, err := r.listed(r.draft.targets, path, length, d, custom)
		if err != nil {
			return err
		}
		if listed {
			return r.settle(r.advance(now))
		}
	}
	err = r.changeTargets(now, func(m *metadata.TargetsType) error {
		if len(m.Targets) >= MaxTargets {
			return fmt.Errorf("%w: %d are listed: remove old ones", ErrFull, MaxTargets)
		}
		return putTarget(m, path, length, d, custom)
	})
	if err != nil {
		return fmt.Errorf("list target %s: %w", path, err)
	}
	return nil
}

func (r *Repo) listed(m *metadata.Metadata[metadata.TargetsType], path string, length int64, d ota.Digest, custom TargetCustom) (bool, error) {
	have, err := targetInfo(m, path)
	if err != nil {
		return false, nil
	}
	if have.Length == length && have.Digest == d && have.Custom.equal(custom) {
		return true, nil
	}
	return false, fmt.Errorf("list target %s: %w: %s of %d bytes, counter %d", path, ErrTargetExists, have.Digest.Short(), have.Length, have.Custom.Counter)
}

// reserved are the paths that the repository itself writes.
func reserved(path string) bool {
	return path == DirectorTarget || strings.HasPrefix(path, policyPrefix)
}

// RemoveTarget takes an artifact off the list, so that no device starts to
// install it any more; with offline keys once the draft is signed (ErrPending).
// Absent is no error.
func (r *Repo) RemoveTarget(ctx context.Context, path string, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove target %s: %w", path, context.Cause(ctx))
	}
	if reserved(path) {
		return fmt.Errorf("remove target %s: the repository keeps it itself", path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, listed := r.targets.Signed.Targets[path]
	if d := r.draft.targets; d != nil {
		_, drafted := d.Signed.Targets[path]
		if listed && !drafted {
			return r.settle(r.advance(now))
		}
		listed = drafted
	}
	if !listed {
		return nil
	}
	return r.changeTargets(now, func(m *metadata.TargetsType) error {
		delete(m.Targets, path)
		return nil
	})
}

// settle goes back to what is on disk when a change failed half-way.
func (r *Repo) settle(err error) error {
	if err == nil || errors.Is(err, ErrPending) {
		return err
	}
	return errors.Join(err, r.load())
}

func (c TargetCustom) equal(o TargetCustom) bool {
	return c.Counter == o.Counter && slices.EqualFunc(c.Keys, o.Keys, bytes.Equal) && jsonText(c.Policy) == jsonText(o.Policy)
}

func putTarget(m *metadata.TargetsType, path string, length int64, d ota.Digest, custom TargetCustom) error {
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
	m.Targets[path] = &metadata.TargetFiles{Path: path, Length: length,
		Hashes: metadata.Hashes{"sha256": sum}, Custom: (*json.RawMessage)(&raw)}
	return nil
}

var targetPath = regexp.MustCompile(`^[A-Za-z0-9._+/-]{1,512}$`)

func validTarget(path string) bool {
	return fs.ValidPath(path) && path != "." && targetPath.MatchString(path)
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
