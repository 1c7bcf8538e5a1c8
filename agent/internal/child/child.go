// Package child brings blobs from sources outside Skein, the mirrors that a
// release names, through the program skein-fetch: another process, another
// user where the agent is root, shut into one scratch folder. What comes is
// read as it grows and hashed by the store like all else, so nothing rests on
// the child's word.
//
// Invariants: one child at a time; a child never outlives the transfer it is
// for; what a broken transfer left is the beginning of the next one. The agent
// imports it.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Exit codes of skein-fetch that say that trying again is of no use.
const (
	exitUsage   = 2
	exitRefused = 3
	exitContent = 4
)

const (
	pollEvery = 100 * time.Millisecond // of the growing file
	maxStderr = 2 << 10
	maxOffers = 1024
)

// passEnv is what the child sees of the environment.
var passEnv = []string{
	"PATH", "HOME", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE",
	"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_SHARED_CREDENTIALS_FILE", "AWS_METADATA_URL",
	"GOOGLE_APPLICATION_CREDENTIALS",
}

// Options say how the child is started.
type Options struct {
	Binary string // path of skein-fetch
	Dir    string // scratch folder, absolute
	// UID and GID are what the child runs as; zero leaves it as it is. The
	// scratch folder is then given to them.
	UID, GID uint32
	CA       string // PEM file of authorities for http sources, for tests
	Logger   *slog.Logger
}

// Source is a fetch.Source of the blobs that were offered.
type Source struct {
	o    Options
	slot chan struct{} // one child at a time

	mu     sync.Mutex // guards offers
	offers map[ota.Digest]offer
}

type offer struct {
	size int64
	urls []string
}

// New returns a Source; it starts nothing.
func New(o Options) *Source {
	return &Source{o: o, slot: make(chan struct{}, 1), offers: map[ota.Digest]offer{}}
}

// Offer says where layers may be had, from a manifest that trust covers.
func (s *Source) Offer(layers []manifest.Descriptor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.offers) > maxOffers {
		clear(s.offers)
	}
	for _, l := range layers {
		if len(l.URLs) > 0 {
			s.offers[l.Digest] = offer{l.Size, l.URLs}
		}
	}
}

// drop forgets a URL that gave something else.
func (s *Source) drop(d ota.Digest, url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.offers[d]
	left := make([]string, 0, len(o.urls))
	for _, u := range o.urls {
		if u != url {
			left = append(left, u)
		}
	}
	if o.urls = left; len(left) == 0 {
		delete(s.offers, d)
		return
	}
	s.offers[d] = o
}

// last puts a URL that did not give all behind the others, which have their turn.
func (s *Source) last(d ota.Digest, url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.offers[d]
	if len(o.urls) < 2 || o.urls[0] != url {
		return
	}
	o.urls = append(slices.Clone(o.urls[1:]), url) // the manifest's stay as they are
	s.offers[d] = o
}

// Open implements fetch.Source. The child brings whole files: a range that does
// not reach the end of the blob is fetch.ErrNotFound, as is one of no offer.
func (s *Source) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	s.mu.Lock()
	o, ok := s.offers[d]
	s.mu.Unlock()
	if !ok || offset < 0 || offset+length != o.size {
		return nil, fmt.Errorf("mirrors: %w", fetch.ErrNotFound)
	}
	select {
	case s.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r, err := s.start(ctx, d, o, offset)
	if err != nil {
		<-s.slot
		return nil, err
	}
	return r, nil
}

func (s *Source) start(ctx context.Context, d ota.Digest, o offer, offset int64) (*tail, error) {
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("mirrors: %w", err)
	}
	t := &tail{s: s, d: d, url: o.urls[0], file: filepath.Join(s.o.Dir, d.Hex(), "blob"), at: offset, size: o.size, done: make(chan struct{})}
	if err := s.give(filepath.Dir(t.file)); err != nil {
		return nil, fmt.Errorf("mirrors: %w", err)
	}
	t.ctx, t.cancel = context.WithCancel(ctx)
	args := []string{"--out", t.file, "--limit", strconv.FormatInt(o.size, 10), "--sha256", d.Hex()}
	if s.o.CA != "" {
		args = append(args, "--ca", s.o.CA)
	}
	cmd := exec.CommandContext(t.ctx, s.o.Binary, append(args, "--", t.url)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, nil, &t.stderr
	cmd.Dir, cmd.WaitDelay = "/", 5*time.Second
	cmd.Env = environment()
	cmd.Cancel = func() error { return killGroup(cmd.Process) }
	cmd.SysProcAttr = attributes(s.o.UID, s.o.GID)
	if err := cmd.Start(); err != nil {
		t.cancel()
		return nil, fmt.Errorf("mirrors: start %s: %w", s.o.Binary, err)
	}
	go func() {
		defer close(t.done)
		t.err = cmd.Wait()
	}()
	return t, nil
}

// prepare makes the scratch folder. Other blobs' leftovers are removed.
func (s *Source) prepare() error {
	if err := os.MkdirAll(s.o.Dir, 0o711); err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	left, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return fmt.Errorf("read scratch folder: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range left {
		if _, ok := s.offers[ota.Digest("sha256:"+e.Name())]; !ok {
			if err := os.RemoveAll(filepath.Join(s.o.Dir, e.Name())); err != nil {
				return fmt.Errorf("clear scratch folder: %w", err)
			}
		}
	}
	return nil
}

// give makes the folder that the child alone writes to.
func (s *Source) give(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	if s.o.UID == 0 {
		return nil
	}
	if err := os.Chown(dir, int(s.o.UID), int(s.o.GID)); err != nil {
		return fmt.Errorf("give scratch folder to user %d: %w", s.o.UID, err)
	}
	return nil
}

func environment() (env []string) {
	for _, k := range passEnv {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// tail reads a file that a child is writing.
type tail struct {
	s      *Source
	ctx    context.Context
	cancel context.CancelFunc
	d      ota.Digest
	url    string
	file   string
	at     int64
	size   int64
	f      *os.File
	stderr limited

	done chan struct{} // closed when the child has ended
	err  error         // of the child
}

// Read implements io.Reader.
func (t *tail) Read(p []byte) (int, error) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		ended := false
		select {
		case <-t.done:
			ended = true
		default:
		}
		n, err := t.more(p)
		switch {
		case n > 0:
			return n, nil
		case err != nil:
			return 0, err
		case t.at >= t.size:
			return 0, io.EOF
		case t.ctx.Err() != nil:
			return 0, context.Cause(t.ctx)
		case ended:
			return 0, t.ending()
		}
		select {
		case <-t.done:
		case <-t.ctx.Done():
		case <-poll.C:
		}
	}
}

// more reads what is there. The file is the child's: it is opened without
// following links, and only a plain one is read.
func (t *tail) more(p []byte) (int, error) {
	if t.f == nil {
		f, err := openPlain(t.file)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read what skein-fetch wrote: %w", err)
		}
		t.f = f
	}
	n, err := t.f.ReadAt(p[:min(int64(len(p)), t.size-t.at)], t.at)
	t.at += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ending is the error of a child that ended too early.
func (t *tail) ending() error {
	code := -1
	if exit, ok := errors.AsType[*exec.ExitError](t.err); ok {
		code = exit.ExitCode()
	}
	why := strings.TrimSpace(t.stderr.String())
	switch code {
	case exitUsage, exitRefused, exitContent:
		t.s.drop(t.d, t.url)
		return fmt.Errorf("mirror: %w: %s", fetch.ErrNotFound, why)
	}
	if why == "" {
		why = fmt.Sprint(t.err)
	}
	return fmt.Errorf("mirror: %w after %d of %d bytes: %s", io.ErrUnexpectedEOF, t.at, t.size, why)
}

// Close implements io.Closer: the child ends; what it wrote stays unless all of
// it was read.
func (t *tail) Close() error {
	defer func() { <-t.s.slot }()
	if t.at < t.size {
		t.cancel()
		t.s.last(t.d, t.url)
	}
	<-t.done
	t.cancel()
	var err error
	if t.f != nil {
		err = t.f.Close()
	}
	if t.at >= t.size {
		err = errors.Join(err, os.RemoveAll(filepath.Dir(t.file)))
	}
	return err
}

// limited keeps the beginning of what is written.
type limited struct{ b bytes.Buffer }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), max(0, maxStderr-l.b.Len()))])
	return len(p), nil
}

func (l *limited) String() string { return l.b.String() }
