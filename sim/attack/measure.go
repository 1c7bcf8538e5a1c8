package attack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

// snapshot is what lies on a device's disk: the sum of each file, and of what
// the agent remembers that part which says what it runs.
type snapshot struct {
	files map[string]string // from the folder above the state folder
	bytes int64             // of all of them
	state installed
	set   []byte       // what of the metadata is trusted
	time  time.Time    // that is trusted
	blobs []ota.Digest // that the running release needs
}

// installed is the part of the agent's state that says what runs.
type installed struct {
	Current  *install          `json:"current"`
	Previous *install          `json:"previous"`
	Update   json.RawMessage   `json:"update"`
	Highest  map[string]uint64 `json:"highest"`
}

type install struct {
	Release ota.Digest   `json:"release"`
	Counter uint64       `json:"counter"`
	Params  []byte       `json:"params_digest"`
	Model   string       `json:"model_file"`
	Blobs   []ota.Digest `json:"blobs"`
}

// take makes a snapshot.
func (d *device) take() (*snapshot, error) {
	s := &snapshot{files: map[string]string{}}
	err := filepath.WalkDir(d.dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was a file under way
		}
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(d.dir, p)
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			s.files[rel] = e.Type().String()
			return nil
		}
		sum, n, err := fileSum(p)
		s.bytes += n
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		s.files[rel] = sum
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look at the disk: %w", err)
	}
	raw, err := os.ReadFile(filepath.Join(d.state(), "state", "agent.json"))
	if err != nil {
		return nil, fmt.Errorf("look at the agent's state: %w", err)
	}
	envelope := struct{ Body *installed }{&s.state}
	if err := json.Unmarshal(raw, &envelope); err != nil {
		return nil, fmt.Errorf("look at the agent's state: %w", err)
	}
	if s.state.Current == nil {
		return nil, errors.New("the device runs nothing")
	}
	s.blobs = s.state.Current.Blobs
	if raw, err = os.ReadFile(filepath.Join(d.dir, trustedSet)); err != nil {
		return nil, fmt.Errorf("look at the trusted metadata: %w", err)
	}
	var set map[string]json.RawMessage
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("look at the trusted metadata: %w", err)
	}
	delete(set, "seen")
	if s.set, err = json.Marshal(set); err != nil {
		return nil, err
	}
	if raw, err = os.ReadFile(filepath.Join(d.dir, trustedTime)); err != nil {
		return nil, fmt.Errorf("look at the trusted time: %w", err)
	}
	trusted := struct{ Time *time.Time }{&s.time}
	return s, json.Unmarshal(raw, &trusted)
}

func fileSum(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", size, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

const (
	trustedSet  = "state/trust/set.json"
	trustedTime = "state/trust/time.json"
	// onlySeen lets an attack alter what the device remembers as rightly signed,
	// and does not use: a stolen key has signed it.
	onlySeen = trustedSet + "#seen"
)

// grows are the folders in which an update that fails may leave something that
// counts for nothing: whole blobs under their own sum, partial ones, the journal,
// and what the agent keeps for people: timelines, and what a crash would leave.
var grows = []string{"state/blobs/", "state/partial/", "state/journal/", "state/state/", "state/crash/", "state/traces.json"}

// mostLeft is how much a failed update may leave: its blobs, which count for
// nothing, and the agent's own notes.
const mostLeft = 2*padding + 1<<20

// changed says what differs from the snapshot that may not, or nil.
func (s *snapshot) changed(now *snapshot, mayAlter []string, latest time.Time) error {
	errs := []error{now.sound(mayAlter)}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	keep := map[string]bool{}
	for _, d := range s.blobs {
		keep[filepath.Join("state", "blobs", "sha256", d.Hex()[:2], d.Hex())] = true
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if name == trustedTime && !now.time.Before(s.time) && now.time.Before(latest) {
			continue // what the director signs moves it on
		}
		if name == trustedSet && slices.Contains(mayAlter, onlySeen) && bytes.Equal(s.set, now.set) {
			continue
		}
		if sum, ok := now.files[name]; sum != s.files[name] && (keep[name] || !under(name, grows) && !under(name, mayAlter)) {
			bad("%s changed or went (there: %v)", name, ok)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now.files)) {
		if _, old := s.files[name]; !old && !under(name, grows) && !under(name, mayAlter) {
			bad("%s is new", name)
		}
	}
	if n := now.bytes - s.bytes; n > mostLeft {
		bad("%d bytes more are on the disk", n)
	}
	if a, b := marshal(s.state.Current), marshal(now.state.Current); a != b {
		bad("the committed release is %s, was %s", b, a)
	}
	if !maps.Equal(s.state.Highest, now.state.Highest) {
		bad("the highest counters are %v, were %v", now.state.Highest, s.state.Highest)
	}
	return errors.Join(errs...)
}

// sound says what no disk may hold: other things than files in the state folder,
// anything outside of it, a blob with another content than its name, an update
// under way while the device rests.
func (s *snapshot) sound(mayAlter []string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if !regular(s.files[name]) && !under(name, mayAlter) {
			errs = append(errs, fmt.Errorf("%s is no regular file: %s", name, s.files[name]))
		}
		if !strings.HasPrefix(name, "state/") {
			errs = append(errs, fmt.Errorf("%s is outside of the state folder", name))
		}
		if d, ok := strings.CutPrefix(name, "state/blobs/sha256/"); ok && filepath.Base(d) != s.files[name] {
			errs = append(errs, fmt.Errorf("%s holds something else than its sum says", name))
		}
	}
	if string(s.state.Update) != "" && string(s.state.Update) != "null" {
		errs = append(errs, errors.New("an update is still under way"))
	}
	return errors.Join(errs...)
}

func regular(sum string) bool { return len(sum) == 2*sha256.Size }

func under(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// add keeps a verdict: ok when err is nil.
func (r *Result) add(name string, err error) {
	v := Verdict{Name: name, OK: err == nil}
	if err != nil {
		v.Why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	r.Verdicts = append(r.Verdicts, v)
}

// watch is what was seen of a device while it was attacked.
type watch struct {
	adopted  string // a release that it reported to run and should not
	named    bool
	classes  []string
	messages []string
	failure  string
	reported bool // as a failure, a condition, or an event
}

// observe looks at the control plane until it knows the name of the attack and
// the device rests, or the device has adopted something, or time is up.
func (s *scene) observe(ctx context.Context) (watch, error) {
	var w watch
	rests := time.Time{}
	err := wait(ctx, s.limit(), func() (bool, error) {
		v, err := s.w.device(ctx, s.d.id)
		if err != nil {
			return false, err
		}
		if err := s.name(ctx, v, &w); err != nil {
			return false, err
		}
		if r := v.GetRunningRelease(); r != "" && r != string(s.w.releases[running].digest) {
			w.adopted = r
		}
		enough := w.named || w.adopted != ""
		if s.a.Heals {
			enough = w.named && w.adopted != ""
		}
		if v.GetPhase() == "updating" || s.d.status().Phase.String() == "updating" || !enough {
			rests = time.Time{}
			return false, nil
		}
		if rests.IsZero() {
			rests = time.Now()
		}
		return time.Since(rests) > quiet, nil
	})
	if errors.Is(err, errPatience) {
		err = nil // what was not seen is short
	}
	return w, err
}

// limit is how long the name of an attack is waited for.
func (s *scene) limit() time.Duration { return patience / 2 }

// name notes what the control plane knows of the attack.
func (s *scene) name(ctx context.Context, v *fleetv1.Device, w *watch) error {
	classes, messages, err := s.classes(ctx)
	if err != nil {
		return err
	}
	w.classes, w.messages = classes, messages
	if v.GetFailure() != "" {
		w.failure, w.reported = v.GetFailureClass()+": "+v.GetFailure(), true
	}
	w.reported = w.reported || len(classes) > 0
	for _, c := range v.GetConditions() {
		w.reported = w.reported || c.GetName() == "trust-refused" || c.GetName() == "update-failed"
	}
	if s.a.named != nil {
		ok, err := s.a.named(ctx, s)
		w.named = w.named || ok
		return err
	}
	w.named = w.named || slices.Contains(classes, s.a.Class)
	return nil
}

// refuse carries out an attack that must be refused, and measures it.
func (s *scene) refuse(ctx context.Context, r *Result) error {
	before, err := s.d.take()
	if err != nil {
		return err
	}
	s.d.app.mark()
	if err := s.a.strike(ctx, s); err != nil {
		return fmt.Errorf("carry out the attack: %w", err)
	}
	w, err := s.observe(ctx)
	if err != nil {
		return err
	}
	counts, _, fault := s.d.app.seen()
	honest := string(s.w.releases[bait].digest)
	switch {
	case s.a.Heals && w.adopted == honest:
	case s.a.Heals:
		err = fmt.Errorf("the honest release did not come another way; the device runs %q", w.adopted)
	case w.adopted != "":
		err = fmt.Errorf("the device reported that it runs %s", w.adopted)
	case !w.reported:
		err = errors.New("the control plane knows of no refusal and no failure")
	}
	r.add(Refused, err)
	after, err := s.d.take()
	if err != nil {
		return err
	}
	if s.a.Heals {
		err = after.sound(s.a.mayAlter)
		delete(counts, bait)
	} else {
		err = before.changed(after, s.a.mayAlter, s.w.now().Add(time.Minute))
	}
	if s.outside != "" {
		if found, rerr := os.ReadDir(s.outside); rerr != nil || len(found) > 0 {
			err = errors.Join(err, fmt.Errorf("%d files were written outside of the state folder: %w", len(found), rerr))
		}
	}
	if fault != nil {
		err = errors.Join(err, fmt.Errorf("inference failed: %w", fault))
	}
	if counts[running] == 0 || len(counts) > 1 {
		err = errors.Join(err, fmt.Errorf("answers by model: %v, only %d should answer", counts, running))
	}
	r.add(NothingApplied, err)
	err = nil
	if !w.named {
		err = fmt.Errorf("the control plane was told of %q, not of %q: %q; failure: %s", w.classes, s.a.Class, w.messages, w.failure)
	}
	r.add(Named, err)
	r.add(Recovers, s.recover(ctx))
	return nil
}
