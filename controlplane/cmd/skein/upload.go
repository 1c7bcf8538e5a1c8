package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// uploadChunk is how many bytes travel in one PATCH.
const uploadChunk = 8 << 20

// uploadTries is how often in a row a chunk may fail.
const uploadTries = 5

// upload sends a file to the blob store unless it is there, in the shape of the
// OCI distribution API, and returns its digest. A broken transfer is taken up
// where the server says it stands, also by a later run of the program.
func (a *app) upload(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read file: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	total, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("read file: %w", err)
	}
	digest := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if _, err := a.send(ctx, f, total, digest, filepath.Base(path)); err != nil {
		return "", fmt.Errorf("upload %s: %w", path, err)
	}
	return digest, nil
}

// send sends what has that digest unless it is there, and reports whether
// it was not.
func (a *app) send(ctx context.Context, content io.ReaderAt, total int64, digest, name string) (sent bool, err error) {
	u := uploader{app: a, file: content, total: total, digest: digest, bar: newProgress(a.env.stderr, name, total)}
	known, err := u.exists(ctx)
	if err != nil || known {
		return false, err
	}
	defer u.bar.done()
	return true, u.send(ctx)
}

type uploader struct {
	app      *app
	file     io.ReaderAt
	total    int64
	digest   string
	location string // of the upload
	bar      *progress
}

func (u *uploader) do(ctx context.Context, method, target string, body io.Reader, length int64, header map[string]string) (*http.Response, error) {
	abs, err := url.Parse(u.app.config.server)
	if err != nil {
		return nil, err
	}
	if abs, err = abs.Parse(target); err != nil {
		return nil, err
	}
	if server, err := url.Parse(u.app.config.server); err != nil || abs.Host != server.Host || abs.Scheme != server.Scheme {
		return nil, fmt.Errorf("the server sends the upload to %s: it must stay on %s", abs.Host, u.app.config.server)
	}
	req, err := http.NewRequestWithContext(ctx, method, abs.String(), body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = length
	for k, v := range header {
		req.Header.Set(k, v)
	}
	return u.app.http().Do(req)
}

// statusError is an answer that was not the wanted one.
type statusError struct {
	code   int
	status string
	text   string
}

func (e statusError) Error() string { return fmt.Sprintf("server answered %s: %s", e.status, e.text) }

func (e statusError) exitCode() int {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitDenied
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict:
		return exitConflict
	}
	return exitError
}

func (e statusError) hint() string {
	switch e.code {
	case http.StatusUnauthorized:
		return loginHint
	case http.StatusForbidden:
		return "skein whoami shows your role"
	}
	return ""
}

// passing reports whether the same call may work later.
func (e statusError) passing() bool {
	return e.code >= 500 && e.code != http.StatusInsufficientStorage || e.code == http.StatusConflict ||
		e.code == http.StatusRequestedRangeNotSatisfiable || e.code == http.StatusBadRequest || e.code == http.StatusTooManyRequests
}

// refusal reads what the server said, in the form of the distribution API or
// as text.
func refusal(r *http.Response) error {
	e := statusError{code: r.StatusCode, status: r.Status, text: "no reason is given"}
	b, err := io.ReadAll(io.LimitReader(r.Body, 4096))
	if err != nil && len(b) == 0 {
		return e
	}
	var doc struct {
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(b, &doc) == nil && len(doc.Errors) > 0 {
		e.text = doc.Errors[0].Message
	} else if t := strings.TrimSpace(string(b)); t != "" {
		e.text = t
	}
	return e
}

func (u *uploader) exists(ctx context.Context) (bool, error) {
	r, err := u.do(ctx, http.MethodHead, "/v2/skein/blobs/"+u.digest, nil, 0, nil)
	if err != nil {
		return false, err
	}
	defer r.Body.Close()
	switch r.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, refusal(r)
}

// begin takes up the upload that an earlier run left, or opens one, and returns
// how many bytes the server has.
func (u *uploader) begin(ctx context.Context) (int64, error) {
	if raw, err := os.ReadFile(u.noteFile()); err == nil {
		u.location = string(raw)
		if at, err := u.offset(ctx); err == nil && at <= u.total {
			return at, nil
		}
	}
	r, err := u.do(ctx, http.MethodPost, "/v2/skein/blobs/uploads/", nil, 0, nil)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusAccepted {
		return 0, refusal(r)
	}
	u.location = r.Header.Get("Location")
	// Without the note a later run begins anew, which costs time and no more.
	if err := os.MkdirAll(filepath.Dir(u.noteFile()), 0o700); err == nil {
		_ = os.WriteFile(u.noteFile(), []byte(u.location), 0o600)
	}
	return 0, nil
}

// noteFile keeps the location of an unfinished upload beside the configuration.
func (u *uploader) noteFile() string {
	key := sha256.Sum256([]byte(u.app.config.server + " " + u.digest))
	return filepath.Join(filepath.Dir(u.app.config.path), "uploads", hex.EncodeToString(key[:16]))
}

func (u *uploader) send(ctx context.Context) error {
	offset, err := u.begin(ctx)
	if err != nil {
		return err
	}
	failures := 0
	for offset < u.total {
		next, err := u.patch(ctx, offset, min(uploadChunk, u.total-offset))
		if err == nil {
			offset, failures = next, 0
			continue
		}
		se, answered := errors.AsType[statusError](err)
		if failures++; failures > uploadTries || ctx.Err() != nil || answered && !se.passing() {
			return err
		}
		if answered && se.code == http.StatusRequestedRangeNotSatisfiable && offset == 0 {
			_ = os.Remove(u.noteFile()) // the server has one byte, which reads like none: begin anew
			if offset, err = u.begin(ctx); err != nil {
				return err
			}
			continue
		}
		if err := pause(ctx, time.Duration(rand.Int64N(int64(500*time.Millisecond)<<failures))); err != nil {
			return err
		}
		if at, askErr := u.offset(ctx); askErr == nil && at <= u.total {
			offset = at
		}
	}
	sep := "?"
	if strings.Contains(u.location, "?") {
		sep = "&"
	}
	r, err := u.do(ctx, http.MethodPut, u.location+sep+"digest="+url.QueryEscape(u.digest), nil, 0, nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_ = os.Remove(u.noteFile()) // done, or of no further use
	if r.StatusCode != http.StatusCreated {
		return refusal(r)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (u *uploader) patch(ctx context.Context, offset, n int64) (int64, error) {
	body := u.bar.reader(io.NewSectionReader(u.file, offset, n), offset)
	r, err := u.do(ctx, http.MethodPatch, u.location, body, n, map[string]string{
		"Content-Type": "application/octet-stream", "Content-Range": fmt.Sprintf("%d-%d", offset, offset+n-1),
	})
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusAccepted {
		return 0, refusal(r)
	}
	if l := r.Header.Get("Location"); l != "" {
		u.location = l
	}
	return offset + n, nil
}

// offset asks how many bytes the server has.
func (u *uploader) offset(ctx context.Context) (int64, error) {
	r, err := u.do(ctx, http.MethodGet, u.location, nil, 0, nil)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusNoContent {
		return 0, refusal(r)
	}
	_, last, ok := strings.Cut(r.Header.Get("Range"), "-")
	if !ok {
		return 0, errors.New("server gave no Range")
	}
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil || end < 0 {
		return 0, fmt.Errorf("server gave Range %q", r.Header.Get("Range"))
	}
	if end == 0 {
		return 0, nil // an empty upload says 0-0
	}
	return end + 1, nil
}
