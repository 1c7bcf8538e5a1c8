package release

import (
	"errors"
	"io/fs"
	"net/http"
	"regexp"
)

var metadataRE = regexp.MustCompile(`^([0-9]+\.)?[a-z0-9-]+\.json$`)

// TUF serves GET /tuf/{name}, the signed metadata, to devices. Everybody may
// read it.
func (c *Catalog) TUF() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tuf/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if !metadataRE.MatchString(name) {
			http.NotFound(w, r)
			return
		}
		raw, err := c.cfg.Repository.Metadata(name)
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
