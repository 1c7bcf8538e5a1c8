package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// uploadChunk is how many bytes travel in one PATCH.
const uploadChunk = 8 << 20

// upload sends a file to the blob store unless it is there, in the shape of the
// OCI distribution API, and returns its digest. A broken transfer is taken up
// where the server says it stands.
func (a *app) upload(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	h := sha256.New()
	total, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	digest := "sha256:" + hex.EncodeToString(h.Sum(nil))
	u := uploader{app: a, file: f, total: total, name: path, started: time.Now()}
	known, err := u.exists(ctx, digest)
	if err != nil || known {
		return digest, err
	}
	if err := u.send(ctx, digest); err != nil {
		return "", fmt.Errorf("upload %s: %w", path, err)
	}
	return digest, nil
}

type uploader struct {
	app      *app
	file     io.ReaderAt
	total    int64
	name     string
	started  time.Time
	location string
}

func (u *uploader) do(ctx context.Context, method, target string, body io.Reader, length int64, header map[string]string) (*http.Response, error) {
	abs, err := url.Parse(u.app.config.server)
	if err != nil {
		return nil, err
	}
	if abs, err = abs.Parse(target); err != nil {
		return nil, err
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

// statusError reads what the server said.
func statusError(r *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
	text := strings.TrimSpace(string(b))
	if text == "" {
		text = r.Status
	}
	err := fmt.Errorf("server answered %s: %s", r.Status, text)
	if r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusForbidden {
		return hinted{err, "skein whoami shows your credential and role"}
	}
	return err
}

func (u *uploader) exists(ctx context.Context, digest string) (bool, error) {
	r, err := u.do(ctx, http.MethodHead, "/v2/skein/blobs/"+digest, nil, 0, nil)
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
	return false, statusError(r)
}

func (u *uploader) send(ctx context.Context, digest string) error {
	r, err := u.do(ctx, http.MethodPost, "/v2/skein/blobs/uploads/", nil, 0, nil)
	if err != nil {
		return err
	}
	r.Body.Close()
	if r.StatusCode != http.StatusAccepted {
		return statusError(r)
	}
	u.location = r.Header.Get("Location")
	failures := 0
	for offset := int64(0); offset < u.total; {
		n := min(uploadChunk, u.total-offset)
		next, err := u.patch(ctx, offset, n)
		if err == nil {
			offset, failures = next, 0
			u.progress(offset)
			continue
		}
		if failures++; failures > 5 || ctx.Err() != nil {
			return err
		}
		wait := time.Duration(rand.Int64N(int64(time.Second) << failures))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if at, askErr := u.offset(ctx); askErr == nil {
			offset = at
		}
	}
	u.done()
	sep := "?"
	if strings.Contains(u.location, "?") {
		sep = "&"
	}
	if r, err = u.do(ctx, http.MethodPut, u.location+sep+"digest="+url.QueryEscape(digest), nil, 0, nil); err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusCreated {
		return statusError(r)
	}
	return nil
}

func (u *uploader) patch(ctx context.Context, offset, n int64) (int64, error) {
	r, err := u.do(ctx, http.MethodPatch, u.location, io.NewSectionReader(u.file, offset, n), n, map[string]string{
		"Content-Type": "application/octet-stream", "Content-Range": fmt.Sprintf("%d-%d", offset, offset+n-1),
	})
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusAccepted {
		return 0, statusError(r)
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
		return 0, statusError(r)
	}
	_, last, ok := strings.Cut(r.Header.Get("Range"), "-")
	if !ok {
		return 0, errors.New("server gave no Range")
	}
	end, err := strconv.ParseInt(last, 10, 64)
	if err != nil {
		return 0, err
	}
	if end == 0 {
		return 0, nil
	}
	return end + 1, nil
}

// progress draws bytes and the time left on a terminal.
func (u *uploader) progress(done int64) {
	if _, tty := isTerminal(u.app.env.stderr); !tty || u.total == 0 {
		return
	}
	elapsed := time.Since(u.started)
	left := time.Duration(float64(elapsed) / float64(max(done, 1)) * float64(u.total-done)).Round(time.Second)
	fmt.Fprintf(u.app.env.stderr, "\r\x1b[K%s %s %s of %s, %s left", u.name, bar(int(done>>10), int(u.total>>10), 24), size(done), size(u.total), left)
}

func (u *uploader) done() {
	if _, tty := isTerminal(u.app.env.stderr); tty && u.total > 0 {
		fmt.Fprint(u.app.env.stderr, "\r\x1b[K")
	}
}
