package blobs

import (
	"context"
	"net/http"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
)

// Door is the repository through which an upload comes.
type Door struct {
	Repo string
	// Done is called once the blob is here, before the answer.
	Done DoneFunc
	// Limit is the most bytes of an upload; 0 is that of a blob.
	Limit int64
}

func (d Door) limit() int64 {
	if d.Limit > 0 {
		return d.Limit
	}
	return blob.MaxSize
}

// DoneFunc takes note of a blob that was uploaded.
type DoneFunc func(ctx context.Context, d ota.Digest) error

type doorKey struct{}

func doorOf(r *http.Request) Door {
	if d, ok := r.Context().Value(doorKey{}).(Door); ok {
		return d
	}
	return Door{Repo: repository}
}

// Upload serves uploads through a door: POST begins one when id is empty; GET,
// PATCH, PUT and DELETE go on with the one named. It authorises nobody.
func (s *Server) Upload(w http.ResponseWriter, r *http.Request, door Door, id string) {
	r = r.WithContext(context.WithValue(r.Context(), doorKey{}, door))
	r.SetPathValue("id", id)
	switch {
	case r.Method == http.MethodPost && id == "":
		s.begin(w, r)
	case id == "":
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "an upload begins with POST")
	case r.Method == http.MethodGet:
		s.status(w, r)
	case r.Method == http.MethodPatch:
		s.patch(w, r)
	case r.Method == http.MethodPut:
		s.put(w, r)
	case r.Method == http.MethodDelete:
		s.cancel(w, r)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method+" does nothing to an upload")
	}
}

// Receive serves one upload whose id, 32 hex digits, the caller chose: PUT with
// ?digest= begins or finishes it, PATCH adds to it, GET says where it stands and
// DELETE drops it. It authorises nobody.
func (s *Server) Receive(w http.ResponseWriter, r *http.Request, door Door, id string) {
	if r.Method == http.MethodPut || r.Method == http.MethodPatch {
		if d, err := ota.ParseDigest(r.URL.Query().Get("digest")); err == nil && s.store.Has(d) {
			s.created(w, r.WithContext(context.WithValue(r.Context(), doorKey{}, door)), d)
			return
		}
		f, err := s.opts.Files.OpenAppend(uploadName(id))
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			s.uploadError(w, r, id, err)
			return
		}
	}
	s.Upload(w, r, door, id)
}

// Serve writes one blob, or the range that was asked for. It authorises nobody.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, d ota.Digest) { s.serve(w, r, d) }

// Fail answers with an error in the distribution API's form.
func Fail(w http.ResponseWriter, status int, code, message string) { fail(w, status, code, message) }
