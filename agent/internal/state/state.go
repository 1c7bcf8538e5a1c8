// Package state is what a device must remember over a power cut: the desired
// state it accepted, the release that is committed, the update under way, the
// cause of the last failure, and counters that may never go back. It owns one
// small JSON file, replaced atomically; a change is either wholly there or not
// at all, so the commit of an update is one such change. The packages of the
// agent import it.
package state

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	fileName = "state/agent.json"
	version  = 1
)

// Install is one release with its parameters, as installed or to be installed.
type Install struct {
	Generation   wire.Generation `json:"generation"`
	Release      ota.Digest      `json:"release"`
	Length       int64           `json:"length"`
	TUFTarget    string          `json:"tuf_target"`
	Counter      uint64          `json:"counter"`
	Params       []wire.Param    `json:"params,omitzero"` // secrets sealed
	ParamsDigest []byte          `json:"params_digest"`
	Rollout      string          `json:"rollout,omitzero"`

	// Known after verify.
	Name         string        `json:"name,omitzero"`
	Version      string        `json:"version,omitzero"`
	Model        string        `json:"model,omitzero"`
	ModelVersion string        `json:"model_version,omitzero"`
	ModelFile    string        `json:"model_file,omitzero"`
	Format       string        `json:"format,omitzero"`
	Golden       ota.Digest    `json:"golden,omitzero"`
	Soak         time.Duration `json:"soak,omitzero"`
	Manifest     ota.Digest    `json:"manifest,omitzero"` // of this device's target as it was then
	Target       string        `json:"target,omitzero"`   // that the manifest is for
	Blobs        []ota.Digest  `json:"blobs,omitzero"`    // all that the release needs here
	// Spec is what serves the model; nil is what the device is configured with.
	Spec *manifest.Workload `json:"spec,omitzero"`
	// LoadTook is how long the server took to answer when it was installed: an
	// update that must unload first stops inference for about as long.
	LoadTook time.Duration `json:"load_took,omitzero"`
}

// Image is the container image that an install runs in, empty for none.
func (i *Install) Image() ota.Digest {
	if i == nil || i.Spec == nil || i.Spec.Image == nil {
		return ""
	}
	return i.Spec.Image.Digest
}

// WorkloadID names the workload of an install on this device: a change of the
// parameters alone is another workload.
func (i *Install) WorkloadID() string {
	if i == nil {
		return ""
	}
	return i.Release.Hex()[:min(32, len(i.Release.Hex()))] + "-" + hex.EncodeToString(i.ParamsDigest[:min(8, len(i.ParamsDigest))])
}

// Dir is the folder of the staged files.
func (i *Install) Dir() string { return StagedRoot + "/" + i.WorkloadID() }

// StagedRoot is the parent of the staged folders.
const StagedRoot = "staged"

// Workload is what the runtime is asked to load.
func (i *Install) Workload(f slot.Files, params map[string]string) runtime.Workload {
	dir := f.Path(i.Dir())
	if dir == "" {
		dir = i.Dir()
	}
	w := runtime.Workload{
		ID: i.WorkloadID(), Model: i.Model, Version: i.ModelVersion, Dir: dir,
		ModelFile: i.ModelFile, Format: i.Format, Params: params, Spec: i.Spec,
	}
	if i.Spec != nil {
		w.MemoryMiB = i.Spec.Resources.MemoryMiB
	}
	return w
}

// Update is the update under way.
type Update struct {
	ID      string  `json:"id"`
	Install Install `json:"install"`
	// Attempts counts process starts that found the update past its load, or on
	// a new operating system; Planned those ends of the agent that were meant.
	Attempts int `json:"attempts,omitzero"`
	Planned  int `json:"planned,omitzero"`
	// OS is how far an update of the operating system is.
	OS *OS `json:"os,omitzero"`
	// Undoing is set, with the cause, before anything is undone.
	Undoing bool             `json:"undoing,omitzero"`
	Class   ota.FailureClass `json:"class,omitzero"`
	Cause   string           `json:"cause,omitzero"`
	Step    ota.Step         `json:"step,omitzero"` // where it failed
}

// OS is an operating system on its way. Replaced as a whole, never changed.
type OS struct {
	Image  ota.Digest `json:"image"`
	Target string     `json:"target"` // that the device has with it
	Slot   int        `json:"slot"`   // where it goes
	From   int        `json:"from"`   // what ran before
	// Written: the slot holds the image. Switched: it boots next, since the boot
	// of id Boot. Arrived: it was seen to run.
	Written  bool   `json:"written,omitzero"`
	Switched bool   `json:"switched,omitzero"`
	Boot     uint64 `json:"boot,omitzero"`
	Arrived  bool   `json:"arrived,omitzero"`
	// Returns counts the tries to get back.
	Returns int `json:"returns,omitzero"`
}

// Import is one image on its way into the container run-time, since the boot of
// that id.
type Import struct {
	Image ota.Digest `json:"image"`
	Boot  uint64     `json:"boot"`
}

// Failure is the original cause of the last update that did not succeed. It
// stays until a later one does.
type Failure struct {
	Generation wire.Generation  `json:"generation"`
	Release    ota.Digest       `json:"release"`
	Class      ota.FailureClass `json:"class"`
	Step       ota.Step         `json:"step,omitzero"`
	Cause      string           `json:"cause"`
	Time       time.Time        `json:"time"`
}

// State is all of it.
type State struct {
	Version int    `json:"version"`
	Starts  uint64 `json:"starts"` // of the agent
	Updates uint64 `json:"updates"`
	Boot    uint64 `json:"boot,omitzero"` // of the machine, at the last start

	Held       wire.Generation `json:"held"`
	HeldDigest []byte          `json:"held_digest,omitzero"`
	Desired    []byte          `json:"desired,omitzero"` // accepted payload

	Current  *Install `json:"current,omitzero"`
	Previous *Install `json:"previous,omitzero"`
	Update   *Update  `json:"update,omitzero"`
	Failure  *Failure `json:"failure,omitzero"`
	// Importing are imports of container images that have begun and not ended.
	// Replaced as a whole, never changed.
	Importing []Import `json:"importing,omitzero"`
	// OS is the image of the operating system that a release brought last.
	OS ota.Digest `json:"os,omitzero"`

	// BytesFetched is what the last update took from the network.
	BytesFetched int64 `json:"bytes_fetched,omitzero"`
	// Sources say by which way. Replaced as a whole, never changed.
	Sources map[string]int64 `json:"sources,omitzero"`

	HighestCounter uint64 `json:"highest_counter"` // release counter ever committed
	// Highest is the same by the name of the release, for which alone counters
	// grow: the folder of its TUF target. Replaced as a whole, never changed.
	Highest map[string]uint64 `json:"highest,omitzero"`

	ReportCounter uint64    `json:"report_counter"` // all below may have been used
	CmdCounter    uint64    `json:"cmd_counter"`
	TrustedTime   time.Time `json:"trusted_time,omitzero"`
}

// Store holds the state in memory and on disk. It is safe for concurrent use.
type Store struct {
	files   slot.Files
	damaged bool

	mu sync.Mutex // guards s and serialises writes
	s  State
}

// Open reads the state, or starts with an empty one. A damaged file is set aside
// as agent.json.damaged, and its copy taken, which knows what is committed. If
// that is damaged too, the control plane tells again what is wanted.
func Open(f slot.Files) (*Store, error) {
	st := &Store{files: f, s: State{Version: version}}
	var s State
	damaged, err := durable.Read(f, fileName, &s)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return st, nil
	case errors.Is(err, durable.ErrDamaged):
		st.damaged = true
		return st, nil
	case err != nil:
		return nil, fmt.Errorf("read agent state: %w", err)
	}
	st.damaged = damaged
	if s.Version != version {
		return nil, fmt.Errorf("read agent state: version %d, this agent knows %d: install the agent that wrote it", s.Version, version)
	}
	st.s = s
	return st, nil
}

// Damaged reports whether Open found a file that could not be read.
func (st *Store) Damaged() bool { return st.damaged }

// Get returns the state. What its pointers point to is never changed.
func (st *Store) Get() State {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.s
}

// Change applies f to a copy of the state and makes it durable; after an error
// the state is as before. f replaces what pointers point to, it does not write
// through them.
func (st *Store) Change(f func(*State)) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	next := st.s
	f(&next)
	if err := durable.Write(st.files, fileName, next); err != nil {
		return fmt.Errorf("write agent state: %w", err)
	}
	if next.Current != st.s.Current || next.Held != st.s.Held {
		// Best effort: the file itself is written. Counters and an update under
		// way may be older in the copy, what is committed and wanted may not.
		_ = durable.WriteCopy(st.files, fileName, next)
	}
	st.s = next
	return nil
}

// reserve is how many report counters one durable write pays for.
const reserve = 1024

// HighestOf returns the highest counter that was ever committed of the releases
// of the name that target belongs to.
func (s State) HighestOf(target string) uint64 {
	return s.Highest[path.Dir(target)]
}

// Committed notes the counter of a release that was made final.
func (s *State) Committed(target string, counter uint64) {
	s.HighestCounter = max(s.HighestCounter, counter)
	next := maps.Clone(s.Highest)
	if next == nil {
		next = map[string]uint64{}
	}
	name := path.Dir(target)
	next[name] = max(next[name], counter)
	s.Highest = next
}

// Counter hands out report counters that grow over the life of the device,
// reserving them in blocks so that not every report costs a durable write. A
// block begins at the clock's milliseconds or where the last one ended,
// whichever is later. So on a disk that cannot be written, which a device must
// be able to report, it goes on without a durable write, one counter at a time:
// they grow over a restart too, and what is reserved later lies above them.
type Counter struct {
	store *Store
	now   func() time.Time

	mu          sync.Mutex // guards what follows
	next, limit uint64
}

// NewCounter returns the counter of a store.
func NewCounter(st *Store, now func() time.Time) *Counter { return &Counter{store: st, now: now} }

// Next returns the next counter.
func (c *Counter) Next() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next >= c.limit {
		from := max(c.store.Get().ReportCounter, c.limit, uint64(max(0, c.now().UnixMilli())))
		err := c.store.Change(func(s *State) { s.ReportCounter = from + reserve })
		c.next, c.limit = from, from+reserve
		if err != nil {
			c.limit = from + 1
		}
	}
	c.next++
	return c.next, nil
}
