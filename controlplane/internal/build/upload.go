package build

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
)

// Receiver takes uploads that can be resumed: blobs.Server.
type Receiver interface {
	Receive(w http.ResponseWriter, r *http.Request, door blobs.Door, id string)
}

// What a builder uploads, and the most bytes of it; 0 is Config.MaxBytes.
var uploads = map[string]int64{"plan": 0, "cache": 64 << 20, "log": 64 << 20}

// Uploads serves /build/JOB/plan, cache and log to the device that has the
// lease: PUT ?digest=sha256:… takes the whole, or with Content-Range what
// continues it, GET says how much is there, DELETE drops that. identify returns
// who calls by the client certificate.
func (q *Queue) Uploads(identify func(*http.Request) (tenant, device string, err error), to Receiver) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/build/{job}/{part}", func(w http.ResponseWriter, r *http.Request) {
		tenant, device, err := identify(r)
		if err != nil {
			blobs.Fail(w, http.StatusUnauthorized, "UNAUTHORIZED", err.Error())
			return
		}
		part := r.PathValue("part")
		limit, known := uploads[part]
		if !known {
			blobs.Fail(w, http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("%q is not uploaded: want plan, cache or log", part))
			return
		}
		attempt, err := q.mayUpload(tenant, device, r.PathValue("job"), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		if err != nil {
			blobs.Fail(w, http.StatusForbidden, "DENIED", err.Error())
			return
		}
		if limit == 0 {
			limit = q.cfg.MaxBytes
		}
		// One file for each part of an attempt, so that it can be found again.
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%s", tenant, r.PathValue("job"), attempt, part))
		door := blobs.Door{Repo: "skein", Limit: limit, Done: func(_ context.Context, d ota.Digest) error {
			q.uploaded(tenant, r.PathValue("job"), part, d)
			return nil
		}}
		to.Receive(w, r, door, hex.EncodeToString(sum[:16]))
	})
	return mux
}

// mayUpload checks lease and token.
func (q *Queue) mayUpload(tenant, device, id, token string) (attempt uint32, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j := q.jobs[jobID{tenant, id}]
	if j == nil || j.State != store.BuildLeased || j.Device != device {
		return 0, fmt.Errorf("this device has no lease of build %.40q", id)
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(q.token(j))) != 1 {
		return 0, fmt.Errorf("the token is not that of the lease: take the one of the newest lease of build %s", id)
	}
	return j.Attempt, nil
}

// uploaded notes progress; the record that follows decides.
func (q *Queue) uploaded(tenant, id, part string, d ota.Digest) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if j := q.jobs[jobID{tenant, id}]; j != nil {
		j.expires = q.cfg.Now().Add(q.cfg.Life)
		j.step, j.said = "upload", part+" "+d.Short()
		q.notify()
	}
}
