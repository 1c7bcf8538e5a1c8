package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	gcs "github.com/hashicorp/go-getter/gcs/v2"
	s3 "github.com/hashicorp/go-getter/s3/v2"
	getter "github.com/hashicorp/go-getter/v2"
)

// What fetch returns, wrapped.
var (
	errSource       = errors.New("not a source that can be fetched")
	errRefused      = errors.New("source does not give the file")
	errTooLong      = errors.New("file is longer than the limit")
	errWrongContent = errors.New("content is not the wanted one")
	errIdle         = errors.New("nothing arrived")
)

// source is a parsed SOURCE.
type source struct {
	kind string // http, s3, gcs or git
	url  *url.URL
	file string // in the repository, for git
}

func parseSource(text string) (source, error) {
	kind, rest, forced := strings.Cut(text, "::")
	if !forced {
		kind, rest = "http", text
	}
	bad := func(why string) (source, error) {
		return source{}, fmt.Errorf("%w: %q: %s", errSource, redact(text), why)
	}
	switch kind {
	case "http", "s3", "gcs", "git":
	default:
		return bad("want http, https, s3::, gcs:: or git::")
	}
	s := source{kind: kind}
	if kind == "git" {
		var sub string
		rest, sub = getter.SourceDirSubdir(rest)
		if sub == "" || !fs.ValidPath(sub) || path.Base(sub) == "." {
			return bad("name a file in the repository after //")
		}
		s.file = sub
	}
	u, err := url.Parse(rest)
	if err != nil {
		return bad("not a URL")
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return bad("want http:// or https:// and a host")
	}
	q := u.Query()
	for _, magic := range []string{"archive", "checksum", "filename", "sshkey"} {
		if q.Has(magic) {
			return bad("the parameter " + magic + " has no meaning here")
		}
	}
	s.url = u
	return s, nil
}

// redact leaves out what may be a secret.
func redact(text string) string {
	head, _, cut := strings.Cut(text, "?")
	if cut {
		head += "?…"
	}
	if at := strings.LastIndex(head, "@"); at >= 0 {
		if from := strings.Index(head, "://"); from >= 0 && from < at {
			head = head[:from+3] + "…" + head[at:]
		}
	}
	return head
}

func fetch(ctx context.Context, o options) (result, error) {
	src, err := parseSource(o.source)
	if err != nil {
		return result{}, err
	}
	client, err := httpClient(o.ca)
	if err != nil {
		return result{}, err
	}
	dir := filepath.Dir(o.out)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return result{}, fmt.Errorf("make the folder of --out: %w", err)
	}
	if st, err := os.Lstat(o.out); err == nil && !st.Mode().IsRegular() {
		return result{}, fmt.Errorf("%w: %s is not a plain file", errSource, o.out)
	}
	most := o.limit + 1<<20
	if src.kind == "git" {
		most = 4*o.limit + 64<<20 // the clone holds more than the file
	}
	confined, err := confine(dir, o.ca, src.url, most)
	if err != nil {
		return result{}, fmt.Errorf("confine the program: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go watch(ctx, dir, o.idle, cancel)
	if err := get(ctx, src, client, o); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return result{}, fmt.Errorf("fetch %s: %w", redact(o.source), classify(err))
	}
	n, sum, err := digest(o.out)
	switch {
	case err != nil:
		return result{}, err
	case n > o.limit:
		return result{}, errors.Join(fmt.Errorf("fetch %s: %w of %d bytes", redact(o.source), errTooLong, o.limit), os.Remove(o.out))
	case o.sha256 != "" && sum != o.sha256:
		return result{}, errors.Join(fmt.Errorf("fetch %s: %w: sha256 is %s, want %s", redact(o.source), errWrongContent, sum, o.sha256), os.Remove(o.out))
	}
	return result{Bytes: n, SHA256: sum, Confined: confined}, nil
}

func get(ctx context.Context, src source, client *http.Client, o options) error {
	c := &getter.Client{DisableSymlinks: true, Decompressors: map[string]getter.Decompressor{}}
	req := &getter.Request{Src: src.url.String(), Dst: o.out, GetMode: getter.ModeFile, Copy: true, DisableSymlinks: true, Umask: 0o077}
	switch src.kind {
	case "http":
		c.Getters = []getter.Getter{&getter.HttpGetter{Client: client, XTerraformGetDisabled: true, MaxBytes: o.limit + 1}}
	case "s3":
		c.Getters, req.Forced = []getter.Getter{&s3.Getter{}}, "s3"
	case "gcs":
		c.Getters, req.Forced = []getter.Getter{&gcs.Getter{}}, "gcs"
	case "git":
		return getGit(ctx, c, req, src, o)
	}
	_, err := c.Get(ctx, req)
	return err
}

// getGit clones beside the file and takes one plain file out.
func getGit(ctx context.Context, c *getter.Client, req *getter.Request, src source, o options) (err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(o.out), "git-")
	if err != nil {
		return fmt.Errorf("make a folder for the clone: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	c.Getters = []getter.Getter{&getter.GitGetter{}}
	req.Dst, req.Forced, req.GetMode = filepath.Join(tmp, "repo"), "git", getter.ModeDir
	q := src.url.Query()
	q.Set("depth", "1")
	u := *src.url
	u.RawQuery = q.Encode()
	req.Src = u.String()
	if _, err := c.Get(ctx, req); err != nil {
		return err
	}
	root, err := os.OpenRoot(req.Dst)
	if err != nil {
		return fmt.Errorf("open the clone: %w", err)
	}
	defer root.Close()
	st, err := root.Lstat(src.file)
	if err != nil {
		return fmt.Errorf("%w: %s in the repository: %w", errRefused, src.file, err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s in the repository is not a plain file", errRefused, src.file)
	}
	if st.Size() > o.limit {
		return fmt.Errorf("%w: %d bytes, limit %d", errTooLong, st.Size(), o.limit)
	}
	return os.Rename(filepath.Join(req.Dst, filepath.FromSlash(src.file)), o.out)
}

// classify finds out what an error of go-getter means; it gives text only.
func classify(err error) error {
	text := err.Error()
	for _, s := range []string{"bad response code: 401", "bad response code: 403", "bad response code: 404", "bad response code: 410",
		"NoSuchKey", "SignatureDoesNotMatch", "InvalidAccessKeyId", "status code: 403", "NoSuchBucket", "AccessDenied", "object doesn't exist", "bucket doesn't exist", "Repository not found", "not found in upstream"} {
		if strings.Contains(text, s) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	if errors.Is(err, syscall.EFBIG) || strings.Contains(text, syscall.EFBIG.Error()) {
		return fmt.Errorf("%w: %w", errTooLong, err)
	}
	return err
}

func digest(file string) (int64, string, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, "", fmt.Errorf("read what was fetched: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return 0, "", fmt.Errorf("read what was fetched: %w", err)
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}

// watch ends ctx when the folder does not grow for idle.
func watch(ctx context.Context, dir string, idle time.Duration, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(max(idle/8, 10*time.Millisecond))
	defer tick.Stop()
	last, since := int64(-1), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if n := folderSize(dir); n != last {
				last, since = n, now
			} else if now.Sub(since) >= idle {
				cancel(fmt.Errorf("%w for %s", errIdle, idle))
				return
			}
		}
	}
}

func folderSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // files come and go
		}
		if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
			n += st.Size()
		}
		return nil
	})
	return n
}

// httpClient verifies servers, goes through the proxy that the environment
// names, and does not follow anybody to link-local addresses, where clouds
// keep credentials.
func httpClient(ca string) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read --ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: --ca %s holds no PEM certificate", errSource, ca)
		}
	}
	d := &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		if ap, err := netip.ParseAddrPort(address); err == nil && ap.Addr().Unmap().IsLinkLocalUnicast() {
			return fmt.Errorf("%w: %s is a link-local address", errRefused, ap.Addr())
		}
		return nil
	}}
	return &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext, TLSClientConfig: cfg,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: time.Minute, DisableCompression: true, ForceAttemptHTTP2: true},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return fmt.Errorf("%w: more than 5 redirects", errRefused)
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return fmt.Errorf("%w: redirect from https to %s", errRefused, r.URL.Scheme)
			}
			return nil
		},
	}, nil
}
