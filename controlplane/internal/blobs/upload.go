package blobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// An upload is one file, uploads/{id}; its size is how far it got. There is no
// other state, so a restart changes nothing.
const uploadDir = "uploads"

const (
	copyBuffer = 256 << 10
	syncEvery  = 8 << 20
	// idleBody is how long a client may send nothing before its request ends;
	// what it sent is kept.
	idleBody = time.Minute
)

var errTakenOver = errors.New("a newer request continues this upload")

// sessions lets one request at a time write to an upload; the newest wins,
// because an older one is most likely a dead connection.
type sessions struct {
	mu   sync.Mutex // guards open
	open map[string]*session
}

type session struct {
	stop func()
	done chan struct{}
}

// take ends the request that writes to the upload, if any, and returns when it
// is gone.
func (s *sessions) take(ctx context.Context, id string, stop func()) (release func(), err error) {
	mine := &session{stop: stop, done: make(chan struct{})}
	for {
		s.mu.Lock()
		if s.open == nil {
			s.open = map[string]*session{}
		}
		other := s.open[id]
		if other == nil {
			s.open[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.open, id)
				s.mu.Unlock()
				close(mine.done)
			}, nil
		}
		s.mu.Unlock()
		other.stop()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func uploadName(id string) string { return uploadDir + "/" + id }

// begin opens an upload. With ?digest= it takes the whole blob at once, and
// with ?mount= it says that a known blob is known.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if text := q.Get("mount"); text != "" {
		if d, err := ota.ParseDigest(text); err == nil && s.store.Has(d) {
			s.created(w, r, d)
			return
		}
	}
	id := hex.EncodeToString(randomID())
	f, err := s.opts.Files.OpenAppend(uploadName(id))
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		s.uploadError(w, r, id, fmt.Errorf("begin an upload: %w", err))
		return
	}
	if q.Get("digest") != "" {
		s.finish(w, r, id)
		return
	}
	s.accepted(w, r, id, 0, http.StatusAccepted)
}

func randomID() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return b
}

// created answers for a blob that is here.
func (s *Server) created(w http.ResponseWriter, r *http.Request, d ota.Digest) {
	door := doorOf(r)
	if door.Done != nil {
		if err := door.Done(r.Context(), d); err != nil {
			s.broken(w, "finish an upload", err)
			return
		}
	}
	w.Header().Set("Location", "/v2/"+door.Repo+"/blobs/"+string(d))
	w.Header().Set("Docker-Content-Digest", string(d))
	w.WriteHeader(http.StatusCreated)
}

// accepted says where an upload stands.
func (s *Server) accepted(w http.ResponseWriter, r *http.Request, id string, size int64, status int) {
	h := w.Header()
	h.Set("Location", "/v2/"+doorOf(r).Repo+"/blobs/uploads/"+id)
	h.Set("Range", rangeText(size))
	h.Set("Docker-Upload-UUID", id)
	h.Set("OCI-Chunk-Min-Length", "0")
	w.WriteHeader(status)
}

// rangeText is the Range of an upload; an empty one says 0-0, as registries do.
func rangeText(size int64) string { return fmt.Sprintf("0-%d", max(0, size-1)) }

// size returns how far an upload got.
func (s *Server) size(id string) (int64, error) {
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 {
		return 0, fmt.Errorf("upload %q: %w", id, fs.ErrNotExist)
	}
	f, err := s.opts.Files.Open(uploadName(id))
	if err != nil {
		return 0, err
	}
	n, err := f.Seek(0, io.SeekEnd)
	return n, errors.Join(err, f.Close())
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	n, err := s.size(id)
	if err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	s.accepted(w, r, id, n, http.StatusNoContent)
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if _, err := s.size(id); err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	release, err := s.sessions.take(r.Context(), id, func() {})
	if err != nil {
		return
	}
	defer release()
	if err := s.opts.Files.Remove(uploadName(id)); err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) patch(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	n, err := s.receive(w, r, id)
	if err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	s.accepted(w, r, id, n, http.StatusAccepted)
}

func (s *Server) put(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("digest") == "" {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "want ?digest=sha256:… to finish an upload")
		return
	}
	s.finish(w, r, r.PathValue("id"))
}

// finish takes in the rest of an upload and makes it a blob.
func (s *Server) finish(w http.ResponseWriter, r *http.Request, id string) {
	d, ok := digestOf(w, r.URL.Query().Get("digest"))
	if !ok {
		return
	}
	if _, err := s.size(id); errors.Is(err, fs.ErrNotExist) && s.store.Has(d) {
		s.created(w, r, d) // finished before, and the answer was lost
		return
	}
	if _, err := s.receive(w, r, id); err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	release, err := s.sessions.take(r.Context(), id, func() {})
	if err != nil {
		return
	}
	defer release()
	if _, err := s.opts.Adopt(r.Context(), uploadName(id), d); err != nil {
		s.uploadError(w, r, id, err)
		return
	}
	s.created(w, r, d)
}

// receive appends the body to an upload and returns its new size.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, id string) (size int64, err error) {
	if _, err := s.size(id); err != nil {
		return 0, err
	}
	body := &body{ctl: http.NewResponseController(w), r: r.Body}
	release, err := s.sessions.take(r.Context(), id, body.stop)
	if err != nil {
		return 0, err
	}
	defer release()
	if size, err = s.size(id); err != nil {
		return 0, err
	}
	want, err := contentRange(r, size)
	if err != nil {
		return size, err
	}
	f, err := s.opts.Files.OpenAppend(uploadName(id))
	if err != nil {
		return size, err
	}
	n, err := appendBody(f, body, max(0, doorOf(r).limit()-size))
	size += n
	if err = errors.Join(err, f.Close()); err != nil {
		return size, err
	}
	if want >= 0 && n != want {
		return size, fmt.Errorf("%w: Content-Range names %d bytes, %d came", errSize, want, n)
	}
	return size, nil
}

var (
	errSize  = errors.New("size does not fit")
	errRange = errors.New("data does not continue the upload")
)

// contentRange returns how many bytes the request says it brings, -1 when it
// does not say.
func contentRange(r *http.Request, size int64) (int64, error) {
	text := r.Header.Get("Content-Range")
	if text == "" {
		return r.ContentLength, nil
	}
	text = strings.TrimPrefix(text, "bytes ")
	text, _, _ = strings.Cut(text, "/")
	a, b, ok := strings.Cut(text, "-")
	from, err1 := strconv.ParseInt(strings.TrimSpace(a), 10, 64)
	to, err2 := strconv.ParseInt(strings.TrimSpace(b), 10, 64)
	switch {
	case !ok || err1 != nil || err2 != nil || from < 0 || to < from:
		return 0, fmt.Errorf("%w: Content-Range %q: want FIRST-LAST", errSize, r.Header.Get("Content-Range"))
	case from != size:
		return 0, fmt.Errorf("%w: it has %d bytes, the data starts at %d", errRange, size, from)
	case r.ContentLength >= 0 && r.ContentLength != to-from+1:
		return 0, fmt.Errorf("%w: Content-Range names %d bytes, Content-Length %d", errSize, to-from+1, r.ContentLength)
	}
	return to - from + 1, nil
}

// body reads a request with a deadline for each read, and can be ended from
// outside.
type body struct {
	ctl *http.ResponseController
	r   io.Reader

	mu    sync.Mutex // guards ended, and the deadline against stop
	ended bool
}

func (b *body) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	_ = b.ctl.SetReadDeadline(time.Unix(1, 0)) // where it is not supported, the writer ends by itself
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		return 0, errTakenOver
	}
	_ = b.ctl.SetReadDeadline(time.Now().Add(idleBody)) // where it is not supported, the client decides
	b.mu.Unlock()
	n, err := b.r.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended && err != nil:
		return n, errTakenOver
	case err == io.EOF:
		_ = b.ctl.SetReadDeadline(time.Time{}) // as above
	}
	return n, err
}

// appendBody copies at most limit bytes and syncs them. What was copied before
// an error stays, durable.
func appendBody(f slot.AppendFile, r io.Reader, limit int64) (n int64, err error) {
	buf := make([]byte, copyBuffer)
	unsynced := 0
	defer func() {
		if unsynced > 0 {
			err = errors.Join(err, f.Sync())
		}
	}()
	for {
		got, rerr := r.Read(buf)
		if int64(got) > limit-n {
			return n, fmt.Errorf("%w: %d bytes more are allowed", blob.ErrTooLong, limit-n)
		}
		if got > 0 {
			w, err := f.Write(buf[:got])
			n += int64(w)
			unsynced += w
			if err != nil {
				return n, err
			}
		}
		if unsynced >= syncEvery {
			if err := f.Sync(); err != nil {
				return n, err
			}
			unsynced = 0
		}
		if errors.Is(rerr, io.EOF) {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// uploadError answers for an upload that could not go on, and says where it
// stands.
func (s *Server) uploadError(w http.ResponseWriter, r *http.Request, id string, err error) {
	have, sizeErr := s.size(id)
	if sizeErr == nil {
		w.Header().Set("Range", rangeText(have))
		w.Header().Set("Location", "/v2/"+doorOf(r).Repo+"/blobs/uploads/"+id)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "upload "+id+" is not here: begin a new one with POST /v2/skein/blobs/uploads/")
	case errors.Is(err, slot.ErrDiskFull):
		s.opts.Logger.Error("disk full during an upload", "upload", id, "have", have, "err", err)
		fail(w, http.StatusInsufficientStorage, "DISK_FULL", fmt.Sprintf("the server's disk is full; %d bytes of this upload are kept: free space there and resume", have))
	case errors.Is(err, blob.ErrTooLong):
		fail(w, http.StatusRequestEntityTooLarge, "SIZE_INVALID", err.Error())
	case errors.Is(err, blob.ErrDigestMismatch):
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("%v; the %d bytes are kept: send PUT again with the right digest, or DELETE the upload", err, have))
	case errors.Is(err, errRange):
		fail(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", err.Error())
	case errors.Is(err, errSize):
		fail(w, http.StatusBadRequest, "SIZE_INVALID", err.Error())
	case errors.Is(err, errTakenOver):
		fail(w, http.StatusConflict, "BLOB_UPLOAD_INVALID", err.Error())
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		fail(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the connection broke; %d bytes are kept", have))
	default:
		s.broken(w, "receive an upload", err)
	}
}

// Sweep removes uploads without progress since KeepUploads. It returns how many.
func (s *Server) Sweep(ctx context.Context) (int, error) {
	entries, err := s.opts.Files.ReadDir(uploadDir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list uploads: %w", err)
	}
	removed := 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || s.opts.Now().Sub(info.ModTime()) < s.opts.KeepUploads {
			continue
		}
		release, err := s.sessions.take(ctx, e.Name(), func() {})
		if err != nil {
			return removed, err
		}
		err = s.opts.Files.Remove(uploadName(e.Name()))
		release()
		if err != nil {
			return removed, fmt.Errorf("remove upload %s: %w", e.Name(), err)
		}
		removed++
	}
	return removed, nil
}

// Run sweeps now and every hour until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		if n, err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.opts.Logger.Error("sweep uploads", "err", err)
		} else if n > 0 {
			s.opts.Logger.Info("removed abandoned uploads", "count", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
