package release

import (
	"errors"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
)

var metadataRE = regexp.MustCompile(`^([0-9]+\.)?([a-z0-9-]+|auto/[a-z0-9._-]+)\.json$`)

// TUF serves GET /tuf/{name}, the signed metadata, to devices. Everybody may
// read it. The slash in the name of a delegated role is %2F on the wire.
func (c *Catalog) TUF() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tuf/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if !metadataRE.MatchString(name) {
			http.NotFound(w, r)
			return
		}
		raw, err := c.cfg.Repository.Metadata(strings.Replace(name, "/", "%2F", 1))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			http.NotFound(w, r)
			return
		case err != nil:
			c.cfg.Logger.Error("read TUF metadata", "name", name, "err", err)
			http.Error(w, "the metadata cannot be read now", http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(raw) // the client may be gone
	})
	return mux
}
