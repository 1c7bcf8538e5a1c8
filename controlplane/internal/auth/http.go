package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

// cookieLife is how long the browser keeps a session; the credential behind it
// is checked at every call.
const cookieLife = 30 * 24 * time.Hour

// Protect guards a plain HTTP handler: GET and HEAD need role read, everything
// else write, and leaves a trace.
func (g *Guard) Protect(read, write Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rule := Rule{write, true}
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			rule = Rule{read, false}
		}
		ctx, rec, err := g.enter(r.Context(), r.Header, r.Method+" "+r.URL.Path, rule, true)
		if err != nil {
			if strings.HasPrefix(r.URL.Path, "/v2/") { // OCI clients look up where to get bearer tokens; ours come from elsewhere
				w.Header().Set("WWW-Authenticate", `Basic realm="skein"`)
			}
			fail(w, err)
			return
		}
		sw := &statusWriter{ResponseWriter: w}
		next.ServeHTTP(sw, r.WithContext(ctx))
		if rec == nil || rec.Written() {
			return
		}
		// The answer may be out already; an upload changes nothing until it is
		// used by a call that waits for its trace.
		if sw.status >= http.StatusBadRequest {
			rec.Entry.Error = fmt.Sprintf("HTTP status %d", sw.status)
		}
		_ = g.leave(ctx, rec, nil)
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(code int) {
	s.status = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func fail(w http.ResponseWriter, err error) {
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case errors.Is(err, ErrUnauthenticated):
		if w.Header().Get("WWW-Authenticate") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="skein"`)
		}
		http.Error(w, err.Error(), http.StatusUnauthorized)
	case errors.Is(err, ErrDenied):
		http.Error(w, err.Error(), http.StatusForbidden)
	default:
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

// Login trades a token, as JSON {"token": …} or a form field, for the cookie
// that the dashboard uses.
func (g *Guard) Login(w http.ResponseWriter, r *http.Request) {
	token, err := readToken(w, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p, err := g.Check(r.Context(), token)
	if err != nil {
		g.Logger.Warn("login refused", "remote", r.RemoteAddr, "error", err)
		fail(w, err)
		return
	}
	http.SetCookie(w, sessionCookie(r, token, cookieLife))
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]string{"name": p.Name, "role": p.Role, "tenant": p.Tenant}); err != nil {
		g.Logger.Debug("answer login", "error", err)
	}
}

// Logout forgets the cookie.
func (g *Guard) Logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, sessionCookie(r, "", -time.Second))
	w.WriteHeader(http.StatusNoContent)
}

func readToken(w http.ResponseWriter, r *http.Request) (string, error) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return "", fmt.Errorf("read login: %w", err)
		}
		var in struct {
			Token string `json:"token"`
		}
		if err := json.Unmarshal(body, &in); err != nil {
			return "", fmt.Errorf("read login: %w", err)
		}
		return in.Token, nil
	}
	if err := r.ParseForm(); err != nil {
		return "", fmt.Errorf("read login: %w", err)
	}
	return r.PostForm.Get("token"), nil
}

func sessionCookie(r *http.Request, value string, life time.Duration) *http.Cookie {
	return &http.Cookie{Name: CookieName, Value: value, Path: "/", MaxAge: int(life.Seconds()), HttpOnly: true,
		Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https", SameSite: http.SameSiteStrictMode}
}
