package localapi

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	// maxObservation bounds a posted observation.
	maxObservation = 1 << 20
	maxSampling    = 10 * time.Minute
)

// plainRoutes are for applications and scripts that speak HTTP and JSON only:
//
//	POST /v1/observations             one inference, as JSON
//	GET  /v1/samples?seconds=10&share=0.1   requests with answers, a JSON object each line
func plainRoutes(mux *http.ServeMux, src Source) {
	mux.HandleFunc("POST /v1/observations", func(w http.ResponseWriter, r *http.Request) {
		if src.Observe == nil {
			http.Error(w, "this agent takes no observations", http.StatusNotFound)
			return
		}
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxObservation))
		if err == nil {
			err = src.Observe(r.Context(), raw)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/samples", func(w http.ResponseWriter, r *http.Request) {
		seconds, err := strconv.ParseFloat(r.FormValue("seconds"), 64)
		share, err2 := strconv.ParseFloat(r.FormValue("share"), 64)
		switch {
		case src.Sample == nil:
			http.Error(w, "this agent samples no requests", http.StatusNotFound)
			return
		case err != nil || err2 != nil || seconds <= 0 || seconds > maxSampling.Seconds() || share <= 0 || share > 1:
			http.Error(w, "want seconds above 0 and up to 600, and share above 0 and up to 1", http.StatusBadRequest)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Duration(seconds*float64(time.Second)))
		defer cancel()
		w.Header().Set("Content-Type", "application/jsonl")
		if err := src.Sample(ctx, share, flusher{w}); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable) // nothing was written yet
		}
	})
}

// flusher sends each piece at once.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}
