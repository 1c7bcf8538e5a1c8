package blobs

import (
	"context"
	"net/http"

	"github.com/skein-fleet/skein/ota"
)

// Door is the repository through which an upload comes.
type Door struct {
	Repo string
	// Done is called once the blob is here, before the answer.
	Done DoneFunc
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

// Serve writes one blob, or the range that was asked for. It authorises nobody.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, d ota.Digest) { s.serve(w, r, d) }

// Fail answers with an error in the distribution API's form.
func Fail(w http.ResponseWriter, status int, code, message string) { fail(w, status, code, message) }
