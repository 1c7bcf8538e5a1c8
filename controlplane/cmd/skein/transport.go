package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// strangerError says that what answers is not skeind.
type strangerError struct{ error }

// transport adds the credential to every request, and tells answers of other
// programs from those of skeind.
type transport struct{ token string }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if t.token != "" {
		r.Header.Set("Authorization", "Bearer "+t.token)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if why := stranger(r, resp); why != "" {
		resp.Body.Close()
		return nil, hinted{strangerError{fmt.Errorf("what answers at %s://%s is not skeind: %s", r.URL.Scheme, r.URL.Host, why)}, "check --server or SKEIN_SERVER"}
	}
	return resp, nil
}

// stranger says by what an answer shows that it is not from skeind, or "".
func stranger(r *http.Request, resp *http.Response) string {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	connect := r.Method == http.MethodPost && strings.HasPrefix(r.Header.Get("Content-Type"), "application/")
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return fmt.Sprintf("it answers %s to %s", resp.Status, resp.Header.Get("Location"))
	case connect && resp.StatusCode < 502 && (err != nil || !strings.HasPrefix(kind, "application/")):
		return fmt.Sprintf("it answers %s%s", resp.Status, firstLine(resp))
	}
	return ""
}

// firstLine quotes the beginning of a text answer.
func firstLine(resp *http.Response) string {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 512))
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	l, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	if len(l) == 0 {
		return ""
	}
	return fmt.Sprintf(", %q", crop(string(l), 60))
}

// http is a client that follows no redirect: the credential is for one server.
func (a *app) http() *http.Client {
	return &http.Client{Transport: transport{a.config.token}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
