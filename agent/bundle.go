package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// byBundle is the name of a bundle among the ways to blobs.
const byBundle = "bundle"

// ErrNotForUs is returned for a bundle without a desired state for this device.
var ErrNotForUs = errors.New("bundle holds nothing for this device")

// stick is the bundle that is being installed from, open as long as a person
// waits for it.
type stick struct {
	jobs chan func(context.Context) // for the accept loop
	one  sync.Mutex                 // held by the one that is applied

	mu  sync.Mutex // guards now
	now *carried
}

// carried is one open bundle, with what it says for this device.
type carried struct {
	file *os.File
	*bundle.Bundle
	raw     []byte // desired state, signed
	desired wire.Desired
}

func newStick() *stick { return &stick{jobs: make(chan func(context.Context))} }

// ways puts the bundle, where there is one, before the other ways.
func (s *stick) ways(others []fetch.Named) []fetch.Named {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return others
	}
	return append([]fetch.Named{{Name: byBundle, Source: s.now}}, others...)
}

// there reports whether there is a bundle.
func (s *stick) there() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now != nil
}

// hold makes c the open bundle; nil ends that.
func (s *stick) hold(c *carried) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = c
}

// errBusy is returned while another bundle is applied.
var errBusy = errors.New("another bundle is being applied")

// ApplyBundle verifies a bundle file, refreshes the trust metadata from it and
// installs what it holds for this device: without any network, under the checks
// of a desired state that comes over the link. It returns when the release runs
// or has failed, or, with noWait, when its desired state is accepted. What is
// refused changes nothing that runs. The file is not needed afterwards.
func (a *Agent) ApplyBundle(ctx context.Context, path string, noWait bool) (localapi.Applied, error) {
	if !a.stick.one.TryLock() {
		return localapi.Applied{}, errBusy
	}
	defer a.stick.one.Unlock()
	out, err := a.applyBundle(ctx, path, noWait)
	if err != nil {
		return out, fmt.Errorf("bundle %s: %w", path, err)
	}
	return out, nil
}

func (a *Agent) applyBundle(ctx context.Context, path string, noWait bool) (out localapi.Applied, err error) {
	c, err := a.openBundle(path)
	if err != nil {
		return out, err
	}
	defer c.file.Close()
	if err := a.inAccept(ctx, func(ctx context.Context) error { return a.judgeBundle(ctx, c) }); err != nil {
		return out, err
	}
	a.stick.hold(c)
	defer a.stick.hold(nil)
	defer a.held.set(byBundle, "")
	if err := a.copyBundle(ctx, c); err != nil {
		if errors.Is(err, blob.ErrDigestMismatch) {
			err = &trust.Attack{Class: trust.ClassWrongHash, Err: err}
			_ = a.inAccept(ctx, func(context.Context) error { a.refuse(err); return nil })
		}
		a.noteDisk(err)
		return out, err
	}
	take := func(ctx context.Context) error {
		a.carrying = c.Metadata
		defer func() { a.carrying = nil }()
		err := a.accept(ctx, c.raw)
		if err != nil && !errors.Is(err, errLater) {
			a.refuse(err)
		}
		return err
	}
	if err := a.inAccept(ctx, take); err != nil {
		return out, err
	}
	out = localapi.Applied{Device: c.desired.Device, Release: c.Info.Release, Digest: string(c.Info.Index.Digest), Generation: c.desired.Generation, Outcome: "accepted"}
	if !noWait {
		out.Outcome, out.Failure, err = a.awaitBundle(ctx, c)
	}
	return out, err
}

// inAccept runs do in the accept loop.
func (a *Agent) inAccept(ctx context.Context, do func(context.Context) error) error {
	done := make(chan error, 1)
	select {
	case a.stick.jobs <- func(ctx context.Context) { done <- do(ctx) }:
		return <-done
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// bundleLook is how often a waiting call looks at where the update stands.
const bundleLook = 200 * time.Millisecond

// awaitBundle returns when the release of a bundle runs, has failed or is not
// wanted any more.
func (a *Agent) awaitBundle(ctx context.Context, c *carried) (outcome, failure string, err error) {
	tick := time.NewTicker(bundleLook)
	defer tick.Stop()
	for {
		s := a.state.Get()
		f := s.Failure
		switch {
		case s.Held.Compare(c.desired.Generation) > 0:
			return "superseded", "", nil
		case s.Update != nil:
		case f != nil && f.Generation == c.desired.Generation:
			return "failed", fmt.Sprintf("%s at %s: %s", f.Class, f.Step, f.Cause), nil
		case s.Current != nil && s.Current.Release == c.Info.Index.Digest:
			return "runs", "", nil
		}
		select {
		case <-ctx.Done():
			return "", "", context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (a *Agent) openBundle(path string) (*carried, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe without a writer would hold it for ever
	if err != nil {
		return nil, err
	}
	c := &carried{file: f}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a plain file")
	}
	if err == nil {
		c.Bundle, err = bundle.Open(f, st.Size())
	}
	if err == nil {
		id := a.identity.Load().DeviceID
		if c.raw, err = c.Bundle.Desired(id); errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: it is for %d devices, and %s is not among them", ErrNotForUs, len(c.Devices()), id)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// judgeBundle runs in the accept loop: it asks all that accept will ask, and
// changes nothing but the trust metadata.
func (a *Agent) judgeBundle(ctx context.Context, c *carried) error {
	a.carrying = c.Metadata
	defer func() { a.carrying = nil }()
	err := a.refreshTrust(ctx, c.Info.Target)
	var payload []byte
	if err == nil {
		payload, err = a.verify(ctx, wire.AADDesired, c.raw)
	}
	if err == nil {
		if uerr := wire.UnmarshalCanonical(payload, &c.desired); uerr != nil {
			err = &trust.Attack{Class: trust.ClassMalformed, Err: uerr}
		}
	}
	if err == nil {
		err = a.checkDesired(ctx, c.desired, a.state.Get())
	}
	if r := c.desired.Release; err == nil && (r == nil || string(r.Digest) != string(c.Info.Index.Digest.Sum())) {
		err = &trust.Attack{Class: trust.ClassDisagreement, Err: fmt.Errorf("the desired state in it is not for its release %s", c.Info.Release)}
	}
	if err != nil && !errors.Is(err, errLater) {
		a.refuse(err)
	}
	return err
}

// copyBundle brings index, manifest and layers for this device into the store.
// It is free of windows and allowances, which are for networks.
func (a *Agent) copyBundle(ctx context.Context, c *carried) error {
	begin := time.Now()
	f := &fetch.Fetcher{Store: a.blobs, Source: c, Attempts: 2, MaxWait: time.Second}
	f.Progress = func(_ ota.Digest, have, size int64) {
		if size > 0 {
			a.held.set(byBundle, fmt.Sprintf("copying from the bundle %s: %d of %d KiB of a file", c.file.Name(), have>>10, (size+1023)>>10))
		}
	}
	if err := f.Fetch(ctx, c.Info.Index); err != nil {
		return err
	}
	raw, err := a.blobs.ReadAll(ctx, c.Info.Index.Digest, manifest.MaxIndex)
	if err != nil {
		return err
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return err
	}
	desc, err := ix.Select(a.facts().Target)
	if err != nil {
		return err // the update says so too, and reports it
	}
	if err := f.Fetch(ctx, desc); err != nil {
		return err
	}
	if raw, err = a.blobs.ReadAll(ctx, desc.Digest, manifest.MaxManifest); err != nil {
		return err
	}
	m, err := manifest.ParseManifest(raw)
	if err != nil {
		return err
	}
	if err := a.roomFor(m.Layers); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if err := f.Fetch(ctx, l); err != nil {
			return err
		}
	}
	a.held.set(byBundle, "")
	a.log.Info("copied from a bundle", "bundle", c.file.Name(), "bytes", f.BytesFetched(), "took", time.Since(begin))
	return nil
}

// roomFor refuses a copy that would fill the disk; the update then asks for
// room in its own way.
func (a *Agent) roomFor(layers []manifest.Descriptor) error {
	free, err := a.opts.Host.DiskFree()
	if err != nil || free < 0 {
		return nil // unknown: the writes will tell
	}
	var need int64
	for _, l := range layers {
		if !a.blobs.Has(l.Digest) {
			need += 2 * l.Size // the blob and its staged copy
		}
	}
	if need+diskLow > free {
		return fmt.Errorf("the release needs %d MiB, %d MiB are free", need>>20, free>>20)
	}
	return nil
}

// Receipt returns the whole state of this device as a signed report, to be
// carried to the control plane by hand.
func (a *Agent) Receipt() (device string, report []byte, err error) {
	n, err := a.counter.Next()
	if err != nil {
		a.noteDisk(err)
		return "", nil, err
	}
	full := a.reported()
	b, err := wire.Marshal(&wire.Report{ID: a.ids.next(), Held: a.heldState(), Counter: n, Full: full})
	if err != nil {
		return "", nil, err
	}
	signed, err := trust.Sign(a.signer, wire.AADReport, b)
	return a.identity.Load().DeviceID, slices.Clone(signed), err
}
