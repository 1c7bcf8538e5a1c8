package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/imagefile"
	"github.com/skein-fleet/skein/ota"
)

// imageRepo is where images go that have a name without a slash.
const imageRepo = "images/"

var (
	imageNameRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	imageTagRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// imageTarget reads NAME[:TAG].
func imageTarget(text string) (repo, tag string, err error) {
	repo, tag = text, "latest"
	if at := strings.LastIndex(repo, ":"); at > strings.LastIndex(repo, "/") {
		repo, tag = repo[:at], repo[at+1:]
	}
	if !strings.Contains(repo, "/") {
		repo = imageRepo + repo
	}
	if !imageNameRE.MatchString(repo) || !imageTagRE.MatchString(tag) {
		return "", "", usageError{fmt.Errorf("image %q: want NAME or NAME:TAG, in lower-case letters and digits with single . _ - or / between them", text)}
	}
	return repo, tag, nil
}

// pushed is what pushing an image did.
type pushed struct {
	repository, tag string
	digest          ota.Digest
	bytes, sent     int64
	absent          []string // platforms
}

// pushImage sends an image from a file: what the server has is not sent again,
// and a transfer that broke is taken up where it stands.
func (a *app) pushImage(ctx context.Context, repo, tag, path string) (pushed, error) {
	im, err := imagefile.Open(path)
	if err != nil {
		return pushed{}, err
	}
	defer im.Close()
	out := pushed{repository: repo, tag: tag, digest: im.Top().Digest, absent: im.Absent}
	for _, b := range im.Blobs {
		out.bytes += b.Size
		sent, err := a.send(ctx, im.Content(b.Digest), b.Size, string(b.Digest), b.Digest.Short())
		if err != nil {
			return out, fmt.Errorf("upload layer %s: %w", b.Digest.Short(), err)
		}
		if sent {
			out.sent += b.Size
		}
		if err := a.registry(ctx, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?mount="+url.QueryEscape(string(b.Digest))+"&from=skein", "", nil); err != nil {
			return out, fmt.Errorf("put layer %s into %s: %w", b.Digest.Short(), repo, err)
		}
	}
	for i, d := range im.Documents {
		out.bytes += d.Size
		ref := string(d.Digest)
		if i == len(im.Documents)-1 {
			ref = cmp.Or(tag, ref)
		}
		if err := a.registry(ctx, http.MethodPut, "/v2/"+repo+"/manifests/"+ref, d.MediaType, d.Raw); err != nil {
			return out, fmt.Errorf("push manifest %s to %s: %w", d.Digest.Short(), repo, err)
		}
	}
	return out, nil
}

// registry asks the distribution API for something that it answers with 201.
func (a *app) registry(ctx context.Context, method, path, mediaType string, body []byte) error {
	header := map[string]string{}
	if mediaType != "" {
		header["Content-Type"] = mediaType
	}
	u := uploader{app: a}
	r, err := u.do(ctx, method, path, bytes.NewReader(body), int64(len(body)), header)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusCreated {
		return refusal(r)
	}
	_, _ = io.Copy(io.Discard, r.Body) // so that the connection is used again
	return nil
}

// imageFor is the image of a release: one of the registry, or a file that is
// pushed first.
func (a *app) imageFor(ctx context.Context, text, release string) (string, error) {
	if _, err := os.Stat(text); err != nil {
		if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "/") || strings.HasSuffix(text, ".tar") {
			return "", fmt.Errorf("read image: %w", err) // a path that is mistaken
		}
		return text, nil
	}
	p, err := a.pushImage(ctx, imageRepo+release, "", text)
	if err != nil {
		return "", err
	}
	return p.repository + "@" + string(p.digest), nil
}
